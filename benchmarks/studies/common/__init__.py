"""What the studies share: stored runs, tuning, paired statistics, summaries and tables."""

"""What are temperatures worth to a language model? Perplexity, calibration and robust loss."""

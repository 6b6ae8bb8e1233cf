"""A text with a temperature for every token, as one web page that needs nothing else."""

"""Images in the order of their temperatures, as one web page that needs nothing else."""

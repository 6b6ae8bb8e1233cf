"""Do inputs of one concept get one temperature? Variance within concepts, neighbours, near-duplicates."""

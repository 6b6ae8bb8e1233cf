"""What computes on a block of scores: `reference` (the standard), `torch`, `cpu` (C), `triton`; see `protocol`."""

"""The paper's tables, as small as a laptop allows: one command each, resumable, with the same tuning for everyone."""

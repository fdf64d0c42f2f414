"""Numbers in, numbers out: statistics of noisy series."""

"""Mathematics of comparing dictionaries: arrays in, numbers out; no plotting, no report."""

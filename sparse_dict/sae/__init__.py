"""Sparse autoencoders: the step, the ensemble trainer, the files."""

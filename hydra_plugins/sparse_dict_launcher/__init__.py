"""Hydra plugin: a launcher that hands all jobs of a multirun to one function."""

"""Train a small transformer, learn dictionaries of its activations, and compare them."""

__version__ = "0.1.0"

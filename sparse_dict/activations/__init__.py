"""Activations: harvesting them into shards and reading shards back."""

"""Comparing dictionaries: numbers, figures, report."""

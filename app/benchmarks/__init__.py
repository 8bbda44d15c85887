"""Measures model servers beside one another: ``make bench-serving``."""

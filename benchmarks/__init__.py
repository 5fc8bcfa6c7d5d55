"""Measurements: each writes `results/NAME.json`, from which the figures in the docs are generated."""

"""Experiments: a grid of runs, their results, and what is reported of them."""

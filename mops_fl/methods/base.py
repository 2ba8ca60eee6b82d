"""`base`: the frozen model itself, beside which every number stands."""

from mops_fl.methods.method import Method


class Base(Method):
    """Trains nothing: a run of it ends with the evaluation before round 1."""

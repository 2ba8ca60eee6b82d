"""Launching Flower: a home of its own, a local SuperLink, one run and its true status."""

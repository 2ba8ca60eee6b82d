"""A federation of real machines: thin over Flower's SuperLink and SuperNodes."""

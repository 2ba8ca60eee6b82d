"""One seed for everything: each purpose draws from a generator of its own.

Deriving generators by name, not by drawing in turn, makes a stream independent of the order in
which clients, rounds and workers ask for theirs.
"""

import hashlib
import random

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive(seed, "order", partition, round)``."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive(seed, *purpose))


def python_generator(seed: int, *purpose: str | int) -> random.Random:
    """A standard-library generator for one purpose."""
    return random.Random(derive(seed, *purpose))

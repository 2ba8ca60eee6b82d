"""What is told of runs that are completed: it never makes them failed."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def telling(what: str, folders: Sequence[Path]) -> Iterator[None]:
    """Around showing or drawing completed runs: what goes wrong in it is a warning."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        runs = ", ".join(map(str, folders))
        print(f"mops-fl: completed, but {what}: {reason}; the run: {runs}", file=sys.stderr)

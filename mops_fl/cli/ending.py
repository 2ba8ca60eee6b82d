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


def tell_result(folder: Path) -> None:
    """Print what a completed run reached, and where it lies."""
    with telling("its perplexity cannot be shown", [folder]):
        print(_perplexity(folder))
    print(folder)
    with telling("it has no figure (flower.log says why)", [folder]):
        print((folder / "perplexity.png").resolve(strict=True))


def _perplexity(folder: Path) -> str:
    from mops_fl.run.results import Run

    run = Run.read(folder)
    curve, shares = run.perplexity(), run.share().iloc[[0, -1]]
    return (
        f"{run.noted('perplexity')} {curve.iloc[0]:.2f} before training, {curve.iloc[-1]:.2f} "
        f"after round {curve.index[-1]}"
        f"{' (not all held-out rows are behind both)' if (shares < 1).any() else ''}"
    )

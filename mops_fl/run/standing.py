"""Whether a run still goes on, told by whoever only has its folder."""

import contextlib
import fcntl
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mops_fl.files import absolute, cache_folder
from mops_fl.run.folder import read_facts

GRACE_SECONDS = 20.0
"""A launcher whose run died writes so within this time."""

SETTLING_SECONDS = 3.0
"""A launcher that stopped a run writes so within this time of the run's own last words."""


@dataclass(frozen=True)
class Standing:
    """How a run stands."""

    status: str
    """running, completed, failed, stopped; or died: it says that it runs, and nobody writes it."""
    facts: dict[str, Any]
    silent: float
    """Seconds since anything was written."""
    over: bool
    """Whether it stays so."""


def standing(folder: Path) -> Standing:
    """How the run in `folder` stands.

    Raises:
        RunError: it is not a run folder, or its `run.json` is malformed.
    """
    # asked first: a run that ends in between has written so
    written = is_written(folder, read_facts(folder))
    facts = read_facts(folder)
    status, silent = facts["status"], _silent(folder)
    if status == "running":
        died = written is False and silent >= GRACE_SECONDS
        return Standing("died" if died else status, facts, silent, over=died)
    settled = silent >= SETTLING_SECONDS or (status == "completed" and written is False)
    return Standing(status, facts, silent, over=settled and not written)


def is_written(folder: Path, facts: dict[str, Any]) -> bool | None:
    """Whether a ServerApp writes the run now; None where that cannot be told.

    A ServerApp holds a lock in the cache folder as long as it lives. It is not found from another
    machine, or with another `MOPS_FL_CACHE`.

    Args:
        folder: the run's.
        facts: its `run.json`.
    """
    path = Path(facts["config"].get("run-dir") or absolute(folder))
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    try:
        lock = (cache_folder() / "locks" / name).open("rb")
    except OSError:
        return None
    with lock:
        try:
            # shared: others who ask meanwhile are no writers
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
    return False


def _silent(folder: Path) -> float:
    times = [0.0]
    for name in ("run.json", "progress.json"):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return time.time() - max(times)

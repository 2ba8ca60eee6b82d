"""What this process may use of its machine: cores and memory, with a container's limits."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

WORKERS_VARIABLE = "MOPS_FL_WORKERS"
"""Environment variable: worker processes that share this machine."""

GPU_WORKERS_VARIABLE = "MOPS_FL_WORKERS_PER_GPU"
"""Environment variable: worker processes that share a GPU."""

_ROOT = Path("/")


def cores(root: Path = _ROOT) -> int:
    """CPU cores that this process may use: by its affinity, and no more than its CPU quota.

    Args:
        root: of the file system that tells about control groups.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        allowed = os.cpu_count() or 1
    quotas = (_quota(group) for group in _groups(root, "cpu"))
    return max(1, math.ceil(min([allowed, *quotas])))


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that this process can still get: from the machine, and below the container's limit.

    Args:
        root: of the file system that tells about control groups.
    """
    rooms = (_room(group) for group in _groups(root, "memory"))
    return max(0, int(min([psutil.virtual_memory().available, *rooms])))


def workers() -> int:
    """Worker processes that share this machine; one for each core where nobody says."""
    return _count(WORKERS_VARIABLE) or cores()


def workers_per_gpu() -> int:
    """Worker processes that share a GPU; one where nobody says."""
    return _count(GPU_WORKERS_VARIABLE) or 1


def _count(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and its parents, of version 1 and of version 2.

    Inside a container a group's path may be that of the host, of which only the top is there.
    """
    top = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, colon, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not colon or (controllers and controller not in controllers.split(",")):
            continue
        own = PurePosixPath(os.path.normpath("/" + path.lstrip("/"))).relative_to("/")
        mounts = (controllers, controller) if controllers else ("", "unified")
        for mount in dict.fromkeys(mounts):
            yield from (top / mount / part for part in (own, *own.parents))


def _quota(group: Path) -> float:
    """Cores that a group may use; infinite where it has no quota."""
    words = [word for line in _lines(group / "cpu.max") for word in line.split()]
    words = words or [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    if len(words) != 2 or not words[0].isdecimal():
        return math.inf
    return int(words[0]) / int(words[1])


def _room(group: Path) -> float:
    """Bytes that a group may still take; infinite where it has no limit.

    Pages of files are given back before memory runs out, so they count as room.
    """
    limits = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limit = min(_bytes(group / name) for name in limits)
    if limit == math.inf:
        return math.inf
    used = min(_bytes(group / name) for name in ("memory.current", "memory.usage_in_bytes"))
    facts = dict(line.partition(" ")[::2] for line in _lines(group / "memory.stat"))
    prefix = "total_" if "total_active_file" in facts else ""
    files = sum(int(facts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return limit - (0 if used == math.inf else max(0, used - files))


def _bytes(file: Path) -> float:
    text = "".join(_lines(file))
    return int(text) if text.isdecimal() else math.inf


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []

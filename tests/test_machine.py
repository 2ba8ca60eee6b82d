"""A container's CPU quota and memory limit, as either version of control groups tells them."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mops_fl import machine
from mops_fl.machine import available_memory, cores, workers, workers_per_gpu

GB = 10**9


@pytest.fixture(autouse=True)
def _large_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    monkeypatch.setattr(
        machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=500 * GB)
    )


def system(root: Path, groups: str, **files: str) -> Path:
    """A file system whose control groups hold these files."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


CGROUP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "9900000 100000"}, 64),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "800000 100000"}, 4),
        # seen from inside a container: the group's path is that of the host
        ("0::/docker/0a1b", {"cpu.max": "200000 100000"}, 2),
        ("0::/../../x", {"cpu.max": "200000 100000"}, 2),
        (
            "4:cpu,cpuacct:/d/1\n0::/",
            {"cpu,cpuacct/d/1/cpu.cfs_quota_us": "250000"}
            | {"cpu,cpuacct/d/1/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("1:cpu:/d/1", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("2:cpuset:/", {"cpuset/cpu.max": "100000 100000"}, 64),
        ("0::/", {"cpu.max": "nonsense"}, 64),
        ("", {}, 64),
    ],
)
def test_cores(tmp_path, groups, files, expected):
    files = {f"{CGROUP}/{name}": text for name, text in files.items()}
    assert cores(system(tmp_path, groups, **files)) == expected


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"memory.max": str(4 * GB), "memory.current": str(GB)}, 3 * GB),
        ("0::/", {"memory.max": "max", "memory.current": str(GB)}, 500 * GB),
        (
            "0::/",
            {"memory.max": "max", "memory.high": str(2 * GB), "memory.current": str(GB)},
            GB,
        ),
        (
            "0::/a",
            {"memory.max": str(3 * GB), "memory.current": "0", "a/memory.max": "max"},
            3 * GB,
        ),
        (
            "0::/",
            {"memory.max": str(4 * GB), "memory.current": str(4 * GB)}
            | {"memory.stat": f"anon {GB}\nactive_file {GB}\ninactive_file {2 * GB}"},
            3 * GB,
        ),
        ("0::/", {"memory.max": str(GB), "memory.current": str(2 * GB)}, 0),
        (
            "9:memory:/d",
            {"memory/d/memory.limit_in_bytes": str(4 * GB)}
            | {"memory/d/memory.usage_in_bytes": str(3 * GB)}
            | {
                "memory/d/memory.stat": f"inactive_file 0\ntotal_active_file 0\n"
                f"total_inactive_file {GB}"
            },
            2 * GB,
        ),
        ("9:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 500 * GB),
        ("", {}, 500 * GB),
    ],
)
def test_available_memory(tmp_path, groups, files, expected):
    files = {f"{CGROUP}/{name}": text for name, text in files.items()}
    assert available_memory(system(tmp_path, groups, **files)) == expected


def test_who_shares_the_machine(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    for text in (None, "", "0", "many"):
        if text is not None:
            monkeypatch.setenv(machine.WORKERS_VARIABLE, text)
            monkeypatch.setenv(machine.GPU_WORKERS_VARIABLE, text)
        assert (workers(), workers_per_gpu()) == (8, 1)
    monkeypatch.setenv(machine.WORKERS_VARIABLE, "3")
    monkeypatch.setenv(machine.GPU_WORKERS_VARIABLE, "4")
    assert (workers(), workers_per_gpu()) == (3, 4)

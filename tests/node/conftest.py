"""Fixtures of the tests of an edge machine."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from edge import trainers, write_rows

from mops_fl.config import Scalar


@pytest.fixture
def node(tiny_llama: Path, tmp_path: Path) -> dict[str, Scalar]:
    """The configuration of a node with rows of its own."""
    return {
        "partition-id": 0,
        "own-data": True,
        "model": str(tiny_llama),
        "dtype": "float32",
        "device": "cpu",
        "dataset": "jsonl",
        "data-path": str(write_rows(tmp_path / "rows.jsonl")),
    }


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node's home of the test's own, and no trainer left behind."""
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "cache"))
    with tempfile.TemporaryDirectory(prefix="mops-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield
        for process in trainers(tmp_path):
            process.kill()

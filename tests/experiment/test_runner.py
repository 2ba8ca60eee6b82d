"""`mops-fl experiment` through Flower and Ray: two at once, one of them killed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import small_run

FILE = """
title = "Two cells"
entries = ["base", "fedprompt"]
seeds = [0]

[presets.small.values]
"""
ROUNDS = 3


@pytest.fixture
def file(tmp_path, tiny_llama) -> Path:
    values = {**small_run.VALUES, "model": str(tiny_llama), "num-server-rounds": ROUNDS}
    path = tmp_path / "two.toml"
    path.write_text(FILE + "".join(f"{key} = {json.dumps(v)}\n" for key, v in values.items()))
    return path


def start(folder: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [small_run.COMMAND, "experiment", "two.toml", "--workers=1", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def printed(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=1600)
    assert process.returncode == 0, out
    return out


@pytest.mark.slow
def test_two_runners_share_the_cells_and_one_finishes_what_the_other_left(file, tmp_path):
    results, runs = tmp_path / "runs" / "results" / "two", tmp_path / "runs" / "experiments" / "two"
    killed = start(tmp_path, "--only=entry=fedprompt")
    deadline = time.monotonic() + 720
    while not [*runs.glob("*/run.json")]:
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # it finds the other at work on one cell, does the next, and comes back
    second = start(tmp_path)
    while not [*runs.glob("*/checkpoints/round-001.safetensors")]:
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    out = printed(second)
    assert "cell 1 of 2" in out
    assert "cell 2 of 2" in out
    found = {json.loads(f.read_text())["entry"]: f for f in results.glob("*.json")}
    assert found.keys() == {"base", "fedprompt"}
    facts = json.loads(found["fedprompt"].read_text())["facts"]
    assert (facts["status"], facts["rounds_done"]) == ("completed", ROUNDS)
    assert len([*runs.iterdir()]) == 2
    for ending in ("md", "csv", "png"):
        assert (results.parent / f"two.{ending}").stat().st_size

    stamps = {f: f.stat().st_mtime_ns for f in results.glob("*.json")}
    assert "cell 1 of 2" not in printed(start(tmp_path))
    assert {f: f.stat().st_mtime_ns for f in results.glob("*.json")} == stamps
    listed = printed(start(tmp_path, "--list", "-clearning-rate=0.5"))
    assert "2 of 2 to run, about" in listed

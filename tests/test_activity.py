"""Telling what a process is doing: to a folder, to a listener, to nobody."""

import json
import os
import subprocess
import sys

import pytest

from mops_fl import activity
from mops_fl.activity import FOLDER_VARIABLE, Activity, activities, doing, listening


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when they are added."""
    now = [100.0]
    monkeypatch.setattr(activity.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def test_a_file_as_long_as_the_work_lasts(folder, clock):
    with doing("steps", of=250, clients=5) as on_step:
        assert activities(folder) == [Activity("steps", 0, 250, 5)]
        clock[0] += 1
        on_step(120, 250)
        assert activities(folder) == [Activity("steps", 120, 250, 5)]
        assert [file.suffix for file in folder.iterdir()] == [".json"]
    assert not list(folder.iterdir())


def test_it_is_written_twice_a_second_at_most(folder, clock, monkeypatch):
    written = []
    replace = activity.Path.replace
    monkeypatch.setattr(
        activity.Path, "replace", lambda *paths: (written.append(paths), replace(*paths))
    )
    with doing("steps", of=1000) as on_step:
        for step in range(1000):
            clock[0] += 0.01
            on_step(step + 1, 1000)
    # ten seconds: once at the start and nineteen or twenty times later
    assert 20 <= len(written) <= 21
    assert all(half.suffix == ".tmp" and whole.suffix == ".json" for half, whole in written)


def test_work_that_fails_is_no_longer_done(folder):
    with pytest.raises(ValueError, match="broken"), doing("steps"):
        raise ValueError("broken")
    assert not activities(folder)


def test_a_folder_that_is_gone_stops_no_work(folder, clock):
    folder.rmdir()
    with doing("steps") as on_step:
        clock[0] += 1
        on_step(1, 2)
    assert not folder.exists()
    assert activities(folder) == []


def test_nobody_is_told_where_nobody_asks(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with doing("steps") as on_step:
        on_step(1, 2)
    assert not list(tmp_path.iterdir())


def test_the_dead_and_the_torn_are_not_heard(folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    text = json.dumps({"what": "steps"})
    for name, content in {
        f"{gone.pid}-1.json": text,
        f"{os.getpid()}-1.json": text,
        f"{os.getpid()}-2.json": text[:5],
        f"{os.getpid()}-3.json": '{"other": 1}',
        "words.json": text,
        f"{os.getpid()}-4.tmp": text,
    }.items():
        (folder / name).write_text(content)
    assert activities(folder) == [Activity("steps")]


def test_a_listener_hears_how_long_it_took_and_the_folder_nothing(folder, clock):
    heard = []
    with listening(heard.append), doing("converting") as on_step:
        clock[0] += 2
        on_step(1, 2)
        clock[0] += 2
    assert heard == [
        Activity("converting"),
        Activity("converting", 1, 2),
        Activity("converting", 1, 2, seconds=4.0),
        None,
    ]
    assert not list(folder.iterdir())

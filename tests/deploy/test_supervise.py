"""A SuperNode's place taken by scripts: started again, and ended with all that belongs to it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

RUN = "from mops_fl.deploy import supervise as s; s.SHORTEST, s.LONGEST, s.FAREWELL = 0.05, 0.1, 2;"
RUN += "import sys; s.main(sys.argv[1:])"


@pytest.fixture
def node(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path


def start(node: Path, script: str) -> subprocess.Popen:
    environment = {**os.environ, "FLWR_HOME": str(node / "flwr-home")}
    with (node / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, str(node), "/bin/sh", "-c", script],
            env=environment,
            stderr=said,
        )


def end(process: subprocess.Popen) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def left(node: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == str(node / "flwr-home"):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_what_ends_is_started_again_and_the_end_is_the_end_of_all(node):
    # the third one stays, with a child of its own that does not hear of its end
    script = f"echo x >> {node}/starts; test $(wc -l < {node}/starts) -lt 3 && exit 7; "
    script += "(trap '' INT TERM; sleep 300) & sleep 300"
    process = start(node, script)
    wait_for(lambda: (node / "starts").exists() and len((node / "starts").read_text()) == 6)
    wait_for(lambda: len(left(node)) >= 4)
    assert end(process) == 0
    said = (node / "said").read_text()
    assert said.count("the SuperNode ended (status 7)") == 2
    assert "stopped" in said
    assert left(node) == []


def test_a_supervisor_that_is_killed_takes_the_supernode_with_it(node):
    process = start(
        node, f"trap 'touch {node}/told; exit' INT; touch {node}/up; while :; do sleep 0.1; done"
    )
    wait_for((node / "up").exists)
    process.kill()
    process.wait()
    wait_for((node / "told").exists)
    wait_for(lambda: left(node) == [])


def test_what_a_killed_one_left_is_ended_by_the_next(node):
    first = start(node, f"trap '' INT TERM; touch {node}/up; while :; do sleep 0.1; done")
    wait_for((node / "up").exists)
    first.kill()
    first.wait()
    (orphan,) = [pid for pid in left(node) if psutil.Process(pid).name() == "sh"]
    second = start(node, f"touch {node}/again; sleep 300")
    wait_for((node / "again").exists)
    assert orphan not in left(node)
    assert end(second) == 0
    assert left(node) == []


def test_one_folder_has_one_node(node):
    first = start(node, f"touch {node}/up; sleep 300")
    wait_for((node / "up").exists)
    second = start(node, "true")
    assert second.wait(timeout=60) == 1
    assert "this node runs already" in (node / "said").read_text()
    assert end(first) == 0

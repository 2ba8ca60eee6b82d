"""A simulation over two machines: network namespaces of this one, each with a checkout of its own.

The second machine does not see the checkout of the first, nor its cache, and is cut off in the
middle of the run.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from small_run import VALUES

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND, HEAD = "10.77.0.1", "10.77.0.2", "10.77.0.1:6399"
PATIENCE = 600
"""Seconds; Ray takes one minute of them to find that a machine is silent."""

pytestmark = pytest.mark.slow


def quietly(command: str) -> int:
    return subprocess.run(command.split(), capture_output=True, check=False).returncode


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    """What runs on the machines, gone when they are."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.wait()


@pytest.fixture
def names(started) -> Iterator[tuple[str, str]]:
    """Two namespaces that reach each other; all that runs in them ends with the test."""
    first, second = (f"mops-{place}-{os.getpid()}" for place in "ab")
    if shutil.which("ip") is None or quietly(f"ip netns add {first}"):
        pytest.skip("network namespaces cannot be made here: it takes Linux, `ip` and root")
    try:
        for command in (
            f"ip netns add {second}",
            f"ip link add eth0 netns {first} type veth peer name eth0 netns {second}",
            *(f"ip -n {name} link set lo up" for name in (first, second)),
            f"ip -n {first} addr add {FIRST}/24 dev eth0",
            f"ip -n {second} addr add {SECOND}/24 dev eth0",
            *(f"ip -n {name} link set eth0 up" for name in (first, second)),
        ):
            assert quietly(command) == 0, command
        yield first, second
    finally:
        for name in (first, second):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=False)
            for pid in pids.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            quietly(f"ip netns del {name}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray has its sockets below."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def checkout(folder: Path) -> Path:
    for part in ("mops_fl", "strategies", "partitions"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def begin(name: str, script: str, code: Path, log: Path, **more: str) -> subprocess.Popen:
    """Start a shell script on a machine, with the code that its Python is to find."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"PYTHONPATH": str(code), "RAY_USAGE_STATS_ENABLED": "0", **more}
    with log.open("wb") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, "sh", "-c", script],
            env={**inherited, **own},
            cwd=code,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def simulate(
    name: str, code: Path, model: Path, folder: Path, run: str, more: str
) -> tuple[subprocess.Popen, Path]:
    """Start a run on a machine; its process and its folder."""
    values = {**VALUES, "method": "fedprompt", "engine": "cohort", "cohort-size": 2}
    values |= {"model": str(model), "num-server-rounds": 12, "eval-every": 12}
    settings = " ".join(f"-c{key}={value}" for key, value in values.items())
    call = f"{sys.executable} -c 'from mops_fl.cli import main; main()' simulate --name={run} "
    call += f"--runs-dir={folder}/runs {more} {settings}"
    log = folder / f"{run}.log"
    process = begin(name, call, code, log, MOPS_FL_CACHE=str(folder / "cache"))
    return process, folder / "runs" / run


def test_a_machine_that_falls_silent_costs_time_and_no_number(names, started, folder, tiny_llama):
    first, second = names
    here, there = checkout(folder / "here"), checkout(folder / "there")
    proof = f"open({str(folder / 'proof')!r}, 'a').write(__file__)\n"
    # a file that decides no number: other code would be refused
    with (there / "mops_fl/__init__.py").open("a") as code:
        code.write(proof)
    ray = f"{Path(sys.executable).with_name('ray')} start --block --num-cpus=1"
    head = f"{ray} --head --port={HEAD.partition(':')[2]} --node-ip-address={FIRST}"
    head += f" --include-dashboard=false --temp-dir={folder}/ray"
    started.append(begin(first, head, here, folder / "head.log"))
    wait(lambda: "Ray runtime started" in (folder / "head.log").read_text(), "no head")
    (folder / "cache").mkdir()
    hidden = f"mount -t tmpfs none {here} && mount -t tmpfs none {folder}/cache && "
    joined = f"{hidden} exec {ray} --address={HEAD} --node-ip-address={SECOND}"
    started.append(begin(second, joined, there, folder / "second.log"))
    wait(lambda: "Ray runtime started" in (folder / "second.log").read_text(), "no second machine")

    both, run = simulate(*(first, here, tiny_llama, folder, "both", f"--ray-address={HEAD}"))
    wait(lambda: both.poll() is not None or _rounds(run) >= 2, "no second round")
    assert both.poll() is None, (folder / "both.log").read_text()
    assert (folder / "proof").read_text().startswith(str(there))
    assert quietly(f"ip -n {second} link set eth0 down") == 0
    assert both.wait(PATIENCE) == 0, (folder / "both.log").read_text()
    log = (run / "flower.log").read_text()
    assert "on 2 workers (cpu)" in log
    assert "a worker was lost: cpu on " in log

    alone, other = simulate(first, here, tiny_llama, folder, "alone", "--workers=1")
    assert alone.wait(PATIENCE) == 0, (folder / "alone.log").read_text()
    for table in ("rounds.csv", "evaluation.csv"):
        assert (run / table).read_bytes() == (other / table).read_bytes()
    ours, theirs = (pd.read_csv(each / "clients.csv") for each in (run, other))
    pd.testing.assert_frame_equal(ours.drop(columns="seconds"), theirs.drop(columns="seconds"))


def _rounds(run: Path) -> int:
    table = run / "train.csv"
    return len(pd.read_csv(table)) if table.is_file() else 0

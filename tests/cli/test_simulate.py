"""Real runs over Flower and Ray on a tiny random LLaMA, through the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import small_run
from safetensors.numpy import load_file

from mops_fl.config import app_folder

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
COMMAND = [small_run.COMMAND]
ROUNDS = 6
VALUES = {
    **small_run.VALUES,
    "num-server-rounds": ROUNDS,
    "learning-rate": 0.05,
    # what clients keep themselves, and what follows the last round
    "gate-sync": "local",
    "personal-steps": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("simulate")


@pytest.fixture(scope="module")
def values(tiny_llama):
    return [f"-c{key}={value}" for key, value in {**VALUES, "model": tiny_llama}.items()]


@pytest.fixture(scope="module")
def compared(folder, values, tmp_path_factory):
    """Both methods, run once to the end: the finished process and the folder of `mops`."""
    os.environ["MOPS_FL_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    done = mops_fl(folder, "compare", *values, "--name=whole", "--workers=1")
    return done, folder / "runs" / "mops-whole"


def start(folder: Path, *arguments: str, command: list[str] = COMMAND) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=1600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def mops_fl(folder: Path, *arguments: str, command: list[str] = COMMAND):
    return finish(start(folder, *arguments, command=command))


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def wait_for_round(run: Path, number: int) -> None:
    deadline = time.monotonic() + 720
    while not (run / "checkpoints" / f"round-{number:03d}.safetensors").exists():
        assert time.monotonic() < deadline, f"round {number} did not end"
        time.sleep(0.05)


def wait_until_nothing_runs() -> None:
    def running() -> bool:
        for process in psutil.process_iter():
            try:
                home = process.environ().get("FLWR_HOME", "")
            except psutil.Error:
                continue
            if home.startswith(os.environ["MOPS_FL_CACHE"]):
                return True
        return False

    deadline = time.monotonic() + 120
    while running():
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.2)


def test_compare_ends_with_whole_run_folders_a_table_and_a_figure(folder, compared):
    done, run = compared
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert " in float32 on skills; 6 clients" in done.stdout
    assert f"round {ROUNDS}/{ROUNDS}" in done.stdout
    files = {path.name for path in run.iterdir()}
    tables = {"rounds.csv", "train.csv", "clients.csv", "gate.csv", "partition.csv"}
    logs = {"flower.log", "superlink.log"}
    assert files >= tables | logs | {"run.json", "perplexity.png", "gate.png", "progress.json"}
    rounds = pd.read_csv(run / "rounds.csv")
    assert list(rounds[rounds["task"] == "all"]["round"]) == list(range(ROUNDS + 1))
    assert facts(run)["status"] == "completed"
    assert len(list((run / "checkpoints").iterdir())) == ROUNDS + 1
    assert not (folder / "runs" / "fedprompt-whole" / "gate.png").exists()
    for text in ("mops", "fedprompt", str(run), str(folder / "runs" / "compare-whole.png")):
        assert text in done.stdout
    assert (folder / "runs" / "compare-whole.png").is_file()
    wait_until_nothing_runs()


def test_training_lowers_perplexity(compared):
    rounds = pd.read_csv(compared[1] / "rounds.csv")
    total = rounds[rounds["task"] == "all"].set_index("round")["perplexity"]
    assert total[ROUNDS] < total[0]


def test_killed_resumed_stopped_resumed_gives_the_same_numbers(folder, values, compared):
    """And with two workers where the run to its end had one."""
    run = folder / "runs" / "cut"
    process = start(folder, "simulate", *values, "--name=cut", "--workers=2")
    wait_for_round(run, 1)
    process.kill()
    process.communicate()
    wait_until_nothing_runs()
    assert facts(run)["status"] == "failed"
    assert facts(run)["error"] == "mops-fl was killed"
    assert facts(run)["rounds_done"] < ROUNDS

    process = start(folder, "simulate", "--resume", str(run), "--workers=2")
    wait_for_round(run, facts(run)["rounds_done"] + 1)
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    wait_until_nothing_runs()
    # rounds are short here: the last may end before Flower has stopped the run
    if facts(run)["status"] == "completed":
        assert stopped.returncode == 0
    else:
        assert facts(run)["status"] == "stopped"
        assert stopped.returncode == 130
        assert stopped.stderr.startswith("mops-fl: cut was stopped; log: ")
        done = mops_fl(folder, "simulate", "--resume", str(run), "--workers=2")
        assert done.returncode == 0, done.stderr
    assert same_results(run, compared[1])


def same_results(run: Path, other: Path) -> bool:
    names = ("rounds.csv", "gate.csv", "partition.csv", "personal.csv")
    assert [(run / n).read_text() for n in names] == [(other / n).read_text() for n in names]
    last = f"checkpoints/round-{ROUNDS:03d}.safetensors"
    ours, theirs = load_file(run / last), load_file(other / last)
    assert ours.keys() == theirs.keys()
    return all((ours[name] == theirs[name]).all() for name in ours)


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """A `mops-fl` whose clients in training have a fault in some partitions."""
    app = tmp_path / "app"
    for part in ("mops_fl", "strategies", "partitions"):
        shutil.copytree(app_folder() / part, app / part)
    shutil.copy(HERE / "faulty_app.py", app / "mops_fl" / "faulty_app.py")
    text = (app_folder() / "pyproject.toml").read_text()
    text = text.replace("mops_fl.client_app:app", "mops_fl.faulty_app:app")
    (app / "pyproject.toml").write_text(text)

    def call(fault: str, partitions: str, *arguments: str):
        monkeypatch.setenv("MOPS_FL_TEST_FAULT", fault)
        monkeypatch.setenv("MOPS_FL_TEST_FAULTY", partitions)
        command = [sys.executable, str(HERE / "drive.py"), str(app)]
        return mops_fl(tmp_path, "simulate", *arguments, "--name=run", command=command)

    return call


def test_a_client_that_raises_is_counted(faulty, tmp_path, values):
    done = faulty("raise", "2", *values, "-cmin-reply-fraction=0.5", "--workers=1")
    assert done.returncode == 0, done.stderr
    train = pd.read_csv(tmp_path / "runs" / "run" / "train.csv")
    assert set(train["clients"] + train["failures"]) == {VALUES["active-clients"]}
    assert train["failures"].sum() > 0


def test_too_few_replies_fail_with_the_cause(faulty, tmp_path, values):
    done = faulty("raise", "0,1,2,3,4", *values, "--workers=1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "the disk of this client is broken" in done.stderr
    log = tmp_path / "runs" / "run" / "flower.log"
    assert f"log: {log}" in done.stderr
    assert log.is_file()
    assert facts(tmp_path / "runs" / "run")["status"] == "failed"
    wait_until_nothing_runs()


def test_a_worker_that_dies_fails_the_run(faulty, tmp_path, values):
    done = faulty("die", "0,1,2", *values, "--workers=2")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "died" in done.stderr
    assert facts(tmp_path / "runs" / "run")["status"] == "failed"
    wait_until_nothing_runs()

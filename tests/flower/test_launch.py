"""Real Flower runs of a toy app, ending in every way that a run can end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


STARTED: list[subprocess.Popen] = []


def start(
    run_dir: Path, behaviour: str, app: Path | None = None, **variables: str
) -> subprocess.Popen:
    arguments = [str(run_dir), behaviour, *([str(app)] if app else [])]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "drive.py"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    STARTED.append(process)
    return process


def outcome(process: subprocess.Popen) -> dict:
    return json.loads(process.communicate(timeout=480)[0])


def facts(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def homes() -> Path:
    return Path(os.environ["MOPS_FL_CACHE"]) / "flower"


def processes() -> dict[int, list[str]]:
    """The command line of every process with a FLWR_HOME below this test session's cache."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME", "").startswith(str(homes())):
                found[process.pid] = process.cmdline()
    return found


def wait_for(condition: Callable[[], object], seconds: float = 480) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def wait_for_workers() -> None:
    """Until client actors are at work."""
    wait_for(lambda: any("ray::ClientAppActor.run" in line for line in processes().values()))


def kill(command: str) -> None:
    (pid,) = [p for p, line in processes().items() if any(part.endswith(command) for part in line)]
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def _nothing_left():
    shutil.rmtree(homes(), ignore_errors=True)
    yield
    while STARTED:
        STARTED.pop().kill()
    wait_for(lambda: not processes(), seconds=120)


def test_two_at_once_end_each_with_its_own_truth(tmp_path):
    good = start(tmp_path / "good", "well")
    bad = start(tmp_path / "bad", "raise")
    log = tmp_path / "good" / "flower.log"
    assert outcome(good) == {"status": "completed", "error": None, "log": str(log)}
    ended = outcome(bad)
    assert ended["status"] == "failed"
    assert ended["error"] == "no, not with 2 replies"
    assert facts(tmp_path / "good")["status"] == "completed"
    assert facts(tmp_path / "bad")["error"] == "no, not with 2 replies"
    assert "Starting Flower Simulation" in log.read_text()
    assert (tmp_path / "good" / "superlink.log").stat().st_size
    assert list(homes().iterdir()) == []


def test_a_run_knows_nothing_of_the_user_s_shell(tmp_path):
    long = tmp_path / "slurm_jobdir" / "1355700" / "alice"
    long.mkdir(parents=True)
    variables = {
        **{"ALL_PROXY": "socks5://127.0.0.1:1080", "HTTP_PROXY": "http://127.0.0.1:9"},
        **{"NO_PROXY": "localhost,[::1]", "SSL_CERT_FILE": "/nowhere"},
        **{"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "20", "LC_ALL": "C"},
        **{"PYTHONWARNINGS": "error", "RAY_RUNTIME_ENV_HOOK": "nowhere", "MKL_NUM_THREADS": "64"},
        **{"TMPDIR": str(long), "MOPS_FL_CACHE": str(tmp_path / ("c" * 60))},
    }
    ended = outcome(start(tmp_path / "run", "well", **variables))
    assert (ended["status"], ended["error"]) == ("completed", None)
    assert facts(tmp_path / "run")["status"] == "completed"


def test_ctrl_c_stops_the_run(tmp_path):
    process = start(tmp_path / "run", "slow")
    wait_for_workers()
    process.send_signal(signal.SIGINT)
    assert outcome(process)["status"] == "stopped"
    assert facts(tmp_path / "run")["status"] == "stopped"
    assert processes() == {}


def test_a_killed_launcher_leaves_no_process_and_a_true_status(tmp_path):
    process = start(tmp_path / "run", "slow")
    wait_for_workers()
    process.kill()
    process.communicate()
    wait_for(lambda: not processes(), seconds=80)
    wait_for(lambda: facts(tmp_path / "run")["status"] == "failed", seconds=20)
    assert facts(tmp_path / "run")["error"] == "mops-fl was killed"
    wait_for(lambda: not list(homes().iterdir()), seconds=20)


def test_a_killed_simulation_is_a_failure(tmp_path):
    process = start(tmp_path / "run", "slow")
    wait_for_workers()
    kill("flwr-simulation")
    assert "died without a word" in outcome(process)["error"]
    assert facts(tmp_path / "run")["status"] == "failed"


def test_a_killed_guard_is_a_failure_and_leaves_nothing(tmp_path):
    process = start(tmp_path / "run", "slow")
    wait_for_workers()
    kill("mops_fl.flower.guard")
    assert "SuperLink" in outcome(process)["error"]
    assert facts(tmp_path / "run")["status"] == "failed"
    assert processes() == {}
    assert list(homes().iterdir()) == []


def test_an_app_that_flower_refuses(tmp_path):
    app = tmp_path / "broken"
    shutil.copytree(HERE / "toy", app)
    text = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(text.replace("toy.server:app", "toy.nowhere:app"))
    ended = outcome(start(tmp_path / "run", "well", app))
    assert ended["status"] == "failed"
    assert "nowhere" in ended["error"]
    assert not (tmp_path / "run").exists()
    assert "nowhere" in Path(ended["log"]).read_text()

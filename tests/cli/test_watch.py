"""`mops-fl watch`: what it shows of a run folder, when it ends, and with which code."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from synthetic import LABELS, write_run, write_table

import mops_fl.cli
from mops_fl.cli import watch as command
from mops_fl.cli.watch import sparkline
from mops_fl.run.standing import Standing

MODULE = sys.modules["mops_fl.cli.watch"]
STATE = {
    "phase": "training",
    "round": 4,
    "rounds": 20,
    "done": 3,
    "of": 10,
    "train_loss": 2.5,
    "perplexity": 23.4,
    "seconds_left": 754.2,
}


@pytest.fixture
def watch(monkeypatch, capsys):
    """Call `mops-fl watch` in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mops-fl", "watch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            mops_fl.cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


def aged(run, seconds=999):
    then = time.time() - seconds
    for name in ("run.json", "progress.json"):
        if (run / name).is_file():
            os.utime(run / name, (then, then))
    return run


def test_a_completed_run_is_told_and_left(tmp_path, watch):
    run = aged(write_run(tmp_path / "run", tasks=LABELS))
    code, out, _ = watch(run)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "round 0: perplexity 500.00"
    assert lines[1] == (
        "round 1: perplexity 196.58, train loss 2.990, clients 10, failures 0, MB up 0.00, "
        "MB down 0.00, seconds 3.5"
    )
    assert "perplexity 500.00 before training" in lines[5]
    assert lines[6] == str(run)


@pytest.mark.parametrize(
    ("facts", "code", "said"),
    [
        ({"status": "failed", "error": "out of memory"}, 1, "run failed: out of memory"),
        ({"status": "failed"}, 1, "run failed: it does not say why"),
        ({"status": "stopped"}, 130, "run was stopped"),
    ],
)
def test_the_code_tells_how_it_ended(tmp_path, watch, facts, code, said):
    found = watch(aged(write_run(tmp_path / "run", **facts)))
    assert (found[0], found[2]) == (code, f"mops-fl: {said}\n")


def test_a_run_that_died_without_a_word(tmp_path, watch, monkeypatch):
    run = aged(write_run(tmp_path / "run", status="running", rounds_done=3))
    monkeypatch.setattr("mops_fl.run.standing.is_written", lambda *_: False)
    code, _, err = watch(run)
    assert code == 1
    assert err.startswith("mops-fl: run died without a word 0:16:")
    assert f"after round 3: it says that it runs, and no process writes it; --resume {run}" in err


def test_what_is_no_run_is_one_line(tmp_path, watch):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text('{"status": "run')
    for folder in ("nowhere", "half"):
        code, out, err = watch(tmp_path / folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(tmp_path / folder) in err


def states(monkeypatch, run, *more):
    """Let a running run be seen once for each of `more`, which is called before."""
    steps = list(more)

    def sleep(_seconds):
        steps.pop(0)()

    monkeypatch.setattr(MODULE.time, "sleep", sleep)


def ends(run, status="completed"):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "status": status}))
    aged(run)


def test_lines_when_something_changes_and_none_twice(tmp_path, watch, monkeypatch):
    run = write_run(tmp_path / "run", status="running", rounds=1)
    (run / "rounds.csv").unlink()
    (run / "train.csv").unlink()

    def progress(**more):
        (run / "progress.json").write_text(json.dumps(STATE | more))

    states(
        monkeypatch,
        run,
        lambda: progress(perplexity=None, round=1, done=1),
        lambda: progress(perplexity=None, round=1, done=1),
        lambda: write_table(run / "rounds.csv", [(0, "all", 3.0, 1, 20.0, 1.0)]),
        lambda: None,
        lambda: write_table(run / "train.csv", [(1, 10, 2, 50, 30.0, 10, 3.5, 10**6, 2 * 10**6)]),
        lambda: ends(run),
    )
    code, out, _ = watch(run)
    assert code == 0
    assert out.splitlines()[:2] == [
        "round 1/20 training, 1/10 clients, train loss 2.500, 0:12:34 left",
        "round 0: perplexity 20.00",
    ]
    assert len(out.splitlines()) <= 5


def test_silence_is_said(tmp_path, watch, monkeypatch):
    run = aged(write_run(tmp_path / "run", status="running"), 130)
    states(monkeypatch, run, lambda: None, lambda: ends(run))
    _, out, _ = watch(run)
    assert re.findall("nothing was written for 0:02:1.", out)
    assert out.count("nothing was written") == 1


def test_a_terminal_shows_a_picture(tmp_path, monkeypatch):
    run = write_run(tmp_path / ("[bold]" + "n" * 80), status="running", rounds=30)
    (run / "progress.json").write_text(json.dumps(STATE))
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=20, color_system=None)
    monkeypatch.setattr(MODULE, "console", console)
    states(monkeypatch, run, lambda: ends(run))
    command(run)
    shown = text.getvalue()
    assert "round 4/20 training" in shown
    assert "3/10 clients  train loss 2.500, perplexity 23.4, 0:12:34 left" in shown
    assert "perplexity by round  █▆" in shown
    assert "Ctrl-C ends the watching; the run goes on" in shown
    assert "[bold]nnn" in shown
    rows = [line for line in shown.splitlines() if re.match(r"\s*(\x1b\S*)?\d+\s+[\d,.]+\s", line)]
    assert len({row.split()[0] for row in rows}) == 11


def test_ctrl_c_ends_the_watching_only(tmp_path):
    run = write_run(tmp_path / "run", status="running")
    (run / "progress.json").write_text(json.dumps(STATE))
    # a shell has what it starts in the background ignore Ctrl-C
    code = (
        "import signal, mops_fl.cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "mops_fl.cli.main()"
    )
    watching = subprocess.Popen(
        [sys.executable, "-c", code, "watch", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout.readline().startswith("round 0")
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert err == f"mops-fl: {run} is not watched any more; the run itself goes on\n"
    assert json.loads((run / "run.json").read_text())["status"] == "running"


def test_a_run_is_tracked_later(tmp_path, watch):
    run = aged(write_run(tmp_path / "run"))
    assert watch(run, "--tensorboard")[0] == 0
    assert len(list((run / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("start", [["simulate"], ["train"], ["compare"], ["deploy", "run"]])
def test_a_missing_package_is_said_before_anything_starts(tmp_path, monkeypatch, capsys, start):
    monkeypatch.chdir(tmp_path)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["mops-fl", *start, "--wandb"])
    with pytest.raises(SystemExit) as ended:
        mops_fl.cli.main()
    assert ended.value.code == 2
    assert "--wandb needs wandb or trackio" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nobody_is_there_to_track_a_detached_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(sys, "argv", ["mops-fl", "deploy", "run", "--detach", "--tensorboard"])
    with pytest.raises(SystemExit):
        mops_fl.cli.main()
    assert "mops-fl watch RUN --tensorboard does it" in capsys.readouterr().err


def test_curves_of_text():
    assert sparkline([1, 10, 100], 80) == "▁▅█"
    assert sparkline([5, 5], 80) == "▁▁"
    assert sparkline([float("inf"), 2, 0, 4], 80) == " ▁ █"
    assert sparkline([*range(1, 100)], 3) == "▁▅█"
    assert sparkline([], 3) == ""


def test_a_run_without_a_round_yet(tmp_path, monkeypatch, watch):
    run = write_run(tmp_path / "run", status="running")
    for table in run.glob("*.csv"):
        table.unlink()
    states(monkeypatch, run, lambda: ends(run, "failed"))
    code, out, err = watch(run)
    assert (code, out) == (1, "")
    assert "failed" in err


def test_the_live_picture_of_nothing_yet(tmp_path):
    facts = {"method": "mops", "config": {}}
    found = Standing("running", facts, 0.0, over=False)
    console = Console(file=io.StringIO(), width=80)
    console.print(MODULE._picture(tmp_path, found, {}, ()))
    assert "mops, running" in console.file.getvalue()

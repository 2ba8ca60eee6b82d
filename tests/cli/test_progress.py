"""What is shown of a run's progress, on a terminal and without one."""

import io
import json
import os
from dataclasses import asdict

import pytest
from rich.console import Console

from mops_fl.activity import Activity, doing
from mops_fl.cli.progress import State, showing, watching

STATE = {
    "phase": "training",
    "round": 3,
    "rounds": 20,
    "done": 0,
    "of": 100,
    "train_loss": 2.5,
    "perplexity": 23.456,
    "seconds_left": 754.2,
}


def shown(folder, *, terminal: bool, states: list[dict], at_work=lambda: ()) -> str:
    """What is printed for states one after the other, and for what processes do meanwhile."""
    text, doing = io.StringIO(), folder / "activity"
    doing.mkdir()
    console = Console(file=text, force_terminal=terminal, width=200)
    with watching(folder, console) as watch:
        watch(doing, "")
        for state in states:
            (folder / "progress.json").write_text(json.dumps(state))
            watch(doing, "")
            for activities in at_work():
                for number, activity in enumerate(activities):
                    name = f"{os.getpid()}-{number}.json"
                    (doing / name).write_text(json.dumps(asdict(activity)))
                watch(doing, "")
            watch(doing, "")
    return text.getvalue()


def test_plain_lines_only_when_something_changed(tmp_path):
    text = shown(tmp_path, terminal=False, states=[{**STATE, "done": n} for n in range(101)])
    lines = text.splitlines()
    assert lines[0] == "starting Flower and Ray"
    assert lines[1] == (
        "round 3/20 training, 0/100 clients, train loss 2.500, perplexity 23.46, 0:12:34 left"
    )
    assert len(lines) == 22
    assert "\x1b" not in text


def test_unknown_figures_are_left_out(tmp_path):
    state = dict.fromkeys(STATE) | {"phase": "pretraining", "round": 0, "rounds": 2}
    text = shown(tmp_path, terminal=False, states=[{**state, "done": 0, "of": 1}])
    assert text.splitlines()[1] == "pretraining"


def test_a_live_line_on_a_terminal(tmp_path):
    text = shown(tmp_path, terminal=True, states=[{**STATE, "done": 7}])
    assert "round 3/20 training" in text
    assert "7/100 clients" in text
    assert "0:12:34 left" in text


def test_the_state_of_an_earlier_run_is_not_shown(tmp_path):
    path = tmp_path / "progress.json"
    path.write_text(json.dumps(STATE))
    assert shown(tmp_path, terminal=False, states=[]) == "starting Flower and Ray\n"


def test_a_file_whose_time_is_behind_the_clock_is_shown(tmp_path):
    """The kernel stamps files with the time of its last tick."""
    path = tmp_path / "progress.json"
    text = io.StringIO()
    with watching(tmp_path, Console(file=text)) as watch:
        path.write_text(json.dumps(STATE))
        os.utime(path, (1, 1))
        watch(tmp_path, "")
    assert text.getvalue().startswith("round 3/20 training")


def test_a_note_takes_the_place_of_the_phase(tmp_path):
    text = io.StringIO()
    with watching(tmp_path, Console(file=text)) as watch:
        watch(tmp_path, "")
        watch(tmp_path, "stopping")
    assert text.getvalue() == "starting Flower and Ray\nstopping\n"


def test_half_a_file_is_not_shown(tmp_path):
    (tmp_path / "progress.json").write_text('{"phase": "trai')
    assert shown(tmp_path, terminal=False, states=[]) == "starting Flower and Ray\n"


def test_steps_inside_a_round_are_shown_without_a_terminal(tmp_path):
    """A cohort of ten with 250 steps: some twenty lines, not one in as many minutes."""
    text = shown(
        tmp_path,
        terminal=False,
        states=[{**STATE, "of": 10}],
        at_work=lambda: [[Activity("steps", done, 250, 10)] for done in range(251)],
    )
    lines = text.splitlines()
    assert len(lines) == 22
    assert lines[11] == (
        "round 3/20 training, 0/10 clients, steps 125/250 (10 clients together), "
        "train loss 2.500, perplexity 23.46, 0:12:34 left"
    )


@pytest.mark.parametrize(
    ("activities", "text"),
    [
        ([Activity("steps", 120, 250, 1)], "3/10 clients, steps 120/250, train"),
        ([Activity("steps", 120, 250, 5)], "steps 120/250 (5 clients together), train"),
        (
            [Activity("steps", 120, 250, 1), Activity("steps", 30, 250, 1)],
            "steps 150/500 (2 clients in 2 processes), train",
        ),
        (
            [Activity("steps", 1, 8, 1), Activity("examples", 2, 9, 1)],
            "steps 1/8, examples 2/9, train",
        ),
        ([Activity("steps", 1, 8, 1), Activity("converting x")], "clients, converting x, train"),
    ],
)
def test_what_processes_do_is_added_up(activities, text):
    state = State(**{**STATE, "of": 10, "done": 3}, activities=tuple(activities))
    assert text in state.line


def test_a_client_that_is_done_never_makes_a_line_go_back(tmp_path):
    steps = [[Activity("steps", done, 8, 1)] for done in (1, 4, 8, 1, 4, 8)]
    state = {**STATE, "of": 2}
    text = shown(tmp_path, terminal=False, states=[state], at_work=lambda: steps)
    assert len(text.splitlines()) == 1 + 1 + 3


def test_pretraining_shows_its_steps(tmp_path):
    state = dict.fromkeys(STATE) | {"phase": "pretraining", "round": 0, "rounds": 2}
    steps = [[Activity("steps of the prompt", done, 20)] for done in range(21)]
    steps += [[Activity("steps of the gate", done, 516)] for done in range(517)]
    text = shown(
        tmp_path,
        terminal=False,
        states=[{**state, "done": 0, "of": 1}],
        at_work=lambda: steps,
    )
    lines = text.splitlines()
    assert lines[1:4] == [
        "pretraining",
        "pretraining, steps of the prompt 0/20",
        "pretraining, steps of the prompt 1/20",
    ]
    assert lines[-1] == "pretraining, steps of the gate 516/516"
    assert len(lines) == 2 + 21 + 21


def test_steps_are_on_a_terminals_live_line(tmp_path):
    activity = Activity("steps", 120, 250, 5)
    text = shown(
        tmp_path, terminal=True, states=[{**STATE, "of": 10}], at_work=lambda: [[activity]]
    )
    assert "steps 120/250" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_what_the_launcher_does_itself(terminal, monkeypatch):
    monkeypatch.setattr("mops_fl.activity.INTERVAL", 0)
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, highlight=False, color_system=None)
    with showing("checking", console):
        with doing("converting x"):
            pass
        with doing("pruning", of=210) as on_step:
            for done in range(210):
                on_step(done + 1, 210)
    assert "converting x took 0 s\n" in text.getvalue()
    assert "pruning took 0 s\n" in text.getvalue()
    if not terminal:
        lines = text.getvalue().splitlines()
        assert lines[0] == "converting x"
        assert "pruning 105/210" in lines
        assert len(lines) == 2 + 21 + 1

"""What is shown of a run's progress, on a terminal and without one."""

import io
import json
import os

from rich.console import Console

from mops_fl.cli.progress import watching

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


def shown(folder, *, terminal: bool, states: list[dict]) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    with watching(folder, console) as watch:
        watch("")
        for state in states:
            (folder / "progress.json").write_text(json.dumps(state))
            watch("")
            watch("")
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
    os.utime(path, (1, 1))
    assert shown(tmp_path, terminal=False, states=[]) == "starting Flower and Ray\n"


def test_a_note_takes_the_place_of_the_phase(tmp_path):
    text = io.StringIO()
    with watching(tmp_path, Console(file=text)) as watch:
        watch("")
        watch("stopping")
    assert text.getvalue() == "starting Flower and Ray\nstopping\n"


def test_half_a_file_is_not_shown(tmp_path):
    (tmp_path / "progress.json").write_text('{"phase": "trai')
    assert shown(tmp_path, terminal=False, states=[]) == "starting Flower and Ray\n"

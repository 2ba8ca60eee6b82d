"""How a run ended, told from what it wrote and from what Flower says."""

import json
from types import SimpleNamespace

import pytest

from mops_fl.flower.guard import KILLED, Verdict, settle
from mops_fl.flower.home import Home
from mops_fl.flower.launch import _judge
from mops_fl.flower.superlink import SuperLink


@pytest.fixture
def home():
    created = Home.create()
    created.run_config.touch()
    yield created
    created.remove()


def write(folder, **facts):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts))


def facts(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("verdict", [KILLED, Verdict("stopped"), Verdict("failed", "Ray died")])
def test_a_run_that_is_complete_stays_complete(tmp_path, verdict):
    write(tmp_path, status="completed", error=None)
    settle(tmp_path, verdict)
    assert facts(tmp_path) == {"status": "completed", "error": None}
    write(tmp_path, status="running")
    settle(tmp_path, verdict)
    assert (facts(tmp_path)["status"], facts(tmp_path)["error"]) == (verdict.status, verdict.error)


@pytest.mark.parametrize("alive", [True, False])
def test_what_happens_to_flower_after_the_last_round_does_not_fail_a_run(home, tmp_path, alive):
    commands = SimpleNamespace(log=home.log, run_id=lambda: None)
    link = SimpleNamespace(home=home, alive=alive, commands=commands)
    write(tmp_path / "run", status="completed")
    assert _judge(link, tmp_path / "run") == Verdict("completed")
    write(tmp_path / "run", status="running")
    assert _judge(link, tmp_path / "run").status == "failed"


def test_the_status_is_read_from_colours(home, tmp_path, monkeypatch):
    coloured = (
        '\x1b[1m{\x1b[0m\x1b[1;34m"runs"\x1b[0m: [{\x1b[32m"status"\x1b[0m: "running", '
        '\x1b[32m"status-details"\x1b[0m: ""}]}'
    )
    command = tmp_path / "flwr"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{coloured}\nEND\n")
    command.chmod(0o755)
    commands = SuperLink(home, {"PATH": f"{tmp_path}:/bin:/usr/bin"}, None).commands
    assert commands.status("1") == ("running", "")
    home.log.write_text("\x1b[32mSuccessfully started run \x1b[1;36m12345\x1b[0m")
    assert commands.run_id() == "12345"

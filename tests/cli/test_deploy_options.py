"""`mops-fl deploy`: what is refused, what is printed, what a run takes where nothing is said."""

import json
import shlex
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mops_fl.cli import app
from mops_fl.cli.deploy_run import suited
from mops_fl.config import Config
from mops_fl.deploy import members
from mops_fl.deploy.folders import ServerFolder
from mops_fl.deploy.submit import settle_ended
from mops_fl.errors import ConfigError, MopsError, RunError


@pytest.fixture
def place(tmp_path, monkeypatch) -> ServerFolder:
    monkeypatch.chdir(tmp_path)
    server = ServerFolder(tmp_path / "federation")
    server.make(["localhost"])
    return server


def module(name: str):
    """A module of the command line; the package has the command itself under its name."""
    return sys.modules[f"mops_fl.cli.{name}"]


def call(*arguments: str) -> str:
    """What a command prints; raises what it raises."""
    done = CliRunner().invoke(app, ["deploy", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def node(name: str, status: str) -> members.Member:
    return members.Member(name, "1", status, "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("server", "--dir", "none"), "has no ca.crt: mops-fl deploy certs"),
        (("status", "--dir", "none"), "has no ca.crt"),
        (("status",), "no server was started here yet"),
        (("register", "a"), "no server was started here yet"),
        (("register", "a/b", "--public-key", "x"), "--public-key x cannot be read"),
        (("unregister", "a"), "there is no node 'a'"),
        (("run",), "no server was started here yet"),
        (("run", "--resume", "x", "--name", "y"), "give no other values"),
        (("certs", "--host", " , "), "--host is empty"),
    ],
)
def test_what_cannot_be_done_is_said(place, arguments, text):
    with pytest.raises(MopsError, match=text):
        call(*arguments)


def test_a_port_that_is_taken_is_refused(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} on 127.0.0.1"):
            call("server", "--listen", "127.0.0.1", "--port", str(port))


def test_the_server_is_started_with_tls_and_authentication(place, monkeypatch):
    became = []
    monkeypatch.setattr(module("deploy"), "become", lambda *given: became.append(given))
    said = call("server", "--listen", "127.0.0.1", "--port", "8123")
    (command, environment, folder), *_ = became
    assert command[3] == "mops_fl.deploy.fenced_superlink"
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command
    assert command[command.index("--database") + 1] == str(place.database)
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert folder == place.work
    printed = said.strip().removeprefix("$ ")
    assert shlex.split(printed) == [f"FLWR_HOME={place.flwr_home}", *command]


def test_commands_reach_the_server_where_it_listens(place):
    for host, inner in [("0.0.0.0", "127.0.0.1"), ("10.0.0.5", "10.0.0.5"), ("::", "[::1]")]:
        place.connect(host, 8000)
        text = (place.flwr_home / "config.toml").read_text()
        assert f'address = "{inner}:8000"' in text
        assert "insecure" not in text


def test_a_node_s_command_line_is_quoted_and_its_first_key_is_made(place, monkeypatch, tmp_path):
    became = []
    monkeypatch.setattr(module("client"), "become", lambda *given: became.append(given))
    monkeypatch.setattr("mops_fl.deploy.edge.load_once", lambda *_, **__: "1 row")
    data = tmp_path / "my rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    arguments = ["client", "--server", "localhost:1", "--ca", "federation/ca.crt"]
    arguments += ["--data", "my rows.jsonl", "--partition", "2", "-n", "threads=1"]
    said = call(*arguments)
    (command, environment, _), *_ = became
    key = tmp_path / "node" / "node.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in said
    assert key.with_name("node.key.pub").read_text().strip() in said
    assert "does not answer yet" in said
    text = command[command.index("--node-config") + 1]
    assert f'data-path="{data}"' in text
    assert {"partition-id=2", "own-data=true", "threads=1"} <= set(text.split())
    assert environment["PATH"].startswith(str(tmp_path / "node" / "bin"))
    printed = next(line for line in said.splitlines() if line.startswith("$ "))
    words = shlex.split(printed[2:])
    assert "mops_fl.deploy.supernode" in words
    assert words[2:] == command[len(command) - len(words[2:]) :]
    # the key is there now, and is not made again
    assert "made" not in call(*arguments)


def test_units_run_the_same_command(place, tmp_path):
    (tmp_path / "my.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    unit = call("server", "--systemd", "--port", "8123")
    assert "deploy server --dir" in unit
    assert f"ReadWritePaths={place.folder}" in unit
    arguments = ["client", "--server", "localhost:1", "--ca", "federation/ca.crt", "--systemd"]
    unit = call(*arguments, "--data", "my.jsonl", "--partition", "2", "-n", "compression=2:4")
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert "-ncompression=2:4" in start
    assert "-npartition-id=2" in start
    assert "-nown-data=true" in start
    assert f"ReadOnlyPaths={tmp_path / 'my.jsonl'}" in unit


class TestWhatARunTakes:
    """Where nothing is said, what suits nodes with rows of their own."""

    @pytest.fixture(autouse=True)
    def _nodes(self, monkeypatch):
        self.found = [node("a", "online"), node("b", "online"), node("c", "offline")]
        monkeypatch.setattr(members, "members", lambda _place: self.found)

    def test_the_nodes_that_are_online(self, place):
        config = Config.from_flat(suited({}, place))
        assert config.partition.num_clients == 2
        assert config.federation.active_clients == 2
        assert config.prompts.pretrain_data == "own"

    def test_what_is_said_stays(self, place):
        said = {"num-clients": 30, "active-clients": 3, "pretrain-data": "none"}
        said["round-timeout"] = 9.0
        assert suited(said, place) == said
        assert suited({"num-clients": 30}, place)["round-timeout"] == 3600.0
        assert suited({"num-clients": 30}, place)["active-clients"] == 10

    def test_rows_of_the_server(self, place):
        config = Config.from_flat(suited({"server-data": "/rows.jsonl"}, place))
        assert (config.data.dataset, config.data.data_path) == ("jsonl", "/rows.jsonl")
        assert config.prompts.pretrain_data == "server"

    def test_nobody(self, place):
        self.found = [node("c", "offline")]
        with pytest.raises(RunError, match="no node is online"):
            suited({}, place)


def test_a_run_that_ended_unseen_is_told_by_its_folder(place, tmp_path):
    def run(name: str, status: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"status": status}))
        return tmp_path / name

    resumed, dead, stopped, done = (
        *(run("resumed", "running"), run("dead", "running")),
        *(run("stopped", "failed"), run("done", "completed")),
    )
    place.note("run-ids", {"1": str(resumed), "2": str(dead), "3": str(stopped), "4": str(done)})
    place.note("run-ids", {**place.noted("run-ids"), "5": str(resumed)})
    ended = dict.fromkeys("1234", "finished:failed") | {"3": "finished:stopped", "5": "running"}
    settle_ended(place, ended)
    states = [
        json.loads((folder / "run.json").read_text())["status"]
        for folder in (resumed, dead, stopped, done)
    ]
    assert states == ["running", "failed", "stopped", "completed"]

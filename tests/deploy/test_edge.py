"""What an owner types for a node, and what is found wrong with it before it starts."""

import shutil
import socket
import subprocess

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from mops_fl.deploy.edge import Edge, check_edge, node_config_text, node_flat, parse_value
from mops_fl.deploy.folders import ServerFolder
from mops_fl.deploy.keys import make_key, public_path, read_private, read_public
from mops_fl.errors import ConfigError, DataError

# characters that TOML takes in a text
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=30)


@given(st.dictionaries(st.sampled_from(["model", "data-path", "device"]), TEXT, min_size=1))
def test_flower_reads_every_text_back(flat):
    assert parse_config_args([node_config_text(flat)]) == flat


def test_flower_reads_every_kind_of_value_back():
    flat = {"partition-id": 3, "own-data": True, "max-norm": 1e-05, "noise": 0.5}
    flat["model"] = '/a b/it\'s "quoted" \\ ü=1 x=2 .toml'
    assert parse_config_args([node_config_text(flat)]) == flat


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("threads=4", 4),
        ("max-norm = 2.5", 2.5),
        ("own-data=false", False),
        ("compression=2:4", "2:4"),
        ("compression=none", "none"),
        ("model=2024-01-01", "2024-01-01"),
        ("allow-methods=mops,fedprompt", "mops,fedprompt"),
        ('model="7"', "7"),
        ("data-path=/a=b", "/a=b"),
    ],
)
def test_a_value_has_the_type_that_it_looks_like(text, value):
    assert parse_value(text)[1] == value
    assert type(parse_value(text)[1]) is type(value)


def test_the_command_line_wins_over_the_file_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "node.toml").write_text('partition-id = 1\nthreads = 2\nmodel = "x"\n')
    (tmp_path / "copy").mkdir()
    flat = node_flat(tmp_path / "node.toml", ["threads=4"], "my.jsonl", "copy", None)
    assert flat == {
        "partition-id": 1,
        "threads": 4,
        "model": str(tmp_path / "copy"),
        "data-path": str(tmp_path / "my.jsonl"),
        "own-data": True,
        "dataset": "jsonl",
    }
    assert node_flat(None, ["own-data=false", "dataset=dolly"], "x", None, 0) == {
        **{"data-path": str(tmp_path / "x"), "partition-id": 0},
        **{"own-data": False, "dataset": "dolly"},
    }


@pytest.fixture
def edge(tmp_path):
    """Makes a sound node; changes are made to it."""
    server = ServerFolder(tmp_path / "federation")
    server.make(["localhost"])
    (tmp_path / "my.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    key = tmp_path / "node.key"
    make_key(key)

    def make(**changes) -> Edge:
        flat = {"partition-id": 0, "own-data": True, "dataset": "jsonl"}
        flat |= {"data-path": str(tmp_path / "my.jsonl")} | changes.pop("flat", {})
        facts = {"server": "localhost:1", "authority": server.authority, "key": key, "port": 0}
        return Edge(**{**facts, "flat": flat, **changes})

    return make


def test_a_sound_node_is_accepted_though_nobody_answers(edge):
    assert check_edge(edge()).own_data


def test_what_is_wrong_is_said_before_anything_starts(edge, tmp_path):
    (tmp_path / "no.crt").write_text("x")
    (tmp_path / "no.key").write_text("x")
    (tmp_path / "no.key").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        for changes, kind, text in [
            (
                {"flat": {"data-path": "/none.jsonl"}},
                DataError,
                "--data /none.jsonl cannot be read",
            ),
            ({"flat": {"partition-id": "0"}}, ConfigError, "partition-id='0'"),
            ({"flat": {"partition": 0}}, ConfigError, "known keys"),
            ({"flat": {"max-norm": -1}}, ConfigError, "max-norm"),
            ({"authority": tmp_path / "no.crt"}, ConfigError, "not a certificate"),
            ({"key": tmp_path / "no.key"}, ConfigError, "not a private ECDSA key"),
            ({"key": tmp_path / "none.key"}, ConfigError, "cannot be read"),
            ({"key": public_path(edge().key)}, ConfigError, "has mode 0644|not a private"),
            ({"port": busy}, ConfigError, f"--port {busy}"),
            ({"server": "localhost"}, ConfigError, "must be HOST:PORT"),
            ({"server": "https://x:8000/"}, ConfigError, "must be HOST:PORT"),
        ]:
            with pytest.raises(kind, match=text):
                check_edge(edge(**changes))


def test_a_key_that_others_may_read_is_refused(edge):
    edge().key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640.*chmod 600"):
        check_edge(edge())


def test_a_key_is_made_once_and_its_public_half_is_the_one_that_ssh_knows(tmp_path):
    public = make_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_public(public.read_bytes() + b" a comment", "x") == public.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        make_key(tmp_path / "key")
    if shutil.which("ssh-keygen"):
        told = subprocess.run(
            ["ssh-keygen", "-y", "-f", tmp_path / "key"], capture_output=True, check=True
        )
        assert told.stdout.split()[:2] == public.read_bytes().split()


def test_a_private_key_never_reaches_the_server(tmp_path):
    make_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="holds a private key"):
        read_public((tmp_path / "key").read_bytes(), "key")
    with pytest.raises(ConfigError, match="not a public ECDSA key"):
        read_public(b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGE", "key")
    assert read_private(tmp_path / "key").curve.name == "secp384r1"

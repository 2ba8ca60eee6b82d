"""A federation of real processes on loopback: its server, three nodes with rows of their own, and
those who have no business there."""

import json
import os
import signal
import socket
import ssl

import numpy as np
import pandas as pd
import pytest
from line import Line

from experiments.benchmarks.loopback import Federation, wait_for
from mops_fl.deploy.edge import node_flat
from mops_fl.deploy.folders import ServerFolder
from mops_fl.flower.home import free_port
from mops_fl.node.node_config import NodeConfig
from mops_fl.training.trainer import Trainer

pytestmark = pytest.mark.slow

ROWS = {
    "many": [("billing", 60), ("refund", 40)],
    "one": [("poems", 1)],
    # of a task that neither the server nor a neighbour has
    "other": [("a task of its own", 12)],
}
VALUES = {
    **{"num-server-rounds": 1, "local-steps": 2, "experts": 2, "prompts-per-expert": 2},
    **{"max-length": 64, "pretrain-data": "none"},
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_llama):
    os.environ["MOPS_FL_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    made = Federation(tmp_path_factory.mktemp("deploy"), tiny_llama, free_port(), ROWS)
    made.deploy("certs", "--host", "localhost")
    made.start_server()
    made.line = Line(made.port, ServerFolder(made.server))
    try:
        for partition, name in enumerate(ROWS):
            made.register(name)
            port = made.line.port if name == "many" else None
            made.start(name, *made.client(name, partition, port))
        made.start("stranger", *made.client("stranger", 3))
        wait_for(lambda: all("SuperNode ID" in made.log(name) for name in ROWS))
        wait_for(lambda: "the SuperNode ended" in made.log("stranger"))
        yield made
    finally:
        made.stop_all()


@pytest.fixture(scope="module")
def trained(federation):
    """What a run to the end printed, and its folder."""
    values = [f"-c{key}={value}" for key, value in VALUES.items()]
    said = federation.deploy("run", "--name", "whole", *values)
    return said, federation.server / "runs" / "whole"


def test_own_rows_of_any_number_and_task_are_trained_on(trained):
    said, run = trained
    facts = json.loads((run / "run.json").read_text())
    assert facts["status"] == "completed"
    assert facts["refused_clients"] == {}
    holdings = pd.read_csv(run / "partition.csv").groupby(["partition", "task"]).sum()
    held = {key: tuple(row) for key, row in zip(holdings.index, holdings.values, strict=True)}
    assert held == {
        (0, "billing"): held[0, "billing"],
        (0, "refund"): held[0, "refund"],
        (1, "poems"): (1, 0),
        (2, "a task of its own"): (11, 1),
    }
    assert sum(map(sum, (held[0, "billing"], held[0, "refund"]))) == 100
    train = pd.read_csv(run / "train.csv")
    assert (list(train["clients"]), list(train["failures"])) == ([3], [0])
    rounds = pd.read_csv(run / "rounds.csv")
    assert set(rounds["task"]) == {"all", "billing", "refund", "a task of its own"}
    assert f"{run}" in said
    assert "$ FLWR_HOME=" in said
    assert (run / "flower.log").stat().st_size
    assert list((run.parents[1] / "staged").iterdir()) == []


def test_nothing_of_the_rows_is_in_what_a_node_sends(federation, trained):
    sent = b"".join(federation.line.sent)
    # it can be read: names of tasks and of metrics, which are sent
    for known in (b"billing", b"num-examples", b"tokens"):
        assert known in sent
    flat = node_flat(None, ["dtype=float32"], federation.data("many"), str(federation.model), 0)
    config = NodeConfig.from_flat(flat).configured(VALUES)
    trainer = Trainer(config, own_data=True)
    examples = [*trainer.tokenised.examples]
    inputs = trainer.mixture({}).prepare(examples)[2].numpy()
    assert len(examples) == len(inputs) == 100
    forbidden = [text.encode() for text in ("Say ", "billing: ", "refund: ")]
    forbidden += [row[start : start + 4].tobytes() for row in inputs for start in (0, 9, 20)]
    for example in examples:
        for kind in ("int32", "int64"):
            forbidden.append(np.array(example.question[-6:], kind).tobytes())
        forbidden.append(", ".join(map(str, example.question[-6:])).encode())
    assert [secret for secret in forbidden if secret in sent] == []


def test_the_code_that_a_run_brings_is_not_unpacked_on_a_node(federation, trained):
    for name in ROWS:
        unpacked = list((federation.folder / f"node-{name}" / "flwr-home").rglob("*.py"))
        assert unpacked == []
    # where the server's own has it
    assert list((federation.server / "flwr-home").rglob("server_app.py"))


@pytest.fixture(scope="module")
def endless(federation, trained):
    """The folder of a run that goes on."""
    values = [f"-c{key}={value}" for key, value in {**VALUES, "num-server-rounds": 500}.items()]
    assert "goes on" in federation.deploy("run", "--detach", "--name", "endless", *values)
    return federation.server / "runs" / "endless"


def test_a_second_node_of_a_partition_is_refused_and_the_first_goes_on(federation, endless):
    def facts() -> dict:
        file = endless / "run.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def done() -> int:
        return facts().get("rounds_done", -1)

    def refused() -> str:
        return " ".join(facts().get("refused_clients", {}).values())

    federation.register("double")
    wait_for(lambda: done() >= 1)
    federation.start("double", *federation.client("double", 1))
    wait_for(lambda: "several nodes have partition-id=1" in refused())
    before = done()
    wait_for(lambda: done() >= before + 3)
    double = federation.started.pop("double")
    double.terminate()
    assert double.wait(timeout=120) == 0
    wait_for(lambda: refused() == "")
    clients = pd.read_csv(endless / "clients.csv")
    trained = clients[clients["round"] == clients["round"].max() - 1]
    assert sorted(trained["partition"]) == [0, 1, 2]


def test_a_node_without_rows_or_with_text_for_its_partition_does_not_start(federation):
    arguments = federation.client("empty", 4)
    (federation.folder / "empty.jsonl").write_text("")
    assert "empty.jsonl" in federation.deploy(*arguments, code=2)
    arguments[arguments.index("4")] = "four"
    assert "four" in federation.deploy(*arguments, code=2)


def test_status_shows_nodes_and_runs_and_stop_ends_one(federation, endless):
    shown = federation.deploy("status")
    lines = {line.split()[0]: line for line in shown.splitlines() if line.split()}
    assert all("online" in lines[name] and "now" in lines[name] for name in ROWS)
    assert "stranger" not in lines
    assert "finished:completed" in shown
    federation.deploy("stop")
    assert "finished:stopped" in federation.deploy("status")
    assert "no run goes on" in federation.deploy("stop")


def test_a_key_that_is_not_registered_is_refused_until_it_is(federation):
    assert "Failed to activate SuperNode" in federation.log("stranger")
    assert "SuperNode ID" not in federation.log("stranger")
    assert federation.started["stranger"].poll() is None


def test_another_ca_is_refused(federation):
    federation.deploy("certs", "--host", "localhost", "--dir", "other")
    arguments = federation.client("many", 0)
    arguments[arguments.index("federation/ca.crt")] = "other/ca.crt"
    said = federation.deploy(*arguments, "--dir", "node-mistaken", code=2)
    assert "is not the server of --ca" in said


def test_a_node_whose_clock_is_an_hour_off_is_told(federation, tmp_path):
    late = "import time\nnow = time.time\ntime.time = lambda: now() - 3600\n"
    (tmp_path / "sitecustomize.py").write_text(late)
    arguments = federation.client("late", 4)
    said = federation.deploy(*arguments, code=2, PYTHONPATH=str(tmp_path))
    assert "behind the server's: a node signs the time" in " ".join(said.split())


def test_plain_text_is_refused(federation):
    with socket.create_connection(("127.0.0.1", federation.port), timeout=20) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/1.1 2")
    context = ssl.create_default_context(cafile=str(federation.server / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", federation.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert secured.recv(100).startswith(b"HTTP/1.1 200")


def test_nothing_secret_is_printed(federation, trained):
    printed = trained[0] + "".join(federation.log(name) for name in federation.started)
    for path in (federation.server / "ca.key", federation.server / "server.key"):
        assert path.read_text().splitlines()[1] not in printed
    assert "PRIVATE KEY" not in printed
    assert "Say 3" not in printed


def test_nothing_is_left_when_all_are_told_to_end(federation):
    federation.stop_all()
    ended = {name: process.returncode for name, process in federation.started.items()}
    # uvicorn ends by the signal that it was sent
    assert ended.pop("server") == -signal.SIGTERM
    assert set(ended.values()) == {0}
    wait_for(lambda: federation.processes() == [], 60)

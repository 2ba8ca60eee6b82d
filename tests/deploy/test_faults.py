"""What goes wrong on real machines, one after another in one federation on loopback: no finished
round is lost, no wrong number is written, and nothing waits longer than the timeout."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from line import Line

from experiments.benchmarks.loopback import Federation, wait_for
from mops_fl.flower.home import free_port

pytestmark = pytest.mark.slow

TIMEOUT = 60
VALUES = {
    **{"num-clients": 5, "local-steps": 2, "eval-every": 4},
    **{"experts": 2, "prompts-per-expert": 2, "max-length": 64, "method": "fedprompt"},
    **{"pretrain-data": "none", "min-reply-fraction": 0.2, "min-evaluate-fraction": 0.2},
    "round-timeout": TIMEOUT,
}
LIES = 5
NAMES = ("killed", "silent", "cut", "liar", "steady")


class Watch:
    """What a run has written so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def facts(self) -> dict:
        file = self.folder / "run.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    @property
    def done(self) -> int:
        return self.facts.get("rounds_done", -1)

    def failures(self, client: int, after: int = 0) -> list[str]:
        """Why a client was not averaged, in the rounds after a round."""
        found = self.facts.get("train_failures", {})
        rounds = [own for number, own in found.items() if int(number) > after]
        return [own[str(client)] for own in rounds if str(client) in own]

    def trained(self, client: int) -> list[int]:
        file = self.folder / "clients.csv"
        if not file.is_file():
            return []
        table = pd.read_csv(file)
        return table[table["partition"] == client]["round"].tolist()

    def until_trained(self, client: int) -> None:
        """Wait until a client is averaged in a round that has not begun yet."""
        now = self.done + 1
        wait_for(lambda: any(number > now for number in self.trained(client)))


def supernodes(made: Federation, name: str) -> list[psutil.Process]:
    """The SuperNode of a node, without its supervisor."""
    found = made.processes("mops_fl.deploy.supernode", f"node-{name}")
    return [process for process in found if "mops_fl.deploy.supervise" not in process.cmdline()]


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_llama):
    os.environ["MOPS_FL_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    rows = {key: [("billing", 12), ("poems", 8)] for key in NAMES}
    made = Federation(tmp_path_factory.mktemp("faults"), tiny_llama, free_port(), rows)
    made.deploy("certs", "--host", "localhost")
    made.start_server()
    line = Line(made.port)
    try:
        for partition, name in enumerate(NAMES):
            made.register(name)
            port = line.port if name == "cut" else made.port
            if name == "liar":
                made.start_strange(name, partition, Path(__file__).with_name("lying_clientapp.py"))
            else:
                made.start(name, *made.client(name, partition, port))
        wait_for(lambda: all("SuperNode ID" in made.log(name) for name in NAMES))
        yield made, line
    finally:
        made.stop_all()


def begin(made: Federation, name: str, **more: int) -> Watch:
    """Start a run, and wait for its first round."""
    values = VALUES | {key.replace("_", "-"): value for key, value in more.items()}
    watch = Watch(made.server / "runs" / name)
    made.start("run", "run", "--name", name, *(f"-c{key}={v}" for key, v in values.items()))
    wait_for(lambda: watch.done >= 1)
    return watch


def check_whole(made: Federation, watch: Watch) -> None:
    """Wait for a run's end: each round is there once, and no number is wrong."""
    wait_for(lambda: made.started["run"].poll() is not None, 900)
    assert made.started["run"].returncode == 0, made.log("run")
    facts = watch.facts
    assert facts["status"] == "completed"
    last = facts["config"]["num-server-rounds"]
    rounds = pd.read_csv(watch.folder / "rounds.csv").query("task == 'all'")
    assert rounds["round"].tolist() == [*range(0, last + 1, 4)]
    assert np.isfinite(rounds["perplexity"]).all()
    train = pd.read_csv(watch.folder / "train.csv")
    assert train["round"].tolist() == [*range(1, last + 1)]
    # a curve says where it is of another test set
    assert ((rounds["share"] < 1) == (rounds["tokens"] < rounds["tokens"].max())).all()


def test_faults_of_nodes_cost_what_they_must_and_no_more(federation):
    made, line = federation
    watch = begin(made, "nodes", num_server_rounds=16)

    # its trainer is killed in the middle of a step: replaced, and nobody notices
    before = watch.done
    (trainer,) = made.processes("mops_fl.node.resident", "node-killed")
    wait_for(lambda: made.processes("flwr-clientapp", "node-killed"))
    trainer.kill()
    watch.until_trained(0)

    # its SuperNode is killed, and comes back under another id
    (node,) = supernodes(made, "killed")
    node.kill()
    # beside it, the network of another node is cut for a minute, and a third one is stopped
    line.cut()
    silent = [
        *supernodes(made, "silent"),
        *made.processes("mops_fl.node.resident", "node-silent"),
    ]
    for process in silent:
        process.suspend()
    began = time.monotonic()
    wait_for(lambda: watch.failures(1, before))
    waited = time.monotonic() - began
    # by the timeout, or by Flower's own word on a node without heartbeat
    assert any(why.startswith(("no reply", "Error: Node")) for why in watch.failures(1, before))
    time.sleep(max(0.0, 60 - waited))
    line.mend()
    for process in silent:
        process.resume()
    for client in (0, 1, 2):
        watch.until_trained(client)
    assert waited < 3 * TIMEOUT + 30

    # the liar was never averaged, and each of its lies is told apart
    assert watch.trained(3) == []
    wait_for(lambda: len(set(watch.failures(3))) >= LIES)
    told = "\n".join(watch.failures(3))
    for word in ("RuntimeError", "NaN", "shape (3, 32)", "1e+30", "num-examples=1000000000000000"):
        assert word in told, told
    check_whole(made, watch)
    # who was well took part in every round
    assert watch.trained(4) == [*range(1, 17)]


def test_a_run_outlives_its_superlink_and_its_server_app(federation):
    made, _ = federation
    watch = begin(made, "server", num_server_rounds=8)
    made.started["server"].kill()
    made.started["server"].wait()
    assert made.started["run"].wait(timeout=240) != 0
    wait_for(lambda: watch.facts["status"] == "failed")
    made.start_server()
    done = watch.done
    made.start("run", "run", "--resume", str(watch.folder))
    wait_for(lambda: watch.done > done)

    (server_app,) = made.processes("flwr-serverapp", "federation")
    server_app.kill()
    assert made.started["run"].wait(timeout=240) != 0
    wait_for(lambda: watch.facts["status"] == "failed")
    made.start("run", "run", "--resume", str(watch.folder))
    check_whole(made, watch)

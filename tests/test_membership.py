"""Deployed runs whose nodes are silent, go, come back and stand in for each other."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error
from flwr.supercore.task_identity import TaskIdentity
from superlink import SuperLink
from trainables import sizes

from mops_fl import membership, server_app
from mops_fl.config import Config
from mops_fl.engine.watched import WatchedGrid
from mops_fl.errors import RunError
from mops_fl.metrics import Tally
from mops_fl.run.folder import RunFolder
from mops_fl.run.recorder import Recorder
from mops_fl.run.results import Run
from mops_fl.wire.records import ARRAYS, CONFIG, METRICS, from_array_record
from mops_fl.wire.replies import Description, Evaluated, Trained
from mops_fl.wire.requests import DESCRIBE, EVALUATE, TRAIN

FLAT = {
    **{"method": "fedprompt", "num-clients": 4, "active-clients": 4, "num-server-rounds": 3},
    **{"local-steps": 2, "experts": 2, "prompts-per-expert": 2, "pretrain-data": "none"},
    **{"min-client-samples": 2, "num-samples": 0, "round-timeout": 0.2},
}
FLAT |= {"min-reply-fraction": 0.5, "min-evaluate-fraction": 0.5}


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    for name, value in {"_task_id": 1, "_run_id": 7, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    monkeypatch.setattr(membership, "_PATIENCE_SECONDS", 0.2)


class Office:
    """A node; `after` maps a kind of message to what is done before it is answered."""

    def __init__(self, partition: int, **changes) -> None:
        self.partition, self.after, self.told = partition, {}, []
        facts = {"partition": partition, "tasks": ("a",), "train": (4,), "test": (2,)}
        facts |= {"validation": (0,), "unseen_tasks": 0, "own_data": True, "sizes": sizes(3)}
        facts |= {"injection_layer": 1, "model_digest": "1" * 64, "tokenizer_digest": "2" * 64}
        facts |= {"data_digest": f"{partition:064x}", "skipped": {}, "cut_questions": 0}
        facts |= {"cut_answers": 0, "device": "cpu", "dtype": "float32"}
        self.description = Description(**{**facts, **changes})

    def __call__(self, message):
        kind = message.metadata.message_type
        if kind in self.after:
            return self.after[kind]
        if kind == DESCRIBE:
            return self.description.content()
        self.told.append((kind, message.content[CONFIG]["clients"]))
        if kind == EVALUATE:
            return Evaluated({"a": Tally(10.0 + self.partition, 10)}, {}, {}).content()
        tensors = from_array_record(message.content[ARRAYS])
        moved = {name: value + np.float32(1) for name, value in tensors.items()}
        return Trained(moved, self.description.examples, 2, Tally(4.0, 2), 0.1).content()


class Deployment:
    """A run folder, and nodes 10, 11, … for partitions 0, 1, …"""

    def __init__(self, path, partitions=range(4), **changes) -> None:
        self.path = path
        self.flat = {**FLAT, **{k.replace("_", "-"): v for k, v in changes.items()}}
        self.link = SuperLink({10 + p: Office(p) for p in partitions})
        self.before: dict[tuple[str, int], list] = {}
        self.push, self.link.push_messages = self.link.push_messages, self.watch

    def at(self, kind: str, server_round: int, change) -> None:
        """Do something right before the messages of a phase are sent."""
        self.before.setdefault((kind, server_round), []).append(change)

    def watch(self, messages):
        for message in messages[:1]:
            if CONFIG in message.content:
                key = message.metadata.message_type, message.content[CONFIG]["server-round"]
                for change in self.before.pop(key, []):
                    change(self.link.nodes)
        return self.push(messages)

    def run(self, resume=False, **changes) -> Run:
        self.flat |= {k.replace("_", "-"): v for k, v in changes.items()}
        config = Config.from_flat(self.flat)
        if resume:
            folder = RunFolder.reopen(self.path, config.flat())
        else:
            facts = {"id": "0" * 32, "method": config.method, "seed": 0, "config": config.flat()}
            folder = RunFolder.create(self.path, facts)
        recorder = Recorder(config, folder, folder.last_round())
        seconds = config.federation.round_timeout or math.inf
        grid = WatchedGrid(self.link, recorder.on_replies, seconds)
        server_app._run(config, folder, recorder, grid, simulated=False)
        recorder.finish(status="completed")
        return Run.read(self.path)

    def trained(self, server_round: int) -> list[int]:
        """Partition ids of the valid replies of a round."""
        rows = Run(self.path, {}).rows("clients.csv")
        return [row[1] for row in rows if row[0] == server_round]

    @property
    def facts(self):
        return json.loads((self.path / "run.json").read_text())


def shares(run: Run) -> list[float]:
    return run.share().round(3).tolist()


def test_all_are_there(tmp_path):
    made = Deployment(tmp_path / "run")
    run = made.run()
    assert [made.trained(r) for r in (1, 2, 3)] == [[0, 1, 2, 3]] * 3
    assert shares(run) == [1.0] * 4
    assert (made.facts["spares"], made.facts["absent_clients"]) == ({}, {})
    assert made.link.asked(DESCRIBE) == [10, 11, 12, 13]
    assert {told for _, told in made.link.nodes[10].told} == {4}


def test_a_silent_client_is_named_and_the_round_goes_on(tmp_path, caplog):
    made = Deployment(tmp_path / "run", num_server_rounds=1)
    made.link.nodes[12].after = {TRAIN: None, EVALUATE: None}
    run = made.run()
    assert made.trained(1) == [0, 1, 3]
    assert "round 1: client 2 refused: no reply within 0.2 s" in caplog.text
    assert made.facts["evaluation_failures"]["1"] == {"2": "no reply within 0.2 s"}
    # its tokens are not known: as many a row as the others have
    assert shares(run) == [0.75, 0.75]


def test_too_few_at_the_timeout_end_the_run_and_all_are_named(tmp_path):
    made = Deployment(tmp_path / "run", min_reply_fraction=0.8)
    made.link.nodes[11].after = {TRAIN: None}
    made.link.nodes[13].after = {TRAIN: Error(0, "disk on fire")}
    with pytest.raises(RunError, match="2 of 4 clients gave a valid train reply") as error:
        made.run()
    assert "client 1: no reply within 0.2 s; client 3: disk on fire" in str(error.value)


def test_a_run_below_its_minimum_is_resumed_with_a_lower_one(tmp_path):
    made = Deployment(tmp_path / "run", min_reply_fraction=0.8)

    def stop(nodes):
        nodes[11].after = {TRAIN: None}

    made.at(TRAIN, 2, stop)
    with pytest.raises(RunError, match=r"min-reply-fraction=0\.8"):
        made.run()
    with pytest.raises(RunError, match="local-steps=3 but the run in"):
        made.run(resume=True, local_steps=3)
    run = made.run(resume=True, local_steps=2, min_reply_fraction=0.5, round_timeout=0.1)
    assert run.facts["config"]["min-reply-fraction"] == 0.5
    assert [made.trained(r) for r in (1, 2, 3)] == [[0, 1, 2, 3], [0, 2, 3], [0, 2, 3]]


def test_evaluation_has_a_minimum_of_its_own(tmp_path):
    made = Deployment(tmp_path / "run", min_evaluate_fraction=1.0)
    made.link.nodes[12].after = {EVALUATE: None}
    with pytest.raises(
        RunError, match="3 of 4 clients gave a valid evaluate reply, fewer than"
    ) as e:
        made.run()
    assert "min-evaluate-fraction=1.0" in str(e.value)


def gone(node: int):
    return lambda nodes: nodes.pop(node)


def test_a_node_that_restarts_under_another_id_is_asked_again(tmp_path):
    made = Deployment(tmp_path / "run", num_server_rounds=4)

    def restart(nodes):
        nodes[99] = nodes.pop(11)

    made.at(EVALUATE, 1, restart)
    run = made.run()
    assert [made.trained(r) for r in (1, 2, 3)] == [[0, 1, 2, 3]] * 3
    assert 99 in made.link.asked(TRAIN)
    # it went while the round was evaluated
    assert shares(run) == [1.0, 0.75, 1.0, 1.0, 1.0]
    assert made.facts["evaluation_failures"] == {"1": {"1": "Node Unavailable"}}
    assert made.facts["absent_clients"] == {}


def test_a_client_that_is_gone_is_absent_and_named_until_it_is_back(tmp_path):
    made = Deployment(tmp_path / "run", num_server_rounds=4)
    kept = made.link.nodes[11]
    made.at(TRAIN, 1, gone(11))
    made.at(TRAIN, 3, lambda nodes: nodes.update({11: kept}))
    run = made.run()
    assert [made.trained(r) for r in (1, 2, 3, 4)] == [*[[0, 2, 3]] * 3, [0, 1, 2, 3]]
    assert shares(run) == [1.0, 0.75, 0.75, 1.0, 1.0]
    assert made.facts["evaluation_failures"]["2"] == {"1": "its node is not connected"}
    # what is left of the round says how many there are
    assert ("train", 3) in made.link.nodes[10].told


def test_a_node_that_comes_back_with_other_data_is_refused(tmp_path):
    made = Deployment(tmp_path / "run")

    def restart(nodes):
        nodes.pop(11)
        nodes[99] = Office(1, data_digest="9" * 64)

    made.at(TRAIN, 2, restart)
    made.run()
    assert made.trained(3) == [0, 2, 3]
    assert "its data_digest is 999" in made.facts["refused_clients"]["node 99"]
    assert "its data_digest is 999" in made.facts["absent_clients"]["1"]


def test_another_model_is_refused_too(tmp_path):
    made = Deployment(tmp_path / "run")
    made.at(TRAIN, 1, lambda nodes: nodes.update({14: Office(4, model_digest="8" * 64)}))
    made.run()
    assert "its model-digest is 888" in made.facts["refused_clients"]["node 14"]
    assert not made.facts["spares"]


def test_a_newcomer_that_says_nothing_is_waited_for_once(tmp_path, monkeypatch):
    waits, collect = [], membership.collect

    def counted(grid, waiting, seconds):
        waits.append(seconds)
        return collect(grid, waiting, seconds)

    monkeypatch.setattr(membership, "collect", counted)
    made = Deployment(tmp_path / "run", num_server_rounds=3)
    stuck = Office(4)
    stuck.after = {DESCRIBE: None}
    made.at(EVALUATE, 0, lambda nodes: nodes.update({14: stuck}))
    made.run()
    assert [seconds for seconds in waits if seconds] == [0.2]
    assert made.link.asked(DESCRIBE).count(14) == 1


def test_a_node_that_was_refused_is_asked_again_until_it_is_mended(tmp_path):
    made = Deployment(tmp_path / "run")
    broken = made.link.nodes[12]
    broken.after = {DESCRIBE: Error(0, "no rows.jsonl")}
    made.at(EVALUATE, 1, lambda _nodes: broken.after.clear())
    made.run()
    assert made.trained(1) == [0, 1, 3]
    assert made.trained(3) == [0, 1, 2, 3]
    assert made.facts["refused_clients"] == {}
    assert made.facts["spares"] == {"2": "in a free place"}
    # a curve is over the clients that the run began with
    assert {row[1] for row in Run.read(made.path).rows("evaluation.csv")} == {0, 1, 3}


class TestSpares:
    def test_they_wait_while_all_are_there(self, tmp_path):
        made = Deployment(tmp_path / "run", partitions=[7, 3, 1000, 5, 2, 9], active_clients=2)
        made.run()
        assert made.facts["spares"] == {"9": "waiting", "1000": "waiting"}
        plain = Deployment(tmp_path / "plain", partitions=[2, 3, 5, 7], active_clients=2)
        plain.run()
        for number in (1, 2, 3):
            assert made.trained(number) == plain.trained(number)

    def test_one_takes_the_place_of_a_client_that_is_gone(self, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        changes = {"active_clients": 2, "num_server_rounds": 6}
        made = Deployment(tmp_path / "run", partitions=range(5), **changes)
        made.at(EVALUATE, 1, gone(11))
        run = made.run()
        plain = Deployment(tmp_path / "plain", **changes)
        plain.run()
        for number in range(2, 7):
            expected = sorted(4 if p == 1 else p for p in plain.trained(number))
            assert made.trained(number) == expected
        assert any(4 in made.trained(number) for number in range(2, 7))
        assert made.facts["spares"] == {"4": "in the place of client 1"}
        assert "round 2: client 4: in the place of client 1" in caplog.text
        assert shares(run) == [1.0, *[0.75] * 6]

    def test_it_waits_again_when_the_client_is_back(self, tmp_path):
        made = Deployment(tmp_path / "run", partitions=range(5))
        kept = made.link.nodes[11]
        made.at(EVALUATE, 0, gone(11))
        made.at(EVALUATE, 1, lambda nodes: nodes.update({11: kept}))
        made.run()
        assert [made.trained(r) for r in (1, 2)] == [[0, 2, 3, 4], [0, 1, 2, 3]]
        assert made.facts["spares"] == {"4": "waiting"}

    def test_a_share_of_common_rows_has_no_spare(self, tmp_path):
        made = Deployment(tmp_path / "run")
        made.link.nodes[14] = Office(4, own_data=False)
        made.run()
        assert "partition-id=4 instead of" in made.facts["refused_clients"]["node 14"]

    def test_local_training_has_none(self, tmp_path):
        made = Deployment(tmp_path / "run", partitions=range(5), training="local")
        made.at(EVALUATE, 1, gone(11))
        made.run()
        assert made.trained(3) == [0, 2, 3]
        assert made.facts["spares"]["4"].startswith("waiting")


class TestStart:
    def test_it_goes_on_without_the_missing_and_they_come_later(self, tmp_path, caplog):
        made = Deployment(tmp_path / "run", partitions=[0, 1, 3])
        made.at(TRAIN, 1, lambda nodes: nodes.update({12: Office(2)}))
        made.run()
        assert "client 2 does not take part: no node takes part as this client" in caplog.text
        assert made.trained(1) == [0, 1, 3]
        assert made.trained(2) == [0, 1, 2, 3]
        assert made.facts["spares"] == {"2": "in a free place"}

    def test_too_few_are_refused_and_named(self, tmp_path):
        made = Deployment(tmp_path / "run", partitions=[3])
        with pytest.raises(RunError, match="1 of 4 clients can take part") as error:
            made.run()
        assert "client 0: no node takes part as this client; client 1: no node" in str(error.value)

    def test_two_with_one_partition_id_are_refused_until_one_is_left(self, tmp_path):
        made = Deployment(tmp_path / "run")
        made.link.nodes[50] = Office(2)
        made.at(TRAIN, 1, gone(50))
        made.run()
        assert made.trained(1) == [0, 1, 3]
        assert made.trained(2) == [0, 1, 2, 3]

    def test_unseen_clients_need_the_first_partition_ids(self, tmp_path):
        made = Deployment(tmp_path / "run", partitions=[4, 5, 6, 7], unseen_clients=0.25)
        with pytest.raises(RunError, match="0 to 3, but the nodes have"):
            made.run(active_clients=2)


class TestResume:
    def stopped(self, made) -> None:
        """A run that ends in its second round."""

        def crash(nodes):
            raise KeyboardInterrupt

        made.at(TRAIN, 2, crash)
        with pytest.raises(KeyboardInterrupt):
            made.run()

    def test_it_goes_on_with_nodes_of_other_ids(self, tmp_path):
        made = Deployment(tmp_path / "run", active_clients=2, num_server_rounds=4)
        self.stopped(made)
        made.link.nodes = {500 - node: office for node, office in made.link.nodes.items()}
        run = made.run(resume=True)
        whole = Deployment(tmp_path / "whole", active_clients=2, num_server_rounds=4)
        expected = whole.run()
        assert [made.trained(r) for r in range(1, 5)] == [whole.trained(r) for r in range(1, 5)]
        assert run.rows("rounds.csv") == expected.rows("rounds.csv")
        assert run.rows("partition.csv") == expected.rows("partition.csv")

    def test_a_client_that_is_missing_is_still_one_of_the_run(self, tmp_path):
        made = Deployment(tmp_path / "run", partitions=range(5))
        self.stopped(made)
        kept = made.link.nodes.pop(10)
        made.at(EVALUATE, 2, lambda nodes: nodes.update({77: kept}))
        run = made.run(resume=True)
        assert made.trained(2) == [1, 2, 3, 4]
        assert made.trained(3) == [0, 1, 2, 3]
        assert shares(run) == [1.0, 1.0, 0.75, 1.0]
        assert made.facts["spares"] == {"4": "waiting"}

    def test_other_data_are_refused_by_name(self, tmp_path):
        made = Deployment(tmp_path / "run")
        self.stopped(made)
        office = made.link.nodes[13]
        office.description = replace(office.description, data_digest="9" * 64)
        made.run(resume=True)
        assert made.trained(3) == [0, 1, 2]
        assert "the run began with" in made.facts["absent_clients"]["3"]


def test_without_a_held_out_row_anywhere_nothing_begins(tmp_path):
    made = Deployment(tmp_path / "run")
    for partition, node in enumerate(made.link.nodes):
        made.link.nodes[node] = Office(partition, train=(1,), test=(0,))
    with pytest.raises(RunError, match="no client holds out a row"):
        made.run()
    assert not (tmp_path / "run" / "rounds.csv").exists()


def test_who_keeps_losses_back_trains_and_is_not_evaluated(tmp_path):
    made = Deployment(tmp_path / "run", num_server_rounds=1)
    secretive = made.link.nodes[12] = Office(2, metrics=())

    def silent(message):
        content = secretive(message)
        if message.metadata.message_type == TRAIN:
            content[METRICS]["nll"], content[METRICS]["tokens"] = 0.0, 0
        return content

    made.link.nodes[12] = silent
    run = made.run()
    assert made.trained(1) == [0, 1, 2, 3]
    assert EVALUATE not in {kind for kind, _ in secretive.told}
    assert made.facts.get("evaluation_failures") is None
    assert shares(run) == [0.75, 0.75]


def test_losses_of_who_keeps_them_back_are_refused(tmp_path):
    made = Deployment(tmp_path / "run", num_server_rounds=1)
    made.link.nodes[12] = Office(2, metrics=())
    made.run()
    assert made.trained(1) == [0, 1, 3]
    assert "tokens" in made.facts["train_failures"]["1"]["2"]


def test_where_all_keep_losses_back_the_run_ends_with_the_reason(tmp_path):
    made = Deployment(tmp_path / "run")
    for partition, node in enumerate(made.link.nodes):
        made.link.nodes[node] = Office(partition, metrics=())
    with pytest.raises(RunError, match="share-metrics=none on every node"):
        made.run()

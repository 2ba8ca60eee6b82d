"""Waiting for replies: for all, or for so long, and for nobody who is gone."""

import math
import time

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from superlink import SuperLink, reply

from mops_fl.engine.watched import WatchedGrid
from mops_fl.wire.replies import sift

HOUR = 3600.0


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch):
    for name, value in {"_task_id": 1, "_run_id": 7, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


def answers(_message):
    return RecordDict()


def silent(_message):
    return None


def ask(grid, nodes):
    """Valid replies and reasons, by node."""
    messages = {n: Message(RecordDict(), message_type="train", dst_node_id=n) for n in nodes}
    replies = grid.send_and_receive(messages.values())
    asked = {message.metadata.message_id: node for node, message in messages.items()}
    return sift(asked, replies, lambda _node, content: content)


def watched(nodes, seconds=math.inf):
    seen = []
    link = SuperLink(nodes)
    return WatchedGrid(link, lambda *progress: seen.append(progress), seconds), link, seen


def test_a_round_ends_when_the_time_is_over_and_the_late_are_named():
    grid, _, seen = watched({2: answers, 3: silent, 4: answers}, 0.3)
    start = time.monotonic()
    valid, failures = ask(grid, [2, 3, 4])
    assert 0.3 <= time.monotonic() - start < 300
    assert [*valid] == [2, 4]
    assert failures == {3: "no reply within 0.3 s"}
    assert seen == [("train", 0, 3), ("train", 2, 3)]


def test_nobody_is_waited_for_when_all_are_there():
    grid, *_ = watched({2: answers}, HOUR)
    start = time.monotonic()
    assert not ask(grid, [2])[1]
    assert time.monotonic() - start < 300


def test_what_flower_says_of_a_node_that_is_gone_is_said_of_who_was_asked():
    grid, *_ = watched({2: answers})
    assert ask(grid, [2, 9])[1] == {9: "Node Unavailable"}


def test_a_message_that_flower_does_not_take_is_not_waited_for():
    grid, link, _ = watched({2: answers, 3: answers})
    push = link.push_messages
    link.push_messages = lambda messages: [None, *push(messages)[1:]]
    valid, failures = ask(grid, [2, 3])
    assert [*valid] == [3]
    assert "did not take the message" in failures[2]


def test_messages_live_as_long_as_their_replies_are_waited_for_by_any_clock():
    grid, link, _ = watched({2: answers}, 100.0)
    ask(grid, [2])
    ask(grid, [2])
    unknown, known = (message.metadata.ttl for message in link.sent)
    assert unknown > 100 + HOUR
    assert 100 < known < 200
    ahead = SuperLink({2: answers})
    ahead.pull_messages = lambda ids: [
        reply(message, RecordDict(), 2, ahead=HOUR)
        for message in ahead.sent
        if message.metadata.message_id in ids
    ]
    grid = WatchedGrid(ahead, lambda *_: None, 100.0)
    ask(grid, [2])
    ask(grid, [2])
    assert ahead.sent[-1].metadata.ttl == pytest.approx(100 + 60 + HOUR, abs=5)


def test_without_a_timeout_messages_live_as_flower_has_it():
    grid, link, _ = watched({2: answers})
    ask(grid, [2])
    assert link.sent[0].metadata.ttl == 12 * HOUR

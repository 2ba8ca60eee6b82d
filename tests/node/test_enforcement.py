"""The owner's policy: what is refused, and what leaves in place of what was trained."""

import numpy as np
import pytest
from edge import context_of, message_of, round_of
from flwr.app import Message, MetricRecord, RecordDict

from mops_fl.errors import PolicyError
from mops_fl.node.enforcement import blurred, check_request, guard_reply
from mops_fl.node.node_config import NodeConfig, Policy
from mops_fl.wire.records import ARRAYS, METRICS, from_array_record, norm
from mops_fl.wire.requests import DESCRIBE, EVALUATE, PERSONALISE, TRAIN


def asked(node, policy, tmp_path, kind=TRAIN, content=None, **run):
    config = NodeConfig.from_flat(node).configured(context_of(node, **run).run_config)
    message = message_of(kind, content or round_of(node))
    check_request(policy, config, message, tmp_path / "received")


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(allow_methods="mops, lora"), "method=fedprompt: allow-methods=mops, lora"),
        (Policy(max_local_steps=2), "local-steps=3: max-local-steps=2"),
        (Policy(max_rows=5), "read 6 rows: max-rows=5"),
        (Policy(max_norm=1e-3), "max-norm=0.001"),
    ],
)
def test_what_the_owner_does_not_allow_is_refused(node, tmp_path, policy, reason):
    with pytest.raises(PolicyError, match=reason):
        asked(node, policy, tmp_path)


def test_what_stays_within_the_limits_is_done(node, tmp_path):
    policy = Policy(
        allow_methods="fedprompt",
        max_local_steps=3,
        max_rows=6,
        max_norm=1e3,
        max_change=1e3,
        min_clients=2,
    )
    for kind in (TRAIN, EVALUATE):
        asked(node, policy, tmp_path, kind, round_of(node, clients=2))
    asked(node, policy, tmp_path, DESCRIBE)


def test_steps_after_the_last_round_count_too(node, tmp_path):
    with pytest.raises(PolicyError, match="personal-steps=9"):
        asked(node, Policy(max_local_steps=3), tmp_path, PERSONALISE, personal_steps=9)


def test_a_round_of_fewer_clients_is_refused(node, tmp_path):
    with pytest.raises(PolicyError, match="a round of 1 clients: min-clients=2"):
        asked(node, Policy(min_clients=2), tmp_path, content=round_of(node, clients=1))


def test_a_step_too_large_is_refused_and_not_kept(node, tmp_path):
    policy = Policy(max_change=0.5 * norm(from_array_record(round_of(node)[ARRAYS])))
    asked(node, policy, tmp_path)
    for _ in range(2):
        with pytest.raises(PolicyError, match="from the last ones"):
            asked(node, policy, tmp_path, content=round_of(node, scale=3))
    asked(node, policy, tmp_path, EVALUATE, round_of(node, scale=1.2))
    (kept,) = (tmp_path / "received").iterdir()
    assert kept.stat().st_mode & 0o077 == 0


def test_losses_that_are_kept_back_are_not_computed(node, tmp_path):
    for kind in (EVALUATE, PERSONALISE):
        with pytest.raises(PolicyError, match="share-metrics=none"):
            asked(node, Policy(share_metrics="none"), tmp_path, kind)
        asked(node, Policy(share_metrics="loss"), tmp_path, kind)


@pytest.mark.parametrize(
    ("shared", "left"),
    [
        ("loss,gate", {"num-examples", "nll", "tokens", "gate", "gate/a b/c", "gate-load/a"}),
        ("loss", {"num-examples", "nll", "tokens"}),
        ("none", {"num-examples", "nll", "tokens"}),
    ],
)
def test_metrics_that_are_kept_back_do_not_leave(node, shared, left):
    message = message_of(TRAIN, round_of(node))
    told = {"num-examples": 7, "nll": 3.5, "tokens": 5, "gate": [1.0], "gate/a b/c": [1.0]}
    content = RecordDict({METRICS: MetricRecord({**told, "gate-load/a": [1]})})
    reply = Message(content, reply_to=message)
    guard_reply(Policy(share_metrics=shared), message, reply)
    found = reply.content[METRICS]
    assert set(found) == left
    assert (found["nll"], found["tokens"]) == ((0.0, 0) if shared == "none" else (3.5, 5))
    assert found["num-examples"] == 7


def test_numbers_that_are_none_are_no_way_around(node, tmp_path):
    for policy in (Policy(max_norm=1e9), Policy(max_change=1e9)):
        with pytest.raises(PolicyError, match="nan"):
            asked(node, policy, tmp_path, content=round_of(node, scale=float("nan")))


def test_what_leaves_is_clipped(node):
    start = from_array_record(round_of(node)[ARRAYS])
    trained = {name: value + 1 for name, value in start.items()}
    made = blurred(Policy(clip_norm=0.25), start, trained)
    assert norm({n: made[n] - start[n] for n in made}) == pytest.approx(0.25, rel=1e-4)

    near = {name: value + 1e-6 for name, value in start.items()}
    made = blurred(Policy(clip_norm=0.25), start, near)
    for name, value in near.items():
        np.testing.assert_allclose(made[name], value, rtol=0, atol=1e-7)


def test_noise_has_the_deviation_that_was_asked_for_and_no_seed():
    start = {"prompts": np.zeros((100, 100), np.float32)}
    policy = Policy(clip_norm=1.0, noise=0.3)
    first, second = (blurred(policy, start, start)["prompts"] for _ in range(2))
    assert np.std(first) == pytest.approx(0.3, rel=0.05)
    assert abs(np.mean(first)) < 0.02
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_only_tensors_that_leave_are_touched(node):
    message = message_of(TRAIN, round_of(node))
    reply = Message(round_of(node, scale=2), reply_to=message)
    guard_reply(Policy(clip_norm=0.01), message, reply)
    before, after = (from_array_record(m.content[ARRAYS]) for m in (message, reply))
    assert norm({n: after[n] - before[n] for n in after}) == pytest.approx(0.01, rel=1e-3)

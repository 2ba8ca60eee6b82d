"""A crafted gate tells members, a curious server some; a refusal or enough noise tells nothing."""

from functools import partial

import numpy as np
import pytest

from experiments.leakage.crafted_gate import bound_experts, bound_units
from experiments.leakage.defences import central_release, leaving, refusal
from experiments.leakage.membership_attack import (
    Game,
    asked,
    calibrated,
    cosines,
    gradients_of,
    honest_round,
    judged,
    judged_by_gate,
)
from experiments.leakage.merit import merit
from mops_fl.node.node_config import Policy
from mops_fl.wire.records import norm

RIDGE = 1e-5


@pytest.fixture(scope="module")
def by_units(victim, rows, features):
    game = Game(clients=3, targets=12, held=8, steps=(8, 2))
    return asked(victim, partial(bound_units, ridge=RIDGE), game, rows, features)


@pytest.fixture(scope="module")
def by_experts(victim, rows, features):
    game = Game(clients=3, targets=3, held=5, steps=(5,))
    return asked(victim, partial(bound_experts, ridge=RIDGE), game, rows, features)[5]


def test_a_unit_that_is_on_for_one_row_tells_whether_it_was_trained_on(by_units):
    assert judged(by_units[8], lambda _start, update: update).auc > 0.85


def test_rows_that_a_round_does_not_read_are_not_told(by_units):
    few = judged(by_units[2], lambda _start, update: update)
    assert few.auc < judged(by_units[8], lambda _start, update: update).auc


def test_an_expert_that_one_row_gets_tells_too_and_so_does_its_gate_weight(by_experts):
    assert judged(by_experts, lambda _start, update: update).auc > 0.85
    assert judged_by_gate(by_experts).auc > 0.85


def test_an_update_replaced_by_noise_tells_nothing(by_units, by_experts, draw):
    def noise(_start, update):
        return {name: draw.standard_normal(value.shape) for name, value in update.items()}

    assert judged(by_units[8], noise, draws=20).auc == pytest.approx(0.5, abs=0.07)
    assert judged(by_experts, noise, draws=80).auc == pytest.approx(0.5, abs=0.07)


def test_the_nodes_noise_and_a_noisy_release_tell_nothing_when_they_are_large(by_units, draw):
    blurred = partial(leaving, Policy(clip_norm=1.0, noise=1.0))
    assert judged(by_units[8], blurred, draws=20).auc == pytest.approx(0.5, abs=0.1)

    def released(_start, update):
        nothing = {name: np.zeros_like(value) for name, value in update.items()}
        return central_release([update, *[nothing] * 9], 1.0, 1.0, draw)

    assert judged(by_units[8], released, draws=20).auc == pytest.approx(0.5, abs=0.1)


def test_clipping_alone_hides_nothing(by_units):
    answers = by_units[8]
    clipped = judged(answers, partial(leaving, Policy(clip_norm=1e-3)))
    assert clipped.auc > 0.85
    assert norm(leaving(Policy(clip_norm=1e-3), answers[0].probe.start, answers[0].update)) < 2e-3


def test_what_the_policy_refuses_tells_nothing(victim, by_units):
    crafted = by_units[8][0].probe.start
    small = Policy(max_norm=0.9 * norm(crafted))
    assert "max-norm" in refusal(small, victim.config, [crafted], victim.frozen, clients=10)

    def unanswered(_start, update):
        return {name: np.zeros_like(value) for name, value in update.items()}

    assert judged(by_units[8], unanswered).auc == 0.5


def test_a_limit_that_lets_the_honest_server_in_lets_a_bound_unit_in(victim, by_units):
    crafted, honest = by_units[8][0].probe.start, victim.start
    policy = Policy(max_norm=norm(honest))
    assert not refusal(policy, victim.config, [crafted], victim.frozen, clients=10)


def test_a_change_is_refused_only_after_there_was_something_to_change(victim, by_units):
    crafted = by_units[8][0].probe.start
    policy = Policy(max_change=1.0)
    assert not refusal(policy, victim.config, [crafted], victim.frozen, clients=10)
    late = refusal(policy, victim.config, [victim.start, crafted], victim.frozen, clients=10)
    assert "max-change" in late


def test_one_honest_step_names_the_row_that_it_was_on(victim, rows):
    played = honest_round(victim, rows[:12], clients=2, held=5, steps=1)
    gradients = gradients_of(victim, rows[:12])
    assert played.judged(cosines(played.updates, gradients, signs=True)).auc == 1.0
    # whatever the clients did, what does not depend on it is chance on average
    noise = np.random.default_rng(0).standard_normal((200, *played.read.shape))
    found = [played.judged(scores).auc for scores in noise]
    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


def test_scores_are_calibrated_by_the_other_clients():
    scores = np.array([[3.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    np.testing.assert_allclose(calibrated(scores), [[1.5, 0], [-1.5, 0], [0, 0]])


def test_merit_by_hand():
    found = merit(np.array([3.0, 2.0, 1.0, 0.5]), np.array([1.0, 0.0]))
    assert (found.members, found.others) == (4, 2)
    assert found.auc == pytest.approx((2 + 2 + 1.5 + 1) / 8)
    assert found.advantage == 0.5
    assert np.isnan(found.tpr)
    assert merit(np.ones(3), np.zeros(100)).tpr == 1.0
    assert merit(np.zeros(3), np.ones(100)).tpr == 0.0


def test_a_release_is_the_mean_of_clipped_updates_and_noise(draw):
    long, short = {"w": np.array([3.0, 4.0])}, {"w": np.array([0.0, 0.5])}
    np.testing.assert_allclose(central_release([long, short], 1.0, 0.0, draw)["w"], [0.3, 0.65])
    nothing = {"w": np.zeros(10_000)}
    noise = central_release([nothing] * 4, 2.0, 3.0, draw)["w"]
    assert noise.std() == pytest.approx(1.5, rel=0.05)

"""Differential privacy by its parts: what ε is, what the noise is, and what one client can move."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from scipy.stats import kstest, norm

from mops_fl.config import Config
from mops_fl.errors import ConfigError
from strategies.aggregation import AGGREGATIONS, Contribution
from strategies.privacy import CentralDP

CLIP, NOISE = 0.5, 1.25
BASE = {
    **{"dp": "central", "clip-norm": CLIP, "noise-multiplier": NOISE, "unseen-clients": 0.2},
    **{"num-clients": 125, "active-clients": 10, "num-samples": 2000, "num-server-rounds": 20},
}
POPULATION = 100


def mechanism(*, simulated: bool = True, population: int = POPULATION, **values) -> CentralDP:
    return CentralDP(Config.from_flat({**BASE, **values}), population, simulated=simulated)


def updates(clients: int, scale: float, shapes=((40, 5), (30,))) -> list[Contribution]:
    draw = np.random.default_rng(1)
    return [
        Contribution(
            {f"t{i}": scale * draw.standard_normal(s, np.float32) for i, s in enumerate(shapes)},
            examples=client + 1,
        )
        for client in range(clients)
    ]


def zeros(of: Contribution) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(value) for name, value in of.tensors.items()}


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


def release(made: CentralDP, rounds: int) -> None:
    """Some rounds, as a strategy has them."""
    replies = updates(10, 0.01)
    for number in range(1, rounds + 1):
        made.mean(number, zeros(replies[0]), replies)


def reference(multiplier: float, rounds: int, delta: float, population: int, active: int) -> float:
    """ε by `dp-accounting` alone."""
    own = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    gaussian = dp_event.GaussianDpEvent(multiplier)
    own.compose(dp_event.SampledWithoutReplacementDpEvent(population, active, gaussian), rounds)
    return float(own.get_epsilon(delta))


def test_epsilon_is_dp_accountings_with_noise_over_twice_the_clip():
    made = mechanism(delta=1e-3)
    release(made, 3)
    assert made.spent.epsilon == pytest.approx(reference(NOISE / 2, 3, 1e-3, 100, 10), rel=1e-12)
    assert made.spent.delta == 1e-3
    usual = mechanism()
    release(usual, 1)
    assert usual.spent.delta == pytest.approx(1e-3)


def test_epsilon_bounds_the_exact_one_of_a_gaussian():
    """Balle and Wang (2018), theorem 8: where all take part once, ε is known without a bound."""

    def delta_of(epsilon: float, sensitivity: float, deviation: float) -> float:
        half, ratio = sensitivity / (2 * deviation), epsilon * deviation / sensitivity
        return norm.cdf(half - ratio) - math.exp(epsilon) * norm.cdf(-half - ratio)

    made = mechanism(population=10, delta=1e-3, **{"noise-multiplier": 4.0})
    release(made, 1)
    told = made.spent.epsilon
    assert delta_of(told, 2 * CLIP, 4.0 * CLIP) < 1e-3
    assert delta_of(0.8 * told, 2 * CLIP, 4.0 * CLIP) > 1e-3
    # with half the sensitivity it would be far from tight
    assert delta_of(0.6 * told, CLIP, 4.0 * CLIP) < 1e-3


def test_the_accountant_gives_a_published_number():
    """Abadi et al. (2016), section 3.2: q = 0.01, σ = 4, 10,000 steps, δ = 1e-5 give ε ≈ 1.26.

    Today's conversion from RDP is tighter than theirs, by a fifth here.
    """
    from flwr.serverapp import (
        GaussianPrivacyEvent,
        NeighboringRelation,
        PrivacyConfig,
        SamplingMethod,
    )
    from flwr.serverapp import RdpAccountant as Theirs

    relation, sampling = NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.POISSON
    made = Theirs(PrivacyConfig(1e-5, 10_000, relation, sampling))
    made.compose(GaussianPrivacyEvent(4.0, 100, 10_000), 10_000)
    assert 0.75 * 1.26 < made.get_epsilon(1e-5) < 1.26


@pytest.mark.parametrize("simulated", [True, False], ids=["seeded", "system"])
def test_noise_is_normal_with_the_stated_deviation(simulated):
    made = mechanism(simulated=simulated)
    replies = [Contribution({"t": np.zeros(20_000, np.float32)}, 3)] * 10
    noises = [made.mean(number, zeros(replies[0]), replies)["t"] for number in range(1, 11)]
    found, expected = np.concatenate(noises), NOISE * CLIP / 10
    assert made.spent.noise == pytest.approx(expected)
    assert found.std() == pytest.approx(expected, rel=0.01)
    assert abs(found.mean()) < 5 * expected / found.size**0.5
    assert kstest(found, "norm", args=(0, expected)).pvalue > 1e-4
    assert abs(np.corrcoef(np.stack(noises))[0, 1:]).max() < 0.05


def test_noise_is_of_the_seed_in_a_simulation_alone():
    replies = updates(10, 0.01)

    def noised(**values):
        return flat(mechanism(**values).mean(1, zeros(replies[0]), replies))

    assert np.array_equal(noised(), noised())
    assert not np.array_equal(noised(), noised(seed=1))
    assert not np.array_equal(noised(simulated=False), noised(simulated=False))


def test_updates_are_clipped_together_and_count_alike():
    """Without noise to speak of, the mean is that of the clipped updates, whatever the examples."""
    made = mechanism(**{"noise-multiplier": 2e-9})
    replies = [*updates(5, 1.0), *updates(5, 0.001)]
    found = flat(made.mean(1, zeros(replies[0]), replies))
    each = [flat(reply.tensors) for reply in replies]
    expected = sum(own * min(1, CLIP / np.linalg.norm(own)) for own in each) / 10
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert made.spent.clipped_share == 0.5
    deployed = mechanism(simulated=False)
    release(deployed, 1)
    assert math.isnan(deployed.spent.clipped_share)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_one_client_moves_the_sum_by_twice_the_clip_at_most(scale):
    """Whatever a client sends instead, even nothing: the noise is the same, and cancels."""
    replies = updates(10, 1.0)
    start = zeros(replies[0])
    whole = flat(mechanism().mean(1, start, replies))
    opposite = {name: -scale * value for name, value in replies[3].tensors.items()}
    others = [*replies[:3], *replies[4:]]
    replaced = [*replies[:3], Contribution(opposite, 10**6), *replies[4:]]
    for changed in (replaced, others):
        moved = 10 * (flat(mechanism().mean(1, start, changed)) - whole)
        assert np.linalg.norm(moved) <= 2 * CLIP * (1 + 1e-5)
    # and by no less where it sends the opposite
    opposite = Contribution({name: -value for name, value in replies[3].tensors.items()}, 1)
    moved = flat(mechanism().mean(1, start, [*replies[:3], opposite, *replies[4:]])) - whole
    assert 10 * np.linalg.norm(moved) == pytest.approx(2 * CLIP, rel=1e-5)


def test_signal_to_noise_is_of_the_largest_update():
    made = mechanism()
    release(made, 1)
    size = 230
    assert made.spent.snr == pytest.approx(10 / (NOISE * size**0.5))
    assert made.spent.clip == CLIP


def test_a_larger_cohort_has_less_noise_and_is_accounted_for_as_one():
    made = mechanism(**{"noise-cohort": 1000, "delta": 1e-5})
    release(made, 1)
    assert made.spent.noise == pytest.approx(NOISE * CLIP / 1000)
    expected = reference(NOISE / 2, 1, 1e-5, 10_000, 1000)
    assert made.spent.epsilon == pytest.approx(expected, rel=1e-12)
    usual = mechanism(**{"noise-cohort": 1000})
    release(usual, 1)
    assert usual.spent.delta == pytest.approx(1e-5)
    with pytest.raises(ConfigError, match="noise-cohort=1000 in a deployment"):
        mechanism(simulated=False, **{"noise-cohort": 1000})


def test_noise_is_solved_for_from_a_target():
    made = mechanism(**{"noise-multiplier": 0.0, "target-epsilon": 6.0})
    z = made.noise_multiplier
    assert reference(z / 2, 20, 1e-3, 100, 10) <= 6.0 < reference(0.998 * z / 2, 20, 1e-3, 100, 10)
    # rounds that were begun twice do not lead beyond it
    release(made, 10)
    made.carry_on(made.state, releases=13)
    assert made.rounds(10) == 7
    with pytest.raises(ConfigError, match="target-epsilon=1e-09: no noise"):
        mechanism(**{"noise-multiplier": 0.0, "target-epsilon": 1e-9, "delta": 1e-12})


def test_delta_is_less_than_one_over_the_clients():
    with pytest.raises(ConfigError, match=r"delta=0\.01 with 100 clients"):
        mechanism(delta=0.01)


def test_nobody_to_train_is_refused():
    with pytest.raises(ConfigError, match="needs clients that train"):
        mechanism(population=0)


def test_the_budget_ends_the_rounds():
    each = [reference(NOISE / 2, count, 1e-3, 100, 10) for count in (1, 4, 5)]
    assert mechanism().rounds(20) == 20
    assert mechanism(**{"max-epsilon": (each[1] + each[2]) / 2}).rounds(20) == 4
    assert mechanism(**{"max-epsilon": each[0] / 2}).rounds(20) == 0
    begun = mechanism(**{"max-epsilon": (each[1] + each[2]) / 2})
    release(begun, 3)
    assert begun.rounds(17) == 1


def test_a_resumed_ledger_goes_on_and_counts_what_may_have_left():
    def after(state, releases: int) -> CentralDP:
        made = mechanism()
        made.carry_on(state, releases)
        release(made, 1)
        return made

    whole = mechanism()
    release(whole, 3)
    kept = whole.state
    for releases, expected in ((3, 4), (5, 6)):
        found = after(kept, releases).spent.epsilon
        assert found == pytest.approx(reference(NOISE / 2, expected, 1e-3, 100, 10), rel=1e-12)
    # what was counted once is not counted again
    assert after(after(kept, 5).state, 6).spent.epsilon == pytest.approx(
        reference(NOISE / 2, 7, 1e-3, 100, 10)
    )


def test_who_trains_is_the_seeds_in_a_simulation_and_nobodys_in_a_deployment():
    trainees = [*range(3, 103)]
    drawn = [mechanism().active(trainees, number) for number in range(1, 4)]
    assert drawn == [mechanism().active(trainees, number) for number in range(1, 4)]
    assert len({tuple(own) for own in drawn}) == 3
    assert all(len(set(own)) == 10 and {*own} <= {*trainees} for own in drawn)
    system = [mechanism(simulated=False) for _ in range(5)]
    assert len({tuple(made.active(trainees, 1)) for made in system}) == 5
    # whoever was drawn for a round is drawn again where that round is begun again
    resumed = mechanism(simulated=False)
    resumed.carry_on(system[0].state, releases=0)
    assert resumed.active(trainees, 2) == system[0].active(trainees, 2)
    assert resumed.active(trainees, 2) != resumed.active(trainees, 3)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam"])
def test_a_rule_makes_its_step_from_the_noised_mean(name):
    config = Config.from_flat({**BASE, "aggregation": name})
    replies, made = updates(10, 0.1), mechanism()
    start = zeros(replies[0])
    rule = AGGREGATIONS[name]
    found = rule(config.aggregation, made.mean)(1, start, replies)
    noised = mechanism().mean(1, start, replies)
    expected = rule(config.aggregation)(1, start, [Contribution(noised, 1)])
    for tensor, value in expected.items():
        np.testing.assert_allclose(found[tensor], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip-norm": 0.0}, "clip-norm=0"),
        ({"noise-multiplier": 0.0}, "one of them above 0"),
        ({"target-epsilon": 3.0}, "one of them above 0"),
        ({"unseen-clients": 0.0}, "unseen-clients=0"),
        ({"noise-cohort": 5}, "noise-cohort=5 is less than active-clients=10"),
        ({"aggregation": "median"}, "reads single updates"),
        ({"aggregation": "multi-krum"}, "reads single updates"),
        ({"aggregation": "gate-weighted"}, "reads single updates"),
        ({"pretrain-data": "own"}, "without noise"),
        ({"pretrain-data": "pooled"}, "without noise"),
        ({"personal-steps": 3}, "each client's losses"),
        ({"validation-fraction": 0.1}, "losses of clients that train"),
        ({"evaluate-clients": 3}, "whose losses are not told"),
        ({"dp": "none"}, "noise-multiplier=1.25 with dp=none"),
        ({"noise-multiplier": 1e-12}, "too little to account for"),
        ({"gate-sync": "local"}, "have no noise"),
        (
            {"dataset": "dolly", "calibration": "dolly", "compression": "2:4"},
            "prunes by the clients' rows",
        ),
    ],
)
def test_what_would_void_the_guarantee_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_flat({**BASE, **values})


@pytest.mark.parametrize("training", ["local", "centralised"])
def test_privacy_is_of_a_mean(training):
    with pytest.raises(ConfigError, match=f"training={training}"):
        Config.from_flat({**BASE, "training": training})

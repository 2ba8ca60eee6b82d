"""Central differential privacy of whole clients: a noised mean, and what it has cost so far.

Two federations are neighbours where one client is another (McMahan et al., 2018, with the relation
that sampling without replacement is accounted by: Wang, Balle and Kasiviswanathan, 2019, theorem
27). One client moves the sum of clipped updates by 2 × clip-norm at most, so noise of z × clip-norm
is z / 2 of what the accountant counts in. A guarantee holds for whoever does not know who trained
in which round; the seed of a simulation tells it, so a simulation shows what a deployment costs.
"""

import hashlib
import json
import os
import random
import secrets
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial

import numpy as np
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)

from mops_fl.config import Config
from mops_fl.errors import ConfigError
from mops_fl.seeding import numpy_generator
from mops_fl.wire.records import Tensors, clip_factor, difference
from mops_fl.wire.rounds import PrivacySpent
from strategies.aggregation import Contribution
from strategies.sampling import sample_partitions

_LEDGER = "privacy/ledger"
_SECRET = "privacy/secret"
"""What a deployment's draws come from, so that a round that is begun again has the same clients: to
draw until enough of them are there would draw those more often that mostly are."""
_SECRET_BYTES = 32
_LARGEST_NOISE = 1e6
"""z beyond which a target is out of reach."""


class CentralDP:
    """The mean of a round's clipped updates, clients counting alike, with Gaussian noise.

    A client that was asked and gave no valid reply counts as an update of zero, so that the
    divisor tells nothing and one client moves the sum by no more than is accounted for.
    """

    def __init__(self, config: Config, population: int, *, simulated: bool) -> None:
        """Begin without a past.

        Args:
            config: of the run, with `dp=central`.
            population: clients that may train.
            simulated: whether noise and draws are the seed's; otherwise they come from the
                operating system, and nobody can repeat the noise.

        Raises:
            ConfigError: the noise or the target cannot be had, or ``mops-fl[dp]`` is not installed.
        """
        own = config.privacy
        if not population:
            raise ConfigError("dp=central needs clients that train: all are unseen-clients")
        self._seed, self._simulated = config.seed, simulated
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._clip = config.aggregation.clip_norm
        self._active = min(config.federation.active_clients, population)
        if own.noise_cohort and not simulated:
            raise ConfigError(
                f"noise-cohort={own.noise_cohort} in a deployment: less noise than its clients "
                "need is for simulations, set it to 0"
            )
        self._cohort = own.noise_cohort or self._active
        self._population = round(population * self._cohort / self._active)
        delta = own.delta or 0.1 / self._population
        if delta * self._population >= 1:
            raise ConfigError(
                f"delta={delta:g} with {self._population} clients that may train: from one over "
                "their number on, a client may be told of whole and ε hold; choose less"
            )
        self._accounting = PrivacyConfig(
            target_delta=delta,
            population_size=self._population,
            neighboring_relation=NeighboringRelation.REPLACE_ONE,
            sampling_method=SamplingMethod.WITHOUT_REPLACEMENT,
        )
        _, self._most = own.limit
        self._accountant = self._new_accountant()
        self.noise_multiplier = own.noise_multiplier or self._solved(
            own.target_epsilon, config.federation.num_server_rounds
        )
        self._event = self._event_of(self.noise_multiplier)
        self._clipped_share = 0.0
        self._size = 0

    @property
    def state(self) -> Tensors:
        """What the checkpoint of a round holds of it: the ledger of what was released, as JSON, and
        in a deployment the secret of the draws.
        """
        text = json.dumps(self._accountant.state_dict()).encode()
        kept = {_LEDGER: np.frombuffer(text, np.uint8)}
        return kept if self._simulated else {**kept, _SECRET: np.frombuffer(self._secret, np.uint8)}

    def carry_on(self, state: Tensors, releases: int) -> None:
        """Go on after a whole round.

        Args:
            state: of its checkpoint.
            releases: noised means that may have left so far: of whole rounds, and of rounds that a
                killed run began and that are begun again, with other noise in a deployment.
        """
        self._accountant.load_state_dict(json.loads(state[_LEDGER].tobytes()))
        if not self._simulated:
            self._secret = state[_SECRET].tobytes()
        if (unfinished := releases - self._accountant.num_releases) > 0:
            self._accountant.compose(self._event, unfinished)

    def active(self, trainees: Sequence[int], server_round: int) -> list[int]:
        """Who is to train in a round, as sorted partition ids: of all, whether there or not.

        Args:
            trainees: the clients that may train.
            server_round: of the run.
        """
        if self._simulated:
            return sample_partitions(trainees, self._active, self._seed, server_round)
        draw = random.Random(hashlib.sha512(self._secret + server_round.to_bytes(8)).digest())
        return sorted(draw.sample(sorted(trainees), self._active))

    def rounds(self, wanted: int) -> int:
        """How many of the next rounds are within `max-epsilon`, or `target-epsilon`."""
        if not self._most:
            return wanted
        more = range(1, wanted + 1)
        beyond = partial(self._accountant.would_exceed, self._event, self._most)
        return bisect_left(more, True, key=beyond)

    def mean(self, server_round: int, sent: Tensors, replies: Sequence[Contribution]) -> Tensors:
        """The next round's tensors before any step of the server's: start, mean update and noise.

        Args:
            server_round: of the run, from 1.
            sent: the tensors with which the clients began.
            replies: at least one, in the order of partition ids.
        """
        total = {name: np.zeros(value.shape) for name, value in sent.items()}
        clipped = 0
        for reply in replies:
            update = difference(reply.tensors, sent)
            scale = clip_factor(update, self._clip)
            clipped += scale < 1
            for name, value in update.items():
                total[name] += scale * value
        deviation = self._deviation
        self._clipped_share = clipped / len(replies)
        self._size = sum(value.size for value in sent.values())
        self._accountant.compose(self._event)
        made = {}
        for name in sorted(total):
            noise = deviation * self._normal(server_round, name, total[name].shape)
            made[name] = (sent[name] + total[name] / self._active + noise).astype(np.float32)
        return made

    @property
    def spent(self) -> PrivacySpent:
        """What was spent with the last round, and what its noise was."""
        spent = self._accountant.get_privacy_spent()
        return PrivacySpent(
            epsilon=spent.epsilon,
            delta=spent.delta,
            clip=self._clip,
            noise=self._deviation,
            # the lengths of updates would be a release of their own
            clipped_share=self._clipped_share if self._simulated else float("nan"),
            snr=self._clip / (self._deviation * self._size**0.5),
        )

    @property
    def _deviation(self) -> float:
        """Standard deviation of the noise on each number of the mean."""
        return self.noise_multiplier * self._clip / self._cohort

    def _normal(self, server_round: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal numbers; Box and Muller's of the operating system's entropy, or the
        seed's.
        """
        if self._simulated:
            return numpy_generator(self._seed, "dp", server_round, name).standard_normal(shape)
        size = int(np.prod(shape))
        bits = np.frombuffer(os.urandom(16 * size), np.uint64).reshape(2, size) >> np.uint64(11)
        radius, angle = (bits + 1.0) / 2.0**53
        return (np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)).reshape(shape)

    def _solved(self, epsilon: float, rounds: int) -> float:
        """The least z, to a thousandth, with which all rounds together cost ε at most.

        Raises:
            ConfigError: none does.
        """

        def within(multiplier: float) -> bool:
            accountant = self._new_accountant()
            accountant.compose(self._event_of(multiplier), rounds)
            return self._epsilon(accountant) <= epsilon

        high = 1.0
        while not within(high):
            high *= 2
            if high > _LARGEST_NOISE:
                raise ConfigError(
                    f"target-epsilon={epsilon:g}: no noise brings {rounds} rounds there at "
                    f"delta={self._accounting.target_delta:g}; raise either"
                )
        low = high / 2 if high > 1 else 0.0
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if within(middle) else (middle, high)
        return high

    def _event_of(self, multiplier: float) -> GaussianPrivacyEvent:
        return GaussianPrivacyEvent(multiplier / 2, self._cohort, self._population)

    def _epsilon(self, accountant: RdpAccountant) -> float:
        return accountant.get_privacy_spent().epsilon

    def _new_accountant(self) -> RdpAccountant:
        try:
            return RdpAccountant(self._accounting)
        except ImportError:
            raise ConfigError(
                "dp=central needs an accountant: install mops-fl[dp] where the server runs"
            ) from None

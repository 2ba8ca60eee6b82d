"""Membership of a row from a client's update: by a crafted gate, and from an honest round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.leakage.crafted_gate import Probe
from experiments.leakage.merit import Merit, merit
from experiments.leakage.victim import Victim, flat
from mops_fl.data import Tokenised
from mops_fl.seeding import numpy_generator
from mops_fl.training.local import draw_order
from mops_fl.wire.records import Tensors, difference

Seen = Callable[[Tensors, Tensors], Tensors]
"""From what the server sent and the client's update to what the attacker sees of it."""


Craft = Callable[[Tensors, np.ndarray, np.ndarray], Probe]
"""From what an honest server sends and gate inputs of targets and of other rows to a probe."""


@dataclass(frozen=True)
class Answer:
    """One client's answer to a crafted gate that asks about several rows."""

    probe: Probe
    inside: np.ndarray
    """Whether each target is among the client's rows [targets]."""
    update: Tensors
    gate: tuple[float, ...]
    """The mean gate weights over what was trained on, which `aggregation=gate-weighted` tells."""


@dataclass(frozen=True)
class Game:
    """Several clients, each asked about rows of which half are its own."""

    clients: int
    targets: int
    held: int
    """Rows of a client."""
    steps: tuple[int, ...]
    """Local steps of a round; with each number of them all clients are asked."""


def asked(
    victim: Victim, craft: Craft, game: Game, rows: Sequence[Tokenised], public: np.ndarray
) -> dict[int, list[Answer]]:
    """Play it.

    Args:
        victim: the clients' model.
        craft: makes what the server sends.
        game: its sizes.
        rows: of which clients and targets are drawn.
        public: gate inputs of other rows.

    Returns:
        Every client's answer, by local steps.
    """
    found: dict[int, list[Answer]] = {steps: [] for steps in game.steps}
    for client in range(game.clients):
        draw = numpy_generator(victim.config.seed, "asked", client)
        drawn = draw.choice(len(rows), game.targets + game.held, replace=False)
        targets = [rows[index] for index in drawn[: game.targets]]
        # alternately, so that with an odd number both kinds come to be
        inside = (np.arange(game.targets) + client) % 2 == 0
        held = [row for row, own in zip(targets, inside, strict=True) if own]
        held += [rows[index] for index in drawn[game.targets :]][: game.held - len(held)]
        probe = craft(victim.start, victim.features(targets), public)
        if not probe.directions:
            gradients = [victim.gradient(probe.start, row)[probe.name] for row in targets]
            own = zip(gradients, probe.places, strict=True)
            probe = replace(probe, directions=tuple(-np.sign(of[place]) for of, place in own))
        for steps in game.steps:
            result = victim.trained(probe.start, held, steps, "asked", client)
            change = difference(result.tensors, probe.start)
            found[steps].append(Answer(probe, inside, change, result.gate))
    return found


def judged(answers: Sequence[Answer], seen: Seen, draws: int = 1) -> Merit:
    """How well it tells members: by how far each place went where its target would move it.

    Args:
        answers: of clients.
        seen: the defence.
        draws: how often it is drawn anew.
    """
    several = [answer for answer in answers for _ in range(draws)]
    scores = [own.probe.scores(seen(own.probe.start, own.update)) for own in several]
    return _split(np.concatenate(scores), np.concatenate([own.inside for own in several]))


def judged_by_gate(answers: Sequence[Answer]) -> Merit:
    """The same by the gate weights of bound experts that are told beside the update."""
    told = [np.array(answer.gate[-len(answer.inside) :]) for answer in answers]
    return _split(np.concatenate(told), np.concatenate([answer.inside for answer in answers]))


def _split(scores: np.ndarray, inside: np.ndarray) -> Merit:
    return merit(scores[inside], scores[~inside])


@dataclass(frozen=True)
class Rounds:
    """One round of several clients with disjoint rows, by an honest server that is curious."""

    start: Tensors
    updates: list[Tensors]
    trained: list[Tensors]
    held: np.ndarray
    """Whether a row is a client's [clients, rows]."""
    read: np.ndarray
    """Whether it trained on it [clients, rows]."""

    def judged(self, scores: np.ndarray) -> Merit:
        """Scores [clients, rows] of rows that were read against rows of others."""
        return merit(scores[self.read], scores[~self.held])


def honest_round(
    victim: Victim, rows: Sequence[Tokenised], *, clients: int, held: int, steps: int
) -> Rounds:
    """Every client's round; each holds rows of its own, in the order of `rows`.

    Args:
        victim: the clients' model.
        rows: of clients, and behind them of nobody.
        clients: how many.
        held: rows of each.
        steps: local steps of each.
    """
    trained = []
    own, read = np.zeros((2, clients, len(rows)), bool)
    for client in range(clients):
        first, purpose = client * held, ("honest", client)
        part = rows[first : first + held]
        trained.append(victim.trained(victim.start, part, steps, *purpose).tensors)
        own[client, first : first + held] = True
        order = draw_order(held, steps, victim.config.seed, *purpose)
        read[client, [first + index for index in order]] = True
    updates = [difference(tensors, victim.start) for tensors in trained]
    return Rounds(victim.start, updates, trained, own, read)


def gradients_of(victim: Victim, rows: Sequence[Tokenised]) -> np.ndarray:
    """Each row's own gradient at what an honest server sends [rows, numbers]."""
    found = [flat(victim.gradient(victim.start, row)) for row in rows]
    return np.stack(found).astype(np.float32)


def cosines(seen: Sequence[Tensors], gradients: np.ndarray, *, signs: bool) -> np.ndarray:
    """How alike each client's update and each row's gradient are [clients, rows].

    Args:
        seen: updates as the attacker sees them.
        gradients: of the rows.
        signs: compare with the gradients' signs, which are Adam's first step.
    """
    own = np.sign(gradients) if signs else gradients
    own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-30)
    updates = np.stack([flat(update) for update in seen]).astype(np.float32)
    updates /= np.maximum(np.linalg.norm(updates, axis=1, keepdims=True), 1e-30)
    return -updates @ own.T


def calibrated(scores: np.ndarray) -> np.ndarray:
    """Less what the same row scores on the other clients' updates: some rows look like all."""
    return scores - (scores.sum(0) - scores) / max(1, len(scores) - 1)

"""What a malicious server sends to learn whether rows are in a client's data.

The idea of PromptMIA (Nguyen et al., 2026, arXiv 2601.06641), where a crafted key has only the
target row pick a prompt of a pool, so that the prompt moves if the row is there. Here the gate
picks, and there are two things that can be had to move:

- a hidden unit. ReLU gives a unit that is off a gradient of exactly 0, so a unit that is on for the
  target alone moves if and only if the row was trained on; Adam makes the step as large as any
  other, however few rows cause it. How large the gate is does not matter.
- an expert's vectors, where the gate gives the expert to the target alone. That needs a large gate
  to leave no weight to others, and moves nothing of the gate itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mops_fl.wire.records import GATE_HIDDEN, GATE_OUTPUT, PROMPTS, Tensors

GAIN = 24.0
"""Of the logits of bound experts: a row that is not a target gives them e^-24 of its weight, and a
gradient that is far below Adam's ε."""


@dataclass(frozen=True)
class Probe:
    """What is sent, and where it is looked for the targets."""

    start: Tensors
    name: str
    """The tensor that is looked at."""
    places: tuple[slice, ...]
    """For each target the rows of it that move if the target is there."""
    directions: tuple[np.ndarray, ...] = ()
    """For each target what is looked for there; empty for what its own gradient says."""
    either_side: bool = False
    """Whether a row may move along its direction or against it."""

    def scores(self, update: Tensors) -> np.ndarray:
        """How far each place went along its direction [n]."""
        moved = update[self.name]
        found = []
        for place, direction in zip(self.places, self.directions, strict=True):
            along = (moved[place] * direction).sum(-1)
            found.append(np.abs(along).sum() if self.either_side else along.sum())
        return np.array(found)


def bound_units(
    start: Tensors, targets: np.ndarray, public: np.ndarray, *, ridge: float, units: int = 1
) -> Probe:
    """A gate whose hidden units are each on for one target, as large as the honest one.

    Args:
        start: what an honest server sends.
        targets: gate inputs of the target rows [n, d].
        public: gate inputs of rows that the attacker has [m, d].
        ridge: of the least squares that find the units.
        units: hidden units that a target gets; n times as many fit into the gate.
    """
    found = _classifiers(targets, public, ridge)
    sizes = np.linalg.norm(start[GATE_HIDDEN], axis=1)
    count = len(targets) * units
    hidden = np.zeros_like(start[GATE_HIDDEN])
    rows = np.repeat(found / np.linalg.norm(found, axis=1, keepdims=True), units, 0)
    hidden[:count] = rows * sizes[:count, None]
    places = tuple(slice(units * i, units * (i + 1)) for i in range(len(targets)))
    # a unit's gradient is a multiple of the input, and a step of Adam its sign
    lines = tuple(np.sign(targets))
    return Probe({**start, GATE_HIDDEN: hidden}, GATE_HIDDEN, places, lines, either_side=True)


def bound_experts(
    start: Tensors, targets: np.ndarray, public: np.ndarray, *, ridge: float, gain: float = GAIN
) -> Probe:
    """A gate that gives each of the last n experts to one target, and the others to all rows.

    The gate has no biases, but the mean over P¹ makes a part of its input the same for all rows, so
    that a unit can be on for every row and hold the bound experts down. They are the last ones,
    since vectors see those before them: through the vectors that are used, earlier ones would move,
    too.

    Args:
        start: what an honest server sends.
        targets: gate inputs of the target rows [n, d]; fewer than there are experts.
        public: gate inputs of rows that the attacker has [m, d].
        ridge: of the least squares that find the units.
        gain: the logits of bound experts.
    """
    count, experts = len(targets), len(start[GATE_OUTPUT])
    everything = np.vstack((targets, public))
    on = _fitted(everything, np.ones(len(everything)), ridge)
    hidden, output = np.zeros_like(start[GATE_HIDDEN]), np.zeros_like(start[GATE_OUTPUT])
    hidden[: count + 1] = np.vstack((_classifiers(targets, public, ridge), on))
    output[-count:, :count] = 2 * np.eye(count)
    output[-count:, count] = -1
    # the product counts: the norm of both together is least where they are equal
    balance = (np.linalg.norm(output) * gain / np.linalg.norm(hidden)) ** 0.5
    gate = {GATE_HIDDEN: hidden * np.float32(balance), GATE_OUTPUT: output * (gain / balance)}
    each = len(start[PROMPTS]) // experts
    first = experts - count
    places = tuple(slice(each * (first + i), each * (first + i + 1)) for i in range(count))
    return Probe({**start, **{n: v.astype(np.float32) for n, v in gate.items()}}, PROMPTS, places)


def _classifiers(targets: np.ndarray, public: np.ndarray, ridge: float) -> np.ndarray:
    """For each target w [d], with w·x about 1 on it and about -1 on all other rows [n, d]."""
    everything = np.vstack((targets, public))
    wanted = 2 * np.eye(len(targets), len(everything)) - 1
    return np.stack([_fitted(everything, one, ridge) for one in wanted])


def _fitted(inputs: np.ndarray, wanted: Sequence[float] | np.ndarray, ridge: float) -> np.ndarray:
    """Weights w [d] with which w·x is about 1 or -1 as wanted; both kinds weigh alike."""
    positive = np.asarray(wanted) > 0
    weight = np.where(positive, 1 / max(1, positive.sum()), 1 / max(1, (~positive).sum()))
    weighted = (inputs * weight[:, None]).T
    return np.linalg.solve(
        weighted @ inputs / 2 + ridge * np.eye(inputs.shape[1]), weighted @ wanted / 2
    )

"""What a client answers, as typed values: written by the client, read by the server.

Losses travel as (nll, tokens) sums a task and gate weights as sums over examples, so that adding
replies gives the global figure exactly; a mean of perplexities is not a perplexity.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from mops_fl.metrics import LARGEST_LOSS, GateSum, Tally
from mops_fl.wire.parsing import (
    LARGEST_COUNT,
    SHA256,
    Fault,
    Fields,
    MalformedError,
    parse,
    read_tensors,
    records,
    shown,
)
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    METRICS,
    PARTITION,
    Shapes,
    Tensors,
    num_bytes,
    to_array_record,
)
from mops_fl.wire.shapes import ModelSizes

LOSS, GATE_WEIGHTS = "loss", "gate"
SHARED = (LOSS, GATE_WEIGHTS)
"""Metrics that a client tells, unless its owner keeps them back."""

_VALIDATION = "validation-"
"""What the keys of validation rows begin with."""
_SLACK = 1e-3
"""By how much a sum of gate weights may miss the number of its examples, relatively."""

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Description:
    """What a client says of itself before the first round."""

    partition: int
    tasks: tuple[str, ...]
    """In expert order."""
    train: tuple[int, ...]
    """Training rows of each task."""
    test: tuple[int, ...]
    """Held-out rows of each task."""
    validation: tuple[int, ...]
    """Rows of each task that are neither trained on nor held out: what choices are made by."""
    unseen_tasks: int
    """How many tasks, the last of them, are evaluated and never trained on."""
    own_data: bool
    """Whether its rows are its own alone, not a share of what all have a copy of."""
    sizes: ModelSizes
    injection_layer: int
    """L_int: where the prefix ends."""
    model_digest: str
    tokenizer_digest: str
    data_digest: str
    skipped: Mapping[str, int]
    """Rows that could not be used, by reason."""
    cut_questions: int
    cut_answers: int
    device: str
    dtype: str
    """Type of the frozen weights and activations."""
    metrics: tuple[str, ...] = SHARED
    """Those of `SHARED` that it tells."""

    @property
    def examples(self) -> int:
        """Training rows: the client's weight in FedAvg."""
        return sum(self.train)

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """The tasks that are trained on, in expert order."""
        return self.tasks[: len(self.tasks) - self.unseen_tasks]

    @property
    def backbone(self) -> dict[str, str | int]:
        """What must be the same on all clients, by its name."""
        return {
            "model-digest": self.model_digest,
            "tokenizer-digest": self.tokenizer_digest,
            **self.sizes.named(),
            "injection-layer": self.injection_layer,
        }

    def content(self) -> RecordDict:
        """As it travels."""
        record = ConfigRecord(
            {
                PARTITION: self.partition,
                "tasks": list(self.tasks),
                "train": list(self.train),
                "test": list(self.test),
                "validation": list(self.validation),
                "unseen-tasks": self.unseen_tasks,
                "own-data": self.own_data,
                **self.backbone,
                "data-digest": self.data_digest,
                "skipped-reasons": list(self.skipped),
                "skipped-rows": list(self.skipped.values()),
                "cut-questions": self.cut_questions,
                "cut-answers": self.cut_answers,
                "device": self.device,
                "dtype": self.dtype,
                "metrics": list(self.metrics),
            }
        )
        return RecordDict({CONFIG: record})

    @classmethod
    def read(cls, content: RecordDict, num_clients: int) -> "Description":
        """As it arrived.

        Raises:
            MalformedError: it is not as `content` makes it; the client holds too few rows: none to
                train on, or none held out of a share of what is divided among all; or it is to have
                a share of common rows that are divided among fewer.
        """
        (record,) = records(content, (CONFIG, ConfigRecord))
        fields = Fields(record)
        tasks, reasons = fields.texts("tasks"), fields.texts("skipped-reasons")
        own_data = fields.truth("own-data")
        most = LARGEST_COUNT if own_data else num_clients - 1
        found = cls(
            partition=fields.whole(PARTITION, 0, most),
            tasks=tasks,
            train=fields.wholes("train", len(tasks), 0),
            test=fields.wholes("test", len(tasks), 0),
            validation=fields.wholes("validation", len(tasks), 0),
            unseen_tasks=fields.whole("unseen-tasks", 0, len(tasks)),
            own_data=own_data,
            sizes=ModelSizes(*(fields.whole(name, 1) for name in ModelSizes.names())),
            injection_layer=fields.whole("injection-layer", 0),
            model_digest=fields.text("model-digest", SHA256),
            tokenizer_digest=fields.text("tokenizer-digest", SHA256),
            data_digest=fields.text("data-digest", SHA256),
            skipped=dict(zip(reasons, fields.wholes("skipped-rows", len(reasons), 1), strict=True)),
            cut_questions=fields.whole("cut-questions", 0),
            cut_answers=fields.whole("cut-answers", 0),
            device=fields.text("device", r"[a-z]+(:\d+)?( \([\w .+/-]{1,80}\))?"),
            dtype=fields.text("dtype", r"[a-z]+\d+"),
            metrics=fields.texts("metrics"),
        )
        fields.done()
        if not found.examples:
            raise MalformedError("it has no training rows")
        if not found.own_data and not sum(found.test):
            raise MalformedError("it has no held-out rows")
        return found


@dataclass(frozen=True)
class Pretrained:
    """All tensors before round 1."""

    tensors: Tensors

    def content(self) -> RecordDict:
        """As it travels."""
        return RecordDict({ARRAYS: to_array_record(self.tensors)})

    @classmethod
    def read(cls, content: RecordDict, shapes: Shapes) -> "Pretrained":
        """As it arrived.

        Raises:
            MalformedError: it is not as `content` makes it, or tensors differ from `shapes`.
        """
        (arrays,) = records(content, (ARRAYS, ArrayRecord))
        return cls(read_tensors(arrays, shapes))


@dataclass(frozen=True)
class TrainingAsked:
    """What the reply to a train message must fit."""

    shapes: Shapes
    """Of the tensors that are averaged."""
    examples: int
    """Training rows that the client described."""
    steps: int
    tokens: int
    """Answer tokens of all steps at most."""
    experts: int = 0
    """E, whose mean gate weights are asked for; 0 for none."""
    loss: bool = True
    """Whether the client tells its losses."""


@dataclass(frozen=True)
class Trained:
    """What a client's local steps gave."""

    tensors: Tensors
    examples: int
    steps: int
    tally: Tally
    """Losses of the batches, each before its step."""
    seconds: float
    gate: tuple[float, ...] = ()
    """The mean gate weight of each expert over the steps; empty where it was not asked for."""
    bytes: int = 0
    """Of the tensors, as they travelled."""

    def content(self) -> RecordDict:
        """As it travels."""
        metrics = MetricRecord({"num-examples": self.examples, "steps": self.steps})
        metrics["seconds"] = self.seconds
        metrics["nll"], metrics["tokens"] = self.tally.nll, self.tally.tokens
        if self.gate:
            metrics["gate"] = list(self.gate)
        return RecordDict({ARRAYS: to_array_record(self.tensors), METRICS: metrics})

    @classmethod
    def read(cls, content: RecordDict, asked: TrainingAsked) -> "Trained":
        """As it arrived.

        Raises:
            MalformedError: it is not as `content` makes it, or does not fit what was asked.
        """
        arrays, metrics = records(content, (ARRAYS, ArrayRecord), (METRICS, MetricRecord))
        fields = Fields(metrics)
        found = cls(
            tensors=read_tensors(arrays, asked.shapes),
            examples=fields.whole("num-examples", asked.examples, asked.examples),
            steps=fields.whole("steps", asked.steps, asked.steps),
            tally=_tally(fields, "nll", "tokens", asked.tokens if asked.loss else 0),
            seconds=fields.number("seconds", 0.0, 1e9),
            gate=fields.numbers("gate", asked.experts, 0.0, 1.0) if asked.experts else (),
            bytes=num_bytes(arrays),
        )
        fields.done()
        if found.gate and abs(sum(found.gate) - 1) > _SLACK:
            raise MalformedError(f"mean gate weights sum to {sum(found.gate):.6g} instead of 1")
        return found


@dataclass(frozen=True)
class EvaluationAsked:
    """What the reply to an evaluate message must fit."""

    rows: Mapping[str, int]
    """Held-out rows of each task, those that are evaluated at most."""
    validation: Mapping[str, int]
    """The same of validation rows; empty where they are not asked for."""
    tokens_a_row: int
    """Answer tokens of a row at most."""
    experts: int
    """Experts of the gate; 0 without one."""
    known: Mapping[str, int] | None
    """Answer tokens of each task in the client's first evaluation, where there was one."""
    known_validation: Mapping[str, int] | None = None
    """The same of validation rows."""


@dataclass(frozen=True)
class Evaluated:
    """Sums over a client's held-out rows, and over its validation rows."""

    tallies: Mapping[str, Tally]
    gate: Mapping[str, GateSum]
    """Over held-out rows; empty without a gate."""
    validation: Mapping[str, Tally]

    def content(self) -> RecordDict:
        """As it travels."""
        metrics = MetricRecord()
        for part, tallies in (("", self.tallies), (_VALIDATION, self.validation)):
            for task, tally in tallies.items():
                metrics[f"{part}nll/{task}"] = float(tally.nll)
                metrics[f"{part}tokens/{task}"] = int(tally.tokens)
        for task, gate in self.gate.items():
            metrics[f"gate/{task}"] = [float(weight) for weight in gate.weights]
            metrics[f"gate-load/{task}"] = [int(count) for count in gate.load]
            metrics[f"gate-entropy/{task}"] = float(gate.entropy)
            metrics[f"gate-examples/{task}"] = int(gate.examples)
        return RecordDict({METRICS: metrics})

    @classmethod
    def read(cls, content: RecordDict, asked: EvaluationAsked) -> "Evaluated":
        """As it arrived.

        Raises:
            MalformedError: it is not as `content` makes it, or does not fit what was asked.
        """
        (metrics,) = records(content, (METRICS, MetricRecord))
        fields, width = Fields(metrics), asked.tokens_a_row
        tallies = _tallies(fields, "", asked.rows, width, asked.known)
        gate = {
            task: _gate(fields, task, asked.experts, asked.rows[task])
            for task in tallies
            if asked.experts
        }
        known = asked.known_validation
        validation = _tallies(fields, _VALIDATION, asked.validation, width, known)
        fields.done()
        return cls(tallies, gate, validation)


def sift(
    asked: Mapping[str, Key],
    replies: Iterable[Message],
    read: Callable[[Key, RecordDict], Value],
) -> tuple[dict[Key, Value], dict[Key, str]]:
    """Valid replies, and the reasons why the others are not used.

    A reply belongs to the message that it answers, whoever sent it: for a node that is gone,
    Flower answers itself.

    Args:
        asked: message id to who was asked.
        replies: in any order; one that answers no message of these is passed over.
        read: what one of them says, raising `MalformedError`.

    Returns:
        Both by who was asked, in the order of `asked`.
    """
    first: dict[str, Message] = {}
    for reply in replies:
        first.setdefault(reply.metadata.reply_to_message_id, reply)
    valid: dict[Key, Value] = {}
    failures: dict[Key, str] = {}
    for message_id, who in asked.items():
        if message_id not in first:
            failures[who] = "no reply"
            continue
        found = parse(first[message_id], lambda content, who=who: read(who, content))  # type: ignore[misc]
        if isinstance(found, Fault):
            failures[who] = found.reason
        else:
            valid[who] = found
    return valid, failures


def _tallies(
    fields: Fields,
    part: str,
    described: Mapping[str, int],
    tokens_a_row: int,
    known: Mapping[str, int] | None,
) -> dict[str, Tally]:
    """Of each task in one part of a client's rows, no other than it described and had before."""
    tasks = fields.after(f"{part}nll/")
    strange = sorted(task for task in tasks if not described.get(task))
    if strange or (not tasks and any(described.values())):
        raise MalformedError(f"losses of {shown(strange)}, of which it described no rows")
    tallies = {
        task: _tally(
            *(fields, f"{part}nll/{task}", f"{part}tokens/{task}", described[task] * tokens_a_row)
        )
        for task in tasks
    }
    tokens = {task: tally.tokens for task, tally in tallies.items()}
    if known is not None and tokens != known:
        raise MalformedError(
            f"answer tokens {shown(tokens)} instead of {shown(dict(known))} as before"
        )
    return tallies


def _tally(fields: Fields, nll: str, tokens: str, most: int) -> Tally:
    count = fields.whole(tokens, min(1, most), most)
    return Tally(fields.number(nll, 0.0, LARGEST_LOSS * count), count)


def _gate(fields: Fields, task: str, experts: int, rows: int) -> GateSum:
    examples = fields.whole(f"gate-examples/{task}", 1, rows)
    weights = fields.numbers(f"gate/{task}", experts, 0.0, (1 + _SLACK) * examples)
    if abs(sum(weights) - examples) > _SLACK * examples:
        raise MalformedError(f"gate weights of {task!r} sum to {sum(weights):g}, not to {examples}")
    load = fields.wholes(f"gate-load/{task}", experts, 0, examples)
    if sum(load) != examples:
        raise MalformedError(f"gate loads of {task!r} sum to {sum(load)}, not to {examples}")
    most = (math.log(experts) + _SLACK) * examples
    entropy = fields.number(f"gate-entropy/{task}", 0.0, most)
    return GateSum(weights, load, entropy, examples)

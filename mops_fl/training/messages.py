"""From a message to a client's work, and from its result to the reply.

The ClientApp and the cohort engine differ in how they compute; what they read and what they send
is this module's. A client's own gate (`gate-sync=local`) is kept in its context and beside a run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file, save_file

from mops_fl.config import Config
from mops_fl.files import replacing
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    FROZEN,
    GATE,
    METRICS,
    PARTITION,
    ROUND,
    SECONDS,
    STEPS,
    Tensors,
    from_array_record,
    put_gate_sums,
    put_tallies,
    to_array_record,
    whole,
)

if TYPE_CHECKING:
    from mops_fl.training.evaluation import Evaluation
    from mops_fl.training.local import LocalResult
    from mops_fl.training.trainer import Trainer

_LOCAL_GATE = "local-gate"


@dataclass(frozen=True)
class Work:
    """What a train or evaluate message asks of a client."""

    partition: int
    server_round: int
    tensors: Tensors
    """All trainable tensors of the method, the gate included."""
    frozen: Tensors
    """P¹, where there is one."""


def partition_of(context: Context) -> int:
    """The client that a context belongs to."""
    return cast(int, context.node_config[PARTITION])


def training_work(message: Message, context: Context, config: Config) -> Work:
    """What a train message asks for: a round's steps from the gate of the round before it."""
    return _work(message, context, config, 0)


def evaluation_work(message: Message, context: Context, config: Config) -> Work:
    """What an evaluate message asks for: with the gate that the round itself gave."""
    return _work(message, context, config, 1)


def _work(message: Message, context: Context, config: Config, rounds_trained: int) -> Work:
    records = message.content.array_records
    current = whole(message.content.config_records[CONFIG], ROUND)
    frozen = from_array_record(records[FROZEN]) if FROZEN in records else Tensors()
    gate: Tensors = {name: frozen.pop(name) for name in GATE if name in frozen}
    if gate and config.prompts.gate_sync == "local":
        gate |= _kept_gate(context, config, current + rounds_trained)
    tensors = {**from_array_record(records[ARRAYS]), **gate}
    return Work(partition_of(context), current, tensors, frozen)


def described(message: Message, context: Context, trainer: "Trainer") -> Message:
    """Which partition this node is, what it holds, and on which model."""
    partition = partition_of(context)
    holding, facts = trainer.holding(partition), trainer.model_facts
    tokenised = trainer.tokenised
    tasks = list(trainer.corpus.tasks)
    config = ConfigRecord(
        {
            PARTITION: partition,
            "tasks": tasks,
            "train": [holding.train[task] for task in tasks],
            "test": [holding.test[task] for task in tasks],
            "hidden-size": facts.hidden_size,
            "num-layers": facts.num_layers,
            "model-digest": facts.digest,
            "data-digest": trainer.corpus.digest,
            "cut-questions": tokenised.cut_questions,
            "cut-answers": tokenised.cut_answers,
            "skipped": [f"{count} rows: {why}" for why, count in trainer.corpus.skipped.items()],
            "device": str(trainer.backbone.device),
        }
    )
    return Message(RecordDict({CONFIG: config}), reply_to=message)


def pretrained(message: Message, trainer: "Trainer") -> Message:
    """What is trained before round 1, on the examples that this process sees."""
    tensors = trainer.pretrain(from_array_record(message.content.array_records[ARRAYS]))
    return Message(RecordDict({ARRAYS: to_array_record(tensors)}), reply_to=message)


def trained(message: Message, context: Context, config: Config, result: "LocalResult") -> Message:
    """The tensors that were received, after local steps; others that were trained are kept."""
    received = message.content.array_records[ARRAYS]
    kept = {name: value for name, value in result.tensors.items() if name not in received}
    if kept:
        current = whole(message.content.config_records[CONFIG], ROUND)
        _keep_gate(kept, context, config, current)
    metrics = MetricRecord(
        {EXAMPLES: result.examples, STEPS: result.steps, SECONDS: result.seconds}
    )
    put_tallies(metrics, {"all": result.tally})
    sent = {name: value for name, value in result.tensors.items() if name in received}
    return Message(RecordDict({ARRAYS: to_array_record(sent), METRICS: metrics}), reply_to=message)


def evaluated(message: Message, result: "Evaluation") -> Message:
    """Sums of losses and gate weights over the held-out examples."""
    metrics = MetricRecord()
    put_tallies(metrics, result.tallies)
    put_gate_sums(metrics, result.gate)
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


def _gate_folder(context: Context, config: Config) -> Path:
    return Path(config.run_dir) / "gates" / f"{partition_of(context):04d}"


def _keep_gate(gate: Tensors, context: Context, config: Config, current: int) -> None:
    """Keep this client's gate for its next round, in its context and beside a simulation's run.

    A context ends with its run; the file lets a resumed simulation begin with the same gates.
    """
    context.state[_LOCAL_GATE] = to_array_record(gate)
    if config.run_dir and Path(config.run_dir).is_dir():
        with replacing(_gate_folder(context, config) / f"round-{current:03d}.safetensors") as file:
            save_file({name: np.ascontiguousarray(value) for name, value in gate.items()}, file)


def _kept_gate(context: Context, config: Config, before: int) -> Tensors:
    """The gate that this client last trained before a round; empty where it has not yet."""
    kept = context.state.get(_LOCAL_GATE)
    if isinstance(kept, ArrayRecord):
        return from_array_record(kept)
    files = sorted(_gate_folder(context, config).glob("round-*.safetensors"))
    earlier = [file for file in files if int(file.stem.removeprefix("round-")) < before]
    return load_file(earlier[-1]) if earlier else {}

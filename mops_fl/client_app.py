"""The ClientApp: the same on a virtual client of a simulation and on an edge machine.

A node's own facts come from the node: ``--node-config`` may name its model, its device and its
private data (`data-path`, `dataset`), which is then this client's alone.
"""

from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file, save_file

from mops_fl.config import Config, Scalar
from mops_fl.files import replacing
from mops_fl.records import (
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
from mops_fl.training import Trainer

_NODE_KEYS = ("model", "device", "dataset", "data-path")
_LOCAL_GATE = "local-gate"

app = ClientApp()


@lru_cache(maxsize=1)
def _resident(flat: tuple[tuple[str, Scalar], ...], own_data: bool) -> Trainer:
    """The trainer of this process; it outlives messages where the process does."""
    return Trainer(Config.from_flat(dict(flat)), own_data=own_data)


def _trainer(context: Context) -> Trainer:
    own = {key: context.node_config[key] for key in _NODE_KEYS if key in context.node_config}
    flat = {**context.run_config, **own}
    return _resident(tuple(sorted(flat.items())), "data-path" in own)


def _partition(context: Context) -> int:
    return cast(int, context.node_config[PARTITION])


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say which partition this node is, what it holds, and on which model."""
    trainer, partition = _trainer(context), _partition(context)
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


@app.query("pretrain")
def pretrain(message: Message, context: Context) -> Message:
    """Train what is trained before round 1, on the examples that this process sees."""
    tensors = _trainer(context).pretrain(from_array_record(message.content.array_records[ARRAYS]))
    return Message(RecordDict({ARRAYS: to_array_record(tensors)}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take the round's local steps from the tensors received."""
    trainer, partition = _trainer(context), _partition(context)
    current = whole(message.content.config_records[CONFIG], ROUND)
    tensors, frozen = _tensors(message, context, trainer.config, current)
    result = trainer.train(partition, current, tensors, frozen)
    received = message.content.array_records[ARRAYS]
    kept = {name: value for name, value in result.tensors.items() if name not in received}
    if kept:
        _keep_gate(kept, context, trainer.config, current)
    metrics = MetricRecord(
        {EXAMPLES: result.examples, STEPS: result.steps, SECONDS: result.seconds}
    )
    by_task = {"all": result.tally}
    put_tallies(metrics, by_task)
    sent = {name: value for name, value in result.tensors.items() if name in received}
    return Message(RecordDict({ARRAYS: to_array_record(sent), METRICS: metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Sum losses and gate weights over the held-out examples."""
    trainer, partition = _trainer(context), _partition(context)
    current = whole(message.content.config_records[CONFIG], ROUND)
    tensors, frozen = _tensors(message, context, trainer.config, current + 1)
    result = trainer.evaluate(partition, tensors, frozen)
    metrics = MetricRecord()
    put_tallies(metrics, result.tallies)
    put_gate_sums(metrics, result.gate)
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


def _tensors(
    message: Message, context: Context, config: Config, before: int
) -> tuple[Tensors, Tensors]:
    """All trainable tensors of the method, and the frozen ones."""
    frozen = (
        from_array_record(message.content.array_records[FROZEN])
        if FROZEN in message.content
        else {}
    )
    gate: Tensors = {name: frozen.pop(name) for name in GATE if name in frozen}
    if gate and config.prompts.gate_sync == "local":
        gate |= _kept_gate(context, config, before)
    return {**from_array_record(message.content.array_records[ARRAYS]), **gate}, frozen


def _gate_folder(context: Context, config: Config) -> Path:
    return Path(config.run_dir) / "gates" / f"{_partition(context):04d}"


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

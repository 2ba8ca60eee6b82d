"""Tasks of virtual clients on the tiny LLaMA, as the cohort grid makes them."""

import numpy as np
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from trainables import initial_tensors

from mops_fl.config import Config
from mops_fl.engine.worker import Task
from mops_fl.wire.records import (
    ARRAYS,
    CONFIG,
    FROZEN,
    PARTITION,
    from_array_record,
    to_array_record,
)
from mops_fl.wire.requests import Assignment

HIDDEN = 32
RUN = "0" * 32
ASSIGNMENT = Assignment(RUN, 1, 0, 2)
FLAT = {
    "experts": 3,
    "prompts-per-expert": 2,
    "gate-hidden": 8,
    "local-steps": 4,
    "pretrain-prompt-steps": 0,
    "learning-rate": 0.01,
    "num-samples": 120,
    "num-clients": 6,
    "active-clients": 4,
    "alpha": 0.3,
    "device": "cpu",
    "dtype": "float32",
}


def instruction(content: RecordDict, kind: str, partition: int) -> Message:
    """A message as the ServerApp makes it, outside of a Flower task."""
    metadata = Metadata(1, f"message-{partition}", 1, 10 + partition, "", "", 0.0, 1e10, kind)
    return make_message(metadata, content)


def configured(tiny_llama, **changes) -> Config:
    flat = {**FLAT, "model": str(tiny_llama)}
    return Config.from_flat(flat | {k.replace("_", "-"): v for k, v in changes.items()})


def values(config: Config, seed: int = 0, *, gated: bool = True):
    return initial_tensors(config.prompts, HIDDEN, seed, gated)


def task(
    partition: int,
    tensors,
    kind: str = MessageType.TRAIN,
    frozen=None,
    state=None,
    assignment=ASSIGNMENT,
) -> Task:
    content = RecordDict(
        {ARRAYS: to_array_record(tensors), CONFIG: assignment.record()},
    )
    if frozen:
        content[FROZEN] = to_array_record(frozen)
    context = Context(1, 10 + partition, {PARTITION: partition}, state or RecordDict(), {})
    return Task(instruction(content, kind, partition), context)


def tensors_of(answer):
    return from_array_record(answer.reply.content.array_records[ARRAYS])


def assert_close(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=2e-5)

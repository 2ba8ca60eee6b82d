"""Valid messages of every kind, for tests to change."""

import numpy as np
from flwr.app import Error, Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message
from trainables import sizes

from mops_fl.metrics import GateSum, Tally
from mops_fl.wire.records import GATE_HIDDEN, GATE_OUTPUT, PRETRAINED, PROMPTS
from mops_fl.wire.replies import (
    Description,
    Evaluated,
    EvaluationAsked,
    Pretrained,
    Trained,
    TrainingAsked,
)
from mops_fl.wire.requests import Assignment, PretrainRequest

SHAPES = {PROMPTS: (4, 3), GATE_HIDDEN: (2, 3), GATE_OUTPUT: (2, 2)}
ALL_SHAPES = {**SHAPES, PRETRAINED: (4, 3)}
CLIENTS = 10
TRAINING = TrainingAsked(SHAPES, examples=30, steps=5, tokens=500)
EVALUATION = EvaluationAsked({"a": 3, "b": 2}, {"a": 1}, tokens_a_row=50, experts=2, known=None)
RUN = "0123456789abcdef" * 2


def tensors(shapes=SHAPES, seed=0):
    generator = np.random.default_rng(seed)
    return {n: generator.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def description(**changes) -> Description:
    facts = {
        "partition": 3,
        "tasks": ("a", "b", "all"),
        "train": (20, 10, 0),
        "test": (2, 1, 0),
        "validation": (1, 0, 0),
        "unseen_tasks": 1,
        "own_data": False,
        "sizes": sizes(3),
        "injection_layer": 1,
        "model_digest": "1" * 64,
        "tokenizer_digest": "2" * 64,
        "data_digest": "3" * 64,
        "skipped": {"empty answer": 2},
        "cut_questions": 1,
        "cut_answers": 0,
        "device": "cpu",
        "dtype": "float32",
    }
    return Description(**{**facts, **changes})


def trained(**changes) -> Trained:
    facts = {"examples": 30, "steps": 5, "tally": Tally(12.5, 40), "seconds": 0.25}
    return Trained(**{"tensors": tensors(), **facts, **changes})


def evaluated() -> Evaluated:
    tallies = {"a": Tally(3.5, 7), "b": Tally(0.0, 1)}
    gate = {"a": GateSum((1.25, 1.75), (1, 2), 0.9, 3), "b": GateSum((0.0, 1.0), (0, 1), 0.0, 1)}
    return Evaluated(tallies, gate, {"a": Tally(1.5, 2)})


def round_content(frozen=(GATE_HIDDEN, GATE_OUTPUT, PRETRAINED)) -> RecordDict:
    from mops_fl.wire.records import ARRAYS, CONFIG, FROZEN, to_array_record

    values = tensors(ALL_SHAPES)
    content = RecordDict({CONFIG: Assignment(RUN, 7, 5, 3).record()})
    content[ARRAYS] = to_array_record({n: v for n, v in values.items() if n not in frozen})
    if frozen:
        content[FROZEN] = to_array_record({n: values[n] for n in frozen})
    return content


def contents() -> dict[str, RecordDict]:
    """A valid content of each kind, by name."""
    return {
        "describe": description().content(),
        "pretrain": Pretrained(tensors(ALL_SHAPES)).content(),
        "train": trained().content(),
        "evaluate": evaluated().content(),
        "ask to pretrain": PretrainRequest(tensors(), ("a", "b")).content(),
        "ask for a round": round_content(),
    }


def message(
    content: RecordDict | None, error: Error | None = None, answers: str = "m", node: int = 5
) -> Message:
    metadata = Metadata(1, "reply", node, 1, answers, "", 0.0, 1e10, MessageType.TRAIN)
    return make_message(metadata, content, error)

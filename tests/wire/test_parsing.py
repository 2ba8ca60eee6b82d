"""Whatever arrives is a typed value or a fault with a reason; nothing raises."""

import dataclasses
import math
import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from samples import (
    ALL_SHAPES,
    CLIENTS,
    EVALUATION,
    RUN,
    SHAPES,
    TRAINING,
    contents,
    description,
    evaluated,
    message,
    round_content,
    tensors,
    trained,
)
from trainables import sizes

from mops_fl.metrics import Tally
from mops_fl.wire.parsing import Fault, parse
from mops_fl.wire.records import ARRAYS, CONFIG, FROZEN, METRICS, PROMPTS, to_array_record
from mops_fl.wire.replies import Description, Evaluated, Pretrained, Trained
from mops_fl.wire.requests import Assignment, PretrainRequest, RoundRequest

READERS = {
    "describe": lambda content: Description.read(content, CLIENTS),
    "pretrain": lambda content: Pretrained.read(content, ALL_SHAPES),
    "train": lambda content: Trained.read(content, TRAINING),
    "evaluate": lambda content: Evaluated.read(content, EVALUATION),
    "ask to pretrain": lambda content: PretrainRequest.read(content, SHAPES),
    "ask for a round": lambda content: RoundRequest.read(content, ALL_SHAPES, [PROMPTS]),
}
KINDS = st.sampled_from(sorted(READERS))
MANY = settings(
    max_examples=400, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)


def reading(kind: str, content: RecordDict):
    return parse(message(content), READERS[kind])


def same(one, other) -> bool:
    """Equal in all fields, tensors to the bit."""
    if isinstance(one, dict) or (hasattr(one, "keys") and hasattr(other, "keys")):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)
        )
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("kind", sorted(READERS))
def test_what_is_written_is_read_again_over_the_wire(kind):
    content = contents()[kind]
    objects = get_all_nested_objects(content)
    deflated = {name: each.deflate() for name, each in objects.items()}
    arrived = inflate_object_from_contents(content.object_id, deflated)
    here, there = reading(kind, content), reading(kind, arrived)
    assert not isinstance(there, Fault), there
    assert same(here, there)


def test_values_are_those_that_were_written():
    assert reading("describe", description().content()) == description()
    found = reading("train", trained().content())
    assert same(found, dataclasses.replace(trained(), bytes=found.bytes))
    assert found.bytes >= sum(value.nbytes for value in tensors().values())
    assert reading("evaluate", evaluated().content()) == evaluated()
    found = reading("ask for a round", round_content())
    assert found.assignment == Assignment(RUN, 7, 5, 3)
    assert same({**found.tensors, **found.frozen}, tensors(ALL_SHAPES))
    assert reading("ask for a round", round_content(frozen=())).reason.startswith("tensors")


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ((0.25, 0.75), ""),
        ((), "no gate"),
        ((0.2, 0.3, 0.5), "instead of a list of 2"),
        ((0.5, 0.6), "sum to 1.1 instead of 1"),
        ((-0.5, 1.5), "gate=-0.5 instead of a number from 0 to 1"),
        ((math.nan, 1.0), "gate=nan"),
    ],
)
def test_a_gate_travels_with_what_was_trained_where_it_is_asked_for(gate, reason):
    content, asked = trained(gate=gate).content(), dataclasses.replace(TRAINING, experts=2)
    found = parse(message(content), lambda record: Trained.read(record, asked))
    assert reason in found.reason if reason else found.gate == gate
    if gate:
        assert reading("train", content).reason.startswith("unknown keys ['gate']")


SCALARS = (
    st.integers(0, 60)
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([0, 1, -1, 10**15, 2**62]),
    st.floats(0, 100) | st.floats() | st.sampled_from([math.nan, math.inf, -0.0, 1e308]),
    st.text(max_size=20),
)
WORDS = st.text(max_size=12) | st.sampled_from(
    (
        *(ARRAYS, CONFIG, FROZEN, METRICS, PROMPTS, "num-examples", "steps", "nll", "nll/a"),
        *("tokens/a", "gate/a", "gate-examples/a", "partition-id", "tasks", "train", "run"),
    )
)
NUMBERS = st.one_of(*SCALARS[:2], *(st.lists(each, max_size=4) for each in SCALARS[:2]))
VALUES = st.one_of(
    NUMBERS, SCALARS[2], st.booleans(), st.binary(max_size=9), st.lists(SCALARS[2], max_size=4)
)


@st.composite
def arrays(draw) -> Array:
    """Arrays honest and not: other types, shapes, garbage and text for bytes."""
    shape = draw(st.sampled_from([(4, 3), (2, 3), (2, 2), (3, 4), (12,), (), (0,), (10**6, 10**6)]))
    if draw(st.booleans()) and math.prod(shape) < 100:
        dtype = draw(st.sampled_from(["f4", "f8", "c16", "i8", "f2", "?", "U3"]))
        value = draw(st.sampled_from([0, 1, 3e38] if dtype in ("f4", "f8", "c16") else [0, 1]))
        values = np.full(shape, value, "f8").astype(dtype)
        array = Array(values)
    else:
        array = Array("float32", shape, "numpy.ndarray", draw(st.binary(max_size=200)))
    if draw(st.booleans()):
        field = draw(st.sampled_from(["dtype", "stype", "shape", "data"]))
        value = draw(st.sampled_from(["", "float32", "torch", (4, 3), (-1,), b"", b"\x93NUMPY", 7]))
        array.__dict__[field] = value
    return array


def filled(values: dict[str, Array]) -> ArrayRecord:
    """A record whose arrays are not looked at, as it comes off the wire."""
    record = ArrayRecord()
    for name, array in values.items():
        record[name] = array
    return record


RECORDS = st.one_of(
    st.dictionaries(WORDS, NUMBERS, max_size=8).map(MetricRecord),
    st.dictionaries(WORDS, VALUES, max_size=8).map(ConfigRecord),
    st.dictionaries(WORDS | st.sampled_from(sorted(ALL_SHAPES)), arrays(), max_size=5).map(filled),
)


@MANY
@given(KINDS, st.dictionaries(WORDS, RECORDS, max_size=4))
def test_random_records_are_refused_and_nothing_raises(kind, content):
    found = reading(kind, RecordDict(content))
    assert isinstance(found, Fault)
    assert found.reason
    assert len(found.reason) < 1000
    event(kind)


def fields_of(content: RecordDict) -> list[tuple[str, str]]:
    return [(name, key) for name, record in content.items() for key in record]


@MANY
@given(KINDS, st.randoms(use_true_random=False), st.data())
def test_a_mutated_message_is_refused_or_changes_nothing_but_itself(kind, chance, data):
    """One field of a valid message is changed, lost, renamed or added, or a whole record is."""
    content = contents()[kind]
    before = reading(kind, content)
    name, key = chance.choice(fields_of(content))
    change = chance.choice(["value", "lose", "rename", "add", "lose record", "rename record"])
    record = content[name]
    if change == "value":
        wanted = {MetricRecord: NUMBERS, ConfigRecord: VALUES, ArrayRecord: arrays()}
        record[key] = data.draw(wanted[type(record)])
    elif change in ("lose", "rename"):
        value = record.pop(key)
        if change == "rename":
            record[data.draw(WORDS)] = value
    elif change == "add":
        record[data.draw(WORDS.filter(lambda word: word not in record))] = record[key]
    else:
        del content[name]
        if change == "rename record":
            content[data.draw(WORDS)] = record
    after = reading(kind, content)
    if isinstance(after, Fault):
        event(f"{kind}: refused")
        assert after.reason
        return
    event(f"{kind}: read")
    assert type(after) is type(before)
    # what is read is what stands there now, and every other field is as it was
    changed = [
        f.name
        for f in dataclasses.fields(after)
        if not same(getattr(before, f.name), getattr(after, f.name))
    ]
    assert change in ("value", "rename", "rename record", "lose") or not changed
    assert len(set(changed) - {"bytes"}) <= 1


def test_bits_of_a_tensor_may_be_anything_but_the_rest_of_the_message_stays():
    generator = random.Random(0)
    read, refused = 0, 0
    for _ in range(2000):
        content = trained().content()
        array = content[ARRAYS][PROMPTS]
        data = bytearray(array.data)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        array.__dict__["data"] = bytes(data)
        found = reading("train", content)
        if isinstance(found, Fault):
            refused += 1
            continue
        read += 1
        assert found.tensors[PROMPTS].shape == SHAPES[PROMPTS]
        assert np.isfinite(found.tensors[PROMPTS]).all()
        for name in SHAPES.keys() - {PROMPTS}:
            assert (found.tensors[name] == tensors()[name]).all()
    assert read > 100
    assert refused > 100


def metrics(**changes):
    """A train reply with other metrics."""
    content = trained().content()
    for key, value in changes.items():
        content[METRICS][key.replace("_", "-")] = value
    return content


def without(key: str) -> RecordDict:
    content = trained().content()
    del content[METRICS][key]
    return content


def with_prompts(array: Array) -> RecordDict:
    content = trained().content()
    content[ARRAYS][PROMPTS] = array
    return content


def doubled() -> RecordDict:
    content = RecordDict({"a": MetricRecord({"num-examples": 10**15})})
    for name, record in trained().content().items():
        content[name] = record
    return content


def array_of(values) -> Array:
    return Array(np.asarray(values))


ZEROS = np.zeros(SHAPES[PROMPTS], np.float32)
SAVED = array_of(ZEROS).data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (without("tokens"), "no tokens"),
        (without("seconds"), "no seconds"),
        (without("steps"), "no steps"),
        (metrics(nll=[1.0]), "nll=[1.0] instead of a number"),
        (metrics(nll=-1e9), "nll=-1000000000.0 instead of a number from 0 to 400000"),
        (metrics(nll=math.nan), "nll=nan instead of a number"),
        (metrics(tokens=10**12), "tokens=1000000000000 instead of a whole number from 1 to 500"),
        (metrics(num_examples=10**15), "num-examples=1000000000000000 instead of 30"),
        (metrics(num_examples=30.0), "num-examples=30.0 instead of 30"),
        (metrics(steps=4), "steps=4 instead of 5"),
        (metrics(more=1), "unknown keys ['more']"),
        (doubled(), "records {'a': 'MetricRecord'"),
        (RecordDict(), "records {} instead of"),
        (with_prompts(Array("float32", (4, 3), "numpy.ndarray", b"garbage")), "its bytes are not"),
        (with_prompts(Array("float32", (4, 3), "text", SAVED)), "prompts: text of float32"),
        (with_prompts(Array("float32", (4, 3), "numpy.ndarray", SAVED[:-1])), "47 bytes instead"),
        (with_prompts(Array("float32", (4, 3), "numpy.ndarray", SAVED + b"0")), "49 bytes instead"),
        (with_prompts(array_of(ZEROS.astype("c16"))), "of complex128"),
        (with_prompts(array_of(np.full(SHAPES[PROMPTS], 1e308))), "of float64"),
        (with_prompts(array_of(ZEROS.T)), "shape (3, 4) instead of float32 of shape (4, 3)"),
        (with_prompts(array_of(np.full_like(ZEROS, np.inf))), "prompts has NaN or infinite values"),
        (with_prompts(array_of(np.full_like(ZEROS, 3e38))), "prompts has values up to 3e+38"),
        (
            with_prompts(Array("float32", (4, 3), "numpy.ndarray", array_of(ZEROS[:2]).data)),
            "its bytes are",
        ),
    ],
)
def test_a_train_reply_that_is_odd_is_refused_with_the_reason(content, reason):
    found = reading("train", content)
    assert isinstance(found, Fault)
    assert reason in found.reason


def evaluation(changes=(), lost=()):
    content = evaluated().content()
    for key, value in dict(changes).items():
        content[METRICS][key] = value
    for key in lost:
        del content[METRICS][key]
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (evaluation(lost=["tokens/a"]), "no tokens/a"),
        (evaluation(lost=["gate-examples/a"]), "no gate-examples/a"),
        (evaluation(lost=["gate/b"]), "no gate/b"),
        (evaluation({"gate/a": [1.0, 1.0, 1.0]}), "gate/a=[1.0, 1.0, 1.0] instead of a list of 2"),
        (evaluation({"gate/a": [math.nan, 3.0]}), "gate/a=nan instead of a number"),
        (evaluation({"gate/a": [-1.0, 4.0]}), "gate/a=-1.0 instead of a number"),
        (evaluation({"gate/a": [1.0, 1.0]}), "gate weights of 'a' sum to 2, not to 3"),
        (evaluation({"gate-examples/a": 0}), "gate-examples/a=0 instead of a whole number"),
        (evaluation({"tokens/a": 151}), "tokens/a=151 instead of a whole number from 1 to 150"),
        (evaluation({"nll/c": 1.0, "tokens/c": 1}), "losses of ['c']"),
        (evaluation({"tokens/z": 1}), "unknown keys ['tokens/z']"),
        (RecordDict({METRICS: MetricRecord()}), "losses of []"),
    ],
)
def test_an_evaluate_reply_that_is_odd_is_refused_with_the_reason(content, reason):
    found = reading("evaluate", content)
    assert isinstance(found, Fault)
    assert reason in found.reason


def test_answer_tokens_are_fixed_by_the_first_evaluation():
    asked = dataclasses.replace(EVALUATION, known={"a": 7, "b": 1})
    assert isinstance(
        parse(message(evaluated().content()), lambda c: Evaluated.read(c, asked)), Evaluated
    )
    other = dataclasses.replace(EVALUATION, known={"a": 7, "b": 2})
    found = parse(message(evaluated().content()), lambda c: Evaluated.read(c, other))
    assert "as before" in found.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"partition": 10}, "partition-id=10 instead of a whole number from 0 to 9"),
        ({"train": (1, 2)}, "train=[1, 2] instead of a list of 3"),
        ({"train": (0, 0, 0)}, "it has no training rows"),
        ({"test": (0, 0, 0)}, "it has no held-out rows"),
        ({"tasks": ("a", "a", "b")}, "names one twice"),
        ({"train": (10**15, 0, 0)}, "train holds 1000000000000000 instead of"),
        ({"model_digest": "llama"}, "model-digest='llama' instead of text"),
        ({"sizes": sizes(0)}, "hidden-size=0"),
        ({"device": "the moon"}, "device='the moon'"),
    ],
)
def test_a_description_that_is_odd_is_refused_with_the_reason(changes, reason):
    found = reading("describe", description(**changes).content())
    assert isinstance(found, Fault)
    assert reason in found.reason


def test_own_data_may_have_nothing_held_out():
    found = reading("describe", description(test=(0, 0, 0), own_data=True).content())
    assert found.test == (0, 0, 0)


def test_a_text_for_a_partition_id_is_refused():
    content = description().content()
    content[CONFIG]["partition-id"] = "3"
    assert "partition-id='3'" in reading("describe", content).reason


def test_an_error_reply_is_a_fault_with_the_cause():
    error = Error(2, "Traceback (most recent call last): ...\nMessage: no space\n  left ")
    found = parse(message(None, error), READERS["train"])
    assert found == Fault("no space left")
    assert parse(message(None, Error(7, "")), READERS["train"]) == Fault("error code 7")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c[CONFIG].update({"server-round": -1}), "server-round=-1"),
        (lambda c: c[CONFIG].update({"last-trained": 8}), "last-trained=8"),
        (lambda c: c[CONFIG].update({"run": "../../etc"}), "run='../../etc'"),
        (lambda c: c.pop(CONFIG), "records"),
        (lambda c: c.pop(FROZEN), "tensors [['prompts']] instead of"),
        (lambda c: c[FROZEN].pop("gate.hidden"), "tensors"),
        (lambda c: c[FROZEN].update(to_array_record({"x": np.zeros(2)})), "tensors"),
        (lambda c: c[FROZEN].update({PROMPTS: c[ARRAYS][PROMPTS]}), "tensors"),
        (lambda c: c[ARRAYS].pop(PROMPTS), "tensors"),
    ],
)
def test_a_request_that_is_odd_is_refused_with_the_reason(change, reason):
    content = round_content()
    change(content)
    found = reading("ask for a round", content)
    assert isinstance(found, Fault)
    assert reason in found.reason


def test_a_tally_of_nothing_lost_is_read():
    content = dataclasses.replace(trained(), tally=Tally(0.0, 1)).content()
    assert reading("train", content).tally == Tally(0.0, 1)

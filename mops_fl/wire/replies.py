"""Checking what clients send before anything is averaged."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from mops_fl.wire.records import ARRAYS, EXAMPLES, METRICS, from_array_record, get_tallies


def sort_replies(
    replies: Iterable[Message], partition_of: Mapping[int, int]
) -> list[tuple[int, Message]]:
    """Replies with their partition ids, in the order of these.

    Floating-point sums depend on their order; replies arrive in any.
    """
    known = [(partition_of[r.metadata.src_node_id], r) for r in replies if _from(r, partition_of)]
    return sorted(known, key=lambda pair: pair[0])


def _from(reply: Message, partition_of: Mapping[int, int]) -> bool:
    return reply.metadata.src_node_id in partition_of


def train_fault(reply: Message, expected: ArrayRecord) -> str | None:
    """Why a train reply cannot be averaged; None where it can."""
    fault = _common_fault(reply)
    if fault:
        return fault
    content = reply.content
    if list(content.array_records) != [ARRAYS]:
        return f"array records {list(content.array_records)} instead of ['{ARRAYS}']"
    got, wanted = from_array_record(content.array_records[ARRAYS]), from_array_record(expected)
    if got.keys() != wanted.keys():
        return f"tensors {sorted(got)} instead of {sorted(wanted)}"
    for name, tensor in got.items():
        if tensor.shape != wanted[name].shape:
            return f"{name} of shape {tensor.shape} instead of {wanted[name].shape}"
        if not np.isfinite(tensor).all():
            return f"{name} has NaN or infinite values"
    examples = content.metric_records[METRICS].get(EXAMPLES)
    if not isinstance(examples, int) or examples < 1:
        return f"{EXAMPLES}={examples!r} instead of a positive whole number"
    return None


def evaluate_fault(reply: Message) -> str | None:
    """Why an evaluate reply cannot be summed; None where it can."""
    return _common_fault(reply)


def error_text(reply: Message) -> str:
    """The cause in an error reply; Flower puts a traceback before a client's own words."""
    reason = reply.error.reason or f"error code {reply.error.code}"
    return " ".join(reason.rsplit("Message: ", 1)[-1].split())


def _common_fault(reply: Message) -> str | None:
    if reply.has_error():
        return error_text(reply)
    metrics = reply.content.get(METRICS)
    if not isinstance(metrics, MetricRecord):
        return f"no metric record '{METRICS}'"
    tallies = get_tallies(metrics)
    if not tallies:
        return "no losses"
    for task, tally in tallies.items():
        if not math.isfinite(tally.nll) or tally.tokens < 1:
            return f"loss of task {task!r} is {tally.nll} over {tally.tokens} tokens"
    return None

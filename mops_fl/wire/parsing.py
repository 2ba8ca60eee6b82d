"""From what arrived to typed values, or to a fault: the one place where messages are read.

Whoever sends is not trusted: records, keys, types, shapes and ranges must be exactly those that the
reader expects. Nothing that can arrive raises out of `parse`.
"""

import io
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from mops_fl.wire.records import Shapes, Tensors

SHA256 = r"[0-9a-f]{64}"
"""What a digest looks like."""

LARGEST_VALUE = 1e6
"""Of a tensor's values, by magnitude: sums of many such are still finite in float32."""

LARGEST_COUNT = 10**9
"""Of rows, steps and tokens."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Fault:
    """Why a message cannot be used."""

    reason: str


class MalformedError(Exception):
    """What is wrong with a message, in words for a person."""


def parse(message: Message, read: Callable[[RecordDict], Value]) -> Value | Fault:
    """What `read` makes of a message's content, or why there is nothing to be made of it.

    Args:
        message: as it arrived; an error reply is a fault with its reason.
        read: raises `MalformedError`.
    """
    try:
        if message.has_error():
            return Fault(_error_text(message))
        return read(message.content)
    except MalformedError as error:
        return Fault(str(error))
    # The one boundary to what others send: no content of a message may end the process.
    except Exception as error:
        return Fault(f"malformed message: {type(error).__name__}: {shown(error)}")


def shown(value: object) -> str:
    """A value of a message for an error's text, shortened."""
    return reprlib.repr(value)


def records(content: RecordDict, *wanted: tuple[str, type]) -> list:
    """The records of a content, which must be exactly those wanted.

    Raises:
        MalformedError: one is missing, too many or of another type.
    """
    found = {name: type(record) for name, record in content.items()}
    if found != dict(wanted):
        raise MalformedError(f"records {_kinds(found)} instead of {_kinds(dict(wanted))}")
    return [content[name] for name, _ in wanted]


def read_tensors(record: ArrayRecord, shapes: Shapes) -> Tensors:
    """The tensors of a record, finite float32 of exactly these names and shapes.

    Raises:
        MalformedError: a name, type, shape or value is another.
    """
    if record.keys() != shapes.keys():
        raise MalformedError(f"tensors {shown(sorted(record))} instead of {sorted(shapes)}")
    return {name: _tensor(name, record[name], shape) for name, shape in shapes.items()}


class Fields:
    """The values of a record, taken one by one; `done` refuses what nobody took.

    Every method raises `MalformedError` for a key that is missing or of another type or range.
    """

    def __init__(self, record: Mapping[str, object]) -> None:
        """Begin with all values of `record` untaken."""
        self._left = dict(record.items())

    def after(self, prefix: str) -> list[str]:
        """What follows a prefix in the keys that nobody took yet."""
        return [key.removeprefix(prefix) for key in self._left if key.startswith(prefix)]

    def whole(self, key: str, low: int, high: int = LARGEST_COUNT) -> int:
        """A whole number from `low` to `high`."""
        value = self._take(key)
        if type(value) is not int or not low <= value <= high:
            raise MalformedError(f"{key}={shown(value)} instead of {_range(low, high)}")
        return value

    def truth(self, key: str) -> bool:
        """True or false."""
        value = self._take(key)
        if not isinstance(value, bool):
            raise MalformedError(f"{key}={shown(value)} instead of true or false")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """A finite float from `low` to `high`."""
        return _number(key, self._take(key), low, high)

    def text(self, key: str, pattern: str = r"(?s).{0,10000}") -> str:
        """A text that the pattern matches whole."""
        return _text(key, self._take(key), pattern)

    def wholes(self, key: str, count: int, low: int, high: int = LARGEST_COUNT) -> tuple[int, ...]:
        """So many whole numbers, each from `low` to `high`."""
        values = self._list(key, count)
        for value in values:
            if type(value) is not int or not low <= value <= high:
                raise MalformedError(f"{key} holds {shown(value)} instead of {_range(low, high)}")
        return tuple(values)

    def numbers(self, key: str, count: int, low: float, high: float) -> tuple[float, ...]:
        """So many finite floats, each from `low` to `high`."""
        return tuple(_number(key, value, low, high) for value in self._list(key, count))

    def texts(self, key: str) -> tuple[str, ...]:
        """Texts, each another."""
        values = self._list(key, None)
        found = tuple(_text(key, value, r"(?s).{1,10000}") for value in values)
        if len(set(found)) < len(found):
            raise MalformedError(f"{key}={shown(list(found))} names one twice")
        return found

    def done(self) -> None:
        """Refuse values that nobody took."""
        if self._left:
            raise MalformedError(f"unknown keys {shown(sorted(self._left))}")

    def _take(self, key: str) -> object:
        if key not in self._left:
            raise MalformedError(f"no {key}")
        return self._left.pop(key)

    def _list(self, key: str, count: int | None) -> list:
        value = self._take(key)
        if not isinstance(value, list) or (count is not None and len(value) != count):
            wanted = "a list" if count is None else f"a list of {count}"
            raise MalformedError(f"{key}={shown(value)} instead of {wanted}")
        return value


def _number(key: str, value: object, low: float, high: float) -> float:
    # NaN compares as false
    if type(value) is not float or not low <= value <= high or math.isinf(value):
        raise MalformedError(f"{key}={shown(value)} instead of a number from {low:g} to {high:g}")
    return value


def _text(key: str, value: object, pattern: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise MalformedError(f"{key}={shown(value)} instead of text as is expected there")
    return value


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"a whole number from {low:,} to {high:,}"


def _kinds(found: Mapping[str, type]) -> str:
    return shown({name: kind.__name__ for name, kind in found.items()})


def _tensor(name: str, array, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor from numpy's own format, whose header is checked before anything is allocated."""
    if (array.stype, array.dtype, tuple(array.shape)) != ("numpy.ndarray", "float32", shape):
        stated = f"{array.stype} of {array.dtype}, shape {shown(array.shape)}"
        raise MalformedError(f"{name}: {stated} instead of float32 of shape {shape}")
    data = io.BytesIO(array.data)
    try:
        if np.lib.format.read_magic(data) != (1, 0):
            raise MalformedError(f"{name}: its bytes are not numpy's format 1.0")
        header = np.lib.format.read_array_header_1_0(data)
    except ValueError as error:
        raise MalformedError(f"{name}: its bytes are not numpy's: {shown(str(error))}") from None
    if header != (shape, False, np.dtype("<f4")):
        raise MalformedError(f"{name}: its bytes are {shown(header)} instead of float32 of {shape}")
    body = data.read()
    if len(body) != 4 * math.prod(shape):
        raise MalformedError(f"{name}: {len(body)} bytes instead of {4 * math.prod(shape)}")
    values = np.frombuffer(body, "<f4").reshape(shape)
    largest = np.abs(values).max(initial=0.0)
    if not np.isfinite(largest):
        raise MalformedError(f"{name} has NaN or infinite values")
    if largest > LARGEST_VALUE:
        raise MalformedError(f"{name} has values up to {largest:.3g}, more than {LARGEST_VALUE:g}")
    return values


def _error_text(reply: Message) -> str:
    """The cause in an error reply; Flower puts a traceback before a client's own words."""
    reason = reply.error.reason or f"error code {reply.error.code}"
    return " ".join(reason.rsplit("Message: ", 1)[-1].split())[:2000]

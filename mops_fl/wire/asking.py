"""Asking clients outside of the rounds of a strategy."""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from mops_fl.wire.replies import sift

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def ask(
    grid: Grid,
    kind: str,
    contents: Mapping[Key, RecordDict],
    nodes: Mapping[Key, int],
    read: Callable[[Key, RecordDict], Value],
) -> tuple[dict[Key, Value], dict[Key, str]]:
    """Send a message to each, and wait for all replies.

    Args:
        grid: of the run.
        kind: of the messages.
        contents: what each is asked.
        nodes: Flower's id of each one's node.
        read: what a reply says, raising `MalformedError`.

    Returns:
        What they answered, and why an answer is of no use; both by who was asked.
    """
    messages = {
        who: Message(content, message_type=kind, dst_node_id=nodes[who])
        for who, content in contents.items()
    }
    replies = list(grid.send_and_receive(messages.values()))
    asked = {message.metadata.message_id: who for who, message in messages.items()}
    return sift(asked, replies, read)

"""Asking clients, and waiting for their replies."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from mops_fl.wire.replies import sift

_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 1.0

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


def collect(
    grid: Grid, waiting: set[str], seconds: float, came: Callable[[int], None] = lambda _: None
) -> list[Message]:
    """The replies that come within some seconds; it is looked for them once at least.

    A look comes after a hundredth of the time waited so far: a SuperLink that is asked 20 times a
    second for hours has less time for its nodes.

    Args:
        grid: that the messages were sent through.
        waiting: their ids; those that are answered are taken out.
        seconds: how long to wait for all.
        came: called with the number of replies whenever there are more.
    """
    start = time.monotonic()
    replies: list[Message] = []
    while waiting:
        new = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in new}
        replies += new
        spent = time.monotonic() - start
        if new:
            came(len(replies))
        elif spent < seconds:
            pause = min(max(_POLL_SECONDS, spent / 100), _LONGEST_POLL_SECONDS)
            time.sleep(min(pause, seconds - spent))
        if spent >= seconds:
            break
    return replies

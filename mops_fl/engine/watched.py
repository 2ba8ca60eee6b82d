"""A Flower Grid that tells how many replies have come, and waits no longer than it is to."""

import math
import time
from collections.abc import Callable, Iterable

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from mops_fl.wire.asking import collect

_LIFE_SECONDS = 60.0
"""How much longer than its reply is waited for a message lives: until all are sent, and until the
reply of the last moment is here."""

_CLOCKS_APART_SECONDS = 7200.0
"""By how much the clock of a node may be ahead that was not heard of yet."""

Progress = Callable[[str, int, int], None]
"""Called with the message type, the replies that have come, and the messages sent."""


class WatchedGrid(Grid):
    """Another Grid, watched while it waits, that answers for who does not.

    Flower's own `send_and_receive` sleeps for 3 seconds between looks and says nothing meanwhile.
    """

    def __init__(self, grid: Grid, progress: Progress, seconds: float = math.inf) -> None:
        """Wrap `grid`.

        Args:
            grid: that sends.
            progress: called whenever a reply comes.
            seconds: for how long replies are waited for at most.
        """
        self._grid, self._progress, self._seconds = grid, progress, seconds
        self._ahead: dict[int, float] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for the replies of all, or for `timeout` seconds.

        Whoever gave no reply has an error as its reply, as Flower gives one for a node that is
        gone.
        """
        messages = list(messages)
        if not messages:
            return []
        kind, of = messages[0].metadata.message_type, len(messages)
        seconds = min(self._seconds, math.inf if timeout is None else timeout)
        for message in messages:
            self._limit_life(message, seconds)
        sent = {id_ for id_ in self._grid.push_messages(messages) if id_}
        self._progress(kind, 0, of)
        late = set(sent)
        replies = collect(self, late, seconds, lambda done: self._progress(kind, done, of))
        for message in messages:
            if message.metadata.message_id in late:
                replies.append(_silence(message, f"no reply within {seconds:g} s"))
            elif message.metadata.message_id not in sent:
                replies.append(_silence(message, "Flower did not take the message (see the log)"))
        return replies

    def _limit_life(self, message: Message, seconds: float) -> None:
        """Let a message expire when its reply is of no use, so that its node goes on with the next.

        A node counts the life that is left of a message by its own clock, and one that has none
        left cannot be answered.
        """
        if math.isfinite(seconds):
            ahead = self._ahead.get(message.metadata.dst_node_id, _CLOCKS_APART_SECONDS)
            message.metadata.ttl = seconds + _LIFE_SECONDS + ahead

    def pull_messages(self, message_ids):
        """The replies that have come."""
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            ahead = reply.metadata.created_at - time.time()
            self._ahead[reply.metadata.src_node_id] = max(ahead, 0.0)
        return replies

    def set_run(self, run):
        self._grid.set_run(run)

    @property
    def run(self):
        return self._grid.run

    def create_message(self, *args, **kwargs):
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self):
        return self._grid.get_node_ids()

    def push_messages(self, messages):
        return self._grid.push_messages(messages)


def _silence(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason), reply_to=message)

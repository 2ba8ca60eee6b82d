"""A Flower Grid that tells how many replies have come."""

import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid

_POLL_SECONDS = 0.05

Progress = Callable[[str, int, int], None]
"""Called with the message type, the replies that have come, and the messages sent."""


class WatchedGrid(Grid):
    """Another Grid, watched while it waits.

    Flower's own `send_and_receive` sleeps for 3 seconds between looks and says nothing meanwhile.
    """

    def __init__(self, grid: Grid, progress: Progress) -> None:
        """Wrap `grid`; `progress` is called whenever a reply comes."""
        self._grid, self._progress = grid, progress

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for the replies of all, or for `timeout` seconds."""
        messages = list(messages)
        if not messages:
            return []
        kind = messages[0].metadata.message_type
        waiting = set(self._grid.push_messages(messages))
        self._progress(kind, 0, len(messages))
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            came = list(self._grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
            replies += came
            if came:
                self._progress(kind, len(replies), len(messages))
            elif waiting:
                time.sleep(_POLL_SECONDS)
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

    def pull_messages(self, message_ids):
        return self._grid.pull_messages(message_ids)

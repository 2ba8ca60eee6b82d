"""A SuperLink in this process, whose nodes do what a test tells them to."""

import time
from collections.abc import Callable
from uuid import uuid4

from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

Answer = Callable[[Message], RecordDict | Error | None]
"""What a node replies; None for nothing, ever."""


class SuperLink(Grid):
    """Nodes by Flower's id; a node that is gone is answered for by node 1, as Flower does."""

    run = None

    def __init__(self, nodes: dict[int, Answer]) -> None:
        self.nodes, self.sent, self.replies = dict(nodes), [], {}

    def set_run(self, run):
        raise NotImplementedError

    create_message = send_and_receive = set_run

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = id_ = str(uuid4())
            self.sent.append(message)
            node = message.metadata.dst_node_id
            if node not in self.nodes:
                error = Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable")
                self.replies[id_] = reply(message, error, 1)
            elif (answer := self.nodes[node](message)) is not None:
                self.replies[id_] = reply(message, answer, node)
            ids.append(id_)
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(id_) for id_ in list(message_ids) if id_ in self.replies]

    def asked(self, kind: str) -> list[int]:
        """The nodes that were sent a kind of message, in order."""
        return [m.metadata.dst_node_id for m in self.sent if m.metadata.message_type == kind]


def reply(asked: Message, answer: RecordDict | Error, node: int, ahead: float = 0.0) -> Message:
    """What a node answers, whose clock is some seconds ahead."""
    to = asked.metadata
    created = time.time() + ahead
    metadata = Metadata(1, "reply", node, 1, to.message_id, "", created, 1.0, to.message_type)
    content, error = (None, answer) if isinstance(answer, Error) else (answer, None)
    return make_message(metadata, content, error)

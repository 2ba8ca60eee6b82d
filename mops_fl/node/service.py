"""What the resident trainer does with a message: the policy, the work, and nothing private."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Error, Message
from flwr.common.constant import ErrorCode

from mops_fl.config import Config
from mops_fl.errors import DataError, MopsError
from mops_fl.node.enforcement import check_request, guard_reply
from mops_fl.node.node_config import NodeConfig
from mops_fl.node.node_home import NodeHome
from mops_fl.training.tasks import Answer, Served, Task, reason_of
from mops_fl.wire.records import CONFIG
from mops_fl.wire.requests import DESCRIBE

if TYPE_CHECKING:
    from mops_fl.training.trainer import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What the ClientApp asks of the resident trainer."""

    identity: str
    """Of the node's configuration and code: a trainer of another one is replaced."""
    task: Task


@dataclass(frozen=True)
class Stale:
    """The answer of a trainer that was started for another configuration, and ends."""


class Service:
    """Serves the messages of one node, one after the other."""

    def __init__(self, node: NodeConfig, home: NodeHome) -> None:
        """Nothing is loaded before a message needs it.

        Args:
            node: its owner's decisions.
            home: where it keeps things.
        """
        self._node, self._home = node, home
        self._trainer: Trainer | None = None
        self._run: int | None = None

    def answer(self, task: Task) -> Served:
        """The reply to a message; an error reply where there is none to give."""
        try:
            reply = self._answer(task)
        except Exception as error:
            _log.exception("%s", task.message.metadata.message_type)
            told = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, self._told(error))
            reply = Message(told, reply_to=task.message)
        warnings = self._trainer.take_warnings() if self._trainer else []
        return Served([Answer(reply, task.context.state)], warnings)

    def _answer(self, task: Task) -> Message:
        # Whoever asks waits for torch here, and not for the socket.
        from mops_fl.training import messages

        config, message = self._node.configured(task.context.run_config), task.message
        check_request(self._node.policy, config, message, self._home.received)
        self._begin(message.metadata.run_id)
        trainer = self._trainer_of(config)
        reply = messages.answer(message, task.context, trainer)
        guard_reply(self._node.policy, message, reply)
        if message.metadata.message_type == DESCRIBE:
            told = reply.content[CONFIG]
            assert isinstance(told, ConfigRecord)
            told["metrics"] = list(self._node.policy.metrics)
            if self._node.own_data:
                told["data-digest"] = self._home.sealed(str(told["data-digest"]))
        return reply

    def _begin(self, run: int) -> None:
        """Forget the states of another run's rows."""
        if run != self._run:
            self._home.forget_states()
        self._run = run

    def _trainer_of(self, config: Config) -> "Trainer":
        from mops_fl.training.trainer import Trainer

        kept = self._trainer
        if kept is None or kept.config != config:
            same = kept is not None and kept.config.backbone == config.backbone
            loaded = vars(kept).get("backbone") if same else None
            self._trainer = kept = Trainer(
                config,
                own_data=self._node.own_data,
                least_rows=self._node.policy.min_task_rows,
                states=self._home.states,
                backbone=loaded,
            )
        return kept

    def _told(self, error: Exception) -> str:
        """A reason for the server: of own data, it may quote what no other machine shall see."""
        quotes = isinstance(error, DataError) or not isinstance(error, MopsError)
        if self._node.own_data and quotes:
            return f"{type(error).__name__}: the log of this node's trainer says more"
        return reason_of(error)

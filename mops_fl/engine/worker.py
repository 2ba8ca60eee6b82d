"""A worker: one backbone, serving a shard of clients at a time. It knows nothing of Ray."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from mops_fl.config import Config
from mops_fl.engine.together import together
from mops_fl.training import messages
from mops_fl.training.tasks import Answer, NotStartedError, Served, Task, reason_of
from mops_fl.training.trainer import Trainer


class CohortWorker:
    """Serves the messages of virtual clients, those of one shard together."""

    def __init__(self, config: Config, device: str, threads: int) -> None:
        """Nothing is loaded before a task needs it.

        Args:
            config: the run.
            device: `cpu` or `cuda:N`, as this process counts.
            threads: CPU threads of torch.
        """
        torch.set_num_threads(threads)
        config = replace(config, backbone=replace(config.backbone, device=device))
        self._trainer = Trainer(config)

    def serve(self, tasks: Sequence[Task]) -> Served:
        """Answer tasks of one message type; a client that fails gets an error reply.

        Raises:
            NotStartedError: the backbone or the data cannot be loaded here, for any client.
            torch.AcceleratorError: the device is lost to this process.
        """
        self._load()
        answers = [_answer(task, outcome) for task, outcome in self._outcomes(tasks)]
        return Served(answers, self._trainer.take_warnings())

    def _load(self) -> None:
        try:
            _ = self._trainer.backbone, self._trainer.tokenised
        except Exception as error:
            raise NotStartedError(reason_of(error)) from error

    def _outcomes(self, tasks: Sequence[Task]) -> list[tuple[Task, Any]]:
        """Each task with what it replies, or with the exception that stands in its place."""
        action = _attempt(messages.action_of, tasks[0].message)
        if isinstance(action, Exception):
            return [(task, action) for task in tasks]
        works = [_attempt(action.read, t.message, t.context, self._trainer) for t in tasks]
        outcomes = list(works)
        for indices in _alike(works):
            group = [works[index] for index in indices]
            results = together(lambda part: action.run(self._trainer, part), group)
            for index, result in zip(indices, results, strict=True):
                outcomes[index] = (
                    result
                    if isinstance(result, Exception)
                    else _attempt(action.reply, works[index], tasks[index].context, result)
                )
        return list(zip(tasks, outcomes, strict=True))


def _alike(works: Sequence[messages.Work | Exception]) -> list[list[int]]:
    """Indices of works that may share a forward pass."""
    groups: dict[Any, list[int]] = {}
    for index, work in enumerate(works):
        if not isinstance(work, Exception):
            groups.setdefault(work.together, []).append(index)
    return list(groups.values())


def _attempt(function: Callable, *arguments: Any) -> Any:
    """What the function gives, or the exception that it raises."""
    try:
        return function(*arguments)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        return error


def _answer(task: Task, outcome: Any) -> Answer:
    if isinstance(outcome, Exception):
        outcome = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason_of(outcome))
    return Answer(Message(outcome, reply_to=task.message), task.context.state)

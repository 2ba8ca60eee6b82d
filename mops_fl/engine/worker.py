"""A worker: one backbone, serving a shard of clients at a time. It knows nothing of Ray."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Context, Error, Message, MessageType
from flwr.common.constant import ErrorCode

from mops_fl.config import Config
from mops_fl.engine.tasks import Answer, NotStartedError, Served, Task, reason_of
from mops_fl.engine.together import together
from mops_fl.training import messages
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED


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
        self._config = replace(config, backbone=replace(config.backbone, device=device))
        self._trainer = Trainer(self._config)

    def serve(self, tasks: Sequence[Task]) -> Served:
        """Answer tasks of one message type; a client that fails gets an error reply.

        Raises:
            NotStartedError: the backbone or the data cannot be loaded here, for any client.
            torch.AcceleratorError: the device is lost to this process.
        """
        self._load()
        kind = tasks[0].message.metadata.message_type
        if kind == MessageType.TRAIN:
            outcomes = self._batched(tasks, messages.training_work, self._train)
            answers = [_answer(task, self._trained, outcome) for task, outcome in outcomes]
        elif kind == MessageType.EVALUATE:
            outcomes = self._batched(tasks, messages.evaluation_work, self._evaluate)
            answers = [_answer(task, _evaluated, outcome) for task, outcome in outcomes]
        else:
            answers = [_answer(task, self._queried, kind) for task in tasks]
        return Served(answers, self._trainer.take_warnings())

    def _load(self) -> None:
        try:
            _ = self._trainer.backbone, self._trainer.tokenised
        except Exception as error:
            raise NotStartedError(reason_of(error)) from error

    def _batched(
        self,
        tasks: Sequence[Task],
        read: Callable[[Message, Context, Config], messages.Work],
        function: Callable[[Sequence[messages.Work]], Sequence[Any]],
    ) -> list[tuple[Task, Any]]:
        """Each task with its client's result, or with the exception that stands in its place."""
        outcomes: list[Any] = [
            _attempt(read, task.message, task.context, self._config) for task in tasks
        ]
        for indices in _alike(outcomes):
            works = [outcomes[index] for index in indices]
            for index, outcome in zip(indices, together(function, works), strict=True):
                outcomes[index] = outcome
        return list(zip(tasks, outcomes, strict=True))

    def _train(self, works: Sequence[messages.Work]) -> Sequence[Any]:
        return self._trainer.train_cohort(
            [work.partition for work in works],
            works[0].server_round,
            [work.tensors for work in works],
            works[0].frozen,
        )

    def _evaluate(self, works: Sequence[messages.Work]) -> Sequence[Any]:
        return self._trainer.evaluate_cohort(
            [work.partition for work in works], [work.tensors for work in works], works[0].frozen
        )

    def _trained(self, task: Task, result: Any) -> Message:
        return messages.trained(task.message, task.context, self._config, result)

    def _queried(self, task: Task, kind: str) -> Message:
        if kind == f"{MessageType.QUERY}.describe":
            return messages.described(task.message, task.context, self._trainer)
        if kind == f"{MessageType.QUERY}.pretrain":
            return messages.pretrained(task.message, self._trainer)
        raise ValueError(f"no client answers messages of type {kind!r}")


def _evaluated(task: Task, result: Any) -> Message:
    return messages.evaluated(task.message, result)


def _alike(works: Sequence[messages.Work | Exception]) -> list[list[int]]:
    """Indices of works that may share a forward pass: of one round, past the same P¹."""
    groups: dict[tuple, list[int]] = {}
    for index, work in enumerate(works):
        if not isinstance(work, Exception):
            pretrained = work.frozen.get(PRETRAINED)
            key = (work.server_round, None if pretrained is None else pretrained.tobytes())
            groups.setdefault(key, []).append(index)
    return list(groups.values())


def _attempt(function: Callable, *arguments: Any) -> Any:
    """What the function gives, or the exception that it raises."""
    try:
        return function(*arguments)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        return error


def _answer(task: Task, reply: Callable[[Task, Any], Message], outcome: Any) -> Answer:
    if not isinstance(outcome, Exception):
        outcome = _attempt(reply, task, outcome)
    if isinstance(outcome, Exception):
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason_of(outcome))
        outcome = Message(error, reply_to=task.message)
    return Answer(outcome, task.context.state)

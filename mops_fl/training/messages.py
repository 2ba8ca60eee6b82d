"""From a message to a client's work, and from its result to the reply.

The ClientApp and the cohort engine differ in how many clients they serve at once; what a message
asks for, what is done and what is answered is this module's, one `Action` for each kind of message.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, RecordDict

from mops_fl.code_digest import code_digest
from mops_fl.errors import RunError
from mops_fl.methods import method_of
from mops_fl.metrics import Tally
from mops_fl.training import local_gate
from mops_fl.wire.parsing import Fault, parse
from mops_fl.wire.records import Tensors, partition_of
from mops_fl.wire.replies import Description, Evaluated, Pretrained, Trained
from mops_fl.wire.requests import (
    DESCRIBE,
    EVALUATE,
    PERSONALISE,
    PRETRAIN,
    TRAIN,
    Assignment,
    PretrainRequest,
    RoundRequest,
)

if TYPE_CHECKING:
    from mops_fl.training.local import LocalResult
    from mops_fl.training.trainer import HeldOut, Trainer


@dataclass(frozen=True)
class Work:
    """What a message asks of one client."""

    partition: int
    assignment: Assignment | None = None
    """The round of a train or evaluate message."""
    tensors: Tensors | None = None
    """All trainable tensors, the gate included."""
    frozen: Tensors | None = None
    """P¹, where there is one."""
    averaged: tuple[str, ...] = ()
    """Names of the tensors that the reply to a train message holds."""
    tasks: tuple[str, ...] = ()
    """The run's tasks, of a message that asks to pretrain."""

    @property
    def together(self) -> Hashable:
        """The same for works that may share a forward pass: of one round, past the same P¹."""
        pretrained = {name: value.tobytes() for name, value in (self.frozen or {}).items()}
        current = self.assignment.server_round if self.assignment else None
        return current, tuple(pretrained.items())


@dataclass(frozen=True)
class Action:
    """How one kind of message is answered."""

    read: Callable[[Message, Context, "Trainer"], Work]
    run: Callable[["Trainer", Sequence[Work]], Sequence[Any]]
    """A result for each work; a result depends on its own work only."""
    reply: Callable[[Work, Context, Any], RecordDict]


def answer(message: Message, context: Context, trainer: "Trainer") -> Message:
    """The reply of one client.

    Raises:
        RunError: the message cannot be used.
        ConfigError: the node has no partition id.
    """
    action = action_of(message)
    work = action.read(message, context, trainer)
    (result,) = action.run(trainer, [work])
    return Message(action.reply(work, context, result), reply_to=message)


def action_of(message: Message) -> Action:
    """What is done with a message.

    Raises:
        RunError: its kind is unknown.
    """
    kind = message.metadata.message_type
    if kind not in ACTIONS:
        raise RunError(f"no client answers messages of type {kind!r}: use the same mops-fl")
    return ACTIONS[kind]


def _read(message: Message, read: Callable[[RecordDict], Any]) -> Any:
    found = parse(message, read)
    if isinstance(found, Fault):
        raise RunError(f"a {message.metadata.message_type} message: {found.reason}")
    return found


def _check_code(server: str) -> None:
    """Refuse to compute by other rules than the run's.

    Raises:
        RunError: the code here is not the server's.
    """
    if server != code_digest():
        raise RunError(
            "the code on this client's machine is another than the server's: use the same commit "
            "of mops-fl on all machines of a run"
        )


def _asked(_message: Message, context: Context, _trainer: "Trainer") -> Work:
    return Work(partition_of(context.node_config))


def _describe(trainer: "Trainer", works: Sequence[Work]) -> list[Description]:
    return [trainer.description(work.partition) for work in works]


def _described(_work: Work, _context: Context, result: Description) -> RecordDict:
    return result.content()


def _pretraining(message: Message, context: Context, trainer: "Trainer") -> Work:
    shapes = method_of(trainer.config.method).shapes(trainer.config, trainer.model_facts.sizes)
    request = _read(message, lambda content: PretrainRequest.read(content, shapes))
    _check_code(request.code)
    return Work(partition_of(context.node_config), tensors=request.tensors, tasks=request.tasks)


def _pretrain(trainer: "Trainer", works: Sequence[Work]) -> list[Pretrained]:
    return [
        Pretrained(trainer.pretrain(work.tensors or {}, work.partition, work.tasks))
        for work in works
    ]


def _pretrained(_work: Work, _context: Context, result: Pretrained) -> RecordDict:
    return result.content()


def _round(message: Message, context: Context, trainer: "Trainer") -> Work:
    """A round's work, with the client's own gate where it keeps one."""
    config, sizes = trainer.config, trainer.model_facts.sizes
    method = method_of(config.method)
    shapes = method.all_shapes(config, sizes)
    averaged = method.travelling(config, sizes)
    request = _read(message, lambda content: RoundRequest.read(content, shapes, averaged))
    _check_code(request.assignment.code)
    gate, frozen = local_gate.split(request.frozen)
    partition, assignment = partition_of(context.node_config), request.assignment
    if gate and assignment.last_trained and trainer.config.prompts.gate_sync == "local":
        gate = local_gate.kept(context, partition, assignment)
    names = tuple(request.tensors)
    return Work(partition, assignment, {**request.tensors, **gate}, frozen, names)


def _train(trainer: "Trainer", works: Sequence[Work]) -> "list[LocalResult]":
    assignment = works[0].assignment
    assert assignment is not None
    results = trainer.train_cohort(
        [work.partition for work in works],
        assignment.server_round,
        [work.tensors or {} for work in works],
        works[0].frozen or {},
    )
    if trainer.config.privacy.on:
        # losses would be a release of their own, which no noise covers
        return [replace(result, tally=Tally()) for result in results]
    return results


def _trained(work: Work, context: Context, result: "LocalResult") -> RecordDict:
    """The tensors that are averaged; others that were trained are the client's own."""
    own = {name: value for name, value in result.tensors.items() if name not in work.averaged}
    if own:
        assert work.assignment is not None
        local_gate.keep(own, context, work.partition, work.assignment)
    sent = {name: result.tensors[name] for name in work.averaged}
    return Trained(
        tensors=sent,
        examples=result.examples,
        steps=result.steps,
        tally=result.tally,
        seconds=result.seconds,
        gate=result.gate,
    ).content()


def _personalise(trainer: "Trainer", works: Sequence[Work]) -> "list[HeldOut]":
    return trainer.personalise_cohort(
        [work.partition for work in works],
        [work.tensors or {} for work in works],
        works[0].frozen or {},
    )


def _evaluate(trainer: "Trainer", works: Sequence[Work]) -> "list[HeldOut]":
    return trainer.evaluate_cohort(
        [work.partition for work in works],
        [work.tensors or {} for work in works],
        works[0].frozen or {},
    )


def _evaluated(_work: Work, _context: Context, result: "HeldOut") -> RecordDict:
    test, validation = result.test, result.validation
    return Evaluated(test.tallies, test.gate, validation.tallies).content()


ACTIONS = {
    DESCRIBE: Action(_asked, _describe, _described),
    PRETRAIN: Action(_pretraining, _pretrain, _pretrained),
    TRAIN: Action(_round, _train, _trained),
    EVALUATE: Action(_round, _evaluate, _evaluated),
    PERSONALISE: Action(_round, _personalise, _evaluated),
}
"""By Flower's message type."""

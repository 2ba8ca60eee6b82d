"""One piece of work for all contestants, and the check that all of them did it."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import save_file

from experiments.benchmarks.peers.exchange import Answer, ClientRows, Row, Task
from mops_fl.base.prepare import prepared
from mops_fl.config import Config
from mops_fl.errors import RunError
from mops_fl.methods import method_of
from mops_fl.training.local import draw_order
from mops_fl.training.trainer import Trainer
from partitions import shares
from strategies import sample_partitions

TOLERANCE = 0.02
"""The part by which a round's mean loss may differ: other kernels round bfloat16 otherwise."""


def task_of(config: Config, folder: Path) -> Task:
    """What a run of ours trains on, for its peers: clients, rows, their order, initial tensors.

    Args:
        config: of a run with `method=lora`.
        folder: where the initial tensors are written.
    """
    trainer = Trainer(config)
    initial = folder / "initial.safetensors"
    sizes = trainer.model_facts.sizes
    save_file(method_of(config.method).initial(config, sizes, config.seed), initial)
    return Task(
        model=str(prepared(config.backbone)),
        dtype=trainer.dtype,
        initial=str(initial),
        rank=config.adapters.lora_rank,
        alpha=config.adapters.lora_alpha,
        learning_rate=config.train.learning_rate,
        batch_size=config.train.batch_size,
        rounds=_rounds(config, trainer),
    )


def _rounds(config: Config, trainer: Trainer) -> list[list[ClientRows]]:
    """The active clients of each round, with the rows of their steps."""
    held, tokenised = shares(trainer.corpus, config), trainer.tokenised.examples
    wanted = config.train.local_steps * config.train.batch_size

    def of_client(partition: int, number: int) -> ClientRows:
        own = held[partition].train
        order = draw_order(len(own), wanted, config.seed, partition, number)
        drawn = [tokenised[own[index]] for index in order]
        return ClientRows(len(own), [Row(list(row.question), list(row.answer)) for row in drawn])

    partitions, active = range(config.partition.num_clients), config.federation.active_clients
    return [
        [of_client(p, number) for p in sample_partitions(partitions, active, config.seed, number)]
        for number in range(1, config.federation.num_server_rounds + 1)
    ]


def check(answers: Mapping[str, Answer]) -> None:
    """Compare all contestants with the first.

    Raises:
        RunError: one trained something else, on other rows, or to another loss.
    """
    (first, reference), *others = answers.items()
    for name, answer in others:
        _same(f"trained parameters of {name} and {first}", answer.trainable, reference.trainable)
        for number, (own, its) in enumerate(zip(answer.rounds, reference.rounds, strict=True), 1):
            where = f"of {name} and {first} in round {number}"
            _same(f"steps {where}", own.steps, its.steps)
            _same(f"tokens {where}", own.tokens, its.tokens)
            if abs(own.loss / its.loss - 1) > TOLERANCE:
                raise RunError(f"losses {where}: {own.loss:.4f} and {its.loss:.4f} differ")


def _same(what: str, own: int, its: int) -> None:
    if own != its:
        raise RunError(f"{what}: {own} and {its}, but all are to do the same work")

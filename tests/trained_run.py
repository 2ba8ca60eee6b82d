"""A run folder as a federation leaves it, trained in this process, without Flower."""

from pathlib import Path

import numpy as np

from mops_fl.config import Config, Scalar
from mops_fl.metrics import Tally, total
from mops_fl.run.folder import RunFolder
from mops_fl.training.trainer import Trainer
from mops_fl.wire.records import PRETRAINED, Tensors

VALUES: dict[str, Scalar] = {
    **{"dtype": "float32", "num-clients": 3, "active-clients": 3, "num-samples": 200},
    **{"partition": "iid", "max-length": 200, "local-steps": 3, "learning-rate": 0.05},
    **{"experts": 3, "prompts-per-expert": 2, "gate-hidden": 8},
    **{"pretrain-prompt-steps": 2, "pretrain-gate-steps": 5, "num-server-rounds": 1},
}


def trained_run(folder: Path, model: Path, **changes: Scalar) -> Path:
    """One round of three clients; `changes` by the keys of the configuration, with underscores."""
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    config = Config.from_flat({**VALUES, "model": str(model), **given})
    trainer = Trainer(config)
    facts = trainer.model_facts
    run = RunFolder.create(
        folder,
        {
            **{"id": "0" * 32, "method": config.method, "seed": config.seed},
            **{"config": config.flat(), "dtype": config.backbone.dtype, "kept_round": 1},
            **{"model_digest": facts.digest, "tokenizer_digest": facts.tokenizer_digest},
            **{"versions": {}, "machine": {"processor": "a processor", "cores": 2}},
        },
    )
    initial = trainer.pretrain(trainer.method.initial(config, facts.sizes, config.seed))
    frozen = {name: value for name, value in initial.items() if name == PRETRAINED}
    tensors = {name: value for name, value in initial.items() if name not in frozen}
    clients = [*range(config.partition.num_clients)]
    _write_partition(run, trainer, clients)
    _write_round(run, trainer, 0, tensors, frozen, clients)
    if tensors:
        results = trainer.train_cohort(clients, 1, [tensors] * len(clients), frozen)
        tensors = {
            name: np.mean([result.tensors.get(name, value) for result in results], 0)
            for name, value in tensors.items()
        }
        run.set_rows("clients.csv", [(1, c, 1, 3, 1.0, 1, 0.1) for c in clients])
    _write_round(run, trainer, 1, tensors, frozen, clients)
    run.update(status="completed", error=None)
    return run.path


def _write_partition(run: RunFolder, trainer: Trainer, clients: list[int]) -> None:
    held = {client: trainer.holding(client) for client in clients}
    rows = [
        (client, task, own.train[task], own.test[task])
        for client, own in held.items()
        for task in trainer.corpus.tasks
    ]
    run.set_rows("partition.csv", rows)


def _write_round(
    run: RunFolder,
    trainer: Trainer,
    number: int,
    tensors: Tensors,
    frozen: Tensors,
    clients: list[int],
) -> None:
    """Checkpoint and losses of a round."""
    evaluated = trainer.evaluate_cohort(clients, [tensors] * len(clients), frozen)
    tallies: dict[str, Tally] = {}
    for client, held_out in zip(clients, evaluated, strict=True):
        run.add_rows(
            "evaluation.csv",
            [(number, client, t, own.nll, own.tokens) for t, own in held_out.test.tallies.items()],
        )
        for task, own in held_out.test.tallies.items():
            tallies[task] = tallies.get(task, Tally()) + own
    rows = [("all", total(tallies)), *tallies.items()]
    run.add_rows(
        "rounds.csv",
        [(number, task, own.nll, own.tokens, own.perplexity, 1.0) for task, own in rows],
    )
    run.save_checkpoint(number, {**tensors, **frozen}, {})

"""The task by `pfl`'s simulated backend: a torch model around peft, one user after the other.

PYTHON -m experiments.benchmarks.peers.pfl_run TASK ANSWER

PYTHON is an interpreter with `pfl`; under `torchrun` its processes share the users of a round.
"""

import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from experiments.benchmarks.peers import peft_lora
from experiments.benchmarks.peers.exchange import Answer, ClientRows, Round, Task


class Adapted(torch.nn.Module):
    """peft's model with the two methods that pfl calls."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model, self.steps, self.nll, self.tokens = model, 0, 0.0, 0

    def loss(self, **batch: torch.Tensor) -> torch.Tensor:
        """The mean loss of the answers' tokens, which is noted."""
        loss = self.model(**batch).loss
        tokens = int((batch["labels"] != peft_lora.IGNORED).sum())
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        self.nll += loss.item() * tokens
        return loss

    @torch.no_grad()
    def metrics(self, **batch: torch.Tensor) -> dict[str, Weighted]:
        """What users are evaluated by in round 1, before and after their steps."""
        tokens = int((batch["labels"] != peft_lora.IGNORED).sum())
        return {"nll": Weighted(self.model(**batch).loss.item() * tokens, tokens)}


class TimedModel(PyTorchModel):
    """Notes the seconds of the local steps."""

    training = 0.0

    def do_multiple_epochs_of(self, *arguments: object, **more: object) -> object:
        """A user's steps, from the optimiser on."""
        began = time.perf_counter()
        done = super().do_multiple_epochs_of(*arguments, **more)
        self.training += time.perf_counter() - began
        return done


class ClientDataset(PyTorchDataDataset):
    """One round's rows of a client, which counts by all that it has."""

    def __init__(self, own: ClientRows) -> None:
        super().__init__(own.rows, collate_fn=peft_lora.collate)
        self._examples = own.examples

    def __len__(self) -> int:
        return self._examples


class Clock(TrainingProcessCallback):
    """Sums up to the end of each round, over all processes."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.sums: list[torch.Tensor] = []

    def on_train_begin(self, *, model: TimedModel) -> Metrics:
        """Round 1 begins."""
        self._note(model)
        return Metrics()

    def after_central_iteration(
        self, _metrics: Metrics, model: TimedModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """A round has ended."""
        self._note(model)
        return False, Metrics()

    def _note(self, model: TimedModel) -> None:
        self.ends.append(time.perf_counter())
        own = model.pytorch_model
        sums = [model.training, own.steps, own.nll, own.tokens]
        self.sums.append(torch.tensor(sums, dtype=torch.float64))

    def rounds(self) -> list[Round]:
        """What each round added to the sums."""
        whole = torch.stack(self.sums)
        if pytorch_ops.distributed.world_size > 1:
            torch.distributed.all_reduce(whole)
        seconds = np.diff(self.ends).tolist()
        return [
            Round(duration, training, int(steps), nll, int(tokens))
            for duration, (training, steps, nll, tokens) in zip(
                seconds, whole.diff(dim=0).tolist(), strict=True
            )
        ]


def federated(task: Task) -> FederatedDataset:
    """The users that pfl is to draw, in the order of the rounds."""
    held = {
        (number, index): own
        for number, clients in enumerate(task.rounds)
        for index, own in enumerate(clients)
    }
    order: Iterator[tuple[int, int]] = cycle(held)
    tokens = {
        user: sum(len(row.question) + len(row.answer) for row in own.rows)
        for user, own in held.items()
    }
    # pfl draws far ahead in a process of its own where several share a round
    return FederatedDataset(
        lambda user: ClientDataset(held[user]), lambda: next(order), user_id_to_weight=tokens
    )


def main(task_file: str, answer_file: str) -> None:
    """Run all rounds; the first process writes the answer."""
    task = Task.read(Path(task_file))
    np.random.seed(0)
    data = federated(task)
    adapted = Adapted(peft_lora.load_initial(task))
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    model = TimedModel(adapted, peft_lora.optimiser, torch.optim.SGD(weights, lr=1.0))
    steps = len(task.rounds[0][0].rows) // task.batch_size
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=len(task.rounds),
            evaluation_frequency=len(task.rounds),
            train_cohort_size=len(task.rounds[0]),
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data, [WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=task.batch_size,
            local_num_epochs=None,
            local_num_steps=steps,
            local_learning_rate=task.learning_rate,
        ),
        NNEvalHyperParams(task.batch_size),
        [clock],
    )
    answer = Answer(peft_lora.trainable(adapted), clock.rounds(), peft_lora.versions("pfl"))
    if pytorch_ops.distributed.global_rank == 0:
        answer.write(Path(answer_file))


if __name__ == "__main__":
    main(*sys.argv[1:])

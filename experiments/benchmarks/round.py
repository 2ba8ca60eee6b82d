"""A whole round of ours against the way Flower's LLM fine-tuning example works.

There every message loads the model anew, wraps it with peft, takes over the tensors received and
trains; here one resident trainer serves all messages, one client or a cohort at a time. Both
sides take the same local steps on the same rows, unpack and pack the same kind of messages, and
neither counts Flower's own transport. Loading is from the same local files, in the page cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from flwr.app import ArrayRecord
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from experiments.benchmarks.baselines import BASELINES, Baseline
from experiments.benchmarks.common import (
    SHAPES,
    Workload,
    arguments,
    loaded,
    report,
    seconds,
    workload,
)
from mops_fl.data import Tokenised
from mops_fl.errors import ConfigError
from mops_fl.models.mixture import Mixture
from mops_fl.training.local import LocalData, train
from mops_fl.wire.records import from_array_record, to_array_record

REFERENCE = "load per message, peft prompt tuning"
COLUMNS = {
    "name": "",
    "seconds": "seconds",
    "steps_per_second": "steps/s",
    "factor": f"× {REFERENCE}",
}

Dealt = Sequence[Sequence[Tokenised]]


def load_per_message(work: Workload, name: str, dealt: Dealt) -> None:
    """One message a client: load, wrap, unpack, train, pack."""
    received: ArrayRecord | None = None
    for rows in dealt:
        model = loaded(work.config, work.device)
        baseline = Baseline(name, model, work.config.train.learning_rate)
        if received is None:
            received = _packed(baseline)
        set_peft_model_state_dict(baseline.model, received.to_torch_state_dict())
        baseline.steps(rows)
        _packed(baseline)


def _packed(baseline: Baseline) -> ArrayRecord:
    state = get_peft_model_state_dict(baseline.model)
    return ArrayRecord({name: value.detach().float().cpu() for name, value in state.items()})


def resident(mixture: Mixture, work: Workload, dealt: Dealt, cohort: int) -> None:
    """One message a client, `cohort` of them in one forward."""
    received = to_array_record(work.clients(1)[0])
    config = replace(work.config.train, local_steps=len(dealt[0]))
    for start in range(0, len(dealt), cohort):
        shard = dealt[start : start + cohort]
        clients = [from_array_record(received) for _ in shard]
        data = [LocalData(rows, tuple(range(len(rows)))) for rows in shard]
        for result in train(mixture, clients, data, config):
            to_array_record(result.tensors)


def main() -> None:
    """Run the benchmark."""
    parser = arguments("round", __doc__)
    parser.add_argument("--clients", type=int, help="active clients")
    parser.add_argument("--local-steps", type=int)
    options = parser.parse_args()
    if options.model in SHAPES:
        raise ConfigError(f"--model {options.model}: has no files to load for each message")
    clients = options.clients or (4 if options.quick else 10)
    steps = options.local_steps or (2 if options.quick else 5)
    work = workload(options, clients * steps)
    dealt = [work.rows[client::clients] for client in range(clients)]
    off, warm = work.mixture(warm=False), work.mixture(warm=True)
    contestants: dict[str, Callable[[], None]] = {
        f"load per message, {name}": lambda name=name: load_per_message(work, name, dealt)  # type: ignore[misc]
        for name in BASELINES
    } | {
        "ours, one client at a time, store off": lambda: resident(off, work, dealt, 1),
        "ours, cohorts of 5, store off": lambda: resident(off, work, dealt, 5),
        "ours, cohorts of 5, store warm": lambda: resident(warm, work, dealt, 5),
    }
    resident(off, work, [rows[:1] for rows in dealt[:1]], 1)
    taken = {
        name: seconds(run, cast(torch.device, work.device)) for name, run in contestants.items()
    }
    results = [
        {
            "name": name,
            "seconds": duration,
            "steps_per_second": clients * steps / duration,
            "factor": taken[REFERENCE] / duration,
        }
        for name, duration in taken.items()
    ]
    title = f"a round of {clients} clients × {steps} local steps, {options.model}, {options.dtype}"
    report(title, COLUMNS, results, options, tokens=work.tokens)


if __name__ == "__main__":
    main()

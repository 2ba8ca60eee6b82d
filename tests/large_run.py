"""Run folders of many rounds, tasks and clients, without a run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import write_run, write_table

HOSTILE = (
    *("<script>alert(1)</script>", '"quoted" & <b>bold</b>', "it's {{ 7 * 7 }} {% raw %}"),
    *("w" * 80, "日本語の作業", "مهمة", "a\nb\x00c", "</title></style></svg>", ""),
)
"""Names that a page must show and never obey."""


def write_large(
    folder: Path,
    *,
    rounds: int = 4,
    tasks: Sequence[str] = ("sort", "count", "copy"),
    clients: int = 12,
    active: int = 5,
    experts: int = 4,
    seed: int = 0,
    end: float = 20,
    method: str = "mops",
    config: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """A run with every table: clients hold two tasks each, and the gate learns which is whose."""
    config = {"seed": seed, "num-clients": clients, "experts": experts, **(config or {})}
    config |= {"num-server-rounds": rounds, "active-clients": active}
    facts = {"rounds_done": rounds, "kept_round": rounds, **facts}
    run = write_run(
        folder, method=method, rounds=rounds, tasks=tasks, config=config, end=end, **facts
    )
    draw = np.random.default_rng(seed)
    loss = [
        math.log(end + (500 - end) * math.exp(-6 * n / max(rounds, 1))) for n in range(rounds + 1)
    ]
    losses = [value * (0.9 + 0.2 * draw.random()) for value in loss]
    own = [(tasks[c % len(tasks)], tasks[(c * 7 + 1) % len(tasks)]) for c in range(clients)]
    held = draw.integers(3, 60, (clients, 2))
    rows = [
        (c, task, *((int(held[c, own[c].index(task)]), 3) if task in own[c] else (0, 0)))
        for c in range(clients)
        for task in tasks
    ]
    write_table(run / "partition.csv", rows)
    factor = np.exp(draw.normal(0, 0.3, clients))
    evaluated = [
        (n, c, task, losses[n] * factor[c] * 20, 20)
        for n in range(rounds + 1)
        for c in range(clients)
        for task in dict.fromkeys(own[c])
    ]
    write_table(run / "evaluation.csv", evaluated)
    chosen = [
        (n, sorted(draw.choice(clients, min(active, clients), replace=False).tolist()))
        for n in range(1, rounds + 1)
    ]
    if method != "base":
        trained = [(n, c, 9, 5, 30.0, 10, 1.5) for n, some in chosen for c in some]
        write_table(run / "clients.csv", trained)
    if method == "mops":
        _write_mixture(run, rounds, tasks, experts)
    return run


def _write_mixture(run: Path, rounds: int, tasks: Sequence[str], experts: int) -> None:
    gate, load, entropy, drift = [], [], [], []
    for n in range(rounds + 1):
        sharp = 0.9 * n / max(rounds, 1)
        for index, task in enumerate(tasks):
            for e in range(experts):
                weight = (1 - sharp) / experts + sharp * (e == index % experts)
                gate.append((n, task, e, weight))
                load.append((n, task, e, float(e == index % experts)))
            entropy.append((n, task, (1 - sharp) * math.log(experts)))
        drift += [(n, e, 0.9 - 0.01 * e, 0.2 + 0.02 * e) for e in range(experts) if n]
    for name, rows in (("gate", gate), ("load", load), ("entropy", entropy), ("drift", drift)):
        write_table(run / f"{name}.csv", rows)

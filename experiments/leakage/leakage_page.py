"""The study's numbers as a page of Markdown."""

import math
from collections.abc import Iterable, Sequence

from experiments.leakage.study import Line, Sizes
from mops_fl.config import Config
from mops_fl.run.provenance import commit, machine, versions

_VERSIONS = ("python", "torch", "transformers", "numpy", "flwr")


def page(lines: Sequence[Line], config: Config, sizes: Sizes, wall: float, cpu: float) -> str:
    """All numbers, with what made them beside them.

    Args:
        lines: of the study.
        config: of the clients.
        sizes: of the study.
        wall: seconds that it took.
        cpu: seconds of processor time.
    """
    own, known = machine(), versions()
    found = ", ".join(f"{name} {known[name]}" for name in _VERSIONS if name in known)
    data = config.data.dataset
    told = [
        "# What a client's round leaks",
        "",
        f"`python -m experiments.leakage{' --dolly DOLLY.jsonl' if data == 'dolly' else ''}`, seed "
        f"{config.seed}, commit {commit()[:7]}, {config.backbone.model} in "
        f"{config.backbone.dtype}, rows of `{data}` of at most {sizes.longest} tokens; "
        f"{sizes.public} rows are the attacker's, a client has {sizes.held} others. "
        f"{own['processor']}, one thread, {wall:.0f} s ({cpu:.0f} s of processor time, beside "
        f"other work); {found}.",
        "",
        "The noise of a policy is of the system's entropy: numbers behind it differ a little from "
        "run to run. What each column is: [threat model](../../docs/threat-model.md#what-leaks).",
    ]
    membership = [line for line in lines if line.attack == "membership"]
    told += ["", "## Membership", "", *_table(membership, ("variant", "defence", "steps"))]
    for attack, title in (
        ("signs", "What one step shows of a question"),
        ("question", "Questions"),
        ("answer", "Answers"),
    ):
        some = [line for line in lines if line.attack == attack]
        told += ["", f"## {title}", "", *_table(some, ("variant", "steps"))]
    policy = [line for line in lines if line.variant in ("norms", "policy")]
    told += ["", "## What a node's limits refuse", "", *_list(policy)]
    return "\n".join(told) + "\n"


def _table(lines: Sequence[Line], keys: tuple[str, ...]) -> list[str]:
    """A row for every case, a column for every measure."""
    measures = list(dict.fromkeys(line.measure for line in lines))
    cases: dict[tuple[str, ...], dict[str, float]] = {}
    for line in lines:
        case = (*(str(getattr(line, key)) for key in keys), line.trials)
        cases.setdefault(case, {})[line.measure] = line.value
    head = [*keys, "trials", *measures]
    return [
        _row(head),
        _row(["---"] * len(head)),
        *(
            _row([*case, *(_number(values.get(name)) for name in measures)])
            for case, values in cases.items()
        ),
    ]


def _list(lines: Sequence[Line]) -> list[str]:
    head = [_row(["attack", "limit", "measure", "value"]), _row(["---"] * 4)]
    return head + [
        _row([line.attack, line.defence, line.measure, _number(line.value)]) for line in lines
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3g}"

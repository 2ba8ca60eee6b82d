"""Local steps and tokens a second: ours against peft on the same rows, model and type.

All take turns on the same small slices of rows in one process, so that whatever else the machine
does hits all of them; the factor is the median over the turns.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from experiments.benchmarks.baselines import BASELINES, Baseline
from experiments.benchmarks.common import (
    Workload,
    arguments,
    local_steps,
    report,
    seconds,
    workload,
)
from mops_fl.config import Scalar
from mops_fl.data import Tokenised

SLICE = 10
REFERENCE = "peft prompt tuning"
VARIANTS: dict[str, dict[str, Scalar]] = {
    "FedPrompt": {"method": "fedprompt"},
    "MoPs, gate-top=1": {"gate_top": 1},
    "MoPs, gate-top=2": {"gate_top": 2},
    "LoRA": {"method": "lora"},
    "IA³": {"method": "ia3"},
}
"""Other methods of ours, with the store off."""
COLUMNS = {
    "name": "",
    "steps_per_second": "steps/s",
    "tokens_per_second": "tokens/s",
    "factor": f"× {REFERENCE}",
    "worst": "worst turn",
    "best": "best turn",
}


def contestants(work: Workload) -> dict[str, Callable[[Sequence[Tokenised]], float]]:
    """What takes part: each gives the seconds of one step on each of the rows."""
    found: dict[str, Callable[[Sequence[Tokenised]], float]] = {}
    for name in BASELINES:
        baseline = Baseline(name, work.twin(), work.config.train.learning_rate)
        found[name] = partial(_timed, baseline, work)
    for warm in (False, True):
        mixture = work.mixture(warm=warm)
        for clients in (1, 5, 10):
            name = f"ours, {_who(clients)}, store {'warm' if warm else 'off'}"
            found[name] = partial(local_steps, mixture, work, clients=clients)
    for name, values in VARIANTS.items():
        variant = work.with_values(**values)
        mixture = variant.mixture(warm=False)
        for clients in (1, 5):
            named = f"our {name}, {_who(clients)}"
            found[named] = partial(local_steps, mixture, variant, clients=clients)
    return found


def _who(clients: int) -> str:
    return "one client" if clients == 1 else f"cohort of {clients}"


def _timed(baseline: Baseline, work: Workload, rows: Sequence[Tokenised]) -> float:
    return seconds(lambda: baseline.steps(rows), work.device)


def main() -> None:
    """Run the benchmark."""
    parser = arguments("steps", __doc__)
    parser.add_argument("--turns", type=int, help="slices that each contestant trains on")
    options = parser.parse_args()
    turns = options.turns or (2 if options.quick else 5)
    work = workload(options, (turns + 1) * SLICE)
    taking_part = contestants(work)
    taken: dict[str, list[float]] = {name: [] for name in taking_part}
    for turn in range(turns + 1):
        rows = work.rows[turn * SLICE : (turn + 1) * SLICE]
        for name, run in taking_part.items():
            # the first turn warms up
            if (duration := run(rows)) and turn:
                taken[name].append(duration)
    results = []
    for name, durations in taken.items():
        factors = [r / own for r, own in zip(taken[REFERENCE], durations, strict=True)]
        steps = turns * SLICE / sum(durations)
        results.append(
            {
                "name": name,
                "steps_per_second": steps,
                "tokens_per_second": steps * work.tokens,
                "factor": median(factors),
                "worst": min(factors),
                "best": max(factors),
                "seconds": durations,
            }
        )
    title = f"local steps, {options.model}, {options.dtype}, {work.tokens:.0f} tokens a row"
    report(title, COLUMNS, results, options, tokens=work.tokens, rows_a_turn=SLICE)


if __name__ == "__main__":
    main()

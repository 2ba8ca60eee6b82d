"""How local steps a second scale: with clients in one forward, length, backbone and threads.

Random rows of one length, so that nothing but the varied number varies; the prefix store is warm.
Backbones other than `--model` have random weights. A series ends early when its next measurement
would not fit into `--seconds`. Workers are in `federation`.
"""

from collections.abc import Iterator
from typing import Any

import torch

from experiments.benchmarks.common import (
    LLAMA_7B,
    SHAPES,
    Workload,
    arguments,
    local_steps,
    random_model,
    random_rows,
    report,
    workload,
)
from mops_fl.machine import cores

COLUMNS = {
    "varied": "varied",
    "value": "value",
    "steps_per_second": "steps/s",
    "positions_per_second": "positions/s",
    "relative": "× first of the series",
}
COHORT = 5
DEFAULT_LENGTH = 60


def measure(work: Workload, clients: int, budget: float) -> tuple[float, float]:
    """Local steps a second, the best of three where they fit into the budget; seconds spent."""
    mixture = work.mixture(warm=True)
    rows = list(work.rows[:clients])
    durations = [local_steps(mixture, work, rows, clients)]
    while len(durations) < 3 and sum(durations) + durations[0] < budget:
        durations.append(local_steps(mixture, work, rows, clients))
    return clients / min(durations), sum(durations)


def series(
    varied: str, points: Iterator[tuple[int, Workload, int]], budget: float
) -> Iterator[dict[str, Any]]:
    """One row of results a point, until the budget in seconds is spent."""
    first, left, last = 0.0, budget, 0.0
    for value, work, clients in points:
        if last and 2 * last > left:
            return
        speed, last = measure(work, clients, left / 2)
        left -= last
        first = first or speed
        prompts = work.config.prompts.num_prompts
        yield {
            "varied": varied,
            "value": value,
            "steps_per_second": speed,
            "positions_per_second": speed * (work.tokens + prompts),
            "relative": speed / first,
        }


def main() -> None:
    """Run the benchmark."""
    parser = arguments("scaling", __doc__)
    parser.add_argument("--seconds", type=float, help="for each of the series")
    options = parser.parse_args()
    budget = options.seconds or (10 if options.quick else 30)
    options.length = options.length or DEFAULT_LENGTH
    work = workload(options, 100)
    local_steps(work.mixture(warm=True), work, work.rows[:1], 1)

    def of_length(length: int) -> Workload:
        vocabulary = work.model.config.vocab_size
        rows = random_rows(COHORT, length, vocabulary, options.seed)
        return Workload(work.config, work.model, rows)

    cohorts = ((count, work, count) for count in (1, 2, 5, 10, 20, 50, 100))
    lengths = ((length, of_length(length), COHORT) for length in (32, 64, 128, 256, 512))
    results = [
        *series("clients in one forward", cohorts, budget),
        *series("tokens of a row", lengths, budget),
    ]
    results += series("backbone parameters", _shapes(work), budget)
    if work.device.type == "cpu":
        results += series("threads", _with_threads(work), budget)
    title = f"scaling, {options.model}, {options.dtype}, {options.length} tokens a row"
    report(title, COLUMNS, results, options, cohort=COHORT)


def _shapes(work: Workload) -> Iterator[tuple[int, Workload, int]]:
    for shape in SHAPES:
        if shape == LLAMA_7B and work.device.type == "cpu":
            return
        model = random_model(shape, work.model.dtype, work.device)
        rows = random_rows(COHORT, round(work.tokens), model.config.vocab_size, 0)
        yield model.num_parameters(), Workload(work.config, model, rows), COHORT


def _with_threads(work: Workload) -> Iterator[tuple[int, Workload, int]]:
    before = torch.get_num_threads()
    for threads in range(1, cores() + 1):
        torch.set_num_threads(threads)
        yield threads, work, COHORT
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()

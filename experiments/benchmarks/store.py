"""What the prefix store on disk gives to evaluation and to local steps.

Evaluation is batched by length when there is no store; with one, each missing example is computed
alone. `reading` and `writing` are the store by itself, a file an example.
"""

import tempfile
from pathlib import Path

import torch

from experiments.benchmarks.common import (
    STORE_BYTES,
    Workload,
    arguments,
    local_steps,
    report,
    seconds,
    workload,
)
from mops_fl.models.backbone import Backbone
from mops_fl.models.mixture import Mixture
from mops_fl.models.prefix_store import DiskStore
from mops_fl.models.trainable import Trainable
from mops_fl.training.evaluation import evaluate

COLUMNS = {
    "name": "",
    "seconds": "seconds",
    "milliseconds_each": "ms an example",
    "factor": "× without",
}


def mixture(work: Workload, folder: Path | None) -> Mixture:
    """Our forward pass without a store, or with one in a folder."""
    backbone = Backbone(work.twin())
    store = None
    if folder is not None:
        shape = (backbone.hidden_size, backbone.dtype)
        store = DiskStore(folder, b"benchmark", *shape, STORE_BYTES)
    pretrained = torch.from_numpy(work.clients(1)[0]["prompts"])
    return Mixture(backbone, work.config.prompts, work.layer, pretrained, store)


def file_times(work: Workload, kept: Mixture, folder: Path) -> dict[str, float]:
    """Seconds to write and to read all rows, without computing anything."""
    backbone = kept.backbone
    store = DiskStore(folder, b"files", backbone.hidden_size, backbone.dtype, STORE_BYTES)
    made = []
    for row in work.rows:
        _, states, features = kept.prepare([row])
        made.append((states.clone(), features[0].clone()))

    def get_all() -> None:
        for row, both in zip(work.rows, made, strict=True):
            # every byte is read: the checksum does
            store.get(row, lambda both=both: both)  # type: ignore[misc]

    return {name: seconds(get_all, work.device) for name in ("writing", "reading")}


def main() -> None:
    """Run the benchmark."""
    parser = arguments("store", __doc__)
    parser.add_argument("--rows", type=int, help="test examples")
    options = parser.parse_args()
    count = options.rows or (20 if options.quick else 200)
    work = workload(options, count)
    results = []

    def add(name: str, taken: float, rows: int, without: float | None) -> None:
        factor = without / taken if without else None
        each = 1000 * taken / rows
        results.append(
            {"name": name, "seconds": taken, "milliseconds_each": each, "factor": factor}
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        off, on = mixture(work, None), mixture(work, folder)
        trainable = Trainable(work.clients(1), work.device)
        evaluate(off, trainable, work.rows[:4])

        def evaluation(which: Mixture) -> float:
            return seconds(lambda: evaluate(which, trainable, work.rows), work.device)

        without = evaluation(off)
        add(f"evaluation of {count}, without", without, count, None)
        add(f"evaluation of {count}, filling", evaluation(on), count, without)
        add(f"evaluation of {count}, filled", evaluation(on), count, without)
        rows = work.rows[: min(count, 20)]
        for clients in (1, 5):
            who = f"local steps, {clients} in one forward"
            without = local_steps(off, work, rows, clients)
            add(f"{who}, without", without, len(rows), None)
            add(f"{who}, filled", local_steps(on, work, rows, clients), len(rows), without)
        for what, taken in file_times(work, on, folder).items():
            add(f"{what} files", taken, count, None)
        sizes = [path.stat().st_size for path in folder.glob("*/*")]
    title = f"prefix store, {options.model}, {options.dtype}, {work.tokens:.0f} tokens a row"
    report(title, COLUMNS, results, options, mean_file_bytes=sum(sizes) / len(sizes))


if __name__ == "__main__":
    main()

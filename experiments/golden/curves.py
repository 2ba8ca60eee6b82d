"""Golden curves: what a three-round federation of a tiny LLaMA gives, for each way to compute it.

    python -m experiments.golden.curves record           # write the CSVs beside this file
    python -m experiments.golden.curves compare COMMIT   # this tree against a commit, to the bit

The CPU is repeatable to the last bit, so a change that is not meant to change a number can show
that it did not: `compare` runs both trees on this machine. The CSVs here were recorded on one
machine and are compared to `TOLERANCE` on others, which round differently.
"""

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.golden.tiny import save_tiny_llama

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROUNDS = 3
TOLERANCE = 5e-4
"""Relative, of sums of losses: processors differ in their last bits, and training widens that."""

VALUES = {
    "dtype": "float32",
    "device": "cpu",
    "dataset": "skills",
    "num-samples": 120,
    "eval-samples": 0,
    "num-clients": 6,
    "active-clients": 4,
    "num-server-rounds": ROUNDS,
    "cohort-size": 2,
    "local-steps": 10,
    "learning-rate": 0.005,
    "experts": 2,
    "prompts-per-expert": 3,
    "pretrain-prompt-steps": 3,
    "pretrain-gate-steps": 3,
    "pretrain-data": "pooled",
    "server-fraction": 0.0,
}
"""Every value that a curve depends on and whose default may change."""


@dataclass(frozen=True)
class Case:
    """One way to compute a federation."""

    engine: str
    method: str
    gate_mode: str = "attention"

    @property
    def name(self) -> str:
        """``cohort-mops-hidden``."""
        parts = (self.engine, self.method, self.gate_mode if self.method == "mops" else "")
        return "-".join(filter(None, parts))

    @property
    def file(self) -> Path:
        """Its recorded ``rounds.csv``."""
        return HERE / f"{self.name}.csv"


CASES = tuple(
    Case(engine, method, mode)
    for engine in ("clients", "cohort")
    for method, mode in (("mops", "attention"), ("mops", "hidden"), ("fedprompt", "attention"))
)


def run(case: Case, model: Path, folder: Path, *, workers: int = 2, checkout: Path = ROOT) -> Path:
    """Run one case through the command line of a checkout; its run folder below `folder`.

    Raises:
        RuntimeError: the run did not complete.
    """
    name = f"{case.name}-{workers}"
    values = {**VALUES, "engine": case.engine, "method": case.method, "gate-mode": case.gate_mode}
    values = {key: value for key, value in values.items() if key in _known(checkout)}
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from mops_fl.cli import main; main()", "simulate"),
            *(f"-c{key}={value}" for key, value in {**values, "model": model}.items()),
            *(f"--workers={workers}", f"--name={name}", f"--runs-dir={folder}"),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(checkout),
            # nothing that another version kept may stand in for what this one computes
            "MOPS_FL_CACHE": str(folder / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=1600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} in {checkout}: {done.stderr}")
    return folder / name


def _known(checkout: Path) -> Container[str]:
    """The keys of a checkout; an earlier one has no choice where it lacks one."""
    text = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tool"]["flwr"]["app"]["config"]


def difference(run_folder: Path, golden: Path) -> str:
    """How a run's ``rounds.csv`` differs from a recorded one; empty within `TOLERANCE`."""
    ours, theirs = (pd.read_csv(p) for p in (run_folder / "rounds.csv", golden))
    keys = ["round", "task", "tokens"]
    if not ours[keys].equals(theirs[keys]):
        return "rounds, tasks or answer tokens differ"
    furthest = ((ours["nll"] - theirs["nll"]).abs() / theirs["nll"]).max()
    return "" if furthest <= TOLERANCE else f"a sum of losses is off by {furthest:.1e}"


def same_bits(run_folder: Path, other: Path) -> list[str]:
    """The result files of two runs that are not the same to the bit."""
    names = ["rounds.csv", "partition.csv", f"checkpoints/round-{ROUNDS:03d}.safetensors"]
    names += ["gate.csv"] if (run_folder / "gate.csv").exists() else []
    return [name for name in names if not _same(run_folder / name, other / name)]


def _same(ours: Path, theirs: Path) -> bool:
    """Whether two files have the same bytes; tables, in the columns that both versions write."""
    if ours.suffix != ".csv":
        return filecmp.cmp(ours, theirs, shallow=False)
    one, two = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (ours, theirs))
    both = [column for column in one.columns if column in two.columns]
    return one[both].equals(two[both])


def record() -> None:
    """Write the golden curves."""
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_llama(Path(folder) / "model")
        for case in CASES:
            case.file.write_bytes((run(case, model, Path(folder)) / "rounds.csv").read_bytes())
            print("recorded", case.file.relative_to(ROOT), flush=True)


def compare(commit: str) -> bool:
    """Run every case in this tree and in `commit`; whether all bits are the same."""
    same = True
    with tempfile.TemporaryDirectory() as name, _worktree(commit) as other:
        folder = Path(name)
        model = save_tiny_llama(folder / "model")
        for case in CASES:
            (folder / "here").mkdir(exist_ok=True)
            (folder / "there").mkdir(exist_ok=True)
            here = run(case, model, folder / "here")
            there = run(case, model, folder / "there", checkout=other)
            different = same_bits(here, there)
            same = same and not different
            print(f"{case.name}: {', '.join(different) or 'the same bits'}", flush=True)
    return same


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "other"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", folder, commit],
            check=True,
        )
        try:
            yield folder
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", folder], check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m experiments.golden.curves", None, __doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("record")
    actions.add_parser("compare").add_argument("commit")
    options = parser.parse_args()
    if options.action == "record":
        record()
    elif not compare(options.commit):
        sys.exit(1)


if __name__ == "__main__":
    main()

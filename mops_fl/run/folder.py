"""Writing a run folder: whole at every moment, so that a killed run can be read and resumed.

Each file is replaced as a whole. A round's checkpoint is written last: a round is whole when its
checkpoint is there, and `RunFolder.reopen` drops the rows of later rounds.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors.numpy import load_file, save_file

from mops_fl.config import EARLIER, MENDABLE
from mops_fl.errors import RunError
from mops_fl.files import replacing, write_text
from mops_fl.metrics import Tally
from mops_fl.wire.records import Tensors

_STATE = "state/"

Kind = type[int] | type[float] | type[str]

COLUMNS: dict[str, dict[str, Kind]] = {
    "rounds.csv": {
        **{"round": int, "task": str, "nll": float, "tokens": int},
        **{"perplexity": float, "share": float},
    },
    "train.csv": {
        **{"round": int, "clients": int, "failures": int, "steps": int, "nll": float},
        **{"tokens": int, "seconds": float, "bytes_up": int, "bytes_down": int},
        **{"epsilon": float, "delta": float, "clip": float, "noise": float},
        **{"clipped_share": float, "snr": float},
    },
    "evaluation.csv": {
        **{"round": int, "partition": int, "task": str, "nll": float, "tokens": int},
    },
    "evaluate.csv": {
        **{"round": int, "clients": int, "failures": int, "tokens": int},
        **{"seconds": float, "bytes_down": int},
    },
    "clients.csv": {
        **{"round": int, "partition": int, "examples": int, "steps": int},
        **{"nll": float, "tokens": int, "seconds": float},
    },
    "gate.csv": {"round": int, "task": str, "expert": int, "weight": float},
    "partition.csv": {"partition": int, "task": str, "train": int, "test": int},
    "validation.csv": {
        **{"round": int, "partition": int, "task": str, "nll": float, "tokens": int},
    },
    "personal.csv": {
        **{"round": int, "partition": int, "task": str, "nll": float, "tokens": int},
    },
    "drift.csv": {"round": int, "expert": int, "cosine": float, "update_cosine": float},
    "load.csv": {"round": int, "task": str, "expert": int, "load": float},
    "entropy.csv": {"round": int, "task": str, "entropy": float},
}
"""The tables of a run folder, and what their cells hold."""

LATER = {"rounds.csv": (math.nan,), "train.csv": (math.nan,) * 6}
"""What stands for the last columns of a table that runs of earlier versions lack."""

FACTS = ("method", "status", "config", "seed")
"""The keys of `run.json` that every reader may rely on."""


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        """Use `create` or `reopen`."""
        self.path = path
        self._rows: dict[str, list[Sequence[Any]]] = {}
        self.facts: dict[str, Any] = {}

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any]) -> "RunFolder":
        """Begin a new run.

        Raises:
            RunError: the folder exists, or cannot be written.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"run-dir={str(path)!r} exists: choose another, or carry it on with --resume"
            ) from None
        except OSError as error:
            raise RunError(f"cannot write run-dir={str(path)!r}: {error.strerror}") from error
        folder = cls(path)
        folder.update(status="running", started=now(), **facts)
        return folder

    @classmethod
    def reopen(cls, path: Path, config: Mapping[str, Any]) -> "RunFolder":
        """Open a run to carry it on after its last whole round, with other `MENDABLE` values.

        Raises:
            RunError: there is no run that can be read, it is complete, or its configuration is
                another.
        """
        folder = cls(path)
        folder.facts = read_facts(path)
        if folder.facts["status"] == "completed":
            raise RunError(f"run-dir={str(path)!r} is complete: there is nothing to resume")
        for key, value in {**EARLIER, **folder.facts["config"]}.items():
            if key not in ("resume", "run-dir", *MENDABLE) and config.get(key) != value:
                raise RunError(
                    f"{key}={config.get(key)!r} but the run in {path} has {value!r}: a run is "
                    f"resumed with its own configuration, but for {', '.join(MENDABLE)}"
                )
        folder.facts["config"] |= {key: config[key] for key in MENDABLE if key in config}
        folder.facts.setdefault("id", uuid4().hex)
        folder._drop_after(folder.last_round())
        folder.update(status="running", error=None, finished=None)
        return folder

    def update(self, **facts: Any) -> None:
        """Write facts into run.json, and the totals as they stand in the tables."""
        self.facts |= {**facts, **self._totals()}
        write_text(self.path / "run.json", json.dumps(self.facts, indent=2) + "\n")

    def add_rows(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows to one of the tables in `COLUMNS`."""
        self.set_rows(name, [*self._rows.get(name, []), *rows])

    def set_rows(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Make a table anew."""
        self._rows[name] = [*rows]
        lines = map(csv_line, [tuple(COLUMNS[name]), *self._rows[name]])
        write_text(self.path / name, "".join(lines))

    def best_round(self) -> int | None:
        """The round with the lowest loss on validation rows, the first of equals.

        Rounds are compared on the clients that were evaluated in all of them; None without any.
        """
        table = [row for row in self._rows.get("validation.csv", []) if row[0] <= self.last_round()]
        held: dict[int, dict[int, Tally]] = {}
        for current, partition, _, nll, tokens in table:
            own = held.setdefault(current, {})
            own[partition] = own.get(partition, Tally()) + Tally(nll, tokens)
        common = set.intersection(*map(set, held.values())) if held else set()
        if not common:
            return None
        tallies = {c: sum((own[p] for p in sorted(common)), Tally()) for c, own in held.items()}
        return min(tallies, key=lambda current: (tallies[current].loss, current))

    def tasks(self) -> list[str]:
        """Task names in the order of partition.csv, which is that of the experts."""
        return list(dict.fromkeys(str(row[1]) for row in self._rows.get("partition.csv", [])))

    def held_out(self) -> dict[int, dict[str, int]]:
        """Held-out rows of each task, by the partition id of each client of partition.csv."""
        found: dict[int, dict[str, int]] = {}
        for partition, task, _, rows in self._rows.get("partition.csv", []):
            found.setdefault(partition, {})[task] = rows
        return found

    def evaluated_tokens(self) -> dict[int, dict[str, int]]:
        """Held-out answer tokens of each task, by the partition id of who was ever evaluated."""
        found: dict[int, dict[str, int]] = {}
        for _, partition, task, _, tokens in self._rows.get("evaluation.csv", []):
            found.setdefault(partition, {})[task] = tokens
        return found

    def is_evaluated(self, server_round: int) -> bool:
        """Whether a round has its perplexity."""
        return any(row[0] == server_round for row in self._rows.get("rounds.csv", []))

    def last_trained(self) -> dict[int, int]:
        """The last round in which each client trained, by partition id."""
        rows = self._rows.get("clients.csv", [])
        return {int(row[1]): int(row[0]) for row in rows}

    def save_checkpoint(self, server_round: int, tensors: Tensors, state: Tensors) -> None:
        """Write all that a later round needs, and make the round whole.

        Args:
            server_round: that has ended.
            tensors: of the model.
            state: what the aggregation carries on; its names begin with ``state/`` in the file.
        """
        made = {**tensors, **{f"{_STATE}{name}": value for name, value in state.items()}}
        with replacing(self.checkpoint(server_round)) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in made.items()}, temporary)

    def load_checkpoint(self, server_round: int) -> Tensors:
        """The tensors of a whole round."""
        held = load_file(self.checkpoint(server_round))
        return {name: value for name, value in held.items() if not name.startswith(_STATE)}

    def load_state(self, server_round: int) -> Tensors:
        """What the aggregation carried on after a whole round."""
        held = load_file(self.checkpoint(server_round))
        return {n.removeprefix(_STATE): v for n, v in held.items() if n.startswith(_STATE)}

    def last_round(self) -> int:
        """The last whole round; -1 where there is none."""
        found = (
            re.fullmatch(r"round-(\d+)\.safetensors", file.name)
            for file in (self.path / "checkpoints").glob("round-*.safetensors")
        )
        return max((int(match[1]) for match in found if match), default=-1)

    def progress(self, **state: Any) -> None:
        """Write where the run stands, for whoever shows it."""
        write_text(self.path / "progress.json", json.dumps(state) + "\n")

    def checkpoint(self, server_round: int) -> Path:
        """Where the tensors of a round are, or would be."""
        return self.path / "checkpoints" / f"round-{server_round:03d}.safetensors"

    def _drop_after(self, last: int) -> None:
        """Read the tables back, without what was written after the last whole round.

        What has no round, as who holds what, is written before round 0.
        """
        for name, columns in COLUMNS.items():
            if not (self.path / name).is_file():
                continue
            rows: list[Sequence[Any]] = [*read_run_table(self.path / name)]
            whole = [row for row in rows if (row[0] if "round" in columns else 0) <= last]
            self._rows[name] = rows
            if len(whole) == len(rows):
                continue
            if name == "train.csv":
                begun = self.facts.get("unfinished_rounds", 0) + len(rows) - len(whole)
                self.update(unfinished_rounds=begun)
            self.set_rows(name, whole)
        if last < 0:
            self.facts.pop("pretraining", None)
        missing = self.facts.get("evaluation_failures", {})
        for server_round in [number for number in missing if int(number) > last]:
            del missing[server_round]

    def _totals(self) -> dict[str, float]:
        """Seconds and bytes of pretraining, training and evaluation."""
        totals = {"seconds": 0.0, "bytes_up": 0, "bytes_down": 0}
        totals |= self.facts.get("pretraining", {})
        for name in ("train.csv", "evaluate.csv"):
            for row in self._rows.get(name, []):
                cells = dict(zip(COLUMNS[name], row, strict=True))
                for key in totals.keys() & cells.keys():
                    totals[key] += cells[key]
        return {**totals, "seconds": round(totals["seconds"], 3)}


def read_facts(folder: Path) -> dict[str, Any]:
    """What a run folder's `run.json` says.

    Raises:
        RunError: it is not a run folder, or its `run.json` is malformed.
    """
    path = folder / "run.json"
    if not folder.is_dir():
        raise RunError(f"{folder} is not a run folder: there is no such folder")
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder: it has no {path.name}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    missing = [key for key in FACTS if not isinstance(facts, dict) or key not in facts]
    if missing:
        raise RunError(f"{path} is not a run's: it lacks {', '.join(missing)}")
    return facts


def read_run_table(path: Path) -> list[tuple[Any, ...]]:
    """The rows of one of the tables in `COLUMNS`.

    Raises:
        RunError: as `read_table`.
    """
    return completed(path.name, read_table(path, COLUMNS[path.name], len(LATER.get(path.name, ()))))


def completed(name: str, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows of a table, with `LATER` for the cells that an earlier version did not write."""
    width = len(COLUMNS[name])
    return [row if len(row) == width else (*row, *LATER[name]) for row in rows]


def read_table(path: Path, columns: Mapping[str, Kind], later: int = 0) -> list[tuple[Any, ...]]:
    """The rows of a CSV file, each cell of its column's type; text is taken as it stands.

    Args:
        path: the file.
        columns: names and types.
        later: how many of the last columns may be missing, all together.

    Raises:
        RunError: the file is missing or malformed, or its columns are others.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except FileNotFoundError:
        raise RunError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    header, *rows = lines or [[]]
    if header not in ([*columns], [*columns][: len(columns) - later]):
        raise RunError(
            f"{path} has the columns {', '.join(header) or 'none'}; expected {', '.join(columns)}"
        )
    kinds = {name: columns[name] for name in header}
    return [_typed(path, kinds, row) for row in rows]


def _typed(path: Path, columns: Mapping[str, Kind], row: Sequence[str]) -> tuple[Any, ...]:
    if len(row) != len(columns):
        raise RunError(f"{path}: a row has {len(row)} cells instead of {len(columns)}: {row}")
    cells = []
    for (name, kind), text in zip(columns.items(), row, strict=True):
        try:
            cells.append(kind(text))
        except ValueError:
            raise RunError(
                f"{path}: column {name} holds {text!r}, which is not "
                f"{'a whole number' if kind is int else 'a number'}"
            ) from None
    return tuple(cells)


def csv_line(cells: Sequence[Any]) -> str:
    """A line of a CSV file. Cells that hold a carriage return are quoted as well.

    The module `csv` quotes only what its own end of line holds, hence its default end here.
    """
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def now() -> str:
    """The time, in ISO format with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")

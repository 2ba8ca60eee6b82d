"""Writing a run folder: whole at every moment, so that a killed run can be read and resumed.

Each file is replaced as a whole. A round's checkpoint is written last: a round is whole when its
checkpoint is there, and `RunFolder.reopen` drops the rows of later rounds.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors.numpy import load_file, save_file

from mops_fl.errors import RunError
from mops_fl.files import replacing, write_text
from mops_fl.wire.records import Tensors

COLUMNS = {
    "rounds.csv": ("round", "task", "nll", "tokens", "perplexity"),
    "train.csv": (
        *("round", "clients", "failures", "steps", "nll", "tokens"),
        *("seconds", "bytes_up", "bytes_down"),
    ),
    "clients.csv": ("round", "partition", "examples", "steps", "nll", "tokens", "seconds"),
    "gate.csv": ("round", "task", "expert", "weight"),
    "partition.csv": ("partition", "task", "train", "test"),
}
"""The tables of a run folder."""


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
        """Open a run to carry it on after its last whole round.

        Raises:
            RunError: there is no run, it is complete, or its configuration is another.
        """
        folder = cls(path)
        try:
            folder.facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"run-dir={str(path)!r} has no readable run.json: {error}") from error
        if folder.facts["status"] == "completed":
            raise RunError(f"run-dir={str(path)!r} is complete: there is nothing to resume")
        for key, value in folder.facts["config"].items():
            if key not in ("resume", "run-dir") and config.get(key) != value:
                raise RunError(
                    f"{key}={config.get(key)!r} but the run in {path} has {value!r}: "
                    "a run is resumed with its own configuration"
                )
        folder.facts.setdefault("id", uuid4().hex)
        last = folder.last_round()
        for name in COLUMNS:
            folder._rows[name] = folder._read_rows(name, last)
        folder.update(status="running", error=None, finished=None)
        return folder

    def update(self, **facts: Any) -> None:
        """Write facts into run.json."""
        self.facts.update(facts)
        write_text(self.path / "run.json", json.dumps(self.facts, indent=2) + "\n")

    def add_rows(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows to one of the tables in `COLUMNS`."""
        table = self._rows.setdefault(name, [])
        table.extend(rows)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS[name], *table])
        write_text(self.path / name, text.getvalue())

    def tasks(self) -> list[str]:
        """Task names in the order of partition.csv, which is that of the experts."""
        return list(dict.fromkeys(str(row[1]) for row in self._rows.get("partition.csv", [])))

    def last_trained(self) -> dict[int, int]:
        """The last round in which each client trained, by partition id."""
        rows = self._rows.get("clients.csv", [])
        return {int(row[1]): int(row[0]) for row in rows}

    def save_checkpoint(self, server_round: int, tensors: Tensors) -> None:
        """Write all tensors that a later round needs, and make the round whole."""
        with replacing(self._checkpoint(server_round)) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary)

    def load_checkpoint(self, server_round: int) -> Tensors:
        """The tensors of a whole round."""
        return load_file(self._checkpoint(server_round))

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

    def _checkpoint(self, server_round: int) -> Path:
        return self.path / "checkpoints" / f"round-{server_round:03d}.safetensors"

    def _read_rows(self, name: str, last: int) -> list[Sequence[Any]]:
        file = self.path / name
        if not file.is_file():
            return []
        with file.open(encoding="utf-8", newline="") as stream:
            rows: list[Sequence[Any]] = [*csv.reader(stream)][1:]
        if COLUMNS[name][0] != "round":
            return rows
        return [row for row in rows if int(row[0]) <= last]


def now() -> str:
    """The time, in ISO format with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")

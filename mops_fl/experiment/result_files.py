"""The results of an experiment: one file a cell, named by what its numbers depend on.

A result is whole or not there: it is written when its run is completed, and renamed into place.
Cells that failed have a file of their own beside the results, with the reason.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mops_fl.code_digest import code_digest
from mops_fl.config import EARLIER, Config, defaults
from mops_fl.errors import RunError
from mops_fl.experiment.plan import Cell
from mops_fl.files import write_text
from mops_fl.run.folder import COLUMNS
from mops_fl.run.results import Run

FORMAT = 1

_BULKY = ("evaluation.csv", "validation.csv")
"""Tables a row a client and task, of which a result holds the rounds that it is judged by."""


@dataclass(frozen=True)
class Identity:
    """What the numbers of a cell depend on."""

    config: Mapping[str, Any]
    """All keys that are not paths of this machine."""
    data: Mapping[str, str]
    """Digests of rows, model and tokenizer."""
    code: str
    """Digest of the code that decides numbers; comments and docstrings do not count."""

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of SHA-256."""
        text = json.dumps([self.config, self.data, self.code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_PATHS = ("run-dir", "resume", "data-path", "server-data", "calibration-path", "model")
"""Keys whose contents count, not where they lie; and those that are no part of a cell."""


def identify(cell: Cell) -> Identity:
    """The identity of a cell.

    Raises:
        MopsError: its data or model cannot be read.
    """
    config = cell.config
    flat = {key: value for key, value in config.flat().items() if key not in _PATHS}
    return Identity(flat, _digests(config), code_digest())


@functools.cache
def _digests(config: Config) -> dict[str, str]:
    from mops_fl.models.weights import model_facts

    facts = model_facts(config.backbone)
    found = {"model": facts.digest, "tokenizer": facts.tokenizer_digest}
    return {**found, **_row_digests(config)}


def _row_digests(config: Config) -> dict[str, str]:
    from mops_fl.data import load_server_data
    from mops_fl.models.weights import CALIBRATION_SEED, calibration_data

    found = {"rows": _corpus_digest(config.data, config.seed, config.partition.partition_column)}
    if config.data.server_data:
        found["server"] = load_server_data(config.data, config.seed).digest
    if config.backbone.spec.pruning:
        rows = calibration_data(config.backbone)
        found["calibration"] = _corpus_digest(rows, CALIBRATION_SEED, "")
    return found


@functools.cache
def _corpus_digest(data: Any, seed: int, column: str) -> str:
    from mops_fl.data import load_corpus

    return load_corpus(data, seed, column).digest


@dataclass(frozen=True)
class Result:
    """A finished cell, as its file has it."""

    file: Path
    entry: str
    point: tuple[tuple[str, Any], ...]
    hash: str
    identity: Mapping[str, Any]
    run: Run

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.run.facts["seed"])

    def is_of(self, cell: Cell) -> bool:
        """Whether it is a result of a cell: of its configuration, wherever rows and model lie."""
        stated = {**defaults(), **EARLIER, **self.run.facts["config"]}
        return all(
            stated.get(key) == value
            for key, value in cell.config.flat().items()
            if key not in _PATHS
        )


class Store:
    """A folder of results."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written before there is a result."""
        self.folder = folder

    def file(self, cell: Cell, identity: Identity) -> Path:
        """Where the cell's result is, or will be."""
        return self.folder / f"{cell.name}-{identity.hash[:8]}.json"

    def failure(self, cell: Cell, identity: Identity) -> Path:
        """Where the reason is if the cell failed."""
        return self.folder / "failed" / f"{cell.name}-{identity.hash[:8]}.json"

    @contextlib.contextmanager
    def claimed(self, cell: Cell, identity: Identity) -> Iterator[bool]:
        """Hold a cell; False where another process does, which may be on another machine."""
        # locks stay: who unlinked one could let two others in
        path = self.folder / ".locks" / f"{cell.name}-{identity.hash[:8]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                raise RunError(
                    f"{self.folder} has no locks ({error.strerror}), so two runners could do one "
                    "cell twice: choose another --results"
                ) from error
            yield True

    def keep(self, cell: Cell, identity: Identity, run_folder: Path) -> Path:
        """Write the result of a completed run.

        Raises:
            RunError: the run folder cannot be read, or the result not be written.
        """
        run = Run.read(run_folder)
        judged = {0, run.result_round, int(run.perplexity().index[-1])}
        tables = {}
        for name in COLUMNS:
            if (run_folder / name).is_file():
                rows = run.rows(name)
                bulky = name in _BULKY
                tables[name] = [list(row) for row in rows if not bulky or row[0] in judged]
        facts = {key: value for key, value in run.facts.items() if key not in _LEFT_OUT}
        config = {**run.facts["config"], **dict.fromkeys(_OWN, "")}
        if (model := Path(config["model"])).is_absolute():
            config["model"] = model.name
        content = {
            "format": FORMAT,
            "entry": cell.entry,
            "point": dict(cell.point),
            "hash": identity.hash,
            "identity": {"data": identity.data, "code": identity.code},
            "facts": {**facts, "config": config},
            "tables": tables,
        }
        target = self.file(cell, identity)
        write_text(target, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
        self.failure(cell, identity).unlink(missing_ok=True)
        return target

    def fail(self, cell: Cell, identity: Identity, reason: str) -> None:
        """Write why a cell failed."""
        target = self.failure(cell, identity)
        target.parent.mkdir(parents=True, exist_ok=True)
        said = {"entry": cell.entry, "point": dict(cell.point), "seed": cell.config.seed}
        write_text(target, json.dumps({**said, "reason": reason}, indent=1) + "\n")

    def results(self) -> list[Result]:
        """All results, in the order of their names.

        Raises:
            RunError: a file is no result of this version.
        """
        return [read_result(file) for file in sorted(self.folder.glob("*.json"))]


_LEFT_OUT = ("id", "error")
_OWN = ("run-dir", "data-path", "server-data", "calibration-path")
"""Places on the machine that ran it."""


def read_result(file: Path) -> Result:
    """A result file.

    Raises:
        RunError: it is none of this version, or cut off.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RunError(f"{file}: format {content['format']} instead of {FORMAT}")
        tables = {
            name: [tuple(row) for row in rows]
            for name, rows in content["tables"].items()
            if name in COLUMNS
        }
        return Result(
            file=file,
            entry=content["entry"],
            point=tuple(content["point"].items()),
            hash=content["hash"],
            identity=content["identity"],
            run=Run(file, content["facts"], tables),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is no result of an experiment: {error}") from error

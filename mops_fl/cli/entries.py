"""What `compare` compares: entries such as ``mops:gate-sync=local``, and their run folders."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mops_fl.cli.run import placed
from mops_fl.config import Config, split_entry
from mops_fl.errors import ConfigError, RunError
from mops_fl.files import absolute
from mops_fl.labels import slug

_LONGEST = 80
"""Letters of an entry in the name of its folder; file systems have 255 for the whole name."""

Configure = Callable[[Sequence[str], str], Config]
"""Takes values, each ``key=value``, and a method."""


@dataclass(frozen=True)
class Entry:
    """A method, and values that are this entry's own."""

    method: str
    values: tuple[str, ...]
    """``key=value`` as typed, without spaces around them."""

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Of ``method[:key=value…]``."""
        method, values = split_entry(text)
        return cls(method, tuple(values))

    @property
    def label(self) -> str:
        """For headings and legends."""
        return " ".join((self.method, *self.values))

    @property
    def slug(self) -> str:
        """The start of its folders' names: safe as the name of a file."""
        return slug(self.label)

    def config(self, configure: Configure) -> Config:
        """Its configuration.

        Raises:
            ConfigError: a key or a value cannot be used; the entry is named.
        """
        for value in self.values:
            if (key := value.partition("=")[0]) in ("method", "seed"):
                raise ConfigError(
                    f"--methods {self.label!r}: {key} is no key of an entry: the method is what "
                    "the entry begins with, and --seeds says the seeds"
                )
        try:
            return configure(self.values, self.method)
        except ConfigError as error:
            if not self.values:
                raise
            raise ConfigError(f"--methods {self.label!r}: {error}") from error


@dataclass(frozen=True)
class Planned:
    """A run of a comparison: to be made, to be carried on, or there already."""

    label: str
    config: Config
    done: bool


def parse_methods(text: str) -> list[Entry]:
    """The entries of ``--methods``, in their order.

    Raises:
        ConfigError: there is none.
    """
    entries = [Entry.parse(part) for part in text.split(",") if part.strip()]
    if not entries:
        raise ConfigError(f"--methods {text!r} names no method")
    return entries


def parse_seeds(text: str) -> list[int]:
    """The seeds of ``--seeds``, each once.

    Raises:
        ConfigError: there is none, or one is no whole number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"[0-9]+", part) for part in parts):
        raise ConfigError(f"--seeds {text!r}: must be whole numbers of at least 0, as in 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


def distinct(entries: Sequence[Entry], configure: Configure) -> dict[Config, Entry]:
    """The configurations of the entries; of entries with an equal one, the first stands.

    Raises:
        ConfigError: a key or a value cannot be used.
    """
    found: dict[Config, Entry] = {}
    for entry in entries:
        found.setdefault(entry.config(configure), entry)
    return found


def folder_names(entries: Sequence[Entry]) -> list[str]:
    """A start of folder names for each entry, no two alike on any file system."""
    shared = Counter(entry.slug.lower() for entry in entries)
    return [
        entry.slug
        if shared[entry.slug.lower()] == 1 and len(entry.slug) <= _LONGEST
        else f"{entry.slug[:_LONGEST]}-{hashlib.sha256(entry.label.encode()).hexdigest()[:8]}"
        for entry in entries
    ]


def plan(label: str, config: Config, runs_dir: Path, name: str, resume: bool) -> Planned:
    """A run of a comparison in its folder `name`.

    Args:
        label: its entry's.
        config: without a run folder.
        runs_dir: folder of run folders.
        name: the run folder's.
        resume: whether a folder that is there is taken as it is, or carried on.

    Raises:
        RunError: the folder is there and may not, is no run's, or is that of another configuration.
    """
    folder = absolute(runs_dir) / name
    if not (resume and folder.exists()):
        return Planned(label, placed(config, runs_dir, name), done=False)
    from mops_fl.run.results import Run, differences

    facts = Run.read(folder).facts
    different = differences(facts["config"], config.flat())
    if facts["seed"] != config.seed:
        different.append("seed")
    if different:
        raise RunError(
            f"{folder} is a run of another configuration ({', '.join(different)}): carry on with "
            "the values that the comparison began with, or give another --name"
        )
    done = facts["status"] == "completed"
    return Planned(label, replace(config, run_dir=str(folder), resume=not done), done)

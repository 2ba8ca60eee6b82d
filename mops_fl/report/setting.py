"""With what the runs were run: every key of the configuration, versions and digests."""

from collections.abc import Mapping, Sequence
from typing import Any

from mops_fl.config import EARLIER, defaults
from mops_fl.report import wording
from mops_fl.report.layout import Behind, Block, Note, Section, Table
from mops_fl.run.results import Replicates, Run

_OWN = ("run-dir", "resume")
"""Keys that say nothing of what was run."""
_FACTS = (
    *("commit", "device", "dtype", "engine", "workers", "threads", "cohort_size", "simulated"),
    *("model_digest", "tokenizer_digest", "data_digest", "trainable_parameters"),
    *("bytes_per_round", "best_round", "kept_round", "started", "finished"),
)


def configuration(groups: Sequence[Replicates], every: Sequence[Run]) -> Section:
    """What differs first; everything when it is asked for."""
    labels, columns = _columns(groups, every)
    keys = [*dict.fromkeys(key for column in columns for key in column if key not in _OWN)]
    rows = {key: [str(column.get(key, wording.BLANK)) for column in columns] for key in keys}
    apart = [key for key in keys if len({*rows[key]}) > 1]
    usual = {key: str(defaults().get(key, wording.BLANK)) for key in keys}
    changed = [key for key in keys if key not in apart and rows[key][0] != usual[key]]
    blocks: list[Block] = []
    if apart:
        blocks.append(_table("What differs", labels, rows, apart))
    if changed:
        what = "The same in all, other than the default"
        alike = [(key, rows[key][0], usual[key]) for key in changed]
        blocks.append(Table(what, ("key", "value", "default"), alike, prose=True))
    if not blocks:
        blocks.append(Note("Every key has its default."))
    blocks.append(Behind("Every key", [_table("Configuration", labels, rows, keys)]))
    facts = [(run.name, _facts(run)) for run in every]
    names = [*dict.fromkeys(name for _, own in facts for name in own)]
    table = [(name, *(own.get(name, wording.BLANK) for _, own in facts)) for name in names]
    headings = ("", *(name for name, _ in facts))
    origin = Table("Where the numbers come from", headings, table, prose=True)
    blocks.append(Behind("Versions, machine, digests", [origin]))
    return Section("configuration", "Configuration", "", blocks)


def _columns(
    groups: Sequence[Replicates], every: Sequence[Run]
) -> tuple[list[str], list[Mapping[str, Any]]]:
    """A label and the values of each configuration, and of each run that is in none."""
    labels = [group.label for group in groups]
    columns: list[Mapping[str, Any]] = [_values(group.runs) for group in groups]
    shown = {id(run) for group in groups for run in group.runs}
    for run in every:
        if id(run) not in shown:
            labels.append(run.name)
            columns.append(_values([run]))
    return labels, columns


def _values(runs: Sequence[Run]) -> dict[str, Any]:
    """Of runs that differ in the seed only; keys that older runs lack have what they ran with."""
    seeds = wording.listed([str(run.facts["seed"]) for run in runs], 20)
    return {**defaults(), **EARLIER, **runs[0].facts["config"], "seed": seeds}


def _table(
    caption: str, labels: Sequence[str], rows: Mapping[str, Sequence[str]], keys: Sequence[str]
) -> Table:
    return Table(caption, ("key", *labels), [(key, *rows[key]) for key in keys], prose=True)


def _facts(run: Run) -> dict[str, str]:
    found = {"folder": str(run.folder)}
    for key in _FACTS:
        if run.facts.get(key) not in (None, ""):
            found[key.replace("_", " ")] = str(run.facts[key])
    found["machine"] = run.machine
    return found | {name: str(own) for name, own in (run.facts.get("versions") or {}).items()}

"""An experiment as its file states it: values, entries, a grid and seeds; its cells.

A file is TOML: ``title``, ``entries`` (as in ``compare --methods``), ``baseline`` (the entry that
others are held against), ``grid`` (a list of values for each of some configuration keys) or
``points`` (the points themselves, where they are no product), ``values`` for all cells, ``seeds``;
and ``presets``, each of which may state these anew. ``common.toml`` beside it has presets of
``values`` for all experiments, which an experiment's own win over. ``[[published]]`` are figures to
hold the results against: an ``entry``, a ``perplexity`` and the point that they are for.
"""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mops_fl.config import Config, Scalar, defaults, parse_assignment, split_entry
from mops_fl.errors import ConfigError
from mops_fl.labels import slug

Point = tuple[tuple[str, Scalar], ...]
"""Where a cell lies in the grid: its keys with their values, in the grid's order."""

_KEYS = {
    **{"title": str, "baseline": str, "entries": list, "grid": dict, "points": list},
    **{"values": dict, "seeds": list, "gates": bool},
}
_SEEDS = [0, 1, 2, 3, 4]


@dataclass(frozen=True)
class Cell:
    """One run of an experiment."""

    entry: str
    """As the file has it: ``method[:key=value…]``."""
    point: Point
    config: Config
    """With its seed, without a run folder."""

    @property
    def name(self) -> str:
        """Readable, and safe as the name of a file; two cells may share it."""
        parts = [*(str(value) for _, value in self.point), self.entry, f"seed{self.config.seed}"]
        return "-".join(map(slug, parts))


@dataclass(frozen=True)
class Published:
    """A figure that others stated."""

    entry: str
    point: Point
    perplexity: float


@dataclass(frozen=True)
class Plan:
    """An experiment."""

    name: str
    title: str
    baseline: str
    """The entry that others are held against; need not be there."""
    gates: bool
    """Whether a report shows the gates' weights."""
    cells: tuple[Cell, ...]
    published: tuple[Published, ...]


def read_plan(
    path: Path,
    *,
    preset: str = "small",
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
    values: Mapping[str, Scalar] | None = None,
    data: Mapping[str, str] | None = None,
    running: bool = True,
) -> Plan:
    """The cells of an experiment's file.

    Args:
        path: the file.
        preset: one of its presets, or of those for all experiments.
        seeds: in place of the file's.
        only: ``key=value`` each; a cell is kept if, for every key named, it has one of its values.
            The key ``entry`` means the entry.
        values: win over the file's.
        data: where the rows of a dataset lie, by its name.
        running: whether the cells are to be run; else rows need no place.

    Raises:
        ConfigError: the file, the preset, a key or a value cannot be used; or no cell is left.
    """
    stated = _read(path, preset)
    points, allowed = _points(path, stated), _allowed(only)
    cells: dict[Cell, None] = {}
    places = {**dict.fromkeys(() if running else ("superni", "jsonl"), "-"), **(data or {})}
    # one seed after the other: what is there early has all entries
    each = stated.get("seeds", _SEEDS) if seeds is None else seeds
    for seed, point, entry in itertools.product(each, points, stated["entries"]):
        # what the command gives a key of the grid is where the cell lies
        point = tuple((key, (values or {}).get(key, value)) for key, value in point)
        common = {**stated["values"], **dict(point), **(values or {}), "seed": seed}
        if _wanted(entry, common, allowed):
            cells[_cell(path, entry, point, common, places)] = None
    if not cells:
        raise ConfigError(f"--only {','.join(only)}: no cell of {path} is left")
    keys = [key for key, _ in points[0]]
    published = tuple(_published(path, keys, each) for each in stated.get("published", []))
    baseline = stated.get("baseline", "fedprompt")
    gates = stated.get("gates", False)
    return Plan(path.stem, stated["title"], baseline, gates, tuple(cells), published)


def _cell(
    path: Path, entry: str, point: Point, values: dict[str, Scalar], data: Mapping[str, str]
) -> Cell:
    method, given = split_entry(entry)
    own = dict(map(parse_assignment, given))
    values = {**values, **own, "method": method}
    dataset = str(values.get("dataset", ""))
    if dataset in data and "data-path" not in own:
        values["data-path"] = data[dataset]
    try:
        return Cell(entry, point, Config.from_flat(values))
    except ConfigError as error:
        where = ", ".join(f"{key}={value}" for key, value in point)
        hint = f" (--data {dataset}=PATH names it)" if "data-path" in str(error) else ""
        place = f"{path}, {entry}{f' at {where}' if where else ''}"
        raise ConfigError(f"{place}: {error}{hint}") from error


def _allowed(only: Sequence[str]) -> dict[str, list[Scalar]]:
    """The values that a cell may have of each key."""
    allowed: dict[str, list[Scalar]] = {}
    for text in only:
        key, value = ("entry", text[6:]) if text.startswith("entry=") else parse_assignment(text)
        if key not in ("entry", *defaults()):
            raise ConfigError(f"--only {key}=…: unknown configuration key {key}")
        allowed.setdefault(key, []).append(value)
    return allowed


def _wanted(
    entry: str, values: Mapping[str, Scalar], allowed: Mapping[str, Sequence[Scalar]]
) -> bool:
    method, own = split_entry(entry)
    stated = {**defaults(), **values, **dict(map(parse_assignment, own))}
    held = {**stated, "entry": entry, "method": method}
    return all(held[key] in some for key, some in allowed.items())


def _read(path: Path, preset: str) -> dict[str, Any]:
    """What the file states with a preset, its own or a common one."""
    stated, common = _parsed(path), path.with_name("common.toml")
    shared = _parsed(common).get("presets", {}) if common.is_file() else {}
    own = stated.get("presets", {})
    if preset not in {*shared, *own} and (preset != "small" or shared or own):
        known = ", ".join(dict.fromkeys((*shared, *own))) or "none"
        raise ConfigError(f"--preset {preset}: {path} has {known}")
    parts = shared.get(preset, {}), stated, own.get(preset, {})
    found: dict[str, Any] = {}
    for part in parts:
        found |= part
        if {"grid", "points"} & part.keys():
            found = {k: v for k, v in found.items() if k not in ("grid", "points") or k in part}
    found["values"] = {k: v for part in parts for k, v in part.get("values", {}).items()}
    for key in ("title", "entries"):
        if key not in found:
            raise ConfigError(f"{path} has no {key}")
    return found


def _parsed(path: Path) -> dict[str, Any]:
    try:
        stated = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the experiment {path}: {error}") from error
    _check(path, stated, {**_KEYS, "presets": dict, "published": list})
    for name, own in stated.get("presets", {}).items():
        _check(f"{path}, preset {name}", own, _KEYS)
    return stated


def _check(where: object, stated: dict[str, Any], kinds: Mapping[str, type]) -> None:
    for key, value in stated.items():
        if key not in kinds:
            raise ConfigError(f"{where}: unknown key {key}; known are {', '.join(kinds)}")
        if not isinstance(value, kinds[key]):
            raise ConfigError(f"{where}: {key} must be a {kinds[key].__name__}")
    for key, values in stated.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: grid.{key} must be a list of values")


def _points(path: Path, stated: dict[str, Any]) -> list[Point]:
    """The points of the grid, keys in one order."""
    if "points" in stated:
        points = [tuple(point.items()) for point in stated["points"]]
        if not points or any(dict(p).keys() != dict(points[0]).keys() for p in points):
            raise ConfigError(f"{path}: all points must have the same keys, and there is one")
        return points
    grid = stated.get("grid", {})
    return [tuple(zip(grid, each, strict=True)) for each in itertools.product(*grid.values())]


def _published(path: Path, keys: Sequence[str], stated: dict[str, Any]) -> Published:
    if {"entry", "perplexity", *keys} != stated.keys():
        needed = ", ".join(("entry", "perplexity", *keys))
        raise ConfigError(f"{path}: a published figure has {needed} and nothing else")
    point = tuple((key, stated[key]) for key in keys)
    return Published(stated["entry"], point, float(stated["perplexity"]))

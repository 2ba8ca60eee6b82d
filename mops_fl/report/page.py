"""One self-contained page of one or more runs, from their result files; nothing is trained."""

import base64
import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mops_fl.errors import RunError
from mops_fl.files import write_text
from mops_fl.labels import one_line
from mops_fl.report import gates, overview, perplexities, ranking, setting, strips
from mops_fl.report.layout import Section
from mops_fl.report.wording import plural
from mops_fl.run.details import grouped, is_evaluated
from mops_fl.run.results import Run

ENDINGS = (".html", ".htm")


def write_report(folders: Sequence[Path], path: Path) -> None:
    """Write the page of run folders, whole.

    Raises:
        RunError: one of them is no run folder or malformed, or `path` cannot be written.
    """
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        raise RunError(f"--out {path} must be a file that ends in {' or '.join(ENDINGS)}")
    distinct = {folder.resolve(): folder for folder in reversed([*map(Path, folders)])}
    every = [_read(folder) for folder in reversed(distinct.values())]
    write_text(path, html(every))


def _read(folder: Path) -> Run:
    if not (folder / "run.json").is_file():
        what = "there is no such folder"
        if folder.exists():
            what = "it has no run.json" if folder.is_dir() else "it is a file"
        raise RunError(
            f"RUN {str(folder)!r} is not a run folder: {what}; name folders that a run was written "
            "to, as runs/NAME"
        )
    return Run.read(folder)


def html(every: Sequence[Run]) -> str:
    """The page.

    Raises:
        RunError: a table of a run is malformed.
    """
    environment = _environment()
    styles, script = (_source(environment, name) for name in ("report.css", "report.js"))
    made = f"{datetime.datetime.now():%Y-%m-%d %H:%M}"
    return environment.get_template("report.html").render(
        title=_title(every),
        about=f"{plural(len(every), 'run')}; made {made} from their result files.",
        sections=sections(every),
        styles=styles,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src {_hash(styles)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
    )


def sections(every: Sequence[Run]) -> list[Section]:
    """What there is to say, in the order in which one asks."""
    groups = grouped(run for run in every if is_evaluated(run))
    made: list[Section | None] = []
    if groups:
        made += [
            overview.results(groups),
            perplexities.over_time(groups),
            perplexities.by_task(groups),
            ranking.clients(groups),
            gates.gate(groups),
            gates.drift(groups),
            strips.participation(groups),
            strips.partition(groups),
        ]
    found = [section for section in made if section]
    found.insert(1 if groups else 0, overview.runs(every))
    return [*found, overview.trouble(groups, every), setting.configuration(groups, every)]


def _title(every: Sequence[Run]) -> str:
    names = [run.name for run in every]
    return names[0] if len(names) == 1 else f"{names[0]} and {plural(len(names) - 1, 'other run')}"


def _environment() -> Environment:
    """Everything is escaped, and what cannot be printed is a space."""
    environment = Environment(
        loader=PackageLoader("mops_fl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = one_line
    return environment


def _printable(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return "".join(letter if letter.isprintable() else " " for letter in value)
    return value


def _source(environment: Environment, name: str) -> Markup:
    """A file of ours, as it stands."""
    assert environment.loader
    return Markup(environment.loader.get_source(environment, name)[0])


def _hash(text: str) -> str:
    """What lets a browser run or apply this text and no other."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"

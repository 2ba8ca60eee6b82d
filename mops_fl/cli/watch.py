"""`mops-fl watch`: a run that another process writes, shown until it ends."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mops_fl.cli import tracking
from mops_fl.cli.ending import tell_result
from mops_fl.cli.progress import Lines, State, bar_values, clock, live_bar, written_state
from mops_fl.cli.run import RunFailedError, StoppedError, console
from mops_fl.errors import RunError
from mops_fl.files import version
from mops_fl.labels import one_line

if TYPE_CHECKING:
    from mops_fl.run.standing import Standing

Rounds = dict[int, dict[str, float]]
"""Figures by name, by round, as `mops_fl.run.scalars.scalars` has them."""

INTERVAL = 0.5
"""Seconds between two looks at the run folder."""

SILENCE = 60.0
"""Seconds without a word after which that is said."""

_STEPS = "▁▂▃▄▅▆▇█"
_COLUMNS = (
    ("perplexity", "perplexity", "{:,.2f}"),
    ("train loss", "train/loss", "{:.3f}"),
    ("clients", "train/clients", "{:,.0f}"),
    ("failures", "train/failures", "{:,.0f}"),
    ("MB up", "train/bytes up", "{:,.2f}"),
    ("MB down", "train/bytes down", "{:,.2f}"),
    ("seconds", "train/seconds", "{:,.1f}"),
)
"""What is shown of a round's training and evaluation: its heading, its name, its format."""


def watch(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    tensorboard: tracking.TensorBoard = False,
    wandb: tracking.Wandb = False,
) -> None:
    """Watch a run that another process writes, until it ends. Ctrl-C ends the watching only.

    Exits with 0 when the run is completed, 1 when it failed or died, 130 when it was stopped, and
    when Ctrl-C ended the watching.
    """
    from mops_fl.run.standing import standing

    trackers = tracking.asked_for(tensorboard=tensorboard, wandb=wandb)
    try:
        found = standing(run)
        with _shown(run) as show, tracking.tracking(run, console, trackers) as track:
            while True:
                show(found)
                track()
                if found.over:
                    break
                time.sleep(INTERVAL)
                found = standing(run)
    except KeyboardInterrupt:
        raise StoppedError(f"{run} is not watched any more; the run itself goes on") from None
    if found.status != "completed":
        _fail(run, found)
    tell_result(run)


def _fail(run: Path, found: "Standing") -> NoReturn:
    """Say how a run ended that did not come to its end.

    Raises:
        RunFailedError: it failed, or died.
        StoppedError: it was stopped.
    """
    name, error = run.resolve().name, found.facts.get("error")
    log = f"; log: {run / 'flower.log'}" if (run / "flower.log").is_file() else ""
    if found.status == "stopped":
        raise StoppedError(f"{name} was stopped{log}")
    if found.status == "died":
        raise RunFailedError(
            f"{name} died without a word {clock(found.silent)} ago, after round "
            f"{found.facts.get('rounds_done', 'none')}: it says that it runs, and no process "
            f"writes it; --resume {run} carries it on{log}"
        )
    raise RunFailedError(f"{name} failed: {error or 'it does not say why'}{log}")


@contextlib.contextmanager
def _shown(run: Path) -> Iterator[Callable[["Standing"], None]]:
    """A function that shows how the run stands: a live picture, or lines where no terminal is."""
    rounds = _reader(run)
    if not console.is_terminal:
        lines = Lines(console)
        yield lambda found: _print_changes(lines, found, written_state(run), rounds())
        return
    bar = live_bar(console)
    task = bar.add_task("", total=None, text="")
    with Live(console=console, auto_refresh=False) as live:

        def show(found: "Standing") -> None:
            bar.update(task, **bar_values(written_state(run) or State()))
            shown = () if found.over else (bar,)
            live.update(_picture(run, found, rounds(), shown), refresh=True)

        yield show


def _reader(run: Path) -> Callable[[], Rounds]:
    """A function that gives the rounds so far; tables are read only when one was written."""
    from mops_fl.run.results import Run
    from mops_fl.run.scalars import scalars

    seen: object = None
    held: Rounds = {}

    def read() -> Rounds:
        nonlocal seen, held
        names = ("rounds.csv", "train.csv", "evaluate.csv", "run.json")
        found = [version(run / name) for name in names]
        if found != seen:
            # a run that is resumed replaces its tables one after the other
            with contextlib.suppress(RunError):
                seen, held = found, scalars(Run.read(run))
        return held

    return read


def _print_changes(lines: Lines, found: "Standing", state: State | None, rounds: Rounds) -> None:
    """Lines for what has changed; each round has one when it was evaluated."""
    for number, values in rounds.items():
        if "perplexity" in values:
            cells = zip((heading for heading, _, _ in _COLUMNS), _cells(values), strict=True)
            told = ", ".join(f"{heading} {cell}" for heading, cell in cells if cell)
            lines.show(("round", number), 0.0, f"round {number}: {told}")
    if found.over:
        return
    if state:
        lines.show(state.stage, state.share, state.line)
    if found.silent >= SILENCE:
        lines.show(("silent", round(found.silent // SILENCE).bit_length()), 0.0, _silence(found))


def _picture(
    run: Path, found: "Standing", rounds: Rounds, bar: tuple[RenderableType, ...]
) -> RenderableType:
    """All that a terminal shows; the latest rounds, as many as it has room for."""
    name = one_line(run.resolve().name, limit=60)
    heading = Text.assemble((name, "bold"), f"  {found.facts['method']}, {found.status}")
    if not found.over and found.silent >= SILENCE:
        heading.append(f"  {_silence(found)}", "bold yellow")
    curve = [own["perplexity"] for own in rounds.values() if "perplexity" in own]
    drawn = Text(f"perplexity by round  {sparkline(curve, max(10, console.width - 30))}")
    most = max(3, console.height - 9)
    parts = [heading, *bar, *([drawn] if len(curve) > 1 else []), _table(rounds, most)]
    if not found.over:
        parts.append(Text("Ctrl-C ends the watching; the run goes on", "dim"))
    return Group(*parts)


def _table(rounds: Rounds, most: int) -> Table:
    table = Table("round", box=None, pad_edge=False, header_style="")
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for number in list(rounds)[-most:]:
        table.add_row(str(number), *_cells(rounds[number]))
    return table


def _cells(values: dict[str, float]) -> list[str]:
    scaled = {name: v / 1e6 if "bytes" in name else v for name, v in values.items()}
    return [text.format(scaled[name]) if name in scaled else "" for _, name, text in _COLUMNS]


def _silence(found: "Standing") -> str:
    return f"nothing was written for {clock(found.silent)}"


def sparkline(values: list[float], width: int) -> str:
    """A curve of at most `width` characters, from the lowest to the highest value, by logarithm.

    Args:
        values: positive ones; others are blanks.
        width: the latest are shown where there are more.
    """
    logs = [math.log(v) if 0 < v < math.inf else math.nan for v in values[-width:]]
    known = [each for each in logs if not math.isnan(each)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(_STEPS) - 1) / ((high - low) or 1.0)
    return "".join(" " if math.isnan(v) else _STEPS[round((v - low) * scale)] for v in logs)

"""What answers the same rows: runs, and the models that they were trained on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mops_fl.config import EARLIER, BackboneConfig, Config
from mops_fl.errors import ConfigError, RunError
from mops_fl.generation.answerer import Answerer
from mops_fl.generation.held_out import HeldOut, check_same
from mops_fl.generation.trained import Trained, Wanted, own_tensors
from mops_fl.run.results import Run


@dataclass(frozen=True)
class Entrant:
    """A run at one of its rounds, or a base model."""

    name: str
    trained: Trained
    """Where each client has tensors of its own, one client's."""
    held_out: HeldOut
    """The rows, in the tokens of its model."""
    answerer: Callable[[int | None], Answerer]
    """Gives what answers for a client."""


def entrants(
    runs: Sequence[Path],
    wanted: Wanted,
    *,
    data: Path | None = None,
    sample: int | None = None,
    compare: bool = False,
) -> list[Entrant]:
    """Runs, behind their base models with `compare`, and the rows that they all answer.

    Args:
        runs: folders.
        wanted: which tensors; a client's rows alone, where one is named.
        data: a file of rows, in place of those that the runs held out.
        sample: rows drawn by the seed; None for all.
        compare: whether base models answer, too.

    Raises:
        ConfigError: a run is named twice.
        RunError: a run cannot be read or asked, or they were evaluated on different rows.
        DataError: the rows cannot be read.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError("a run is named twice: name each once")
    read = [_read(run, wanted) for run in runs]
    answerers = [_answerers(trained, wanted, data is None) for trained in read]
    held = [
        HeldOut.of_run(trained) if data is None else HeldOut.of_file(trained, data)
        for trained in read
    ]
    check_same([*zip(read, held, strict=True)])
    if data is None and wanted.client is not None:
        held = [own.of_client(wanted.client) for own in held]
    if sample is not None:
        held = [own.sample(sample, read[0].config.seed) for own in held]
    if not held[0].rows:
        raise RunError(f"{runs[0]} held no rows out: give rows of your own with --data")
    found = [Entrant(*each) for each in zip(names(read), read, held, answerers, strict=True)]
    return [*(_bases(found) if compare else ()), *found]


def names(read: Sequence[Trained]) -> list[str]:
    """What runs are called: as the folder is, or where it lies if two would have one name."""
    labels = Counter(trained.run.label for trained in read)
    return [
        trained.run.label
        if labels[trained.run.label] == 1
        else trained.run.noted(f"{trained.run.folder} ({trained.config.method})")
        for trained in read
    ]


def bases(read: Sequence[Trained]) -> dict[str, Trained]:
    """The base models of runs by what they are called, each once."""
    found: dict[BackboneConfig, tuple[str, Trained]] = {}
    for trained in read:
        backbone = trained.config.backbone
        name = backbone.model
        if backbone.compression != "none":
            name += f" {backbone.compression}"
        found.setdefault(backbone, (f"{name}, as it is", trained.base()))
    return dict(found.values())


def _read(folder: Path, wanted: Wanted) -> Trained:
    """A run's tensors; where clients have their own, those of the one that is wanted, or of any.

    Raises:
        RunError: it cannot be read.
    """
    run = Run.read(folder)
    client = None
    if own_tensors(Config.from_flat({**EARLIER, **run.facts["config"]})):
        clients = [row[0] for row in run.rows("partition.csv")]
        client = clients[0] if wanted.client is None else wanted.client
    return Trained.read(folder, replace(wanted, client=client))


def _answerers(
    trained: Trained, wanted: Wanted, by_client: bool
) -> Callable[[int | None], Answerer]:
    """What gives the answerer of a client.

    Raises:
        RunError: rows that are no client's are to be answered by a client's tensors, and none is
            named.
    """
    if not own_tensors(trained.config):
        return _always(Answerer(trained))
    if not by_client and wanted.client is None:
        raise RunError(
            f"each client of {trained.run.folder} has tensors of its own: say with --client whose "
            "answer the rows of --data"
        )
    return partial(_of_client, trained.run.folder, wanted)


def _of_client(folder: Path, wanted: Wanted, client: int | None) -> Answerer:
    whose = wanted.client if client is None else client
    return Answerer(Trained.read(folder, replace(wanted, client=whose)))


def _bases(found: Sequence[Entrant]) -> list[Entrant]:
    """The base models, each with the rows of the first run on it."""
    rows = {each.trained.config.backbone: each for each in reversed(found)}
    made = bases([each.trained for each in found])
    return [
        Entrant(name, base, rows[base.config.backbone].held_out, _always(Answerer(base)))
        for name, base in made.items()
    ]


def _always(answerer: Answerer) -> Callable[[int | None], Answerer]:
    return lambda _: answerer

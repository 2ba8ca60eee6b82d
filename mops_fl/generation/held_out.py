"""The rows that a run is evaluated on, with their texts; or rows of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.config import Config, key_of
from mops_fl.data import Corpus, Example, TokenisedCorpus, load_corpus, tokenise
from mops_fl.errors import DataError, RunError
from mops_fl.generation.trained import Trained
from mops_fl.run.results import Run
from mops_fl.seeding import numpy_generator
from mops_fl.training.trainer import Trainer

PARTS = ("trained", "unseen clients", "unseen tasks", "unseen clients and tasks")
"""Rows of clients that train and of tasks that are trained on, and the others, each apart."""


@dataclass(frozen=True)
class Row:
    """A row with what is asked."""

    place: int
    """Of the row in its corpus."""
    client: int | None
    """Partition id of who holds it; None for the user."""
    part: str
    """One of `PARTS`."""
    example: Example
    ids: tuple[int, ...]
    """Token ids of the question, cut to `max-length` as in training."""


@dataclass(frozen=True)
class HeldOut:
    """Rows to be answered, and the corpus that they are of."""

    rows: tuple[Row, ...]
    corpus: Corpus

    @classmethod
    def of_run(cls, trained: Trained) -> "HeldOut":
        """The test rows of each client that the run's own evaluation asks for, by partition id.

        With differential privacy these are the clients that never train.

        Raises:
            RunError: the rows stay with machines of their own, or are not those of the run.
            DataError: the data cannot be read.
        """
        run = trained.run
        if run.facts.get("simulated") is False:
            raise RunError(
                f"{run.folder} was trained on machines that keep their rows to themselves: give "
                "rows of your own with --data"
            )
        trainer = Trainer(trained.config)
        _check_data(run, trainer)
        unseen, rows = run.facts.get("unseen_clients") or (), list[Row]()
        for client in sorted({row[0] for row in run.rows("partition.csv")}):
            if run.private and client not in unseen:
                continue
            part = trainer.held_out_rows(client)
            places = part.test + part.unseen
            rows += _rows(
                places, trainer.corpus, trainer.tokenised, client, unseen_client=client in unseen
            )
        return cls(tuple(rows), trainer.corpus)

    @classmethod
    def of_file(cls, trained: Trained, file: Path) -> "HeldOut":
        """All rows of a file, read as the run read its data; JSON rows where these were generated.

        Raises:
            DataError: it cannot be used.
        """
        config, data = trained.config, trained.config.data
        dataset = "jsonl" if data.dataset == "skills" else data.dataset
        own = replace(data, dataset=dataset, data_path=str(file))
        try:
            corpus = load_corpus(own, config.seed, own_data=True)
        except DataError as error:
            raise DataError(f"--data: {error}") from error
        tokenizer = load_tokenizer(config.backbone)
        made = tokenise(corpus.examples, tokenizer, data.max_length, trained.facts.vocab_size)
        places = [n for n in range(len(corpus.examples)) if n not in made.unknown]
        return cls(tuple(_rows(places, corpus, made)), corpus)

    def of_client(self, client: int) -> "HeldOut":
        """One client's alone.

        Raises:
            RunError: it has none.
        """
        rows = tuple(row for row in self.rows if row.client == client)
        if not rows:
            raise RunError(f"--client {client}: the run has no held-out rows of such a client")
        return replace(self, rows=rows)

    def sample(self, number: int, seed: int) -> "HeldOut":
        """So many of the rows in their order, drawn by the seed; all where there are fewer."""
        count = len(self.rows)
        generator = numpy_generator(seed, "evaluate", "rows")
        drawn = sorted(generator.choice(count, min(number, count), replace=False).tolist())
        return replace(self, rows=tuple(self.rows[place] for place in drawn))


def check_same(held: Sequence[tuple[Trained, HeldOut]]) -> None:
    """Refuse to compare runs that were not evaluated on the same rows.

    Raises:
        RunError: two differ; what in is named.
    """
    (first, rows), *others = held
    for other, own in others:
        same = [[(r.place, r.client, r.part) for r in each.rows] for each in (rows, own)]
        if rows.corpus.digest == own.corpus.digest and same[0] == same[1]:
            continue
        different = _different(first.config, other.config)
        if not different:
            different = ["the rows that the tokens of their models can hold"]
        raise RunError(
            f"{first.run.folder} and {other.run.folder} were evaluated on different rows: "
            f"{'; '.join(different)}: compare runs of the same data, seed and partition, or ask "
            "both about rows of your own with --data"
        )


def _rows(
    places: Sequence[int],
    corpus: Corpus,
    tokenised: TokenisedCorpus,
    client: int | None = None,
    *,
    unseen_client: bool = False,
) -> list[Row]:
    rows = []
    for place in places:
        example = corpus.examples[place]
        part = PARTS[unseen_client + 2 * (example.task in corpus.unseen_tasks)]
        rows.append(Row(place, client, part, example, tokenised.examples[place].question))
    return rows


def _check_data(run: Run, trainer: Trainer) -> None:
    """Refuse data, or a partition of it, that is not what the run trained on.

    Raises:
        RunError: it is another.
    """
    digest, known = trainer.corpus.digest, run.facts.get("data_digest")
    path = trainer.config.data.data_path
    if known and digest != known:
        where = f"data-path={path}" if path else f"dataset={trainer.config.data.dataset}"
        raise RunError(
            f"{where} has other rows than {run.folder} was trained on: data digest {digest[:12]}…, "
            f"the run's {known[:12]}…: put the run's data there, or give rows with --data"
        )
    recorded = run.rows("partition.csv")
    held = {client: trainer.holding(client) for client in {row[0] for row in recorded}}
    for client, task, train, test in recorded:
        if (held[client].train.get(task), held[client].test.get(task)) != (train, test):
            raise RunError(
                f"client {client} of {run.folder} had {train} and {test} rows of {task!r} to train "
                "and to test on, and this version deals the rows out otherwise: evaluate the run "
                f"with the versions in its run.json, or give rows with --data"
            )


def _different(one: Config, other: Config) -> list[str]:
    """The keys and values in which two runs' rows may differ."""

    def rows(config: Config) -> dict[str, Any]:
        groups = (config.data, config.partition)
        keys = {key_of(item): getattr(own, item.name) for own in groups for item in fields(own)}
        return {"seed": config.seed, **keys}

    both = rows(other)
    return [
        f"{key} is {value!r} and {both[key]!r}"
        for key, value in rows(one).items()
        if value != both[key]
    ]

"""How good answers are: ROUGE-L and exact match, as Super-NaturalInstructions computes them.

Wang et al. (2022, arXiv 2204.07705) report ROUGE-L, and exact match for tasks of classification:
https://github.com/yizhongw/Tk-Instruct/blob/main/src/compute_metrics.py, whose ROUGE-L is that of
https://github.com/allenai/natural-instructions/blob/master/eval/automatic/evaluation.py. Both take
the best over a row's references; here a row has one, the first, which is what was trained on.
"""

import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from mops_fl.activity import doing
from mops_fl.data import Example
from mops_fl.errors import ConfigError
from mops_fl.experiment.statistics import bootstrap
from mops_fl.generation.answerer import Sampling
from mops_fl.generation.entrants import Entrant
from mops_fl.generation.held_out import PARTS, Row
from mops_fl.generation.trained import own_tensors

MEASURES = ("rouge_l", "exact")

MOST_LABELS = 20
"""Different answers of a task that are taken for labels, at most."""

ROWS_A_LABEL = 5
"""Rows of such a task for each of its answers, on average at least."""


@dataclass(frozen=True)
class Answer:
    """One model's answer to one row."""

    model: str
    client: int | None
    """Partition id of who holds the row; None for rows of the user's."""
    part: str
    """Trained or unseen clients and tasks: `mops_fl.generation.held_out.PARTS`."""
    task: str
    labels: bool
    """Whether the task's answers are labels, for which exact match counts."""
    row: int
    """Of the corpus."""
    question: str
    """Instruction and context, as they were before any cut."""
    reference: str
    answer: str
    rouge_l: float
    """0 to 100."""
    exact: bool


@dataclass(frozen=True)
class Score:
    """A mean over rows, 0 to 100, with 95 % intervals of resampled clients.

    Rows of one client are resampled together, the same ones for every model; rows without a client
    one by one. NaN stands for an interval over a single one, and for the first model's difference.
    """

    model: str
    part: str
    task: str | None
    """None for all."""
    measure: str
    rows: int
    clients: int
    """That hold them; 0 for rows of the user's."""
    mean: float
    low: float
    high: float
    difference: float
    """To the first model, on the same rows."""
    difference_low: float
    difference_high: float


def check_installed() -> None:
    """Refuse to begin without `rouge-score`.

    Raises:
        ConfigError: it is not installed.
    """
    _scorer(latin=True)


def rouge_l(reference: str, answer: str) -> float:
    """F-measure of ROUGE-L with Porter's stemmer, 0 to 100.

    A reference without a Latin letter or digit is split at white space, as is done there for other
    languages than English: the words of the default are runs of these alone.
    """
    words = any("a" <= letter <= "z" or "0" <= letter <= "9" for letter in reference.lower())
    return 100 * _scorer(latin=words).score(reference, answer)["rougeL"].fmeasure


def exact_match(reference: str, answer: str) -> bool:
    """Whether both are the same in lower case without ASCII punctuation, articles kept, each white
    space as one blank. A text of nothing but punctuation is compared as it stands.
    """
    return _normal(reference) == _normal(answer)


def label_tasks(examples: Iterable[Example]) -> frozenset[str]:
    """The tasks whose answers are labels: `MOST_LABELS` different ones at most in all rows of the
    data, as `exact_match` compares them, and `ROWS_A_LABEL` rows or more for each on average.
    """
    counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for example in examples:
        counts[example.task][_normal(example.answer)] += 1
    return frozenset(
        task
        for task, own in counts.items()
        if len(own) <= MOST_LABELS and sum(own.values()) >= ROWS_A_LABEL * len(own)
    )


def answered(entrant: Entrant, sampling: Sampling) -> list[Answer]:
    """An entrant's answers to its rows, in their order."""
    rows, texts = entrant.held_out.rows, dict[int, str]()
    whose = defaultdict[int | None, list[int]](list)
    own = own_tensors(entrant.trained.config)
    for number, row in enumerate(rows):
        whose[row.client if own else None].append(number)
    with doing(f"answers of {entrant.name}", of=len(rows)) as on_step:
        for client, numbers in whose.items():
            done, answerer = len(texts), entrant.answerer(client)
            ids = [rows[number].ids for number in numbers]

            def on_batch(more: int, _: int, done: int = done) -> None:
                on_step(done + more, len(rows))

            texts |= zip(numbers, answerer.in_batches(ids, sampling, on_batch), strict=True)
    labels = label_tasks(entrant.held_out.corpus.examples)
    return [_answer(entrant.name, row, texts[n], labels) for n, row in enumerate(rows)]


def scores(answers: Sequence[Answer]) -> list[Score]:
    """What answers of one model or of several to the same rows are worth: for each part, all its
    tasks together and one by one, each of `MEASURES`, and each model.

    Args:
        answers: those of the first model first, rows in one order for all.
    """
    table = pd.DataFrame([asdict(answer) for answer in answers])
    table["exact"] = 100.0 * table["exact"]
    return [score for part in PARTS for score in _of_part(table[table["part"] == part])]


def tenths(answers: Iterable[Answer]) -> dict[str, float]:
    """How clients fare, each counting once: ``mean``, ``sd``, ``worst`` and ``best`` tenth of their
    mean ROUGE-L, at least one client, and the number of ``clients``.
    """
    table = pd.DataFrame([asdict(answer) for answer in answers])
    means = table.groupby("client")["rouge_l"].mean().sort_values()
    tenth = -(-len(means) // 10)
    ends = {"worst": means[:tenth], "best": means[-tenth:]}
    known = {"mean": means.mean(), "sd": means.std(), **{k: v.mean() for k, v in ends.items()}}
    return {"clients": len(means), **{name: float(value) for name, value in known.items()}}


def _of_part(table: pd.DataFrame) -> Iterator[Score]:
    for task in (None, *table["task"].unique()) if len(table) else ():
        own = table if task is None else table[table["task"] == task]
        for measure in MEASURES:
            counted = own if measure == "rouge_l" else own[own["labels"]]
            yield from _of_models(counted, task, measure)


def _of_models(table: pd.DataFrame, task: str | None, measure: str) -> Iterator[Score]:
    """The score of each model in rows of one part, of which there may be none."""
    first: Any = None
    for model, own in table.groupby("model", sort=False):
        values = own[measure].to_numpy(float)
        clients = own["client"].nunique()
        units = own["client"] if clients else own["row"]
        unknown = (float("nan"),) * 3
        yield Score(
            str(model),
            own["part"].iloc[0],
            task,
            measure,
            len(own),
            clients,
            *_mean(values, units),
            *(unknown if first is None else _mean(values - first, units)),
        )
        first = values if first is None else first


def _mean(values: np.ndarray, units: pd.Series) -> tuple[float, float, float]:
    """Mean, and 2.5 and 97.5 % of it over resampled units, NaN for a single one."""
    sums = pd.DataFrame({"sum": values, "count": 1.0}).groupby(units.to_numpy()).sum().to_numpy()
    if len(sums) < 2:
        return float(values.mean()), float("nan"), float("nan")
    # the difference to what is 0 everywhere
    nothing = np.tile((0.0, 1.0), (len(sums), 1))
    return float(values.mean()), *bootstrap([sums], [nothing])


def _answer(model: str, row: Row, text: str, labels: frozenset[str]) -> Answer:
    example = row.example
    return Answer(
        model=model,
        client=row.client,
        part=row.part,
        task=example.task,
        labels=example.task in labels,
        row=row.place,
        question=f"{example.instruction}\n\n{example.context}".strip(),
        reference=example.answer,
        answer=text,
        rouge_l=rouge_l(example.answer, text),
        exact=exact_match(example.answer, text),
    )


def _normal(text: str) -> str:
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(bare.split()) or text.strip()


class _Words:
    """Splits at white space."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@lru_cache
def _scorer(*, latin: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError(
            f"ROUGE-L needs the package rouge-score ({error}): pip install 'mops-fl[metrics]'"
        ) from error
    own = {"use_stemmer": True} if latin else {"tokenizer": _Words()}
    return RougeScorer(["rougeL"], **own)

"""The embedded dataset: seven generated skills that want answers of different form.

All skills get the same kind of input, a one-sentence scene, and only the instruction says which
form the answer must take: one shared prompt is pulled seven ways. Answers are functions of the
sentence, so that a held-out example can be answered by rule.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from mops_fl.config import DataConfig
from mops_fl.data.examples import Rows
from mops_fl.data.scenes import THINGS, Scene, draw
from mops_fl.errors import DataError
from mops_fl.seeding import python_generator

DEFAULT_SIZE = 5000
"""Examples generated when `num-samples` is 0; the paper's size of a dataset."""

DRAWS = 20
"""Scenes tried for a row that has not been generated before."""

SMALL_WORDS = frozenset({"on", "in", "and", "after", "before", "this", "last"})
"""Words that a telegram leaves out."""


@dataclass(frozen=True)
class Skill:
    """A task: paraphrases of its instruction, and the answer as a function of the scene."""

    instructions: tuple[str, ...]
    answer: Callable[[Scene], str]


def _reverse(scene: Scene) -> str:
    return " ".join(reversed(scene.words))


def _sort(scene: Scene) -> str:
    return " < ".join(sorted(word.lower() for word in scene.words if word.isalpha()))


def _record(scene: Scene) -> str:
    return json.dumps({"who": scene.who} | {thing: number for number, thing in scene.items})


def _count(scene: Scene) -> str:
    return str(len(scene.words))


def _telegram(scene: Scene) -> str:
    words = [word.upper() for word in scene.words if word.lower() not in SMALL_WORDS]
    return " ".join([*words, "STOP"])


def _classify(scene: Scene) -> str:
    return f"[{scene.category}]"


def _numbers(scene: Scene) -> str:
    return ", ".join(str(number) for number, _ in scene.items)


SKILLS = {
    "reverse": Skill(
        (
            "Write the words in reverse order.",
            "Reverse the order of the words.",
            "Say this sentence backwards, word by word.",
            "Give the words from last to first.",
        ),
        _reverse,
    ),
    "sort": Skill(
        (
            "Sort the words alphabetically, leaving out numbers.",
            "Put the words in alphabetical order without the numbers.",
            "List the words from A to Z; ignore numbers.",
            "Arrange all words but the numbers by the alphabet.",
        ),
        _sort,
    ),
    "record": Skill(
        (
            "Turn the sentence into a JSON record.",
            "Write the facts as a JSON object.",
            "Give who, and how many of what, as JSON.",
            "Extract a JSON record of this event.",
        ),
        _record,
    ),
    "count": Skill(
        (
            "How many words are there?",
            "Count the words of the sentence.",
            "Give the number of words.",
            "Tell how many words this sentence has.",
        ),
        _count,
    ),
    "telegram": Skill(
        (
            "Rewrite this as a telegram.",
            "Make a short telegram of the sentence.",
            "Send this as a telegram.",
            "Put the message in telegram style.",
        ),
        _telegram,
    ),
    "classify": Skill(
        (
            f"Which kind of things is this about: {', '.join(THINGS)}?",
            f"Choose the right label: {', '.join(THINGS)}.",
            f"Classify the things as {', '.join(THINGS)}.",
            f"Name the category of the things ({', '.join(THINGS)}).",
        ),
        _classify,
    ),
    "numbers": Skill(
        (
            "Extract the numbers.",
            "List all numbers in the sentence.",
            "Which numbers appear here?",
            "Give only the numbers, in order.",
        ),
        _numbers,
    ),
}


def load(data: DataConfig, seed: int, owner_column: str) -> tuple[Rows, tuple[str, ...]]:
    """Exactly `num-samples` rows, as many of each skill (one more of the first few at most).

    Raises:
        DataError: `tasks` names a skill that does not exist, or an owner column is asked for.
    """
    if owner_column:
        raise DataError(
            f"partition-column={owner_column}: dataset=skills is generated and has no such column; "
            "use a dataset of files, or another partition"
        )
    tasks = data.task_list or tuple(SKILLS)
    unknown = [task for task in tasks if task not in SKILLS]
    if unknown:
        raise DataError(
            f"tasks={data.tasks}: dataset=skills has no {', '.join(unknown)}; "
            f"its tasks are {', '.join(SKILLS)}"
        )
    rows = Rows(tuple(SKILLS))
    generator = python_generator(seed, "skills")
    seen: set[tuple[str, str]] = set()
    for number in range(data.num_samples or DEFAULT_SIZE):
        task = tasks[number % len(tasks)]
        instruction, scene = _question(SKILLS[task], generator, seen)
        rows.add(instruction, scene.sentence, SKILLS[task].answer(scene), task)
    return rows, tasks


def _question(
    skill: Skill, generator: random.Random, seen: set[tuple[str, str]]
) -> tuple[str, Scene]:
    """An instruction and a scene that are not in `seen` together, if `DRAWS` tries find one."""
    for _ in range(DRAWS):
        instruction, scene = generator.choice(skill.instructions), draw(generator)
        if (instruction, scene.sentence) not in seen:
            break
    seen.add((instruction, scene.sentence))
    return instruction, scene

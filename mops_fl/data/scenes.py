"""Generated one-sentence scenes: who did what with how many of which things, where and when."""

import random
from dataclasses import dataclass
from functools import cached_property

NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Kevin"),
    *("Laura", "Mark", "Nina", "Oscar", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy"),
)
VERBS = ("bought", "sold", "found", "lost", "packed", "carried", "counted", "ordered", "wanted")
PLACES = (
    *("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Dublin", "Prague"),
    *("Athens", "Lisbon", "Boston", "Chicago", "Dallas", "Denver", "Toronto", "Sydney", "Tokyo"),
)
TIMES = (
    *("On Monday", "On Tuesday", "On Friday", "On Sunday", "In April", "In June", "In October"),
    *("Last week", "Last year", "This morning", "After lunch", "Before work"),
)
THINGS = {
    "food": ("apples", "lemons", "carrots", "onions", "cakes", "eggs", "potatoes", "cookies"),
    "animals": ("dogs", "cats", "horses", "rabbits", "ducks", "goats", "sheep", "chickens"),
    "clothes": ("shirts", "hats", "socks", "coats", "gloves", "shoes", "jackets", "scarves"),
    "tools": ("hammers", "saws", "drills", "ladders", "screws", "nails", "shovels", "axes"),
}
"""Things by the category that the `classify` skill asks for."""


@dataclass(frozen=True)
class Scene:
    """The facts that a sentence tells."""

    who: str
    verb: str
    items: tuple[tuple[int, str], ...]
    """One or two (number, thing) pairs of one category."""
    where: str
    when: str
    """Time at the sentence's beginning; may be empty."""
    category: str

    @property
    def words(self) -> list[str]:
        """The words of the sentence, without punctuation."""
        return self.sentence.rstrip(".").replace(",", "").split()

    @cached_property
    def sentence(self) -> str:
        """``On Friday, Anna bought 3 apples and 12 eggs in Paris.``"""
        items = " and ".join(f"{number} {thing}" for number, thing in self.items)
        start = f"{self.when}, " if self.when else ""
        return f"{start}{self.who} {self.verb} {items} in {self.where}."


def draw(generator: random.Random) -> Scene:
    """A scene; more than 10⁸ different ones exist."""
    category = generator.choice(list(THINGS))
    things = generator.sample(THINGS[category], generator.randint(1, 2))
    return Scene(
        who=generator.choice(NAMES),
        verb=generator.choice(VERBS),
        items=tuple((generator.randint(2, 99), thing) for thing in things),
        where=generator.choice(PLACES),
        when=generator.choice(TIMES) if generator.random() < 0.5 else "",
        category=category,
    )

"""The table of who holds what, and its picture."""

from pathlib import Path

import pytest

from mops_fl.config import Config
from mops_fl.data import Corpus, Example, Share
from mops_fl.errors import RunError
from partitions.report import draw, table, title_of


@pytest.fixture
def small() -> tuple[Corpus, list[Share]]:
    tasks = ("b", "a", "unused")
    examples = tuple(Example("x", "", "y", task) for task in "aabbab")
    return Corpus(examples, tasks, {}, ""), [Share((0, 1), (2,)), Share((3,), (4, 5))]


def test_table_has_every_pair_in_expert_order(small: tuple[Corpus, list[Share]]) -> None:
    found = table(*small)
    assert list(found.columns) == ["partition", "task", "train", "test"]
    assert found.to_numpy().tolist() == [
        [0, "b", 0, 1],
        [0, "a", 2, 0],
        [0, "unused", 0, 0],
        [1, "b", 1, 1],
        [1, "a", 0, 1],
        [1, "unused", 0, 0],
    ]


def test_draw_writes_a_png_and_nothing_else(
    small: tuple[Corpus, list[Share]], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "partition.png"
    draw(table(*small), path, "two clients")
    draw(table(*small), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("clients", "tasks"), [(1, 1), (100, 7), (300, 30)])
def test_draw_any_size_without_warnings(clients: int, tasks: int, tmp_path: Path) -> None:
    names = tuple(f"task{number}_with_a_long_name_{'x' * number}" for number in range(tasks))
    examples = tuple(Example("x", "", "y", names[i % tasks]) for i in range(3 * clients))
    shares = [Share((3 * i, 3 * i + 1), (3 * i + 2,)) for i in range(clients)]
    draw(table(Corpus(examples, names, {}, ""), shares), tmp_path / "p.png", "any size")


def test_draw_names_that_look_like_formulas(tmp_path: Path) -> None:
    names = ("$\\bad{$", "a_b^c", "50 $ and 60 $")
    examples = tuple(Example("x", "", "y", name) for name in names)
    draw(table(Corpus(examples, names, {}, ""), [Share((0, 1), (2,))]), tmp_path / "p.png", "$\\x$")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_draw_where_nothing_can_be_written(
    small: tuple[Corpus, list[Share]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        draw(table(*small), tmp_path / "file" / "p.png")


@pytest.mark.parametrize(
    ("flat", "text"),
    [
        ({}, "dirichlet over tasks, alpha = 0.1, 100 clients"),
        ({"partition": "iid", "num-clients": 20}, "iid, 20 clients"),
        (
            {"partition": "natural-id", "partition-column": "user"},
            "natural-id by user, 100 clients",
        ),
    ],
)
def test_title_of(flat: dict[str, str | int], text: str) -> None:
    assert title_of(Config.from_flat(flat).partition) == text

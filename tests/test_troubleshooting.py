"""`docs/troubleshooting.md` has every message that a user can meet, and no other.

A message is the text of an error or a warning as the source has it, with ``…`` for each part that
varies; the page has it as an item of a list, in a code span, above what it means.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
FOLDERS = ("mops_fl", "strategies", "partitions", "experiments")

LETTERS = 4
"""A text with fewer letters of its own, as ``…: …`` has, only passes on another message; so does
one that only says whose it is, ``mops-fl: …``."""

BESIDE = {"MopsError", "UnusableError", "SystemExit"}
"""Classes whose texts users read, and those derived from them: errors of ours, why a row is
skipped, the end of a process that a user started."""

NOT_MET = {
    "MalformedError": "said by one end of a connection of the other; the page has its frame",
    "ValueError": "a mistake of a caller in Python, or caught and told in other words",
    "RuntimeError": "of tools for those who change the code",
    "TimeoutError": "of tools for those who change the code",
    "Stopped": "ends a block; it has no text",
    "RequestError": "told over HTTP, in the form that programs of OpenAI's interface expect",
}
"""Other classes that are raised by name, and why the page does not have their texts."""

PARTS = ("fault", "already_quantised", "_change", "_difference", "_withheld", "_warnings")
"""What the names of functions end with whose texts become part of a message."""

ALL = ("warnings.append", "warnings.warn", "telling", "_refuse", "_say")
"""What the names of functions end with that tell any text of theirs."""

VERDICT = "Verdict"
"""Called with a status and the error of a run that ended."""

ANY = "…"


class Said(NamedTuple):
    """A message, and where the source says it."""

    text: str
    place: str


def squeezed(text: str) -> str:
    """A message with one space for any, and one mark for parts that vary one after the other."""
    return re.sub(f"{ANY}+", ANY, " ".join(text.split()))


class Module:
    """The messages of a file."""

    def __init__(self, name: str, tree: ast.Module, told: set[str]) -> None:
        """Take it.

        Args:
            name: of the file.
            tree: what is in it.
            told: the classes whose texts users read, and functions that return such an error.
        """
        self.name = name
        self.tree = tree
        self._told = told
        self._names: dict[str, list[ast.expr]] = {}

    def said(self) -> Iterator[Said]:
        """Every message."""
        yield from self._within(self.tree, assigned(self.tree))

    def _within(self, scope: ast.AST, names: dict[str, list[ast.expr]]) -> Iterator[Said]:
        """The messages of a file or function, but for those of functions in it, and then these."""
        self._names = names
        for node in own_nodes(scope):
            for expression in self._spoken(node, scope):
                for text in self._texts(expression):
                    message = squeezed(text)
                    if len(re.findall(r"[^\W\d_]", message.removeprefix("mops-fl: "))) >= LETTERS:
                        yield Said(message, f"{self.name}:{expression.lineno}")
        for node in own_nodes(scope):
            if isinstance(node, ast.FunctionDef):
                yield from self._within(node, {**names, **assigned(node)})

    def _spoken(self, node: ast.AST, scope: ast.AST) -> Sequence[ast.expr]:
        """The expressions of a node whose text a user can meet."""
        if isinstance(node, ast.Return) and isinstance(scope, ast.FunctionDef):
            if not (node.value and scope.name.endswith(PARTS)):
                return []
            return node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        if not isinstance(node, ast.Call):
            return []
        name = ast.unparse(node.func)
        if name in self._told:
            return node.args
        if name == VERDICT or (name in ("log", "_log.warning") and is_loud(node)):
            return node.args[1:2] if name != "_log.warning" else node.args[:1]
        if name.endswith(ALL):
            return node.args
        if name.endswith("print") and node.args:
            warning = any(text.startswith("warning: ") for text in self._texts(node.args[0]))
            return node.args[:1] if warning or ending(node) else []
        return []

    def _texts(self, node: ast.expr) -> list[str]:
        """What an expression can say, the parts that vary as one mark each."""
        if isinstance(node, ast.Constant):
            # `log` fills in its arguments
            return [re.sub(r"%[sd]", ANY, node.value)] if isinstance(node.value, str) else [ANY]
        if isinstance(node, ast.JoinedStr):
            return ["".join(texts) for texts in product(*map(self._texts, node.values))]
        if isinstance(node, ast.FormattedValue):
            if isinstance(node.value, ast.BoolOp):  # a value, or a word for none
                return [ANY]
            texts = self._texts(node.value)
            return [repr(t) if node.conversion == ord("r") and ANY not in t else t for t in texts]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return list(map("".join, product(self._texts(node.left), self._texts(node.right))))
        if isinstance(node, ast.IfExp):
            return self._texts(node.body) + self._texts(node.orelse)
        if isinstance(node, ast.BoolOp):
            return [text for value in node.values for text in self._texts(value)]
        if isinstance(node, ast.Name) and node.id in self._names:
            values = self._names.pop(node.id)  # a name can be assigned to itself
            found = dict.fromkeys(text for value in values for text in self._texts(value))
            self._names[node.id] = values
            return list(found)
        if is_joined(node):
            (parts,) = node.args
            return self._texts(parts.elts[0]) if isinstance(parts, ast.List) else [ANY]
        return [ANY]


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, without what is in functions there."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from own_nodes(child)


def assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    """Name → what a file or function assigns to it, where some of it is text."""
    found: dict[str, list[ast.expr]] = {}
    for node in own_nodes(scope):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    text = (ast.Constant, ast.JoinedStr, ast.IfExp)
    return {name: v for name, v in found.items() if any(isinstance(each, text) for each in v)}


def ending(node: ast.Call) -> bool:
    """Whether this prints on standard error what `telling` was told."""
    return "mops-fl: completed" in ast.unparse(node)


def is_loud(node: ast.Call) -> bool:
    """Whether a line is logged as a warning or an error."""
    level = ast.unparse(node.args[0])
    return level in ("logging.WARNING", "logging.ERROR") or "warning" in ast.unparse(node.func)


def is_joined(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".join")


TREES = {
    file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
    for folder in FOLDERS
    for file in sorted((ROOT / folder).rglob("*.py"))
}
NODES = [node for tree in TREES.values() for node in ast.walk(tree)]


def derived(names: set[str]) -> set[str]:
    """These classes, and all that are derived from them."""
    bases = {
        each.name: {ast.unparse(base) for base in each.bases}
        for each in NODES
        if isinstance(each, ast.ClassDef)
    }
    found = set(names)
    while more := {name for name, own in bases.items() if found & own} - found:
        found |= more
    return found


ERRORS = derived(BESIDE)
MAKERS = {
    each.name
    for each in NODES
    if isinstance(each, ast.FunctionDef) and each.returns and ast.unparse(each.returns) in ERRORS
}


def raised() -> set[str]:
    """Names of all that is raised."""
    nodes = [node.exc for node in NODES if isinstance(node, ast.Raise)]
    found = {ast.unparse(n.func if isinstance(n, ast.Call) else n) for n in nodes if n}
    return {name for name in found if name[0].isupper()}


SAID = [said for name, tree in TREES.items() for said in Module(name, tree, ERRORS | MAKERS).said()]
LISTED = [
    squeezed(text)
    for _, text in re.findall(
        r"^- (`+) ?((?:(?!\n\n|\n- )[\s\S])+?) ?\1$", PAGE, flags=re.MULTILINE
    )
]
"""The messages of the page."""


def test_every_message_is_on_the_page():
    known = set(LISTED)
    missing = [f"{place}: - `{text}`" for text, place in SAID if text not in known]
    assert not missing, "\n".join(["messages that docs/troubleshooting.md lacks:", *missing])


def test_every_message_of_the_page_is_in_the_source():
    said = {text for text, _ in SAID}
    unsaid = [text for text in LISTED if text not in said]
    assert not unsaid, "\n".join(["messages that the source does not have:", *unsaid])


def test_no_message_is_on_the_page_twice():
    assert len(set(LISTED)) == len(LISTED)


def test_what_a_message_means_stands_below_it():
    """A list of messages is followed by words, and every item is a message."""
    parts = re.split(r"\n{2,}", PAGE.split("\n## ", 1)[1])
    lists = [number for number, part in enumerate(parts) if part.startswith("- ")]
    assert sum(len(re.findall(r"^- ", parts[n], flags=re.MULTILINE)) for n in lists) == len(LISTED)
    for number in lists:
        assert re.match(r"\w|`|\*", parts[number + 1]), parts[number]


def test_what_is_raised_is_known():
    """A class of errors that is new is one whose texts users read, or one that they do not meet."""
    assert raised() <= ERRORS | NOT_MET.keys()
    assert NOT_MET.keys() <= raised()


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ('raise RunError(f"{a} is {b!r}: mend " "it")', ["… is …: mend it"]),
        ("raise RunError(f\"{'one' if a else 'two'} of them\")", ["one of them", "two of them"]),
        ('why = f"not {a}"\nraise RunError(f"no: {why}")', ["no: not …"]),
        ('raise RunError("; ".join([f"too few of {a}", *b]))', ["too few of …"]),
        ('def some_fault(a):\n    return "" if a else f"{a} is bent"', ["… is bent"]),
        ('log(logging.WARNING, "node %d is gone", a)', ["node … is gone"]),
        ('log(logging.INFO, "node %d is gone", a)', []),
        ('console.print(f"warning: {a} is slow")', ["warning: … is slow"]),
        ('raise RunError(f"{a}: {b}")', []),
        ('raise ValueError("a mistake in Python")', []),
    ],
)
def test_messages_are_found(source, texts):
    found = Module("module.py", ast.parse(source), ERRORS).said()
    assert [said.text for said in found] == texts

"""The house: rooms on floors, and imports that go downward only.

Run with ``-s`` to see the floors.
"""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FLOORS = (
    (
        *("mops_fl.errors", "mops_fl.seeding", "mops_fl.metrics", "mops_fl.labels"),
        *("mops_fl.machine", "mops_fl.activity", "mops_fl.code_digest"),
    ),
    ("mops_fl.files", "mops_fl.compression_spec"),
    ("mops_fl.config", "mops_fl.pictures"),
    ("mops_fl.wire", "mops_fl.data", "mops_fl.base"),
    ("mops_fl.methods", "mops_fl.compression", "partitions", "mops_fl.run"),
    ("strategies", "mops_fl.models", "mops_fl.flower", "mops_fl.report"),
    ("mops_fl.training", "mops_fl.experiment"),
    (
        *("mops_fl.engine", "mops_fl.node", "mops_fl.start", "mops_fl.membership"),
        "mops_fl.generation",
    ),
    ("mops_fl.client_app", "mops_fl.server_app", "mops_fl.deploy", "mops_fl.export"),
    ("mops_fl.cli",),
    ("experiments",),
)
"""The rooms from the ground up. A room imports rooms on lower floors, and itself."""

ROOMS = {room: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms}


def files() -> list[Path]:
    folders = (ROOT / name for name in ("mops_fl", "strategies", "partitions", "experiments"))
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    fitting = [room for room in ROOMS if f"{module}.".startswith(f"{room}.")]
    return max(fitting, key=len, default=None)


@cache
def imports_of(file: Path) -> frozenset[str]:
    """Modules of ours that a file imports anywhere, also inside functions."""
    ours = {module_of(each) for each in files()}
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute here"
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            # a name is a module of the package, or something inside the package itself
            found |= (deeper & ours) or {node.module}
    return frozenset(found & ours) - {module_of(file), "mops_fl"}


def test_every_file_has_a_room():
    homeless = [f for f in files() if module_of(f) != "mops_fl" and not room_of(module_of(f))]
    assert not homeless, "give it a place in FLOORS"


def test_imports_go_downward_only():
    upward = [
        f"{module_of(file)} (floor {ROOMS[own]}) imports {other} (floor {ROOMS[room]})"
        for file in files()
        if (own := room_of(module_of(file)))
        for other in sorted(imports_of(file))
        if (room := room_of(other)) and room != own and ROOMS[room] >= ROOMS[own]
    ]
    for floor, rooms in reversed(list(enumerate(FLOORS, 1))):
        print(f"floor {floor}: {', '.join(rooms)}")
    assert not upward, "\n".join(upward)


def test_no_files_import_each_other_in_a_circle():
    graph = {module_of(file): imports_of(file) for file in files()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"circle: {' -> '.join(error.args[1])}") from None


def test_no_two_files_have_one_name():
    names = [file.name for file in files() if not file.name.startswith("__")]
    assert not {name for name in names if names.count(name) > 1}

"""Which code this process runs: two processes of one run must not compute by different rules."""

import ast
import functools
import hashlib
from pathlib import Path

_NUMBERS = (
    *("mops_fl/base", "mops_fl/compression", "mops_fl/data", "mops_fl/methods", "mops_fl/models"),
    *("mops_fl/training", "mops_fl/wire", "mops_fl/engine", "strategies", "partitions"),
    *("mops_fl/seeding.py", "mops_fl/metrics.py", "mops_fl/start.py", "mops_fl/server_app.py"),
    "mops_fl/membership.py",
    *("mops_fl/client_app.py", "mops_fl/config.py", "mops_fl/compression_spec.py"),
    "mops_fl/run/folder.py",
)
"""Code that decides numbers."""


@functools.cache
def code_digest() -> str:
    """SHA-256 over the code that decides numbers, by its syntax."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for part in _NUMBERS:
        path = root / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
            digest.update(syntax(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def syntax(text: str) -> str:
    """What a module does, whatever its comments and docstrings say."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        # a text that stands alone says something to readers only
        node.body = [  # type: ignore[attr-defined]
            each
            for each in body
            if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        ]
    return _text(tree)


def _text(value: object) -> str:
    """`ast.dump`, but equal under every version of Python from 3.11 on.

    A later version has more fields, which are empty here; 3.12 ends some formats in an empty text.
    """
    if isinstance(value, ast.JoinedStr):
        value = ast.JoinedStr([each for each in value.values if getattr(each, "value", None) != ""])
    if isinstance(value, ast.AST):
        fields = [(name, each) for name, each in ast.iter_fields(value) if each not in (None, [])]
        stated = ",".join(f"{name}={_text(each)}" for name, each in fields)
        return f"{type(value).__name__}({stated})"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return ascii(value)

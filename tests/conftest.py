"""Fixtures that several test modules share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny import save_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random LLaMA of a few thousand parameters, with its tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep converted tiny models out of the user's cache; slow tests may point it elsewhere."""
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real Dolly and Super-NaturalInstructions rows; skips where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "dolly-12k.jsonl").is_file():
        pytest.skip(f"no real instruction data at {folder}")
    return folder

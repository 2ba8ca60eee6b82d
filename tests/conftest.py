"""Fixtures that several test modules share."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from experiments.golden import curves
from experiments.golden.tiny import save_tiny_llama


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes that share the tests, one has all of a file, or all that share the golden
    runs: what costs time there is made once. Groups that take long come first, so that none of
    them is left for one process alone at the end."""
    slow: Counter[str] = Counter()
    for item in items:
        golden = "federation" in getattr(item, "fixturenames", ())
        group = "golden" if golden else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
        slow[group] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.get_closest_marker("xdist_group").args[0]])


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random LLaMA of a few thousand parameters, with its tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep converted tiny models out of the user's cache; slow tests may point it elsewhere."""
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def federation(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[curves.Case, int], Path]:
    """Runs a golden case through Flower and Ray, once a session: its run folder.

    Cohorts are shared by two workers where nothing else is said.
    """
    folder, done = tmp_path_factory.mktemp("golden"), {}

    def run(case: curves.Case, workers: int = 0) -> Path:
        workers = workers or (2 if case.engine == "cohort" else 1)
        if (case, workers) not in done:
            done[case, workers] = curves.run(case, tiny_llama, folder, workers=workers)
        return done[case, workers]

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real Dolly and Super-NaturalInstructions rows; skips where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "dolly-12k.jsonl").is_file():
        pytest.skip(f"no real instruction data at {folder}")
    return folder

"""A tiny base model, calibration rows for it, and one pruned model, made once a session."""

from pathlib import Path

import pytest

from experiments.golden.tiny import byte_tokenizer, save_tiny_llama
from mops_fl.compression.cache import ensure
from mops_fl.compression.calibration import Calibration, load_calibration
from mops_fl.compression_spec import parse
from mops_fl.config import Config


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA with widths that every pattern of the tests divides."""
    return save_tiny_llama(tmp_path_factory.mktemp("base"), num_hidden_layers=2)


@pytest.fixture(scope="session")
def calibration() -> Calibration:
    """Sixteen generated rows, and those held out."""
    data = Config.from_flat({"dataset": "skills", "max-length": 96}).data
    return load_calibration(data, byte_tokenizer(), samples=16, seed=0)


@pytest.fixture(scope="session")
def pruned(base: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the base model pruned 2:4. Copy it before changing anything in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOPS_FL_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("out") / "pruned"
        return ensure(base, parse("2:4"), calibration, out=out)

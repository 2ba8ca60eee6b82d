"""Fixtures of the engine's tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tasks import configured

from mops_fl.config import Config


@pytest.fixture
def config(tiny_llama) -> Config:
    return configured(tiny_llama)

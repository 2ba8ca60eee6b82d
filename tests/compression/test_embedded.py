"""The embedded model, really pruned."""

import pytest

from mops_fl.base.load import load_llama
from mops_fl.base.prepare import prepared
from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.compression.artifact import verify
from mops_fl.compression.cache import ensure
from mops_fl.compression.calibration import answer_tally, load_calibration
from mops_fl.compression.quantise import quantise
from mops_fl.compression_spec import parse
from mops_fl.config import Config

pytestmark = pytest.mark.slow


def test_the_embedded_model_is_pruned(tmp_path, monkeypatch, real_data):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path))
    config = Config.from_flat(
        {
            "dtype": "float32",
            "dataset": "dolly",
            "data-path": str(real_data / "dolly-12k.jsonl"),
            "max-length": 128,
        }
    )
    tokenizer = load_tokenizer(config.backbone)
    calibration = load_calibration(config.data, tokenizer, samples=16, seed=0)
    folder = ensure(prepared(config.backbone), parse("2:4"), calibration)
    manifest = verify(folder)
    assert len(manifest.layers) == 210
    before, after = manifest.perplexity["before"], manifest.perplexity["after"]
    assert 5 < before < 30
    assert before < after < 300
    # one float32 model is 0.54 GB; Python with torch and llmcompressor takes about as much
    assert manifest.peak_memory["host"] < 2.5e9

    examples = [row.tokens for row in calibration.held_out[:4]]
    pruned = load_llama(folder)
    float_tally = answer_tally(pruned, examples, "cpu")
    with pytest.warns(UserWarning, match="nf4 on the CPU"):
        held = quantise(pruned, "nf4", "cpu")
    assert answer_tally(held, examples, "cpu").nll < 1.3 * float_tally.nll

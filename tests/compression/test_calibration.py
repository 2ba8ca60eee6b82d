import json
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from experiments.golden.tiny import byte_tokenizer
from mops_fl.compression.calibration import HELD_OUT, answer_tally, load_calibration
from mops_fl.config import Config
from mops_fl.data import load_corpus
from mops_fl.errors import ConfigError, DataError
from mops_fl.seeding import derive


def data(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "instruction": f"say {i}",
                    "context": "",
                    "response": f"number {i}",
                    "category": "brainstorming",
                }
            )
            + "\n"
            for i in range(rows)
        )
    )
    return Config.from_flat({"dataset": "jsonl", "data-path": str(path), "max-length": 96}).data


def test_rows_are_drawn_by_the_seed_and_held_out_rows_are_others(tmp_path):
    source = data(tmp_path, 60)
    first, again, other = (
        load_calibration(source, byte_tokenizer(), samples=20, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.digest != other.digest
    assert (len(first.rows), len(first.held_out)) == (20, HELD_OUT)
    indices = [row.index for row in first.rows + first.held_out]
    assert len(set(indices)) == len(indices)
    assert max(indices) < 60
    assert len({row.digest for row in first.rows + first.held_out}) == 20 + HELD_OUT


@pytest.mark.parametrize("rows", [0, 1, 51])
def test_too_few_rows_are_refused(tmp_path, rows):
    with pytest.raises(DataError):
        load_calibration(data(tmp_path, rows), byte_tokenizer(), samples=20, seed=0)


def test_the_message_says_how_many_there_are(tmp_path):
    with pytest.raises(DataError, match=r"has 51 usable rows, but samples=20 and 32 .* need 52"):
        load_calibration(data(tmp_path, 51), byte_tokenizer(), samples=20, seed=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_generated_rows_are_not_a_runs_own(seed):
    source = Config.from_flat({"dataset": "skills"}).data
    run = {(e.instruction, e.context) for e in load_corpus(source, seed).examples}
    again = load_corpus(source, derive(seed, "calibration")).examples
    found = load_calibration(source, byte_tokenizer(), samples=128, seed=seed)
    rows = [again[row.index] for row in found.rows + found.held_out]
    assert not run & {(row.instruction, row.context) for row in rows}


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="samples=0"):
        load_calibration(data(tmp_path, 60), byte_tokenizer(), samples=0, seed=0)


def test_perplexity_is_that_of_transformers_on_answers(base, calibration):
    model = LlamaForCausalLM.from_pretrained(base).eval()
    examples = [row.tokens for row in calibration.held_out[:4]]
    tally = answer_tally(model, examples, "cpu")
    nll = 0.0
    for example in examples:
        ids = torch.tensor([example.question + example.answer])
        labels = ids.clone()
        labels[0, : len(example.question)] = -100
        nll += model(input_ids=ids, labels=labels).loss.item() * len(example.answer)
    assert tally.tokens == sum(len(example.answer) for example in examples)
    assert math.isclose(tally.nll, nll, rel_tol=1e-5)

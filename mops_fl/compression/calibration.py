"""Calibration rows: what SparseGPT sees, and held-out rows to measure the damage on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from mops_fl.config import DataConfig
from mops_fl.data import Tokenised, load_corpus, tokenise
from mops_fl.errors import ConfigError, DataError
from mops_fl.metrics import Tally
from mops_fl.seeding import derive, numpy_generator

SAMPLES = 128
"""Rows that SparseGPT sees unless told otherwise; 128 in the paper."""

HELD_OUT = 32
"""Rows that it does not see, for perplexity before and after."""


@dataclass(frozen=True)
class CalibrationRow:
    """One example of the corpus."""

    index: int
    """Its place among the usable rows of the whole dataset."""
    tokens: Tokenised

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids of question and answer."""
        return self.tokens.question + self.tokens.answer

    @property
    def digest(self) -> str:
        """SHA-256 over question and answer, in hexadecimal."""
        return hashlib.sha256(
            json.dumps([self.tokens.question, self.tokens.answer]).encode()
        ).hexdigest()


@dataclass(frozen=True)
class Calibration:
    """The rows of one compression."""

    source: str
    """The dataset, for the reader of a manifest."""
    seed: int
    rows: tuple[CalibrationRow, ...]
    held_out: tuple[CalibrationRow, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all rows, in hexadecimal."""
        parts = [[row.digest for row in rows] for rows in (self.rows, self.held_out)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_calibration(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, samples: int = SAMPLES, seed: int
) -> Calibration:
    """Draw `samples` rows and `HELD_OUT` others uniformly from the whole dataset.

    Args:
        data: the dataset, its tasks and `max-length`; `num-samples` is not looked at.
        tokenizer: the model's.
        samples: rows for SparseGPT.
        seed: decides which rows.

    Raises:
        ConfigError: `samples` is less than 1.
        DataError: the data cannot be read or has too few usable rows.
    """
    if samples < 1:
        raise ConfigError(f"samples={samples}: SparseGPT needs at least 1 calibration row")
    # a stream of its own, so that what is generated is not what a run of the same seed generates
    examples = load_corpus(replace(data, num_samples=0), derive(seed, "calibration")).examples
    source = f"{data.dataset} {data.data_path}".strip()
    needed = samples + HELD_OUT
    if len(examples) < needed:
        raise DataError(
            f"calibration={source} has {len(examples)} usable rows, but samples={samples} and "
            f"{HELD_OUT} held-out rows need {needed}: lower samples or give more rows"
        )
    chosen = numpy_generator(seed, "calibration").permutation(len(examples))[:needed].tolist()
    tokenised = tokenise([examples[index] for index in chosen], tokenizer, data.max_length)
    rows = tuple(map(CalibrationRow, chosen, tokenised.examples))
    return Calibration(source, seed, rows[:samples], rows[samples:])


@torch.no_grad()
def answer_tally(
    model: LlamaForCausalLM, examples: Sequence[Tokenised], device: torch.device | str
) -> Tally:
    """Negative log-likelihood of the answers, one row at a time, without prompts.

    Args:
        model: in evaluation mode, with its inputs on `device`.
        examples: each with at least one question token.
        device: where the token ids go.
    """
    tally = Tally()
    for example in examples:
        ids = torch.tensor([example.question + example.answer], device=device)
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        # the state before each answer token predicts it: [1, T, d] -> [answer, d]
        logits = model.lm_head(states[0, len(example.question) - 1 : -1]).float()
        nll = F.cross_entropy(logits, ids[0, len(example.question) :], reduction="sum")
        tally += Tally(nll.item(), len(example.answer))
    return tally

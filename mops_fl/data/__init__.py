"""Instruction data: loading, one prompt template, and tokens."""

from mops_fl.data.corpus import Corpus, load_corpus, load_server_data
from mops_fl.data.examples import Example
from mops_fl.data.split import (
    Holding,
    Share,
    evaluated,
    holding,
    malicious_partitions,
    split,
    unseen_partitions,
)
from mops_fl.data.tokenised import Packed, Tokenised, TokenisedCorpus, made_by_one
from mops_fl.data.tokens import tokenise

__all__ = [
    "Corpus",
    "Example",
    "Holding",
    "Packed",
    "Share",
    "Tokenised",
    "TokenisedCorpus",
    "evaluated",
    "holding",
    "load_corpus",
    "load_server_data",
    "made_by_one",
    "malicious_partitions",
    "split",
    "tokenise",
    "unseen_partitions",
]

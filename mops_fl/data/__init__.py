"""Instruction data: loading, one prompt template, and tokens."""

from mops_fl.data.corpus import Corpus, load_corpus
from mops_fl.data.examples import Example
from mops_fl.data.split import Share, split
from mops_fl.data.tokens import Tokenised, TokenisedCorpus, tokenise

__all__ = [
    "Corpus",
    "Example",
    "Share",
    "Tokenised",
    "TokenisedCorpus",
    "load_corpus",
    "split",
    "tokenise",
]

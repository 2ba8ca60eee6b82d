"""The tokenizer of a base model."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mops_fl.base.prepare import prepared
from mops_fl.config import BackboneConfig


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a configuration's model.

    Raises:
        ModelError: the model does not exist or has no tokenizer.
    """
    folder: Path = prepared(config)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)

"""Where pruned models are kept: made once, whole, and only when missing.

A folder's name is a digest of everything that determines its weights, so whoever asks for the same
compression of the same model finds it.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch

from mops_fl.base.checkpoint import weight_files
from mops_fl.base.identity import digest
from mops_fl.base.source import Source
from mops_fl.compression.calibration import Calibration
from mops_fl.compression.manifest import FILE, FORMAT, read_manifest
from mops_fl.compression_spec import Compression
from mops_fl.errors import ConfigError, ModelError, RunError
from mops_fl.files import cache_folder, check_disk, made_once

_LIBRARIES = ("llmcompressor", "compressed-tensors", "torch", "transformers")


def ensure(
    base: Path,
    compression: Compression,
    calibration: Calibration,
    *,
    device: torch.device | str = "cpu",
    out: Path | None = None,
) -> Path:
    """The folder of the pruned model: found, or made first.

    Processes that ask for the same one at the same time make it once. One that was interrupted is
    never found, and the next to ask removes what it left.

    Args:
        base: folder of the base model: safetensors of floats, config.json, tokenizer.
        compression: its pruning is done; its quantisation is left to loading.
        calibration: the rows, and the seed that drew them.
        device: where the layers are pruned.
        out: where to put it; in the cache by default.

    Raises:
        ConfigError: there is nothing to prune, or the pattern does not fit the model's widths.
        DataError: the calibration rows are not of this model.
        ModelError: the base model cannot be used, is compressed already, or cannot be pruned.
        RunError: there is not enough disk or no permission, or `out` holds something else.
    """
    if not compression.pruning:
        raise ConfigError(
            f"compression={compression}: there is nothing to prune; int8 and nf4 are applied when "
            "a model is loaded"
        )
    if (base / FILE).is_file():
        raise ModelError(f"{base} is compressed already (it has {FILE}): give its base model")
    device = torch.device(device)
    key = cache_key(base, compression, calibration, device)
    target = out or cache_folder() / "compressed" / key
    if not target.is_dir():
        needed = sum(file.stat().st_size for file in weight_files(base))
        check_disk(target, needed, "the compressed model")
    with made_once(target) as made:
        if made.folder is None:
            _check_is(made.target, key)
        else:
            from mops_fl.compression.make import make

            make(base, compression.pruned_only, calibration, device, made.folder, key)
    return made.target


def cache_key(
    base: Path, compression: Compression, calibration: Calibration, device: torch.device
) -> str:
    """A digest of everything that determines the pruned weights, in hexadecimal."""
    facts = {
        "base": digest(Source(base)),
        "compression": compression.pruning,
        "calibration": calibration.digest,
        "seed": calibration.seed,
        "device": device.type,
        "versions": {name: version(name) for name in _LIBRARIES},
        "format": FORMAT,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_is(folder: Path, key: str) -> None:
    if (folder / FILE).is_file() and read_manifest(folder).key == key:
        return
    raise RunError(
        f"{folder} exists and holds something else than this compression: remove it, or choose "
        "another --out"
    )

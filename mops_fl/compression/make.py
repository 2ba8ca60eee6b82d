"""Making a compressed model: load, measure, prune, measure again, write, check."""

import itertools
import math
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.offload import remove_dispatch, set_onload_device
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from mops_fl.activity import doing
from mops_fl.base.identity import digest
from mops_fl.base.load import load_llama
from mops_fl.base.source import Source
from mops_fl.base.tokenizer import read_tokenizer
from mops_fl.compression.artifact import verify, write_weights
from mops_fl.compression.calibration import Calibration, CalibrationRow, answer_tally
from mops_fl.compression.manifest import Manifest, write_manifest
from mops_fl.compression.pattern import is_prunable
from mops_fl.compression.sparsegpt import prune
from mops_fl.compression_spec import Compression
from mops_fl.errors import ModelError

_LIBRARIES = ("llmcompressor", "compressed-tensors", "torch", "transformers")


def make(
    base: Path,
    compression: Compression,
    calibration: Calibration,
    device: torch.device,
    folder: Path,
    key: str,
) -> None:
    """Prune a base model into an empty folder, and check what has been written.

    The model is held once, in CPU memory and in the type that it is stored in;
    `mops_fl.compression.sparsegpt.prune` says what comes on top.

    Raises:
        ConfigError, DataError, ModelError: as `mops_fl.compression.cache.ensure` says.
    """
    started = time.monotonic()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    tokenizer, model = read_tokenizer(str(base), base), load_llama(base).eval()
    with doing("perplexity before pruning"):
        before = _perplexity(model, calibration, device)
    _prune(model, tokenizer, calibration, compression, device)
    with doing("perplexity after pruning"):
        after = _perplexity(model, calibration, device)
    tokens = sum(len(row.tokens.answer) for row in calibration.held_out)
    layers, untouched, files = write_weights(base, model, compression, folder)
    # llmcompressor leaves the model in a registry of torch.fx for the life of the process.
    model.to("meta")
    manifest = Manifest(
        key=key,
        compression=str(compression),
        base_digest=digest(Source(base)),
        calibration=_described(calibration),
        perplexity={"before": before, "after": after, "tokens": tokens},
        layers=layers,
        untouched=untouched,
        files=files,
        versions={name: version(name) for name in _LIBRARIES},
        device=str(device),
        seconds=round(time.monotonic() - started, 1),
        peak_memory=_peak_memory(device),
    )
    write_manifest(folder, manifest)
    verify(folder)


def _prune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Calibration,
    compression: Compression,
    device: torch.device,
) -> None:
    rows = [row.ids for row in calibration.rows]
    matrices = sum(is_prunable(name) for name, _ in model.named_parameters())
    counted = itertools.count(1)
    with doing(f"pruning to {compression}", of=matrices) as on_step:
        prune(
            model,
            tokenizer,
            rows,
            compression,
            device=device,
            progress=lambda _layer: on_step(next(counted), matrices),
        )


def _perplexity(model: LlamaForCausalLM, calibration: Calibration, device: torch.device) -> float:
    """On the held-out answers; each weight visits `device` only while it is used."""
    set_onload_device(model, device)
    try:
        examples = [row.tokens for row in calibration.held_out]
        perplexity = answer_tally(model, examples, device).perplexity
    finally:
        remove_dispatch(model)
    if not math.isfinite(perplexity):
        raise ModelError(
            f"the perplexity on the {len(examples)} held-out calibration rows is {perplexity}: "
            "use dtype=float32 or a sound base model"
        )
    return perplexity


def _described(calibration: Calibration) -> dict[str, Any]:
    def rows(chosen: tuple[CalibrationRow, ...]) -> list[dict[str, Any]]:
        return [{"index": row.index, "sha256": row.digest} for row in chosen]

    return {
        "source": calibration.source,
        "seed": calibration.seed,
        "digest": calibration.digest,
        "rows": rows(calibration.rows),
        "held_out": rows(calibration.held_out),
    }


def _peak_memory(device: torch.device) -> dict[str, int]:
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "cuda": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    }

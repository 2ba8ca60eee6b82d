"""The manifest beside the weights: what was done to them, with what, and what came of it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mops_fl.compression_spec import Compression, parse
from mops_fl.errors import ConfigError, ModelError
from mops_fl.files import write_text

FILE = "compression.json"

FORMAT = 1
"""Version of the folder's layout; raised when a reader of the old one would misread the new."""


@dataclass(frozen=True)
class PrunedLayer:
    """One matrix that SparseGPT has pruned."""

    target: float
    """Sparsity asked for, from 0 to 1."""
    achieved: float
    sha256: str
    """Of the tensor's type, shape and bytes."""


@dataclass(frozen=True)
class Manifest:
    """What `compression.json` says."""

    key: str
    """Place in the cache: a digest of everything that determines the weights."""
    compression: str
    """The pruning; quantisation is done on loading."""
    base_digest: str
    """Of the base model's weights and configuration."""
    calibration: Mapping[str, Any]
    """Source, seed and digest, and index and digest of every row seen and held out."""
    perplexity: Mapping[str, float]
    """`before` and `after`, on the answers of the held-out rows, and their number of `tokens`."""
    layers: Mapping[str, PrunedLayer]
    """Tensor name → pruned matrix."""
    untouched: Mapping[str, str]
    """Tensor name → digest in the base model, for every tensor that is not pruned."""
    files: Mapping[str, str]
    """File name → SHA-256, for every file that holds no weights."""
    versions: Mapping[str, str]
    device: str
    seconds: float
    """From loading the base model to the last tensor written."""
    peak_memory: Mapping[str, int]
    """Bytes: `host`, the process's largest resident set; `cuda`, allocated at most, or 0."""
    format: int = FORMAT

    @property
    def spec(self) -> Compression:
        """The pruning, parsed."""
        return parse(self.compression)

    @property
    def sparsity(self) -> float:
        """Mean achieved sparsity over the pruned matrices, from 0 to 1."""
        return sum(layer.achieved for layer in self.layers.values()) / len(self.layers)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `compression.json`."""
    write_text(folder / FILE, json.dumps(asdict(manifest), indent=1, allow_nan=False) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read `compression.json`.

    Raises:
        ModelError: it is missing, malformed or of another format.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {FILE}: it is not a compressed model") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): compress the model anew") from error
    try:
        if found["format"] != FORMAT:
            raise ModelError(
                f"{path} has format {found['format']} where this version reads {FORMAT}: "
                "compress the model anew"
            )
        layers = {name: PrunedLayer(**layer) for name, layer in found["layers"].items()}
        manifest = Manifest(
            **{f.name: found[f.name] for f in fields(Manifest)} | {"layers": layers}
        )
        if not manifest.spec.pruning or not layers:
            raise ModelError(f"{path} names no pruning: compress the model anew")
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ModelError(f"{path} is malformed ({error!r}): compress the model anew") from error
    return manifest

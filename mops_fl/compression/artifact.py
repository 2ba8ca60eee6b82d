"""A compressed model on disk: a plain Hugging Face folder plus its manifest.

The weights are stored densely, zeros and all: compressed-tensors has dropped its sparse formats
(since 0.14), and a plain folder is read by everything. What is not pruned is copied from the base
model's files and never passes through a model in memory.
"""

import hashlib
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from transformers import LlamaForCausalLM

from mops_fl.base.checkpoint import weight_files
from mops_fl.base.identity import signature
from mops_fl.base.load import writing
from mops_fl.compression.manifest import FILE, Manifest, PrunedLayer, read_manifest
from mops_fl.compression.pattern import is_prunable, pattern_fault, value_fault, zero_fraction
from mops_fl.compression_spec import Compression
from mops_fl.errors import ModelError

_COPIED = (".json", ".txt", ".model", ".jinja")
_INDEX = "model.safetensors.index.json"


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor of a folder in safetensors, memory-mapped.

    Raises:
        ModelError: there are no weights, or a file is damaged.
    """
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    yield name, opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged ({error}): restore or make it anew") from error


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 over a tensor's type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_weights(
    base: Path, model: LlamaForCausalLM, compression: Compression, folder: Path
) -> tuple[dict[str, PrunedLayer], dict[str, str], dict[str, str]]:
    """Write the base model's folder anew, with the pruned matrices taken from `model`.

    Args:
        base: folder of the base model, in safetensors.
        model: the base model, pruned.
        compression: what was asked for.
        folder: an empty folder.

    Returns:
        `layers`, `untouched` and `files` of the manifest.

    Raises:
        ModelError: the base model cannot be read.
    """
    parameters = dict(model.named_parameters())
    state, layers, untouched = {}, {}, {}
    for name, stored in tensors(base):
        if is_prunable(name):
            weight = parameters[name].detach().to(device="cpu", dtype=stored.dtype)
            state[name] = weight
            layers[name] = PrunedLayer(
                compression.sparsity, zero_fraction(weight), tensor_digest(weight)
            )
        else:
            state[name] = stored
            untouched[name] = tensor_digest(stored)
    with writing(folder):
        save_torch_state_dict(state, folder)
        for file in base.iterdir():
            if file.suffix in _COPIED and file.name not in (_INDEX, FILE) and file.is_file():
                shutil.copyfile(file, folder / file.name)
    return layers, untouched, _file_digests(folder)


def verify(folder: Path) -> Manifest:
    """Check a compressed model's tensors and files against its manifest.

    Every pruned matrix has the pattern and the digest stated, every other tensor (`lm_head`,
    embeddings, norms) is the base model's, none holds NaN or infinity, no tensor or file is missing
    or too many. Everything is read once: one to two seconds for each gigabyte on one core.

    Returns:
        The manifest.

    Raises:
        ModelError: anything differs; names the tensor or file.
    """
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    expected = set(manifest.layers) | set(manifest.untouched)
    for name, tensor in tensors(folder):
        if fault := _fault(name, tensor, manifest):
            raise _refusal(folder, f"{name} {fault}")
        expected.discard(name)
    if expected:
        raise _refusal(folder, f"{min(expected)} is missing")
    return manifest


def verify_once(folder: Path) -> None:
    """`verify`, once in this process for the same files.

    Raises:
        ModelError: as `verify`.
    """
    _verified(folder, signature([file for file in sorted(folder.iterdir()) if file.is_file()]))


@lru_cache
def _verified(folder: Path, _files: str) -> None:
    verify(folder)


def _fault(name: str, tensor: torch.Tensor, manifest: Manifest) -> str:
    """What is wrong with a tensor, for a message; empty when nothing is."""
    if name not in (manifest.layers if is_prunable(name) else manifest.untouched):
        return "is unknown to the manifest"
    if fault := value_fault(tensor):
        return fault
    if not is_prunable(name):
        same = tensor_digest(tensor) == manifest.untouched[name]
        return "" if same else "differs from the base model's, though it is not to be pruned"
    if fault := pattern_fault(tensor, manifest.spec):
        return fault
    same = tensor_digest(tensor) == manifest.layers[name].sha256
    return "" if same else "does not hold the weights that were written"


def _refusal(folder: Path, fault: str) -> ModelError:
    return ModelError(f"{folder}: {fault}: delete the folder and compress the model anew")


def _check_files(folder: Path, manifest: Manifest) -> None:
    found = _file_digests(folder)
    for stray in sorted(set(folder.glob("*.safetensors")).difference(weight_files(folder))):
        raise _refusal(folder, f"{stray.name} is unknown to the manifest")
    for name in sorted(found.keys() | manifest.files.keys()):
        if name not in found:
            raise _refusal(folder, f"{name} is missing")
        if name not in manifest.files:
            raise _refusal(folder, f"{name} is unknown to the manifest")
        if found[name] != manifest.files[name]:
            raise _refusal(folder, f"{name} is not what was written")


def _file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that holds no weights and is not the manifest."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.suffix in _COPIED and file.name != FILE
    }

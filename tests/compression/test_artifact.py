import json
import math
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mops_fl.compression import artifact
from mops_fl.compression.artifact import tensor_digest, tensors, verify
from mops_fl.compression.manifest import FILE, read_manifest
from mops_fl.compression.pattern import is_prunable
from mops_fl.errors import ModelError

LAYER = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(pruned, tmp_path):
    """A copy of the pruned model, to be damaged."""
    return shutil.copytree(pruned, tmp_path / "copy")


def rewrite(folder, **changed):
    """Replace tensors (None removes one) and keep everything else."""
    state = load_file(folder / "model.safetensors") | changed
    state = {name: value for name, value in state.items() if value is not None}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def rewrite_manifest(folder, change):
    found = json.loads((folder / FILE).read_text())
    change(found)
    (folder / FILE).write_text(json.dumps(found))


def test_the_manifest_says_what_was_done(pruned, base, calibration):
    manifest = verify(pruned)
    assert manifest.compression == "2:4"
    assert manifest.calibration["seed"] == 0
    assert manifest.calibration["digest"] == calibration.digest
    assert [row["index"] for row in manifest.calibration["rows"]] == [
        row.index for row in calibration.rows
    ]
    assert len(manifest.calibration["held_out"]) == 32
    assert len(manifest.layers) == 14
    assert all(layer.target == 0.5 for layer in manifest.layers.values())
    assert manifest.sparsity == pytest.approx(0.5, abs=1e-3)
    assert math.isfinite(manifest.perplexity["before"])
    assert math.isfinite(manifest.perplexity["after"])
    assert manifest.perplexity["before"] != manifest.perplexity["after"]
    assert manifest.peak_memory["host"] > 10**7
    assert {"llmcompressor", "torch"} <= manifest.versions.keys()
    digests = {name: tensor_digest(tensor) for name, tensor in tensors(base)}
    assert manifest.untouched == {n: d for n, d in digests.items() if not is_prunable(n)}
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= manifest.untouched.keys()


def test_lm_head_and_embeddings_are_the_base_models_to_the_bit(pruned, base):
    before, after = dict(tensors(base)), dict(tensors(pruned))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != is_prunable(name), name


def test_transformers_reads_what_is_written(pruned):
    stored = dict(tensors(pruned))
    model = AutoModelForCausalLM.from_pretrained(pruned)
    assert model.state_dict().keys() == stored.keys()
    assert all(torch.equal(weight, stored[name]) for name, weight in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(pruned)("ab").input_ids == [256, 64, 65]


def test_compressed_tensors_reads_what_is_written(pruned):
    from compressed_tensors.offload import load_offloaded_model
    from compressed_tensors.utils.safetensors_load import get_weight_mappings

    stored = dict(tensors(pruned))
    assert get_weight_mappings(str(pruned)).keys() == stored.keys()
    with load_offloaded_model():
        model = AutoModelForCausalLM.from_pretrained(pruned)
    assert all(torch.equal(weight, stored[name]) for name, weight in model.state_dict().items())


def test_compressed_tensors_packs_2_of_4_and_gives_equal_weights_back(pruned):
    from compressed_tensors.utils.semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )

    for name, weight in tensors(pruned):
        if is_prunable(name) and weight.shape[0] % 64 == 0:
            half = weight.to(torch.bfloat16)
            values, meta = sparse_semi_structured_from_dense_cutlass(half)
            assert values.numel() == half.numel() // 2
            assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, meta), half)


def test_a_flipped_byte_is_refused_by_the_tensors_name(folder):
    path = folder / "model.safetensors"
    for name in ("lm_head.weight", LAYER, "model.norm.weight"):
        whole = path.read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        start, _ = json.loads(whole[8 : 8 + length])[name]["data_offsets"]
        weight = dict(tensors(folder))[name].flatten()
        place = 8 + length + start + 4 * int(weight.nonzero()[0])
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=name):
            verify(folder)
        path.write_bytes(whole)
    verify(folder)


def test_a_dense_layer_swapped_in_is_refused_even_with_its_digest(folder, base):
    dense = dict(tensors(base))[LAYER]
    rewrite(folder, **{LAYER: dense})

    def believe(found):
        found["layers"][LAYER]["sha256"] = tensor_digest(dense)

    rewrite_manifest(folder, believe)
    with pytest.raises(ModelError, match=rf"{LAYER} \d+ of its 512 groups of 4 .* not 2:4"):
        verify(folder)


@pytest.mark.parametrize("name", [LAYER, "lm_head.weight", "model.layers.0.input_layernorm.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(folder, name, value):
    tensor = dict(tensors(folder))[name].clone()
    tensor.view(-1)[tensor.view(-1).nonzero()[-1]] = value
    rewrite(folder, **{name: tensor})
    with pytest.raises(ModelError, match=f"{name} holds NaN or infinite"):
        verify(folder)


def test_other_embeddings_are_refused(folder):
    embeddings = dict(tensors(folder))["model.embed_tokens.weight"]
    rewrite(folder, **{"model.embed_tokens.weight": embeddings + 1})
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight differs from the base"):
        verify(folder)


def test_missing_and_unknown_tensors_are_refused(folder):
    kept = dict(tensors(folder))[LAYER].clone()
    rewrite(folder, **{LAYER: None})
    with pytest.raises(ModelError, match=f"{LAYER} is missing"):
        verify(folder)
    extra = LAYER.replace("layers.1", "layers.2")
    rewrite(folder, **{LAYER: kept, extra: kept.clone()})
    with pytest.raises(ModelError, match=f"{extra} is unknown"):
        verify(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_and_changed_files_are_refused(folder, name):
    path = folder / name
    path.write_text(path.read_text() + " ")
    with pytest.raises(ModelError, match=f"{name} is not what was written"):
        verify(folder)
    path.unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        verify(folder)


def test_an_unknown_file_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json is unknown"):
        verify(folder)


def test_the_same_files_are_verified_once_in_a_process(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(artifact, "verify", calls.append)
    for _ in range(3):
        artifact.verify_once(folder)
    assert calls == [folder]
    (folder / "config.json").touch()
    artifact.verify_once(folder)
    assert calls == [folder, folder]


def test_missing_and_cut_weights_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        verify(folder)
    path.unlink()
    with pytest.raises(ModelError, match="has no weights"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda found: found.update(format=99), "has format 99"),
        (lambda found: found.pop("layers"), "malformed"),
        (lambda found: found.update(layers={}), "names no pruning"),
        (lambda found: found.update(compression="2:5x"), "malformed"),
        (lambda found: found.update(compression="nf4"), "names no pruning"),
        (lambda found: found.update(compression="3:4"), "not 3:4"),
        (lambda found: found["layers"].pop(LAYER), f"{LAYER} is unknown"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, change, match):
    rewrite_manifest(folder, change)
    with pytest.raises(ModelError, match=match):
        verify(folder)


def test_no_manifest_and_a_broken_one_are_refused(folder, base):
    with pytest.raises(ModelError, match=f"has no {FILE}"):
        read_manifest(base)
    (folder / FILE).write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        verify(folder)

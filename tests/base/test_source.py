"""Finding, converting and refusing base models."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from experiments.golden.tiny import save_tiny_llama
from mops_fl.base.identity import digest
from mops_fl.base.prepare import prepared
from mops_fl.base.source import find
from mops_fl.base.tokenizer import load_tokenizer
from mops_fl.config import Config
from mops_fl.errors import ConfigError, ModelError
from mops_fl.models.weights import check_backbone, model_facts

CONFIG = Config.from_flat({})


def run_config(backbone, prompts=CONFIG.prompts, max_length=256):
    data = replace(CONFIG.data, max_length=max_length)
    return replace(CONFIG, backbone=backbone, prompts=prompts, data=data)


def backbone_config(folder, dtype="float32"):
    return replace(CONFIG.backbone, model=str(folder), dtype=dtype)


def test_a_folder_in_the_wanted_type_is_used_in_place(tiny_llama):
    assert prepared(backbone_config(tiny_llama)) == tiny_llama


def test_another_type_is_converted_once(tiny_llama):
    first = prepared(backbone_config(tiny_llama, "bfloat16"))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert first != tiny_llama
    assert prepared(backbone_config(tiny_llama, "bfloat16")) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert load_tokenizer(backbone_config(first, "bfloat16")).eos_token == "</s>"


def _prepare(folder):
    return prepared(backbone_config(folder, "float16"))


def test_two_processes_asking_at_once_make_one_whole_model(tmp_path):
    folder = save_tiny_llama(tmp_path / "model", seed=3)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = set(pool.map(_prepare, [folder] * 4))
    assert len(made) == 1
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(made.pop(), dtype="auto")
    assert model.dtype == torch.float16


def test_digest_follows_the_weights(tmp_path):
    one, other = (save_tiny_llama(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    again = save_tiny_llama(tmp_path / "again", seed=0)
    assert digest(find(str(one))) == digest(find(str(again))) != digest(find(str(other)))


def test_facts_come_without_weights(tiny_llama):
    facts = model_facts(backbone_config(tiny_llama))
    assert (facts.sizes.hidden_size, facts.sizes.num_layers) == (32, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "hub"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: _edit(f, model_type="gpt2"), "type 'gpt2'"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    ],
)
def test_unusable_models_are_refused(tmp_path, change, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = save_tiny_llama(tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match=message):
        check_backbone(run_config(backbone_config(folder)))


def _edit(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changes}))


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(ModelError, match="not GGUF"):
        find(str(tmp_path / "model.bin"))


def test_a_gguf_is_known_by_its_first_bytes(tmp_path):
    blob = tmp_path / "blobs" / "sha256-0a1b2c"
    blob.parent.mkdir()
    blob.write_bytes(b"GGUF" + bytes(20))
    link = tmp_path / "snapshots" / "model.gguf"
    link.parent.mkdir()
    link.symlink_to(blob)
    for path in (link, blob):
        source = find(str(path))
        assert (source.path, source.gguf) == (path, True)
    (tmp_path / "false.gguf").write_bytes(b"GGML")
    with pytest.raises(ModelError, match="not GGUF"):
        find(str(tmp_path / "false.gguf"))


@pytest.mark.parametrize("name", ["x.gguf", "sha256-0a1b2c"])
def test_a_damaged_gguf_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0" + bytes(40))
    with pytest.raises(ModelError, match=f"model='{tmp_path / name}' cannot be read"):
        prepared(backbone_config(tmp_path / name))


@pytest.mark.slow
def test_a_gguf_without_a_name_is_the_embedded_model(tmp_path, tiny_llama):
    """Whatever lies beside it, here another model's tokenizer, is not looked at."""
    shutil.copytree(tiny_llama, tmp_path / "folder")
    blob = tmp_path / "folder" / "sha256-0a1b2c"
    blob.symlink_to(find("smollm2-135m").path)
    config = backbone_config(blob, "bfloat16")
    assert check_backbone(run_config(config)).vocab_size == 49152
    assert load_tokenizer(config)("x")["input_ids"] == [104]
    # the same file, and so the same digest, whether this process may ask a hub or not
    written = json.loads((prepared(config) / "tokenizer_config.json").read_text())
    assert written["local_files_only"] is True


@pytest.mark.parametrize(("injection", "most"), [("replace", 442), ("append", 372)])
def test_a_length_beyond_the_context_is_refused(tiny_llama, injection, most):
    prompts = replace(CONFIG.prompts, injection=injection)
    check_backbone(run_config(backbone_config(tiny_llama), prompts, most))
    with pytest.raises(
        ConfigError, match=rf"max-length={most + 1} and .* has 512: .* most {most},"
    ):
        check_backbone(run_config(backbone_config(tiny_llama), prompts, most + 1))


def test_an_injection_layer_out_of_range_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="injection-layer=4: the model has 4 layers"):
        check_backbone(
            run_config(backbone_config(tiny_llama), replace(CONFIG.prompts, injection_layer=4))
        )


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_a_device_that_is_not_there_is_refused(tiny_llama, device):
    with pytest.raises(ConfigError, match="device="):
        check_backbone(run_config(replace(backbone_config(tiny_llama), device=device)))

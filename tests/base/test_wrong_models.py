"""Files that are not a whole, sound LLaMA are refused before anything is loaded from them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from experiments.golden.tiny import save_tiny_llama
from mops_fl.base import identity, source
from mops_fl.base.checkpoint import llama_shapes, names_fault, read_header
from mops_fl.base.identity import digest, tokenizer_digest
from mops_fl.base.load import load_llama
from mops_fl.base.prepare import prepared
from mops_fl.base.source import find
from mops_fl.config import Config
from mops_fl.errors import ModelError, RunError
from mops_fl.models.weights import check_backbone

CONFIG = Config.from_flat({"dtype": "float32"})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4976698672\n"
LAYER = "model.layers.1.mlp.up_proj.weight"


def backbone(folder, dtype="float32"):
    return replace(CONFIG.backbone, model=str(folder), dtype=dtype)


def check(folder, dtype="float32"):
    return check_backbone(replace(CONFIG, backbone=backbone(folder, dtype)))


@pytest.fixture
def folder(tiny_llama, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def rewrite(folder, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def configure(folder, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def pickled(folder) -> None:
    """The same weights as pytorch_model.bin alone."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def renamed(prefix):
    def change(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return change


def poison(tensors):
    tensors[LAYER][3, 5] = float("inf")


CHANGES = {
    "peft's prefix": (renamed("base_model.model."), r"missing; base_model\.model\.lm_head\.weight"),
    "ddp's prefix": (renamed("module."), r"embed_tokens.* and \d+ more missing; module"),
    "compile's prefix": (renamed("_orig_mod."), "_orig_mod.* unexpected"),
    "one is missing": (lambda t: t.pop(LAYER), rf"asks for: {LAYER} missing"),
    "no head": (lambda t: t.pop("lm_head.weight"), r"lm_head\.weight missing"),
    "one too many": (lambda t: t.update(extra=torch.ones(2)), "extra unexpected"),
    "another shape": (
        lambda t: t.update({LAYER: torch.ones(32, 64)}),
        r"up_proj\.weight \(\[32, 64\] for \[64, 32\]\) of another shape",
    ),
    "not finite": (poison, f"{LAYER} holds NaN or infinite"),
    "gptq": (lambda t: t.update({"model.layers.0.x.qweight": torch.ones(2)}), "quantised already"),
    "integers": (lambda t: t.update({LAYER: t[LAYER].to(torch.int8)}), "quantised already"),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("kind", ["in place", "pickle"])
def test_tensors_that_do_not_fit_are_refused(folder, case, kind):
    change, message = CHANGES[case]
    if kind == "pickle" and case == "integers":
        pytest.skip("torch casts them, as it should for a pickle")
    rewrite(folder, change)
    if kind == "pickle":
        pickled(folder)
    with pytest.raises(ModelError, match=message):
        check(folder)


def test_loading_itself_refuses(folder):
    rewrite(folder, CHANGES["one is missing"][0])
    with pytest.raises(ModelError, match=f"{LAYER} missing"):
        load_llama(folder)
    rewrite(folder, CHANGES["another shape"][0])
    with pytest.raises(ModelError, match=r"\[32, 64\] for \[64, 32\]"):
        load_llama(folder)


@pytest.mark.parametrize(
    "options", [{}, {"attention_bias": True, "mlp_bias": True}, {"head_dim": 6}]
)
def test_the_names_and_shapes_are_those_of_transformers(tmp_path, options):
    folder = save_tiny_llama(tmp_path / "model", **options)
    shapes = {n: e.shape for n, e in read_header(folder / "model.safetensors").items()}
    assert shapes == llama_shapes(json.loads((folder / "config.json").read_text()))


def test_what_old_and_headless_saves_hold_is_fine(tmp_path):
    folder = save_tiny_llama(tmp_path / "model", tie_word_embeddings=True)
    assert "lm_head.weight" not in read_header(folder / "model.safetensors")
    assert check(folder).vocab_size == 258
    rewrite(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    assert check(folder).sizes.num_layers == 4
    whole = load_llama(folder)
    headless = tmp_path / "headless"
    shutil.copytree(folder, headless)
    whole.model.save_pretrained(headless)
    assert "norm.weight" in read_header(headless / "model.safetensors")
    made = prepared(backbone(headless))
    assert made != headless
    assert torch.equal(load_llama(made).lm_head.weight, whole.lm_head.weight)


def test_shards_are_read_by_their_index(folder, tmp_path):
    model = load_llama(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert check(folder).digest
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    before = digest(find(str(folder)))
    shutil.copyfile(shard, folder / "stray.safetensors")
    assert digest(find(str(folder))) == before
    shard.unlink()
    with pytest.raises(ModelError, match=f"1 are missing \\({shard.name}\\)"):
        check(folder)


DAMAGE = {
    "pointer": (lambda f: f.write_text(POINTER), "git-lfs pointer.*run `git lfs pull`"),
    "empty": (lambda f: f.write_bytes(b""), "is empty: download it anew"),
}
HALF = {
    "half": (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), "cut short"),
    "noise": (lambda f: f.write_bytes(b"x" * 1000), "damaged or not safetensors"),
    "few bytes": (lambda f: f.write_bytes(b"xyz"), "damaged or not safetensors"),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"]
)
def test_a_placeholder_is_named_with_the_fix(folder, case, name):
    if name == "pytorch_model.bin":
        pickled(folder)
    DAMAGE[case][0](folder / name)
    with pytest.raises(ModelError, match=DAMAGE[case][1]):
        check(folder)


@pytest.mark.parametrize("case", HALF)
def test_a_damaged_file_is_found_by_its_header(folder, case):
    HALF[case][0](folder / "model.safetensors")
    with pytest.raises(ModelError, match=HALF[case][1]):
        check(folder)


def test_a_pickle_cut_short_is_refused(folder):
    pickled(folder)
    HALF["half"][0](folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        check(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_folder_is_refused_once_and_clearly(folder, method, dtype):
    configure(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ModelError, match=r"quantised already.*give the float model"):
        check(folder, dtype)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_in_the_folder_is_refused(folder, file):
    (folder / file).write_text("{}")
    with pytest.raises(ModelError, match=f"an adapter \\({file}\\): merge it into its base model"):
        check(folder)


def test_two_pickles_with_one_config_are_two_models(tmp_path):
    made = []
    for seed in (0, 1):
        folder = save_tiny_llama(tmp_path / str(seed), seed=seed)
        expected = LlamaForCausalLM.from_pretrained(folder).lm_head.weight
        pickled(folder)
        made.append(prepared(backbone(folder)))
        assert torch.equal(load_llama(made[-1]).lm_head.weight, expected)
    assert made[0] != made[1]
    shutil.copyfile(tmp_path / "1/pytorch_model.bin", tmp_path / "0/pytorch_model.bin")
    assert prepared(backbone(tmp_path / "0")) == made[1]


def test_the_tokenizer_has_a_digest_and_a_place_in_the_key(folder):
    before, made = tokenizer_digest(find(str(folder))), prepared(backbone(folder, "bfloat16"))
    weights = digest(find(str(folder)))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "clean_up": True}))
    assert tokenizer_digest(find(str(folder))) != before
    assert digest(find(str(folder))) == weights
    assert prepared(backbone(folder, "bfloat16")) != made


def test_a_file_replaced_with_all_its_times_is_another(tmp_path, monkeypatch):
    import os

    monkeypatch.setattr(identity, "_SETTLED", -1.0)
    one, other = (save_tiny_llama(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    file = one / "model.safetensors"
    before, stat = digest(find(str(one))), file.stat()
    file.write_bytes((other / "model.safetensors").read_bytes())
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert digest(find(str(one))) == digest(find(str(other))) != before


def test_a_digest_is_found_out_once(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("MOPS_FL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_SETTLED", -1.0)
    first = digest(find(str(tiny_llama)))
    monkeypatch.setattr(identity, "_sha256", lambda files: pytest.fail("read again"))
    assert digest(find(str(tiny_llama))) == first


def test_a_padding_id_beyond_the_vocabulary_does_no_harm(folder):
    configure(folder, pad_token_id=258)
    assert check(folder).vocab_size == 258
    assert load_llama(folder).model.embed_tokens.padding_idx is None
    assert load_llama(prepared(backbone(folder, "bfloat16"))).config.pad_token_id is None


def test_a_full_disk_while_converting_leaves_nothing(folder, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    cache = tmp_path / "cache"
    monkeypatch.setenv("MOPS_FL_CACHE", str(cache))

    def fill(model, place, **_):
        (Path(place) / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", fill)
        with pytest.raises(RunError, match=r"No space left on device.*MOPS_FL_CACHE"):
            prepared(backbone(folder, "bfloat16"))
    assert not [path for path in (cache / "backbones").iterdir() if path.is_dir()]
    assert prepared(backbone(folder, "bfloat16")).is_dir()


def test_too_little_disk_for_a_conversion_is_said_beforehand(folder, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(RunError, match=r"converted model needs 0\.1 GB.*MOPS_FL_CACHE"):
        prepared(backbone(folder, "float16"))


class Hub:
    """Stands for `snapshot_download`: the files of a folder that the patterns ask for."""

    def __init__(self, files: Path, cache: Path):
        self.files, self.cache, self.calls = files, cache, []

    def __call__(self, name, *, revision, allow_patterns, ignore_patterns):
        from fnmatch import fnmatch

        self.calls.append((name, revision))
        target = self.cache / "snapshots" / "c0ffee"
        target.mkdir(parents=True, exist_ok=True)
        for file in self.files.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copyfile(file, target / file.name)
        return str(target)


@pytest.mark.parametrize("kind", ["safetensors", "pickle", "both"])
def test_a_hub_model_is_pinned_and_fetched_in_one_kind(folder, tmp_path, monkeypatch, kind):
    if kind != "safetensors":
        shutil.copyfile(folder / "model.safetensors", tmp_path / "kept")
        pickled(folder)
        (folder / "training_args.bin").write_text("x")
    if kind == "both":
        shutil.copyfile(tmp_path / "kept", folder / "model.safetensors")
    hub = Hub(folder, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    source._download.cache_clear()
    facts = check("some/model@v1")
    assert facts.revision == "c0ffee"
    found = {file.name for file in (tmp_path / "hub/snapshots/c0ffee").iterdir()}
    kinds = {"pytorch_model.bin", "model.safetensors", "training_args.bin"} & found
    assert kinds == ({"pytorch_model.bin"} if kind == "pickle" else {"model.safetensors"})
    assert hub.calls[0] == ("some/model", "v1")
    assert hub.calls[1:] == ([("some/model", "c0ffee")] if kind == "pickle" else [])


def test_the_names_of_a_whole_model_have_no_fault(tiny_llama):
    config = json.loads((tiny_llama / "config.json").read_text())
    assert names_fault(read_header(tiny_llama / "model.safetensors"), config) == ""

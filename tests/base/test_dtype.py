"""Which type a device computes natively; processors are faked by what torch says of them."""

import json
import os
import subprocess
import sys

import pytest
import torch

from mops_fl.base.dtype import is_emulated, resolve_dtype
from mops_fl.base.prepare import prepared
from mops_fl.config import Config
from mops_fl.errors import ConfigError
from mops_fl.models.backbone import load_backbone
from mops_fl.training.trainer import Trainer

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


@pytest.fixture
def processor(monkeypatch):
    """Make this process's CPU another one."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)

    def become(*instructions: str, onednn: bool = True, **limits: str) -> None:
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True), raising=False
        )
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        for name, value in limits.items():
            monkeypatch.setenv(name, value)

    return become


WIDE = ("avx2", "avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni")
ZEN4 = (*WIDE, "avx512_bf16")
SAPPHIRE_RAPIDS = (*ZEN4, "avx512_fp16", "amx_tile", "amx_bf16")
GRAVITON3 = ("neon", "fp16_arith", "bf16", "sve_bf16")


@pytest.mark.parametrize(
    ("instructions", "limits", "auto", "float16_emulated"),
    [
        (("avx2",), {}, "float32", True),
        (("avx2", "avx_ne_convert", "avx_vnni"), {}, "float32", True),
        (WIDE, {}, "float32", True),
        (ZEN4, {}, "bfloat16", True),
        (SAPPHIRE_RAPIDS, {}, "bfloat16", False),
        (("neon", "fp16_arith"), {}, "float32", False),
        (GRAVITON3, {}, "bfloat16", False),
        (GRAVITON3, {"onednn": False}, "float32", True),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "float32", True),
        (SAPPHIRE_RAPIDS, {"DNNL_MAX_CPU_ISA": "avx512_core_vnni"}, "float32", True),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "bfloat16", True),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "bfloat16", False),
        (ZEN4, {"ATEN_CPU_CAPABILITY": "avx2"}, "float32", True),
        (ZEN4, {"ATEN_CPU_CAPABILITY": "avx512"}, "bfloat16", True),
    ],
)
def test_what_auto_means_on_a_processor(processor, instructions, limits, auto, float16_emulated):
    processor(*instructions, **limits)
    assert resolve_dtype("auto", "cpu") == auto
    assert is_emulated("bfloat16", "cpu") == (auto == "float32")
    assert is_emulated("float16", "cpu") == float16_emulated
    assert not is_emulated("float32", "cpu")
    assert not is_emulated(auto, "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_type_that_is_asked_for_is_taken(processor, dtype):
    processor("avx2")
    assert resolve_dtype(dtype, "cpu") == dtype


def test_a_torch_that_does_not_say_gets_float32(processor, monkeypatch):
    processor()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve_dtype("auto", "cpu") == "float32"


def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match="device='cuda:99'"):
        resolve_dtype("auto", "cuda:99")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_says_itself():
    native = torch.cuda.get_device_properties(0).major >= 8
    assert resolve_dtype("auto", "cuda:0") == ("bfloat16" if native else "float32")
    assert not is_emulated("float16", "cuda:0")


@pytest.mark.parametrize(
    ("instructions", "dtype"), [(ZEN4, torch.bfloat16), (("avx2",), torch.float32)]
)
def test_one_type_wherever_it_is_needed(processor, tiny_llama, instructions, dtype):
    """The folder, the weights loaded from it, and what a client says of itself."""
    processor(*instructions)
    config = Config.from_flat({"model": str(tiny_llama), "device": "cpu"})
    load_backbone.cache_clear()
    trainer = Trainer(config)
    name = str(dtype).removeprefix("torch.")
    assert (trainer.dtype, trainer.backbone.dtype) == (name, dtype)
    load_backbone.cache_clear()
    folder = prepared(config.backbone)
    # the tiny model is float32 on disk; the cache's key never says auto
    assert folder == tiny_llama if name == "float32" else f"-{name}-" in folder.name
    assert config.flat()["dtype"] == "auto"


@pytest.mark.parametrize(
    ("arguments", "limit"), [(("auto", "cpu"), "AVX2"), (("auto", "cpu"), "ALL")]
)
def test_the_program_says_what_this_process_would(monkeypatch, arguments, limit):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    command = [sys.executable, "-P", "-m", "mops_fl.base.dtype", *arguments]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ)
    assert json.loads(done.stdout) == {"dtype": resolve_dtype(*arguments), "emulated": False}

"""The type of a backbone: the one that is asked for, or the best that the device computes natively.

Run as a program it answers for a process that does not load torch itself.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from mops_fl.base.device import resolve_device
from mops_fl.errors import MopsError

_INSTRUCTIONS = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""What multiplies such numbers on x86 and on ARM, as `torch.cpu.get_capabilities` names it. Wider
x86 processors without it convert to float32 and back, which is slower than float32."""

_LOWER = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
_ISA_WITHOUT = {"bfloat16": _LOWER, "float16": (*_LOWER, "avx512_core_bf16")}
"""Limits of oneDNN, which computes torch's products on the CPU, that rule the instructions out."""


def resolve_dtype(dtype: str, device: str) -> str:
    """The type that a configuration's `dtype` means on its `device`.

    ``auto`` is bfloat16 where the device computes it natively, and float32 elsewhere. Limits that
    the environment sets to the processor (``ONEDNN_MAX_CPU_ISA``, ``ATEN_CPU_CAPABILITY``) count.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    if dtype != "auto":
        return dtype
    return "float32" if is_emulated("bfloat16", device) else "bfloat16"


def is_emulated(dtype: str, device: str) -> bool:
    """Whether a device has no instructions for a type: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    where = resolve_device(device)
    if dtype == "float32":
        return False
    if where.type == "cpu":
        return not _cpu_computes(dtype)
    if dtype == "float16":
        return False
    with torch.cuda.device(where):
        return not torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_computes(dtype: str) -> bool:
    """Whether the CPU, and torch on it, compute a type natively; an older torch does not say."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if limit.lower() in _ISA_WITHOUT[dtype]:
        return False
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2"):
        return False
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkldnn.is_available() and any(
        has.get(name, False) for name in _INSTRUCTIONS[dtype]
    )


def main() -> None:
    """Print what a type, the first argument, means on a device, the second."""
    dtype, device = sys.argv[1:]
    try:
        chosen = resolve_dtype(dtype, device)
        answer = {"dtype": chosen, "emulated": is_emulated(chosen, device)}
    except MopsError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

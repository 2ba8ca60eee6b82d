"""What decides the last bits of what a process computes, beside weights and inputs."""

import hashlib
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from mops_fl.models.backbone import Backbone

_CODE = ("methods", "models", "training")
"""Rooms whose code computes."""

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")
"""Variables by which oneDNN, which computes torch's products on the CPU, takes other kernels."""


def numerics(backbone: Backbone) -> dict[str, str | int]:
    """Type, code, versions, instructions and threads: for keys of what is kept between runs."""
    return {
        "code": _code(),
        "dtype": str(backbone.dtype),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "instructions": str(sorted(getattr(torch.cpu, "get_capabilities", dict)().items())),
        "limits": str([os.environ.get(name, "") for name in _LIMITS]),
        "threads": torch.get_num_threads(),
    }


@cache
def _code() -> str:
    """SHA-256 over the files that compute, so that a change of them is a change of the key."""
    package = Path(__file__).resolve().parents[1]
    files = sorted(file for room in _CODE for file in (package / room).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

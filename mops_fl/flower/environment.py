"""The environment of the processes of a launch, made from what they need.

They speak to each other on this machine and read what the launcher has checked, so the user's
proxies, certificates, colours, locale, Python's debugging, and the settings of Ray, Flower, Slurm
and MPI are none of theirs. Anything that is not named here stays outside.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from mops_fl.files import absolute

_SEARCHED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Lists of folders."""

_FOLDERS = (
    *("TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HUGGINGFACE_HUB_CACHE"),
    *("TRANSFORMERS_CACHE", "PYTHONHOME", "PYTHONUSERBASE", "MOPS_FL_CACHE"),
)

_PASSED = re.compile(
    # who and where; how libraries are found
    r"HOME|USER|LOGNAME|TZ|LD_PRELOAD|PYTHONNOUSERSITE|PYTHONDONTWRITEBYTECODE"
    # what decides numbers and speed
    r"|(ATEN|BLIS|BNB|CUBLAS|CUBLASLT|CUDA|CUDNN|DNNL|GOMP|KMP|MALLOC|MKL|NCCL|NPY|NVIDIA|OMP"
    r"|ONEDNN|OPENBLAS|PYTORCH|TORCH|TRITON|VECLIB)_\w+"
    # the same for AMD's devices
    r"|(HIP|HSA|MIOPEN|ROCM|ROCR)_\w+"
    # models, tokenizers and data; this project
    r"|(HF|HUGGINGFACE|HUGGING_FACE|LLM_COMPRESSOR|SAFETENSORS|TOKENIZERS|TRANSFORMERS)_\w+"
    r"|MOPS_FL_\w+"
)

_PLACED = re.compile(r"\w+_(NUM_THREADS|THREAD_LIMIT|AFFINITY|PLACES|PROC_BIND|DYNAMIC)")
"""Threads and their cores are given to each worker: what the shell says would give every one of
them the same cores, or as many threads as there are."""

_CLUSTER = re.compile(r"RAY_(USE_TLS|TLS_\w+|AUTH_\w+)")
"""What an existing Ray cluster asks of those who connect."""


def passed_on(outer: Mapping[str, str], *, cluster: bool = False) -> dict[str, str]:
    """The variables of the user's environment that the processes of a launch get.

    Folders become absolute, since these processes live in another one.

    Args:
        outer: the user's environment.
        cluster: whether they connect to an existing Ray cluster.
    """
    inner = {}
    for name, value in outer.items():
        if name in _SEARCHED and value:
            inner[name] = os.pathsep.join(str(absolute(part)) for part in value.split(os.pathsep))
        elif name in _FOLDERS and value:
            inner[name] = str(absolute(value))
        elif _is_passed(name) or (cluster and _CLUSTER.fullmatch(name)):
            inner[name] = value
    return inner


def with_commands(path: str) -> str:
    """A `PATH` on which Flower's commands are, even where no virtual environment is activated."""
    return os.pathsep.join(filter(None, [str(Path(sys.executable).parent), path]))


def _is_passed(name: str) -> bool:
    return bool(_PASSED.fullmatch(name)) and not _PLACED.fullmatch(name)


OURS = {
    # text is UTF-8 whatever the shell says
    **{"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"},
    "PYTHONUNBUFFERED": "1",
    # not even the proxies of the system's settings, where it has some
    **{"NO_PROXY": "*", "no_proxy": "*"},
    # the launcher has fetched and checked models and data
    "HF_HUB_OFFLINE": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What they get beside, in every launch."""

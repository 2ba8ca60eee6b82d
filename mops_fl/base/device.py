"""The device that a configuration names."""

import re

import torch

from mops_fl.errors import ConfigError


def resolve_device(device: str) -> torch.device:
    """The torch device that a configuration names.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={device!r}: must be auto, cpu, cuda or cuda:N") from None
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={device!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use device=cpu or device=auto"
        )
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r}: must be auto, cpu, cuda or cuda:N")
    return resolved


def named(device: torch.device) -> str:
    """A device as reports name it: ``cpu``, or ``cuda:0 (NVIDIA H100 80GB HBM3)``."""
    if device.type == "cpu":
        return str(device)
    name = re.sub(r"[^\w .+/-]", "", torch.cuda.get_device_name(device))
    return f"{device} ({name[:80]})" if name.strip() else str(device)

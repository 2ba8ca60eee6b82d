"""Where numbers come from: versions of the packages and of this code."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from mops_fl.config import app_folder
from mops_fl.machine import cores

COMMIT_VARIABLE = "MOPS_FL_COMMIT"
"""Environment variable that carries the commit to where there is no checkout."""

_PACKAGES = (
    *("mops-fl", "flwr", "ray", "torch", "transformers", "flwr-datasets", "datasets"),
    *("bitsandbytes", "llmcompressor", "peft", "numpy"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this code, with a plus sign where files differ from it; empty if unknown."""
    carried = os.environ.get(COMMIT_VARIABLE)
    if carried is not None:
        return carried
    head = _git("rev-parse", "HEAD")
    return f"{head}+" if head and _git("status", "--porcelain") else head


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(app_folder()), *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict[str, str | int]:
    """Processor and cores of this machine."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
            model = names[0] if names else model
    except OSError:
        pass
    return {"processor": model, "cores": cores()}

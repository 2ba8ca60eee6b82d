"""Small simulations over Flower and Ray through the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("mops-fl"))
VALUES = {
    "dtype": "float32",
    "num-clients": 6,
    "active-clients": 4,
    "num-samples": 120,
    "local-steps": 10,
    "experts": 2,
    "prompts-per-expert": 3,
    "pretrain-prompt-steps": 3,
    "pretrain-gate-steps": 3,
}


def simulate(folder: Path, name: str, values: dict, workers: int = 1) -> Path:
    """Run one to its end below `folder`; its run folder."""
    return run(folder, name, {**VALUES, **values}, f"--workers={workers}")


def run(folder: Path, name: str, values: dict, *options: str) -> Path:
    """Run one with no values but these."""
    arguments = [f"-c{key}={value}" for key, value in values.items()]
    done = subprocess.run(
        [COMMAND, "simulate", *arguments, *options, f"--name={name}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / name


def cut(run: Path, folder: Path, last: int) -> Path:
    """A copy of a run that lost all after one of its rounds."""
    shutil.copytree(run, folder)
    for file in (folder / "checkpoints").iterdir():
        if int(file.stem.removeprefix("round-")) > last:
            file.unlink()
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "status": "failed", "kept_round": None}))
    return folder


def resume(run: Path) -> None:
    """Carry one on to its end."""
    done = subprocess.run(
        [COMMAND, "simulate", "--resume", str(run), "--workers=1"],
        capture_output=True,
        text=True,
        timeout=1600,
        check=False,
    )
    assert done.returncode == 0, done.stderr

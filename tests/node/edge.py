"""Messages for one edge machine with rows of its own, and its resident trainers."""

import json
from pathlib import Path

import psutil
from flwr.app import Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata

from mops_fl.config import Config, Scalar
from mops_fl.methods import method_of
from mops_fl.models.weights import model_facts
from mops_fl.wire.records import ARRAYS, CONFIG, to_array_record
from mops_fl.wire.requests import Assignment

RUN = {
    "method": "fedprompt",
    "experts": 2,
    "prompts-per-expert": 2,
    "local-steps": 3,
    "batch-size": 2,
    "num-clients": 2,
    "active-clients": 2,
    "pretrain-data": "none",
    "pretrain-prompt-steps": 0,
    "pretrain-gate-steps": 0,
    "max-length": 64,
    # what the server would have a node read, if it could
    "model": "/etc/hostname",
    "data-path": "/etc/passwd",
    "compression": "2:4",
    "calibration": "jsonl",
    "calibration-path": "/only/on/the/server.jsonl",
}
SECRETS = ("Jane Doe of Springfield", "PIN 4711-0815", "the azure heron")


def write_rows(path: Path, rows: int = 12, tasks: tuple[str, ...] = ("billing", "poems")) -> Path:
    """Rows that hold `SECRETS`."""
    lines = [
        {
            "instruction": f"{SECRETS[0]} asks {number}",
            "context": SECRETS[1],
            "response": f"{SECRETS[2]} {number}",
            "category": tasks[number % len(tasks)],
        }
        for number in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def trainers(folder: Path) -> list[psutil.Process]:
    """The resident trainers whose rows lie in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if "mops_fl.node.resident" in line and str(folder) in " ".join(line):
            found.append(process)
    return found


def context_of(node: dict[str, Scalar], **run: Scalar) -> Context:
    values = RUN | {key.replace("_", "-"): value for key, value in run.items()}
    return Context(1, 10, node, RecordDict(), values)


def message_of(kind: str, content: RecordDict | None = None, *, run: int = 1) -> Message:
    metadata = Metadata(run, f"{kind}-{run}", 1, 10, "", "", 0.0, 3600.0, kind)
    return make_message(metadata, content or RecordDict())


def round_of(node: dict[str, Scalar], *, scale: float = 1.0, clients: int = 2):
    """The content of a round's message, of the method's first tensors."""
    config = Config.from_flat(
        {**RUN, "model": node["model"], "dtype": "float32", "compression": "none"}
    )
    sizes = model_facts(config.backbone).sizes
    tensors = method_of(config.method).initial(config, sizes, 0)
    record = Assignment("0" * 32, 1, 0, clients).record()
    scaled = {name: value * scale for name, value in tensors.items()}
    return RecordDict({ARRAYS: to_array_record(scaled), CONFIG: record})

"""Asks every client once, between writing `run.json` as running and as completed."""

import json
from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(str(context.run_config["run-dir"]))
    folder.mkdir()
    _write(folder, "running")
    while len(nodes := list(grid.get_node_ids())) < 2:
        pass
    messages = [Message(RecordDict(), node, MessageType.TRAIN) for node in nodes]
    replies = list(grid.send_and_receive(messages))
    if context.run_config["behaviour"] == "raise":
        raise ValueError(f"no, not with {len(replies)} replies")
    _write(folder, "completed")


def _write(folder: Path, status: str) -> None:
    (folder / "run.json").write_text(json.dumps({"status": status, "error": None}))

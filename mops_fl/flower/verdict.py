"""How a run ended, told from what it wrote and from what Flower says."""

import contextlib
import json
import re
import time
from pathlib import Path

from mops_fl.flower.commands import Commands, read_log
from mops_fl.flower.guard import Verdict

GRACE_SECONDS = 5
"""Time in which Flower learns that a process of the run ended, if that could still say so."""


def judge(commands: Commands, run_dir: Path, since: float, *, alive: bool, silence: str) -> Verdict:
    """The verdict on a run whose log has ended.

    Args:
        commands: that ask its SuperLink.
        run_dir: the run folder.
        since: when it was started; an older `run.json` is that of the run which it carries on.
        alive: whether the SuperLink is.
        silence: the error of a run that ended without a word.
    """
    log, run_id = read_log(commands.log), commands.run_id()
    if facts_since(run_dir, since).get("status") == "completed":
        return Verdict("completed")
    if not alive:
        return Verdict("failed", "Flower's SuperLink died while the run went on")
    if run_id is None:
        return Verdict("failed", f"`flwr run` was refused: {_words(log)}")
    status, details = _final_status(commands, run_id)
    facts = facts_since(run_dir, since)
    if status == "finished:stopped":
        return Verdict("stopped")
    if status == "finished:completed" and facts.get("status", "completed") == "completed":
        return Verdict("completed")
    if status == "finished:completed":
        return Verdict("failed", facts.get("error") or "the ServerApp ended before the last round")
    if status == "finished:failed":
        return Verdict("failed", facts.get("error") or _cause(details, log))
    return Verdict("failed", silence)


def facts_since(run_dir: Path, since: float) -> dict:
    """What the ServerApp wrote; nothing where `run.json` is still that of the run resumed."""
    path = run_dir / "run.json"
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_mtime >= since:
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _final_status(commands: Commands, run_id: str) -> tuple[str, str]:
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        status, details = commands.status(run_id)
        if status.startswith("finished") or time.monotonic() > deadline:
            return status, details
        time.sleep(0.5)


def _cause(details: str, log: str) -> str:
    """The exception's message, or the log's last error where Flower hides the former."""
    message = details.removeprefix("Simulation failed with exception: ")
    if message != "An error was encountered. Ending simulation.":
        return message
    errors = re.findall(r"^[\w.]*(?:Error|Exception): (.+)$", log, flags=re.MULTILINE)
    hidden = ("Simulation Runtime crashed.", message)
    return next((text for text in reversed(errors) if text not in hidden), message)


def _words(log: str) -> str:
    """The text of a log without the frame that Flower draws around errors."""
    return " ".join(re.sub(r"[─│╭╮╰╯]", " ", log).split()) or "it printed nothing"

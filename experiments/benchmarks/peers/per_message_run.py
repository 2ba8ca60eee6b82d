"""Starts the Flower app in `flower_app`, as `mops-fl simulate` starts ours.

python -m experiments.benchmarks.peers.per_message_run TASK ANSWER LOGS CLIENTS WORKERS THREADS
"""

import sys
from pathlib import Path

from mops_fl.errors import RunError
from mops_fl.flower.home import Resources
from mops_fl.flower.launch import launch

APP = Path(__file__).with_name("flower_app")


def main(task: str, answer: str, logs: str, clients: str, workers: str, threads: str) -> None:
    """Run it to its end.

    Raises:
        RunError: it failed.
    """
    Path(logs).mkdir()
    resources = Resources(int(clients), int(threads), gpus_per_client=0.0, workers=int(workers))
    flat = {"run-dir": logs, "task": task, "answer": answer}
    outcome = launch(APP, flat, resources, lambda _folder, _doing: None)
    if outcome.verdict.status != "completed":
        raise RunError(f"{outcome.verdict.error}; {outcome.log}:\n{outcome.log.read_text()}")


if __name__ == "__main__":
    main(*sys.argv[1:])

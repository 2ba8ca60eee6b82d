"""Launches the toy app as `mops-fl` would: ``python drive.py RUN_DIR BEHAVIOUR [APP]``."""

import json
import sys
from pathlib import Path

from mops_fl.flower.home import Resources
from mops_fl.flower.launch import launch

if __name__ == "__main__":
    run_dir, behaviour, *app = sys.argv[1:]
    outcome = launch(
        Path(app[0]) if app else Path(__file__).parent / "toy",
        {"run-dir": run_dir, "behaviour": behaviour},
        Resources(clients=2, cpus_per_client=1, gpus_per_client=0, workers=2),
        watch=lambda folder, note: None,
    )
    verdict = outcome.verdict
    print(json.dumps({"status": verdict.status, "error": verdict.error, "log": str(outcome.log)}))

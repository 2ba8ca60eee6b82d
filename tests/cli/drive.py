"""`mops-fl` on the app in another folder: ``python drive.py APP simulate ...``."""

import sys
from pathlib import Path

import mops_fl.cli.run

if __name__ == "__main__":
    app = Path(sys.argv.pop(1))
    mops_fl.cli.run.app_folder = lambda: app
    mops_fl.cli.main()

"""Flower's SuperNode, as a process that ends when it can do nothing more.

    python -m mops_fl.deploy.supernode [options of flower-supernode]

A broken TLS connection ends a SuperNode's main thread with an exception, while the thread that
serves its own processes holds the process: it would not work, and nobody would start it again.
"""

import os
import sys
import traceback

from flwr.supernode.cli import flower_supernode


def main() -> None:
    """Run the SuperNode, and end with it."""
    code = 0
    try:
        flower_supernode()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()

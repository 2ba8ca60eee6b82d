"""A SuperNode's process ends with its main thread, whatever threads are left."""

import subprocess
import sys

import pytest

HELD = """
import sys, threading, time
import flwr.supernode.cli
def broken():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}
flwr.supernode.cli.flower_supernode = broken
from mops_fl.deploy import supernode
supernode.main()
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise OSError('TLS')", 1),
        ("raise KeyboardInterrupt", 1),
        ("sys.exit(7)", 7),
        ("sys.exit('no')", 1),
        ("sys.exit()", 0),
        ("return", 0),
    ],
)
def test_it_ends(end, code):
    done = subprocess.run(
        [sys.executable, "-c", HELD.format(end=end)],
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert ("TLS" in done.stderr) == ("TLS" in end)

"""What tests of the command line share."""

import sys

import pytest

import mops_fl.cli


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Call `mops-fl` in this process, in an empty directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mops-fl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            mops_fl.cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call

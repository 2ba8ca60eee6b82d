"""systemd units, as systemd itself reads them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mops_fl.deploy.units import Unit

COMMAND = ["/bin/echo", "deploy", "client", "-nmodel=/a b/100%", "-nallow-methods=$HOME", 'say="x"']


def unit(tmp_path: Path) -> str:
    data = tmp_path / "my rows.jsonl"
    data.touch()
    return str(Unit("MoPs-FL node", COMMAND, tmp_path, [data], user="root"))


def test_a_unit_takes_away_what_a_node_does_not_need(tmp_path):
    lines = unit(tmp_path).splitlines()
    assert {
        *(
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "Restart=always",
            "CapabilityBoundingSet=",
        ),
        *(f"ReadWritePaths={tmp_path}", f'ReadOnlyPaths="{tmp_path}/my rows.jsonl"'),
        *("User=root", "StartLimitIntervalSec=0"),
    } <= set(lines)


def test_words_are_kept_from_systemd(tmp_path):
    (start,) = [line for line in unit(tmp_path).splitlines() if line.startswith("ExecStart=")]
    assert start == (
        'ExecStart=/bin/echo deploy client "-nmodel=/a b/100%%" -nallow-methods=$$HOME '
        '"say=\\"x\\""'
    )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_has_nothing_to_say(tmp_path):
    file = tmp_path / "mops-fl-node.service"
    file.write_text(unit(tmp_path))
    done = subprocess.run(
        ["systemd-analyze", "verify", file], capture_output=True, text=True, check=False
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "mops-fl" in line]
    assert ours == []

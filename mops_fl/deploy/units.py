"""systemd units for the server and for a node, with what systemd can take away from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Unit:
    """A service that runs one of our commands."""

    description: str
    command: Sequence[str]
    state: Path
    """The folder that it writes."""
    reads: Sequence[Path] = ()
    """Weights and data, which it must not write."""
    user: str = "mops-fl"

    def __str__(self) -> str:
        """The unit file."""
        reads = "".join(f"ReadOnlyPaths={_word(path)}\n" for path in self.reads)
        return _UNIT.format(
            description=self.description,
            user=self.user,
            command=" ".join(map(_word, self.command)),
            state=_word(self.state),
            reads=reads,
        )


def _word(part: str | Path) -> str:
    """A word of a unit's line: systemd knows quotation marks, and expands % and $."""
    text = str(part).replace("%", "%%").replace("$", "$$")
    if not any(sign in text for sign in " \t\"'\\;"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_UNIT = """\
[Unit]
Description={description}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
User={user}
ExecStart={command}
Restart=always
RestartSec=10
# all processes of the service end with it; the first signal goes to the one that knows the others
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec=30
UMask=0077
Environment=MOPS_FL_CACHE={state}/cache
ReadWritePaths={state}
{reads}NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateMounts=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
CapabilityBoundingSet=
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""

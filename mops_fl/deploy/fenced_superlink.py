"""Flower's SuperLink, of which other machines reach what SuperNodes need, and nothing else.

    python -m mops_fl.deploy.fenced_superlink [options of flower-superlink]

A SuperLink has one port for everything and knows no accounts: whoever reaches it could start a run,
which is code on the server. Here, starting and stopping runs, registering nodes and the ServerApp's
own interface answer only to this machine.
"""

import ipaddress
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import flwr.superlink.main as superlink
from flwr.superlink.cli import flower_superlink

Scope = Mapping[str, Any]
"""What ASGI tells of a request."""

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

PUBLIC = "/v1/fleet/"
"""What the paths of a SuperNode's requests begin with."""


class Fence:
    """Refuses what a request from another machine is not to do."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Put it around an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] == "lifespan" or allowed(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"only on the server itself"})


def allowed(scope: Scope) -> bool:
    """Whether a request is a SuperNode's, or comes from this machine."""
    if scope["type"] == "http" and scope["path"].startswith(PUBLIC):
        return True
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    address = ipaddress.ip_address(client[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_loopback or bool(server and server[0] == client[0])


def main() -> None:
    """Run the SuperLink behind the fence."""
    create = superlink.create_app

    def fenced(*args: Any, **kwargs: Any) -> Any:
        app = create(*args, **kwargs)
        app.add_middleware(Fence)
        return app

    superlink.create_app = fenced
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()

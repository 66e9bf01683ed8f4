"""Ports for servers that have to be told one before they listen."""

from __future__ import annotations

import contextlib
import secrets
import socket

_claims: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens to, and that no other call gets, in any process, while this one lives: a
    server may leave it and come back. It is not one of those that the system gives to whoever connects somewhere.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        claim = socket.socket(type=socket.SOCK_DGRAM)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            claim.bind(("127.0.0.1", port - 12_000))  # a server of HTTP/3 takes the port itself there, too
            _claims.append(claim)
            return port
        claim.close()

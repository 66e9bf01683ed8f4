"""Ports of this machine for servers that cannot be told to take a free one."""

from __future__ import annotations

import contextlib
import secrets
import socket


def free_port() -> int:
    """A port that nobody listens to; not one of those that the system gives to whoever connects somewhere."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port

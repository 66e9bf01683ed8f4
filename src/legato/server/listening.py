"""Whether the server around the application still listens.

A server that stops for a signal can be told by the signal. One that stops by itself, after so many requests or because
a thread of its program said so, tells the application when all connections have ended: with a stream open, never. But
it stops listening first, and that can be seen by whoever is in its process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable

from starlette.types import Scope

LOOK_SECONDS = 0.25
"""Between two looks."""
_FOLDERS = ("/proc/self/fd", "/dev/fd")

Listener = tuple[int, int, int]
"""A descriptor, and the device and number of the socket that it was open for."""


class ListenWatch:
    """Waits until the sockets are closed on which the server listens that a request came through.

    Args:
        closed: called once, when they are.
    """

    def __init__(self, closed: Callable[[], object]) -> None:
        self._closed = closed
        self._task: asyncio.Task[None] | None = None
        self._looked = False

    def see(self, scope: Scope) -> None:
        """Look which these are, at the first request; later ones change nothing."""
        if self._looked:
            return
        self._looked = True
        if found := listeners(scope.get("server")):
            self._task = asyncio.create_task(self._watch(found), name="legato-listening")

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _watch(self, found: list[Listener]) -> None:
        while any(map(_is_open, found)):  # noqa: ASYNC110  # nobody rings
            await asyncio.sleep(LOOK_SECONDS)
        self._task = None
        self._closed()


def listeners(server: tuple[str, int | None] | None) -> list[Listener]:
    """The sockets on which this process listens at the address of ``server``, as ASGI has it: those of its port, or of
    its path; without a port and a path, all that are files."""
    name, port = server or (None, None)
    found = []
    for descriptor in _descriptors():
        address = _listens_at(descriptor)
        if address is None:
            continue
        mine = (not name or address == name) if isinstance(address, str | bytes) else port == address[1]
        if mine and (number := _number(descriptor)) is not None:
            found.append(number)
    return found


def _descriptors() -> list[int]:
    for folder in _FOLDERS:
        try:
            return [int(name) for name in os.listdir(folder)]
        except (OSError, ValueError):
            continue
    return []  # nothing can be seen here, and a server that stops by itself waits for its streams


def _listens_at(descriptor: int) -> tuple[str, int] | str | bytes | None:
    """Where a descriptor's socket listens; None if it is none that does."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        with _seen(descriptor) as seen:
            if not seen.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return None
            address: tuple[str, int] | str | bytes = seen.getsockname()
            return address
    except (OSError, AttributeError):  # closed meanwhile, or of a kind that has no such thing
        return None


def _seen(descriptor: int) -> socket.socket:
    """Another descriptor of a socket.

    Raises:
        OSError: it is none by now; nothing is held of what it is.
    """
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise


def _number(descriptor: int) -> Listener | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return descriptor, found.st_dev, found.st_ino


def _is_open(listener: Listener) -> bool:
    return _number(listener[0]) == listener

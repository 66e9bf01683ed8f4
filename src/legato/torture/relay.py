"""A relay: a TCP port that passes on what it is given, and does to it what networks do. For this machine only.

With one target it is a *link*, which can be cut, go silent, or be slow; with several it is a balancer, which gives each
connection to the next one that answers, and remembers nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Literal

Address = tuple[str, int]
Way = Literal["up", "down"]

CHUNK = 65_536
"""Bytes that are passed on at a time."""
CHUNKS = 256
"""That are under way in one direction at most."""
CONNECT_SECONDS = 1.0
"""Within which a target is to take a connection; then the next one is asked."""


class Relay:
    """See the module's head. What it does to a connection it does to all.

    Args:
        targets: where connections are passed on to, in turn.
        host: where it listens.

    Attributes:
        port: where it listens, once it is open.
    """

    def __init__(self, targets: Sequence[Address], *, host: str = "127.0.0.1") -> None:
        self.targets = list(targets)
        self.port = 0
        self._host = host
        self._next = 0
        self._refusing = False
        self._delay = 0.0
        self._open: dict[Way, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._pairs: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Relay:
        self.mend()
        self._server = await asyncio.start_server(self._accept, self._host, 0, limit=CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self._abort()
        for task in list(self._pairs):
            task.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    # What networks do -------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset all connections, and each new one."""
        self._refusing = True
        self._abort()

    def silence(self, *ways: Way) -> None:
        """Let nothing through, in these directions or in both ("up" is to the target), and tell nobody. What is sent
        meanwhile is not lost: it comes when the link is mended, however late that is, as TCP would have it."""
        for way in ways or ("up", "down"):
            self._open[way].clear()

    def slow(self, seconds: float) -> None:
        """Let everything come so much later, in both directions."""
        self._delay = seconds

    def mend(self) -> None:
        """Pass everything on again, with what was held back first."""
        self._refusing, self._delay = False, 0.0
        for event in self._open.values():
            event.set()

    # Connections ------------------------------------------------------------------------------------------------------

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        writers = [writer]
        self._writers.add(writer)
        try:
            if self._refusing:
                return
            await self._open["up"].wait()
            away = await self._connect()
            if away is None:
                return
            writers.append(away[1])
            self._writers.add(away[1])
            await asyncio.gather(self._pass(reader, away[1], "up"), self._pass(away[0], writer, "down"))
        except OSError:
            pass
        except asyncio.CancelledError:
            pass  # of the relay's end; streams would tell it as an error
        finally:
            for each in writers:
                each.transport.abort()
            self._writers.difference_update(writers)
            self._pairs.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self.targets:
            host, port = self.targets[self._next % len(self.targets)]
            self._next += 1
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    reader, writer = await asyncio.open_connection(host, port, limit=CHUNK)
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return reader, writer
        return None

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """Pass on one direction until its end; what was read before that is passed on first."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS)
        writing = asyncio.create_task(self._write(held, writer, way))
        now = asyncio.get_running_loop().time
        try:
            while chunk := await reader.read(CHUNK):
                await held.put((now() + self._delay, chunk))
            await held.put((now() + self._delay, b""))
            await writing
        finally:
            writing.cancel()

    async def _write(self, held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: Way) -> None:
        now = asyncio.get_running_loop().time
        try:
            while True:
                due, chunk = await held.get()
                if (left := due - now()) > 0:
                    await asyncio.sleep(left)
                await self._open[way].wait()
                if not chunk:
                    writer.write_eof()
                    return
                writer.write(chunk)
                await writer.drain()
        except OSError:
            writer.transport.abort()

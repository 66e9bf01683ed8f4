"""Serving an application from the command line: one uvicorn process whose shutdown lets runs and readers finish.

At the first SIGTERM or SIGINT the server goes on answering while it drains: new messages are refused (503), runs have
their time to finish, and their readers see the end; then the streams are closed and the process ends. A second signal
ends it at once; what was stored is found at the next start.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from ..errors import LegatoError
from .app import Legato
from .connections import ACCEPTS as ACCEPTS
from .connections import Acceptor, Connections, room_for_connections
from .protocol import HTTPProtocol

logger = logging.getLogger("legato")

UNSENT = 16_384
"""Bytes that the kernel takes for a reader beyond what it has sent; by itself it would take some 4 MB for one that has
stopped reading. A bound of its whole buffer (SO_SNDBUF) would do that too, and let nobody have more than 2 MB/s."""


GC_THRESHOLD = (20_000, 20, 20)
"""How much has to be made before Python looks for circles of garbage: there are next to none, and by default (700, 10,
10) looking takes 6 to 10 % of the time."""


class AddressTaken(LegatoError):
    """The port cannot be listened on."""

    code = "address_taken"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on ``host`` and ``port``; port 0 takes a free one.

    Raises:
        AddressTaken: it is in use, or not ours to use.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux, macOS
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)  # the accepted ones inherit it
        listener.bind(address)
        listener.listen(2048)
    except OSError as exc:
        raise AddressTaken(f"Cannot listen on {host}:{port}: {exc.strerror}.", host=host, port=port) from exc
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: Legato, on_ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._legato = app
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self._stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        # Not left to uvicorn's lifespan, which would log the error and tell nobody.
        await self._legato.start()
        connections = Connections(self._legato.traffic, bound=room_for_connections())
        make = functools.partial(HTTPProtocol, self.config, self.server_state, {}, connections=connections)
        try:
            self.servers = [Acceptor(listener, make, connections) for listener in sockets or ()]  # type: ignore[misc]
        except NotImplementedError:  # the event loop of Windows
            await super().startup(sockets)
        self.started = True
        if self.started:
            # What is there now stays: looking at it again in each full collection would hold the loop for 20 ms.
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLD)
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if not self.force_exit:
            await self._legato.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stopping or self._loop is None or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        self._loop.call_soon_threadsafe(self._begin_drain, sig)

    def _begin_drain(self, sig: int) -> None:
        running = self._legato.runner.running
        if running:
            again = "Ctrl-C" if sig == signal.SIGINT else "the signal"
            logger.warning(
                "finishing %d answer(s), at most %g s; %s again stops at once", running, self._legato.grace, again
            )
        self._drain = asyncio.create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            await self._legato.runner.stop(self._legato.grace)
            await self._legato.streams.close()
        finally:
            self.should_exit = True


def serve(
    app: Legato, listener: socket.socket, *, log_level: str = "warning", on_ready: Callable[[], object] = lambda: None
) -> None:
    """Serve ``app`` on ``listener`` until the process is told to stop.

    Args:
        app: started and stopped here.
        listener: from ``listen``.
        log_level: of uvicorn; its records go to the program's own logging.
        on_ready: called once, when the application has started and requests are taken.

    Raises:
        LegatoError: the application could not start.
    """
    config = uvicorn.Config(
        app,
        http=HTTPProtocol,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level=log_level,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    app.drain_on_signal = False  # handle_exit does it, and lets the readers see their runs end first
    server = _Server(config, app, on_ready)
    server.run(sockets=[listener])
    if not server.started:
        raise LegatoError("The server could not start.")

"""Serving an application from the command line: one uvicorn process whose shutdown lets runs and readers finish.

At the first SIGTERM or SIGINT the server goes on answering while it drains: new messages are refused (503), runs have
their time to finish, and their readers see the end; then the streams are closed and the process ends. A second signal
ends it at once; what was stored is found at the next start.

Agents run in this process, and none of them decides about it. ``sys.exit`` in a task of theirs is their error, a child
that they fork has no socket of ours, and a process that was told to stop ends, whoever does not let go of it.
"""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeGuard

import uvicorn
from starlette.types import ASGIApp

from ..errors import LegatoError
from ..fault import at_fork, let_go
from .app import LOOK_EVERY, TELL_EVERY, Legato
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


END_SECONDS = 4.0
"""What a process that was told to stop may take longer than its agents may; then it is ended from outside of Python."""
LEAVE_SECONDS = 1.0
"""For which tasks that nobody waits for may end when the server has."""


TRIM_EVERY = 10.0
"""Seconds between two looks at how much memory the process has."""
TRIM_MORE = 67_108_864
"""Bytes by which that has to have grown before what is free of it is given back to the system. The C library keeps what
its threads have freed, in pieces between what is in use, and would do so for ever."""
TRIM_AGAIN = 6, 360
"""Looks until it is tried again where that was of no use, since what is free now was in use then: at first, and at
most, each time twice as many."""


METRICS_CONNECTIONS = 20
"""Of those who ask for metrics."""


LISTEN_FDS_START = 3
"""The first descriptor that systemd hands over."""
_STREAM = socket.SOCK_STREAM


class AddressTaken(LegatoError):
    """The port cannot be listened on."""

    code = "address_taken"


def listen(host: str, port: int, *, wait: float = 0.0) -> socket.socket:
    """A listening socket on ``host`` and ``port``; port 0 takes a free one.

    Args:
        host, port: where.
        wait: seconds for which to wait while somebody else listens there, as a server that is about to stop does.

    Raises:
        AddressTaken: it is in use, or not ours to use.
    """
    until = time.monotonic() + wait
    due = 0.0
    while True:
        try:
            return _listen(host, port)
        except OSError as exc:
            left = until - time.monotonic()
            if exc.errno != errno.EADDRINUSE or left <= 0:
                raise AddressTaken(f"Cannot listen on {host}:{port}: {exc.strerror}.", host=host, port=port) from exc
            if time.monotonic() >= due:
                due = time.monotonic() + TELL_EVERY
                logger.warning("waiting for %s:%d, at most %.0f s more: somebody else listens there", host, port, left)
            time.sleep(min(LOOK_EVERY, left))


def _listen(host: str, port: int) -> socket.socket:
    name = host.encode() if host.isascii() else host  # as text it would load what other alphabets take
    family, kind, proto, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return _listening(listener)
    except BaseException:
        listener.close()
        raise


def _listening(listener: socket.socket) -> socket.socket:
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux, macOS
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)  # the accepted ones inherit it
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def inherited() -> socket.socket | None:
    """The socket that systemd listens on for us (``LISTEN_FDS``): it stays open while one process follows another, so
    that nobody is refused meanwhile. None if there is none.

    Raises:
        AddressTaken: there are several, or it is none of TCP.
    """
    count, pid = os.environ.get("LISTEN_FDS"), os.environ.get("LISTEN_PID")
    if not count or pid != str(os.getpid()):
        return None
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):  # what we start is not meant
        os.environ.pop(name, None)
    try:
        listener = socket.socket(fileno=LISTEN_FDS_START)
        good = count == "1" and listener.family in (socket.AF_INET, socket.AF_INET6) and listener.type is _STREAM
    except OSError:
        good = False
    if not good:
        raise AddressTaken(f"Expected one listening TCP socket in LISTEN_FDS, got {count[:20]!r} of another kind.")
    listener.set_inheritable(False)
    return _listening(listener)


def held() -> int:
    """Bytes of memory that the process has; 0 where that is not known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _is_left(number: signal.Signals | None) -> TypeGuard[signal.Signals]:
    """Whether there is such a signal, which nobody handles or ignores."""
    return number is not None and signal.getsignal(number) is signal.SIG_DFL


async def give_back(held: Callable[[], int] = held, trim: Callable[[int], object] | None = None) -> None:
    """Give memory that is free back to the system, for ever, whenever there may be much of it.

    Args:
        held: bytes that the process has.
        trim: glibc's ``malloc_trim``, which takes some 50 ms for half a gigabyte; without it nothing is done.
    """
    if trim is None:
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    least = last = held()  # that there was, and that was left the last time
    wait, looks = TRIM_AGAIN[0], 0
    while trim is not None and least:
        await asyncio.sleep(TRIM_EVERY)
        now = held()
        looks += 1
        grown = now > last + TRIM_MORE
        if grown or (looks >= wait and now > least + TRIM_MORE):
            await asyncio.to_thread(trim, 0)
            wait, looks = TRIM_AGAIN[0] if grown else min(2 * wait, TRIM_AGAIN[1]), 0
            last = held()
        least, last = min(least, now), min(last, now)


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, app: Legato, on_ready: Callable[[], object], metrics: socket.socket | None
    ) -> None:
        super().__init__(config)
        self._metrics = metrics
        self._legato = app
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[socket.socket] = []
        self._drain: asyncio.Task[None] | None = None
        self._trimming: asyncio.Task[None] | None = None
        self._stopping = False
        self._patience = 0.0  # seconds that agents have after the first signal
        self.failure: Exception | None = None  # why the application could not start after all

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = [*(sockets or ())]
        # Not left to uvicorn's lifespan, which would log the error and tell nobody.
        started: list[Exception | None] = []  # before there is anybody to be told
        await self._legato.start_aside(lambda error: self._begun(error) if self.started else started.append(error))
        self._patience = self._legato.grace + self._legato.limits.cancel_grace
        connections = self._legato.connections = Connections(
            self._legato.traffic, bound=room_for_connections(), refused=self._legato.refused
        )

        def make(address: str) -> HTTPProtocol:
            return HTTPProtocol(self.config, self.server_state, {}, connections=connections, address=address)

        try:
            self.servers = [Acceptor(listener, make, connections) for listener in sockets or ()]  # type: ignore[misc]
            if self._metrics is not None:
                self.servers.append(self._serve_metrics(self._metrics))  # type: ignore[arg-type]
        except NotImplementedError:  # the event loop of Windows
            await super().startup(sockets)
        self.started = True
        if threading.current_thread() is threading.main_thread() and _is_left(
            hangup := getattr(signal, "SIGHUP", None)
        ):
            signal.signal(hangup, self.handle_exit)  # a terminal that is closed; with nohup it stays ignored
        # What is there now stays: looking at it again in each full collection would hold the loop for 20 ms.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        self._trimming = asyncio.create_task(give_back())
        for error in started:
            self._begun(error)

    def _serve_metrics(self, listener: socket.socket) -> Acceptor:
        """On a port of their own, so that no proxy before the other one shows them to everybody; with few connections
        of their own, which are there when the other ones are all taken."""
        local = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        config = _config(self._legato.metrics(local=local), log_level=self.config.log_level)
        config.load()
        connections = Connections(self._legato.traffic, bound=METRICS_CONNECTIONS)

        def make(address: str) -> HTTPProtocol:
            return HTTPProtocol(config, self.server_state, {}, connections=connections, address=address)

        return Acceptor(listener, make, connections)

    def _begun(self, error: Exception | None) -> None:
        """The application has started, or cannot."""
        self.failure = error
        if error is None:
            self._on_ready()
        else:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if not self.force_exit:
            await self._legato.stop()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server.run``, which would wait for every task that is left, for ever."""
        loop = (self.config.get_loop_factory() or asyncio.new_event_loop)()
        asyncio.set_event_loop(loop)
        forget = at_fork(lambda: self._leave_to_parent(loop, sockets or []))
        try:
            _run_until_done(loop, loop.create_task(self.serve(sockets=sockets)))
        finally:
            forget()
            _leave(loop)
            asyncio.set_event_loop(None)
            loop.close()

    def _leave_to_parent(self, loop: asyncio.AbstractEventLoop, sockets: list[socket.socket]) -> None:
        """In a forked child: no socket is its own, a signal ends it, and so does coming back into the event loop."""
        loop.call_soon(os._exit, 1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        opened = [connection.transport.get_extra_info("socket") for connection in self.server_state.connections]
        for each in (*sockets, self._metrics, *opened):
            if each is not None and each.fileno() >= 0:
                let_go(each.fileno())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        _end_within(END_SECONDS if self._stopping else self._patience + END_SECONDS)
        if self._stopping or self._loop is None or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        self._loop.call_soon_threadsafe(self._begin_drain, sig)

    def _begin_drain(self, sig: int) -> None:
        running = self._legato.runner.running if self._legato.alive else 0
        if running:
            again = "Ctrl-C" if sig == signal.SIGINT else "the signal"
            logger.warning(
                "finishing %d answer(s), at most %g s; %s again stops at once", running, self._legato.grace, again
            )
        self._drain = asyncio.create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            if self._legato.alive:
                await self._legato.runner.stop(self._legato.grace)
                self._stop_listening()
                await self._legato.streams.close()
        finally:
            self.should_exit = True

    def _stop_listening(self) -> None:
        """Before streams end: whoever comes back at once is to meet another node, and not this one's end again."""
        for each, listener in zip(self.servers, self._listeners, strict=False):  # not that of metrics
            each.close()
            listener.close()  # else the kernel would go on accepting, for nobody
        for connection in list(self.server_state.connections):
            connection.shutdown()  # after what it is at now


def _run_until_done(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    """Run ``loop`` until ``task`` is done, whoever else in it wants it to stop."""
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt, RuntimeError) as exc:
            if task.done() or loop.is_closed():
                raise
            logger.error("an agent's task would have ended the server; it goes on", exc_info=exc)


def _leave(loop: asyncio.AbstractEventLoop) -> None:
    """End the tasks that are left, as far as they let themselves be ended."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        _run_until_done(loop, loop.create_task(_wait(tasks)))
    for task in tasks:
        if not task.done():
            logger.warning("%s goes on although it was cancelled; it is left behind", task.get_name())
        elif not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("%s failed when it was cancelled", task.get_name(), exc_info=error)
    closing = loop.create_task(loop.shutdown_asyncgens())
    _run_until_done(loop, loop.create_task(_wait({closing})))


async def _wait(tasks: set[asyncio.Task[object]]) -> None:
    await asyncio.wait(tasks, timeout=LEAVE_SECONDS)


def _end_within(seconds: float) -> None:
    """End this process in so many seconds, if it has not ended by then: not in Python, where an agent may hold the one
    thread that counts. It says on standard error what every thread was at, and its status is 1."""
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    except (ValueError, AttributeError, OSError):  # nobody has a standard error
        logger.warning("the end of the process cannot be made sure")


def _config(app: ASGIApp, *, log_level: str | int | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HTTPProtocol,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level=log_level,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )


def serve(
    app: Legato,
    listener: socket.socket,
    *,
    log_level: str = "warning",
    on_ready: Callable[[], object] = lambda: None,
    metrics: socket.socket | None = None,
) -> None:
    """Serve ``app`` on ``listener`` until the process is told to stop.

    Args:
        app: started and stopped here.
        listener: from ``listen``.
        log_level: of uvicorn; its records go to the program's own logging.
        on_ready: called once, when the application has started and requests are taken.
        metrics: a socket to answer Prometheus on, from ``listen`` as well.

    Raises:
        LegatoError: the application could not start.
    """
    config = _config(app, log_level=log_level)
    app.drain_on_signal = False  # handle_exit does it, and lets the readers see their runs end first
    server = _Server(config, app, on_ready, metrics)
    server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
    if not server.started:
        raise LegatoError("The server could not start.")

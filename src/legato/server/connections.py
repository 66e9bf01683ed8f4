"""The connections of a process: by when each is to be done, which are idle, how many there may be, and how they begin.

One timer looks after all of them, in place of one for each. Descriptors are kept free for everything else; when they
run out all the same, or there are as many connections as there may be, the one that has been idle for longest is
closed, or the new one is refused, aloud.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Hashable
from http import HTTPStatus
from typing import Protocol

import msgspec

from .. import bounds
from ..caller import network
from ..dialect.common import describe
from ..errors import LegatoError, Overloaded, TooMany
from .operation import retry_after
from .traffic import Refusals, Traffic

logger = logging.getLogger("legato")

ACCEPTS = 16
"""Connections that are accepted in one round of the event loop: in a loop with much to do, new ones would else wait for
as many rounds as there are others; and all of a thousand in one would hold it."""
REST = 0.1
"""Seconds until the next look for connections, when there was no descriptor for one."""
KEPT_FREE = 256
"""Descriptors that are not for connections: the store's, agents', pages'. At most half of those that there are."""
MOST_DESCRIPTORS = 1_048_576
"""That are asked for; some systems allow a billion, and what looks through all of them takes minutes."""
OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def room_for_connections() -> int:
    """Raise this process's bound of open descriptors to what it may have; how many connections that lets it have."""
    most = _descriptors()
    return most - min(KEPT_FREE, most // 2)


def _descriptors() -> int:
    try:
        import resource
    except ImportError:  # Windows has no such bound
        return MOST_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS has another bound besides
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


SMALL_HEAD = 8192
"""Bytes of a head that need no room among those of all."""


class TooManyConnections(Overloaded):
    """There is no room for another connection; try again in a moment."""

    code = "too_many_connections"


def refusal(error: LegatoError) -> bytes:
    """``error`` as the last answer on a connection, where no request has come as far as to a dialect."""
    body = msgspec.json.encode(describe(error))
    fields = {
        "content-type": "application/json",
        "content-length": len(body),
        "cache-control": "no-store",
        **({} if (after := retry_after(error)) is None else {"retry-after": after}),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{head}\r\n".encode() + body


class Idle(Protocol):
    """A connection on which nothing is asked or answered."""

    def close_idle(self) -> None:
        """Close it."""
        ...


class Connections:
    """All connections of a process.

    Args:
        traffic: what they may take.
        bound: of how many there may be at once.
        clock: in seconds.
        refused: counts what limits have refused, see ``bounds``.

    Attributes:
        open: how many there are.
        accepted: how many there were.
        refused: how many were not taken, since there was no room, or no descriptor.
    """

    def __init__(
        self,
        traffic: Traffic,
        *,
        bound: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        refused: Counter[str] | None = None,
    ) -> None:
        self.traffic = traffic
        self.refused = bounds.tally() if refused is None else refused
        self._addresses: Counter[str] = Counter()
        self.bound = traffic.connections if bound is None else min(bound, traffic.connections)
        self.open = 0
        self.accepted = 0
        self.clock = clock
        self._due: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._heads: dict[Hashable, int] = {}
        self._head_bytes = 0
        self._idle: dict[Idle, None] = {}  # in the order in which they became so
        self._timer: asyncio.TimerHandle | None = None
        shortest = min(traffic.head_seconds, traffic.body_seconds, traffic.idle_seconds, traffic.write_seconds)
        self._every = min(1.0, shortest / 4)

    @property
    def unused(self) -> int:
        """How many are idle."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many things are expected."""
        return len(self._due)

    def expect(self, key: Hashable, seconds: float, late: Callable[[], None]) -> None:
        """Call ``late`` when nobody has said ``met`` after so many seconds, or a second more. One for each key."""
        self._due[key] = (self.clock() + seconds, late)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._tick)

    def met(self, key: Hashable) -> None:
        """What was expected has come. Idempotent."""
        self._due.pop(key, None)

    def _tick(self) -> None:
        self._timer = None
        self.look()
        if self._due and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._tick)

    def look(self) -> None:
        """Tell those who are late."""
        now = self.clock()
        for key, (due, late) in list(self._due.items()):
            if due <= now and self._due.pop(key, None) is not None:
                late()

    def idle(self, connection: Idle) -> None:
        """Nothing is asked on this connection now."""
        self._idle[connection] = None

    def busy(self, connection: Idle) -> None:
        """It is not idle, or not there any more. Idempotent."""
        self._idle.pop(connection, None)

    def hold_head(self, key: Hashable, size: int) -> bool:
        """Count a head of which so many bytes have come; False, and it is not, if all have as many as they may. A small
        one is not counted, so that there is always room for it."""
        if size <= SMALL_HEAD:
            return True
        more = size - self._heads.get(key, 0)
        if self._head_bytes + more > self.traffic.head_bytes:
            self.refused["head_bytes"] += 1
            return False
        self._heads[key] = size
        self._head_bytes += more
        return True

    def let_head_go(self, key: Hashable) -> None:
        """It has come in full, or never will. Idempotent."""
        self._head_bytes -= self._heads.pop(key, 0)

    def count_in(self, address: str) -> bool:
        """Count a connection from this address in; False, and it is not, if that has as many as it may."""
        where, most = network(address), self.traffic.connections_per_address
        if most and self._addresses[where] >= most:
            return False
        self._addresses[where] += 1
        return True

    def count_out(self, address: str) -> None:
        """Count one out that has been counted in."""
        where = network(address)
        self._addresses[where] -= 1
        if self._addresses[where] <= 0:
            del self._addresses[where]

    def full(self, beginning: int) -> bool:
        """Whether there are as many as there may be, with those that are about to be."""
        return self.open + beginning >= self.bound

    def make_room(self) -> bool:
        """Close the connection that has been idle for longest; False if none is."""
        if not self._idle:
            return False
        connection = next(iter(self._idle))
        del self._idle[connection]
        connection.close_idle()
        return True


class Acceptor:
    """Accepts connections from a listening socket, as long as there is room.

    Args:
        listener: does not block.
        make: the protocol of a new connection, from its address, which it counts out in the end.
        connections: those that there are.
    """

    def __init__(
        self, listener: socket.socket, make: Callable[[str], asyncio.BaseProtocol], connections: Connections
    ) -> None:
        self._listener = listener
        self._make = make
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[object]] = set()
        self._spare: int | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._full = Refusals(f"%d connection(s) refused: there are {connections.bound}, as many as there may be")
        self._many = Refusals("%d connection(s) refused: their address has as many as one may")
        self._out = Refusals("%d time(s) there was no descriptor for a connection; LimitNOFILE or ulimit -n allow more")
        self._keep_spare()
        self._begin()

    def close(self) -> None:
        """Accept no more. Idempotent."""
        if self._rest is not None:
            self._rest.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
        self._let_spare_go()

    async def wait_closed(self) -> None:
        """As a server of the event loop has it."""

    def _begin(self) -> None:
        self._rest = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:  # it has left before
                continue
            except OSError as exc:
                if exc.errno not in OUT_OF:
                    raise
                self._out_of_descriptors()
                return
            if self._connections.full(len(self._beginning)) and not self._connections.make_room():
                self._full.add()
                self._connections.refused["connections"] += 1
                _refuse(connection, TooManyConnections("This server takes no more connections now; try again."))
                continue
            address = peer[0] if isinstance(peer, tuple) else ""
            if not self._connections.count_in(address):
                self._many.add()
                self._connections.refused["connections_per_address"] += 1
                most = self._connections.traffic.connections_per_address
                _refuse(connection, TooMany(f"This address has {most} connections, as many as one may."))
                continue
            self._connections.accepted += 1
            connection.setblocking(False)
            task = self._loop.create_task(self._take(connection, address))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _take(self, connection: socket.socket, address: str) -> object:
        try:
            return await self._loop.connect_accepted_socket(functools.partial(self._make, address), connection)
        except OSError as exc:  # it has left, or the loop has no descriptor for it
            self._connections.count_out(address)
            connection.close()
            logger.debug("a connection could not begin: %s", exc)
            return None

    def _out_of_descriptors(self) -> None:
        """Make room, or tell some who wait that there is none; and rest, for who is not taken would be reported for
        ever."""
        self._out.add()
        if not sum(self._connections.make_room() for _ in range(ACCEPTS)):
            self._let_spare_go()
            for _ in range(ACCEPTS):
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    break
                self._connections.refused["connections"] += 1
                _refuse(connection, TooManyConnections("This server takes no more connections now; try again."))
        self._keep_spare()
        self._loop.remove_reader(self._listener.fileno())
        self._rest = self._loop.call_later(REST, self._begin)

    def _keep_spare(self) -> None:
        """A descriptor that is given up when there is no other, to be able to refuse."""
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _let_spare_go(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _refuse(connection: socket.socket, why: LegatoError) -> None:
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(refusal(why))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(65_536)  # what has come and nobody has read would have the end told as an error

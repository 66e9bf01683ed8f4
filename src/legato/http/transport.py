"""How requests travel on asyncio: ``Transport``, in the place of httpx2's own.

It carries plain HTTP/1.1 straight to the server. All else goes by httpx2's own transport: an upload that is a stream,
an upgrade, what is asked by an extension of httpx2, another event loop than asyncio's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import httpx2
from httptools import HttpResponseParser

from ..check import PORTS
from .connection import HttpConnection, HttpExchange, Origin
from .settings import EXCHANGE, limits

__all__ = ["Transport"]

if not hasattr(HttpResponseParser, "set_dangerous_leniencies"):
    raise ImportError("This version of httptools is too old.", name="httptools")

LIMITS: Final = limits()
_METHODS: Final = {"GET", "POST", "PUT", "PATCH", "DELETE"}

_NAME: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_VALUE: Final = re.compile(rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?")
_TARGET: Final = re.compile(rb"[\x21-\x7e]+")

# Seconds after which the next address of a host is tried as well (RFC 8305).
_STAGGER: Final = 0.25


class Transport(httpx2.AsyncBaseTransport):
    """Asks servers over connections that are kept for the next request. Their number has no bound.

    Its errors are httpx2's. One event loop may use it after another.
    """

    def __init__(self) -> None:
        self._connections: set[HttpConnection] = set()
        self._free: list[HttpConnection] = []
        self._tls: ssl.SSLContext | None = None
        self._library: httpx2.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer to a request, its body unread."""
        data = _plain(request)
        if data is None or not _on_asyncio():
            self._library = self._library or httpx2.AsyncHTTPTransport(limits=LIMITS)
            return await self._library.handle_async_request(request)
        url = request.url
        origin = (url.scheme, url.raw_host.decode("ascii"), url.port or PORTS[url.scheme])
        connection = self._take(origin) or await self._connect(origin, request)
        try:
            exchange = HttpExchange(connection, request, self._give_back)
            head = await exchange.ask(data)
        except BaseException:
            connection.close()
            self._forget(connection)
            raise
        extensions = {"http_version": head.version, "reason_phrase": head.reason, EXCHANGE: exchange}
        return httpx2.Response(head.status, headers=head.headers, stream=exchange, extensions=extensions)

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in list(self._connections):
            connection.close()
        if self._connections:
            await asyncio.sleep(0)  # in its next round the event loop closes their sockets
        if self._library is not None:
            await self._library.aclose()

    def _take(self, origin: Origin) -> HttpConnection | None:
        """A free connection, the one that was used last."""
        loop = asyncio.get_running_loop()
        for connection in self._free[::-1]:
            if connection.loop is not loop:
                self._forget(connection)  # it was left to a loop that is over, or closes by itself on another
            elif connection.origin == origin:
                self._free.remove(connection)
                if connection.is_open():
                    return connection
                connection.close()
        return None

    def _give_back(self, connection: HttpConnection) -> None:
        if connection.free(LIMITS.keepalive_expiry):
            self._free.append(connection)
            if len(self._free) > (LIMITS.max_keepalive_connections or 0):
                self._free.pop(0).close()

    def _forget(self, connection: HttpConnection) -> None:
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    async def _connect(self, origin: Origin, request: httpx2.Request) -> HttpConnection:
        scheme, host, port = origin
        timeout = request.extensions.get("timeout", {}).get("connect")
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if scheme == "https":
            tls = {"ssl": self._context(), "server_hostname": host, "ssl_handshake_timeout": timeout}

        async def connect(address: str) -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, (address, port))
            except BaseException:
                sock.close()
                raise
            return sock

        try:
            async with asyncio.timeout(timeout):
                sock = await _first(connect, await _addresses(host, port))
                # Only now: a handshake takes long, and is no reason to try another address.
                _, connection = await loop.create_connection(
                    lambda: HttpConnection(origin, self._forget), sock=sock, **tls
                )
        except TimeoutError as exc:
            raise httpx2.ConnectTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpx2.ConnectError(str(exc)) from exc
        self._connections.add(connection)
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpx2.create_ssl_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def _on_asyncio() -> bool:
    """Whether an asyncio task runs; another library's may be a guest of its event loop, but is no task of it."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def _plain(request: httpx2.Request) -> bytes | None:
    """A request's bytes; None if it is more than a head, and a body that is known."""
    headers, url = request.headers, request.url
    if url.scheme not in PORTS or request.method not in _METHODS or request.extensions.keys() - {"timeout"}:
        return None
    try:
        body = request.content
    except httpx2.RequestNotRead:
        return None
    length = headers.get_list("content-length") or ["0"]
    plain = (
        length == [str(len(body))]
        and "transfer-encoding" not in headers
        and headers.get("connection", "keep-alive").lower() == "keep-alive"
        and _TARGET.fullmatch(url.raw_path)
        and all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers.raw)
    )
    if not plain:
        return None
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), url.raw_path)]
    lines += [b"%b: %b" % header for header in headers.raw]
    return b"\r\n".join([*lines, b"", body])


async def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a host, those of its families in turn."""
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    seen: Counter[int] = Counter()

    def place(info: tuple[Any, ...]) -> int:
        seen[info[0]] += 1
        return seen[info[0]]

    return [str(info[4][0]) for info in sorted(infos, key=place)]


async def _first(connect: Callable[[str], Coroutine[Any, Any, socket.socket]], addresses: list[str]) -> socket.socket:
    """The socket that is connected first. Another address is tried as soon as one fails, or takes long.

    Raises:
        OSError: none of them can be reached.
    """
    tasks: list[asyncio.Task[socket.socket]] = []
    running: set[asyncio.Task[socket.socket]] = set()
    won: asyncio.Task[socket.socket] | None = None
    try:
        while won is None and (running or len(tasks) < len(addresses)):
            if len(tasks) < len(addresses):
                tasks.append(asyncio.create_task(connect(addresses[len(tasks)])))
                running.add(tasks[-1])
            more = len(tasks) < len(addresses)
            done, running = await asyncio.wait(
                running, timeout=_STAGGER if more else None, return_when=asyncio.FIRST_COMPLETED
            )
            won = next((task for task in done if task.exception() is None), None)
        return (won or tasks[0]).result()
    finally:
        for task in tasks:
            if task is not won and not task.cancel() and not task.cancelled() and task.exception() is None:
                task.result().close()

"""The connections of a PostgreSQL store: which database its URL names, how it is reached, and when that is given up.

It knows psycopg, and what is said over a connection only as far as each begins with it.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from weakref import WeakSet

try:
    import psycopg
    from psycopg.adapt import Dumper
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import Format
except ImportError as exc:
    raise ModuleNotFoundError(
        "The PostgreSQL store needs the package psycopg: pip install 'legato[postgres]'", name="psycopg"
    ) from exc

from ..errors import InvalidInput, StoreError
from ..fault import at_fork, let_go
from . import postgres_sql as sql
from .postgres_sql import Array, Int8Array, Statement, TextArray

READERS = 4
"""Connections that read."""
ANSWER_SECONDS = 12.0
"""After which a connection that does not answer is given up; the server gives up a statement after 10."""
DEFAULTS = {
    "application_name": "legato",
    "connect_timeout": "5",
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
    "target_session_attrs": "read-write",
}
"""What libpq is told where the URL does not say otherwise."""
OPTIONS = {
    "durability": re.compile("full|normal"),
    "listen": re.compile("none|postgres(ql)?://.+"),
    "pooler": re.compile("transaction"),
    "schema": re.compile("[a-z_][a-z0-9_]{0,40}"),
}
"""What of the URL's query is not for libpq."""
FAILURES = (psycopg.Error, OSError)
"""What is raised by whatever is done with a database."""

Connection = psycopg.AsyncConnection[Any]


class _Int8s(Dumper):
    format, oid = Format.BINARY, 1016

    def dump(self, obj: Array) -> bytes:
        return obj.data


class _Texts(_Int8s):
    oid = 1009


class Link:
    """Connections to the database that a URL names.

    Args:
        url: see ``PostgresStore``.

    Attributes:
        place: which database it is, without a password.
        normal: commits do not wait for the disk.
        pooled: each transaction may be with another connection of the server's.
        listen: where the server itself is to be listened to; None: nowhere.

    Raises:
        InvalidInput: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._conninfo, options = _parse(url)
        given = conninfo_to_dict(self._conninfo)
        self.place = f"PostgreSQL {given.get('dbname', '')} at {given.get('host', '')}:{given.get('port', 5432)}"
        self.schema = options.get("schema", "legato")
        self.normal = options.get("durability") == "normal"
        self.pooled = "pooler" in options
        listen = options.get("listen", "none" if self.pooled else "")
        self.listen = None if listen == "none" else _parse(listen)[0] if listen else self._conninfo
        self._all: WeakSet[Connection] = WeakSet()
        self._forget: Callable[[], None] | None = None
        self._readers: list[Connection] = []
        self._reading = asyncio.Semaphore(READERS)
        self._reads: set[asyncio.Task[Any]] = set()

    def error(self, exc: BaseException) -> StoreError:
        """What to raise for what has been raised."""
        of_connections = psycopg.OperationalError | psycopg.InterfaceError
        return sql.store_error(exc, self.place, connecting=isinstance(exc, of_connections))

    async def connect(self, conninfo: str | None = None) -> Connection:
        """A new connection, in no transaction.

        Raises:
            psycopg.Error, OSError: there is none.
        """
        conn: Connection = await psycopg.AsyncConnection.connect(
            make_conninfo("", **{**DEFAULTS, **conninfo_to_dict(conninfo or self._conninfo)}),
            autocommit=True,
            prepare_threshold=None if self.pooled else 3,
        )
        self._forget = self._forget or at_fork(self._let_go)
        self._all.add(conn)
        conn.adapters.register_dumper(Int8Array, _Int8s)
        conn.adapters.register_dumper(TextArray, _Texts)
        if not self.pooled:
            await self.execute(conn, *self.settings(local=False))
        return conn

    def settings(self, *, local: bool) -> Statement:
        """How long the server waits for what, and for the disk; ``local``: in this transaction."""
        return sql.SETTINGS, (local, local, local, self.normal, local)

    async def execute(self, conn: Connection, statement: str, params: Sequence[Any] = ()) -> psycopg.AsyncCursor[Any]:
        """Say a statement of ``postgres_sql``."""
        return await conn.execute(sql.within(self.schema, statement), params or None, binary=True)

    async def row(self, conn: Connection, statement: str, params: Sequence[Any] = ()) -> Any:
        """The one row that a statement gives."""
        row = await (await self.execute(conn, statement, params)).fetchone()
        assert row is not None
        return row

    @contextmanager
    def answering(self, conn: Connection, seconds: float | None = None) -> Iterator[None]:
        """Take the connection for lost when this takes longer: to cancel a statement would wait for the server, too."""
        timer = asyncio.get_running_loop().call_later(seconds or ANSWER_SECONDS, sever, conn)
        try:
            yield
        finally:
            timer.cancel()

    async def ask(self, statement: str, params: Sequence[Any]) -> list[Any]:
        """What a query finds. Whoever is cancelled meanwhile leaves it to its end, which costs less than to stop it.

        Raises:
            StoreError: it cannot be asked.
        """
        task = asyncio.create_task(self._ask(statement, params))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        return await asyncio.shield(task)

    async def _ask(self, statement: str, params: Sequence[Any]) -> list[Any]:
        async with self._reading:
            while True:
                conn, used = None, bool(self._readers)
                try:
                    conn = self._readers.pop() if used else await self.connect()
                    with self.answering(conn):
                        rows = await (await self.execute(conn, statement, params)).fetchall()
                    self._readers.append(conn)
                    return rows
                except FAILURES as exc:
                    if conn is not None:
                        await conn.close()
                    if not used:  # else the database may have been away meanwhile, and be back
                        raise self.error(exc) from exc

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction of its own, which is committed when it is left; undone, if that is by an error.

        Raises:
            StoreError: the database has failed. If that was the commit, it is not known whether it was done.
        """
        conn = self._readers.pop() if self._readers else await self.connect()
        try:
            async with conn.transaction():
                if self.pooled:
                    await self.execute(conn, *self.settings(local=True))
                yield conn
        except FAILURES as exc:
            await conn.close()
            raise self.error(exc) from exc
        finally:
            if not conn.closed:
                self._readers.append(conn)

    def _let_go(self) -> None:
        """In a forked child: whatever it does with the connections, the server does not hear of it."""
        for conn in self._all:
            if not conn.closed:
                let_go(conn.fileno())

    async def close(self) -> None:
        """Wait for what is being asked, and let go of its connections."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        await asyncio.gather(*self._reads, return_exceptions=True)
        for conn in self._readers:
            await conn.close()
        self._readers = []


def sever(conn: Connection) -> None:
    """Let whoever waits for an answer see that the connection is lost."""
    try:
        with socket.socket(fileno=os.dup(conn.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
    except FAILURES:
        pass  # it is closed


def _parse(url: str) -> tuple[str, dict[str, str]]:
    """What libpq is to be told, and what is for us."""
    base, _, query = url.partition("?")
    ours: dict[str, str] = {}
    theirs: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS:
            theirs.append((name, value))
        elif OPTIONS[name].fullmatch(value) and name not in ours:
            ours[name] = value
        else:
            raise InvalidInput(f"The option {name!r} of a PostgreSQL store is {OPTIONS[name].pattern}, and given once.")
    conninfo = base + ("?" + urlencode(theirs, quote_via=quote) if theirs else "")
    try:
        conninfo_to_dict(conninfo)
    except psycopg.Error:  # which may quote the password
        raise InvalidInput(
            "A PostgreSQL store is 'postgresql://user:password@host:port/database?option=value', with signs that "
            f"have a meaning in URLs as %XX; the options are libpq's, and {', '.join(OPTIONS)}."
        ) from None
    return conninfo, ours

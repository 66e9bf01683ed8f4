"""The connections of a PostgreSQL store: which database its URL names, how it is reached, and when that is given up.

It knows psycopg, and what is said over a connection only as far as each begins with it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from weakref import WeakKeyDictionary, WeakSet

try:
    import psycopg
    from psycopg.adapt import Dumper, Transformer
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import ExecStatus, Format, TransactionStatus
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.waiting import Ready, Wait
except ImportError as exc:
    raise ModuleNotFoundError(
        "The PostgreSQL store needs the package psycopg: pip install 'legato[postgres]'", name="psycopg"
    ) from exc

from ..addresses import shown
from ..check import digits
from ..errors import InvalidInput, StoreError, StoreLost
from ..fault import at_fork, let_go
from . import group
from . import postgres_sql as sql
from .postgres_sql import Array, Int8Array, Statement, TextArray

READERS = 4
"""Connections that read."""
CHANGES = 8
"""Transactions under way, besides the writer's: of what is built, adopted, packed."""
ANSWER_SECONDS = 12.0
"""After which a connection that does not answer is given up; the server gives up a statement after 10."""
ASK_AGAIN = 0.05
"""Seconds until a query is tried again that found no connection, at first; then twice as long each time."""
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
_BINARY, _TEXT, _FAILED, _SYNC = Format.BINARY, Format.TEXT, ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_SYNC
UNPREPARED = "26000", "0A000"
"""SQLSTATEs of a connection that has lost what was prepared, or has it as tables were: only another one helps."""
FAILURES = (psycopg.Error, OSError)
"""What is raised by whatever is done with a database."""

Connection = psycopg.AsyncConnection[Any]


class _Int8s(Dumper):
    format, oid = Format.BINARY, Int8Array.oid

    def dump(self, obj: Array) -> bytes:
        return obj.data


class _Texts(_Int8s):
    oid = TextArray.oid


class Link:
    """Connections to the database that a URL names.

    Args:
        url: see ``PostgresStore``.

    Attributes:
        place: which database it is, without a password.
        normal: commits do not wait for the disk.
        pooled: each transaction may be with another connection of the server's.
        listen: where the server itself is to be listened to; None: nowhere.
        era: the present one of the database, as the store knows; ``learn`` is called when it is another.
        away: says whether the database is known to have been away for a while.

    Raises:
        InvalidInput: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._conninfo, options = _parse(url)
        given = conninfo_to_dict(self._conninfo)
        self.place = (
            f"PostgreSQL {shown(str(given.get('dbname', '')))} at {given.get('host', '')}:{given.get('port', 5432)}"
        )
        self.schema = options.get("schema", "legato")
        self.normal = options.get("durability") == "normal"
        self.pooled = "pooler" in options
        listen = options.get("listen", "none" if self.pooled else "")
        self.listen = None if listen == "none" else _parse(listen)[0] if listen else self._conninfo
        self._prepared: WeakKeyDictionary[Connection, dict[bytes, bytes]] = WeakKeyDictionary()
        self._names = itertools.count(1)
        self._all: WeakSet[Connection] = WeakSet()
        self._forget: Callable[[], None] | None = None
        self.era = 0
        self.learn: Callable[[], Awaitable[None]]
        self.away: Callable[[], bool] = lambda: False
        self._readers: list[Connection] = []
        self._reading, self._changing = asyncio.Semaphore(READERS), asyncio.Semaphore(CHANGES)
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
            prepare_threshold=None,  # it would undo what ``talk`` prepares, too, after each ROLLBACK
        )
        self._forget = self._forget or at_fork(self._let_go)
        self._all.add(conn)
        conn.adapters.register_dumper(Int8Array, _Int8s)
        conn.adapters.register_dumper(TextArray, _Texts)
        await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        if not self.pooled:
            await self.execute(conn, *self.settings(local=False))
        return conn

    def settings(self, *, local: bool) -> Statement:
        """How long the server waits for what, and for the disk; ``local``: in this transaction."""
        return sql.SETTINGS, (local, local, local, local, self.normal, local)

    async def execute(
        self, conn: Connection, statement: str, params: Sequence[Any] = (), *, patient: bool = False
    ) -> psycopg.AsyncCursor[Any]:
        """Say a statement of ``postgres_sql``; ``patient``: however long it takes."""
        with nullcontext() if patient else self.answering(conn):
            return await conn.execute(sql.within(self.schema, statement), params or None, binary=True)

    async def talk(self, conn: Connection, statements: Sequence[Statement]) -> list[list[Any]]:
        """Say several statements at once, and wait once for what each of them gives.

        psycopg's own pipeline sends each by itself, and waits for the socket each time; that took a millisecond for a
        group. What is here stands on its documented layer below, ``psycopg.pq``.

        Raises:
            psycopg.Error, OSError: of the first statement that failed; none after it was executed.
        """
        pgconn, known = conn.pgconn, self._prepared.setdefault(conn, {})
        new: dict[bytes, bytes] = {}
        asked: list[bool] = []  # of each result: whether it is a statement's
        async with conn.lock:
            try:
                pgconn.enter_pipeline_mode()
                for statement, params in statements:
                    text = sql.numbered(self.schema, statement)
                    values, types, formats = _dumped(params)
                    if self.pooled or statement.isalpha():  # as BEGIN is
                        pgconn.send_query_params(text, values, types, formats, _BINARY)
                        asked.append(True)
                        continue
                    name = known.get(text) or new.get(text)
                    if name is None:
                        name = new[text] = b"legato_%d" % next(self._names)
                        pgconn.send_prepare(name, text, types)
                        asked.append(False)
                    pgconn.send_query_prepared(name, values, formats, _BINARY)
                    asked.append(True)
                pgconn.pipeline_sync()
                results = await conn.wait(_answers(pgconn))
                pgconn.exit_pipeline_mode()
            except BaseException:
                pgconn.finish()  # nobody knows what comes next on it
                raise
        for result in results:
            if result.status == _FAILED:
                error = psycopg.errors.error_from_result(result)
                if error.sqlstate in UNPREPARED:
                    pgconn.finish()
                raise error
        known |= new
        transformer = Transformer(conn)
        found: list[list[Any]] = []
        for result, wanted in zip(results, asked, strict=True):
            if wanted:
                transformer.set_pgresult(result)
                found.append(transformer.load_rows(0, result.ntuples, tuple) if result.ntuples else [])
        return found

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
            StoreError: it cannot be asked, and could not for ``PATIENCE``, or longer as far as is known.
        """
        task = asyncio.create_task(self._ask(statement, params))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        return await asyncio.shield(task)

    async def _ask(self, statement: str, params: Sequence[Any]) -> list[Any]:
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + group.PATIENCE, ASK_AGAIN
        while True:
            try:
                return await self._ask_once(statement, params)
            except StoreLost:
                if self.away() or loop.time() + pause > until:
                    raise
            await asyncio.sleep(pause)
            pause *= 2

    async def _ask_once(self, statement: str, params: Sequence[Any]) -> list[Any]:
        async with self._reading:
            while True:
                conn, used = None, bool(self._readers)
                try:
                    conn = self._readers.pop() if used else await self.connect()
                    with self.answering(conn):
                        ((era,),), rows = await self.talk(conn, [(sql.ERA, ()), (statement, params)])
                    self._readers.append(conn)
                    if era == self.era:
                        return rows
                    await self.learn()  # so that nothing of a new era is seen by who believes that it is the old one
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
        async with self._changing:
            conn: Connection | None = None
            try:
                conn = await self._ready()
                await self.execute(conn, sql.BEGIN)
                if self.pooled:
                    await self.execute(conn, *self.settings(local=True))
                yield conn
                await self.execute(conn, "COMMIT")
            except FAILURES as exc:
                raise self.error(exc) from exc
            finally:
                if conn is not None:
                    ended = conn.info.transaction_status == TransactionStatus.IDLE
                    if ended and len(self._readers) < READERS:
                        self._readers.append(conn)
                    else:
                        await conn.close()

    async def _ready(self) -> Connection:
        """A connection that answers: the database may have been away since the last was used."""
        while self._readers:
            conn = self._readers.pop()
            try:
                with self.answering(conn):
                    await conn.execute("SELECT 1")
                return conn
            except FAILURES:
                await conn.close()
        return await self.connect()

    def _let_go(self) -> None:
        """In a forked child: whatever it does with the connections, the server does not hear of it."""
        for conn in self._all:
            if not conn.closed:
                let_go(conn.fileno())

    async def close(self) -> None:
        """Wait for what is being asked, and let go of its connections."""
        self.away = lambda: True
        if self._forget is not None:
            self._forget()
            self._forget = None
        await asyncio.gather(*self._reads, return_exceptions=True)
        for conn in self._readers:
            await conn.close()
        self._readers = []


def _dumped(params: Sequence[Any]) -> tuple[list[bytes | None], list[int], list[int]]:
    """Parameters as they are sent; of what is no array the server knows the type."""
    values = [
        each.data
        if isinstance(each, Array)
        else (b"t" if each else b"f")
        if isinstance(each, bool)
        else None
        if each is None
        else str(each).encode()
        for each in params
    ]
    arrays = [isinstance(each, Array) for each in params]
    types = [each.oid if isinstance(each, Array) else 0 for each in params]
    return values, types, [_BINARY if array else _TEXT for array in arrays]


def _answers(pgconn: PGconn) -> Generator[Wait, Ready | int, list[PGresult]]:
    """What comes for all that has been sent in a pipeline, up to its end."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:  # else the server might wait for us to read
            pgconn.consume_input()
    found: list[PGresult] = []
    while True:
        nothing = 0
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:  # between two statements
                nothing += 1
                if nothing > 2:
                    raise psycopg.OperationalError("the connection has ended in the middle of its answers")
                continue
            nothing = 0
            if result.status == _SYNC:
                return found
            found.append(result)
        yield Wait.R
        pgconn.consume_input()


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
        ports = str(conninfo_to_dict(conninfo).get("port") or "").split(",")
    except psycopg.Error:  # which may quote the password
        ports = ["none"]
    if any(port and digits(port, most=5) is None for port in ports):  # a password without its host stands there, too
        raise InvalidInput(
            "A PostgreSQL store is 'postgresql://user:password@host:port/database?option=value', with a "
            "number for the port, and signs that have a meaning in URLs as %XX; "
            f"the options are libpq's, and {', '.join(OPTIONS)}."
        )
    return conninfo, ours

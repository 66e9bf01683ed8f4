"""The writer of a SQLite store: one thread that commits what waits, of all sessions, in one transaction.

It knows nothing of readers. The one rule that must hold: a group that could not be committed leaves no trace, on the
disk or in memory.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from ..errors import StoreError
from ..figures import StoreFigures
from .sqlite_errors import store_error
from .sqlite_file import STATEMENT_ROWS, WIDTH, apsw, tidy
from .sqlite_journal import Journal
from .sqlite_known import KNOWN_SESSIONS, Known, Look
from .sqlite_requests import Append, Inform, Transaction, WriteRequest
from .sqlite_troubles import BUSY_MS, IDLE_SECONDS, Troubles

logger = logging.getLogger("legato")

GROUP_REQUESTS = 1_000
"""Requests in one commit at most, so that the first of many does not wait for all."""
PACE_ABOVE = 4
"""With so many requests in a commit, several sessions are busy, and commits are paced."""
COMMIT_INTERVAL = 0.005
"""Seconds between the beginnings of paced commits. At 5,000 events/s of 100 runs it makes the groups five times as
large and takes a quarter off the CPU of the whole server, for 4 ms that no reader of an answer notices
(``benchmarks/chat.py``). A session that is alone is never held up, nor are those that all have come back before."""
BUSY_RETRY = 0.05
"""Seconds between two tries of a group that waits for a lock."""
TIDY_SECONDS = 0.02
"""Seconds between two steps that give back free pages,"""
TIDY_AGAIN_SECONDS = 1.0
"""and between two tries when somebody still reads what is old."""


class Writer:
    """The one thread that writes.

    Args:
        path: for error messages.
        connection: nobody else uses it.
        journal: as the file has it.
        clock: seconds since the epoch.
        deliver: called on this thread with each group of requests, once they are decided and durable, and with what
            the sessions look like that they were about.
        keep_lock: see ``FileWatch``.
    """

    def __init__(
        self,
        path: str,
        connection: apsw.Connection,
        journal: Journal,
        clock: Callable[[], float],
        deliver: Callable[[list[WriteRequest], dict[str, Look]], None],
        keep_lock: Callable[[], None],
    ) -> None:
        self._path = path
        self._troubles = Troubles(path, connection, keep_lock)
        self._held: list[WriteRequest] = []  # as long as there is patience
        self._tidy_at: float | None = None  # while something deleted may still be in the files
        self._connection = connection
        self._journal = journal
        self._clock = clock
        self._deliver = deliver
        self._queue: queue.SimpleQueue[list[WriteRequest] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[WriteRequest] = []  # to join the next group
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: set[str | None] = set()  # sessions of the last group, of which nothing has come since
        self._begun_at = 0.0  # when that group was begun
        self._silent: set[str | None] = set()  # sessions whose run has begun, and has stored nothing yet
        self._memory: Known | None = None
        self._failing: set[Callable[[], None]] = set()  # what has failed the last time, of what looks after the file
        self._thread = threading.Thread(target=self._run, name="legato-sqlite-writer", daemon=True)
        self.begun = 0
        self.figures = StoreFigures()

    def start(self, *, untidy: bool = False) -> None:
        """Begin to take requests. ``untidy``: something that was deleted may have been left in the files."""
        self._tidy_at = 0.0 if untidy else None
        self._connection.set_busy_timeout(BUSY_MS)
        self._thread.start()

    def submit(self, request: WriteRequest) -> None:
        """Hand over a request. On the event loop, as ``flush``, which waits there and not in the writer's thread: each
        time that one wakes takes the interpreter from the loop. A message waits for nobody else, nor does what its run
        says first: those are seldom, and somebody waits for each of them."""
        self._waiting.append(request)
        if self._begins(request):
            self._awaited.discard(request.session)
        elif self._awaited:
            self._awaited.discard(request.session)
            if self._timer is not None and self._awaited:
                return
            if self._awaited and (pause := self._begun_at + COMMIT_INTERVAL - time.monotonic()) > 0:
                self._timer = self._loop.call_later(pause, self.flush)  # meanwhile others join the group
                return
        self.flush()

    def _begins(self, request: WriteRequest) -> bool:
        """Whether it is a message whose run begins with it, or the first of that run."""
        if isinstance(request, Append) and request.take is not None:
            if len(self._silent) > KNOWN_SESSIONS:
                self._silent.clear()  # those whose message was refused, and that were left then
            self._silent.add(request.session)
            return True
        if self._silent and request.session in self._silent:
            self._silent.discard(request.session)
            return True
        return False

    def flush(self) -> None:
        """Let nothing wait for others."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._queue.put(waiting)

    def stop(self) -> None:
        """Finish all that was flushed so far and end the thread. Blocks."""
        self._queue.put(None)
        self._thread.join()

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now, see ``Troubles``."""
        return self._troubles.trouble

    def _run(self) -> None:
        ended = False
        while not ended:
            pause = BUSY_RETRY if self._held else IDLE_SECONDS
            self._look_after(self._troubles.look_at_disk)
            if self._tidy_at is not None and not self._held:
                pause = min(max(self._tidy_at - time.monotonic(), 0.0), pause)
                if not pause:
                    self._look_after(self._tidy)
            try:
                taken = self._queue.get(timeout=pause)
            except queue.Empty:
                if self._held:
                    self._do([])
                else:
                    self._look_after(self._troubles.look)
                continue
            self._begun_at = time.monotonic()
            requests: list[WriteRequest] = []
            while taken is not None:
                requests += taken
                if self._queue.empty():
                    break
                taken = self._queue.get()
            ended = taken is None
            self._awaited = {each.session for each in requests} if len(requests) >= PACE_ABOVE else set()
            for start in range(0, len(requests), GROUP_REQUESTS):
                self._do(requests[start : start + GROUP_REQUESTS])
        if self._held:
            self._troubles.give_up()
            self._do([])
        until = time.monotonic() + TIDY_AGAIN_SECONDS
        while self._tidy_at is not None and time.monotonic() < until:
            self._look_after(self._tidy)

    def _look_after(self, act: Callable[[], None]) -> None:
        """Do this beside what is asked. Whatever it raises does not end this thread, for which all who store wait."""
        try:
            act()
        except Exception as exc:
            level = logging.DEBUG if act in self._failing else logging.ERROR
            logger.log(level, "%s cannot be looked after: %s", self._path, exc)
            self._failing.add(act)
        else:
            self._failing.discard(act)

    def _do(self, requests: list[WriteRequest]) -> None:
        requests, self._held = self._held + requests if self._held else requests, []
        # Before the commit, so that whoever reads its effects from the disk can know that it is being delivered.
        self.begun += 1
        looks = self._try(requests)
        if looks is None:
            asking: list[WriteRequest] = [request for request in requests if isinstance(request, Inform)]
            if self._troubles.patient:
                self._held = [request for request in requests if not isinstance(request, Inform)]
                requests = asking
            looks = self._try(asking) if asking else {}
        self._deliver(requests, looks or {})

    def _try(self, requests: Sequence[WriteRequest]) -> dict[str, Look] | None:
        """Commit a group; None if it could not be, which each of its requests has been told."""
        cause: Exception | None = None
        try:
            if not all(isinstance(request, Inform) for request in requests):
                cause = self._troubles.blocked()
            if cause is None:
                began = time.monotonic()
                looks = self._commit(requests)
                self.figures.committed(len(requests), time.monotonic() - began)
                return looks
        except Exception as exc:  # whatever it is, this thread goes on for the other sessions
            self._undo()
            cause = exc
            self._troubles.caught(exc)
        self.figures.failed += 1
        for request in requests:
            request.error, request.outcome = store_error(cause, self._path), None
            request.error.__cause__ = cause
            if isinstance(request, Append):
                request.stored = []
        return None

    def _tidy(self) -> None:
        """A step on the way to files that hold nothing that was deleted. It waits for nobody."""
        self._tidy_at = time.monotonic() + TIDY_AGAIN_SECONDS
        if self._troubles.blocked() is not None:
            return
        self._connection.set_busy_timeout(0)
        try:
            self._tidy_at = None if tidy(self._connection) else time.monotonic() + TIDY_SECONDS
        except apsw.Error as exc:
            if not isinstance(exc, apsw.BusyError):
                logger.warning("what was deleted may still be in %s: %s", self._path, exc)
        finally:
            self._connection.set_busy_timeout(BUSY_MS)

    def _commit(self, requests: Sequence[WriteRequest]) -> dict[str, Look]:
        if self._memory is None:
            self._memory = Known(self._connection, self._journal)
        group = Transaction(self._memory, self._connection, self._clock(), self._path)
        group.plan(requests)
        filing = group.filing()
        self._write_all(group.rows() + filing.rows)
        self._journal.filed(filing)
        if group.deletes:
            self._tidy_at = time.monotonic() + TIDY_SECONDS
        return {name: known.look() for name, known in group.touched.items()}

    def _write_all(self, rows: list[object]) -> None:
        size = STATEMENT_ROWS * WIDTH
        if len(rows) <= size:
            if rows:
                self._write(rows)  # one statement is a transaction by itself
            return
        self._connection.execute("BEGIN IMMEDIATE")
        for start in range(0, len(rows), size):
            self._write(rows[start : start + size])
        self._connection.execute("COMMIT")

    def _write(self, rows: list[object]) -> None:
        count = len(rows) // WIDTH
        # Powers of two, so that there are ten statements in all, each prepared once.
        power = 1 << (count - 1).bit_length()
        rows += [None] * ((power - count) * WIDTH)
        self._connection.execute(_INSERTS[power], rows)

    def _undo(self) -> None:
        self._memory = None
        try:
            if not self._connection.get_autocommit():
                self._connection.execute("ROLLBACK")
        except apsw.Error:
            pass  # SQLite has rolled back by itself


_ROW = "(" + ",".join("?" * WIDTH) + ")"
_INSERTS = {
    1 << power: "INSERT INTO change VALUES " + ",".join([_ROW] * (1 << power))  # noqa: S608  # nothing from outside
    for power in range(STATEMENT_ROWS.bit_length())
}

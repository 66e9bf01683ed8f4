"""Deliberate breakages of the code, each as a change of one function's source, made in place and taken back."""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from legato import machine, recorder
from legato.attempt import RunAttempts
from legato.blobs import Blobs
from legato.dialect import mix
from legato.execution import Execution
from legato.log import Subscription
from legato.machine import OpenRun
from legato.outbox import Outbox
from legato.run import Runner
from legato.sessions import Sessions
from legato.store import sqlite_file
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.store.sqlite_writer import Writer


class Breakage(NamedTuple):
    """A change: ``old`` in the source of ``function`` becomes ``new``. It is looked for on ``store``, from the seed
    ``first`` on, and in ``calm`` if only what comes late tells it."""

    name: str
    function: Callable[..., Any]
    old: str
    new: str
    store: str = "memory"
    calm: bool = False
    first: int = 0


BREAKAGES = [
    Breakage(
        "no fence",
        machine.check_lease,
        "if current.epoch != lease.epoch or current.owner != lease.owner:",
        "if False:",
        first=4,
    ),
    Breakage(
        "bell cleared late",
        Subscription.wait,
        "self._bell.clear()\n        events = await self.look()",
        "events = await self.look()\n        self._bell.clear()",
        calm=True,
    ),
    Breakage("head not checked", machine.check_head, "if expected is not None and", "if False and"),
    Breakage("once not checked", MemoryStore._append, "if once is not None and once in log.once:", "if False:"),
    Breakage(
        "ended twice",
        machine.moved,
        "runs = {name: other for name, other in runs.items() if name != run}\n            ended.add(run)",
        "pass",
    ),
    Breakage("lease without end", OpenRun.held, " and self.expires_at > now", ""),
    Breakage("cursor off by one", mix.position, "return opening.cursor, True", "return opening.cursor + 1, True"),
    Breakage("read off by one", MemoryStore.peek, "max(after + 1 - log.first, 0)", "max(after - log.first, 0)"),
    Breakage("take without epoch", machine.leased, "epoch=current.epoch + 1", "epoch=current.epoch"),
    Breakage(
        "merged over a tool",
        recorder.merge,
        "merged: list[Draft] = []",
        "merged: list[Draft] = []\n    drafts = sorted(drafts, key=lambda draft: not draft.fact.delta)",
    ),
    Breakage("no ring", MemoryStore._append, "self.doorbell.ring(session, outside=lease is None)", "pass", calm=True),
    Breakage("lost answer stored twice", Outbox._append_once_more, "if event.fact == first:", "if False:", first=1),
    Breakage("lost lease renewed for ever", Runner._renew, "if self._doubtful:", "if False:", first=1),
    Breakage("cancel not heard", Execution._take, "self.stop(CANCELLED)", "pass", calm=True),
    Breakage(
        "resumed with a seam", RunAttempts._execution, 'resumed=going.agent.on_crash == "resume"', "resumed=False"
    ),
    Breakage(
        "leases not renewed",
        Runner._renew,
        "await self.store.renew(owner=self.owner, ttl=self._lease_ttl)",
        "pass",
        calm=True,
    ),
    Breakage(
        "acknowledged before the disk has it",
        sqlite_file.prepare,
        'connection.pragma("synchronous", durability)',
        'connection.pragma("synchronous", "off")',
        "sqlite",
    ),
    Breakage("tail not told", SQLiteStore._deliver, "put(session, stored)", "pass", "sqlite"),
    Breakage("deltas not filed", Writer._commit, "group.rows() + filing.rows", "group.rows()", "sqlite"),
    Breakage(
        "taken from who has it",
        machine.leased,
        "if current.held(now) and current.owner != owner:",
        "if False:",
        first=1,
    ),
    Breakage(
        "given back by who had it once",
        machine.released,
        "if current is None or current.epoch != lease.epoch:",
        "if current is None:",
        first=17,
    ),
    Breakage(
        "begun after it was cancelled",
        RunAttempts._ending_before,
        "if any(isinstance(event.fact, CancelRequested) for event in mine):",
        "if False:",
    ),
    Breakage("nobody goes on", RunAttempts._ending_before, 'agent.on_crash == "fail"', "True", first=2),
    Breakage(
        "lost, and nobody is told",
        Sessions.holds,
        "if not await holds(incarnation[:100], session, offset):",
        "if False:",
        "forgetful",
        first=9,
    ),
    Breakage("file not put", Blobs._kept, "places |= await self.put(session, missing)", "pass", first=2),
    Breakage(
        "files of the living swept",
        Blobs.sweep,
        "gone = bool(events) and isinstance(events[0].fact, SessionDeleted)",
        "gone = bool(events)",
        first=2,
    ),
    Breakage("files outlive their session", Blobs.sweep, "if gone or", "if False or", first=38),
]


@contextlib.contextmanager
def broken(breakage: Breakage) -> Iterator[None]:
    """Have it so, for everybody who has the function."""
    function: Any = breakage.function
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(breakage.old) == 1, f"{breakage.name}: its source is another now"
    changed: dict[str, Any] = {}
    exec(
        "from __future__ import annotations\n" + source.replace(breakage.old, breakage.new),
        function.__globals__,
        changed,
    )
    before = function.__code__
    function.__code__ = changed[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = before

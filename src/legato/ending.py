"""How runs end: as what, and with which drafts; also those that nobody drives any more."""

from __future__ import annotations

import logging
from typing import Literal

import msgspec

from .asks import expired
from .event import (
    Draft,
    Fact,
    PermissionRequested,
    PermissionResolved,
    RunCancelled,
    RunCompleted,
    RunFailed,
)
from .json import JsonObject
from .log import Log, Store
from .machine import OpenRun
from .part import Usage, to_builtins
from .transcript import Transcript, fold

logger = logging.getLogger("legato")


class Ending(msgspec.Struct, frozen=True):
    """How a run is to end when it does not end by itself.

    Attributes:
        kind: None: it is left open, and a later owner goes on with it.
        reason: of a completed run, its ``finish_reason``.
        code, message, detail: of a failed one.
    """

    kind: Literal["completed", "failed", "cancelled"] | None
    reason: str = "stop"
    code: str = ""
    message: str = ""
    detail: JsonObject | None = None


CANCELLED = Ending("cancelled")
LEFT_OPEN = Ending(None)
GONE = Ending(None)  # the session was deleted; nothing can be stored any more


def failed(code: str, message: str, **detail: object) -> Ending:
    """An ending as ``run.failed``."""
    return Ending("failed", code=code, message=message, detail=detail or None)


TOO_LONG = failed("too_large", "The answer is too long to be kept as one message; its pieces are in the log.")
INTERRUPTED = failed("interrupted", "The server stopped while the answer was being given. What came is kept.")


def terminal(ending: Ending, run: str, transcript: Transcript, usage: Usage | None = None) -> Draft:
    """The terminal event's draft: how it ended, and the whole message as far as it came."""
    said = transcript.message(run)
    used = None if usage is None else to_builtins(usage)
    fact: Fact
    if ending.kind == "completed":
        fact = RunCompleted(ending.reason, said, used)
    elif ending.kind == "failed":
        fact = RunFailed(ending.code, ending.message, said, used, ending.detail)
    else:
        fact = RunCancelled(said, used)
    return Draft(fact, run)


async def ended(store: Store, run: OpenRun, ending: Ending, *, whole: bool = True) -> list[Draft]:
    """How ``run`` ends that nobody drives: with a refusal of whatever it asked, and, if ``whole``, what it has said."""
    events = [event async for event in Log(store, run.session).all(run.offset - 1) if event.run == run.run]
    resolved = {event.fact.id for event in events if isinstance(event.fact, PermissionResolved)}
    asked = [event.fact.id for event in events if isinstance(event.fact, PermissionRequested)]
    try:
        said = fold(events) if whole else Transcript()
    except Exception:  # it ends all the same
        logger.exception("run %s: what it has said cannot be understood", run.run)
        said = Transcript()
    return [*(expired(id, run.run) for id in asked if id not in resolved), terminal(ending, run.run, said)]

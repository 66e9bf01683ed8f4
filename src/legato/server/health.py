"""Whether the server lives, and whether it takes messages: for what starts, stops and balances servers.

``/health/live`` asks for nothing but the event loop, so that no store's trouble has a process killed that could not
help it. ``/health/ready`` says everything that keeps new messages from being taken, and asks the store, too: one that
does not answer has told nobody of it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..errors import LegatoError, StoreError
from .operation import RETRY_AFTER, Absence, Operation
from .reply import Body
from .request import Request


class Alive(msgspec.Struct):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Reason(msgspec.Struct):
    """Why the server takes no new messages: ``code`` for programs, ``message`` for people."""

    code: str
    message: str


class Readiness(msgspec.Struct):
    """Whether new messages are taken, and if not, every reason why."""

    status: Literal["ready", "starting", "stopping", "unready"]
    reasons: list[Reason] = []


async def live(request: Request) -> Body:
    """The event loop goes on; nothing else is asked for."""
    return Body(200, Alive())


async def ready(request: Request) -> Body:
    """Whether the server takes new messages, for all that it knows."""
    reasons = []
    if request.sessions.draining:
        reasons.append(Reason("draining", "The server is shutting down."))
    try:
        await request.sessions.check_store()
    except StoreError as exc:
        reasons.append(Reason(exc.code, exc.told))
    except LegatoError as exc:
        reasons.append(Reason(exc.code, exc.message))
    if not reasons:
        return Body(200, Readiness("ready"))
    return _unready(Readiness("stopping" if request.sessions.draining else "unready", reasons))


def _unready(readiness: Readiness) -> Body:
    return Body(503, readiness, {"retry-after": RETRY_AFTER[503]})


def _without_life(absence: Absence) -> Body:
    if absence.starting:
        return _unready(Readiness("starting", [Reason("starting", absence.why.message)]))
    return _unready(Readiness("stopping", [Reason(absence.why.code, absence.why.message)]))


def operations() -> list[Operation]:
    """Both of them."""
    return [
        Operation("getLive", "GET", "/health/live", "system", "Does the process answer?", live, {200: Alive},
                  without_life=lambda absence: Body(200, Alive()), probe=True),
        Operation("getReadiness", "GET", "/health/ready", "system", "Does the server take messages, and if not, why?",
                  ready, {200: Readiness, 503: Readiness}, without_life=_without_life, probe=True),
    ]  # fmt: skip

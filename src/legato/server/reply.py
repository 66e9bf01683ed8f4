"""What a route gives: a *reply*, which is a body or a stream; and what an event is on a dialect's wire.

How a reply becomes HTTP, and what a ``LegatoError`` is in a dialect's words, is the adaptor's to know.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any

import msgspec

from ..dialect.fold import Encoder, Fold
from ..event import Event, Offset
from ..sessions import Located
from .crowd import Preparation


class Body(msgspec.Struct, frozen=True):
    """A reply that is one body.

    Attributes:
        body: what msgspec can encode; None for an empty one. Bytes are sent as they are; a field says what they are.
    """

    status: int
    body: Any = None
    headers: Mapping[str, str] = {}


class Follow(msgspec.Struct, frozen=True):
    """A reply that is a stream: the log of a session, from a place in it, as one reader sees it.

    Attributes:
        after: the offset after which it begins.
        name: of the dialect, for the inspector.
        first: what the reader is sent before anything of the log.
        exact: whether its cursor could be continued; None if it gave none and needs to know nothing.
        resets: the clients take a clean end of the connection for the end of the answer: a stream that ends earlier is
            cut off instead.
        preparation: what is to be done with events before they are encoded.
        share: what all readers of the session in this dialect have in common who are given the same bytes from the
            same place on, so that one read and one encoding serve them all; None: nobody is given the same.
        joins: behind this offset a delta that says what several said may stand for them, for a reader who is far
            behind; None: nowhere.
    """

    session: str
    after: Offset
    encoder: Encoder
    name: str
    first: bytes = b""
    exact: bool | None = None
    resets: bool = False
    preparation: Preparation | None = None
    share: Hashable = None
    joins: Offset | None = None


class Later(msgspec.Struct, frozen=True):
    """A reply that is one body of JSON, which takes as long as an answer does.

    Who waits longer than a heartbeat gets the head, and then a blank for each: JSON may begin with them, and no proxy
    takes the silence for a server that is gone. By then the status has been said.

    Attributes:
        body: gives it.
        told: what stands for a body whose status can no longer be said.
    """

    body: Coroutine[Any, Any, Body]
    told: Callable[[Body], Any]


Reply = Body | Follow | Later


class View(msgspec.Struct, frozen=True):
    """What an event is on a dialect's wire: by itself, or by what came before it in its run.

    Attributes:
        key: under which an event keeps its bytes (``Event.wire``).
        event: the bytes of an event of a session.
        fold: a new fold of a run.
        joins: to the fold, a delta that says what several said may stand for them.
        gone: what a reader is told when the session is deleted, where that depends on what it has been given: of a fold
            that is as far or further, everything before an offset, and so many frames of what is there.
    """

    key: str
    event: Callable[[Event, str], bytes] | None = None
    fold: Callable[[Located], Fold] | None = None
    joins: bool = False
    gone: Callable[[Fold, tuple[Offset, int]], bytes] | None = None


def come_back() -> int:
    """Milliseconds that a reader is to wait before it comes back: not all at once after a restart."""
    return random.randint(1000, 3000)  # noqa: S311

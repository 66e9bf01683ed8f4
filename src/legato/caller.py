"""Who asks. An open server has one caller for everybody, ``NOBODY``; an application that knows its users names them.

The verbs are what can be asked for: those of ``Sessions``, each under the name of what it takes to do it, and
``inspect``, which is to look at everything that the server does, whose it may be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

Verb = Literal[
    "index",
    "info",
    "history",
    "read",
    "create",
    "send",
    "cancel",
    "resolve",
    "fork",
    "rewind",
    "withdraw",
    "delete",
    "inspect",
]
"""What a caller may or may not do.

``index`` is to list sessions, ``info`` to see that one is there, ``history`` to see what was said in it, ``read`` to
follow it; ``create`` to begin one; ``send`` to send, retry and branch; ``resolve`` to answer what an agent asks;
``withdraw`` to delete one answer. Who may change something should be let ``info`` and ``read`` it, too: the answer to
such a request shows what has been stored.
"""


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and whose is what they create.

    Attributes:
        subject: a text that the application chose, for example its id of a user; "" for nobody in particular.
    """

    subject: str = ""


NOBODY = Caller()
"""The caller of an open server."""

May = Callable[[Caller, Verb, str | None], bool]
"""Decides what a caller may do, see ``may``."""


def may(caller: Caller, verb: Verb, owner: str | None) -> bool:
    """Whether ``caller`` may do something to what is ``owner``'s; an application can put its own rule in its place.

    Args:
        caller: who asks.
        verb: what they ask for.
        owner: the subject whose session it is, "" if it is nobody's in particular; None: the sessions of everybody, in
            a list or in the inspector.
    """
    return caller.subject == owner


def may_on_open_server(caller: Caller, verb: Verb, owner: str | None) -> bool:
    """The same where everybody is the same caller: there is nobody else to whom the inspector could be open."""
    return verb == "inspect" or may(caller, verb, owner)

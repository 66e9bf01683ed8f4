"""Who asks. An open server has one caller for everybody, ``NOBODY``; an application that knows its users names them."""

from __future__ import annotations

import msgspec


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and whose is what they create.

    Attributes:
        subject: a text that the application chose, for example its id of a user; "" for nobody in particular.
    """

    subject: str = ""


NOBODY = Caller()
"""The caller of an open server."""


def may(caller: Caller, verb: str, owner: str | None) -> bool:
    """Whether ``caller`` may do something to what is ``owner``'s; an application can put its own rule in its place.

    Args:
        caller: who asks.
        verb: the name of a method of ``Sessions``.
        owner: the subject whose session it is; None: the sessions of everybody, in a list.
    """
    return caller.subject == owner

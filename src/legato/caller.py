"""Who asks. An open server has one caller for everybody, ``NOBODY``; an application that knows its users names them.

The verbs are what can be asked for: those of ``Sessions``, each under the name of what it takes to do it, and
``inspect``, which is to look at everything that the server does, whose it may be.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Awaitable, Callable
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
    "edit",
    "withdraw",
    "delete",
    "inspect",
]
"""What a caller may or may not do.

``index`` is to list sessions, ``info`` to see that one is there, ``history`` to see what was said in it, ``read`` to
follow it; ``create`` to begin one; ``send`` to send, retry and branch; ``resolve`` to answer what an agent asks;
``withdraw`` to delete one answer; ``edit`` to change a session's metadata, and what was said in it. Who may change
something should be let ``info`` and ``read`` it, too: the answer to such a request shows what has been stored.
"""


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and whose is what they create.

    Attributes:
        subject: a text that the application chose, for example its id of a user; "" for nobody in particular.
        address: where a request of nobody in particular came from, so that places are shared fairly; it is not stored.
    """

    subject: str = ""
    address: str = ""

    @property
    def party(self) -> str:
        """Whose places a run takes, see ``places``: a subject's, or an address's."""
        if self.subject:
            return f"subject {self.subject}"
        return f"address {network(self.address)}" if self.address else ""


@functools.lru_cache(4096)
def network(address: str) -> str:
    """Whose an address is: of IPv6 the first half, as a household or a machine has all the rest."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or ipaddress.IPv6Address(int(parsed) >> 64 << 64))


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


Quota = Callable[[Caller, Verb, str], Awaitable[str | None]]
"""An application's own limit: who asks, what for (``create``, ``fork``, ``edit``: to add messages; ``send``: also to
retry and to branch), and in which session. It gives None, or why not, as text for users (429, ``quota_refused``); or
raises a ``LegatoError``. It is asked before anything is stored; one that fails lets nobody do anything."""

"""Who asks. An open server has one caller for everybody, ``NOBODY``; an application that knows its users names them.

The verbs are what can be asked for: those of ``Sessions``, each under the name of what it takes to do it, and
``inspect``, which is to look at everything that the server does, whose it may be. ``NEEDS`` says of each which scope a
caller needs for it who has not all of them, and what it is called where a rule is asked about a session.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple, Protocol

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


SCOPES = ("read", "send", "cancel", "answer", "admin")
"""What a caller's credential may be good for: following and listing; sending, and changing what is theirs; stopping
answers; answering what agents ask; looking at everything that the server does, and its keys."""


class Need(NamedTuple):
    """What a verb takes.

    Attributes:
        scopes: some of ``SCOPES``; what shows what it has stored takes ``read`` as well.
        action: what a rule of an application is asked for, see ``MayWithSession``.
    """

    scopes: tuple[str, ...]
    action: str


_READ, _SEND = ("read",), ("read", "send")
NEEDS: dict[Verb, Need] = {
    "index": Need(_READ, "read"),
    "info": Need(_READ, "read"),
    "history": Need(_READ, "read"),
    "read": Need(_READ, "read"),
    "create": Need(_SEND, "send"),
    "send": Need(_SEND, "send"),
    "fork": Need(_SEND, "read"),  # the copy is another session, and the caller's
    "rewind": Need(_SEND, "change"),
    "edit": Need(_SEND, "change"),
    "withdraw": Need(("send",), "change"),
    "delete": Need(("send",), "change"),
    "cancel": Need(("cancel",), "cancel"),
    "resolve": Need(("answer",), "answer"),
    "inspect": Need(("admin",), "admin"),
}
"""What each verb takes: the one table of it."""

ACTIONS: dict[str, Verb] = {"send": "send", "cancel": "cancel", "answer": "resolve", "change": "delete"}
"""What who may read a session may do besides or not, as rules call it, each with a verb that stands for it."""


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and whose is what they create.

    Attributes:
        subject: a text that the application chose, for example its id of a user; "" for nobody in particular.
        address: where a request of nobody in particular came from, so that places are shared fairly; it is not stored.
        scopes: some of ``SCOPES``; None: all but ``admin``.
        expires_at: when this sign-in ends, in seconds since the epoch: streams end then. None: not by itself.
        credential: by what they signed in, a name that may be told: its streams end when it is revoked.
    """

    subject: str = ""
    address: str = ""
    scopes: frozenset[str] | None = None
    expires_at: float | None = None
    credential: str = ""

    def has(self, scope: str) -> bool:
        """Whether what they signed in with is good for this."""
        return scope != "admin" if self.scopes is None else scope in self.scopes

    @property
    def party(self) -> str:
        """Whose places a run takes, see ``places``: a subject's, or an address's."""
        if self.subject:
            return f"subject {self.subject}"
        return f"address {network(self.address)}" if self.address else ""


class Revoked(Protocol):
    """Who is to know that a credential is good no more."""

    def __call__(self, credential: str, gone: bool = True) -> None:
        """``gone``: it is good no more; else it is good again."""
        ...


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
MayWithSession = Callable[..., bool]
"""The same of a session that is there: ``(caller, session, action)``, with the session's ``SessionInfo`` and one of
``read``, ``send``, ``cancel``, ``answer``, ``change`` (rewind, edit, delete). What is not about a session is not asked:
whoever has the scope begins sessions and lists their own, and ``admin`` is the inspector's."""


def may(caller: Caller, verb: Verb, owner: str | None) -> bool:
    """Whether ``caller`` may do something to what is ``owner``'s; an application can put its own rule in its place.

    Args:
        caller: who asks.
        verb: what they ask for.
        owner: the subject whose session it is, "" if it is nobody's in particular; None: the sessions of everybody, in
            a list or in the inspector.
    """
    if verb == "inspect" and caller.scopes is not None and "admin" in caller.scopes:
        return True
    return caller.subject == owner


def may_on_open_server(caller: Caller, verb: Verb, owner: str | None) -> bool:
    """The same where everybody is the same caller: there is nobody else to whom the inspector could be open."""
    return verb == "inspect" or may(caller, verb, owner)


Quota = Callable[[Caller, Verb, str], Awaitable[str | None]]
"""An application's own limit: who asks, what for (``create``, ``fork``, ``edit``: to add messages; ``send``: also to
retry and to branch), and in which session. It gives None, or why not, as text for users (429, ``quota_refused``); or
raises a ``LegatoError``. It is asked before anything is stored; one that fails lets nobody do anything."""

"""Lists of what several have: one list for who may see sessions of others, made of a list of each owner's.

A page is merged from pages of the store, of which each owner's goes on where it stood. The token of the next page has
the place of the last session that was given, and the token of each owner's page in which it lies; so whatever is
written to meanwhile is where the list of one owner would have it: on two pages, or on none.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from .caller import Caller
from .errors import CursorInvalid
from .log import MICRO, SessionInfo, SessionPage, Store

OWNERS = 100
"""Whose sessions are in one list at most, besides the caller's own."""
LOOKED = 2_000
"""Sessions that are looked at for one page, if a rule leaves out nearly all of them; the page is short then."""
TOKEN_CHARACTERS = 16_384

Shared = Callable[[Caller], Iterable[str] | Awaitable[Iterable[str]]]
"""Whose sessions are in a caller's lists besides their own, as far as ``may`` lets them ``read`` each: subjects, 100 at
most. Or an awaitable of such."""


class SharedToken(msgspec.Struct, array_like=True):
    """What leads to the next page.

    Attributes:
        at: when the last session that was given was written to, in microseconds since the epoch.
        ids: those of that moment that were given.
        places: by owner's digest, the store's token of their page; None: of the first. Who is missing has no more.
    """

    at: int
    ids: list[str]
    places: dict[str, str | None]


def owners_of(found: object) -> list[str]:
    """What an application's ``shared`` gave, each once.

    Raises:
        TypeError: it is not what it should be, which is no caller's fault.
    """
    subjects = list(dict.fromkeys(found)) if isinstance(found, Iterable) and not isinstance(found, str) else [None]
    if not all(isinstance(subject, str) for subject in subjects):
        raise TypeError(f"shared gives a list of subjects, got {type(found).__name__} {str(found)[:100]!r}.")
    if len(subjects) > OWNERS:
        raise TypeError(f"shared gives {OWNERS} subjects at most, got {len(subjects)}.")
    return [subject for subject in subjects if subject]  # what is nobody's in particular is nobody's to share


class _Owned:
    """The list of one owner, as far as it has been looked at."""

    def __init__(self, owner: str, place: str | None) -> None:
        self.owner = owner
        self.place = place  # of the page that is in hand
        self.next = place
        self.infos: deque[SessionInfo] = deque()
        self.over = False

    async def fill(self, store: Store, size: int, token: SharedToken | None) -> None:
        """Have a page in hand, unless there are no more."""
        while not self.infos and not self.over:
            page = await store.sessions(limit=size, after=self.next, owner=self.owner)
            self.place, self.next, self.over = self.next, page.next, page.next is None
            self.infos.extend(info for info in page.infos if token is None or not _was_given(info, token))

    @property
    def left(self) -> bool:
        return bool(self.infos) or not self.over


def _at(info: SessionInfo) -> int:
    return round(info.updated_at * MICRO)


def _was_given(info: SessionInfo, token: SharedToken) -> bool:
    at = _at(info)
    return at > token.at or (at == token.at and info.session in token.ids)


async def listed(
    store: Store, owners: Sequence[str], shows: Callable[[SessionInfo], bool], *, limit: int, after: str | None
) -> SessionPage:
    """A page of the sessions of these owners, those last written to first.

    Args:
        store: open.
        owners: each once.
        shows: whether one is in the list.
        limit: of them at most.
        after: ``next`` of the page before.

    Raises:
        CursorInvalid: ``after`` is none.
    """
    token = None if after is None else _read(after)
    names = {owner: _digest(owner) for owner in owners}
    lists = [
        _Owned(owner, None if token is None else token.places[name])
        for owner, name in names.items()
        if token is None or name in token.places
    ]
    size = max(2 * limit // max(len(lists), 1), 10)
    await asyncio.gather(*(each.fill(store, size, token) for each in lists))
    infos: list[SessionInfo] = []
    last = token or SharedToken(0, [], {})
    for _ in range(max(limit, LOOKED)):
        there = [each for each in lists if each.infos]
        if not there or len(infos) >= limit:
            break
        newest = max(there, key=lambda each: (_at(each.infos[0]), each.owner))
        info = newest.infos.popleft()
        if shows(info):
            infos.append(info)
        at = _at(info)
        last = SharedToken(at, [*(last.ids if at == last.at else ()), info.session], {})
        if not newest.infos:
            await newest.fill(store, size, token)
    places = {names[each.owner]: each.place if each.infos else each.next for each in lists if each.left}
    return SessionPage(infos, _written(SharedToken(last.at, last.ids, places)) if places else None)


def _digest(owner: str) -> str:
    """An owner's name in a token, which need not tell it."""
    return base64.urlsafe_b64encode(hashlib.sha256(owner.encode(errors="surrogatepass")).digest()[:9]).decode()


def _written(token: SharedToken) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def _read(text: str) -> SharedToken:
    try:
        if len(text) <= TOKEN_CHARACTERS:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            return msgspec.json.decode(raw, type=SharedToken)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        pass
    raise CursorInvalid(f"The next page is named by the page before, got {text[:60]!r}.")

"""API keys, kept in the application's own store: of each its hash, and what it is good for.

They are a log of their own, under an id that no dialect can name: what is added, and what is revoked. Every process
that serves from the store follows it, and ends the streams of a key that is revoked.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from starlette.requests import HTTPConnection

from ..caller import SCOPES, Caller
from ..errors import InvalidInput, NotFound, SessionExists, SessionNotFound, StoreError
from ..event import Draft, Event, Offset, SessionCreated, SessionUpdated
from ..log import RESERVED, Log, Store, Subscription
from .bearer import bearer

__all__ = ["APIKey", "APIKeys", "add_key", "read_keys", "revoke_key"]

logger = logging.getLogger("legato")

KEYS = ".legato-keys"
"""The id of the log."""
DEFAULT_SCOPES = ("read", "send", "cancel", "answer")
LOOK_EVERY = 0.4
"""Seconds after which it is looked for keys that were revoked, if no bell has rung."""
SUBJECT_CHARACTERS = 500
NAME_CHARACTERS = 200

_KEY = re.compile(r"lg_([a-z2-7]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


class APIKey(msgspec.Struct, frozen=True):
    """A key, as it is kept: the key itself is told once, when it is made.

    Attributes:
        id: by which it is named.
        subject: whose it is.
        name: what it is for, for people.
        hash: SHA-256 of its secret half, which has 256 random bits.
        scopes: some of ``caller.SCOPES``.
        created_at, expires_at: seconds since the epoch; None: not by itself.
    """

    id: str
    subject: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None

    @property
    def credential(self) -> str:
        """See ``Caller.credential``."""
        return f"key {self.id}"

    def caller(self) -> Caller:
        """Who asks with it."""
        return Caller(self.subject, "", frozenset(self.scopes), self.expires_at, self.credential)


def new_key(
    subject: str, *, name: str = "", scopes: Iterable[str] = DEFAULT_SCOPES, expires_at: float | None = None
) -> tuple[str, APIKey]:
    """A new key: what its owner is told, and what is kept.

    Raises:
        InvalidInput: no such scope; no subject, or too long a one; it would be over already.
    """
    wanted = tuple(dict.fromkeys(scopes))
    for scope in wanted:
        if scope not in SCOPES:
            raise InvalidInput(f"A scope is one of {', '.join(SCOPES)}, got {scope[:60]!r}.")
    if not wanted:
        raise InvalidInput(f"A key has scopes, of {', '.join(SCOPES)}.")
    if not 0 < len(subject) <= SUBJECT_CHARACTERS or not subject.isprintable():
        raise InvalidInput(f"A key's subject is 1 to {SUBJECT_CHARACTERS} printable characters, got {subject[:60]!r}.")
    if len(name) > NAME_CHARACTERS or not (name or "-").isprintable():
        raise InvalidInput(f"A key's name is up to {NAME_CHARACTERS} printable characters, got {name[:60]!r}.")
    now = time.time()
    if expires_at is not None and expires_at <= now:
        raise InvalidInput("A key cannot be made that has expired already.")
    id = "".join(secrets.choice(_LETTERS) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    return f"lg_{id}_{secret}", APIKey(id, subject, name, _hashed(secret), wanted, now, expires_at)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class _Ring:
    """The keys that are good, as a fold of their log."""

    def __init__(self) -> None:
        self.after: Offset = 0
        self.keys: dict[str, APIKey] = {}
        self.revoked: set[str] = set()

    def take(self, event: Event) -> APIKey | str | None:
        """Go on by one event; the key that it adds, or the id of the one that it revokes."""
        self.after = event.offset
        if not isinstance(event.fact, SessionUpdated):
            return None
        said: Mapping[str, Any] = event.fact.metadata
        if "add" in said:
            try:
                key = msgspec.convert(said["add"], APIKey)
            except msgspec.ValidationError:
                logger.exception("a key at offset %d cannot be read, and is none", event.offset)
                return None
            return key if self.add(key) else None
        revoked = said.get("revoke")
        return revoked if isinstance(revoked, str) and self.revoke(revoked) else None

    def add(self, key: APIKey) -> bool:
        """Have one more; False: it has been revoked."""
        if key.id not in self.revoked:
            self.keys[key.id] = key
        return key.id not in self.revoked

    def revoke(self, id: str) -> bool:
        """Have one less; False: there is none."""
        self.revoked.add(id)
        return self.keys.pop(id, None) is not None


async def read_keys(store: Store) -> list[APIKey]:
    """The keys that have not been revoked, oldest first."""
    ring = _Ring()
    async for event in Log(store, KEYS).all():
        ring.take(event)
    return list(ring.keys.values())


async def add_key(store: Store, key: APIKey) -> None:
    """Keep a new key."""
    await _append(store, {"add": msgspec.to_builtins(key)})


async def revoke_key(store: Store, id: str) -> APIKey:
    """Let a key be good for nothing from now on.

    Raises:
        NotFound: there is none of this id.
    """
    key = next((key for key in await read_keys(store) if key.id == id), None)
    if key is None:
        raise NotFound(f"There is no key {id[:60]!r}.")
    await _append(store, {"revoke": id})
    return key


async def _append(store: Store, said: dict[str, Any]) -> None:
    draft = Draft(SessionUpdated(said))
    while True:
        try:
            await store.append(KEYS, [draft])
        except SessionNotFound:
            with suppress(SessionExists):
                await store.append(KEYS, [Draft(SessionCreated(title="API keys", owner=RESERVED)), draft])
                return
        else:
            return


class APIKeys:
    """Sign-in by API keys of the application's store: ``Authorization: Bearer lg_...``. ``legato keys`` makes them."""

    def __init__(self) -> None:
        self._ring = _Ring()
        self._callers: dict[str, tuple[str, Caller]] = {}
        self._store: Store | None = None
        self._revoked: Callable[[str], None] = lambda credential: None
        self._following: asyncio.Task[None] | None = None

    @property
    def keys(self) -> list[APIKey]:
        """Those that are good, as far as this process knows."""
        return list(self._ring.keys.values())

    async def open(self, store: Store, revoked: Callable[[str], None]) -> None:
        """Read the keys, and follow what becomes of them.

        Args:
            store: of the application.
            revoked: called with the credential of each key that is revoked.
        """
        self._store, self._revoked = store, revoked
        await self._read(store)
        self._following = asyncio.create_task(self._follow(store), name="legato-keys")
        store.doorbell.hang_forget(self._forget_all)

    async def close(self) -> None:
        """Follow no more. Idempotent."""
        store, self._store = self._store, None
        if store is not None:
            store.doorbell.take_forget(self._forget_all)
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            await asyncio.wait([following])

    def __call__(self, request: HTTPConnection) -> Caller | None:
        """Who asks; None if it is not with a key that is good."""
        match = _KEY.fullmatch(bearer(request) or "")
        if match is None:
            return None
        hash, caller = self._callers.get(match[1], ("", None))
        # Compared in any case: how long it takes does not say whether there is such a key.
        if not secrets.compare_digest(_hashed(match[2]), hash.rjust(64)):
            return None
        if caller is not None and caller.expires_at is not None and caller.expires_at <= time.time():
            return None
        return caller

    async def add(
        self, subject: str, *, name: str = "", scopes: Iterable[str] = DEFAULT_SCOPES, expires_at: float | None = None
    ) -> tuple[str, APIKey]:
        """Make a key, which is good here when this returns, and on other nodes within a second.

        Raises:
            InvalidInput: see ``new_key``. StoreError: it is not kept.
        """
        token, key = new_key(subject, name=name, scopes=scopes, expires_at=expires_at)
        await add_key(self._opened(), key)
        self._ring.add(key)
        self._callers[key.id] = (key.hash, key.caller())
        return token, key

    async def revoke(self, id: str) -> APIKey:
        """Let a key be good for nothing: here when this returns, and on other nodes within a second.

        Raises:
            NotFound: there is none of this id. StoreError: it may still be good.
        """
        key = await revoke_key(self._opened(), id)
        self._ring.revoke(id)
        self._forget(id)
        return key

    def _opened(self) -> Store:
        if self._store is None:
            raise InvalidInput("Keys are made and revoked while the application that they are for is running.")
        return self._store

    async def _read(self, store: Store) -> None:
        """Begin anew with what the log is now."""
        ring = _Ring()
        async for event in Log(store, KEYS).all():
            ring.take(event)
        gone = [id for id in self._callers if id not in ring.keys]
        self._ring = ring
        self._callers = {id: (key.hash, key.caller()) for id, key in ring.keys.items()}
        for id in gone:
            self._revoked(f"key {id}")

    def _forget_all(self, lost: bool) -> None:
        """The store is not what it was: its log of keys may have lost its end."""
        if lost and self._following is not None and self._store is not None:
            self._following.cancel()
            self._following = asyncio.create_task(self._follow(self._store, anew=True), name="legato-keys")

    def _take(self, event: Event) -> None:
        taken = self._ring.take(event)
        if isinstance(taken, APIKey):
            self._callers[taken.id] = (taken.hash, taken.caller())
        elif taken is not None:
            self._forget(taken)

    def _forget(self, id: str) -> None:
        self._callers.pop(id, None)
        self._revoked(f"key {id}")

    async def _follow(self, store: Store, *, anew: bool = False) -> None:
        failing = False
        with Subscription(store, KEYS, self._ring.after, heartbeat=LOOK_EVERY) as subscription:
            while True:
                try:
                    if anew:
                        await self._read(store)
                        subscription.after, anew = self._ring.after, False
                    events = await subscription.next()
                    failing = False
                except StoreError as exc:
                    if not failing:
                        logger.error("keys that are revoked are not seen, for the store cannot be read: %s", exc)
                    failing = True
                    await asyncio.sleep(LOOK_EVERY)
                    continue
                for event in events:
                    self._take(event)

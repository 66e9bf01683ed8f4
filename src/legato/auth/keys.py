"""Sign-in by API keys, which are kept in the application's own store, see ``credentials``."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence

from starlette.requests import HTTPConnection

from ..caller import Caller, Revoked
from ..credentials import (
    DEFAULT_SCOPES,
    KEYS,
    APIKey,
    add_key,
    changes,
    hashed,
    look_up,
    new_key,
    read_keys,
    revoke_key,
)
from ..errors import InvalidInput, StoreError
from ..event import Event, Offset
from ..log import Log, Store, Subscription
from .bearer import bearer, noted

__all__ = ["APIKey", "APIKeys", "add_key", "new_key", "read_keys", "revoke_key"]

logger = logging.getLogger("legato")

LOOK_EVERY = 0.4
"""Seconds after which it is looked for keys that were revoked, if no bell has rung."""

_KEY = re.compile(r"lg_([a-z2-7]{12})_([A-Za-z0-9_-]{43})", re.ASCII)


class APIKeys:
    """Sign-in by API keys of the application's store: ``Authorization: Bearer lg_...``. ``legato keys`` makes them."""

    def __init__(self) -> None:
        self._after: Offset = 0
        self._keys: dict[str, tuple[APIKey, Caller]] = {}
        self._good: dict[str, bool] = {}
        self._store: Store | None = None
        self._revoked: Revoked = lambda credential, gone=True: None
        self._following: asyncio.Task[None] | None = None

    @property
    def keys(self) -> list[APIKey]:
        """Those that are good, as far as this process knows."""
        return [key for key, _ in self._keys.values()]

    async def open(self, store: Store, revoked: Revoked) -> None:
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
        return None if match is None else noted(self, self._known_by(match))

    def _known_by(self, match: re.Match[str]) -> Caller | None:
        key, caller = self._keys.get(match[1], (None, None))
        # Compared in any case: how long it takes does not say whether there is such a key.
        if not secrets.compare_digest(hashed(match[2]), ("" if key is None else key.hash).rjust(64)):
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
        self._have(key)
        return token, key

    async def revoke(self, id: str) -> APIKey:
        """Let a key be good for nothing: here when this returns, and on other nodes within a second.

        Raises:
            NotFound: there is none of this id. StoreError: it may still be good.
        """
        key = await revoke_key(self._opened(), id)
        self._forget(id)
        return key

    def _opened(self) -> Store:
        if self._store is None:
            raise InvalidInput("Keys are made and revoked while the application that they are for is running.")
        return self._store

    async def _read(self, store: Store) -> None:
        """Begin anew with what the log is now."""
        good: dict[str, bool] = {}
        after: Offset = 0
        async for event in Log(store, KEYS).all():
            changes([event], good)
            after = event.offset
        found = await look_up(store, [id for id, is_good in good.items() if is_good])
        before, self._keys = self._keys, {}
        self._good, self._after = good, after
        for key in found:
            self._have(key)
        for id in before.keys() - self._keys.keys():
            self._revoked(f"key {id}")

    async def _take(self, store: Store, events: Sequence[Event]) -> None:
        """Go on with the log."""
        ids = changes(events, self._good)
        for id in ids:
            if not self._good[id]:
                self._forget(id)
        for key in await look_up(store, [id for id in ids if self._good[id] and id not in self._keys]):
            self._have(key)

    def _have(self, key: APIKey | None) -> None:
        if key is not None and self._good.get(key.id, True):  # it may have been revoked while it was looked up
            self._keys[key.id] = (key, key.caller())

    def _forget(self, id: str) -> None:
        self._good[id] = False
        if self._keys.pop(id, None) is not None:
            self._revoked(f"key {id}")

    def _forget_all(self, lost: bool) -> None:
        """The store is not what it was: its log of keys may have lost its end."""
        if lost and self._following is not None and self._store is not None:
            self._following.cancel()
            self._following = asyncio.create_task(self._follow(self._store, anew=True), name="legato-keys")

    async def _follow(self, store: Store, *, anew: bool = False) -> None:
        failing = False
        with Subscription(store, KEYS, self._after, heartbeat=LOOK_EVERY) as subscription:
            while True:
                try:
                    if anew:
                        await self._read(store)
                        subscription.after, anew = self._after, False
                    await self._take(store, await subscription.next())
                    failing = False
                except StoreError as exc:
                    anew = True
                    if not failing:
                        logger.error("keys that are revoked are not seen, for the store cannot be read: %s", exc)
                    failing = True
                    await asyncio.sleep(LOOK_EVERY)

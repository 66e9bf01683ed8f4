"""What the store keeps of who may come in: API keys, of each its hash and what it is good for; and tickets.

Which keys there are stands in a log, as ids that are added and revoked, which every process that serves from the store
follows. Each key is a session of Legato's own, found by whose it is: so what is revoked, or erased with its owner,
leaves an id that was drawn, and nothing of anybody.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec

from .caller import SCOPES, Caller
from .errors import InvalidInput, NotFound, SessionNotFound, StoreCorrupt
from .event import Draft, Event, SessionCreated, SessionDeleted, SessionUpdated
from .log import RESERVED, Log, SessionInfo, Store, append_or_begin
from .spending import OWN, holder, own_of

logger = logging.getLogger("legato")

KEYS = ".legato-keys"
"""The id of the log."""
TICKETS = ".legato-tickets-"
"""How the ids of logs of tickets begin."""
DEFAULT_SCOPES = ("read", "send", "cancel", "answer")
SUBJECT_CHARACTERS = 500
NAME_CHARACTERS = 200
PAGE = 100

_ID = re.compile(r"[a-z2-7]{12}", re.ASCII)
_SECRET = re.compile(r"(lg_[a-z2-7]{12}_|eyJ[\w-]+\.eyJ[\w-]+\.)[\w-]{8,}", re.ASCII)
"""Of API keys, and of JSON Web Tokens, whose third part makes them good."""
ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


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
    if is_reserved(subject):
        raise InvalidInput(f"{subject[:60]!r} is nobody's name: Legato has what is its own under it.")
    if len(name) > NAME_CHARACTERS or not (name or "-").isprintable():
        raise InvalidInput(f"A key's name is up to {NAME_CHARACTERS} printable characters, got {name[:60]!r}.")
    now = time.time()
    if expires_at is not None and expires_at <= now:
        raise InvalidInput("A key cannot be made that has expired already.")
    id = "".join(secrets.choice(ID_LETTERS) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    return f"lg_{id}_{secret}", APIKey(id, subject, name, hashed(secret), wanted, now, expires_at)


def hashed(secret: str) -> str:
    """What is kept in the place of a secret of 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def without_keys(text: str) -> str:
    """A text, such as an address, without what makes keys and tokens good that stand in it."""
    return _SECRET.sub(r"\1...", text)


def key_holder(subject: str) -> str:
    """Whose an owner's keys are in the store, see ``spending.holder``."""
    return f"{OWN}key {subject}"


def is_reserved(subject: str) -> bool:
    """Whether Legato finds what is its own under a name: nobody can be called so."""
    return subject.startswith(OWN) and (subject == RESERVED or subject.startswith((holder(""), key_holder(""))))


def key_session(id: str) -> str:
    """The id of the session that is a key."""
    return f"{OWN}legato-key-{id}"


async def add_key(store: Store, key: APIKey) -> None:
    """Keep a new key.

    Raises:
        StoreCorrupt: the log of keys has been deleted, and is no more. Nothing was kept.
    """
    said = SessionCreated(title="API key", owner=key_holder(key.subject), metadata={"key": msgspec.to_builtins(key)})
    await store.append(key_session(key.id), [Draft(said)])
    try:
        begin = SessionCreated(title="API keys", owner=RESERVED)
        await append_or_begin(store, KEYS, begin, [Draft(SessionUpdated({"add": key.id}))])
    except SessionNotFound:
        await store.append(key_session(key.id), [Draft(SessionDeleted())])
        raise StoreCorrupt(
            f"The log of API keys ({KEYS}) has been deleted from this store, which can keep none any more."
        ) from None


async def revoke_key(store: Store, id: str) -> APIKey:
    """Let a key be good for nothing from now on, and keep nothing of it but its id.

    Raises:
        NotFound: there is none of this id.
    """
    found = (await look_up(store, [id]))[0] if _ID.fullmatch(id) else None
    if found is None:
        raise NotFound(f"There is no key {without_keys(id)[:60]!r}.")
    await _revoke(store, id)
    return found


async def _revoke(store: Store, id: str) -> None:
    # In this order: one that is cut off between the two is revoked, and is let go of by who asks again.
    with suppress(SessionNotFound):  # no key was ever whole
        await store.append(KEYS, [Draft(SessionUpdated({"revoke": id}))])
    with suppress(SessionNotFound):  # another was first
        await store.append(key_session(id), [Draft(SessionDeleted())])


async def look_up(store: Store, ids: Sequence[str]) -> list[APIKey | None]:
    """The keys of these ids, each None if there is none."""
    found: list[APIKey | None] = []
    for start in range(0, len(ids), PAGE):
        found += await asyncio.gather(*(_look_up(store, id) for id in ids[start : start + PAGE]))
    return found


async def _look_up(store: Store, id: str) -> APIKey | None:
    try:
        info = await store.info(key_session(id))
    except SessionNotFound:
        return None
    return _key(info)


def _key(info: SessionInfo) -> APIKey | None:
    try:
        return msgspec.convert((info.created.metadata or {}).get("key"), APIKey)
    except msgspec.ValidationError:
        logger.exception("the key of session %s cannot be read, and is none", info.session)
        return None


async def read_keys(store: Store) -> list[APIKey]:
    """The keys that have not been revoked, oldest first."""
    good: dict[str, bool] = {}
    async for event in Log(store, KEYS).all():
        changes([event], good)
    return [key for key in await look_up(store, [id for id in good if good[id]]) if key is not None]


def changes(events: Iterable[Event], good: dict[str, bool]) -> list[str]:
    """Go on by some events of the log with which keys are good, by their ids; one that is not never is again.

    Returns:
        The ids of which something was said.
    """
    ids: list[str] = []
    for event in events:
        said = event.fact.metadata if isinstance(event.fact, SessionUpdated) else {}
        for name, is_good in (("add", True), ("revoke", False)):
            if isinstance(id := said.get(name), str):
                good[id] = is_good and good.get(id, True)
                ids.append(id)
    return ids


async def erase_credentials(store: Store, subject: str) -> int:
    """Revoke all keys of an owner, and let go of all tickets: some may be theirs, and none is good for long.

    Returns:
        How many keys there were.
    """
    keys = 0
    async for info in own_of(store, key_holder(subject), key_session("")):
        await _revoke(store, info.session.removeprefix(key_session("")))
        keys += 1
    async for info in own_of(store, RESERVED, TICKETS):
        with suppress(SessionNotFound):
            await store.append(info.session, [Draft(SessionDeleted())])
    return keys

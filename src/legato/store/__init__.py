"""Stores: where logs live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from ..addresses import shown as shown
from ..errors import InvalidInput
from ..log import Store


def open_store(url: str) -> Store:
    """The store that ``url`` names, not yet open.

    ``"memory:"``, ``"sqlite:///chat.db"`` (in the working folder), ``"sqlite:////var/lib/chat.db"``; SQLite takes
    ``"?durability=full"`` (the default) or ``"normal"``. ``"postgresql://user:password@host/database"``, see
    ``PostgresStore`` for its options. ``"redis://host:6379/0"``, ``"valkey://..."``, ``"redis+cluster://..."``,
    ``"redis+sentinel://.../name"``, and with TLS ``"rediss://..."``, see ``RedisServer``.

    Raises:
        InvalidInput: no store has a URL like this.
        ModuleNotFoundError: the store needs a package that is not installed.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in SCHEMES:
        raise InvalidInput(
            "A store is 'memory:', 'sqlite:///relative.db', 'sqlite:////absolute.db', "
            f"'postgresql://user@host/database' or 'redis://host:6379/0', got {shown(url)[:200]!r}."
        )
    return SCHEMES[scheme](url)


def _memory(url: str) -> Store:
    from .memory import MemoryStore

    if url.lower() != "memory:":
        raise InvalidInput(f"The memory store is 'memory:' and nothing more, got {shown(url)[:200]!r}.")
    return MemoryStore()


def _sqlite(url: str) -> Store:
    from .sqlite import SQLiteStore

    file = file_of(url)
    if file is None or "\0" in str(file):
        raise InvalidInput(
            "A SQLite store is 'sqlite:///relative.db' or 'sqlite:////absolute.db' (three or four slashes), got "
            f"{shown(url)[:200]!r}."
        )
    options = dict(parse_qsl(url.partition("?")[2], keep_blank_values=True))
    durability = options.pop("durability", "full")
    if options:
        raise InvalidInput(f"A SQLite store has the option 'durability' only, got {', '.join(map(repr, options))}.")
    return SQLiteStore(file, durability=durability)


def _postgres(url: str) -> Store:
    from .postgres import PostgresStore

    return PostgresStore(url)


def _redis(url: str) -> Store:
    from .redis import RedisStore

    return RedisStore(url)


def file_of(url: str) -> Path | None:
    """The file in which the store of a URL is; None if it is in none, or is no store's."""
    scheme, _, path = url.partition("?")[0].partition(":///")
    return Path(unquote(path)) if scheme.lower() == "sqlite" and path else None


def lasts(url: str) -> bool:
    """Whether what is in the store of a URL is there when its process has ended."""
    return url.partition(":")[0].lower() != "memory"


SCHEMES: dict[str, Callable[[str], Store]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "postgresql": _postgres,
    "postgres": _postgres,
    **{
        f"{name}{tls}{way}": _redis
        for name in ("redis", "valkey")
        for tls in ("", "s")
        for way in ("", "+cluster", "+sentinel")
    },
}
"""The stores, by the scheme of their URLs."""

"""What errors of a Redis or Valkey server mean: whether something may have been done, what it is, and what to do."""

from __future__ import annotations

import asyncio
import ssl

from redis import exceptions

from ..errors import StoreError, StoreFull, StoreLost

REFUSED = (
    exceptions.BusyLoadingError,
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.MaxConnectionsError,
)
"""Errors of connections after which it is known that nothing was done."""


def is_lost(exc: object) -> bool:
    """Whether it is not known if the command was done: no answer came."""
    lost = (exceptions.ConnectionError, exceptions.TimeoutError, OSError, asyncio.IncompleteReadError)
    return isinstance(exc, lost) and not isinstance(exc, REFUSED)


def is_unknown(exc: object) -> bool:
    """Whether the server did not know the script, and so did nothing."""
    return isinstance(exc, exceptions.NoScriptError)


def store_error(exc: BaseException, shown: str) -> StoreError:
    """What to raise for an error of the server, or of the way to it: what it is, and what to do."""
    if isinstance(exc, StoreError):
        return type(exc)(exc.message, **exc.detail)
    error, text = _meaning(exc)
    said = str(exc)[:300]
    if text == _OTHER:  # the server may quote what it was told: no more of it than its code
        code = said.partition(" ")[0]
        said = code if code.isascii() and code.isalpha() and code.isupper() else ""
    return error(f"{text}: {shown} ({type(exc).__name__}{said and ': '}{said}).", url=shown)


_OTHER = "The server could not do it"


def _meaning(exc: BaseException) -> tuple[type[StoreError], str]:
    word = str(exc).partition(" ")[0]
    if isinstance(exc, exceptions.OutOfMemoryError) or word == "OOM":
        return StoreFull, "The server's memory is full (maxmemory); what was acknowledged is safe. Give it more"
    if isinstance(exc, exceptions.AuthenticationError) or word in ("NOAUTH", "WRONGPASS"):
        return StoreLost, "The server does not take this user or password"
    if isinstance(exc, exceptions.NoPermissionError | exceptions.AuthorizationError) or word == "NOPERM":
        return StoreError, "The server does not let this user do what the store needs (docs/deploy.md has the list)"
    if isinstance(exc, exceptions.ReadOnlyError):
        return StoreLost, "The server is a replica now and takes nothing. Lead the address to the primary"
    if isinstance(exc, exceptions.BusyLoadingError):
        return StoreLost, "The server is still reading its data"
    if word == "MISCONF":
        return StoreLost, "The server cannot write to its disk, and takes nothing until it can"
    moving = exceptions.ClusterDownError, exceptions.AskError, exceptions.TryAgainError
    if isinstance(exc, moving) or word in ("NOREPLICAS", "BUSY"):
        return StoreLost, "The server takes nothing for now"
    if isinstance(exc, ssl.SSLError):
        return StoreError, "No TLS with this server; its certificate has to be known (?ca=FILE)"
    if is_lost(exc) or isinstance(exc, exceptions.RedisClusterException | exceptions.MaxConnectionsError):
        return StoreLost, "The server cannot be reached, and nothing is stored until it can"
    return StoreError, _OTHER

"""What requests stand on where tasks run; ``threads`` has the same where threads do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from importlib import import_module

from .packages import httpx2
from .settings import EXCHANGE, limits, naming_the_proxy

__all__ = ["chunks", "load", "new_http_client"]


def new_http_client() -> httpx2.AsyncClient:
    """A client for many long streams.

    Its transport is ours, unless the environment names a proxy, or httptools is not installed: then it is httpx2's.

    Raises:
        InvalidInput: the environment names a proxy that cannot be used.
    """
    from urllib.request import getproxies  # loads what no client needs otherwise

    if not {"http", "https", "all"} & getproxies().keys():
        with suppress(ImportError):
            from .transport import Transport

            return httpx2.AsyncClient(transport=Transport())
    with naming_the_proxy():
        return httpx2.AsyncClient(limits=limits())


def load() -> None:
    """Load what a client stands on now, instead of at the first one."""
    for name in ("httpx2", "stamina", f"{__package__}.transport"):
        with suppress(ImportError):
            import_module(name)


def chunks(response: httpx2.Response) -> AsyncIterator[bytes]:
    """A response's body as it comes, decoded. Where there is nothing to decode, httpx2's layers are left out."""
    exchange = response.extensions.get(EXCHANGE)
    if exchange is None or "content-encoding" in response.headers:
        return response.aiter_bytes()
    return aiter(exchange)

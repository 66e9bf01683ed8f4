"""What requests stand on where threads run; ``tasks`` has the same where tasks do."""

from __future__ import annotations

from collections.abc import Iterator

from .packages import httpx2
from .settings import limits, naming_the_proxy

__all__ = ["chunks", "new_http_client"]


def new_http_client() -> httpx2.Client:
    """A client for many long streams.

    Raises:
        InvalidInput: the environment names a proxy that cannot be used.
    """
    with naming_the_proxy():
        return httpx2.Client(limits=limits())


def chunks(response: httpx2.Response) -> Iterator[bytes]:
    """A response's body as it comes, decoded."""
    return response.iter_bytes()

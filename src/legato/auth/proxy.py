"""Sign-in by a proxy, which says in a header who asks."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.requests import HTTPConnection

from ..caller import Caller
from ..errors import InvalidInput
from ..server.adaptor import PEER

__all__ = ["ProxyHeader"]


class ProxyHeader:
    """Believes a header, if the request comes from a proxy that is named here; else it is as if there were none.

    Who asks is told by the connection's own address. Under another server than ``legato serve``, that one must not put
    what ``X-Forwarded-For`` says in its place (uvicorn: ``--no-proxy-headers``).

    Args:
        header: which the proxy sets on each request, taking away what came under that name.
        trusted: addresses or networks of the proxy: ``"10.0.0.5"``, ``"10.0.0.0/8"``.

    Raises:
        InvalidInput: nobody is named, or not by an address; or no name of a header.
    """

    def __init__(self, header: str, *, trusted: str | Sequence[str]) -> None:
        given = (trusted,) if isinstance(trusted, str) else tuple(trusted)
        if not given:
            raise InvalidInput("trusted names the proxy's addresses, such as '10.0.0.5' or '10.0.0.0/8'; got none.")
        if not header.isascii() or not header.replace("-", "").isalnum():
            raise InvalidInput(f"header is a name such as X-Forwarded-User, got {header[:60]!r}.")
        try:
            self._trusted = [ipaddress.ip_network(each, strict=False) for each in given]
        except ValueError as exc:
            raise InvalidInput(f"trusted names addresses or networks: {exc}.") from None
        self._header = header.lower()

    def __call__(self, request: HTTPConnection) -> Caller | None:
        """Who asks, as the proxy says; None if it says nothing, or twice, or is not the proxy."""
        values = request.headers.getlist(self._header)
        if len(values) != 1 or not values[0].strip() or not self._is_trusted(_peer(request)):
            return None
        return Caller(_text(values[0].strip()))

    def _is_trusted(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._trusted)


def _text(value: str) -> str:
    """A name as the proxy has it: nearly all write UTF-8, and Starlette reads ISO 8859-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _peer(request: HTTPConnection) -> str:
    extensions = request.scope.get("extensions") or {}
    peer: str | None = extensions.get(PEER)
    if peer is None:
        peer = request.client.host if request.client is not None else ""
    return peer

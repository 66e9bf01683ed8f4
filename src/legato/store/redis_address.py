"""The address of a Redis store, as a URL: which servers it means, how they are reached, and what is wanted of them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

from ..addresses import shown
from ..errors import InvalidInput

SCHEMES = {
    f"{name}{tls}{way}": (bool(tls), way[1:])
    for name in ("redis", "valkey")
    for tls in ("", "s")
    for way in ("", "+cluster", "+sentinel")
}
"""Whether the scheme of a URL stands for TLS; and for one server (""), a cluster, or sentinels that know the server."""
OPTIONS = {
    "durability": "always|everysec|none",
    "replicas": "0 to 9",
    "prefix": "letters, digits, '_' and '-'",
    "reach": "NODE:PORT=HOST:PORT, and more with commas",
    "ca": "a file",
    "cert": "a file",
    "key": "a file",
}
FILES = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
"""Options that are for TLS, and what redis-py calls them."""


class RedisAddress:
    """What a URL says.

    Args:
        url: ``redis://[user[:password]@]host[:port][/database][?option=value&...]``, see ``SCHEMES`` and ``OPTIONS``.
            Of a cluster, and of sentinels, several hosts may be given, with commas; ``/name`` is the sentinels' then.

    Attributes:
        shown: the URL, without what is nobody's business.
        way: "", "cluster" or "sentinel".
        tls, files: whether there is TLS, and the files for it, as redis-py calls them.
        hosts: names or addresses, with their ports.
        name: the number of a database, or the sentinels' name of a server.
        user, password: of who asks.
        durability, replicas, prefix: the options; "" and 0 where they say nothing.
        reach: by the address that nodes of a cluster give for theirs, or that the server's certificate has, where that
            is reached from here.

    Raises:
        InvalidInput: no such URL, or no such option.
    """

    def __init__(self, url: str) -> None:
        self.shown = re.sub(r"//[^/?]*@", "//", shown(url))[:200]
        scheme, _, rest = url.partition("://")
        if scheme.lower() not in SCHEMES or not rest:
            raise InvalidInput(f"A Redis store is 'redis://host:6379/0' or the like, got {self.shown!r}.")
        self.tls, self.way = SCHEMES[scheme.lower()]
        try:
            parts = urlsplit(f"//{rest}")
        except ValueError:  # half of an IPv6 address, or signs that stand for others; its words may be a password
            raise InvalidInput(
                "A Redis store has hosts such as 'db.example.com' or '[::1]', got something else; in a password, signs "
                "that have a meaning in URLs stand as %XX."
            ) from None
        self._options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := self._options.keys() - OPTIONS.keys():
            raise InvalidInput(f"A Redis store has the options {', '.join(OPTIONS)}, got {', '.join(sorted(unknown))}.")
        self.durability = self._option("durability", "always|everysec|none", "")
        self.replicas = int(self._option("replicas", r"\d", "0"))
        self.prefix = self._option("prefix", r"[\w-]{1,60}", "legato")
        if self.way == "cluster" and self.replicas:
            raise InvalidInput("In a cluster the option replicas cannot be had: nobody can wait for all nodes at once.")
        self.files = {FILES[name]: value for name, value in self._options.items() if name in FILES}
        if self.files and not self.tls:
            raise InvalidInput("The options ca, cert and key are for rediss:// only.")
        reach = self._option("reach", r"[^=,]+=[^=,]+(,[^=,]+=[^=,]+)*", "")
        if reach and self.way != "cluster" and (self.way or not self.tls):
            raise InvalidInput(
                "The option reach is for +cluster, whose nodes say where each other is, and for rediss://."
            )
        pairs = (pair.split("=") for pair in reach.split(",") if pair)
        self.reach = {self._host(named): self._host(here) for named, here in pairs}
        userinfo, _, hosts = parts.netloc.rpartition("@")
        self.user, self.password = (unquote(part) for part in userinfo.partition(":")[::2])
        self.hosts = [self._host(host) for host in hosts.split(",")]
        self.name = unquote(parts.path.strip("/"))
        self._check_name()

    def _option(self, name: str, form: str, default: str) -> str:
        value = self._options.get(name, default)
        if name in self._options and not re.fullmatch(form, value):
            raise InvalidInput(f"The option {name} is {OPTIONS[name]}, got {value[:60]!r}.")
        return value

    def _host(self, host: str) -> tuple[str, int]:
        try:
            parts = urlsplit(f"//{host}")
            return parts.hostname or "localhost", parts.port or (26379 if self.way == "sentinel" else 6379)
        except ValueError as exc:
            # What stands there may be a password, with nothing behind it.
            raise InvalidInput(
                "A port is a number, as in 'redis://:password@host:6379/0', got something else."
            ) from exc

    def _check_name(self) -> None:
        if self.way == "sentinel":
            if not self.name:
                text = "Which server do the sentinels know? 'redis+sentinel://host/NAME'"
                raise InvalidInput(f"{text}, got {self.shown!r}.")
        elif len(self.hosts) > 1 and self.way != "cluster":
            raise InvalidInput(f"Several hosts are for +cluster and +sentinel, got {self.shown!r}.")
        elif not re.fullmatch("0?" if self.way == "cluster" else r"\d{0,4}", self.name, re.ASCII):
            text = "After the host stands the number of a database (in a cluster: none)"
            raise InvalidInput(f"{text}, got {self.name[:60]!r}.")

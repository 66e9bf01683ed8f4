"""``legato keys``: the API keys of a store, made, listed and revoked, where they are kept or by way of the server."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from ..caller import SCOPES
from ..errors import StoreLocked
from .connect import KEY, connected, key_option, url_option
from .failure import Failure, Misuse, debug_option
from .serve import store_option
from .text import line

if TYPE_CHECKING:
    from ..auth.keys import APIKey
    from ..client import Client
    from ..log import Store

P = ParamSpec("P")
T = TypeVar("T")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
DEFAULTS = ("read", "send", "cancel", "answer")


def _where(command: Callable[P, None]) -> Callable[P, None]:
    """The options that say which keys are meant."""
    store = store_option("Whose keys. While a server has the file open, it is asked (--url), with the key of an admin.")
    for option in (debug_option, key_option, url_option, store):
        command = option(command)
    return command


@click.group(short_help="Make, list and revoke API keys.")
def keys() -> None:
    """API keys for `legato serve --keys` and Legato(auth=APIKeys()).

    They are kept in the store of the chats, and of each only its hash. One that is revoked is good for nothing within
    a second, on all servers of the store, and its streams end.

    \b
    Examples:
      legato keys add alice
      legato keys add ops --scope admin --scope read --expires 90d
      legato keys list
      legato keys revoke k3vq7w2mzx4a
    """


@keys.command()
@click.argument("subject")
@click.option("--name", metavar="TEXT", default="", help="What the key is for.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    help=f"What it is good for; may be repeated.  [default: {', '.join(DEFAULTS)}]",
)
@click.option("--admin", is_flag=True, help="Good for everything: the inspector and these commands, too.")
@click.option("--expires", metavar="TIME", help="After which it is good no more: 12h, 90d.  [default: never]")
@_where
def add(
    subject: str, name: str, scopes: tuple[str, ...], admin: bool, expires: str | None, store: str, url: str
) -> None:
    """Make a key for SUBJECT, whose the sessions are that are begun with it.

    The key goes to standard output, and is told this once.
    """
    from ..auth.keys import add_key, new_key

    wanted = SCOPES if admin else scopes or DEFAULTS
    seconds = _seconds(expires)

    async def here(opened: Store) -> tuple[str, str]:
        token, key = new_key(subject, name=name, scopes=wanted, expires_at=seconds and time.time() + seconds)
        await add_key(opened, key)
        return token, key.id

    def there(client: Client) -> tuple[str, str]:
        body = {"subject": subject, "name": name, "scopes": list(wanted), "expiresIn": seconds}
        made = _asked(client, "POST", "/api/auth/keys", body)
        return made["key"], made["id"]

    token, id = _done(store, url, here, there)
    good = f"for {expires}" if expires else "until it is revoked"
    click.echo(f"key {id} of {line(subject, 60)} ({', '.join(wanted)}), good {good}; it is told this once:", err=True)
    click.echo(token)


@keys.command("list")
@_where
def list_(store: str, url: str) -> None:
    """List the keys that are good, without what makes them keys."""
    from ..dialect.common import rfc3339

    def row(key: APIKey) -> dict[str, Any]:
        expires_at = None if key.expires_at is None else rfc3339(key.expires_at)
        return {
            "id": key.id,
            "subject": key.subject,
            "name": key.name,
            "scopes": list(key.scopes),
            "createdAt": rfc3339(key.created_at),
            "expiresAt": expires_at,
        }

    async def here(opened: Store) -> list[dict[str, Any]]:
        from ..auth.keys import read_keys

        return [row(key) for key in await read_keys(opened)]

    rows = _done(store, url, here, lambda client: _asked(client, "GET", "/api/auth/keys"))
    for each in rows:
        until = f"until {each['expiresAt'][:10]}" if each["expiresAt"] else ""
        told = (each["createdAt"][:10], ",".join(each["scopes"]), until, each["name"])
        click.echo(line(f"{each['id']}  {each['subject']:<20}  {'  '.join(filter(None, told))}", None))
    if not rows:
        click.echo("There are no keys; `legato keys add NAME` makes one.", err=True)


@keys.command()
@click.argument("id")
@_where
def revoke(id: str, store: str, url: str) -> None:
    """Let the key of this ID be good for nothing, and end its streams."""

    async def here(opened: Store) -> None:
        from ..auth.keys import revoke_key

        await revoke_key(opened, id)

    if not id.isascii() or not id.isalnum():
        raise Misuse(f"An id is what `legato keys list` shows, got {line(id, 60)!r}.")
    _done(store, url, here, lambda client: _asked(client, "DELETE", f"/api/auth/keys/{id}"))
    click.echo(f"key {id} is good for nothing", err=True)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = _TIME.fullmatch(text)
    if match is None or not int(match[1]):
        raise Misuse(f"--expires is a number with s, m, h or d behind it, such as 90d; got {line(text, 60)!r}.")
    return float(match[1]) * _UNITS[match[2]]


def _done(url: str, server: str, here: Callable[[Store], Awaitable[T]], there: Callable[[Client], T]) -> T:
    """What is to be done, done where the keys are; or by the server that has them open."""
    ctx = click.get_current_context()
    if ctx.get_parameter_source("url") is click.core.ParameterSource.COMMANDLINE:
        return _by_server(server, there)
    import asyncio

    from ..store import lasts, open_store

    async def work() -> T:
        store = open_store(url)
        await store.open()
        try:
            return await here(store)
        finally:
            await store.close()

    if not lasts(url):
        raise Misuse("The keys of a store in memory are its server's: name that with --url, and an admin's key.")
    try:
        return asyncio.run(work())
    except StoreLocked as exc:
        if ctx.meta.get(KEY) is None:
            raise Failure(
                "A server has this store open, so it has to be asked, by an admin: put an admin's key into LEGATO_KEY, "
                "and name the server with --url. The first key is made before the server is started."
            ) from exc
        return _by_server(server, there)


def _by_server(url: str, there: Callable[[Client], T]) -> T:
    with connected(url) as client:
        return there(client)


def _asked(client: Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    from types import NoneType

    from ..http.call import HttpCall

    returns: Any = NoneType if method == "DELETE" else Any
    return client.call(HttpCall(method, path, returns, body=body, repeatable=method != "POST"))

"""What the commands that talk to a server share: the options, the client, and words for what goes wrong."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec

import click

from ..addresses import shown
from ..errors import InvalidInput, LegatoError
from .failure import INTERRUPTED, Failure, Misuse

if TYPE_CHECKING:
    from ..client import Client, ClientError

P = ParamSpec("P")

DEFAULT_URL = "http://localhost:8088"

url_option = click.option(
    "--url", default=DEFAULT_URL, show_default=True, envvar="LEGATO_URL", show_envvar=True, help="The server."
)
KEY = "legato.key"


def _keep_key(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    ctx.meta[KEY] = value


def _key_option(*names: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    return click.option(
        *names, metavar="KEY", envvar="LEGATO_KEY", show_envvar=True, expose_value=False, callback=_keep_key,
        help="What signs you in. Better in the environment, since others see a command's options.",
    )  # fmt: skip


key_option = _key_option("--key", "--api-key")
api_key_option = _key_option("--api-key")
"""The same where ``--key`` is something else."""
agent_option = click.option("--agent", metavar="NAME", help="Which of the server's agents answers.")


@contextmanager
def connected(url: str, *, give_up_after: float | None = 600.0) -> Iterator[Client]:
    """A client of the server at ``url``, which has been found to be there.

    Args:
        url: its address.
        give_up_after: seconds without a server after which a stream ends; None goes on for ever.

    Raises:
        Failure: there is none, now or later.
    """
    from ..client import Client, ReconnectBackoff

    # A repeated request is told of in a log record; on a terminal that would stand in the middle of an answer.
    logging.getLogger("stamina").setLevel(logging.ERROR)
    try:
        # One person at one terminal is no crowd, so the waits need not grow to half a minute.
        backoff = ReconnectBackoff(cap=5.0, give_up_after=give_up_after)
        with Client(url, api_key=_key(), reconnect_backoff=backoff) as client:
            client.system.get_health(retries=None)
            yield client
    except LegatoError as exc:
        raise explained(exc, url) from exc


def _key() -> str | None:
    ctx = click.get_current_context(silent=True)
    key: str | None = None if ctx is None else ctx.meta.get(KEY)
    return key


def explained(error: LegatoError, url: str) -> Failure:
    """The failure that tells a person what to do about ``error``."""
    from ..client import APIError, ConnectionFailed, ErrorResponse, ResponseInvalid

    server = shown(url)
    if isinstance(error, ConnectionFailed):
        if proxies := _proxies(url):
            named = " or ".join(proxies)
            return Failure(
                f"{server} cannot be reached through the proxy of {named}; NO_PROXY excepts a server from it"
            )
        return Failure(f"no server at {server}; start one with `legato serve`, or name another with --url")
    if isinstance(error, ResponseInvalid) or (isinstance(error, APIError) and not isinstance(error, ErrorResponse)):
        return Failure(f"what answers at {server} is not a Legato server: {error.message}")
    if error.code == "unauthorized":
        return Failure(f"{server} wants to know who asks: put a key into LEGATO_KEY (`legato keys add` makes one)")
    if error.code == "session_not_found":
        return Failure(f"{error.message} `legato sessions` lists those of {server}")
    return (Misuse if isinstance(error, InvalidInput) else Failure)(error.message or error.code)


def why(error: ClientError | None) -> str:
    """A few words for why a connection is gone."""
    from ..client import APIError, ConnectionFailed

    if isinstance(error, APIError):
        return f"the server answered {error.status_code}"
    return "no server there" if isinstance(error, ConnectionFailed) else "connection lost"


def come_back(session: str, url: str) -> str:
    """The command that takes a conversation up."""
    return f"legato chat {session}" + ("" if url == DEFAULT_URL else f" --url {shown(url)}")


def quiet_interrupt(command: Callable[P, None]) -> Callable[P, None]:
    """Make a command that follows something for ever leave on Ctrl-C without a word."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            click.get_current_context().exit(INTERRUPTED)

    return wrapper


def _proxies(url: str) -> list[str]:
    """Variables of the environment by which what is asked of ``url`` goes to a proxy."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    found = getproxies()
    names = [name for name in (parts.scheme, "all") if found.get(name)][:1]
    return [] if proxy_bypass(parts.netloc) else [f"{name.upper()}_PROXY" for name in names]

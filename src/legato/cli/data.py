"""``legato export``, ``import`` and ``erase``: the sessions of an owner, or one, as lines of JSON."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from ..errors import InvalidInput, StoreLocked
from .failure import Failure, Misuse, debug_option
from .serve import store_option
from .text import escaped

if TYPE_CHECKING:
    from ..blobs import Blobs
    from ..log import Store

servers_store_option = store_option("The server's store.")
blobs_option = click.option(
    "--blobs",
    metavar="URL",
    envvar="LEGATO_BLOBS",
    show_envvar=True,
    help="Where the server keeps large files of messages, if not in its store.",
)


@click.command(short_help="Write an owner's sessions, or one, as lines of JSON.")
@click.argument("session", required=False)
@click.option("--owner", metavar="SUBJECT", help="All sessions of this owner.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File, which is to be new; else standard output.",
)
@servers_store_option
@blobs_option
@debug_option
def export(session: str | None, owner: str | None, output: Path | None, store: str, blobs: str | None) -> None:
    """Write SESSION, or with --owner all that an owner has, with all events, as docs/data.md says.

    A SQLite file is its server's alone: stop that first, or export from a copy (legato backup).

    \b
    Examples:
      legato export s_4Rk2c0pT > session.jsonl
      legato export --owner ann@example.com -o ann.jsonl
    """
    if (session is None) == (owner is None):
        raise Misuse("say what to export: a SESSION, or --owner SUBJECT")
    import asyncio

    asyncio.run(_export(store, blobs, session, owner, output))


async def _export(url: str, outside: str | None, session: str | None, owner: str | None, output: Path | None) -> None:
    from ..archive import export as lines

    async with opened(url) as store:
        with _written(output) as file:
            async for each in lines(store, owner=owner, session=session, blobs=_blobs(store, outside)):
                file.write(each)


@click.command("import", short_help="Store what has been exported.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@servers_store_option
@blobs_option
@debug_option
def import_(file: Path, store: str, blobs: str | None) -> None:
    """Store the sessions in FILE, which is from legato export; each whole, or not at all.

    Sessions that are there already are left as they are, and named.

    \b
    Examples:
      legato import ann.jsonl --store sqlite:///other.db
    """
    import asyncio

    asyncio.run(_import(store, blobs, file))


async def _import(url: str, outside: str | None, path: Path) -> None:
    from ..archive import take

    async with opened(url, new=True) as store:
        with path.open("rb") as file:
            found = await take(store, file, _blobs(store, outside))
    click.echo(f"{found.sessions} session(s) with {found.events} event(s) stored")
    for each in found.left:
        click.echo(f"{each} is there already, or was, and is left as it is", err=True)
    if found.left:
        raise Failure(f"{len(found.left)} session(s) were not stored")


@click.command(short_help="Delete all that an owner has.")
@click.option("--owner", metavar="SUBJECT", required=True, help="Whose sessions, API keys and counts.")
@click.option(
    "--export",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File, which is to be new: export first.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@servers_store_option
@blobs_option
@debug_option
def erase(owner: str, output: Path | None, yes: bool, store: str, blobs: str | None) -> None:
    """Delete all sessions of an owner, for ever, their API keys, and what was counted of theirs; on wish export first.

    What is left is the ids of the sessions, so that nobody takes them again. Backups keep what they have.

    \b
    Examples:
      legato erase --owner ann@example.com --export ann.jsonl
    """
    if not yes:
        from ..store import shown

        whose, place = (escaped(repr(each)) for each in (owner, shown(store)))  # a blank more is another's
        click.confirm(f"Delete all that {whose} has in {place}, for ever?", abort=True)
    import asyncio

    asyncio.run(_erase(store, blobs, owner, output))


async def _erase(url: str, outside: str | None, owner: str, output: Path | None) -> None:
    from ..archive import erase as erased
    from ..archive import export as lines

    async with opened(url) as store:
        if output is not None:
            with _written(output) as file:
                async for each in lines(store, owner=owner, blobs=_blobs(store, outside)):
                    file.write(each)
        found = await erased(store, owner, _blobs(store, outside))
    click.echo(f"{found.sessions} session(s) with {found.events} event(s) deleted, and {found.keys} API key(s)")


def _blobs(store: Store, outside: str | None) -> Blobs:
    from ..blobs import Blobs
    from ..outside import open_outside

    try:
        return Blobs(store, None if outside is None else open_outside(outside))
    except InvalidInput as exc:
        raise Misuse(f"--blobs: {exc.message}") from exc


@asynccontextmanager
async def opened(url: str, *, new: bool = False) -> AsyncIterator[Store]:
    """The store, open.

    Args:
        url: of the store.
        new: it may be one that there is not yet.

    Raises:
        Misuse: it is a file that is not there. Failure: its server runs.
    """
    from ..store import file_of, lasts, open_store

    file = file_of(url)
    if file is not None and not new and not file.exists():
        raise Misuse(f"there is no store {file}")
    if not lasts(url):
        raise Misuse("memory: is a store of one process; name that of a server")
    store = open_store(url)
    try:
        await store.open()
    except StoreLocked as exc:
        raise Failure(f"{exc.message} Stop that server first; to export, a copy will do: legato backup.") from exc
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def _written(path: Path | None) -> Iterator[IO[bytes]]:
    """The file, for its user alone; standard output without one. Half a file is not left behind."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Misuse(f"{path} is there already; name a new file") from None
    except OSError as exc:
        raise Failure(f"{path} cannot be written: {exc.strerror}") from exc
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise

"""``legato migrate``: all that a store has, taken to another one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from .failure import Failure, Misuse, debug_option

if TYPE_CHECKING:
    from ..store.moving import Moved

TELL_SECONDS = 2.0
SAME = "SOURCE and TARGET are the same store."


@click.command(short_help="Take all that a store has to another one.")
@click.argument("source")
@click.argument("target")
@click.option("--merge", is_flag=True, help="Let TARGET have sessions that SOURCE does not have.")
@debug_option
def migrate(source: str, target: str, merge: bool) -> None:
    """Take every session of SOURCE to TARGET, as it is, and read it there again.

    Both are URLs of stores. Stop the servers of both first. Events keep their offsets, times and JSON; idempotency
    keys, open runs, owners and the marks of deleted sessions come along. SOURCE stays as it is.

    Each session arrives whole or not at all. A migration that was interrupted is begun again with the same command: it
    compares what is there, and takes the rest. At the end it prints a digest of both sides, which is to be the same.

    \b
    Examples:
      legato migrate sqlite:///chat.db postgresql://legato@db/legato
      legato migrate redis://cache sqlite:////var/lib/legato/chat.db
    """
    from ..store import file_of, lasts, shown

    for url in (source, target):
        if not lasts(url):
            raise Misuse(f"a store in memory ends with its server, so there is nothing to migrate: {shown(url)!r}")
    if source == target:
        raise Misuse(SAME)
    file = file_of(source)
    if file is not None and not file.is_file():
        raise Misuse(f"There is no file {file}.")
    import asyncio

    moved = asyncio.run(_migrate(source, target, merge))
    for name, tally in (("source", moved.source), ("target", moved.target)):
        click.echo(
            f"{name}  {tally.sessions:,} sessions ({tally.deleted:,} deleted), {tally.events:,} events, "
            f"sha256-sum {tally.hex}"
        )
    if not moved.source.sessions:
        click.echo(f"There is nothing in SOURCE. If it should not be empty, see what {shown(source)} names.", err=True)
    if moved.source.damaged:
        click.echo(f"{moved.source.damaged:,} event(s) were damaged in the source, and are marked so.", err=True)
    if moved.source != moved.target:  # which ``move`` has seen for each session
        raise Failure("the two are not the same")
    click.echo(f"The same on both sides; {moved.found:,} of the sessions were there before.")


async def _migrate(source: str, target: str, merge: bool) -> Moved:
    from ..store import open_store
    from ..store.moving import are_same, move

    due = time.monotonic() + TELL_SECONDS

    def told(moved: Moved) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + TELL_SECONDS
            click.echo(f"{moved.target.sessions:,} sessions, {moved.target.events:,} events ...", err=True)

    from_store, to_store = open_store(source), open_store(target)
    await from_store.open()
    try:
        await to_store.open()
        try:
            if are_same(from_store, to_store):
                raise Misuse(SAME)
            return await move(from_store, to_store, merge=merge, told=told)
        finally:
            await to_store.close()
    finally:
        await from_store.close()

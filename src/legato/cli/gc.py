"""``legato gc``: what the store's file has free, given back to the file system."""

from __future__ import annotations

import click

from .backup import file_of, file_store_option
from .failure import debug_option


@click.command(short_help="Give back what the store's file has free.")
@file_store_option
@debug_option
def gc(store: str) -> None:
    """Give back to the file system what the store's file has free, in pieces.

    The server may run, and does this itself within seconds of a deletion; this is for who will not wait, and for files
    of early versions, for which the server is to be stopped.

    \b
    Examples:
      legato gc
      legato gc --store sqlite:////var/lib/legato/chat.db
    """
    from ..store.sqlite_gc import collect

    file = file_of(store)
    found = collect(file)
    click.echo(f"{file}: {max(found.before - found.after, 0):,} bytes given back, {found.after:,} left")
    if found.rest:
        click.echo("Somebody still reads what is old; the server gives the rest back later.", err=True)

"""``legato backup``: a copy of the store, while the server runs."""

from __future__ import annotations

from pathlib import Path

import click

from .failure import Misuse, debug_option
from .serve import store_option

file_store_option = store_option("The server's store: sqlite:///FILE")


@click.command(short_help="Copy the store to a file, while the server runs.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@file_store_option
@debug_option
def backup(file: Path, store: str) -> None:
    """Copy the store to FILE, which is to be new, as it is at this moment.

    The server may run, and does not wait for it. To restore, stop the server and put FILE in the store's place.

    \b
    Examples:
      legato backup chat-backup.db
      legato backup /backups/chat.db --store sqlite:////var/lib/legato/chat.db
    """
    from ..store.sqlite_backup import backup as copy

    size = copy(file_of(store), file)
    click.echo(f"{file}: {size:,} bytes")


def file_of(store: str) -> Path:
    """The file of a store's URL.

    Raises:
        Misuse: it has none.
    """
    from .. import store as stores

    file = stores.file_of(store)
    if file is None:
        raise Misuse(f"this is for a store of the form sqlite:///FILE, got {stores.shown(store)!r}")
    return file

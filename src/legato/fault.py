"""What the code of others may do to a process, and what becomes of it: an exit is their error, a fork lets go.

An agent runs in the server's process. ``sys.exit`` in it would go up through its task into the event loop, and end the
server; a child that it forks has the server's sockets and locks, and would keep them when the server is killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def contained(what: str) -> Iterator[None]:
    """Around each call of others' code that is not in a task of its own.

    Raises:
        RuntimeError: in place of ``SystemExit`` and ``KeyboardInterrupt``, which a task hands on to the event loop.
    """
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as exc:
        raise RuntimeError(f"{what} raised {type(exc).__name__}") from exc


_releases: set[Callable[[], None]] = set()


def at_fork(release: Callable[[], None]) -> Callable[[], None]:
    """Call ``release`` in each child that is forked from now on; what this gives ends that."""
    _releases.add(release)
    return lambda: _releases.discard(release)


def let_go(descriptor: int) -> None:
    """Close, in a child, what ``descriptor`` is open for; the number stays taken, for whoever still knows it there."""
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nothing, descriptor, inheritable=False)
    finally:
        os.close(nothing)


def _in_child() -> None:
    for release in list(_releases):
        with contextlib.suppress(Exception):  # the child has its own work, and nobody here to be told
            release()
    _releases.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

"""What a process of a ``Press`` does: it reads texts from its standard input, and writes their blocks to its output.

Its memory is bounded, and for each text its time on the processor: the system ends it there, whatever it does. It ends
with the process that it works for, also when that is killed.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Callable

import msgspec

Render = Callable[..., object]
"""``render`` of ``markdown``, or one like it."""

TEXT = struct.Struct("<Id??")
"""Before each text: its bytes, the seconds that it may take, whether it grows, whether code is to be coloured."""
ANSWER = struct.Struct("<I")
"""Before each answer: its bytes. They are JSON; none where a text could not be rendered, and of the first answer, which
says that the process is ready."""

FRESH = '<span class="fresh"></span>'
"""Marks in HTML where more of a text that grows can be shown."""
MAX_MEMORY = 536_870_912
"""Bytes of addresses; a process that waits has some 50 MB."""
LOOK_SECONDS = 5.0
"""How often a process that waits looks whether it is still wanted: others may hold the far end of its input, too."""


class _NotWanted(Exception):
    """Who began the process is gone."""


def main(parent: int, render: Render, render_growing: Render) -> None:
    """Render until ``parent``, the process that has begun this one, is no more; with the functions of ``markdown``."""
    _bound()
    _write(b"")
    try:
        while True:
            size, seconds, growing, colours = TEXT.unpack(_read(TEXT.size, parent))
            text = _read(size, parent).decode()
            _allow(seconds)
            try:
                rendered = msgspec.json.encode((render_growing if growing else render)(text, colours=colours))
            except MemoryError:
                raise
            except Exception:
                rendered = b""  # a fault in a parser or a lexer
            _allow(0)
            _write(rendered)
    except (_NotWanted, BrokenPipeError):
        pass


def _bound() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which may need this process until it ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.nice(5)  # the server's event loop goes first


def _allow(seconds: float) -> None:
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)  # then comes SIGPROF, which ends the process


def _read(size: int, parent: int) -> bytes:
    pieces = []
    while size:
        if sys.platform != "win32":
            import select

            while not select.select([0], [], [], LOOK_SECONDS)[0]:
                if os.getppid() != parent:
                    raise _NotWanted
        piece = os.read(0, size)
        if not piece:
            raise _NotWanted
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _write(answer: bytes) -> None:
    rest = memoryview(ANSWER.pack(len(answer)) + answer)
    while rest:
        rest = rest[os.write(1, rest) :]

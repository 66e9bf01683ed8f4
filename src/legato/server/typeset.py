"""What a process of a ``Press`` does: it reads texts from its standard input, and writes their blocks to its output.

Its memory is bounded, and for each text its time on the processor: then a signal gives it up, which regular expressions
notice, too; and the system ends a process that does not. It ends with the process that it works for, also when that is
killed.
"""

from __future__ import annotations

import math
import os
import signal
import struct
import sys
import time
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
AGAIN_SECONDS = 0.2
"""After which a text is given up once more, if what did not expect it went on."""
LOOK_SECONDS = 5.0
"""How often a process that waits looks whether it is still wanted: others may hold the far end of its input, too."""


class _TooLong(BaseException):
    """A text has had its time; not to be caught by those who read it."""


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
            try:
                _allow(seconds)
                rendered = msgspec.json.encode((render_growing if growing else render)(text, colours=colours))
                _allow(0)
            except MemoryError:
                raise
            except (_TooLong, Exception):  # or a fault in a parser or a lexer
                _allow(0)
                rendered = b""
            _write(rendered)
    except (_NotWanted, BrokenPipeError):
        pass


def _bound() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which may need this process until it ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform != "win32":
        import resource

        signal.signal(signal.SIGPROF, _give_up)
        _limit(resource.RLIMIT_AS, MAX_MEMORY)
        _limit(resource.RLIMIT_CORE, 0)
        os.nice(5)  # the server's event loop goes first


def _allow(seconds: float) -> None:
    if sys.platform != "win32":
        import resource

        signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN_SECONDS if seconds else 0.0)
        # A second or two later SIGXCPU ends it.
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds) + 1 if seconds else None)


def _limit(kind: int, most: int | None) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]  # which an operator may have set
    bounds = [each for each in (most, hard) if each not in (None, resource.RLIM_INFINITY)]
    resource.setrlimit(kind, (min(bounds, default=resource.RLIM_INFINITY), hard))


def _give_up(number: int, frame: object) -> None:
    raise _TooLong


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

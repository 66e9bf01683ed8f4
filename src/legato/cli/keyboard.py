"""Lines from standard input, one at a time, while other things go on."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


class Keyboard:
    """Reads a line when asked for one, in a thread, and hands it over: text, or None at the end of the input.

    A line that nobody waits for any more stays asked for: it goes to whoever asks next.

    Args:
        deliver: called with each line, from the thread.
    """

    def __init__(self, deliver: Callable[[str | None], None]) -> None:
        self.pending = False
        """A line has been asked for and has not come."""
        self._deliver = deliver
        self._left = b""

    def ask(self) -> None:
        """Ask for a line. While one is pending, this does nothing."""
        if not self.pending:
            self.pending = True
            threading.Thread(target=self._read, daemon=True, name="legato-keyboard").start()

    def _read(self) -> None:
        text = self._line()
        self.pending = False
        self._deliver(text)

    def _line(self) -> str | None:
        # Not sys.stdin.readline: a thread that still holds its lock when the interpreter ends makes Python abort.
        while b"\n" not in self._left:
            try:
                chunk = os.read(sys.stdin.fileno(), 65_536)
            except OSError:
                chunk = b""
            if not chunk:
                last, self._left = self._left, b""
                return last.decode("utf-8", "replace") if last else None
            self._left += chunk
        first, _, self._left = self._left.partition(b"\n")
        return first.decode("utf-8", "replace").rstrip("\r")

"""Tool calls put together from the pieces in which servers of Chat Completions send them. No I/O.

Which call a piece belongs to is told by its index, by its id, by its name, or by nothing: some number all calls with 0,
some give each piece a new id, some give neither. So all four decide together; the fourth is whether the arguments so
far are a whole JSON value, since behind one nothing of the same call can follow.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ..json import JsonObject
from .result import StreamChunk, Tally

__all__ = ["Assembly", "CallPiece", "as_json"]


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a tool call: what it says, "" or None for what it does not.

    Attributes:
        whole: it is no piece, but all of a call.
        beside: another one stands before it in the same chunk.
        fields: further ones, which the provider wants back.
    """

    index: int | None
    id: str
    name: str
    arguments: str
    whole: bool = False
    fields: JsonObject = field(default_factory=dict)
    beside: bool = False


@dataclass(slots=True)
class _Making:
    """A call in the making.

    Attributes:
        number: its index in the answer; None until its name is whole: there are arguments, or what comes is another's.
        waiting: arguments that came before that.
        text: the pieces of the arguments.
        begun: there are arguments.
        depth: open brackets of the arguments.
        quoted, escaped: where in a JSON text they end.
        whole: the arguments are a whole object or list.
        empty: they are ``{}``, which is not told yet: some begin so, and bring the true ones then.
        ids: all that its pieces had.
        doubt: pieces that each repeat all before them, or go on with something that looks so: the end will tell.
    """

    index: int | None
    id: str = ""
    name: str = ""
    number: int | None = None
    waiting: str = ""
    text: list[str] = field(default_factory=list)
    begun: bool = False
    depth: int = 0
    quoted: bool = False
    escaped: bool = False
    whole: bool = False
    empty: bool = False
    ids: set[str] = field(default_factory=set)
    doubt: list[str] = field(default_factory=list)
    fields: JsonObject = field(default_factory=dict)

    def has(self, name: str, arguments: str) -> bool:
        """Whether it is this very call."""
        return self.name == name and ("{}" if self.empty else "".join(self.text)) == arguments

    def repeats(self, arguments: str) -> bool:
        """Whether a piece may be all of the arguments so far, and more of them."""
        if self.doubt:
            return bool(arguments)
        return self.begun and arguments.startswith("{") and arguments.startswith("".join(self.text))

    def undoubted(self) -> str:
        """What the pieces in doubt add, now that they are all there."""
        before, added, last = "".join(self.text), "".join(self.doubt), self.doubt[-1]
        self.doubt.clear()
        return last[len(before) :] if _is_json(last) and not _is_json(before + added) else added

    def count(self, text: str) -> None:
        """Take note of a further piece of the arguments, and of its brackets."""
        self.text.append(text)
        self.begun = self.begun or not (not text or text.isspace())
        if self.escaped and text:
            text, self.escaped = text[1:], False
        for mark in _MARKS.findall(text):
            if mark == '"':
                self.quoted = not self.quoted
            elif mark[0] == "\\":
                self.escaped = len(mark) == 1
            elif self.quoted:
                continue
            elif mark in "{[":
                self.depth += 1
            else:
                self.depth -= 1
                self.whole = self.whole or self.depth <= 0


# A backslash with what it escapes; at the end of a piece, without.
_MARKS: Final = re.compile(r'\\.|\\|["{}\[\]]', re.DOTALL)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


@dataclass(slots=True)
class Assembly:
    """The calls of one answer."""

    _calls: list[_Making] = field(default_factory=list)
    _last: _Making | None = None  # which the last piece was of

    def take(self, tally: Tally, piece: CallPiece) -> list[StreamChunk]:
        """Take a piece; one that helps nothing is passed over."""
        if not (piece.id or piece.name or piece.arguments):
            if piece.fields and self._calls:
                (self._find(piece) or self._calls[-1]).fields |= piece.fields
            return []
        chunks: list[StreamChunk] = []
        call = None if piece.whole else self._find(piece)
        if call is None:
            chunks += self._begin_named(tally)
            call = _Making(piece.index, piece.id)
            self._calls.append(call)
        self._last = call
        if piece.fields:
            call.fields |= piece.fields
        if piece.id:
            call.id = call.id or piece.id
            call.ids.add(piece.id)
        if piece.index is not None and call.index is None:
            call.index = piece.index
        arguments = "" if piece.arguments.strip() == "null" and not call.begun else piece.arguments
        if call.number is not None and not call.whole and call.repeats(arguments):
            call.doubt.append(arguments)
            return []
        if call.empty and arguments.strip() not in ("", "{}"):
            call.empty = call.whole = False
        elif not call.begun and not piece.whole and arguments.strip() == "{}":
            call.empty = call.whole = True
        # Behind a whole value only a repetition of it can come.
        arguments = "" if call.whole else arguments
        call.count(arguments)
        if call.number is not None:
            return chunks + tally.add_arguments(call.number, arguments)
        # It may come in pieces, as the arguments do; of some, each has all before it.
        call.name = piece.name if piece.name.startswith(call.name) else call.name + piece.name
        call.waiting += arguments
        return chunks + (self._begin(tally, call) if call.name and (call.begun or call.empty or piece.whole) else [])

    def _begin_named(self, tally: Tally) -> list[StreamChunk]:
        """Begin the calls of which nothing but a name has come."""
        named = [call for call in self._calls if call.number is None and call.name]
        return [chunk for call in named for chunk in self._begin(tally, call)]

    def _begin(self, tally: Tally, call: _Making) -> list[StreamChunk]:
        call.number = tally.calls
        waiting, call.waiting = call.waiting, ""
        return tally.begin_call(call.id or f"call_{call.number}", call.name, waiting)

    def end(self, tally: Tally) -> list[StreamChunk]:
        """What is still to be told, now that the model has said all."""
        chunks = self._begin_named(tally)
        for call in self._calls:
            if call.doubt and call.number is not None:
                rest = call.undoubted()
                call.count(rest)
                chunks += tally.add_arguments(call.number, rest)
            if call.empty and call.number is not None:
                call.empty = False
                chunks += tally.add_arguments(call.number, "{}")
        return chunks

    @property
    def fields(self) -> dict[int, JsonObject]:
        """What the provider wants back with its calls, by their indexes."""
        return {call.number: call.fields for call in self._calls if call.number is not None and call.fields}

    @property
    def lost(self) -> str:
        """Arguments that came for no call that is known."""
        waiting = ("{}" if call.empty else call.waiting for call in self._calls if not call.name)
        return next((text for text in waiting if text.strip()), "")

    def _find(self, piece: CallPiece) -> _Making | None:
        """The call that this is a piece of; None when it begins a new one."""
        calls = self._calls
        if self._last is not None and _names(self._last, piece):
            return self._last
        if piece.index is not None:
            calls = [call for call in calls if call.index == piece.index]
        if piece.id:
            # By its id it belongs to the same call, whatever its index; but some give all calls of an answer one id.
            known = [call for call in calls or ([] if piece.name else self._calls) if piece.id in call.ids]
            if known:
                another = known[-1].whole and piece.name and piece.arguments.strip()
                return None if another and not known[-1].has(piece.name, piece.arguments) else known[-1]
        if not calls:
            if piece.id or piece.name:
                return None
            calls = [call for call in self._calls if call.index is None]  # whose index comes late
        if not calls:
            return None
        return None if _begins(calls[-1], piece) else calls[-1]


def _names(last: _Making, piece: CallPiece) -> bool:
    """Whether a piece goes on with the name of the call that came right before it, of which there is no more yet."""
    if piece.beside or not piece.name or not last.name or last.begun or last.empty or last.number is not None:
        return False
    return piece.index == last.index and piece.id in ("", last.id)


def _begins(last: _Making, piece: CallPiece) -> bool:
    """Whether a piece, of which neither index nor id say so, is the beginning of another call than the last."""
    opens = piece.arguments.lstrip().startswith("{")
    if not piece.name:
        # An id in each piece is no beginning. Behind a whole value, one whose name comes late may begin.
        return last.whole and bool(piece.id) and opens
    if not last.name:
        return False
    if piece.name != last.name:
        return True
    if last.whole:
        return bool(piece.id or piece.arguments.strip())
    if not piece.id:
        return False  # the name comes with each piece
    if not last.id and not last.begun:
        return False  # the id comes late
    return opens or not piece.arguments  # else it goes on with an id of its own


def as_json(arguments: object) -> str:
    """Arguments as JSON text: some servers give the value itself."""
    if isinstance(arguments, str):
        return arguments
    if not isinstance(arguments, dict | list):
        return ""
    try:
        return msgspec.json.encode(arguments).decode()
    except (UnicodeError, OverflowError):  # half letters, or a number of many digits
        with contextlib.suppress(ValueError):
            return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        return ""

"""``Taken``: messages without the bytes that came in them, which stand beside the log under their hash (``Blobs``); and
how the bytes come in again, to the letter. Pure."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from .errors import BlobLost
from .event import BlobRef, Event, MessageCreated, MessageRevised, Offset
from .json import JsonObject
from .part import CallPart, OtherPart, Part, convert, to_builtins

S = TypeVar("S", bound=MessageCreated | MessageRevised)

LEAST = 4096
"""Characters of a text that is worth a blob; shorter ones stay in the log."""
TEXTS = frozenset({"text", "arguments", "encrypted_content", "signature"})
"""Names of what is no file, even where it looks like one."""

_TYPE = re.compile(r"[a-z]{1,20}/[a-z0-9.+-]{1,60}", re.ASCII)


class Taken(NamedTuple, Generic[S]):
    """What came of taking the bytes out of messages.

    Attributes:
        given: the messages as they were.
        facts: without their bytes.
        blobs: these, by hash.
    """

    given: list[S]
    facts: list[S]
    blobs: dict[str, bytes]


def taken(facts: Iterable[S]) -> Taken[S]:
    """Take the bytes out: of ``data:`` URLs, and of texts that are base64. Put in again, it is the same text."""
    blobs: dict[str, bytes] = {}
    given = [*facts]
    return Taken(given, [_taken(fact, blobs) for fact in given], blobs)


def _taken(fact: S, blobs: dict[str, bytes]) -> S:
    refs: list[BlobRef] = []
    try:
        metadata = _without(fact.metadata, ["metadata"], refs, blobs)
        parts, before = fact.parts, len(refs)
        if parts and any(isinstance(part, CallPart | OtherPart) for part in parts):
            plain = _without(to_builtins(parts), ["parts"], refs, blobs)
            parts = convert(plain, list[Part]) if len(refs) > before else parts
    except (RecursionError, TypeError, ValueError, msgspec.MsgspecError):
        return fact  # which no log can have; who stores it says why
    if not refs:
        return fact
    return msgspec.structs.replace(fact, metadata=metadata, parts=parts, blobs=[*(fact.blobs or ()), *refs])


def _without(value: object, at: list[str | int], refs: list[BlobRef], blobs: dict[str, bytes]) -> Any:
    """``value`` without the bytes in it; itself, if there are none."""
    if isinstance(value, str):
        if len(value) < LEAST or at[-1] in TEXTS or (found := _bytes_of(value)) is None:
            return value
        left, type, data, plain = found
        hash = hashlib.sha256(data).hexdigest()
        blobs[hash] = data
        refs.append(BlobRef(at, hash, len(data), type, plain))
        return left
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return value
    changed = {key: new for key, old in items if (new := _without(old, [*at, key], refs, blobs)) is not old}
    if not changed:
        return value
    return {**value, **changed} if isinstance(value, dict) else [changed.get(n, old) for n, old in enumerate(value)]


def _bytes_of(text: str) -> tuple[str, str, bytes, bool] | None:
    """What stays of a text, what its bytes are called, they, and whether they are its own as UTF-8; None if it is no
    such text. What is written in another way than ours would come back changed, so it is kept as it is."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        return None
    head, type = b"", ""
    if is_url := raw[:5].lower() == b"data:":
        head = raw[: raw.find(b",") + 1]
        named = _TYPE.match(head[5:].decode("latin-1").lower())
        type = named[0] if named else ""
    if not is_url or head.lower().endswith(b";base64,"):
        with contextlib.suppress(binascii.Error):
            written = raw[len(head) :]
            data = binascii.a2b_base64(written, strict_mode=True)
            if binascii.b2a_base64(data, newline=False) == written:
                return head.decode(), type, data, False
    return ("", type, raw, True) if is_url else None


def bare(fact: S) -> S:
    """A message as it says nothing of where its bytes are: of two that say the same, these are equal."""
    fact = _taken(fact, {})
    if not fact.blobs:
        return fact
    refs = [msgspec.structs.replace(ref, place=0, outside=False) for ref in fact.blobs]
    return msgspec.structs.replace(fact, blobs=refs)


def referring(event: Event) -> MessageCreated | MessageRevised | None:
    """What an event says, if something of it stands beside the log."""
    fact = event.fact
    return fact if isinstance(fact, MessageCreated | MessageRevised) and fact.blobs else None


def placed(fact: S, places: Mapping[str, tuple[Offset, bool]]) -> S:
    """A message whose bytes have been put: by hash, where, and whether outside."""
    if not fact.blobs:
        return fact
    refs = [
        msgspec.structs.replace(ref, place=places[ref.hash][0], outside=places[ref.hash][1])
        if ref.hash in places
        else ref
        for ref in fact.blobs
    ]
    return msgspec.structs.replace(fact, blobs=refs)


def refilled(fact: S, blobs: Mapping[str, bytes]) -> S:
    """A message with its bytes in it again. A part whose bytes are not among ``blobs`` is a text that says so."""
    ways: JsonObject = {}
    for ref in fact.blobs or ():
        way: Any = ways
        for step in ref.at[:-1]:
            way = way.setdefault(step, {})
        way[ref.at[-1]] = ref
    whole: JsonObject = {}
    for name in ways.keys() & {"metadata", "parts"}:
        with contextlib.suppress(LookupError, TypeError):  # it is damaged; nobody is to fail by that
            whole[name] = _with(to_builtins(getattr(fact, name)), ways[name], blobs)
    if "parts" in whole:
        whole["parts"] = convert(whole["parts"], list[Part])
    return msgspec.structs.replace(fact, blobs=None, **whole)


def _with(value: Any, way: Any, blobs: Mapping[str, bytes], *, listed: bool = False) -> Any:
    """``value`` with the bytes to which ``way`` leads; ``listed``: there is a list above, whose element can be a text
    instead."""
    if isinstance(way, BlobRef):
        if way.hash not in blobs:
            raise BlobLost(way.hash)
        data = blobs[way.hash]
        return value + (data if way.plain else base64.b64encode(data)).decode()
    in_list = isinstance(value, list)
    for step, rest in way.items():
        try:
            value[step] = _with(value[step], rest, blobs, listed=listed or in_list)
        except BlobLost:  # what stayed of the text says what it was
            if in_list and isinstance(value[step], dict):
                kind = value[step].get("type") or "file"
                lost = f"[This {kind} is lost: the server has its bytes no more.]"
                value[step] = {"type": "input_text", "text": lost}
            elif listed and not in_list:
                raise
    return value

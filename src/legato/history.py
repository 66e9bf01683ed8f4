"""What was said in a session, as messages in the order of the conversation: a fold of its events but for deltas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from .event import (
    BlobRef,
    Event,
    MessageCreated,
    MessageRevised,
    RunCompleted,
    RunFailed,
    SessionCreated,
    SessionRewound,
    Terminal,
)
from .items import present
from .json import JsonObject
from .part import Attachment, Message, RunError

FILES = 100
"""Of one message that are told of."""
SMALL = 4096
"""Characters of a file that can stand in the message itself."""
LOOKED_AT = 2_000
"""Values of a message, of any kind, among which files are looked for that are not kept beside its log."""
ADDRESSES = frozenset({"image_url", "file_url"})
"""Names of what leads to a file that is elsewhere."""


def history(events: Iterable[Event]) -> list[Message]:
    """The conversation as whole messages, from a session's events (its deltas may be missing).

    In the order of the conversation: an answer stands right after its question, also when further questions were
    already waiting by then. What a rewind took back is left out.
    """
    messages: list[Message] = []
    for event in events:
        fact = event.fact
        if isinstance(fact, MessageCreated):
            messages.append(told(event))
        elif isinstance(fact, Terminal):
            place = answer_place(messages, event.run)
            if place is not None:
                messages.insert(place, told(event))
        elif isinstance(fact, SessionRewound):
            messages = rewound(messages, fact, event.offset)
        elif isinstance(fact, MessageRevised):
            messages = changed(messages, fact)
    return messages


class _Placed(Protocol):
    """A message, as far as its place in a conversation depends on it."""

    @property
    def id(self) -> str:
        """The message's own."""
        ...

    @property
    def run(self) -> str | None:
        """The run that answers it, or that gave it."""
        ...

    @property
    def offset(self) -> int:
        """Of its event."""
        ...


P = TypeVar("P", bound=_Placed)


def answer_place(messages: Sequence[_Placed], run: str | None) -> int | None:
    """Where the answer of ``run`` belongs: right after its question; None if that is no longer there."""
    for place in reversed(range(len(messages))):  # its question is among the last
        if messages[place].run == run:
            return place + 1
    return None


def rewound(messages: list[P], fact: SessionRewound, offset: int) -> list[P]:
    """What is left of ``messages`` after a rewind that stands at ``offset``."""
    until = offset if fact.until is None else fact.until
    if fact.to == "":
        kept = 0
    elif (place := next((n for n, message in enumerate(messages) if message.id == fact.to), None)) is not None:
        kept = place + 1
    else:
        return messages
    # What its author had not seen when it was written, it does not take back.
    return [*messages[:kept], *(message for message in messages[kept:] if message.offset > until)]


def changed(messages: Iterable[Message], fact: MessageRevised) -> list[Message]:
    """What is left of ``messages`` after a revision of one of them."""
    return [
        revised(message, fact) if message.id == fact.id else message
        for message in messages
        if message.id != fact.id or not fact.gone
    ]


def revised(message: Message, fact: MessageRevised) -> Message:
    """The message, as a revision of it says that it is. What a provider wants back with the whole of it, goes."""
    return msgspec.structs.replace(
        message, text=fact.text, parts=fact.parts or [], metadata=fact.metadata or {}, opaque=[]
    )


def told(event: Event) -> Message:
    """The message that ``event`` has, which is a ``message.created`` or a terminal event."""
    fact = event.fact
    if isinstance(fact, MessageCreated):
        return _question(event, fact)
    assert isinstance(fact, Terminal)
    return _answer(event, fact)


def _question(event: Event, fact: MessageCreated) -> Message:
    return Message(
        id=fact.id,
        role=fact.role,
        text=fact.text,
        parts=fact.parts or [],
        metadata=fact.metadata or {},
        run=event.run,
        offset=event.offset,
        at=event.at,
        opaque=fact.opaque or [],
        author=fact.by,
    )


def _answer(event: Event, fact: Terminal) -> Message:
    said = fact.said
    return Message(
        id=said.id,
        role="assistant",
        text=said.text,
        parts=said.parts,
        run=event.run,
        offset=event.offset,
        at=event.at,
        status=fact.type.partition(".")[2],
        usage=fact.used,
        error=RunError(fact.code, fact.message) if isinstance(fact, RunFailed) else None,
        opaque=said.opaque,
        finish_reason=fact.finish_reason if isinstance(fact, RunCompleted) else "",
    )


class Asking(msgspec.Struct, frozen=True):
    """A user's message as it was put to an agent: once when it was sent, and once for each retry."""

    fact: MessageCreated
    run: str | None
    offset: int
    at: float


def askings(events: Iterable[Event], message: str | None = None) -> list[Asking]:
    """Each ``message.created`` of a user's message (None: of all of them), oldest first."""
    return [
        Asking(event.fact, event.run, event.offset, event.at)
        for event in events
        if isinstance(event.fact, MessageCreated) and event.fact.role == "user" and message in (None, event.fact.id)
    ]


def default_agent(events: Iterable[Event], first: str) -> str:
    """Who answers in a session whose messages name nobody: the session's agent, or ``first``."""
    return next((f.agent for e in events if isinstance(f := e.fact, SessionCreated) and f.agent), first)


# Files ----------------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where something stands in a message, what it is, and the object that says what it is called."""

    at: tuple[str | int, ...]
    value: Any
    about: JsonObject


def attached(fact: MessageCreated | MessageRevised) -> list[Attachment]:
    """The files that came with a user's message, in order: by what its log says, without their bytes. Those of what was
    said before are not its own, where a client tells that again."""
    if not fact.metadata:
        return []
    given = fact.metadata.get("input")
    again = present(given) if isinstance(given, list) and all(isinstance(each, dict) for each in given) else 0
    refs = {
        tuple(at): ref
        for ref in fact.blobs or ()
        if (at := ref.at)[:1] == ["metadata"] and not (at[1:2] == ["input"] and at[2:] and at[2] in range(again))
    }
    found: list[Attachment] = []
    rest: list[Iterator[_Place]] = [iter([_Place(("metadata",), fact.metadata, {})])]
    looked = 0
    while rest and len(found) < FILES and looked < LOOKED_AT:
        if (place := next(rest[-1], None)) is None:
            rest.pop()
            continue
        looked += 1
        if isinstance(place.value, dict | list):
            rest.append(_within(place, again if place.at == ("metadata", "input") else 0))
        elif isinstance(place.value, str) and (file := _file(place, refs.pop(place.at, None))) is not None:
            found.append(file)
    for where, ref in list(refs.items())[: FILES - len(found)]:  # they are told of wherever they stand
        place = _Place(("metadata",), fact.metadata, {})
        with suppress(LookupError, TypeError):
            for key in where[1:]:
                place = _inside(place, key)
            if isinstance(place.value, str) and (file := _file(place, ref)) is not None:
                found.append(file)
    return found


def _within(place: _Place, begin: int) -> Iterator[_Place]:
    keys = place.value if isinstance(place.value, dict) else range(begin, len(place.value))
    return (_inside(place, key) for key in keys)


def _inside(place: _Place, key: Any) -> _Place:
    about = place.value if isinstance(place.value, dict) else {}
    if about and ADDRESSES.intersection(place.at[-1:]):  # {"image_url": {"url": ...}}
        about = place.about
    return _Place((*place.at, key), place.value[key], about)


def _file(place: _Place, ref: BlobRef | None) -> Attachment | None:
    at, text, about = place
    name = next((str(about[key])[:200] for key in ("filename", "name", "title") if isinstance(about.get(key), str)), "")
    if ref is not None:
        said = next((each for key in ("media_type", "mime_type") if isinstance(each := about.get(key), str)), "")
        return Attachment("" if ref.plain else ref.type or said[:80].lower(), name, ref.size, ref.hash)
    if len(text) > SMALL:
        return None
    if text[:5].lower() == "data:" and "," in text:
        head = text[5 : text.index(",")].lower()
        return (
            Attachment(head.partition(";")[0][:80], name, url=f"data:{text[5:]}") if head.endswith(";base64") else None
        )
    leads = not ADDRESSES.isdisjoint(at[-2:]) and text[:8].lower().startswith(("https://", "http://"))
    return Attachment("", name, url=text) if leads else None

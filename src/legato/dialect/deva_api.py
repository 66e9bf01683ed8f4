"""The Deva dialect's threads, messages and personas: their bodies, and how a session's log is folded into them.

Everything here is data and pure functions; ``server/deva.py`` does the I/O. The pages of Deva contradict each other on
a message's fields, so a message here has those of all of them; a time is the number that its stream has, or on request
the text that its types have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..errors import CursorInvalid
from ..event import MessageCreated, Said
from ..log import SessionInfo
from ..part import Message, Part, RefusalPart, TextPart
from .common import KEY_PATTERN, SessionId, Spoken, Title, rfc3339

PARAGRAPH = "\n\n"
"""Between the texts of two steps: the user sees no tools, and two sentences would run into each other."""
USER = "user"
"""The id and name of the persona who asks: Legato knows its users' messages, not its users."""


class Persona(msgspec.Struct, frozen=True):
    """Who speaks: an agent, by its name, or the user."""

    id: str
    username: str
    display_name: str
    avatar: str | None = None


class ThreadMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a thread.

    Attributes:
        created_at: seconds since the epoch, or ISO 8601 text if that was asked for.
        in_reply_to: of an answer, the message that it answers.
        status: of an answer: ``failed`` and ``cancelled`` ones are there as far as they came.
    """

    id: str
    text: str
    persona_id: str
    thread_id: str
    created_at: int | str
    author_type: Literal["USER", "BOT"]
    persona: Persona
    in_reply_to: ThreadMessage | None = None
    status: Literal["completed", "failed", "cancelled"] | UnsetType = UNSET


class MessagePage(msgspec.Struct):
    """Messages of a thread, the newest first. ``next_cursor`` leads to older ones, null if there are none."""

    items: list[ThreadMessage]
    next_cursor: str | None = None


class PersonaPage(msgspec.Struct):
    """Personas."""

    items: list[Persona]
    next_cursor: str | None = None


class Thread(msgspec.Struct):
    """A session, as a thread between the user and one agent."""

    id: str
    title: str
    members: list[Persona]
    is_direct_message: bool
    created_at: str
    updated_at: str


class CreateThread(msgspec.Struct):
    """A new thread.

    Attributes:
        username: which agent answers in it; the server's first one by default.
        id: your own id, if you want one; it cannot be used twice.
    """

    title: Title = ""
    username: str | None = None
    id: SessionId | None = None


class CreateMessage(msgspec.Struct):
    """A user's message.

    Attributes:
        client_id: the same id and text, the same message: safe to send again. 1 to 255 visible ASCII characters.
    """

    text: Spoken
    client_id: Annotated[str, Meta(pattern=KEY_PATTERN)] | None = None


class Stopped(msgspec.Struct):
    """Whether the message was being answered, and is now asked to stop."""

    stopped: bool


# Folds ----------------------------------------------------------------------------------------------------------------


def persona(name: str) -> Persona:
    """The persona of an agent."""
    return Persona(id=name, username=name, display_name=name)


_USER = Persona(id=USER, username=USER, display_name="User")


def moment(at: float, *, iso: bool) -> int | str:
    """``at``, seconds since the epoch, as a message has it."""
    return rfc3339(at) if iso else int(at)


def question(session: str, fact: MessageCreated, at: float, *, iso: bool = False) -> ThreadMessage:
    """A user's message."""
    return _asked(session, fact.id, fact.text, at, iso)


def _asked(session: str, id: str, text: str, at: float, iso: bool) -> ThreadMessage:
    return ThreadMessage(
        id=id,
        text=text,
        persona_id=USER,
        thread_id=session,
        created_at=moment(at, iso=iso),
        author_type="USER",
        persona=_USER,
    )


def answer(
    session: str, said: Said, at: float, *, agent: str, asked: ThreadMessage | None, iso: bool = False
) -> ThreadMessage:
    """A whole answer, from what its run's terminal event says."""
    return _answered(session, said.id, shown(said.parts), at, agent, asked, iso, "completed")


Status = Literal["completed", "failed", "cancelled"]


def _answered(
    session: str, id: str, text: str, at: float, agent: str, asked: ThreadMessage | None, iso: bool, status: Status
) -> ThreadMessage:
    return ThreadMessage(
        id=id,
        text=text,
        persona_id=agent,
        thread_id=session,
        created_at=moment(at, iso=iso),
        author_type="BOT",
        persona=persona(agent),
        in_reply_to=asked,
        status=status,
    )


def shown(parts: Iterable[Part]) -> str:
    """What the user sees of an answer: the text of all its steps."""
    texts: dict[int, str] = {}
    for part in parts:
        if isinstance(part, TextPart | RefusalPart) and part.text:
            texts[part.step] = texts.get(part.step, "") + part.text
    return PARAGRAPH.join(texts.values())


def messages(
    session: str, said: Iterable[Message], agents: Mapping[str | None, str], *, default: str, iso: bool = False
) -> list[ThreadMessage]:
    """Messages of a thread in the order of the conversation.

    Args:
        session: its id.
        said: the messages, each answer after its question.
        agents: who answered, by run.
        default: the agent that answered where the log does not say which.
        iso: see ``ThreadMessage.created_at``.
    """
    found: list[ThreadMessage] = []
    asked: ThreadMessage | None = None
    for each in said:
        if each.role == "user":
            asked = _asked(session, each.id, each.text, each.at, iso)
            found.append(asked)
        else:
            agent = agents.get(each.run, default)
            text = shown(each.parts) or each.text
            status = msgspec.convert(each.status, Status)
            found.append(_answered(session, each.id, text, each.at, agent, asked, iso, status))
    return found


def end(ids: Sequence[str], cursor: str | None) -> int:
    """Where a page of these messages of a thread ends: with the newest, or before the one that ``cursor`` names.

    Raises:
        CursorInvalid: it names none; the conversation has been taken back to before it.
    """
    if cursor is None:
        return len(ids)
    if cursor not in ids:
        raise CursorInvalid("cursor is the next_cursor of a page of this thread; begin again without it.")
    return ids.index(cursor)


def page(found: Sequence[ThreadMessage], *, more: bool) -> MessagePage:
    """Messages as a page, the newest first; ``more``: there are older ones."""
    items = list(found[::-1])
    return MessagePage(items=items, next_cursor=items[-1].id if items and more else None)


def thread(info: SessionInfo, *, default: str) -> Thread:
    """A session as a thread; ``default`` is the agent of sessions that name none."""
    agent = info.created.agent or default
    return Thread(
        id=info.session,
        title=info.created.title or agent,
        members=[_USER, persona(agent)],
        is_direct_message=True,
        created_at=rfc3339(info.created_at),
        updated_at=rfc3339(info.updated_at),
    )

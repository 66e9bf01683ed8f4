"""The routes of conversations, which are sessions, and of their items.

What is added stands in the log as what was said before; what is deleted is hidden by a revision of its message. So
every other dialect sees the same conversation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import msgspec

from ..contents import Entry, stretches
from ..dialect import conversations_api as api
from ..dialect.conversations_api import CreateConversation, CreateItems, ItemNotFound, UpdateConversation
from ..dialect.responses_api import BadRequest, decode
from ..dialect.responses_items import behind, check_order, item_list
from ..errors import InvalidInput, KeyReused, NotFound, SessionExists, SessionNotFound
from ..event import MessageRevised, SessionCreated
from ..items import Item
from ..log import SessionInfo
from ..part import Message
from ..questions import new_session, session_of
from .operation import session_id
from .reply import Body
from .request import Request

PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of messages, as they are stored, from which the items of one page come at most; one message in any case."""
LOOK = 100
"""Messages that are looked at in one go."""


async def create(request: Request) -> Body:
    """Begin a conversation, with what was said in it already."""
    raw = await request.raw_body()
    body = await request.aside(decode, raw or b"{}", CreateConversation)
    said = await request.aside(api.added, body.items or [])
    key = request.key
    session = new_session(request.caller, key, "conv_")
    title = next((each.text.strip().partition("\n")[0][:80] for each in said if each.role == "user"), None)
    begin = SessionCreated(title or None, metadata=api.metadata(body.metadata))
    try:
        await request.sessions.edits.add(request.caller, session, said, begin=begin, size=request.size)
    except SessionExists:
        info = await request.sessions.info(request.caller, session)
        if info.created.metadata != begin.metadata or info.created.title != begin.title:
            raise KeyReused("This idempotency key came with another conversation before.", key=key) from None
    return await _conversation(request, session)


async def retrieve(request: Request) -> Body:
    """A conversation; any session is one."""
    return await _conversation(request, session_id(request.path["conversation_id"]))


async def update(request: Request) -> Body:
    """Replace a conversation's metadata."""
    session = session_id(request.path["conversation_id"])
    body = decode(await request.raw_body(), UpdateConversation)
    await request.sessions.edits.update(request.caller, session, api.metadata(body.metadata))
    return await _conversation(request, session)


async def delete(request: Request) -> Body:
    """Delete a conversation, with all that was said in it, and its responses."""
    session = session_id(request.path["conversation_id"])
    await request.sessions.delete(request.caller, session)
    return Body(200, {"id": session, "object": "conversation.deleted", "deleted": True})


async def list_items(request: Request) -> Body:
    """What was said, item by item; the last one first, unless ``order=asc``."""
    session = session_id(request.path["conversation_id"])
    try:
        limit = request.number("limit", default=20, least=1, most=100)
    except InvalidInput as exc:
        raise BadRequest(exc.message, param="limit") from exc
    order, after = request.query.get("order", "desc"), request.query.get("after")
    check_order(order)
    _check_include(request)
    entries = list((await request.sessions.contents(request.caller, session)).entries)
    if order == "desc":
        entries.reverse()
    if after is not None:
        entries = entries[_place(entries, after) :]
    found: list[Item] = []
    size, left = 0, False
    for some in _stretches(entries):
        pairs = await request.sessions.edits.versions(request.caller, session, some)
        size += sum(entry.size for entry in some)
        items = await request.sessions.aside.do(size, _items, pairs, order)
        if after is not None:
            items, after = behind(items, after), None
        found += items
        left = some[-1] is not entries[-1]
        if len(found) > limit or (found and size > PAGE_BYTES):
            break
    return Body(200, item_list(found[:limit], more=len(found) > limit or left))


async def add_items(request: Request) -> Body:
    """Add what was said elsewhere, after all that was said here. Nothing is asked with it."""
    session = session_id(request.path["conversation_id"])
    body = await request.aside(decode, await request.raw_body(), CreateItems)
    _check_include(request)
    said = await request.aside(api.added, body.items)
    key = request.key
    messages = await request.sessions.edits.add(request.caller, session, said, key=key, size=request.size)
    return Body(200, item_list([item for message in messages for item in api.items(message)], more=False))


async def items_of(request: Request, message: str, session: str) -> list[Item]:
    """The items of a message that is no run's, in this session or in that where it was said first; none if there is no
    such message for this caller."""
    for each in dict.fromkeys((session, session_of(message))):
        with contextlib.suppress(SessionNotFound):
            entries = (await request.sessions.contents(request.caller, session_id(each))).entries
            found = [entry for entry in entries if entry.id == message]
            if found:
                pairs = await request.sessions.edits.versions(request.caller, each, found[-1:])
                # Where it was said first it may be a run's; its copies are not.
                return _items([(msgspec.structs.replace(said, run=None), now) for said, now in pairs], "asc")
    return []


async def get_item(request: Request) -> Body:
    """One item."""
    session, id = session_id(request.path["conversation_id"]), request.path["item_id"]
    _check_include(request)
    entry = await _find(request, session, id)
    pairs = await request.sessions.edits.versions(request.caller, session, [entry])
    for item in _items(pairs, "asc"):
        if item["id"] == id:
            return Body(200, item)
    raise ItemNotFound(id)


async def delete_item(request: Request) -> Body:
    """Delete an item: the agents of later messages are not told of it. The others keep their ids."""
    session, id = session_id(request.path["conversation_id"]), request.path["item_id"]
    entry = await _find(request, session, id)
    try:
        await request.sessions.edits.revise(
            request.caller, session, entry.id, lambda first, last: api.without(first, last, id)
        )
    except SessionNotFound:
        raise
    except NotFound:  # the message has been taken back meanwhile
        raise ItemNotFound(id) from None
    return await _conversation(request, session)


async def _conversation(request: Request, session: str) -> Body:
    info: SessionInfo = await request.sessions.info(request.caller, session)
    metadata = await request.sessions.edits.metadata(request.caller, session)
    return Body(200, api.conversation_object(session, info.created_at, metadata))


async def _find(request: Request, session: str, id: str) -> Entry:
    """The message that an item is of.

    Raises:
        SessionNotFound: there is no such conversation. ItemNotFound: there is no such message in it.
    """
    entries = (await request.sessions.contents(request.caller, session)).entries
    try:
        return entries[_place(entries, id)]
    except BadRequest:
        raise ItemNotFound(id) from None


def _place(entries: Sequence[Entry], id: str) -> int:
    """The place of the message that an item is of.

    Raises:
        BadRequest: there is no such message.
    """
    if (of := api.message_of(id)) is not None:
        name, asked = of
        for place, entry in enumerate(entries):
            if entry.id == name or (entry.run == name and asked == (entry.role == "user")):
                return place
    raise BadRequest(f"There is no item {id[:200]!r}.", param="after")


def _stretches(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    for begin in range(0, len(entries), LOOK):
        yield from stretches(entries[begin : begin + LOOK], bytes=PAGE_BYTES // 4)


def _items(pairs: Sequence[tuple[Message, MessageRevised | None]], order: str) -> list[Item]:
    found = []
    for message, revision in pairs:
        items = api.items(message, revision)
        found += items if order == "asc" else items[::-1]
    return found


def _check_include(request: Request) -> None:
    names = [value for name in ("include", "include[]") for value in request.query.getlist(name)]
    for name in names:
        if name not in api.INCLUDABLE:
            known = ", ".join(sorted(api.INCLUDABLE))
            raise BadRequest(f"include is made of {known}, got {name[:100]!r}.", param="include")

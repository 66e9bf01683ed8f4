"""The items of requests and answers of the Responses dialect as they are shown, in pages."""

from __future__ import annotations

import re

from ..event import MessageCreated
from ..items import Item, present
from ..json import JsonObject
from .responses_api import BadRequest

_ITEM_ID = re.compile(r"[a-z]{1,9}_(.{1,250})_[0-9]{1,9}", re.ASCII)


def owner_of_item(id: str) -> str | None:
    """The run of the item of this id, or its message if that is no run's; None if no item can have it."""
    match = _ITEM_ID.fullmatch(id)
    return match[1] if match else None


def input_items(run: str, asked: MessageCreated) -> list[Item]:
    """The items of a request, each with an id."""
    given = (asked.metadata or {}).get("input")
    if not isinstance(given, list):
        given = [{"type": "message", "role": "user", "content": asked.text}]
    return [{"id": f"in_{run}_{place}", **whole_item(item)} for place, item in enumerate(given)]


def asked_items(run: str, asked: MessageCreated) -> list[Item]:
    """Those of ``input_items`` that were asked, without what was said before, which is messages of its own."""
    items = input_items(run, asked)
    return items[present(items) :]


def whole_item(item: Item) -> Item:
    """An item as it is shown, but for its id."""
    content = item.get("content")
    whole = {"status": "completed", **item, **({"type": item.get("type") or "message"} if "role" in item else {})}
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        whole["content"] = content = [{"type": kind, "text": content}]
    if isinstance(content, list):
        whole["content"] = [
            {**_OUTPUT_TEXT, **part} if isinstance(part, dict) and part.get("type") == "output_text" else part
            for part in content
        ]
    return whole


_OUTPUT_TEXT: JsonObject = {"annotations": [], "logprobs": []}
"""Fields that such a part has to have."""


def page(items: list[Item], *, limit: int, order: str, after: str | None) -> JsonObject:
    """One page of ``items``, which are oldest first.

    Raises:
        BadRequest: ``order`` is neither ``asc`` nor ``desc``, or there is no item ``after``.
    """
    check_order(order)
    if order == "desc":
        items = items[::-1]
    if after is not None:
        items = behind(items, after)
    return item_list(items[:limit], more=len(items) > limit)


def check_order(order: str) -> None:
    """Raise ``BadRequest`` if ``order`` is neither ``asc`` nor ``desc``."""
    if order not in ("asc", "desc"):
        raise BadRequest(f"order is 'asc' or 'desc', got {order[:60]!r}.", param="order")


def behind(items: list[Item], after: str) -> list[Item]:
    """The items that come after one.

    Raises:
        BadRequest: there is none of that id.
    """
    places = [place for place, item in enumerate(items) if item["id"] == after]
    if not places:
        raise BadRequest(f"There is no item {after[:200]!r}.", param="after")
    return items[places[0] + 1 :]


def item_list(shown: list[Item], *, more: bool) -> JsonObject:
    """A page of items as it is told."""
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": more,
    }

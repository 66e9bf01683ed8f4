"""The last pass over a conversation before it is sent: what the API that reads it demands, whoever said it. No I/O.

What goes in has the form of Chat Completions. Besides, an assistant's message may have ``opaque``: for each of its
owners what they want back, as ``owner`` and ``data``; and ``thinking``: what the model thought, as text. What comes out
has of ``opaque`` the pieces of this one owner, in one list, and calls with ids and names that it takes.

A *piece* is one of

- ``{"block": ...}``: a part of the message in the API's own form, kept as it came; with a ``call``, it says that call,
  which the provider has made itself, or what came of it;
- ``{"text": n}``: the next n characters of the message's text, and ``{"call": id}``: this call, with ``fields`` to be
  added, and the ``id`` that it had where it came from. So what was said beside the blocks keeps its place among them;
- ``{"fields": ...}``: fields of the message itself; ``{"thinking": name}``: its thinking, in the field of this name.

Which rules hold is known of an API (Messages), of an address, of a model's name, is said (``rules``), or is learned
from a refusal (``learned``). What does no harm anywhere is done everywhere.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from ..json import JsonObject
from .prompt import as_text, tool_calls

__all__ = ["RULES", "Addressee", "Piece", "arranged", "is_plain", "learned", "tells_calls", "told", "told_name"]

Piece = tuple[Literal["block", "text", "call"], JsonObject]

RULES: Final = ("deepseek", "gemini", "mistral", "plain")
"""What may be said of who reads a conversation. ``plain``: it wants nothing back, or takes it no more."""

_HOSTS: Final = {
    "deepseek": ("deepseek.com",),
    "gemini": ("googleapis.com",),
    "mistral": ("mistral.ai",),
}
_MODELS: Final = {"mistral": re.compile(r"mi[sx]tral|magistral|ministral|codestral|devstral|pixtral|voxtral", re.I)}
"""By the model's name, where the rules harm nobody else who serves it."""

_REFUSALS: Final = {
    "deepseek": r"reasoning_content\W.*must be passed back|missing\W+reasoning_content",
    "gemini": r"missing a .?thought_?signature",
    "mistral": r"a-z, A-Z, 0-9, with a length of 9|unexpected role .{0,20} after role|expected last role",
    "plain": r"reasoning|thinking|thought|signature|encrypted|extra_content|extra (inputs|fields)",
}
"""What tells of a rule in the words of those who refuse."""

_IDS: Final = {
    "chat": re.compile(r"[A-Za-z0-9_-]{1,40}"),
    "responses": re.compile(r"[A-Za-z0-9_-]{1,64}"),
    "messages": re.compile(r"[A-Za-z0-9_-]{1,64}"),
}
_NINE: Final = re.compile(r"[A-Za-z0-9]{9}")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LETTERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

NOT_KEPT: Final = "(not kept)"
"""What stands for the thinking of another model, where there has to be some."""
UNSIGNED: Final = "skip_thought_signature_validator"
"""What Google documents for calls of other models, which have no signature."""
NO_ANSWER: Final = "(There was no answer.)"
"""What stands between a tool's output and the user's next message, where something has to."""
EARLIER: Final = "(What was said before is left out.)"
"""What stands before an assistant's message, where a user has to begin."""


_SYSTEM: Final = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Addressee:
    """Who is told a conversation.

    Attributes:
        wire: the API: ``chat``, ``responses`` or ``messages``.
        base_url: its address.
        model: who answers; behind a gateway, ``vendor/model``.
        given: rules that hold besides those that are found, see ``RULES``.
    """

    wire: str
    base_url: str
    model: str
    given: Collection[str] = ()

    @property
    def owner(self) -> str:
        """Whose what is opaque is: who else has this name gets it, too. Nothing in it is secret."""
        parts = urlsplit(self.base_url)
        port = f":{parts.port}" if parts.port else ""
        vendor, slash, _ = self.model.partition("/")
        return f"{self.wire} {parts.scheme}://{parts.hostname or ''}{port}{parts.path}" + (
            f" {vendor}" if slash else ""
        )

    @property
    def rules(self) -> frozenset[str]:
        """Those of ``RULES`` that hold."""
        found = set(self.given)
        if self.wire == "chat":
            host = f".{urlsplit(self.base_url).hostname or ''}"
            found |= {rule for rule, ends in _HOSTS.items() if any(host.endswith(f".{end}") for end in ends)}
            found |= {rule for rule, pattern in _MODELS.items() if pattern.search(self.model)}
        return frozenset(found)


def learned(words: str, known: Collection[str]) -> str | None:
    """The rule that a provider's refusal tells of, if it is none of those that were kept already."""
    found = (rule for rule, pattern in _REFUSALS.items() if re.search(pattern, words, re.I | re.S))
    return next((rule for rule in found if rule not in known), None)


def told(messages: Sequence[JsonObject], to: Addressee) -> list[JsonObject]:
    """The messages as ``to`` takes them, see the module's head."""
    rules = to.rules
    mine = [_owned(message, to.owner, "plain" in rules) for message in messages]
    mine = _reunited(mine) if to.wire == "messages" else mine
    form = _NINE if "mistral" in rules else _IDS[to.wire]
    mine = [message for message in _identified(mine, form, repeat=to.wire != "messages") if _says(message)]
    kept = [_legible(message, to.wire) for message in mine]
    if to.wire == "chat":
        if rules & {"deepseek", "gemini"}:
            kept = _alternating(kept)
        if "mistral" in rules:
            kept = _bridged(_alternating(_instructed(kept)))
        kept = [_finished(_with_fields(message), rules) for message in kept]
    return kept


def is_plain(id: str) -> bool:
    """Whether every API but the strictest takes this id of a call."""
    return _IDS["chat"].fullmatch(id) is not None


def told_name(name: str) -> str:
    """A tool's name as every API takes it; the same for the same name, and another for another."""
    if _NAME.fullmatch(name):
        return name
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:54]}_{_hash(name)}"


def arranged(message: JsonObject) -> Iterator[Piece]:
    """An assistant's message in its order: blocks, texts and calls, each with what its owner wants back.

    Raises:
        InvalidInput: a call without an id, a name or arguments.
    """
    text, pieces = as_text(message.get("content")), message.get("opaque") or []
    calls = {each.id: {"id": each.id, "name": each.name, "arguments": each.arguments} for each in tool_calls(message)}
    if not any("text" in piece for piece in pieces):
        # Behind what it thought, before what it called.
        place = next((n for n, piece in enumerate(pieces) if "call" in piece and "block" not in piece), len(pieces))
        pieces = [*pieces[:place], {"text": len(text)}, *pieces[place:]]
    last = max(n for n, piece in enumerate(pieces) if "text" in piece)
    for place, piece in enumerate(pieces):
        if "block" in piece:
            yield "block", piece["block"]
        elif "text" in piece:
            size = len(text) if place == last else max(piece["text"], 0)
            if said := text[:size]:
                yield "text", {"text": said, "fields": piece.get("fields", {})}
            text = text[size:]
        elif piece.get("call") in calls:
            yield "call", {**calls.pop(piece["call"]), "fields": piece["fields"]}
    for call in calls.values():
        yield "call", call


def _owned(message: JsonObject, owner: str, plain: bool) -> JsonObject:
    """The message with the pieces of this owner alone."""
    if "opaque" not in message:
        return dict(message)
    kept = [] if plain else [each.get("data") for each in message["opaque"] if each.get("owner") == owner]
    return {**message, "opaque": [piece for data in kept if isinstance(data, list | tuple) for piece in _pieces(data)]}


def _pieces(data: Sequence[object]) -> Iterator[JsonObject]:
    """Those that are pieces as this version knows them."""
    for piece in data:
        if isinstance(piece, dict):
            kind = next((kind for kind in ("block", "text", "call", "thinking", "fields") if kind in piece), "")
            fields = piece.get("fields")
            if kind and isinstance(piece[kind], _KINDS[kind]) and isinstance(fields, dict | None):
                yield {**piece, "fields": fields or {}}


_KINDS: Final = {"block": dict, "text": int, "call": str, "thinking": str, "fields": dict}


def _says(message: JsonObject) -> bool:
    """Whether there is anything in the message; some APIs refuse one that is blank."""
    if message.get("role") != "assistant" or not isinstance(message.get("content"), str | None):
        return True
    blocks = any(map(_is_made, message.get("opaque") or ()))
    return bool((message.get("content") or "").strip() or message.get("tool_calls") or blocks)


# Calls that the provider has made -------------------------------------------------------------------------------------


def tells_calls(data: object) -> bool:
    """Whether what is opaque has blocks about calls that its provider has made."""
    return isinstance(data, list) and any(isinstance(piece, dict) and _is_made(piece) for piece in data)


def _is_made(piece: JsonObject) -> bool:
    return "block" in piece and "call" in piece


def _reunited(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """The messages as their provider said them: calls that it has made, and what came of them, stand in its blocks
    alone, and steps that ended with them in the log are one message. Calls without an outcome are as any other's."""
    blocks = [piece["block"] for each in messages for piece in each.get("opaque") or () if _is_made(piece)]
    whole = {block.get("id") for block in blocks} & {block.get("tool_use_id") for block in blocks}
    kept: list[JsonObject] = []
    made: set[object] = set()  # the calls in the blocks of the last message
    for message in messages:
        if message.get("role") == "tool" and message.get("tool_call_id") in made:
            continue
        if message.get("role") == "assistant":
            pieces = [
                piece
                for piece in message.get("opaque") or ()
                if not _is_made(piece) or (piece["block"].get("id") or piece["block"].get("tool_use_id")) in whole
            ]
            made = {piece["call"] for piece in pieces if _is_made(piece)}
            if "opaque" in message:
                message = {**message, "opaque": pieces}
            if made:
                message, outputs = _with_earlier(message, kept)
                calls = [call for call in message.get("tool_calls") or () if call.get("id") not in made]
                kept.append({**message, "tool_calls": calls})
                kept += (output for output in outputs if output.get("tool_call_id") not in made)
                continue
        kept.append(message)
    return kept


def _with_earlier(message: JsonObject, kept: list[JsonObject]) -> tuple[JsonObject, list[JsonObject]]:
    """The message with the steps before it, which are taken out of ``kept``, all of whose calls it has; and what came
    of their calls."""
    named = {piece["call"] for piece in message["opaque"] if "call" in piece}
    outputs: list[JsonObject] = []
    while True:
        place = len(kept)
        while place and kept[place - 1].get("role") == "tool":
            place -= 1
        step = kept[place - 1] if place else {}
        calls = [call.get("id") for call in step.get("tool_calls") or () if isinstance(call, dict)]
        if not calls or step.get("opaque") or not named.issuperset(calls):
            return message, outputs
        outputs = [*kept[place:], *outputs]
        del kept[place - 1 :]
        said = f"{as_text(step.get('content'))}{as_text(message.get('content'))}"
        both = [*step["tool_calls"], *(message.get("tool_calls") or ())]
        message = {**message, "content": said or None, "tool_calls": both}


# Calls ----------------------------------------------------------------------------------------------------------------


def _identified(messages: Sequence[JsonObject], form: re.Pattern[str], *, repeat: bool) -> Iterator[JsonObject]:
    """The messages with ids of this form for their calls, the same in each turn, and each one unique: in its step
    where an API lets them repeat in the next. An id of the reader's own may be of any form."""
    taken: set[str] = set()
    ids: dict[object, str] = {}  # of the calls of the latest step: their outputs follow it
    for message in messages:
        if message.get("role") == "tool":
            id = message.get("tool_call_id")
            yield {**message, "tool_call_id": ids.get(id, id)}  # of a call that is not told, only its reader knows
        elif calls := message.get("tool_calls"):
            own = {piece["call"]: str(piece["id"]) for piece in message.get("opaque") or () if "id" in piece}
            ids = {}
            taken = set() if repeat else taken
            made = []
            for call in calls:
                if not isinstance(call, dict) or not isinstance(given := call.get("id"), str):
                    made.append(call)  # no call that is known here
                    continue
                id = own.get(given, "")
                ids[given] = id if id and id not in taken else _identify(given, form, taken)
                taken.add(ids[given])
                made.append({**call, "id": ids[given], **_named(call.get("function"))})
            pieces = [
                {**piece, "call": ids.get(piece["call"])} if "call" in piece else piece
                for piece in message.get("opaque") or ()
            ]
            yield {**message, "tool_calls": made, **({"opaque": pieces} if pieces else {})}
        else:
            yield message


def _named(function: object) -> JsonObject:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return {}
    return {"function": {**function, "name": told_name(function["name"])}}


def _identify(id: str, form: re.Pattern[str], taken: Collection[str]) -> str:
    number = 0
    told = id
    while not form.fullmatch(told) or told in taken:
        told = _hash(f"{number}:{id}")
        number += 1
    return told


def _hash(text: str) -> str:
    """Nine letters and digits, which every API takes for an id."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:12])
    letters = []
    for _ in range(9):
        number, place = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[place])
    return "".join(letters)


# Images and files -----------------------------------------------------------------------------------------------------

_SEEN: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
"""Images that Anthropic takes."""


def _legible(message: JsonObject, wire: str) -> JsonObject:
    """A user's message with images and files as the API takes them; those that it does not take are told by name."""
    content = message.get("content")
    if message.get("role") != "user" or not isinstance(content, list):
        return message
    return {**message, "content": [_LEGIBLE[wire](part) if isinstance(part, dict) else part for part in content]}


def _for_chat(part: JsonObject) -> JsonObject:
    match part:
        case {"type": "input_file", "file_data": str(data)}:
            return {"type": "file", "file": {"filename": _file_name(part), "file_data": data}}
        case {"type": "input_file"}:
            return _only_named(f"The file {_file_name(part)}")
        case {"type": "input_image"}:  # without an address, by the id that it has elsewhere
            return _only_named("An image")
    return part


def _for_responses(part: JsonObject) -> JsonObject:
    match part:
        case {"type": "file", "file": {"file_data": str()} | {"file_id": str()} as file}:
            return {"type": "input_file", **{name: file[name] for name in _FILE if isinstance(file.get(name), str)}}
        case {"type": "document"}:
            return _only_named(f"The file {_file_name(part)}")
    return part


def _for_messages(part: JsonObject) -> JsonObject:
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            kind = url.partition(";")[0].removeprefix("data:")[:100]
            return _only_named(f"An image ({kind})") if kind.startswith("image/") and kind not in _SEEN else part
        case {"type": "file", "file": dict(file)}:
            return _document(file)
        case {"type": "input_file"}:
            return _document(part)
        case {"type": "input_audio"}:
            return _only_named("A sound")
        case {"type": "input_image"}:
            return _only_named("An image")
    return part


def _document(file: JsonObject) -> JsonObject:
    head, comma, data = str(file.get("file_data") or "").partition(";base64,")
    kind = head.removeprefix("data:").partition(";")[0]
    source: JsonObject | None = None
    if isinstance(url := file.get("file_url"), str):
        source = {"type": "url", "url": url}
    elif comma and kind == "application/pdf":
        source = {"type": "base64", "media_type": kind, "data": data}
    elif comma and kind.startswith("text/"):
        with contextlib.suppress(ValueError):
            source = {"type": "text", "media_type": "text/plain", "data": base64.b64decode(data).decode()}
    if source is None:
        return _only_named(f"The file {_file_name(file)}")
    return {"type": "document", "source": source, "title": _file_name(file)}


_FILE: Final = ("filename", "file_data", "file_id")
_LEGIBLE: Final = {"chat": _for_chat, "responses": _for_responses, "messages": _for_messages}


def _file_name(file: JsonObject) -> str:
    return next(
        (name[:200] for key in ("filename", "title") if isinstance(name := file.get(key), str) and name), "file"
    )


def _only_named(what: str) -> JsonObject:
    return {"type": "text", "text": f"[{what}: this model cannot be given it.]"}


# Chat Completions -----------------------------------------------------------------------------------------------------


def _alternating(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """The messages without neighbours of one role that could be one."""
    merged: list[JsonObject] = []
    for message in messages:
        last = merged[-1] if merged else {}
        role = message.get("role")
        if role == last.get("role") == "user" or (
            role == last.get("role") == "assistant" and not last.get("tool_calls")
        ):
            merged[-1] = {**last, **message, "content": _joined(last.get("content"), message.get("content"))}
            if pieces := [*(last.get("opaque") or ()), *(message.get("opaque") or ())]:
                merged[-1]["opaque"] = pieces
        else:
            merged.append(message)
    first = next((n for n, each in enumerate(merged) if each.get("role") not in _SYSTEM), None)
    if first is not None and merged[first].get("role") == "assistant":
        merged.insert(first, {"role": "user", "content": EARLIER})
    return merged


def _joined(one: object, two: object) -> object:
    if isinstance(one, str | None) and isinstance(two, str | None):
        return "\n\n".join(text for text in (one, two) if text) or None
    lists = [[{"type": "text", "text": each}] if isinstance(each, str) else each or [] for each in (one, two)]
    return [part for parts in lists if isinstance(parts, list) for part in parts]


def _instructed(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """The messages with instructions at the head alone; those that came later are the user's to say."""
    head = next((n for n, each in enumerate(messages) if each.get("role") not in _SYSTEM), len(messages))
    later = [{**each, "role": "user"} if each.get("role") in _SYSTEM else each for each in messages[head:]]
    return [*messages[:head], *later]


def _bridged(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """The messages with an assistant's between a tool's output and a user's; the last one is to be continued."""
    kept: list[JsonObject] = []
    for message in messages:
        if message.get("role") == "user" and kept and kept[-1].get("role") == "tool":
            kept.append({"role": "assistant", "content": NO_ANSWER})
        kept.append(message)
    if kept and kept[-1].get("role") == "assistant" and not kept[-1].get("tool_calls"):
        kept[-1] = {**kept[-1], "prefix": True}
    return kept


def _with_fields(message: JsonObject) -> JsonObject:
    """An assistant's message with what its provider wants back in it."""
    if message.get("role") != "assistant":
        return message
    made = {name: value for name, value in message.items() if name not in ("opaque", "thinking")}
    calls: dict[object, JsonObject] = {}
    for piece in message.get("opaque") or ():
        if "call" in piece:
            calls[piece["call"]] = {**calls.get(piece["call"], {}), **piece["fields"]}
        elif "thinking" in piece:
            made[piece["thinking"]] = message.get("thinking") or ""
        else:
            made |= piece["fields"]
    if calls and made.get("tool_calls"):
        made["tool_calls"] = [{**call, **calls.get(call["id"], {})} for call in made["tool_calls"]]
    return made


def _finished(message: JsonObject, rules: Collection[str]) -> JsonObject:
    """An assistant's message with what has to be in it, also where another model has said it."""
    if message.get("role") != "assistant":
        return message
    if isinstance(message.get("content"), str) and not message["content"].strip():
        message = {**message, "content": None}
    if "deepseek" in rules and not message.get("reasoning_content"):
        message = {**message, "reasoning_content": NOT_KEPT}
    calls = message.get("tool_calls")
    if "gemini" in rules and calls and not any(_signed(call) for call in calls):
        unsigned = {"extra_content": {"google": {"thought_signature": UNSIGNED}}}
        message = {**message, "tool_calls": [{**call, **unsigned} for call in calls]}
    return message


def _signed(call: JsonObject) -> bool:
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    return isinstance(google, dict) and bool(google.get("thought_signature"))

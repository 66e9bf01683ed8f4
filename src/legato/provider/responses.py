"""The Responses API: the two verbs over it, and a response as the provider keeps it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..http.call import HttpCall
from ..json import JsonObject
from .errors import ProviderError, StreamMalformed, confessed
from .events import LifecycleEvent
from .last_pass import arranged
from .prompt import as_text, with_tools
from .responses_fold import ENDS, RawFold, ResponsesFold
from .responses_requests import cancel, create, resume, retrieve, stream
from .result import ChatResult, StreamChunk
from .stream import FoldedCall

__all__ = [
    "RawFold",
    "Response",
    "ResponsesFold",
    "ResponsesWire",
    "cancel",
    "create",
    "resume",
    "retrieve",
    "stream",
]


@dataclass(frozen=True, slots=True)
class Response:
    """A response as the provider keeps it.

    Attributes:
        raw: all its fields, as they were sent.
        result: what they say.
        failure: why it did not succeed; None when it did, or is not over.
    """

    raw: JsonObject
    result: ChatResult
    failure: ProviderError | None = None

    @classmethod
    def read(cls, raw: JsonObject) -> Response:
        """The response that a JSON object is.

        Raises:
            StreamMalformed: it is none.
            ResponseFailed: it is an error instead.
        """
        if not isinstance(raw.get("output"), list):
            if failure := confessed(raw):
                raise failure
            raise StreamMalformed(f"A response with a list as its output was expected, not {raw!r:.200}.")
        fold = ResponsesFold()
        fold.take_event(LifecycleEvent(type=ENDS.get(str(raw.get("status", "completed")), ""), response=raw))
        if not fold.over:
            fold.take_output(raw)
        result = fold.tally.result()
        if fold.failure is not None:
            fold.failure.partial = result
        return cls(raw, result, fold.failure)

    @property
    def id(self) -> str | None:
        """Its id."""
        return self.result.id

    @property
    def model(self) -> str | None:
        """The model that answered."""
        return self.result.model

    @property
    def status(self) -> str:
        """``completed``, ``failed``, ``incomplete``, ``cancelled``, ``queued`` or ``in_progress``."""
        return str(self.raw.get("status", "completed"))

    @property
    def text(self) -> str:
        """All its text."""
        return self.result.text

    def succeeded(self) -> Response:
        """This response.

        Raises:
            ProviderError: it failed, or was stopped before its end.
        """
        if self.failure is not None:
            raise self.failure
        return self


class ResponsesWire:
    """Chats over the Responses API."""

    name = "responses"

    def headers(self, api_key: str | None) -> dict[str, str]:
        """What each request carries."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def chat(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> HttpCall[JsonObject]:
        """The request for a whole answer."""
        return create(_input(messages), None, _options(options))

    def chat_stream(self, messages: Sequence[JsonObject], options: Mapping[str, object]) -> FoldedCall[StreamChunk]:
        """The request for an answer as it comes."""
        fold = partial(ResponsesFold, resumable=options.get("background") is True)
        return FoldedCall(stream(_input(messages), None, _options(options)), fold)

    def result(self, raw: JsonObject) -> ChatResult:
        """The answer in a JSON object.

        Raises:
            ProviderError: it failed, or it is no answer.
        """
        return Response.read(raw).succeeded().result


def _options(options: Mapping[str, object]) -> JsonObject:
    made = with_tools(options, lambda tool: {"type": "function", **tool.fields()})
    made.setdefault("max_output_tokens", made.pop("max_tokens", None))
    return made


def _input(messages: Sequence[JsonObject]) -> list[JsonObject]:
    return [item for message in messages for item in _items(message)]


def _items(message: JsonObject) -> list[JsonObject]:
    """The input items that a message of a chat is; what is such an item already stays as it is."""
    role, content = message.get("role"), message.get("content")
    if role is None or message.get("type") is not None:
        return [message]
    if role == "tool":
        return [
            {"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": as_text(content)},
        ]
    if role == "assistant":
        return [_said(kind, piece) for kind, piece in arranged(message)]
    if isinstance(content, list):
        content = [_part(part) for part in content]
    return [{"type": "message", "role": role, "content": "" if content is None else content}]


def _said(kind: str, piece: JsonObject) -> JsonObject:
    """The input item that a piece of an assistant's message is."""
    if kind == "block":
        return piece
    fields = piece.get("fields") or {}
    if kind == "call":
        call = {"type": "function_call", "call_id": piece["id"], "name": piece["name"]}
        return {**call, "arguments": piece["arguments"], **fields}
    parts = [{"type": "output_text", "text": piece["text"]}]
    return {"type": "message", "role": "assistant", "content": parts, **fields}


def _part(part: object) -> object:
    """A part of a message, from the form that Chat Completions has for it."""
    match part:
        case {"type": "text", "text": text}:
            return {"type": "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **more}}:
            return {"type": "input_image", "image_url": url, "detail": more.get("detail", "auto")}
        case {"type": "image_url", "image_url": str(url)}:
            return {"type": "input_image", "image_url": url, "detail": "auto"}
    return part

"""The routes of the Responses dialect, and of Chat Completions: plain ASGI, under ``/v1`` and ``/``.

A request for a response stores a message, and the runner answers it; from then on everything is a reader of the log.
So a request that is cut off ends nothing, and the same response can be read again, from any event of it, for as long
as the log is kept.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.types import Receive, Scope, Send

from ..dialect import chat, mix_api, responses_api
from ..dialect.responses import ResponseEncoder, parse_id, response_id
from ..dialect.responses_api import BadRequest, Create, CreateChat, ModelNotFound, Prompt
from ..errors import Draining, InvalidInput, LegatoError, NotFound, SessionExists, SessionNotFound
from ..event import Draft, Event
from ..log import Log, Store
from ..run import Runner
from ..transcript import history
from .operation import RETRY_AFTER, Answer, Operation, Request, path_within, respond
from .responses_operations import operations
from .stored import Found, StoredResponses
from .stream import Pump, Streams, unless_cut

logger = logging.getLogger("legato")

CANCEL_SECONDS = 5.0
"""How long a cancel waits for the run to end before it answers with the response as it is then."""


class Encoder(Protocol):
    """One reader's view of one run."""

    over: bool

    def encode(self, event: Event) -> bytes:
        """The bytes of an event, or none."""
        ...

    def heartbeat(self, cursor: int) -> bytes:
        """The bytes for a silence."""
        ...


class Follow(msgspec.Struct, frozen=True):
    """An answer that is a stream."""

    found: Found
    encoder: Encoder


class ResponsesRoutes:
    """An ASGI application for the paths that ``serves`` names.

    Args:
        store, runner, streams: of the application.
        heartbeat: seconds of silence in a stream before a comment.
        max_body: bytes of a request's body.
    """

    def __init__(self, store: Store, runner: Runner, streams: Streams, *, heartbeat: float, max_body: int) -> None:
        self._store = store
        self._runner = runner
        self._streams = streams
        self._stored = StoredResponses(store, streams)
        self._heartbeat = heartbeat
        self._max_body = max_body
        self._operations = operations(self)

    def operations(self) -> list[Operation]:
        """All of them, for the document."""
        return self._operations

    def serves(self, path: str) -> bool:
        """Whether ``path``, within the application, is one of this dialect's."""
        first = _segments(path)[0]
        return first in ("responses", "models") or path == "/chat/completions" or path.startswith("/v1/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            operation, names = self._route(scope)
            http = HTTPRequest({**scope, "path_params": names}, receive)
            answer = await operation.handler(Request(http, self._max_body))
        except _WrongMethod as exc:
            body = responses_api.error_body(405, f"Use {exc.allowed} here.", "method_not_allowed")
            await respond(Answer(405, body, {"allow": exc.allowed}))(scope, receive, send)
        except LegatoError as exc:
            await respond(_refusal(exc))(scope, receive, send)
        except Exception:
            body = responses_api.error_body(500, "The server failed; its log has the details.", "internal")
            await respond(Answer(500, body))(scope, receive, send)
            raise  # for the server's log
        else:
            if isinstance(answer, Answer):
                await respond(answer)(scope, receive, send)
            else:
                await self._follow(answer, receive, send)

    def _route(self, scope: Scope) -> tuple[Operation, dict[str, str]]:
        path = path_within(scope)
        segments = _segments(path)
        allowed = []
        for operation in self._operations:
            names = _names(_segments(operation.path), segments)
            if names is not None and operation.method == scope["method"]:
                return operation, names
            if names is not None:
                allowed.append(operation.method)
        if allowed:
            raise _WrongMethod(", ".join(allowed))
        raise NotFound(f"{scope['method']} {path[:200]} is not part of this API.")

    async def _follow(self, answer: Follow, receive: Receive, send: Send) -> None:
        found, encoder = answer.found, answer.encoder
        pump = Pump(
            self._store,
            found.session,
            found.before,
            encode=encoder.encode,
            heartbeat=encoder.heartbeat,
            interval=self._heartbeat,
            over=lambda event: encoder.over,
            dialect="responses" if isinstance(encoder, ResponseEncoder) else "chat",
        )
        await self._streams.run(pump, b"", [], receive, unless_cut(send, lambda: encoder.over))

    # Responses --------------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Answer | Follow:
        """Store what is asked and have it answered; the answer at once, as a stream, or when it is there."""
        body: Create = responses_api.decode(await request.raw_body(), Create)
        self._check_model(body.model, BadRequest)
        asked = responses_api.prompt(body)
        if body.stream:
            self._admit(body)
        found = await self._begin(body, asked, _key(request))
        if body.stream:
            return Follow(found, ResponseEncoder(found.fold()))
        if body.background:
            return Answer(200, found.queued())
        with _begun():
            await self._ended(found, request)
            return Answer(200, (await self._stored.folded(found)).response())

    async def retrieve(self, request: Request) -> Answer | Follow:
        """A response as it is, or its events after a number, and on as they come."""
        after = _cursor(request.query.get("starting_after"))
        stream = _flag(request, "stream")
        found = await self._stored.find(request.path["response_id"])
        if stream:
            await self._check_cursor(found, after)
            self._streams.admit(found.session)
            return Follow(found, ResponseEncoder(found.fold(), after=after))
        return Answer(200, (await self._stored.folded(found)).response())

    async def _check_cursor(self, found: Found, after: int | None) -> None:
        # What is ahead of a running response was never sent by it; its reader would wait in vain, and then miss events.
        if after is None:
            return
        fold = await self._stored.folded(found)
        if not fold.ended and after >= fold.sequence:
            raise BadRequest(
                f"The response is at sequence_number {fold.sequence - 1}; nothing has been sent up to {after}.",
                param="starting_after",
            )

    async def cancel(self, request: Request) -> Answer | Follow:
        """Stop a response, and give it back as it then is. One that has ended is given back as it is."""
        found = await self._stored.find(request.path["response_id"])
        if await self._runner.cancel(found.session, found.run):
            try:
                async with asyncio.timeout(CANCEL_SECONDS):
                    await self._stored.until_ended(found)
            except TimeoutError:
                pass  # it waits behind another run, or its agent does not listen; the request is in the log
        return Answer(200, (await self._stored.folded(found)).response())

    async def delete(self, request: Request) -> Answer | Follow:
        """Delete a response that has ended. Its conversation keeps what was said, until the last one is deleted."""
        found = await self._stored.find(request.path["response_id"])
        fold = await self._stored.folded(found)
        if not fold.ended:
            raise BadRequest(
                "A response cannot be deleted while it is in progress; cancel it first.", code="in_progress"
            )
        await self._stored.delete(found)
        return Answer(200, {"id": response_id(found.run), "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Answer | Follow:
        """What was asked, item by item; the last one first, unless ``order=asc``."""
        try:
            limit = request.number("limit", default=20, least=1, most=100)
        except InvalidInput as exc:
            raise BadRequest(exc.message, param="limit") from exc
        query = request.query
        found = await self._stored.find(request.path["response_id"])
        items = responses_api.input_items(found.run, found.message.data)
        return Answer(
            200, responses_api.page(items, limit=limit, order=query.get("order", "desc"), after=query.get("after"))
        )

    async def models(self, request: Request) -> Answer | Follow:
        """The agents."""
        return Answer(200, {"object": "list", "data": [responses_api.model(name) for name in self._runner.agents]})

    async def model(self, request: Request) -> Answer | Follow:
        """One agent."""
        self._check_model(request.path["model"])
        return Answer(200, responses_api.model(request.path["model"]))

    # Chat Completions -------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Answer | Follow:
        """Store the last message, with those before it as history, and have it answered."""
        body: CreateChat = responses_api.decode(await request.raw_body(), CreateChat)
        self._check_model(body.model)
        if body.n not in (None, 1):
            raise BadRequest("An agent gives one answer: n must be 1.", param="n")
        create = responses_api.from_chat(body)
        if body.stream:
            self._admit(create)
        found = await self._begin(create, responses_api.prompt(create), _key(request))
        usage = bool(body.stream_options and body.stream_options.include_usage)
        encoder = chat.ChatEncoder(found.run, agent=found.agent, include_usage=usage)
        if body.stream:
            return Follow(found, encoder)
        with _begun():
            await self._ended(found, request)
            async for event in Log(self._store, found.session).all(found.before):
                encoder.feed(event)
                if encoder.over:
                    break
        if encoder.failure is not None:
            answer = responses_api.error_body(500, encoder.failure["message"], encoder.failure["code"])
            return Answer(500, answer, {"x-should-retry": "false"})  # it has been answered once, and paid for
        return Answer(200, encoder.completion())

    # Runs -------------------------------------------------------------------------------------------------------------

    def _check_model(self, model: str | None, refusal: type[BadRequest] | None = None) -> None:
        if model is None or model in self._runner.agents:
            return
        if refusal is not None:
            known = ", ".join(self._runner.agents)
            raise refusal(
                f"The requested model '{model[:100]}' does not exist; this server has: {known}.",
                code="model_not_found",
                param="model",
            )
        raise ModelNotFound(model)

    def _admit(self, body: Create) -> None:
        # Before anything is stored: a client that is refused sends again, and would be answered twice.
        place = parse_id(body.previous_response_id or "")
        self._streams.admit(place[0] if place else responses_api.conversation(body) or "")

    async def _begin(self, body: Create, asked: Prompt, key: str | None) -> Found:
        if self._runner.draining:  # before anything is stored
            raise Draining("The server is shutting down and takes no new messages; try again.")
        try:
            session = await self._place(body, asked, key)
            sent = await self._runner.send(session, asked.text, agent=body.model, metadata=asked.metadata, key=key)
        except SessionNotFound:
            if body.previous_response_id is None:
                raise
            raise _unknown_previous(body.previous_response_id) from None  # deleted meanwhile, and the log with it
        found = await self._stored.locate(session, sent.run)
        if found is None:
            raise NotFound("The response, or its conversation, has been deleted.")
        return found

    async def _place(self, body: Create, asked: Prompt, key: str | None) -> str:
        """The session in which the response belongs; begun, with what was said before, if it is a new one."""
        conversation = responses_api.conversation(body)
        if conversation is not None and body.previous_response_id is not None:
            raise BadRequest("Give previous_response_id or conversation, not both.", param="previous_response_id")
        if conversation is not None:
            return await self._continue((await self._store.info(conversation)).session, asked, key)
        if body.previous_response_id is not None:
            return await self._after(body.previous_response_id, asked, key)
        session = _new_session(key)
        stem = f"{session}~h"
        agent = body.model or next(iter(self._runner.agents))  # by name, so that the log says who answers
        return await self._create(
            session, [responses_api.created(asked, agent), *responses_api.earlier(asked, stem)], key
        )

    async def _create(self, session: str, drafts: list[Draft], key: str | None) -> str:
        try:
            await self._store.append(session, drafts)
        except SessionExists:
            if key is None:
                raise
            # The same request came before; if that was another one, sending the message will say so.
        return session

    async def _continue(self, session: str, asked: Prompt, key: str | None) -> str:
        if drafts := responses_api.earlier(asked, f"{session}~h{secrets.token_hex(6)}."):
            await self._store.append(session, drafts, once=f"earlier:{key}" if key else None)
        return session

    async def _after(self, id: str, asked: Prompt, key: str | None) -> str:
        """The session of response ``id`` if it is the last there; else a copy of it up to and with that response."""
        try:
            found = await self._stored.find(id)
        except NotFound:
            raise _unknown_previous(id) from None
        events = [event async for event in Log(self._store, found.session).all(deltas=False)]
        asks = [event for event in events if event.type == "message.created"]
        messages = history(events)
        if all(message.run != found.run for message in messages):
            raise _unknown_previous(id)  # deleted meanwhile, or its conversation was rewound to before it
        if asks[-1].run == found.run or (key and any(event.data.get("key") == key for event in asks)):
            return await self._continue(found.session, asked, key)
        place = next((n for n, m in enumerate(messages) if m.run == found.run and m.role == "assistant"), None)
        if place is None:
            raise BadRequest(
                "The previous response is still in progress, and others wait behind it.",
                code="previous_response_in_progress",
                param="previous_response_id",
            )
        info = await self._store.info(found.session)
        copy = mix_api.Fork(message_index=place, title=info.data.get("title", ""))
        session = _new_session(key)
        drafts = [*mix_api.forked(copy, info, messages), *responses_api.earlier(asked, f"{session}~h")]
        return await self._create(session, drafts, key)

    async def _ended(self, found: Found, request: Request) -> None:
        """Wait until the run has ended, or the client has left: then nobody is there to be answered."""
        ended = asyncio.create_task(self._stored.until_ended(found))
        gone = asyncio.create_task(request.left())
        try:
            await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        finally:
            ended.cancel()
            gone.cancel()


@contextmanager
def _begun() -> Iterator[None]:
    """Marks errors of a request that has been stored: sent again by itself, it would be answered twice."""
    try:
        yield
    except LegatoError as exc:
        exc.detail["begun"] = True
        raise


class _WrongMethod(Exception):
    def __init__(self, allowed: str) -> None:
        super().__init__(allowed)
        self.allowed = allowed


def _names(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    """The path's parameters, if it has the form of ``pattern``."""
    if len(pattern) != len(segments):
        return None
    pairs = list(zip(pattern, segments, strict=True))
    if any(part != segment for part, segment in pairs if not part.startswith("{")):
        return None
    return {part.strip("{}"): segment for part, segment in pairs if part.startswith("{")}


def _key(request: Request) -> str | None:
    return mix_api.idempotency_key(request.headers.get("idempotency-key"))


def _flag(request: Request, name: str) -> bool:
    text = request.query.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise BadRequest(f"{name} is true or false, got {text[:60]!r}.", param=name)
    return text in ("true", "1")


def _unknown_previous(id: str) -> BadRequest:
    return BadRequest(
        f"Previous response with id '{id[:200]}' not found.",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def _segments(path: str) -> list[str]:
    return path.removeprefix("/v1/").strip("/").split("/")


def _refusal(error: LegatoError) -> Answer:
    headers = {"retry-after": RETRY_AFTER[error.status]} if error.status in RETRY_AFTER else {}
    if responses_api.is_final(error) or "begun" in error.detail:
        headers["x-should-retry"] = "false"
    if error.status >= 500:
        logger.error("%s", error)
    return Answer(error.status, responses_api.describe(error), headers)


def _new_session(key: str | None) -> str:
    # The same key must lead to the same session, although the server has never told its id to anybody.
    if key is None:
        return f"s_{secrets.token_urlsafe(16)}"
    digest = hashlib.sha256(f"responses:{key}".encode()).digest()[:16]
    return f"s_{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _cursor(text: str | None) -> int | None:
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) is None:
        raise BadRequest(
            f"starting_after is the sequence_number of the last event you have, got {text[:60]!r}.",
            param="starting_after",
        )
    return int(text)

"""The routes of the Responses dialect, and of Chat Completions, under ``/v1`` and ``/``.

A request for a response stores a message, and the runner answers it; from then on everything is a reader of the log.
So a request that is cut off ends nothing, and the same response can be read again, from any event of it, for as long
as the log is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping

from ..check import digits
from ..dialect import chat, responses_api, responses_items, responses_known
from ..dialect.fold import Fold
from ..dialect.responses import ResponseEncoder, ResponseFold, parse_id, response_id, settings
from ..dialect.responses_api import BadRequest, Create, CreateChat, ModelNotFound, Prompt, ResponseNotFound
from ..errors import InvalidInput, LegatoError, NotFound, RunInProgress, RunNotFound, SessionNotFound
from ..event import Offset
from ..history import answer_place
from ..items import Item, is_bare, is_reference
from ..questions import Question, Sent, new_session
from ..sessions import Located
from .conversations import items_of
from .operation import NoSuchRoute
from .reply import Body, Later, Reply, View
from .request import Request

LOOKED_FOR = 100
"""Responses that are looked for what came of calls that a request does not tell; an id that nobody has costs a look."""
CANCEL_SECONDS = 5.0
"""How long a cancel waits for the run to end before it answers with the response as it is then."""


def _response(run: Located) -> ResponseEncoder:
    return ResponseEncoder(ResponseFold(run.session, run.run, agent=run.agent))


def _gone(fold: Fold, place: tuple[Offset, int]) -> bytes:
    assert isinstance(fold, ResponseEncoder)
    return fold.gone(place)


RESPONSES_VIEW = View("responses", fold=_response, gone=_gone)
CHAT_VIEWS = {
    False: View("chat", fold=lambda run: chat.ChatEncoder(run.run, agent=run.agent), joins=True),
    True: View(
        "chat+usage",
        fold=lambda run: chat.ChatEncoder(run.run, agent=run.agent, include_usage=True),
        joins=True,
    ),
}

# Responses ------------------------------------------------------------------------------------------------------------


async def create(request: Request) -> Reply:
    """Store what is asked and have it answered; the answer at once, as a stream, or when it is there."""
    body = await request.aside(responses_api.decode, await request.raw_body(), Create)
    _check_model(request, body.model, BadRequest)
    agent = await _agent(request, body)
    responses_known.check_settings(body, _tools_of(request, agent))
    if await request.aside(responses_known.check_items, body):
        await _resolve(request, body)
    asked = await request.aside(responses_api.prompt, body)
    _check_heeded(request, agent, asked.metadata, {})
    if body.stream:
        await _reserve(request, body)
    run = await _begin(request, body, asked)
    if body.stream:
        return request.life.follow_run(run, RESPONSES_VIEW, "responses")
    if body.background:
        return Body(200, await _queued(request, run))
    return Later(_whole(request, run), lambda refused: _cut_short(run, refused))


async def _whole(request: Request, run: Located) -> Body:
    await _ended(request, run)
    response = (await _folded(request, run)).response()
    return Body(200, responses_api.bare(response, request.headers.get("user-agent", "")))


def _cut_short(run: Located, refused: Body) -> dict[str, object]:
    """A response that is not to be had, for who has been told that there will be one."""
    response = ResponseFold(run.session, run.run, agent=run.agent).response()
    response |= {"created_at": int(run.asked.at), "status": "in_progress"}
    if refused.status != 503:  # else it goes on without this server
        error = refused.body["error"]
        response |= {"status": "failed", "error": {"code": error["code"], "message": error["message"]}}
    return response


async def retrieve(request: Request) -> Reply:
    """A response as it is, or its events after a number, and on as they come."""
    after = _cursor(request.query.get("starting_after"))
    stream = _flag(request, "stream")
    run = await _find(request, request.path["response_id"])
    if not stream:
        return Body(200, (await _folded(request, run)).response())
    request.reserve(run.session)
    if after is None:
        return request.life.follow_run(run, RESPONSES_VIEW, "responses")
    fold = await _folded(request, run)
    if fold.thin:  # the number is another event's now
        return request.life.follow_run(run, RESPONSES_VIEW, "responses", exact=False)
    return request.life.follow_run(run, RESPONSES_VIEW, "responses", after=_place(fold, after))


def _place(fold: ResponseFold, after: int) -> tuple[Offset, int]:
    """Where the event of this number stands; behind all of them, if there are not so many and there will be no more."""
    last = fold.sequence - 1
    if fold.ended and after >= last:
        offset, count = fold.place(last)
        return offset, count + 1  # with the frame that says that it is over
    try:
        return fold.place(after)
    except IndexError:
        # What is ahead of a running response was never sent by it; its reader would wait in vain, then miss events.
        raise BadRequest(
            f"The response is at sequence_number {fold.sequence - 1}; nothing has been sent up to {after}.",
            param="starting_after",
        ) from None


async def cancel(request: Request) -> Reply:
    """Stop a response, and give it back as it then is. One that has ended is given back as it is."""
    run = await _find(request, request.path["response_id"])
    return Later(_cancelled(request, run), lambda refused: _cut_short(run, refused))


async def _cancelled(request: Request, run: Located) -> Body:
    if await request.sessions.cancel(request.caller, run.session, run.run):
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await request.sessions.until_ended(request.caller, run)
        except TimeoutError:
            pass  # its agent does not listen; the request is in the log
    return Body(200, (await _folded(request, run)).response())


async def delete(request: Request) -> Body:
    """Delete a response that has ended. Its conversation keeps what was said, until the last one is deleted."""
    run = await _find(request, request.path["response_id"])
    if not (await _folded(request, run)).ended:
        raise BadRequest("A response cannot be deleted while it is in progress; cancel it first.", code="in_progress")
    try:
        await request.sessions.withdraw(request.caller, run.session, run.run)
    except RunNotFound:
        raise ResponseNotFound(response_id(run.run)) from None
    return Body(200, {"id": response_id(run.run), "object": "response", "deleted": True})


async def input_items(request: Request) -> Body:
    """What was asked, item by item; the last one first, unless ``order=asc``."""
    try:
        limit = request.number("limit", default=20, least=1, most=100)
    except InvalidInput as exc:
        raise BadRequest(exc.message, param="limit") from exc
    run = await _find(request, request.path["response_id"])
    asked = await request.sessions.question(request.caller, run)
    items = await request.sessions.aside.do(0, responses_items.input_items, run.run, asked)
    order, after = request.query.get("order", "desc"), request.query.get("after")
    return Body(200, responses_items.page(items, limit=limit, order=order, after=after))


async def models(request: Request) -> Body:
    """The agents."""
    return Body(200, {"object": "list", "data": [responses_api.model(name) for name in request.sessions.agents]})


async def model(request: Request) -> Body:
    """One agent."""
    _check_model(request, request.path["model"])
    return Body(200, responses_api.model(request.path["model"]))


# Chat Completions -----------------------------------------------------------------------------------------------------


async def complete(request: Request) -> Reply:
    """Store the last message, with those before it as history, and have it answered."""
    body = await request.aside(responses_api.decode, await request.raw_body(), CreateChat)
    _check_model(request, body.model)
    if body.n not in (None, 1):
        raise BadRequest("An agent gives one answer: n must be 1.", param="n")
    agent = body.model or next(iter(request.sessions.agents))
    responses_known.check_settings(body, _tools_of(request, agent))
    await request.aside(responses_known.check_messages, body)
    create = await request.aside(responses_api.from_chat, body)
    asked = await request.aside(responses_api.prompt, create, "messages")
    names = responses_known.CHAT_NAMES
    _check_heeded(
        request,
        agent,
        asked.metadata,
        names if body.max_tokens is None else {**names, "max_output_tokens": "max_tokens"},
    )
    if body.stream:
        await _reserve(request, create)
    run = await _begin(request, create, asked)
    view = CHAT_VIEWS[bool(body.stream_options and body.stream_options.include_usage)]
    if body.stream:
        return request.life.follow_run(run, view, "chat")
    return Later(_completion(request, run, view), lambda refused: _failed_completion(run, refused))


async def _completion(request: Request, run: Located, view: View) -> Body:
    await _ended(request, run)
    encoder = await request.life.memory.of(run, view).catch_up()
    assert isinstance(encoder, chat.ChatEncoder)
    if encoder.failure is not None:
        answer = responses_api.error_body(500, encoder.failure["message"], encoder.failure["code"])
        return Body(500, answer, {"x-should-retry": "false"})  # it has been answered once, and paid for
    return Body(200, encoder.completion())


def _failed_completion(run: Located, refused: Body) -> dict[str, object]:
    """A completion that failed, for who has been told that there will be one. It is whole for who looks at its message
    alone, and says what went wrong where LangChain, LiteLLM and OpenRouter's clients look."""
    completion = chat.ChatEncoder(run.run, agent=run.agent).completion()
    completion["choices"][0]["finish_reason"] = "error"
    return {**completion, "created": int(run.asked.at), "error": refused.body["error"]}


# Runs -----------------------------------------------------------------------------------------------------------------


async def _find(request: Request, id: str) -> Located:
    """The run that is the response of this id.

    Raises:
        ResponseNotFound: there is none, it was not to be kept, or it has been deleted.
    """
    place = parse_id(id)
    found = await request.sessions.find(request.caller, *place) if place else None
    if found is None:
        raise ResponseNotFound(id)
    given = settings(found.asked.fact.metadata or {})
    if given.store is False and not given.background:
        raise ResponseNotFound(id)
    return found


async def _folded(request: Request, run: Located) -> ResponseFold:
    """The response as it is now.

    Raises:
        ResponseNotFound: it was deleted meanwhile.
    """
    encoder = await request.life.memory.of(run, RESPONSES_VIEW).catch_up()
    assert isinstance(encoder, ResponseEncoder)
    if not encoder.fold.sequence:
        raise ResponseNotFound(response_id(run.run))
    return encoder.fold


async def _resolve(request: Request, body: Create) -> None:
    """Put what is kept in the place of what stands for it, or is sent without what came of it.

    What stands in the conversation that the request goes on with is not said twice.

    Raises:
        BadRequest: there is no such item, or it is not this caller's.
    """
    assert isinstance(body.input, list)
    known: dict[str, dict[str, Item]] = {}  # by run, or by message
    told: Collection[str] | None = None
    resolved: list[Item] = []
    for place, item in enumerate(body.input):
        if not (is_reference(item) or is_bare(item)):
            resolved.append(item)
            continue
        id = str(item.get("id"))[:400]
        owner = responses_items.owner_of_item(id) or ""
        if is_bare(item) and owner not in known and len(known) >= LOOKED_FOR:
            resolved.append(item)
            continue
        if owner not in known:
            known[owner] = await _items_of(request, owner, _session_of(body))
        if is_bare(item):
            resolved.append(known[owner].get(id, item))
            continue
        if id not in known[owner]:
            raise BadRequest(f"Item with id '{id[:200]}' not found.", code="item_not_found", param=f"input[{place}].id")
        told = await _told(request, body) if told is None else told
        if owner not in told:
            resolved.append(known[owner][id])
    body.input = resolved


async def _told(request: Request, body: Create) -> Collection[str]:
    """The ids of the messages and runs in the conversation that a request goes on with: they are told anyway."""
    try:
        contents = await request.sessions.contents(request.caller, _session_of(body))
    except SessionNotFound:
        return ()
    entries = contents.entries
    previous = parse_id(body.previous_response_id or "")
    if previous is not None and previous[1] != contents.last:  # it goes on in a copy, up to that answer
        entries = entries[: answer_place(entries, previous[1])]
    # A copy has no runs, but the ids of their messages.
    return {name for entry in entries for name in (entry.id, entry.run or entry.id.rpartition("~")[0])}


def _session_of(body: Create) -> str:
    """The session that a request goes on with, as far as it says so; "" if it begins one."""
    place = parse_id(body.previous_response_id or "")
    return place[0] if place else responses_api.conversation(body) or ""


async def _items_of(request: Request, owner: str, session: str) -> dict[str, Item]:
    """What a run was asked and what it said, or what a message says that is no run's, item by item, by id; nothing if
    there is no such run or message for this caller."""
    if parse_id(response_id(owner)) is None:
        return {item["id"]: item for item in await items_of(request, owner, session)}
    try:
        found = await _find(request, response_id(owner))
        question = await request.sessions.question(request.caller, found)
        asked = await request.sessions.aside.do(0, responses_items.input_items, found.run, question)
        return {item["id"]: item for item in (*asked, *(await _folded(request, found)).response()["output"])}
    except ResponseNotFound:
        return {}


async def _queued(request: Request, run: Located) -> dict[str, object]:
    """The response as it was when it was asked for."""
    fold = ResponseFold(run.session, run.run, agent=run.agent)
    for event in await request.sessions.read(request.caller, run.session, run.before, limit=1):
        fold.feed(event)
    return fold.response()


def _check_model(request: Request, model: str | None, refusal: type[BadRequest] | None = None) -> None:
    if model is None or model in request.sessions.agents:
        return
    if refusal is not None:
        known = ", ".join(request.sessions.agents)
        raise refusal(
            f"The requested model '{model[:100]}' does not exist; this server has: {known}.",
            code="model_not_found",
            param="model",
        )
    raise ModelNotFound(model)


async def _agent(request: Request, body: Create) -> str:
    """Who answers, as far as it is known before anything is stored: the request's agent, or its conversation's."""
    if body.model is None and (session := _session_of(body)):
        with contextlib.suppress(SessionNotFound):
            created = (await request.sessions.info(request.caller, session)).created
            return created.agent or next(iter(request.sessions.agents))
    return body.model or next(iter(request.sessions.agents))


def _tools_of(request: Request, agent: str) -> Collection[str]:
    found = request.sessions.agents.get(agent)
    return () if found is None else found.tools()


def _check_heeded(request: Request, agent: str, settings: dict[str, object], names: Mapping[str, str]) -> None:
    """Refuse by name, as the client calls it, what the agent cannot heed."""
    found = request.sessions.agents.get(agent)
    lacking = None if found is None else found.lacks(settings)
    if lacking is not None:
        raise responses_known.UnsupportedParameter(names.get(lacking[0], lacking[0]), lacking[1])


async def _reserve(request: Request, body: Create) -> None:
    # Before anything is stored: a client that is refused sends again, and would be answered twice.
    session = _session_of(body)
    if session:
        try:
            await request.sessions.info(request.caller, session)
        except SessionNotFound:
            session = ""  # nobody learns how many read what is another's, and takes a place there
    request.reserve(session)


async def _begin(request: Request, body: Create, asked: Prompt) -> Located:
    """Store what is asked where it belongs: one append, or a refusal."""
    key = request.key
    question = Question(asked.text, body.model, asked.metadata, key, asked.earlier, request.size)
    sent = await _send(request, body, question, asked)
    request.stored = True
    request.incarnation = request.sessions.incarnation  # that its cursor is of: it may have waited for a failover
    found = await request.sessions.find(request.caller, sent.session, sent.run)
    if found is None:
        raise NotFound("The response, or its conversation, has been deleted.")
    return found


async def _send(request: Request, body: Create, question: Question, asked: Prompt) -> Sent:
    sessions, caller = request.sessions, request.caller
    conversation, previous = responses_api.conversation(body), body.previous_response_id
    if conversation is not None and previous is not None:
        raise BadRequest("Give previous_response_id or conversation, not both.", param="previous_response_id")
    if conversation is not None:
        return await sessions.send(caller, conversation, question)
    if previous is None:
        agent = body.model or next(iter(sessions.agents))  # by name, so that the log says who answers
        begin = responses_api.created(asked, agent)
        return await sessions.send(caller, new_session(caller, question.key), question, begin=begin)
    try:
        found = await _find(request, previous)
        return await sessions.branch(caller, found.session, found.run, question)
    except RunInProgress:
        raise BadRequest(
            "The previous response is still in progress, and others wait behind it.",
            code="previous_response_in_progress",
            param="previous_response_id",
        ) from None
    except (ResponseNotFound, RunNotFound, SessionNotFound):  # also if it was deleted meanwhile, and the log with it
        raise BadRequest(
            f"Previous response with id '{previous[:200]}' not found.",
            code="previous_response_not_found",
            param="previous_response_id",
        ) from None


async def _ended(request: Request, run: Located) -> None:
    """Wait until the run has ended, or the client has left: then nobody is there to be answered."""
    ended = asyncio.create_task(request.sessions.until_ended(request.caller, run))
    gone = asyncio.create_task(request.left())
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
    except RunNotFound:
        raise ResponseNotFound(response_id(run.run)) from None
    finally:
        ended.cancel()
        gone.cancel()


def refuse(error: LegatoError) -> Body:
    """An error in the shape that the SDKs of this dialect know."""
    final = responses_api.is_final(error) or error.stored  # sent again by itself, it would be answered twice
    if isinstance(error, NoSuchRoute):
        error.code = "not_found"
    return Body(error.status, responses_api.describe(error), {"x-should-retry": "false"} if final else {})


def _flag(request: Request, name: str) -> bool:
    text = request.query.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise BadRequest(f"{name} is true or false, got {text[:60]!r}.", param=name)
    return text in ("true", "1")


def _cursor(text: str | None) -> int | None:
    if text is None:
        return None
    cursor = digits(text)
    if cursor is None:
        raise BadRequest(
            f"starting_after is the sequence_number of the last event you have, got {text[:60]!r}.",
            param="starting_after",
        )
    return cursor

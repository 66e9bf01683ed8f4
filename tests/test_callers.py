"""Rules R14 and R22: who asks is asked once, at one door, and nothing of one caller is there for another.

Every route of every dialect is held to it, from the table of dialects: a new one is covered by itself, and fails here
until this file knows what to fill its path with.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, get_args

import msgspec
import pytest

from asking import items
from driving import at_once, reason
from held_store import quiet
from legato.agent import Agent
from legato.archive import export, take
from legato.caller import NOBODY, Caller, Verb, may
from legato.errors import LegatoError
from legato.event import MessageCreated
from legato.server.app import Legato
from legato.server.dialects import DIALECTS
from legato.server.inspect import Inspector
from legato.server.operation import Dialect, Operation
from legato.store.memory import MemoryStore
from legato.testing import ASGIResponse, Driver, FakeClock
from raw_log import append_raw

ALICE, BOB, ADMIN = ({"x-user": name} for name in ("alice", "bob", "admin"))
SECRET = "the tea is in the attic"


class Unauthorized(LegatoError):
    """An application's own."""

    code = "unauthorized"
    status = 401

    def __init__(self) -> None:
        super().__init__("Sign in first.")


def by_header(scope: Any) -> Caller:
    """Who asks, from a header; nobody gets in without."""
    names = [value.decode() for name, value in scope["headers"] if name == b"x-user"]
    if not names:
        raise Unauthorized
    return Caller(names[0])


async def by_header_later(scope: Any) -> Caller:
    """The same, but it has to ask somebody."""
    await asyncio.sleep(0)
    return by_header(scope)


class Listening:
    """An agent that notes its turns; it asks if it is told to, and knows a secret."""

    def __init__(self) -> None:
        self.turns: list[Any] = []

    async def __call__(self, turn: Any) -> AsyncIterator[str]:
        self.turns.append(turn)
        if turn.message.text == "ask":
            await turn.notify("Q", "Which?", kind="question", response="text", wait=False)
            await turn.ask_permission("Bash", "Lists.")
        yield SECRET


@asynccontextmanager
async def serving(store: Any = None, agent: Any = None, **options: Any) -> AsyncIterator[tuple[Legato, Driver]]:
    """An application whose callers have names, and a driver without one."""
    options.setdefault("identify", by_header)
    app = Legato(MemoryStore() if store is None else store, agents=[agent or Listening()], **options)
    app.drain_on_signal = False
    app.grace = 0.0
    async with Driver(app) as driver:
        yield app, driver


# What is Alice's ------------------------------------------------------------------------------------------------------


async def hers(app: Legato, driver: Driver) -> dict[str, str]:
    """A session of Alice's with a file, an answer, and a run that waits for two; its ids by the names of this file."""
    alice = Driver(app, headers=ALICE, lifespan=False)
    session = (await alice.request("POST", "/api/sessions", json={"title": SECRET})).json()["id"]
    send = f"/api/sessions/{session}/messages"
    picture = f"data:image/png;base64,{'A' * 4096}"
    first = (await alice.request("POST", send, json={"text": SECRET, "image": picture})).json()
    await quiet()
    last = (await alice.request("POST", send, json={"text": "ask"})).json()
    await quiet()
    events = [event async for event in app.sessions.all(Caller("alice"), session)]
    ids = {event.type: event.fact.id for event in events if event.type.endswith((".requested", "notification.created"))}
    return {
        "SESSION": session,
        "RUN": first["runId"],
        "OPEN": last["runId"],
        "FIRST": first["messageId"],
        "LAST": last["messageId"],
        "PERMISSION": ids["permission.requested"],
        "NOTIFICATION": ids["notification.created"],
        "FILE": next(ref.hash for event in events if event.type == "message.created" for ref in event.fact.blobs),
    }


NEVER = {
    "SESSION": "s_never",
    "RUN": "s_never~000000000001",
    "OPEN": "s_never~000000000002",
    "FIRST": "s_never~000000000001~u",
    "LAST": "s_never~000000000002~u",
    "PERMISSION": "s_never~000000000002~p1",
    "NOTIFICATION": "s_never~000000000002~n1",
    "FILE": "0" * 64,
}
"""Ids of what never was."""


class Case(NamedTuple):
    """A request to an operation that names something: its target, and its body, with the names of this file.

    Attributes:
        refused: the status for those to whom what it names is not there.
        stays: it changes nothing.
    """

    method: str
    target: str
    body: Any = None
    refused: int = 404
    stays: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.target} {'' if self.body is None else json.dumps(self.body)[:60]}"


PATH: dict[str, Callable[[str], str]] = {
    "id": lambda path: next(name for start, name in PLACES.items() if path.startswith(start)),
    "messageId": lambda path: "LAST",
    "threadId": lambda path: "SESSION",
    "response_id": lambda path: "resp_RUN",
    "model": lambda path: "Listening",
    "conversation_id": lambda path: "SESSION",
    "item_id": lambda path: "in_RUN_0",
    "hash": lambda path: "FILE",
}
"""What the parameters of paths stand for."""
PLACES = {
    "/api/permissions/": "PERMISSION",
    "/api/notifications/": "NOTIFICATION",
    "/api/sessions/": "SESSION",
    "/stream/": "SESSION",
    "/api/inspect/sessions/": "SESSION",
}
CREATE = [
    (None, {"input": "x", "conversation": "SESSION"}, 404),
    (None, {"input": "x", "conversation": {"id": "SESSION"}, "stream": True}, 404),
    (None, {"input": items("x", "y", "z"), "conversation": "SESSION", "background": True}, 404),
    (None, {"input": "x", "previous_response_id": "resp_RUN"}, 400),
    (None, {"input": "x", "previous_response_id": "resp_OPEN", "stream": True}, 400),
]
REQUESTS: dict[str, list[tuple[str | None, Any, int]]] = {
    "streamEvents": [(query, None, 404) for query in ("sessionId=SESSION", "sessionId=SESSION&from=start")],
    "rewindSession": [(None, {"messageId": "FIRST"}, 404)],
    "forkSession": [(None, {"messageIndex": 0}, 404), (None, {"messageIndex": 99}, 404)],
    "listEvents": [(None, None, 404), ("after=3", None, 404)],
    "sendStreamingMessage": [(None, {"content": "x"}, 404)],
    "sendMessage": [(None, {"text": "x"}, 404), ("client=python-0.6.4", {"text": "x"}, 404)],
    "cancelSession": [(None, None, 404), (None, {"runId": "OPEN"}, 404)],
    "retryMessage": [(None, None, 404), (None, {"runId": "RUN"}, 404)],
    "respondToNotification": [(None, {"type": "text", "value": "x"}, 404), (None, {"type": "choice"}, 404)],
    "createThreadMessage": [(None, {"text": "x"}, 404), (None, {}, 404)],
    "getResponse": [(query, None, 404) for query in (None, "stream=true", "stream=true&starting_after=1")],
    "createResponse": CREATE,  # type: ignore[dict-item]
    "updateConversation": [(None, {"metadata": {"a": "b"}}, 404)],
    "createConversationItems": [(None, {"items": items("x")}, 404), (None, {"items": []}, 404)],
    "listConversationItems": [(query, None, 404) for query in (None, "order=asc", "after=in_RUN_0")],
}
"""Of operations what else is in a request that names something: the query, the body, and the status of a refusal."""
READS = {"streamAnswer"}
"""Operations that are no GET and change nothing."""


def named(operation: Operation) -> list[Case]:
    """The requests to an operation that name something that is somebody's; none if there is nothing in it to name."""
    parameters = re.findall(r"\{(\w+)\}", operation.path)
    path = operation.path
    for parameter in parameters:
        path = path.replace(f"{{{parameter}}}", PATH[parameter](operation.path))
    if operation.id not in REQUESTS and set(parameters) <= {"model"}:
        return []
    stays = operation.method == "GET" or operation.id in READS
    return [
        Case(operation.method, f"{path}{'' if query is None else f'?{query}'}", body, refused, stays)
        for query, body, refused in REQUESTS.get(operation.id, [(None, None, 404)])
    ]


OPERATIONS: list[tuple[Dialect, Operation]] = [(dialect, each) for dialect in DIALECTS for each in dialect.operations]
CASES = [case for _, operation in OPERATIONS for case in named(operation)]
NAMELESS = [(dialect, operation) for dialect, operation in OPERATIONS if not named(operation)]
INSPECTING = [case for operation in Inspector(DIALECTS).operations() for case in
              (named(operation) if "{" in operation.path else [Case("GET", operation.path)])]  # fmt: skip
BODIES: dict[str, Any] = {
    "createSession": {"title": "x"},
    "storeApiKey": {"provider": "x", "apiKey": "y"},
    "createChatCompletion": {"model": "Listening", "messages": items("x")},
}
"""Bodies of requests that name nothing."""


def filled(case: Case, names: dict[str, str]) -> tuple[str, Any]:
    """The target and the body of a request, with ids in place of the names."""
    texts = [case.target, json.dumps(case.body)]
    for name, id in names.items():
        texts = [text.replace(name, id) for text in texts]
    return texts[0], json.loads(texts[1])


async def sent(driver: Driver, method: str, target: str, body: Any, headers: dict[str, str]) -> ASGIResponse:
    """The answer; of a stream that stays open, what comes at once. Status 0 if the answer has to be waited for."""
    raw = b"" if body is None else json.dumps(body).encode()
    return await at_once(driver.stream(target, method=method, body=raw, headers=headers))


async def requested(driver: Driver, case: Case, names: dict[str, str], headers: dict[str, str]) -> ASGIResponse:
    return await sent(driver, case.method, *filled(case, names), headers)


async def heads(app: Legato) -> dict[str, int]:
    """How far the log of every session is."""
    return {info.session: info.head for info in (await app.store.sessions(limit=1000)).infos}


def nameless(answer: ASGIResponse, names: dict[str, str]) -> tuple[int, dict[str, str], str]:
    """An answer without the ids that were in its request."""
    text = answer.text
    for name, id in sorted(names.items(), key=lambda pair: -len(pair[1])):
        text = text.replace(id, name)
    return answer.status, {**answer.headers, "content-length": "", "x-request-id": ""}, text


# What is another's is not there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_what_is_anothers_is_answered_like_what_never_was(case: Case) -> None:
    """The same bytes but for the id, nothing stored; and for Alice it is there."""
    async with serving() as (app, driver):
        names = await hers(app, driver)
        before = await heads(app)
        refused = await requested(driver, case, names, BOB)
        unknown = await requested(driver, case, NEVER, BOB)

        assert refused.status == case.refused
        assert nameless(refused, names) == nameless(unknown, NEVER)
        assert SECRET not in refused.text
        assert await heads(app) == before
        assert app.streams.count(names["SESSION"]) == 0

        own = await requested(driver, case, names, ALICE)
        assert own.status not in (401, 403, 500)
        assert own.status != 404 or case.body == {"runId": "RUN"}  # no run of the last message


@pytest.mark.parametrize(("dialect", "operation"), NAMELESS, ids=[f"{o.method} {o.path}" for _, o in NAMELESS])
async def test_what_names_nothing_tells_nothing_of_others(dialect: Dialect, operation: Operation) -> None:
    """Lists, histories and what begins something new."""
    async with serving() as (app, driver):
        names = await hers(app, driver)
        path = operation.path.replace("{model}", "Listening")
        answer = await sent(driver, operation.method, path, BODIES.get(operation.id), BOB)

        assert answer.status in (200, 201)
        if "chat" not in path:  # Bob's own answer: the agent tells everybody the same
            assert SECRET not in answer.text
        assert not [name for name in names.values() if name in answer.text]


async def test_every_page_of_a_list_is_the_callers() -> None:
    """By cursor, by time, and the messages of all sessions; each has what is theirs, and Alice what is hers."""
    async with serving() as (app, driver):
        names = await hers(app, driver)
        own = [(await sent(driver, "POST", "/api/sessions", {"title": "b"}, BOB)).json()["id"] for _ in range(3)]
        seen: list[str] = []
        target = "/api/sessions?limit=2"
        while target:
            page = await sent(driver, "GET", target, None, BOB)
            seen += [each["id"] for each in page.json()]
            target = (
                f"/api/sessions?limit=2&cursor={page.headers['legato-next']}" if "legato-next" in page.headers else ""
            )
        assert sorted(seen) == sorted(own)
        for query in ("", "?before=2999-01-01T00:00:00Z"):
            listed = await sent(driver, "GET", f"/api/sessions{query}", None, ALICE)
            assert [each["id"] for each in listed.json()] == [names["SESSION"]]
        assert (await sent(driver, "GET", "/api/messages/history", None, BOB)).json() == []
        assert SECRET in (await sent(driver, "GET", "/api/messages/history", None, ALICE)).text


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/api/sessions", {"title": "x", "id": "SESSION"}),
        ("/api/sdk/chat", {"id": "SESSION"}),
    ],
)
async def test_an_id_that_another_has_cannot_be_had(target: str, body: dict[str, str]) -> None:
    """The one place where a caller learns that there is something: two sessions cannot have one id. So an application
    that lets its callers choose ids lets them ask for one; ids that are not chosen cannot be guessed."""
    async with serving() as (app, driver):
        names = await hers(app, driver)
        before = await heads(app)
        case = Case("POST", target, body)
        answer = await requested(driver, case, names, BOB)
        assert reason(answer)[0::2] == (409, "session_exists")
        assert SECRET not in answer.text
        assert await heads(app) == before


async def test_a_full_session_of_another_is_not_there_either() -> None:
    """Not by its bound of streams: a stream that cannot be opened is refused as one that never was."""
    async with serving(max_streams_per_session=1) as (app, driver):
        names = await hers(app, driver)
        async with driver.stream(f"/stream?sessionId={names['SESSION']}", headers=ALICE) as stream:
            await stream.read()
            for case in CASES:
                if case.method == "POST" and case.body is not None and case.body.get("stream"):
                    assert (await requested(driver, case, names, BOB)).status == case.refused
                    assert (await requested(driver, case, names, ALICE)).status == 429


# The inspector is its operator's --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", INSPECTING, ids=str)
async def test_the_inspector_is_closed_where_callers_have_names(case: Case) -> None:
    """It shows what is everybody's. So also whoever the application calls nobody does not see it."""
    for identify, headers in ((by_header, BOB), (by_header, ALICE), (lambda scope: NOBODY, {})):
        async with serving(identify=identify) as (app, driver):
            names = await hers(app, driver) if headers else NEVER
            answer = await requested(driver, case, names, headers)
            assert reason(answer)[0::2] == (403, "forbidden")
            assert not [name for name in names.values() if name in answer.text]


def rules(caller: Caller, verb: Verb, owner: str | None) -> bool:
    """An application's own: there is somebody who may look, and nothing more."""
    return may(caller, verb, owner) or (caller.subject == "admin" and verb == "inspect")


@pytest.mark.parametrize("case", INSPECTING, ids=str)
async def test_the_inspector_is_open_to_whom_the_application_lets_in(case: Case) -> None:
    """And then it shows everything, also in the form of each dialect."""
    async with serving(may=rules) as (app, driver):
        names = await hers(app, driver)
        wire = case.target.endswith("/wire")
        asked = case._replace(target=f"{case.target}?dialects=mix/legato,responses,chat,deva") if wire else case
        answer = await requested(driver, asked, names, ADMIN)
        assert answer.status == 200
        # Figures are of the server, and name nobody.
        assert (names["SESSION"] in answer.text) == ("measures" not in case.target)
        if wire:
            columns = {name for row in answer.json()["rows"] for name in row["wire"]}
            assert columns == {"mix/legato", "responses", "chat", "deva"}
        assert (await requested(driver, case, names, BOB)).status == 403


@pytest.mark.parametrize("case", INSPECTING, ids=str)
async def test_the_inspector_of_an_open_server_is_open(case: Case) -> None:
    """Unless the application says otherwise."""
    app = Legato("memory:", agents=[Listening()])
    app.drain_on_signal = False
    async with Driver(app) as driver:
        session = (await sent(driver, "POST", "/api/sessions", {"title": "x"}, {})).json()["id"]
        assert (await requested(driver, case, {"SESSION": session}, {})).status == 200
    closed = Legato("memory:", agents=[Listening()], may=may)
    closed.drain_on_signal = False
    async with Driver(closed) as driver:
        assert (await requested(driver, case, NEVER, {})).status == 403


# Whose it is ----------------------------------------------------------------------------------------------------------


async def owners(app: Legato) -> dict[str, str]:
    """Of sessions, but for the server's own."""
    infos = (await app.store.sessions(limit=1000)).infos
    return {info.session: info.owner for info in infos if not info.session.startswith(".")}


def shared(caller: Caller, verb: Verb, owner: str | None) -> bool:
    """An application whose callers share everything."""
    return True


async def test_what_a_caller_begins_is_theirs() -> None:
    """Over each dialect, forks and branches included, also of what is another's."""
    async with serving(may=shared) as (app, driver):
        names = await hers(app, driver)
        again = (await sent(driver, "POST", f"/api/sessions/{names['SESSION']}/cancel", None, ALICE)).json()
        assert again == {"cancelled": True}
        await quiet()
        session, response = names["SESSION"], f"resp_{names['RUN']}"
        for headers in (ALICE, BOB):
            before = await owners(app)
            for target, body in (
                ("/api/sessions", {"title": "x"}),
                (f"/api/sessions/{session}/fork", {"messageIndex": 1}),
                ("/api/sdk/chat", {}),
                ("/v1/responses", {"input": "x"}),
                ("/responses", {"input": items("x", "y", "z"), "stream": True}),
                ("/v1/responses", {"input": "x", "background": True}),
                ("/v1/responses", {"input": "x", "previous_response_id": response}),
                ("/v1/responses", {"input": items("x", "y", "z"), "previous_response_id": response}),
                ("/v1/conversations", {"items": items("x", "y")}),
                ("/v1/chat/completions", {"model": "Listening", "messages": items("x", "y", "z")}),
                ("/chat/completions", {"model": "Listening", "messages": items("x"), "stream": True}),
            ):
                answer = await sent(driver, "POST", target, body, headers)
                assert answer.status in (200, 201)
            after = await owners(app)
            assert len(after) == len(before) + 11
            assert {owner for id, owner in after.items() if id not in before} == {headers["x-user"]}
        assert (await owners(app))[session] == "alice"


async def test_what_has_no_owner_is_nobodys_in_particular() -> None:
    """As in files of before there were callers: everybody's on an open server, and no named caller's."""
    store = MemoryStore()
    await append_raw(store, "s_old", "session.created", {"title": SECRET})
    async with serving(store) as (app, driver):
        assert (await sent(driver, "GET", "/api/sessions/s_old", None, ALICE)).status == 404
        assert (await sent(driver, "GET", "/api/sessions", None, ALICE)).json() == []
        await hers(app, driver)
    app = Legato(store, agents=[Listening()])
    app.drain_on_signal = False
    async with Driver(app) as driver:
        assert [each["id"] for each in (await driver.request("GET", "/api/sessions")).json()] == ["s_old"]
        assert (await sent(driver, "POST", "/api/sessions/s_old/messages", {"text": "x"}, {})).status == 202


# Keys -----------------------------------------------------------------------------------------------------------------

KEYED: dict[str, tuple[str, dict[str, Any]]] = {
    "mix": ("/api/sessions/SESSION/messages", {"text": "x"}),
    "mix stream": ("/stream/SESSION/message", {"content": "x"}),
    "deva": ("/api/sdk/chat/SESSION/messages", {"text": "x", "client_id": "KEY"}),
    "conversation": ("/v1/responses", {"input": "x", "conversation": "SESSION"}),
    "new": ("/v1/responses", {"input": "x"}),
    "new with items": ("/v1/responses", {"input": items("x", "y", "z")}),
    "new chat": ("/v1/chat/completions", {"model": "Listening", "messages": items("x", "y", "z")}),
    "after the last": ("/v1/responses", {"input": "x", "previous_response_id": "resp_LASTRUN"}),
    "after an old one": ("/v1/responses", {"input": "x", "previous_response_id": "resp_RUN"}),
}
"""Requests that can come with a key."""


def run_of(answer: ASGIResponse) -> str:
    """The run that a message was given, by any of its names."""
    said = answer.json()
    name = said.get("runId") or said["id"]
    return str(name).removeprefix("resp_").removeprefix("chatcmpl-").removesuffix("~u")


@pytest.mark.parametrize("case", KEYED)
async def test_a_key_is_its_callers(case: str) -> None:
    """The same key and message of two callers are two runs; of one caller, one. Also of nobody and of somebody."""
    agent = Listening()

    def identify(scope: Any) -> Caller:
        return by_header(scope) if any(name == b"x-user" for name, _ in scope["headers"]) else NOBODY

    async with serving(may=shared, identify=identify, agent=agent) as (_, driver):
        session = (await sent(driver, "POST", "/api/sessions", {"title": "x"}, ALICE)).json()["id"]
        runs = []
        for text in ("one", "two"):
            runs.append(run_of(await sent(driver, "POST", f"/api/sessions/{session}/messages", {"text": text}, ALICE)))
            await quiet()
        target, body = filled(
            Case("POST", *KEYED[case]), {"SESSION": session, "LASTRUN": runs[1], "RUN": runs[0], "KEY": "k"}
        )
        asked = len(agent.turns)
        seen: dict[str, set[str]] = {}
        for _ in range(2):
            for name in ("alice", "bob", "", "alice k"):
                headers = {"idempotency-key": "k", **({"x-user": name} if name else {})}
                answer = await sent(driver, "POST", target, body, headers)
                assert answer.status in (200, 201, 202)
                seen.setdefault(name, set()).add(run_of(answer))
                await quiet()
        assert [len(runs) for runs in seen.values()] == [1] * 4
        assert len(set.union(*seen.values())) == 4
        callers = [turn.caller.subject for turn in agent.turns[asked:]]
        assert sorted(callers) == ["", "alice", "alice k", "bob"]
        begun = {run.partition("~")[0] for runs in seen.values() for run in runs} - {session}
        assert len(begun) == {"new": 4, "after an old one": 4, "after the last": 3}.get(
            case.split(" with")[0].split(" chat")[0], 0
        )


# Who sent it ----------------------------------------------------------------------------------------------------------


async def test_an_agent_is_told_who_sent_the_message() -> None:
    """Over each dialect; of what was sent by several, each of theirs."""
    agent = Listening()
    async with serving(may=shared, agent=agent) as (_, driver):
        session = (await sent(driver, "POST", "/api/sessions", {"title": "x"}, ALICE)).json()["id"]
        for target, body in (
            (f"/api/sessions/{session}/messages", {"text": "x"}),
            (f"/stream/{session}/message", {"content": "x"}),
            (f"/api/sdk/chat/{session}/messages", {"text": "x"}),
            ("/v1/responses", {"input": "x", "conversation": session}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/chat/completions", {"model": "Listening", "messages": items("x")}),
        ):
            for headers in (ALICE, BOB):
                agent.turns.clear()
                await sent(driver, "POST", target, body, headers)
                await quiet()
                assert [turn.caller for turn in agent.turns] == [Caller(headers["x-user"])]


@pytest.mark.parametrize("who", ["alice", None])
async def test_another_attempt_is_told_who_sent_the_message(who: str | None) -> None:
    """After a crash, by another process: it is in the log."""
    store, agent = MemoryStore(), Listening()
    await append_raw(store, "s", "session.created", {"owner": "bob"})
    asked = {"id": "s~1~u", "role": "user", "text": "x"} | ({} if who is None else {"caller": who})
    await append_raw(store, "s", "message.created", asked, "s~1")
    await append_raw(store, "s", "run.started", {"agent": "retrying", "attempt": 1}, "s~1")
    async with serving(store, Agent(agent, name="retrying", on_crash="retry")):
        await quiet()
        assert [(turn.caller, turn.attempt) for turn in agent.turns] == [(Caller(who or ""), 2)]


@pytest.mark.parametrize("dialect", ["mix", "deva"])
async def test_a_message_that_is_answered_anew_is_whose_wish_it_was(dialect: str) -> None:
    """And so is one of a fork, which is answered when its stream is opened."""
    agent = Listening()
    async with serving(may=shared, agent=agent) as (app, driver):
        session = (await sent(driver, "POST", "/api/sessions", {"title": "x"}, ALICE)).json()["id"]
        sent_by_alice = await sent(driver, "POST", f"/api/sessions/{session}/messages", {"text": "x"}, ALICE)
        await quiet()
        message = sent_by_alice.json()["messageId"]
        start = f"/api/sessions/{session}" if dialect == "mix" else f"/api/sdk/chat/{session}"
        assert (await sent(driver, "POST", f"{start}/messages/{message}/retry", None, BOB)).status == 202
        await quiet()
        fork = (await sent(driver, "POST", f"/api/sessions/{session}/fork", {"messageIndex": 0}, ALICE)).json()["id"]
        stream = f"/api/sdk/chat/{fork}/messages/{message}/query/stream"
        assert (await sent(driver, "POST", stream, None, BOB)).status == 200
        await quiet()
        assert [turn.caller.subject for turn in agent.turns] == ["alice", "bob", "bob"]
        # What is copied was sent by nobody there.
        copied = [event.fact async for event in app.sessions.all(NOBODY, fork) if event.run is None]
        assert [fact.caller for fact in copied if isinstance(fact, MessageCreated)] == [None]


async def test_each_message_says_who_wrote_it() -> None:
    """In lists, on streams and to agents: whoever had it answered anew, in copies, after an export and an import.
    Whoever reads is told who they are; on an open server there is nobody to tell of."""
    agent = Listening()
    async with serving(may=shared, agent=agent) as (app, driver):
        session = (await sent(driver, "POST", "/api/sessions", {"title": "x"}, ALICE)).json()["id"]
        where = f"/api/sessions/{session}"
        for text, who in (("one", ALICE), ("two", BOB)):
            last = (await sent(driver, "POST", f"{where}/messages", {"text": text}, who)).json()["messageId"]
            await quiet()
        for again in (ALICE, ALICE):
            assert (await sent(driver, "POST", f"{where}/messages/{last}/retry", None, again)).status == 202
            await quiet()
        fork = (await sent(driver, "POST", f"{where}/fork", {"messageIndex": 2}, ALICE)).json()["id"]
        stream = f"/api/sdk/chat/{fork}/messages/{last}/query/stream"
        assert (await sent(driver, "POST", stream, None, ALICE)).status == 200
        await quiet()
        exported = [
            line async for each in export(app.store, session=session) for line in each.splitlines(keepends=True)
        ]
        async with serving(may=shared) as (other, imported):
            assert (await take(other.store, exported)).sessions == 1
            for driven, id in ((driver, session), (driver, fork), (imported, session)):
                wrote = [("one", "alice"), ("two", "bob")]
                rows = (await sent(driven, "GET", f"/api/sessions/{id}/messages", None, BOB)).json()
                assert [(row["userInput"], row["author"]) for row in rows if row["role"] == "user"] == wrote
                assert all("author" not in row for row in rows if row["role"] != "user")
                read = await sent(driven, "GET", f"/stream?sessionId={id}&from=start", None, BOB)
                told = [
                    json.loads(each) for each in re.findall(r"(?m)^event: user_message_created\ndata: (.*)$", read.text)
                ]
                assert {(each["content"], each["author"]) for each in told} == set(wrote)
                for who in ("alice", "bob"):
                    about = await sent(driven, "GET", f"/api/sessions/{id}", None, {"x-user": who})
                    assert about.json()["you"] == who
        asked = [(turn.caller.subject, turn.message.author) for turn in agent.turns]
        assert asked == [("alice", "alice"), ("bob", "bob"), *[("alice", "bob")] * 3]
        assert {message.author for turn in agent.turns[1:] for message in turn.history} == {
            "alice",
            "",
        }  # "": the agent
    store = MemoryStore()
    await append_raw(store, "s_old", "session.created", {"title": "x"})
    await append_raw(store, "s_old", "message.created", {"id": "m1", "role": "user", "text": "x"})
    app = Legato(store, agents=[Listening()])
    app.drain_on_signal = False
    async with Driver(app) as driver:
        about = (await driver.request("GET", "/api/sessions/s_old")).json()
        [row] = (await driver.request("GET", "/api/sessions/s_old/messages")).json()
        assert {"you", "author"}.isdisjoint({*about, *row})


# Who is let in --------------------------------------------------------------------------------------------------------

REFUSED = [(dialect, case) for dialect, operation in OPERATIONS for case in
           (named(operation) or [Case(operation.method, operation.path.replace("{model}", "Listening"),
                                      BODIES.get(operation.id))])]  # fmt: skip
IDS = [str(case) for _, case in REFUSED]
FIRST_PATHS = [case for case in [*INSPECTING, *(case for _, case in REFUSED)]
               if not case.target.startswith(("/responses", "/chat", "/models", "/conversations"))]  # fmt: skip
"""A request to everything, once."""


@pytest.mark.parametrize(("dialect", "case"), REFUSED, ids=IDS)
async def test_who_is_not_let_in_is_told_in_the_words_of_the_dialect(dialect: Dialect, case: Case) -> None:
    """Whatever the route: the application's own error, and nothing stored."""
    async with serving(identify=by_header_later) as (app, driver):
        names = await hers(app, driver)
        before = await heads(app)
        answer = await requested(driver, case, names, {})
        assert answer.status == 401
        assert answer.error is None
        assert answer.json() == decode(dialect.refuse(Unauthorized()).body)
        assert await heads(app) == before
    assert decode(DIALECTS[0].refuse(Unauthorized()).body)["error"]["type"] == "unauthorized"
    assert decode(DIALECTS[2].refuse(Unauthorized()).body)["error"]["type"] == "authentication_error"


def decode(body: Any) -> Any:
    return json.loads(msgspec.json.encode(body))


class Broken:
    """An application's function that fails; for Alice it works."""

    def identify(self, scope: Any) -> Caller:
        if by_header(scope).subject != "alice":
            raise KeyError("x-user")
        return Caller("alice")

    async def identify_later(self, scope: Any) -> Caller:
        await asyncio.sleep(0)
        return self.identify(scope)

    def may(self, caller: Caller, verb: Verb, owner: str | None) -> bool:
        if caller.subject != "alice":
            raise KeyError(verb)
        return may(caller, verb, owner)


@pytest.mark.parametrize("broken", ["identify_later", "may"])
@pytest.mark.parametrize(("dialect", "case"), REFUSED, ids=IDS)
async def test_an_application_that_cannot_tell_lets_nobody_in(dialect: Dialect, case: Case, broken: str) -> None:
    """A clean 500 in the dialect's form, the exception for the server's log, and nothing stored."""
    function = getattr(Broken(), broken)
    async with serving(**({"may": function} if broken == "may" else {"identify": function})) as (app, driver):
        names = await hers(app, driver)
        before = await heads(app)
        answer = await requested(driver, case, names, BOB)
        if broken != "may" or answer.status == 500:
            assert answer.status == 500
            assert isinstance(answer.error, KeyError)
            assert set(answer.json()) == {"error"}
            assert "x-user" not in answer.text
        else:  # what is nobody's is not asked about
            assert not re.search("SESSION|RUN|MESSAGE|PERMISSION|NOTIFICATION", f"{case.target} {case.body}")
        assert await heads(app) == before
        assert len(app.streams) == app.streams.count("") == app.streams.count(names["SESSION"]) == 0


# Rules of an application's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_who_may_everything_finds_everything(case: Case) -> None:
    """As Alice does."""

    def admins(caller: Caller, verb: Verb, owner: str | None) -> bool:
        return caller.subject == "admin" or may(caller, verb, owner)

    statuses = []
    for headers in (ALICE, ADMIN):
        async with serving(may=admins) as (app, driver):
            names = await hers(app, driver)
            statuses.append((await requested(driver, case, names, headers)).status)
            listed = (await sent(driver, "GET", "/api/sessions", None, ADMIN)).json()
            assert names["SESSION"] in [each["id"] for each in listed] or case.method == "DELETE"
    assert statuses[0] == statuses[1]


READING = {"index", "info", "history", "read", "inspect"}


def readers(caller: Caller, verb: Verb, owner: str | None) -> bool:
    """Bob may look at everything, and change nothing, not even what would be his."""
    return verb in READING if caller.subject == "bob" else may(caller, verb, owner)


@pytest.mark.parametrize(("dialect", "case"), [*REFUSED, *((DIALECTS[0], case) for case in INSPECTING)],
                         ids=[*IDS, *map(str, INSPECTING)])  # fmt: skip
async def test_who_may_only_read_changes_nothing(dialect: Dialect, case: Case) -> None:
    """Whatever reads is answered, whatever writes is refused and stores nothing."""
    async with serving(may=readers) as (app, driver):
        names = await hers(app, driver)
        before = await heads(app)
        answer = await requested(driver, case, names, BOB)
        assert answer.status != 500
        assert await heads(app) == before
        if case.method == "GET" or case.stays:
            assert answer.status == 200
        elif case.target not in ("/api/auth/api-key",):
            assert answer.status in (400, 403, 404)


async def test_every_verb_is_asked_for() -> None:
    """By the operations of the dialects and the inspector, with whose it is, and by no other name."""
    seen: set[tuple[str, str | None]] = set()
    asked: set[tuple[str, str | None]] = set()

    def noting(caller: Caller, verb: Verb, owner: str | None) -> bool:
        if caller.subject == "bob":
            seen.add((verb, owner))
        return True

    for case in FIRST_PATHS:
        seen.clear()
        async with serving(may=noting) as (app, driver):
            await requested(driver, case, await hers(app, driver), BOB)
        # Who creates a session is told what they may do with it.
        told = {("create", "bob")} <= seen
        asked |= {(verb, owner) for verb, owner in seen if not told or owner != "bob" or verb == "create"}
    assert {verb for verb, _ in asked} == set(get_args(Verb))
    # To begin something is to begin something of one's own; to list and to inspect is for all, or else for oneself.
    assert {owner for verb, owner in asked if verb == "create"} == {"bob"}
    assert {owner for verb, owner in asked if verb in ("index", "inspect")} == {None}
    assert {owner for verb, owner in asked if verb in ("fork", "rewind", "delete", "resolve", "cancel")} == {"alice"}


@pytest.mark.parametrize("verb", get_args(Verb))
async def test_what_is_not_allowed_is_refused(verb: str) -> None:
    """Each verb by itself: with everything else allowed, something is refused, and nothing stored by what is.

    But for ``info`` and ``read``: answers to what is stored show what was stored.
    """

    def without(caller: Caller, asked: Verb, owner: str | None) -> bool:
        return caller.subject != "bob" or asked != verb

    refusals: list[Case] = []
    for case in FIRST_PATHS:
        async with serving(may=without) as (app, driver):
            names = await hers(app, driver)
            before = await heads(app)
            answer = await requested(driver, case, names, BOB)
            assert answer.status != 500
            if answer.status in (403, 404):
                refusals.append(case)
                assert await heads(app) == before or verb in ("info", "read")
    assert refusals or verb == "index"  # whose refusal is an empty list


async def test_a_list_leaves_out_what_goes_meanwhile() -> None:
    """A session that is deleted between two looks does not spoil the list for the others."""

    class Losing(MemoryStore):
        losing: str | None = None

        async def sessions(self, **options: Any) -> Any:
            page = await super().sessions(**options)
            if self.losing is not None:
                await append_raw(self, self.losing, "session.deleted", {})
                self.losing = None
            return page

    store = Losing(clock=FakeClock())
    async with serving(store) as (_, driver):
        sessions = [(await sent(driver, "POST", "/api/sessions", {"title": "x"}, BOB)).json()["id"] for _ in range(6)]
        for session in sessions:
            await sent(driver, "POST", f"/api/sessions/{session}/messages", {"text": session}, BOB)
        await quiet()
        for target in ("/api/sessions", "/api/messages/history", "/api/sessions?before=2999-01-01T00:00:00Z"):
            store.losing = sessions.pop()
            answer = await sent(driver, "GET", target, None, BOB)
            assert answer.status == 200
            assert {each.get("sessionId", each["id"]) for each in answer.json()} >= set(sessions)

"""Every route of every dialect, as the OpenAPI document has them, for everybody who may ask, in every way to ask.

A new route is held to it by itself, and fails here until ``PATHS`` or ``BODIES`` know what to fill it with. Whoever is
not let in gets one answer, whatever they ask for. What is another's is answered like what never was: the same bytes,
and the same calls to the store, so that neither the body nor the time says that it is there.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from driving import at_once
from held_store import quiet
from legato import Legato
from legato.auth import JWT, APIKeys
from legato.bounds import Limits
from legato.caller import SCOPES
from legato.server.dialects import DIALECTS
from legato.server.inspect import Inspector
from legato.server.openapi import document
from legato.server.sign_in import SignIn
from legato.server.sign_in_operations import SignInOperations
from legato.store.memory import MemoryStore
from legato.testing import ASGIResponse, Driver
from signing import AUDIENCE, ISSUER, SECRET, token, unsigned

WORDS = "the tea is in the attic"
"""What Alice and her agent say: nobody else reads it."""
OPERATIONS = [
    *(operation for dialect in DIALECTS for operation in dialect.operations),
    *Inspector(DIALECTS).operations(),
    *SignInOperations(SignIn([APIKeys()])).operations(),
]
DOCUMENT = document(OPERATIONS, signs_in=True)
ROUTES = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
ADMIN = {"listKeys", "addKey", "revokeKey", *(operation.id for operation in Inspector(DIALECTS).operations())}


class Counting(MemoryStore):
    """It counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def append(self, *args: Any, **options: Any) -> Any:
        self.calls["append"] += 1
        return super().append(*args, **options)

    async def info(self, *args: Any, **options: Any) -> Any:
        self.calls["info"] += 1
        return await super().info(*args, **options)

    def peek(self, session: str, *args: Any, **options: Any) -> Any:
        self.calls["read"] += not session.startswith(".")  # the keys' own log is followed meanwhile
        return super().peek(session, *args, **options)

    async def sessions(self, *args: Any, **options: Any) -> Any:
        self.calls["sessions"] += 1
        return await super().sessions(*args, **options)


async def agent(turn: Any) -> AsyncIterator[str]:
    """Asks twice if it is told to, and says what only Alice is to read."""
    if turn.message.text.endswith("ask"):
        await turn.notify("Q", "Which?", kind="question", response="text", wait=False)
        await turn.ask_permission("Bash", "Lists.")
    yield WORDS


# What there is to ask for ---------------------------------------------------------------------------------------------

PATHS: dict[str, dict[str, str]] = {
    "id": {
        "/api/permissions/": "PERMISSION",
        "/api/notifications/": "NOTIFICATION",
        "/api/auth/keys/": "KEY",
        "/": "SESSION",
    },
    "messageId": {"/": "LAST"},
    "threadId": {"/": "SESSION"},
    "response_id": {"/": "resp_RUN"},
    "model": {"/": "agent"},
    "conversation_id": {"/": "SESSION"},
    "item_id": {"/": "in_RUN_0"},
    "hash": {"/": "FILE"},
}
"""What stands for a parameter, by the beginning of the path."""
_ITEMS = [{"role": "user", "content": "x"}]
BODIES: dict[str, list[Any]] = {
    "createSession": [{"title": "x"}],
    "rewindSession": [{"messageId": "FIRST"}],
    "forkSession": [{"messageIndex": 0}],
    "sendStreamingMessage": [{"content": "x"}],
    "sendMessage": [{"text": "x"}],
    "cancelSession": [{}, {"runId": "OPEN"}],
    "retryMessage": [{}, {"runId": "OPEN"}],
    "respondToNotification": [{"type": "text", "value": "x"}],
    "storeApiKey": [{"provider": "x", "apiKey": "y"}],
    "createThread": [{}],
    "createThreadMessage": [{"text": "x"}],
    "createResponse": [
        {"input": "x"},
        {"input": "x", "stream": True},
        {"input": "x", "conversation": "SESSION"},
        {"input": "x", "conversation": {"id": "SESSION"}, "stream": True},
        {"input": "x", "previous_response_id": "resp_RUN"},
        {"input": "x", "previous_response_id": "resp_OPEN", "stream": True},
    ],
    "createConversation": [{}, {"items": _ITEMS}],
    "updateConversation": [{"metadata": {"a": "b"}}],
    "createConversationItems": [{"items": _ITEMS}],
    "createChatCompletion": [
        {"model": "agent", "messages": _ITEMS},
        {"model": "agent", "messages": _ITEMS, "stream": True},
    ],
    "signIn": [{"token": "nothing"}],
    "createTicket": [{"sessionId": "SESSION"}],
    "addKey": [{"subject": "mallory"}],
}  # fmt: skip
QUERIES: dict[str, list[str]] = {
    "streamEvents": ["sessionId=SESSION", "sessionId=SESSION&from=start", "sessionId=SESSION&lastEventId=2"],
    "getResponse": ["", "stream=true", "stream=true&starting_after=1"],
    "listEvents": ["", "after=2"],
    "inspectWire": ["dialects=mix/legato,responses,chat,deva"],
}

NEVER = {
    "SESSION": "s_never",
    "RUN": "s_never~000000000001",
    "OPEN": "s_never~000000000002",
    "FIRST": "s_never~000000000001~u",
    "LAST": "s_never~000000000002~u",
    "PERMISSION": "s_never~000000000002~p1",
    "NOTIFICATION": "s_never~000000000002~n1",
    "KEY": "aaaaaaaaaaaa",
}
WAYS: dict[str, dict[str, str]] = {
    "fresh": {},
    "with a cursor of one's own": {"last-event-id": "1"},
    "with another's cursor": {"last-event-id": "CURSOR"},
    "with another's key": {"idempotency-key": "alices-key"},
}


class Asked(NamedTuple):
    """A request, with names in the place of ids."""

    method: str
    target: str
    body: Any

    def of(self, names: dict[str, str]) -> Asked:
        texts = [self.target, json.dumps(self.body)]
        for name, id in sorted(names.items(), key=lambda pair: -len(pair[0])):
            texts = [text.replace(name, id) for text in texts]
        return Asked(self.method, texts[0], json.loads(texts[1]))


def requests(method: str, path: str, operation: Any) -> list[Asked]:
    """Those to a route; it fails for one that this file does not know how to ask."""
    for name in re.findall(r"\{(\w+)\}", path):
        word = next(word for start, word in PATHS[name].items() if path.startswith(start))
        path = path.replace(f"{{{name}}}", word)
    id = operation["operationId"]
    bodies = BODIES[id] if "requestBody" in operation else [None]
    queries = QUERIES.get(id, [""])
    return [Asked(method.upper(), f"{path}{'?' if query else ''}{query}", body) for query in queries for body in bodies]


async def sent(driver: Driver, asked: Asked, headers: dict[str, str]) -> ASGIResponse:
    """The answer; of a stream what comes at once. Status 0 if it has to be waited for, as another run comes first."""
    raw, fields = b"", dict(headers)
    if asked.body is not None:
        raw = json.dumps(asked.body).encode()
        fields["content-type"] = "application/json"
    patience = 0 if asked.target in ("/v1/responses", "/v1/chat/completions") else 30
    return await at_once(driver.stream(asked.target, method=asked.method, body=raw, headers=fields), patience=patience)


def told(answer: ASGIResponse, names: dict[str, str]) -> tuple[int, dict[str, str], str]:
    """An answer without the ids that its request named."""
    text = answer.text
    for name, id in sorted(names.items(), key=lambda pair: -len(pair[1])):
        text = text.replace(id, name)
    text = re.sub(r'"(timestamp|began|created(_at)?|expiresAt)": ?"?[^",}]*', "", text)
    return answer.status, {**answer.headers, "content-length": "", "x-request-id": ""}, text


# Who asks -------------------------------------------------------------------------------------------------------------


UNHURRIED = Limits(lag_seconds=60, wait_seconds=60)
"""None of the many messages is refused because the machine has much else to do."""


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Legato, Driver, APIKeys, Counting]]:
    keys, store = APIKeys(), Counting()
    auth = [keys, JWT(issuer=ISSUER, audience=AUDIENCE, secret=SECRET)]
    app = Legato(store, agents=[agent], auth=auth, limits=UNHURRIED)
    app.drain_on_signal = False
    app.grace = 0.0
    async with Driver(app) as driver:
        yield app, driver, keys, store


async def strangers(keys: APIKeys) -> dict[str, dict[str, str]]:
    """The headers of those who are nobody."""
    alices, key = await keys.add("alice")
    revoked, gone = await keys.add("alice")
    await keys.revoke(gone.id)
    now = time.time()
    await keys.add("alice", expires_at=now + 0.001)
    good = token(SECRET, "HS256")
    tokens = {
        "expired": token(SECRET, "HS256", exp=now - 60),
        "of the wrong audience": token(SECRET, "HS256", aud="other"),
        "of the wrong issuer": token(SECRET, "HS256", iss="https://evil.example"),
        "forged": token("x" * 32, "HS256"),
        "changed": good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB"),
        "alg=none": unsigned(),
        "revoked": revoked,
        "a forged key": f"lg_{key.id}_{'a' * 43}",
        "half a key": alices[:-1],
    }
    made = {name: {"authorization": f"Bearer {text}"} for name, text in tokens.items()}
    return {
        "anonymous": {},
        "by another scheme": {"authorization": f"Basic {alices}"},
        "a cookie from another page": {"cookie": f"legato={alices}", "origin": "http://localhost:3000"},
        **made,
    }


async def hers(driver: Driver, alice: dict[str, str], keys: APIKeys) -> dict[str, str]:
    """A session of Alice's with an answer, and a run that waits for two; its ids, by the names of this file."""
    begun = await driver.request("POST", "/api/sessions", json={"title": WORDS}, headers=alice)
    session = begun.json()["id"]
    runs = []
    for text, more in ((WORDS, {"idempotency-key": "alices-key"}), ("please ask", {})):
        target = f"/api/sessions/{session}/messages"
        sent = {"text": text, "image": f"data:image/png;base64,{'A' * 4096}"}
        runs.append((await driver.request("POST", target, json=sent, headers={**alice, **more})).json())
        await quiet()
    log = (await driver.request("GET", f"/api/sessions/{session}/events", headers=alice)).json()["events"]
    ids = {event["type"]: event["data"].get("id", "") for event in log}
    return {
        "SESSION": session,
        "RUN": runs[0]["runId"],
        "OPEN": runs[1]["runId"],
        "FIRST": runs[0]["messageId"],
        "LAST": runs[1]["messageId"],
        "PERMISSION": ids["permission.requested"],
        "NOTIFICATION": ids["notification.created"],
        "KEY": keys.keys[0].id,
        "FILE": next(ref["hash"] for event in log for ref in event["data"].get("blobs", ())),
        "CURSOR": str(log[-1]["offset"]),
    }


async def heads(app: Legato) -> dict[str, int]:
    return {info.session: info.head for info in (await MemoryStore.sessions(app.store, limit=1000)).infos}  # type: ignore[arg-type]


def with_cursor(way: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    return {name: names["CURSOR"] if value == "CURSOR" else value for name, value in way.items()}


@pytest.mark.parametrize(
    ("method", "path", "operation"), ROUTES, ids=[f"{method.upper()} {path}" for method, path, _ in ROUTES]
)
async def test_a_route_for_everybody_in_every_way(method: str, path: str, operation: Any) -> None:
    """See above."""
    id, public = operation["operationId"], operation.get("security") == []
    async with serving() as (app, driver, keys, store):
        token_, _ = await keys.add("alice")
        alice = {"authorization": f"Bearer {token_}"}
        names = await hers(driver, alice, keys)
        bob = {"authorization": f"Bearer {(await keys.add('bob'))[0]}"}
        reader = {"authorization": f"Bearer {(await keys.add('alice', scopes=['read']))[0]}"}
        admin = {"authorization": f"Bearer {(await keys.add('ops', scopes=SCOPES))[0]}"}
        nobodies = await strangers(keys)
        kept = len(keys.keys)
        cases = requests(method, path, operation)
        ways = {name: with_cursor(way, names) for name, way in WAYS.items()}
        names.pop("CURSOR")

        # Nobody: one answer, in the words of the dialect, whatever is asked for and however.
        before = await heads(app)
        if not public:
            answers = set()
            for asked in cases:
                for way in ways.values():
                    for who in nobodies.values():
                        for ids in (names,) if way else (names, NEVER):
                            answer = await sent(driver, asked.of(ids), {**who, **way})
                            answers.add((answer.status, answer.headers["www-authenticate"], answer.text))
            [(status, challenge, text)] = answers
            assert (status, challenge) == (401, "Bearer")
            assert "unauthorized" in text
            assert await heads(app) == before

        # Another: as if it had never been; with its ways, too, and nothing of it in what is Bob's own.
        for asked in cases:
            named = asked.of(names) != asked.of(NEVER)
            for way in ways.values():
                store.calls.clear()
                refused = await sent(driver, asked.of(names), {**bob, **way})
                first = store.calls.copy()
                store.calls.clear()
                unknown = await sent(driver, asked.of(NEVER), {**bob, **way})
                assert WORDS not in refused.text or id in ("createResponse", "createChatCompletion")  # Bob's own answer
                if named:
                    assert refused.status in (400, 403, 404)
                    assert told(refused, names) == told(unknown, NEVER)
                    assert first == store.calls
                assert not [
                    name for name, each in names.items() if each in refused.text and each not in str(asked.of(names))
                ]
        theirs = {session: head for session, head in (await heads(app)).items() if session in before}
        assert theirs == before
        await quiet()

        # Who may only read: what reads is answered, and what writes says what is missing, before anything is looked at.
        for asked in cases:
            answer = await sent(driver, asked.of(names), reader)
            if method == "get":
                assert answer.status == (403 if id in ADMIN else 200)
            elif not public and id not in ("createTicket", "storeApiKey", "streamAnswer"):
                assert answer.status == 403
                assert "scope_missing" in answer.text
        assert {name: head for name, head in (await heads(app)).items() if name in before} == {
            **before, **{name: head for name, head in (await heads(app)).items() if name.startswith(".legato-tickets")}
        } or id == "createTicket"  # fmt: skip
        assert len(keys.keys) == kept

        # An admin: what is the operator's.
        if id in ADMIN:
            assert (await sent(driver, cases[0].of(names), alice)).status == 403
            assert (await sent(driver, cases[0].of(names), admin)).status < 300
            return

        # The owner: it is there.
        for asked in cases:
            for way in ways.values():
                answer = await sent(driver, asked.of(names), {**alice, **way})
                assert answer.status not in ((403,) if public else (401, 403)), answer.text
                if method == "get":
                    assert answer.status == 200, answer.text

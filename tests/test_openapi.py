"""The OpenAPI document: that it is sound, and that the server does what it says, whatever it is sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from driving import echo
from legato.dialect import mix
from legato.dialect.common import SPOKEN
from legato.dialect.responses_schema import RESPONSE_EVENTS
from legato.server import openapi
from legato.server.app import Legato
from legato.server.dialects import DIALECTS
from legato.server.inspect import Inspector
from live_server import serving

BOUNDED = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
PATIENCE = 60
"""Seconds that an answer may take; a safety net, where schemathesis has ten."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = Legato("memory:", agents=[echo], grace=0.0)
    with serving(app) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx2.Client) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json())


# The same document as the server's, made without one: tests are collected from it.
OPERATIONS = [operation for dialect in DIALECTS for operation in dialect.operations]
OPERATIONS += Inspector(DIALECTS).operations()
generated = schemathesis.openapi.from_dict(openapi.document(OPERATIONS))
# A text that is too long may be 12 MB as JSON has it, which is refused unread.
rejection = generated.config.checks.negative_data_rejection
rejection.expected_statuses = [*rejection.expected_statuses, "413"]
fitting = schemathesis.openapi.from_dict(openapi.document(OPERATIONS))
fitting.config.generation.update(modes=[schemathesis.GenerationMode.POSITIVE])


def test_the_server_tells_the_document_that_is_tested(document: dict[str, Any]) -> None:
    """What is generated from is what clients read."""
    assert generated.raw_schema == document


# Whatever is sent -----------------------------------------------------------------------------------------------------


@generated.parametrize()
@BOUNDED
def test_an_operation_answers_as_documented(case: Any, url: str) -> None:
    """Fitting and unfitting parameters and bodies, mostly of sessions that there are not: no 5xx, only what the
    document says."""
    case.call_and_validate(base_url=url, timeout=PATIENCE, excluded_checks=[positive_data_acceptance])


def validate(case: Any, url: str, **path: str) -> None:
    """Have it answered as documented, with what there is in its path. Where that was what did not fit (or one of the
    things, and unknown parameters, which are ignored, the others: which is so is drawn anew in each process), it fits.
    """
    negated = any(at.name == "PATH" and each.mode.is_negative for at, each in case.meta.components.items())
    excluded = [positive_data_acceptance, *([negative_data_rejection] if negated else [])]
    case.path_parameters = {**(case.path_parameters or {}), **path}
    case.call_and_validate(base_url=url, timeout=PATIENCE, excluded_checks=excluded)


@(
    generated.exclude(operation_id="streamEvents")
    .include(path_regex=r"^/(api(/inspect)?/sessions|stream)/\{id\}")
    .parametrize()
)
@BOUNDED
def test_an_operation_on_a_session_answers_as_documented(case: Any, url: str, client: httpx2.Client) -> None:
    """The same with a session that exists, so that what stands behind the first look is reached too."""
    session = client.post("/api/sessions", json={"title": "a"}).json()["id"]
    validate(case, url, id=session)


@generated.include(path_regex=r"\{threadId\}").parametrize()
@BOUNDED
def test_an_operation_on_a_thread_answers_as_documented(case: Any, url: str, client: httpx2.Client) -> None:
    """The same with a thread and an answered message of it; each stream comes to its end."""
    thread = client.post("/api/sdk/chat").json()["id"]
    message = client.post(f"/api/sdk/chat/{thread}/messages", json={"text": "a"}).json()["id"]
    known = {"threadId": thread, "messageId": message}
    validate(case, url, **{name: known[name] for name in case.path_parameters})


@generated.include(path_regex=r"^/v1/responses/\{response_id\}").parametrize()
@BOUNDED
def test_an_operation_on_a_response_answers_as_documented(case: Any, url: str, client: httpx2.Client) -> None:
    """The same with a response that exists."""
    validate(case, url, response_id=client.post("/v1/responses", json={"input": "a"}).json()["id"])


@generated.include(path_regex=r"^/v1/(responses|chat/completions)$").parametrize()
@BOUNDED
def test_a_request_that_can_be_answered_is_answered_as_documented(case: Any, url: str, client: httpx2.Client) -> None:
    """The same with an agent that exists and something to answer: what stands behind those looks is reached too."""
    if isinstance(case.body, dict):
        known = {"input": "a", "model": "echo", "conversation": None, "previous_response_id": None}
        chat = {"messages": [{"role": "user", "content": "a"}], "model": "echo", "n": 1}
        case.body |= chat if "chat" in case.path else known
    case.call_and_validate(
        base_url=url, timeout=PATIENCE, excluded_checks=[positive_data_acceptance, negative_data_rejection]
    )


# What the document allows ---------------------------------------------------------------------------------------------

KNOWN: dict[str, Any] = {"agent": "echo", "username": "echo", "model": "echo", "messageIndex": 0}
"""Fields that name what there is, which no schema can know."""
NAMED = {"cursor", "after", "previous_response_id", "conversation", "id", "client_id", "Idempotency-Key",
         "tool_choice", "function_call"}  # fmt: skip
"""Others of the kind, which may be left out. (What an ``id`` or a key may be, ``test_bad_input.py`` has.)"""


FILE = "data:image/png;base64," + "A" * 4096


def with_what_there_is(case: Any, client: httpx2.Client) -> None:
    """Let what a request names be there, and be as it wants it."""
    session = client.post("/api/sessions", json={}).json()["id"]
    said = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": FILE}]}
    ]
    sent = client.post("/v1/responses", json={"input": said, "conversation": session}).json()["id"]
    [asked, _] = client.get(f"/api/sessions/{session}/messages").json()
    known = {"response_id": sent, "messageId": asked["id"], "model": "echo", "id": session, "threadId": session}
    [*_, item] = client.get(f"/v1/conversations/{session}/items").json()["data"]
    known |= {"conversation_id": session, "item_id": item["id"], "hash": hashlib.sha256(bytes(3072)).hexdigest()}
    case.path_parameters = {name: known[name] for name in case.path_parameters or {}}
    named = NAMED - {"after"} if case.operation.path.startswith("/api/") else NAMED  # there it is a number
    case.query = {name: value for name, value in (case.query or {}).items() if name not in named}
    left_out = NAMED | ({"Last-Event-ID"} if "{messageId}" in case.operation.path else set())
    for name in [name for name in case.headers or {} if name in left_out]:
        del case.headers[name]
    if isinstance(case.body, dict):
        body = {name: value for name, value in case.body.items() if name not in NAMED}
        case.body = {name: KNOWN.get(name, value) if value is not None else None for name, value in body.items()}


@fitting.parametrize()
@settings(BOUNDED, max_examples=10)
def test_what_the_document_allows_is_accepted(case: Any, url: str, client: httpx2.Client) -> None:
    """Nothing that fits the schemas is refused for its form, in any dialect."""
    with_what_there_is(case, client)
    answer = case.call(base_url=url, timeout=PATIENCE)
    # There is no such ask, no such message or run in a body, and a stream that would not end is not opened.
    absent = answer.status_code == 404 and (
        case.operation.path == "/stream" or "/{id}/" in case.operation.path or "cancel" in case.operation.path
    )
    assert absent or answer.status_code < 400, answer.text


def test_what_is_blank_is_what_the_server_takes_for_it() -> None:
    """Letter by letter: of `\\s`, each language has its own meaning."""
    spoken = jsonschema_rs.validator_for(SPOKEN)
    letters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    assert [letter for letter in letters if not spoken.is_valid(letter)] == [x for x in letters if not x.strip()]
    assert not spoken.is_valid("")


@pytest.mark.parametrize(
    ("target", "body", "accepted"),
    [
        ("/api/sessions", {"title": "a" * 1_000}, True),
        ("/api/sessions", {"agent": ""}, True),
        ("/api/sdk/chat", {"username": ""}, True),
        ("/api/sessions/{s}/messages", {"text": "\u00a0\u2003"}, False),
        ("/api/sessions/{s}/messages", {"text": "\x1c\x1f\x85"}, False),
        ("/api/sessions/{s}/messages", {"text": "\n.\n"}, True),
        ("/stream/{s}/message", {"content": " "}, False),
        ("/api/sdk/chat/{s}/messages", {"text": ""}, False),
        ("/api/sdk/chat/{s}/messages", {"text": "a", "client_id": "a b"}, False),
        ("/api/sessions/{s}/fork", {"messageIndex": 0.0}, True),
        ("/api/sessions/{s}/fork", {"messageIndex": 0.5}, False),
        ("/api/sessions/{s}/fork", {"messageIndex": "0"}, False),
        ("/api/sessions/{s}/fork", {"messageIndex": -1.0}, False),
        ("/v1/responses", {"input": ""}, False),
        ("/v1/responses", {"input": []}, False),
        ("/v1/responses", {"input": [{"role": "user", "content": " "}]}, False),
        ("/v1/responses", {"input": [{"role": "system", "content": "a"}]}, True),
        ("/v1/responses", {"input": [{"type": "mystery"}]}, False),
        ("/v1/responses", {"input": [{"role": "assistant", "content": "a"}]}, False),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}, True),
        ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "c", "output": "a"}]}, True),
        ("/v1/responses", {"input": "a", "previous_response_id": ""}, False),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_x"}, False),
        ("/v1/responses", {"input": "a", "previous_response_id": "{r}", "conversation": "{s}"}, False),
        ("/v1/responses", {"input": "a", "previous_response_id": None, "conversation": "{s}"}, True),
        ("/v1/responses", {"input": "a", "max_output_tokens": 5.0, "top_logprobs": 20.0, "temperature": 1}, True),
        ("/v1/responses", {"input": "a", "max_output_tokens": 0.0}, False),
        ("/v1/responses", {"input": "a", "max_output_tokens": 10**30}, True),
        ("/v1/responses", {"input": "a", "top_logprobs": 20.5}, False),
        ("/v1/responses", {"input": "a", "temperature": 2.1}, False),
        ("/v1/chat/completions", {"messages": []}, False),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 1.0}, True),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 2}, False),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "a"}]}, False),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "tool_call_id": "c", "content": "a"}]}, True),
    ],
)
def test_the_document_says_what_the_code_does(
    target: str, body: Any, accepted: bool, document: dict[str, Any], client: httpx2.Client
) -> None:
    """What is refused does not fit the schema, and what fits is accepted."""
    session = client.post("/api/sessions", json={}).json()["id"]
    response = client.post("/v1/responses", json={"input": "a", "conversation": session}).json()["id"]
    filled = json.loads(json.dumps(body).replace("{s}", session).replace("{r}", response))
    path = target.replace("{s}", "{threadId}" if "sdk" in target else "{id}")
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "components": document["components"]}
    answer = client.post(target.replace("{s}", session), json=filled)
    assert (answer.status_code < 400, answer.status_code in (400, 404)) == (accepted, not accepted), answer.text
    assert jsonschema_rs.is_valid(whole, filled) == accepted


@pytest.mark.parametrize(
    ("target", "values"),
    [
        ("/stream?sessionId={s}&from=", {"": 200, "start": 200, "7": 200, "end": 400, "1" * 16: 400, "-1": 400}),
        ("/stream?sessionId={s}&client=", {"": 200, "legato": 200, "python-0.8.1": 200, "python": 400, "x-1.2.3": 400}),
        ("/api/sessions/{s}/events?after=", {"0": 200, "9" * 15: 200, "1" + "0" * 15: 400, "-1": 400, "": 400}),
        ("/api/sessions?before=", {"": 200, "2026-11-21T12:00:00Z": 200, "2026-11-21": 400, "x": 400}),
        ("/api/sessions?cursor=", {"": 400}),
        ("/api/messages/history?offset=", {"100000": 200, "100001": 400}),
        ("/api/inspect/sessions/{s}?after=", {"9" * 15: 200, "1" + "0" * 15: 400}),
        ("/api/inspect/sessions/{s}/wire?dialects=", {"": 200, "deva,chat": 200, "mix/legato": 200, "mix/CLIENT": 400,
                                                      "x": 400}),
        ("/v1/responses/{r}/input_items?after=", {"": 400, "x": 400}),
    ],
)  # fmt: skip
def test_the_document_says_what_parameters_may_be(
    target: str, values: dict[str, int], document: dict[str, Any], client: httpx2.Client
) -> None:
    """What is refused does not fit, and what fits is accepted."""
    session = client.post("/api/sessions", json={}).json()["id"]
    response = client.post("/v1/responses", json={"input": "a"}).json()["id"]
    path, _, query = target.partition("?")
    name = query.rpartition("&")[2].removesuffix("=")
    known = path.replace("{s}", "{id}").replace("{r}", "{response_id}")
    [schema] = [each["schema"] for each in document["paths"][known]["get"]["parameters"] if each["name"] == name]
    validator = jsonschema_rs.validator_for(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, validate_formats=True
    )
    for value, status in values.items():
        where = target.replace("{s}", session).replace("{r}", response) + value
        answer = client.head(where) if path == "/stream" else client.get(where)
        assert answer.status_code == status, (where, answer.text)
        read = int(value) if schema["type"] == "integer" and re.fullmatch("-?[0-9]+", value) else value
        assert validator.is_valid(read) == (status == 200), where


def test_what_the_guard_refuses_is_documented(document: dict[str, Any], client: httpx2.Client) -> None:
    """Of every operation."""
    for path, method, operation in operations(document):
        target = re.sub(r"\{\w+\}", "x", path)
        for headers, status in (
            ({"origin": "https://evil.test"}, 403),
            ({"sec-fetch-site": "cross-site"}, 403),
            ({"host": "evil.test"}, 421),
        ):
            assert client.request(method, target, headers=headers).status_code == status
            assert str(status) in operation["responses"]


# The document itself --------------------------------------------------------------------------------------------------


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    """No dangling `$ref`, nothing that nobody refers to."""
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert schemas == set(references(document))


def test_every_schema_is_a_json_schema(document: dict[str, Any]) -> None:
    """Of the draft that OpenAPI 3.2 uses."""
    assert document["openapi"].startswith("3.2")
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_operation_has_what_readers_look_for(document: dict[str, Any]) -> None:
    """An id of its own, a tag that is declared, a summary, and its path's parameters, all required."""
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in document["tags"]}
    for path, method, operation in operations(document):
        assert operation["summary"], (path, method)
        assert set(operation["tags"]) <= tags
        declared = {param["name"] for param in operation["parameters"] if param["in"] == "path" and param["required"]}
        assert declared == set(re.findall(r"\{(\w+)\}", path))
        assert all(param["description"] for param in operation["parameters"])


def test_every_operation_documents_a_success_and_its_errors(document: dict[str, Any]) -> None:
    """Errors are all of the one shape, and below `/v1` of the other."""
    for path, method, operation in operations(document):
        error = "APIErrorResponse" if path.startswith("/v1/") else "ErrorBody"
        statuses = set(operation["responses"])
        assert any(status.startswith("2") for status in statuses), (path, method)
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")) and not re.search("Ready|Readiness", json.dumps(answer)):
                assert answer["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{error}"}


def test_the_streams_of_responses_say_what_each_event_holds(document: dict[str, Any]) -> None:
    """By a schema for each type of event, found by its `type`."""
    schemas = document["components"]["schemas"]
    for method, path in (("post", "/v1/responses"), ("get", "/v1/responses/{response_id}")):
        content = document["paths"][path][method]["responses"]["200"]["content"]
        data = content["text/event-stream"]["itemSchema"]["properties"]["data"]
        assert data["anyOf"][0]["contentSchema"] == {"$ref": "#/components/schemas/ResponseStreamEvent"}
    names = [each["$ref"].rpartition("/")[2] for each in schemas["ResponseStreamEvent"]["anyOf"]]
    types = {schemas[name]["properties"]["type"]["enum"][0] for name in names}
    assert {"response.created", "response.output_text.delta", "response.refusal.delta", "error"} <= types
    assert len(types) == len(names) == len(RESPONSE_EVENTS)


def test_the_stream_names_its_events(document: dict[str, Any]) -> None:
    """All that our own client reads."""
    stream = document["paths"]["/stream"]["get"]
    assert "text/event-stream" in stream["responses"]["200"]["content"]
    assert [name for name in mix.LEGATO.events if name not in stream["description"]] == []

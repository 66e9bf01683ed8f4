"""The OpenAPI document: that it is sound, and that the server does what it says, whatever it is sent."""

from __future__ import annotations

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
from legato.dialect.responses_schema import RESPONSE_EVENTS
from legato.server import openapi
from legato.server.app import Legato
from legato.server.dialects import DIALECTS
from legato.server.inspect import Inspector
from live_server import serving

BOUNDED = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


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


def test_the_server_tells_the_document_that_is_tested(document: dict[str, Any]) -> None:
    """What is generated from is what clients read."""
    assert generated.raw_schema == document


# Whatever is sent -----------------------------------------------------------------------------------------------------


@generated.parametrize()
@BOUNDED
def test_an_operation_answers_as_documented(case: Any, url: str) -> None:
    """Fitting and unfitting parameters and bodies, mostly of sessions that there are not: no 5xx, only what the
    document says."""
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])


@(
    generated.exclude(operation_id="streamEvents")
    .include(path_regex=r"^/(api(/inspect)?/sessions|stream)/\{id\}")
    .parametrize()
)
@BOUNDED
def test_an_operation_on_a_session_answers_as_documented(case: Any, url: str, client: httpx2.Client) -> None:
    """The same with a session that exists, so that what stands behind the first look is reached too."""
    session = client.post("/api/sessions", json={"title": "a"}).json()["id"]
    case.path_parameters = {**(case.path_parameters or {}), "id": session}
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])


@generated.include(path_regex=r"\{threadId\}").parametrize()
@BOUNDED
def test_an_operation_on_a_thread_answers_as_documented(case: Any, url: str, client: httpx2.Client) -> None:
    """The same with a thread and an answered message of it; each stream comes to its end."""
    thread = client.post("/api/sdk/chat").json()["id"]
    message = client.post(f"/api/sdk/chat/{thread}/messages", json={"text": "a"}).json()["id"]
    parameters = {"threadId": thread, "messageId": message}
    case.path_parameters = {name: parameters[name] for name in case.path_parameters}
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])


@generated.include(path_regex=r"^/v1/responses/\{response_id\}").parametrize()
@BOUNDED
def test_an_operation_on_a_response_answers_as_documented(case: Any, url: str, client: httpx2.Client) -> None:
    """The same with a response that exists."""
    case.path_parameters = {"response_id": client.post("/v1/responses", json={"input": "a"}).json()["id"]}
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])


@generated.include(path_regex=r"^/v1/(responses|chat/completions)$").parametrize()
@BOUNDED
def test_a_request_that_can_be_answered_is_answered_as_documented(case: Any, url: str, client: httpx2.Client) -> None:
    """The same with an agent that exists and something to answer: what stands behind those looks is reached too."""
    if isinstance(case.body, dict):
        known = {"input": "a", "model": "echo", "conversation": None, "previous_response_id": None}
        chat = {"messages": [{"role": "user", "content": "a"}], "model": "echo", "n": 1}
        case.body |= chat if "chat" in case.path else known
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance, negative_data_rejection])


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
            if status.startswith(("4", "5")) and "Ready" not in json.dumps(answer):
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

"""Functions with results instead of exceptions, for both clients."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from fake_server import ANSWER, FakeTransport, Reply, Request, error_reply, json_reply, stream_reply
from legato.client import AsyncClient, Client, ErrorResponse, funcs
from legato.errors import InvalidInput

SENT = {"status": "broadcasted", "sessionId": "s", "runId": "r1", "messageId": "m1", "cursor": "7"}


def server(request: Request) -> Reply:
    if request.path == "/stream":
        return stream_reply(ANSWER.after(None))
    if request.path.startswith("/api/sessions/unknown"):
        return error_reply(404, "session_not_found")
    return json_reply(SENT)


@pytest.fixture
def client() -> Client:
    return Client("http://test", http_client=httpx2.Client(transport=FakeTransport(server)))


@pytest.fixture
def async_client() -> AsyncClient:
    return AsyncClient("http://test", http_client=httpx2.AsyncClient(transport=FakeTransport(server)))


def test_a_value_when_it_went_well(client: Client) -> None:
    """``ok`` tells, and the value is typed."""
    result = funcs.send_streaming_message(client, id="s", content="hi")

    assert result.ok
    assert ("r1", None) == (result.value.run_id, result.error)


def test_an_error_when_it_did_not(client: Client) -> None:
    """Nothing is raised."""
    result = funcs.get_session(client, "unknown")

    assert not result.ok
    assert isinstance(result.error, ErrorResponse)
    assert result.value is None


def test_bad_input_is_an_error_in_the_result_too(client: Client) -> None:
    """Whoever chose results wants no exceptions."""
    result = funcs.get_session(client, "")

    assert isinstance(result.error, InvalidInput)


def test_a_stream_is_a_value(client: Client) -> None:
    """Its opening is in the result."""
    result = funcs.stream_events(client, session_id="s", quiet=True)

    assert result.ok
    with result.value as events:
        assert len(ANSWER.frames) == len(list(events))


def test_with_an_async_client_the_result_is_awaited(async_client: AsyncClient) -> None:
    """One name for both worlds."""

    async def go() -> tuple[str | None, bool, int]:
        sent = await funcs.send_message(async_client, "s", text="hi")
        lost = await funcs.delete_session(async_client, "unknown")
        opened = await funcs.stream_events(async_client, session_id="s", quiet=True)
        assert sent.ok
        assert opened.ok
        async with opened.value as events:
            return sent.value.run_id, lost.ok, len([event async for event in events])

    assert ("r1", False, len(ANSWER.frames)) == asyncio.run(go())


def test_every_operation_has_its_function() -> None:
    """The table is whole."""
    from legato.client import operations

    assert {*operations.__all__, "stream_events"} <= set(funcs.__all__)
    assert sorted(funcs.__all__) == funcs.__all__

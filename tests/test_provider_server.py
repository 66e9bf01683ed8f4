"""The providers against a real server of both APIs: Legato's own, behind a proxy that cuts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from legato import Legato, Thinking, Turn, Usage
from legato.provider import ResponsesClient
from live_server import cutting, serving
from provider_streams import FACES, chat, use

both = pytest.mark.parametrize("face", FACES)
TEXT = "A canon is a tune that follows itself."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = Legato()

    @app.agent
    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield Thinking("Hm.")
        for word in TEXT.split(" "):
            yield word if word == "A" else f" {word}"
        yield Usage(input_tokens=3, output_tokens=4)

    with serving(app) as address:
        yield address


@both
@pytest.mark.parametrize("wire", ["Responses", "ChatCompletions"])
def test_legato_is_a_provider(face: str, wire: str, url: str) -> None:
    """Both APIs of a Legato server give the same answer."""
    seen = use(face, f"{wire}Provider", f"{url}/v1", lambda c: chat(c, model="agent"))

    assert (None, TEXT, "Hm.", "stop", 7) == (
        seen.error,
        seen.partial.text,
        seen.partial.thinking,
        seen.partial.finish_reason,
        seen.partial.usage.total_tokens,
    )


@both
@pytest.mark.parametrize("size", [1500, 2500, 3500])
def test_a_background_answer_of_legato_survives_cuts(face: str, size: int, url: str) -> None:
    """Cut on the wire, the answer goes on, and is asked for once."""
    asked: list[bytes] = []

    def allowance(request: bytes) -> int | None:
        asked.append(request.split(b" ")[0])
        return size if len(asked) == 1 else None

    with cutting(url, allowance) as address:
        seen = use(face, "ResponsesProvider", f"{address}/v1", lambda c: chat(c, model="agent", background=True))

    assert (None, TEXT) == (seen.error, seen.partial.text)
    assert [b"POST", b"GET"] == asked


def test_each_place_of_a_kept_response_can_be_resumed(url: str) -> None:
    """Behind any event, the rest is what it was the first time."""
    with ResponsesClient(f"{url}/v1") as client:
        stream = client.send_message_stream("Hello", model="agent", background=True)
        events = [event.raw for event in stream]

        for after in range(len(events) - 1):
            rest = client.resume(stream.id or "", starting_after=after)

            assert events[after + 1 :] == [event.raw for event in rest]

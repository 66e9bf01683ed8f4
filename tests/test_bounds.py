"""Bounds hold however many come at once: a place is taken when it is asked for, and given back on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from asking import Listener, ask, items
from driving import Chat, chatting, lines  # noqa: F401  # each test once under each server
from held_store import HeldStore, anything, having, quiet
from legato.bounds import Limits
from legato.store.sqlite import SQLiteStore
from legato.testing import ASGIResponse, ASGIStream
from raw_log import canonical, heads

STORES = ["memory", "sqlite"]


def held_store(kind: str, folder: Path) -> HeldStore:
    return HeldStore(None if kind == "memory" else SQLiteStore(folder / "bounds.db"))


def statuses(answers: list[Any]) -> dict[int, int]:
    """How many there are of each status."""
    found = [answer.status for answer in answers]
    return {status: found.count(status) for status in sorted(set(found))}


# Queues ---------------------------------------------------------------------------------------------------------------


async def mix(chat: Chat, text: str, key: str | None) -> ASGIResponse:
    return await chat.send(text, headers={} if key is None else {"idempotency-key": key})


async def mix_stream(chat: Chat, text: str, key: str | None) -> ASGIResponse:
    headers = {} if key is None else {"idempotency-key": key}
    return await chat.driver.request("POST", f"/stream/{chat.session}/message", json={"content": text}, headers=headers)


async def deva(chat: Chat, text: str, key: str | None) -> ASGIResponse:
    body = {"text": text, **({} if key is None else {"client_id": key})}
    return await chat.driver.request("POST", f"/api/sdk/chat/{chat.session}/messages", json=body)


async def responses(chat: Chat, text: str, key: str | None) -> ASGIResponse:
    body = {"input": text, "conversation": chat.session, "background": True}
    headers = {} if key is None else {"idempotency-key": key}
    return await chat.driver.request("POST", "/v1/responses", json=body, headers=headers)


async def responses_with_items(chat: Chat, text: str, key: str | None) -> ASGIResponse:
    body = {"input": items("x", "y", text), "conversation": chat.session, "background": True}
    headers = {} if key is None else {"idempotency-key": key}
    return await chat.driver.request("POST", "/v1/responses", json=body, headers=headers)


async def each_in_turn(chat: Chat, text: str, key: str | None) -> ASGIResponse:
    """By another dialect for each message."""
    ways = [mix, mix_stream, deva, responses]
    return await ways[int(text) % len(ways)](chat, text, key)


WAYS = [mix, mix_stream, deva, responses, responses_with_items, each_in_turn]


async def asked_of(chat: Chat) -> list[str]:
    """The messages in the log that are to be answered."""
    events = await canonical(chat.driver, chat.session)
    return [event["data"]["text"] for event in events if event["type"] == "message.created" and event["run"]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", STORES)
async def test_of_fifty_messages_at_once_three_wait(way: Any, kind: str, tmp_path: Path) -> None:
    """One is answered, as many as may wait do, all others are refused and leave nothing behind."""
    store, listener = held_store(kind, tmp_path), Listener()
    go = [listener.hold(str(number)) for number in range(50)]
    limits = Limits(queued_messages=3, wait_seconds=60)  # they are held up, and no disk is slow
    async with chatting(None, listener, store=store, limits=limits) as chat:
        hold = store.hold(having("message.created"), times=50)
        sends = [asyncio.create_task(way(chat, str(number), None)) for number in range(50)]
        await hold.reached(*sends)
        await quiet(rounds=3_000)  # also on a disk most have looked by now; none has stored anything
        hold.let_go()
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*sends)

        accepted = [answer for answer in answers if answer.status < 300]
        assert (len(accepted), len(answers) - len(accepted)) == (4, 46)
        assert statuses([answer for answer in answers if answer.status >= 300]) == {409: 46}
        asked = await asked_of(chat)
        assert sorted(asked) == sorted(str(place) for place, answer in enumerate(answers) if answer.status < 300)
        stored = [event for event in await canonical(chat.driver, chat.session) if event["type"] == "message.created"]
        assert len(stored) == 4 * (3 if way is responses_with_items else 1)
        for each in go:
            each.set()


@pytest.mark.parametrize("way", WAYS)
async def test_a_queue_has_room_again_when_a_message_was_answered(way: Any) -> None:
    """What was refused is accepted later, and again no more of it than there is room for."""
    store, listener = HeldStore(), Listener()
    go = [listener.hold(str(number)) for number in range(20)]
    async with chatting(None, listener, store=store, limits=Limits(queued_messages=1)) as chat:
        for start in (0, 10):
            hold = store.hold(having("message.created"), times=10)
            sends = [asyncio.create_task(way(chat, str(number), None)) for number in range(start, start + 10)]
            await quiet()
            hold.let_go()
            async with asyncio.timeout(30):
                answers = await asyncio.gather(*sends)
            assert sum(answer.status < 300 for answer in answers) == 2
            for each in go[start : start + 10]:
                each.set()
            await quiet()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", STORES)
async def test_a_repeated_message_needs_no_second_place(way: Any, kind: str, tmp_path: Path) -> None:
    """Twelve times the same key at once, and later when the queue is full, is one message that waits."""
    store, listener = held_store(kind, tmp_path), Listener()
    go = [listener.hold(str(number)) for number in range(3)]
    async with chatting(None, listener, store=store, limits=Limits(queued_messages=1)) as chat:
        assert (await way(chat, "0", "k0")).status < 300
        hold = store.hold(having("message.created"), times=12)
        sends = [asyncio.create_task(way(chat, "1", "k1")) for _ in range(12)]
        await hold.reached(*sends)
        await quiet(rounds=3_000)
        hold.let_go()
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*sends)

        assert all(answer.status < 300 for answer in answers)
        assert await asked_of(chat) == ["0", "1"]
        assert (await way(chat, "2", "k2")).status == 409
        assert (await way(chat, "1", "k1")).status < 300
        assert await asked_of(chat) == ["0", "1"]
        for each in go:
            each.set()


# Streams --------------------------------------------------------------------------------------------------------------


class Openings:
    """Streams that are opened at once and stay open until the end of the test.

    Attributes:
        streams: all of them, once ``opened``.
    """

    def __init__(self, streams: list[ASGIStream]) -> None:
        self.streams = streams
        self.opening = [asyncio.create_task(stream.__aenter__()) for stream in streams]

    async def opened(self) -> dict[int, int]:
        """Wait until all are open or refused; how many there are of each status."""
        async with asyncio.timeout(60):
            await asyncio.gather(*self.opening)
        return statuses(self.streams)

    async def close(self) -> None:
        for stream in self.streams:
            stream.disconnect()
        for stream in self.streams:
            await stream.finished()


@contextlib.asynccontextmanager
async def opening(streams: list[ASGIStream]) -> AsyncIterator[Openings]:
    openings = Openings(streams)
    try:
        yield openings
    finally:
        await openings.close()


class Scene:
    """A session with a message that is being answered, in every dialect's words.

    Attributes:
        message, response: the ids of the message and of its answer.
        ended: the id of a response in another session that has ended.
        headers: of requests that store a message.
    """

    def __init__(self, chat: Chat, message: str, response: str, ended: str) -> None:
        self.chat = chat
        self.message = message
        self.response = response
        self.ended = ended
        self.headers: dict[str, str] = {}

    def post(self, target: str, body: dict[str, Any]) -> ASGIStream:
        return self.chat.driver.stream(target, method="POST", body=json.dumps(body).encode(), headers=self.headers)


STREAMS: dict[str, Callable[[Scene], ASGIStream]] = {
    "mix": lambda scene: scene.chat.driver.stream(f"/stream?sessionId={scene.chat.session}"),
    "mix from the start": lambda scene: scene.chat.driver.stream(f"/stream?sessionId={scene.chat.session}&from=start"),
    "responses retrieve": lambda scene: scene.chat.driver.stream(f"/v1/responses/{scene.response}?stream=true"),
    "responses resume": lambda scene: scene.chat.driver.stream(
        f"/v1/responses/{scene.response}?stream=true&starting_after=0"
    ),
    "deva": lambda scene: scene.chat.driver.stream(
        f"/api/sdk/chat/{scene.chat.session}/messages/{scene.message}/query/stream", method="POST"
    ),
    "responses conversation": lambda scene: scene.post(
        "/v1/responses", {"input": "more", "conversation": scene.chat.session, "stream": True}
    ),
    "responses conversation with items": lambda scene: scene.post(
        "/v1/responses", {"input": items("x", "y", "more"), "conversation": scene.chat.session, "stream": True}
    ),
    "responses previous": lambda scene: scene.post(
        "/v1/responses", {"input": "more", "previous_response_id": scene.ended, "stream": True}
    ),
    "responses new": lambda scene: scene.post("/v1/responses", {"input": "more", "stream": True}),
    "responses background": lambda scene: scene.post(
        "/v1/responses", {"input": "more", "stream": True, "background": True}
    ),
    "chat": lambda scene: scene.post(
        "/v1/chat/completions", {"model": "Listener", "messages": items("x", "y", "more"), "stream": True}
    ),
}
"""Every way to open a stream."""
STORING = [name for name in STREAMS if name.split()[-1] in ("conversation", "items", "previous", "new", "background")]
STORING += ["chat"]
"""Those of them that store a message."""
IN_THE_SESSION = [name for name in STREAMS if name not in STORING or "conversation" in name]
"""Those of them that are streams of the scene's session."""


@contextlib.asynccontextmanager
async def scene(store: HeldStore, listener: Listener, **bounds: Any) -> AsyncIterator[Scene]:
    """An application with these bounds, and a message in it that is being answered until the end."""
    go = [listener.hold("first"), listener.hold("more")]
    async with chatting(None, listener, store=store, **bounds) as chat:
        _, ended = await ask(chat.driver, "ended")
        sent = (await chat.send("first")).json()
        await quiet()
        try:
            yield Scene(chat, sent["messageId"], f"resp_{sent['runId']}", ended["id"])
        finally:
            for each in go:
                each.set()


async def messages_of(chat: Chat) -> int:
    """How many messages all logs have."""
    logs = [await canonical(chat.driver, session) for session in await heads(chat.driver)]
    return sum(event["type"] == "message.created" for log in logs for event in log)


def held(store: HeldStore, skip: int = 0) -> list[Any]:
    """What streams do with the store before they are open: all that they store, and what they ask from here on."""
    return [store.hold_reads(skip=skip), store.hold(anything, times=1_000)]


async def all_ways(holds: list[Any]) -> None:
    """Let everybody come as far as possible, and then all of them go on."""
    await quiet(rounds=1_000)
    for hold in holds:
        hold.let_go()


DEPTHS = [("memory", 0), ("memory", 1), ("memory", 2), ("memory", 3), ("memory", 4), ("sqlite", 0)]
"""Stores, and how many questions to them each stream may ask before it is held."""


@pytest.mark.parametrize("way", STREAMS)
@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
async def test_of_twenty_streams_at_once_two_are_open(way: str, kind: str, depth: int, tmp_path: Path) -> None:
    """The others are refused with 429 and have stored nothing."""
    store, listener = held_store(kind, tmp_path), Listener()
    async with scene(store, listener, max_streams=2) as there:
        before = await messages_of(there.chat)
        holds = held(store, depth)
        async with opening([STREAMS[way](there) for _ in range(20)]) as openings:
            await all_ways(holds)
            assert await openings.opened() == {200: 2, 429: 18}
            refused = next(stream for stream in openings.streams if stream.status == 429)
            await refused.read()
            assert json.loads(refused.body)["error"]
            assert "retry-after" in refused.headers
            stored = await messages_of(there.chat) - before
            per_request = 3 if way == "chat" or "items" in way else 1
            copied = 2 if way == "responses previous" else 0  # the second of them goes on in a copy
            assert stored == (2 * per_request + copied if way in STORING else 0)


@pytest.mark.parametrize("way", IN_THE_SESSION)
@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
async def test_of_twenty_streams_of_one_session_at_once_two_are_open(
    way: str, kind: str, depth: int, tmp_path: Path
) -> None:
    """The bound of each session holds as well, and other sessions are not concerned."""
    store, listener = held_store(kind, tmp_path), Listener()
    async with scene(store, listener, max_streams_per_session=2) as there:
        holds = held(store, depth)
        async with opening([STREAMS[way](there) for _ in range(20)]) as openings:
            await all_ways(holds)
            assert await openings.opened() == {200: 2, 429: 18}
            async with opening([there.post("/v1/responses", {"input": "more", "stream": True})]) as elsewhere:
                assert await elsewhere.opened() == {200: 1}


@pytest.mark.parametrize("way", STREAMS)
async def test_streams_of_all_kinds_share_the_places(way: str) -> None:
    """With one place taken by another kind of stream, twenty at once get the other one."""
    store, listener = HeldStore(), Listener()
    async with scene(store, listener, max_streams=2) as there, STREAMS["mix"](there) as first:
        assert first.status == 200
        holds = held(store)
        async with opening([STREAMS[way](there) for _ in range(20)]) as openings:
            await all_ways(holds)
            assert await openings.opened() == {200: 1, 429: 19}


async def full(there: Scene, places: int) -> None:
    """Check that exactly so many places are free, by taking them."""
    async with opening([STREAMS["mix"](there) for _ in range(places + 1)]) as openings:
        assert await openings.opened() == {200: places, 429: 1}


@pytest.mark.parametrize("way", STREAMS)
@pytest.mark.parametrize("bound", ["max_streams", "max_streams_per_session"])
async def test_readers_that_leave_give_their_places_back(way: str, bound: str) -> None:
    """Also those that had just been opened."""
    store, listener = HeldStore(), Listener()
    async with scene(store, listener, **{bound: 2}) as there:
        for _ in range(3):
            async with STREAMS[way](there) as stream:
                assert stream.status == 200
                await stream.read()
        await full(there, 2)


@pytest.mark.parametrize("way", [way for way in STREAMS if not way.startswith("mix")])
@pytest.mark.parametrize("bound", ["max_streams", "max_streams_per_session"])
async def test_streams_that_end_give_their_places_back(way: str, bound: str) -> None:
    """When the answer is over and its reader has all of it."""
    store, listener = HeldStore(), Listener()
    async with scene(store, listener, **{bound: 2}) as there:
        for text in ("first", "more"):
            listener.hold(text).set()
        for _ in range(3):
            async with asyncio.timeout(30), STREAMS[way](there) as stream:
                assert stream.status == 200
                async for _ in stream:
                    pass
        await full(there, 2)


FAILING: dict[str, tuple[int, Callable[[Scene], ASGIStream]]] = {
    "mix, no session": (404, lambda scene: scene.chat.driver.stream("/stream?sessionId=s_none")),
    "mix, bad cursor": (
        400,
        lambda scene: scene.chat.driver.stream(
            f"/stream?sessionId={scene.chat.session}", headers={"last-event-id": "x"}
        ),
    ),
    "mix, bad client": (
        400,
        lambda scene: scene.chat.driver.stream(f"/stream?sessionId={scene.chat.session}&client=?"),
    ),
    "mix, wrong method": (405, lambda scene: scene.chat.driver.stream("/stream?sessionId=s_none", method="PUT")),
    "mix, head": (
        200,
        lambda scene: scene.chat.driver.stream(f"/stream?sessionId={scene.chat.session}", method="HEAD"),
    ),
    "responses, no response": (404, lambda scene: scene.chat.driver.stream("/v1/responses/resp_s~1?stream=true")),
    "responses, bad cursor": (
        400,
        lambda scene: scene.chat.driver.stream(f"/v1/responses/{scene.response}?stream=true&starting_after=x"),
    ),
    "responses, cursor ahead": (
        400,
        lambda scene: scene.chat.driver.stream(f"/v1/responses/{scene.response}?stream=true&starting_after=99"),
    ),
    "responses, no conversation": (
        404,
        lambda scene: scene.post("/v1/responses", {"input": "1", "stream": True, "conversation": "s_none"}),
    ),
    "responses, no previous": (
        400,
        lambda scene: scene.post(
            "/v1/responses", {"input": "1", "stream": True, "previous_response_id": "resp_s_none~1"}
        ),
    ),
    "responses, previous in the session gone": (
        400,
        lambda scene: scene.post(
            "/v1/responses", {"input": "1", "stream": True, "previous_response_id": f"{scene.response}0"}
        ),
    ),
    "responses, too long": (
        413,
        lambda scene: scene.post(
            "/v1/responses", {"input": "1" * 50, "stream": True, "conversation": scene.chat.session}
        ),
    ),
    "responses, full": (
        409,
        lambda scene: scene.post("/v1/responses", {"input": "1", "stream": True, "conversation": scene.chat.session}),
    ),
    "responses, blank": (400, lambda scene: scene.post("/v1/responses", {"input": " ", "stream": True})),
    "chat, no model": (
        404,
        lambda scene: scene.post("/v1/chat/completions", {"model": "?", "messages": items("1"), "stream": True}),
    ),
    "chat, too long": (
        413,
        lambda scene: scene.post(
            "/v1/chat/completions", {"model": "Listener", "messages": items("1" * 50), "stream": True}
        ),
    ),
    "deva, no thread": (
        404,
        lambda scene: scene.chat.driver.stream("/api/sdk/chat/s_none/messages/m/query/stream", method="POST"),
    ),
    "deva, no message": (
        404,
        lambda scene: scene.chat.driver.stream(
            f"/api/sdk/chat/{scene.chat.session}/messages/none/query/stream", method="POST"
        ),
    ),
    "deva, bad cursor": (
        400,
        lambda scene: scene.chat.driver.stream(
            f"/api/sdk/chat/{scene.chat.session}/messages/{scene.message}/query/stream",
            method="POST",
            headers={"last-event-id": "x"},
        ),
    ),
    "deva, bad time": (
        400,
        lambda scene: scene.chat.driver.stream(
            f"/api/sdk/chat/{scene.chat.session}/messages/{scene.message}/query/stream?created_at=?", method="POST"
        ),
    ),
}
"""Streams that are not opened, and their status."""


@pytest.mark.parametrize("case", FAILING)
@pytest.mark.parametrize("bound", ["max_streams", "max_streams_per_session"])
async def test_an_opening_that_fails_gives_its_place_back(case: str, bound: str) -> None:
    """It says what is wrong with it, however often it comes, and the places are as free as before."""
    store, listener = HeldStore(), Listener()
    limits = Limits(queued_messages=0, message_characters=40)
    async with scene(store, listener, limits=limits, **{bound: 2}) as there:
        status, way = FAILING[case]
        for _ in range(3):
            async with asyncio.timeout(30), way(there) as stream:
                assert stream.status == status
                async for _ in stream:
                    pass
        await full(there, 2)


@pytest.mark.parametrize("way", STREAMS)
async def test_an_opening_that_meets_a_store_that_fails_gives_its_place_back(way: str) -> None:
    """A message that could not be stored is a 500 before the stream begins, and no stream is counted."""
    if way not in STORING:
        way = "responses new"
    store, listener = HeldStore(), Listener()
    async with scene(store, listener, max_streams=2) as there:
        store.fail(having("message.created"))
        for _ in range(3):
            async with STREAMS[way](there) as stream:
                assert stream.status == 500
        store.mend()
        await full(there, 2)


@pytest.mark.parametrize("way", STREAMS)
@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("bound", ["max_streams", "max_streams_per_session"])
async def test_a_client_that_leaves_while_its_stream_is_opened_gives_its_place_back(
    way: str, skip: int, bound: str
) -> None:
    """At whichever of the questions to the store it leaves; what it sent is answered all the same."""
    store, listener = HeldStore(), Listener()
    async with scene(store, listener, **{bound: 2}) as there:
        for _ in range(3):
            hold = store.hold_reads(skip=skip, times=1)
            async with opening([STREAMS[way](there)]) as openings:
                await hold.reached(*openings.opening)
                openings.streams[0].disconnect()
                await quiet()
                hold.let_go()
                await openings.streams[0].finished()
        await full(there, 2)


@pytest.mark.parametrize("way", STORING)
async def test_a_client_that_leaves_while_its_message_is_stored_gives_its_place_back(way: str) -> None:
    """The message is stored and answered; only nobody reads."""
    store, listener = HeldStore(), Listener()
    async with scene(store, listener, max_streams=2) as there:
        for _ in range(3):
            hold = store.hold(having("message.created"))
            async with opening([STREAMS[way](there)]) as openings:
                await hold.reached(*openings.opening)
                openings.streams[0].disconnect()
                await quiet()
                hold.let_go()
                await openings.streams[0].finished()
        await full(there, 2)


@pytest.mark.parametrize("way", STORING)
async def test_a_refused_stream_can_be_asked_for_again_with_its_key(way: str) -> None:
    """429 stored nothing, so the same key is a new request when there is a place, and it is answered once."""
    store, listener = HeldStore(), Listener()
    async with scene(store, listener, max_streams=1) as there:
        before = await messages_of(there.chat)

        there.headers = {"idempotency-key": "k"}
        async with STREAMS["mix"](there), STREAMS[way](there) as refused:
            assert refused.status == 429
        assert await messages_of(there.chat) == before
        for _ in range(2):
            async with STREAMS[way](there) as stream:
                assert stream.status == 200
        assert listener.calls.count("more") <= 1


async def test_the_bounds_are_told_as_each_dialect_tells_errors() -> None:
    """429 with a word to branch on; nobody takes it for a stream."""
    store, listener = HeldStore(), Listener()
    async with scene(store, listener, max_streams=0) as there:
        for way in STREAMS:
            async with STREAMS[way](there) as stream:
                async for _ in stream:
                    pass
                assert stream.status == 429
                assert stream.headers["content-type"].startswith("application/json")
                error = json.loads(stream.body)["error"]
                assert error["message"]
                word = error["code"] if way.startswith(("responses", "chat")) else error["reason"]
                assert word
        _, refused = await ask(there.chat.driver, "more", "stream")
        assert refused["error"]["message"]

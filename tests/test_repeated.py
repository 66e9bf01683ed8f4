"""What comes again, or late, under its key meets nothing that has come since: it is answered as it was the first time.

A node that was stopped for a while (SIGSTOP) carries out what lay in its sockets, when another has long done the same
request, and the talk has gone on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from client_faces import use
from driving import Chat, chatting
from fake_server import Reply, Request, json_reply
from held_store import HeldStore, having, quiet
from legato.client import BackoffStrategy, RetryConfig
from legato.testing import ASGIResponse
from raw_log import canonical

KEY = {"idempotency-key": "k-1"}


class Answers:
    """An agent that repeats the message, those that begin with ``slow`` only when ``go`` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, turn: Any) -> AsyncIterator[str]:
        yield "You said: "
        if turn.message.text.startswith("slow"):
            await self.go.wait()
        yield turn.message.text


async def post(chat: Chat, path: str, json: Any = None, headers: dict[str, str] = KEY) -> ASGIResponse:
    return await chat.driver.request("POST", path, json=json or {}, headers=headers)


async def first_of(chat: Chat, type: str = "user") -> dict[str, Any]:
    return next(each for each in (await chat.get("/messages")).json() if each["role"] == type)


async def cancel(chat: Chat) -> ASGIResponse:
    return await post(chat, f"/api/sessions/{chat.session}/cancel")


async def rewind(chat: Chat) -> ASGIResponse:
    return await post(chat, f"/api/sessions/{chat.session}/rewind", {"messageId": (await first_of(chat))["id"]})


async def retry(chat: Chat) -> ASGIResponse:
    return await post(chat, f"/api/sessions/{chat.session}/messages/{(await first_of(chat))['id']}/retry")


async def retry_of_deva(chat: Chat) -> ASGIResponse:
    return await post(chat, f"/api/sdk/chat/{chat.session}/messages/{(await first_of(chat))['id']}/retry")


Act = Callable[[Chat], Awaitable[ASGIResponse]]
TOLD = ("cancelled", "runId", "clientId", "id")
"""What of an answer says what was done."""


@pytest.mark.parametrize(
    ("act", "text"), [(cancel, "slow one"), (cancel, "one"), (rewind, "one"), (retry, "one"), (retry_of_deva, "one")]
)
async def test_what_comes_again_meets_nothing_that_came_since(act: Act, text: str) -> None:
    """Whether there was something to stop the first time or not, and whatever has been said and is being said since."""
    answers = Answers()
    async with chatting(None, answers) as chat:
        await (chat.send(text) if text.startswith("slow") else chat.said(text))
        one = await act(chat)
        assert one.status in (200, 202), one.text
        await idle(chat)
        await chat.said("two")
        await chat.send("slow three")
        before = await canonical(chat.driver, chat.session)
        again = await act(chat)

        assert again.status in (200, 202), again.text
        assert {name: again.json().get(name) for name in TOLD} == {name: one.json().get(name) for name in TOLD}
        assert await canonical(chat.driver, chat.session) == before
        answers.go.set()
        await idle(chat)
        assert (await canonical(chat.driver, chat.session))[-1]["type"] == "run.completed"


async def idle(chat: Chat) -> None:
    """Wait until nothing is open in the session."""
    async with asyncio.timeout(30):
        while open_runs(await canonical(chat.driver, chat.session)):
            await quiet()


def open_runs(events: list[dict[str, Any]]) -> set[str]:
    ended = {each["run"] for each in events if each["type"] in ("run.completed", "run.failed", "run.cancelled")}
    return {each["run"] for each in events if each["type"] == "message.created" and each.get("run")} - ended


@pytest.mark.parametrize("running", [True, False])
async def test_a_cancel_that_was_held_up_does_not_stop_the_next_answer(running: bool) -> None:
    """It is repeated elsewhere, the talk goes on, and then the node that had it first is let go on."""
    store, answers = HeldStore(), Answers()
    async with chatting(None, answers, store=store) as chat:
        await (chat.send("slow one") if running else chat.said("one"))
        hold = store.hold(having("run.cancel_requested"))
        late = asyncio.create_task(cancel(chat))
        await hold.reached(late)
        assert (await cancel(chat)).json() == {"cancelled": running}
        await idle(chat)
        await chat.send("slow two")
        hold.let_go()

        assert (await late).json() == {"cancelled": running}
        answers.go.set()
        await idle(chat)
        ends = [each["type"] for each in await canonical(chat.driver, chat.session) if each["type"].startswith("run.c")]
        assert ends == [*(["run.cancel_requested", "run.cancelled"] if running else ["run.completed"]),
                        *([] if running else ["run.cancel_requested"]), "run.completed"]  # fmt: skip


async def test_a_stop_of_an_answer_of_deva_that_was_seen_does_not_stop_the_next_one() -> None:
    """The id of one of its frames says which answer it was."""
    answers = Answers()
    async with chatting(None, answers) as chat:
        sent = (await chat.send("slow one")).json()
        path = f"/api/sdk/chat/{chat.session}/messages/{sent['messageId']}"
        async with chat.driver.stream(f"{path}/query/stream", method="POST") as stream:
            frame = {"last-event-id": await anext(message.id async for message in stream.messages() if message.event)}
        assert (await post(chat, f"{path}/stop", headers=frame)).json() == {"stopped": True}
        await idle(chat)
        assert (await post(chat, f"{path}/retry")).status == 202

        assert (await post(chat, f"{path}/stop", headers=frame)).json() == {"stopped": False}
        answers.go.set()
        await idle(chat)
        assert (await canonical(chat.driver, chat.session))[-1]["type"] == "run.completed"


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize(
    "act",
    [
        lambda c, options: c.sessions.cancel("s", **options),
        lambda c, options: c.sessions.rewind("s", message_id="m", **options),
        lambda c, options: c.messages.send("s", text="Hello", **options),
    ],
)
def test_clients_repeat_it_under_one_key(face: str, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call has a key of its own, and its repetitions have the same."""
    monkeypatch.setattr("random.uniform", lambda low, high: low)  # of the waits
    keys: list[str | None] = []

    def server(request: Request) -> Reply:
        keys.append(request.headers.get("idempotency-key"))
        if len(keys) % 2:
            return Reply(502)
        return json_reply({"id": "s", "title": "", "cancelled": True, "status": "processing", "sessionId": "s",
                           "runId": "r", "messageId": "m", "cursor": "0"})  # fmt: skip

    options = {"retries": RetryConfig("backoff", BackoffStrategy(1, 1, 1.0, 60_000), True)}
    for _ in range(2):
        use(face, server, lambda client: act(client, options))

    assert None not in keys
    assert [keys[0] == keys[1], keys[2] == keys[3], keys[1] == keys[2]] == [True, True, False]

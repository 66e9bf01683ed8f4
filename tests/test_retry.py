"""Answering the last message anew: who may, what becomes of the history, and that two who ask get one answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from driving import Gate, chatting, data, ends, reason
from facts import draft
from legato.agent import Turn
from legato.errors import AgentError, Conflict, Draining, NotFound, SessionNotFound
from legato.event import Draft
from legato.history import history
from legato.log import Appended
from legato.questions import Sent
from legato.run import Runner
from running import Stage


class Teller:
    """An agent that numbers its answers.

    Attributes:
        asked: for each answer, the texts of the history it was given, and of the message.
    """

    def __init__(self, *, fail: bool = False) -> None:
        self.asked: list[list[str]] = []
        self._fail = fail

    async def __call__(self, turn: Turn) -> AsyncIterator[str]:
        self.asked.append([message.text for message in (*turn.history, turn.message)])
        yield f"answer {len(self.asked)}"
        if self._fail:
            raise AgentError("No.", code="no")


async def answered(stage: Stage, runner: Runner, session: str, text: str, **settings: Any) -> Sent:
    """A message whose run has ended."""
    sent = await runner.send(session, text, **settings)
    await stage.ended(sent)
    return sent


async def conversation(stage: Stage, session: str) -> list[str]:
    return [message.text for message in history(await stage.events(session))]


@pytest.mark.parametrize("fail", [False, True])
async def test_the_last_message_is_answered_anew(stage: Stage, fail: bool) -> None:
    """Under the same id, with what it came with, by a new run; the history has the message and its answer once."""
    teller = Teller(fail=fail)
    runner = stage.runner(teller)
    session = await stage.session()
    await answered(stage, runner, session, "first")
    old = await answered(stage, runner, session, "second", agent="Teller", metadata={"a": [1]}, key="k")
    new = await runner.retry(session, old.message)
    await stage.ended(new)
    assert (new.message, new.repeated, new.run != old.run) == (old.message, False, True)
    assert await conversation(stage, session) == ["first", "answer 1", "second", "answer 3"]
    assert teller.asked[2] == teller.asked[1] == ["first", "answer 1", "second"]
    messages = history(await stage.events(session))
    assert (messages[2].id, messages[2].run, messages[2].metadata) == (old.message, new.run, {"a": [1]})
    first, second = [event.data for event in await stage.events(session) if event.data.get("id") == old.message]
    assert second == {name: value for name, value in first.items() if name != "key"} | {"retries": old.run}


async def test_the_only_message_is_answered_anew(stage: Stage) -> None:
    """There is nothing before it that history could keep."""
    teller = Teller()
    runner = stage.runner(teller)
    old = await answered(stage, runner, await stage.session(), "first")
    await stage.ended(await runner.retry(old.session, old.message))
    assert await conversation(stage, old.session) == ["first", "answer 2"]
    assert teller.asked == [["first"], ["first"]]


async def test_a_message_is_answered_as_often_as_is_asked(stage: Stage) -> None:
    """Each retry is a run of its own, with one answer left at the end."""
    runner = stage.runner(Teller())
    old = await answered(stage, runner, await stage.session(), "first")
    runs = [old.run]
    for _ in range(3):
        new = await runner.retry(old.session, old.message)
        await stage.ended(new)
        runs.append(new.run)
    assert len(set(runs)) == 4
    assert await conversation(stage, old.session) == ["first", "answer 4"]


async def test_a_cancelled_message_is_answered_anew(stage: Stage) -> None:
    """Its run has ended, too."""
    teller = Teller()
    runner = stage.runner(asyncio_wait, teller)
    session = await stage.session(agent="asyncio_wait")
    old = await runner.send(session, "first")
    await stage.seen(session, "run.started")
    await runner.cancel(session)
    await stage.ended(old)
    new = await runner.retry(session, old.message)
    await runner.cancel(session)
    await stage.ended(new)
    assert await conversation(stage, session) == ["first", ""]


async def asyncio_wait(turn: Turn) -> AsyncIterator[str]:
    await asyncio.Event().wait()
    yield ""


# Two who ask ----------------------------------------------------------------------------------------------------------


class Meeting:
    """Holds appends of messages until ``count`` callers have come to one: all have read, none has written."""

    def __init__(self, stage: Stage, count: int) -> None:
        self._append = stage.store.append
        self._barrier = asyncio.Barrier(count)
        stage.store.append = self  # type: ignore[method-assign]

    async def __call__(self, session: str, drafts: Sequence[Draft], **settings: Any) -> Appended:
        if any(draft.type == "message.created" for draft in drafts):
            await self._barrier.wait()
        return await self._append(session, drafts, **settings)


async def test_two_at_the_same_instant_get_the_same_run(stage: Stage) -> None:
    """Both have seen the message ended before either has stored anything."""
    teller = Teller()
    runner = stage.runner(teller)
    old = await answered(stage, runner, await stage.session(), "first")
    Meeting(stage, 2)
    sents = await asyncio.gather(*(runner.retry(old.session, old.message) for _ in range(2)))
    del stage.store.append
    assert sorted(sent.repeated for sent in sents) == [False, True]
    assert len({(sent.run, sent.offset) for sent in sents}) == 1
    await stage.ended(sents[0])
    await stage.idle(runner)
    assert len(teller.asked) == 2


async def test_the_second_of_two_gets_the_run_of_the_first(stage: Stage) -> None:
    """While that goes on; and however late, if it says which end it has seen."""
    gate = asyncio.Event()
    calls = itertools.count()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        if next(calls):
            await gate.wait()
        yield "said"

    runner = stage.runner(agent)
    old = await answered(stage, runner, await stage.session(), "first")
    first = await runner.retry(old.session, old.message)
    seen = [await runner.retry(old.session, old.message), await runner.retry(old.session, old.message, run=old.run)]
    gate.set()
    await stage.ended(first)
    seen.append(await runner.retry(old.session, old.message, run=old.run))
    assert {(sent.run, sent.offset, sent.repeated) for sent in seen} == {(first.run, first.offset, True)}
    last = await runner.retry(old.session, old.message, run=first.run)
    assert (last.run != first.run, last.repeated) == (True, False)
    await stage.ended(last)


async def test_a_message_that_crosses_a_retry_is_not_taken_back(stage: Stage) -> None:
    """It was stored after the retry had looked, and before it was stored: both are answered."""
    teller = Teller()
    runner = stage.runner(teller)
    old = await answered(stage, runner, await stage.session(), "first")
    append, once = stage.store.append, itertools.count()

    async def crossed(session: str, drafts: Sequence[Draft], **settings: Any) -> Appended:
        if drafts[0].type == "session.rewound" and not next(once):
            await answered(stage, runner, session, "crossing")
        return await append(session, drafts, **settings)

    stage.store.append = crossed  # type: ignore[method-assign]
    await stage.ended(await runner.retry(old.session, old.message))
    del stage.store.append
    assert await conversation(stage, old.session) == ["crossing", "answer 2", "first", "answer 3"]
    assert teller.asked[1:] == [["first", "answer 1", "crossing"], ["crossing", "answer 2", "first"]]


# What cannot be answered anew -----------------------------------------------------------------------------------------


async def test_what_cannot_be_answered_anew(stage: Stage) -> None:
    """Unknown messages and answers are not found; one that is being answered, or not the last, is a conflict."""
    gate = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        if turn.message.text == "second":
            await gate.wait()
        yield "said"

    runner = stage.runner(agent)
    first = await answered(stage, runner, await stage.session(), "first")
    with pytest.raises(SessionNotFound):
        await runner.retry("nobody", first.message)
    for unknown in ("", "nope", first.run, f"{first.run}~a1", "\ud800"):
        with pytest.raises(NotFound):
            await runner.retry(first.session, unknown)
    with pytest.raises(NotFound):
        await runner.retry(first.session, first.message, run="nope")
    second = await runner.send(first.session, "second")
    for message in (first.message, second.message):
        with pytest.raises(Conflict):
            await runner.retry(first.session, message)
    gate.set()
    await stage.ended(second)
    with pytest.raises(Conflict):
        await runner.retry(first.session, first.message)
    assert sum(event.type == "session.rewound" for event in await stage.events(first.session)) == 0


async def test_a_message_that_was_taken_back_is_not_answered_anew(stage: Stage) -> None:
    """It is no part of the conversation any more."""
    runner = stage.runner(Teller())
    session = await stage.session()
    first = await answered(stage, runner, session, "first")
    second = await answered(stage, runner, session, "second")
    await stage.store.append(session, [draft("session.rewound", {"to": f"{first.run}~a1"})])
    with pytest.raises(NotFound):
        await runner.retry(session, second.message)
    await stage.ended(await runner.retry(session, first.message))


async def test_nothing_is_answered_anew_while_the_server_stops(stage: Stage) -> None:
    """As no message is taken then."""
    runner = stage.runner(Teller())
    old = await answered(stage, runner, await stage.session(), "first")
    runner.draining = True
    with pytest.raises(Draining):
        await runner.retry(old.session, old.message)
    assert (await runner.answer(old.session, old.message)).run == old.run


# Messages that never had a run ----------------------------------------------------------------------------------------


async def copied(stage: Stage, *texts: str) -> str:
    """A session as a fork leaves it: its messages have no runs."""
    session = await stage.session()
    drafts = [draft("message.created", {"id": text, "role": "user", "text": text}) for text in texts]
    await stage.store.append(session, drafts)
    return session


async def test_a_copied_message_is_answered_once(stage: Stage) -> None:
    """By whoever asks first, also of two at the same instant; later it has its run."""
    teller = Teller()
    runner = stage.runner(teller)
    session = await copied(stage, "a", "b")
    Meeting(stage, 2)
    sents = await asyncio.gather(*(runner.answer(session, "b") for _ in range(2)))
    del stage.store.append
    await stage.ended(sents[0])
    sents.append(await runner.answer(session, "b"))
    assert {sent.run for sent in sents} == {sents[0].run}
    assert teller.asked == [["a", "b"]]
    assert await conversation(stage, session) == ["a", "b", "answer 1"]
    await stage.ended(await runner.retry(session, "b"))
    assert await conversation(stage, session) == ["a", "b", "answer 2"]
    with pytest.raises(Conflict):
        await runner.answer(session, "a")


async def test_a_copied_message_can_be_answered_by_a_retry(stage: Stage) -> None:
    """It comes to the same."""
    runner = stage.runner(Teller())
    session = await copied(stage, "a")
    sent = await runner.retry(session, "a")
    await stage.ended(sent)
    assert (await runner.answer(session, "a")).run == sent.run
    assert await conversation(stage, session) == ["a", "answer 1"]


# On the wire ----------------------------------------------------------------------------------------------------------


async def test_a_retry_over_http_is_seen_by_readers() -> None:
    """202 with the new run; a reader sees the rewind, the message again, and the answer; the rest has one answer."""
    teller = Teller()
    async with chatting(None, teller) as chat:
        old = (await chat.said("first")).json()
        target = f"/messages/{old['messageId']}/retry"
        head = (await chat.get("/events")).json()["head"]
        answer = await chat.post(target)
        new = answer.json()
        assert (answer.status, new["messageId"], new["status"]) == (202, old["messageId"], "processing")
        seen = await chat.follow(str(head), until=ends(new["runId"]))
        names = ["session_rewound", "user_message_created", "run_started", "content", "complete"]
        assert [message.event for message in seen if message.event != "connected"] == names
        assert [data(message) for message in seen][1]["to"] == ""
        assert [row["userInput"] for row in (await chat.get("/messages")).json()] == ["first", "answer 2"]
        again = await chat.post(target, {"runId": old["runId"]})
        assert (again.json()["runId"], again.headers["legato-repeated"]) == (new["runId"], "true")
        assert (await chat.get()).json()["userMessageCount"] == 1
        assert len(teller.asked) == 2


async def test_a_retry_over_http_of_what_is_being_answered() -> None:
    """409, and nothing is stored."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        sent = (await chat.send()).json()
        answer = await chat.post(f"/messages/{sent['messageId']}/retry")
        assert reason(answer) == (409, "bad_request", "conflict")
        gate.close()
        await chat.follow("0", until=ends(sent["runId"]))


async def test_a_retried_response_can_be_continued() -> None:
    """The Responses dialect names runs: the new one is the conversation's last, the old one was taken back."""
    async with chatting(None, Teller()) as chat:
        ask = {"model": "Teller", "input": "first", "conversation": chat.session}
        old = (await chat.driver.request("POST", "/v1/responses", json=ask)).json()
        message = (await chat.get("/messages")).json()[0]["id"]
        new = (await chat.post(f"/messages/{message}/retry")).json()["runId"]
        await chat.follow("0", until=ends(new))
        found = await chat.driver.request("GET", f"/v1/responses/resp_{new}")
        assert found.json()["output"][0]["content"][0]["text"] == "answer 2"
        on = {"model": "Teller", "input": "more"}
        after = {**on, "previous_response_id": found.json()["id"]}
        assert (await chat.driver.request("POST", "/v1/responses", json=after)).status == 200
        after = {**on, "previous_response_id": old["id"]}
        assert (await chat.driver.request("POST", "/v1/responses", json=after)).status == 400

"""Deltas joined for readers who are far behind: the same text, cut and resumed anywhere, in fewer frames."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driving import Chat, chatting, decoded, lines, logged  # noqa: F401  # each test once under each server
from legato.agent import Turn
from legato.dialect import joined as module
from legato.dialect.joined import JOINED_CHARACTERS, JoinedPages, joined
from legato.event import CallStarted, Event, Fact, RefusalDelta, TextDelta, ThinkingDelta
from legato.server.pump import BEHIND
from legato.sse import SSEMessage
from legato.testing import ASGIStream

PIECES = (TextDelta, ThinkingDelta, RefusalDelta)


def page(*said: tuple[str, Fact]) -> list[Event]:
    return [Event(fact, offset, float(offset), run) for offset, (run, fact) in enumerate(said, 1)]


def text_of(events: list[Event]) -> dict[object, str]:
    """Every part's text, put together as a client does: a piece that does not go on where the last ended is wrong."""
    texts: dict[object, str] = {}
    for event in events:
        if isinstance(event.fact, PIECES):
            key = event.run, type(event.fact), event.fact.part
            assert len(texts.get(key, "")) == event.fact.start
            texts[key] = texts.get(key, "") + event.fact.text
    return texts


@st.composite
def pages(draw: st.DrawFn) -> list[Event]:
    said: list[tuple[str, Fact]] = []
    lengths: dict[object, int] = {}
    for _ in range(draw(st.integers(0, 40))):
        run = draw(st.sampled_from("rt"))
        kind = draw(st.sampled_from([*PIECES, CallStarted]))
        part = draw(st.integers(0, 1))
        if kind is CallStarted:
            said.append((run, CallStarted(part, 0, "c", "tool")))
            continue
        text = draw(st.text(max_size=5))
        start = lengths.get((run, kind, part), 0)
        lengths[run, kind, part] = start + len(text)
        said.append((run, kind(part, 0, start, text)))
    return page(*said)


@given(pages())
def test_joining_changes_no_text_and_no_order(events: list[Event]) -> None:
    """What is no piece of text stays as it is, where it is; the last offset stays."""
    made = joined(events)
    assert text_of(made) == text_of(events)
    assert [event.offset for event in made] == sorted({event.offset for event in made})
    assert {event.offset for event in made} <= {event.offset for event in events}
    assert [event.offset for event in made][-1:] == [event.offset for event in events][-1:]
    assert [event for event in made if isinstance(event.fact, CallStarted)] == [
        event for event in events if isinstance(event.fact, CallStarted)
    ]
    assert joined(made) == made


def test_only_what_goes_on_is_joined() -> None:
    """Not over a gap or another's words, and not without a bound."""
    one = joined(page(*[("r", TextDelta(0, 0, 2 * place, "ab")) for place in range(5)]))
    assert one == [Event(TextDelta(0, 0, 0, "ab" * 5), 5, 5.0, "r")]
    gap = page(("r", TextDelta(0, 0, 0, "ab")), ("r", TextDelta(0, 0, 3, "c")))
    others = page(*[(run, TextDelta(0, 0, 0, "ab")) for run in "rs"])
    parts = page(*[("r", TextDelta(part, 0, 0, "")) for part in (0, 1)])
    for events in (gap, others, parts):
        assert joined(events) == events
    half = "x" * (JOINED_CHARACTERS // 2 + 1)
    large = joined(page(*[("r", TextDelta(0, 0, len(half) * place, half)) for place in range(6)]))
    assert [len(event.fact.text) for event in large] == [2 * len(half)] * 3  # type: ignore[union-attr]


def test_a_page_is_joined_once_and_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who ask for the same are given the same; what was not asked for the longest is let go."""
    monkeypatch.setattr(module, "KEPT_BYTES", module.EVENT_BYTES + 200)
    kept = JoinedPages()
    events = page(*[("r", TextDelta(0, 0, 20 * place, "x" * 20)) for place in range(2)])
    first = kept.of("s", events)
    assert kept.of("s", events) is first
    assert kept.of("t", events) is not first
    assert kept.of("s", events) is not first
    assert kept._held <= module.KEPT_BYTES


@pytest.mark.parametrize("size", [1, 10, 200, 600, 700, 2_000, 16_000])
def test_what_is_copied_of_a_page_is_bounded(size: int) -> None:
    """However large its events are, and at whatever place a reader stands: all of the text comes, in pages of few
    characters, or as it is in the log."""
    kept = JoinedPages()
    events = page(*[("r", TextDelta(0, 0, size * place, "x" * size)) for place in range(500)])
    given: list[Event] = []
    copied = [0]
    while not given or given[-1].offset < len(events):
        asked = events[given[-1].offset if given else 0 :][:300]
        found = kept.of("s", asked)
        if found is not asked:
            copied.append(sum(len(event.fact.text) for event in found))  # type: ignore[union-attr]
        given += found
    assert text_of(given) == text_of(events)
    assert max(copied) <= module.PAGE_CHARACTERS + size
    assert (max(copied) > 0) == (size * module.FEW <= module.PAGE_CHARACTERS)


def test_a_page_of_which_nothing_was_joined_is_not_kept() -> None:
    """The log has it; and what others said, with what hangs on it, may be large."""
    kept = JoinedPages()
    events = page(*[("r", CallStarted(number, 0, "c", "tool")) for number in range(5)])
    assert kept.of("s", events) == events
    assert not kept._pages


WORDS = [f"w{number} " for number in range(BEHIND * 3)]


async def test_who_comes_late_is_given_few_frames_and_all_of_the_text() -> None:
    """Live it was one frame for each; cut at any byte and resumed, it is the same text."""
    go = asyncio.Event()

    async def agent(turn: object) -> object:
        for word in WORDS:
            yield word
            await asyncio.sleep(0)
        await go.wait()

    async with chatting(None, agent) as chat:
        sent = (await chat.send()).json()
        live = await chat.follow(sent["cursor"], until=lambda message: "w299 " in message.data)
        whole = await read(chat, None)
        assert said(logged(live)) == said(logged(decoded(whole))) == "".join(WORDS)
        assert len([message for message in decoded(whole) if message.event == "content"]) <= 5
        for cut in range(0, len(whole), 37):
            seen = decoded(whole[:cut])
            last = next((message.id for message in reversed(seen) if message.id), None)
            assert said(logged(seen) + logged(decoded(await read(chat, last)))) == "".join(WORDS)
        go.set()


Asking = Callable[[Chat, dict[str, str], str | None], ASGIStream]


def deva(chat: Chat, sent: dict[str, str], last: str | None) -> ASGIStream:
    path = f"/api/sdk/chat/{chat.session}/messages/{sent['messageId']}/query/stream"
    return chat.driver.stream(path, method="POST", headers={} if last is None else {"last-event-id": last})


def completions(chat: Chat, sent: dict[str, str], last: str | None) -> ASGIStream:
    asked = {"model": "agent", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    return chat.driver.stream(
        "/v1/chat/completions", method="POST", body=json.dumps(asked).encode(), headers={"idempotency-key": "k"}
    )


def piece_of(message: SSEMessage) -> str:
    said = json.loads(message.data)
    return str(said if isinstance(said, str) else said["choices"][0]["delta"]["content"])


@pytest.mark.parametrize("asking", [deva, completions])
async def test_who_comes_late_over_another_dialect_is_given_few_frames(asking: Asking) -> None:
    """Who is there from the start makes the fold go on; who comes then is given the same text, cut at any byte and
    resumed where the dialect has cursors."""
    go = asyncio.Event()

    async def agent(turn: Turn) -> object:
        for word in WORDS:
            yield word
            await turn.stored()  # else those that wait would be one
        await go.wait()

    async def read(last: str | None = None) -> bytes:
        async with asyncio.timeout(30), asking(chat, sent, last) as stream:
            while b"w299 " not in stream.body and not (last or "").startswith(f"{len(WORDS) + 3}."):
                assert await stream.read()
            return stream.body

    async with chatting(None, agent) as chat:
        sent = (await chat.send()).json() if asking is deva else {}
        pieces = [[piece_of(message) for message in decoded(await read())] for _ in range(2)]
        assert ["".join(each) for each in pieces] == ["".join(WORDS)] * 2
        assert len(pieces[1]) <= 6
        whole = await read()
        for cut in range(0, len(whole), 37) if asking is deva else ():
            seen = decoded(whole[:cut])
            last = seen[-1].id if seen else None
            assert "".join(map(piece_of, [*seen, *decoded(await read(last))])) == "".join(WORDS)
        go.set()


async def read(chat: Chat, last: str | None) -> bytes:
    """Everything from a cursor to the last word."""
    async with asyncio.timeout(30), chat.stream("from=start&client=legato", last=last) as stream:
        while b"w299 " not in stream.body and (last is None or int(last) < len(WORDS) + 3):
            assert await stream.read()
        return stream.body


def said(messages: list) -> str:  # type: ignore[type-arg]
    """The text as a client puts it together: each piece has its place."""
    text = ""
    for message in messages:
        if message.event == "content":
            piece = json.loads(message.data)
            assert piece["start"] == len(text)
            text += piece["content"]
    return text

"""What a log must be after anything: the same from every node, each run ended once, and nothing of it lost.

What agents that count have said shows what the store has lost although it was taken: in each attempt the numbers follow
one another, and only the last attempt comes to the end.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from .listeners import RunListener, asked

TERMINAL = ("run.completed", "run.failed", "run.cancelled")
PAGE = 1_000
"""Events in one page of a log."""
TRIES = 60
"""How often a node is asked for a page before that is a fault: all of them are up by then."""


class Spoken(msgspec.Struct):
    """A message that was taken, and who read its answer.

    Attributes:
        session, run: ids; "" of one that nobody has heard of.
        agent: who was asked; "" if it does not count.
        count: pieces that it was to give.
        rate: of them a second.
        cancelled: somebody has asked it to stop.
        listeners: its readers.
    """

    session: str
    run: str
    agent: str
    count: int
    rate: float
    cancelled: bool = False
    listeners: list[RunListener] = []


class Verdict(msgspec.Struct):
    """What came of all runs.

    Attributes:
        began: when all began, seconds since the epoch.
        faults: what must not be.
        runs: how many ended in which way.
        attempts: beyond each run's first.
        longest: seconds, between two events of a run that was open and waited for nobody.
        started: of each further attempt: the node whose run it was, when it had last said something, and when the next
            attempt began (seconds since the epoch).
    """

    began: float = 0.0
    faults: list[str] = []
    runs: dict[str, int] = {}
    attempts: int = 0
    longest: float = 0.0
    started: list[tuple[str, float, float]] = []


async def judged(ports: Sequence[int], spoken: Sequence[Spoken], *, most: float, began: float) -> Verdict:
    """Compare what was heard with what is in the logs, as each node gives them.

    Args:
        ports: of the nodes, all of them up and at peace.
        spoken: what was taken.
        began: see ``Verdict``.
        most: seconds that an open run may say nothing; it says something once in ``1 / rate`` of them besides.
    """
    verdict = Verdict(began)
    sessions: dict[str, list[Spoken]] = defaultdict(list)
    for each in spoken:
        if each.session:
            sessions[each.session].append(each)
    gate = asyncio.Semaphore(8)

    async def one(session: str, of_it: list[Spoken]) -> None:
        async with gate:
            logs = await asyncio.gather(*(_log(port, session) for port in ports))
        _judge(verdict, session, of_it, logs, most)

    await asyncio.gather(*(one(session, of_it) for session, of_it in sessions.items()))
    return verdict


async def _page(port: int, path: str) -> Any:
    for _ in range(TRIES):
        try:
            async with asked(port, "GET", path) as answer:
                if answer.status == 200:
                    return await answer.json()
        except OSError:
            pass
        await asyncio.sleep(0.25)
    return None


async def _log(port: int, session: str) -> Any:
    """The log and the history, as a node gives them; None where it gives none."""
    events: list[Any] = []
    after: int | None = 0
    while after is not None:
        page = await _page(port, f"/api/sessions/{session}/events?after={after}&limit={PAGE}")
        if page is None:
            return None
        events += page["events"]
        after = page["next"]
    return events, await _page(port, f"/api/sessions/{session}/messages")


def _judge(verdict: Verdict, session: str, spoken: list[Spoken], logs: list[Any], most: float) -> None:
    if None in logs:
        verdict.faults.append(f"{session}: a node does not give it")
        return
    if any(msgspec.json.encode(log) != msgspec.json.encode(logs[0]) for log in logs[1:]):
        verdict.faults.append(f"{session}: nodes give different logs or histories")
    events: list[dict[str, Any]] = logs[0][0]
    offsets = [event["offset"] for event in events]
    if offsets != list(range(1, len(events) + 1)):
        verdict.faults.append(f"{session}: its offsets are not dense: {offsets[:50]}")
    by_run: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("run"):
            by_run[event["run"]].append(event)
    asked = {each.run for each in spoken}
    for run in by_run.keys() - asked:
        spoken = [*spoken, Spoken(session, run, "", 0, 1.0)]  # its sender was never told; it has to end all the same
    for each in spoken:
        verdict.faults += [f"{each.run}: {fault}" for fault in _faults(verdict, each, by_run.get(each.run, []), most)]


def _faults(verdict: Verdict, spoken: Spoken, events: list[dict[str, Any]], most: float) -> list[str]:
    found: list[str] = []
    types = [event["type"] for event in events]
    ends = [type for type in types if type in TERMINAL]
    if types[:1] != ["message.created"] or types.count("message.created") != 1:
        return [f"its message is not in the log once, which has {types[:5]}"]
    if len(ends) != 1 or types[-1] not in TERMINAL:
        found.append(f"it has the ends {ends}, and its last event is {types[-1]}")
    for type in ends:
        verdict.runs[type] = verdict.runs.get(type, 0) + 1
    text = "".join(event["data"]["text"] for event in events if event["type"] in ("text.delta", "refusal.delta"))
    for listener in spoken.listeners:
        found += listener.faults
        if listener.ended and listener.text.split() != text.split():
            found.append(f"a {listener.dialect} reader has {_difference(listener.text, text)}")
    verdict.attempts += max(types.count("run.started") - 1, 0)
    found += _late(verdict, events, most + 1 / spoken.rate)
    if spoken.agent:
        found += _counted(verdict, spoken, events)
    return found


def _difference(heard: str, said: str) -> str:
    one, other = heard.split(), said.split()
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    here, there = one[place : place + 3], other[place : place + 3]
    return f"{len(one)} pieces, and the log {len(other)}; at {place} {here} in the place of {there}"


def _late(verdict: Verdict, events: list[dict[str, Any]], most: float) -> list[str]:
    waits = 0  # for answers of people
    for before, event in itertools.pairwise(events):
        waits += (before["type"] == "permission.requested") - (before["type"] == "permission.resolved")
        if waits:
            continue
        gap = event["at"] - before["at"]
        verdict.longest = max(verdict.longest, gap)
        if gap > most:
            since = before["at"] - verdict.began
            return [f"nothing came for {gap:.1f} s from {since:.1f} s on, between {before['type']} and {event['type']}"]
    return []


def _counted(verdict: Verdict, spoken: Spoken, events: list[dict[str, Any]]) -> list[str]:
    """What is wrong with what an agent said that counts."""
    attempt, number, node, said_at = 0, -1, "", 0.0
    for event in events:
        if event["type"] == "run.started":
            attempt = event["data"]["attempt"]
            if node:
                verdict.started.append((node, said_at, event["at"]))
            node = ""
            if spoken.agent != "resumes":
                number = -1
        elif event["type"] == "text.delta":
            for piece in event["data"]["text"].split():
                counted = piece.partition("@")[0].split(".")
                if len(counted) != 3:
                    return [f"its log has the piece {piece!r}"]
                number += 1
                if counted[:2] != [str(number), str(attempt)]:
                    return [f"its log has the piece {piece!r} where {number}.{attempt} is to stand"]
                node, said_at = counted[2], event["at"]
    end = events[-1]
    if end["type"] == "run.completed" and number != spoken.count - 1:
        return [f"it is complete with {number + 1} pieces of {spoken.count}"]
    if end["type"] == "run.cancelled" and not spoken.cancelled:
        return ["it was cancelled, and nobody has asked for that"]
    if end["type"] == "run.failed":
        code = end["data"]["code"]
        if code != "interrupted" or spoken.agent != "fails":
            return [f"it has failed with {code!r}"]
    return []

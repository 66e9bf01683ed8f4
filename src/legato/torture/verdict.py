"""What a log must be after anything: the same from every node, each run ended once, and nothing of it lost.

What agents that count have said shows what the store has lost although it was taken: in each attempt the numbers follow
one another, and only the last attempt comes to the end.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from .listeners import ChatListener, RunListener
from .retold import bytes_of, retold

TERMINAL = ("run.completed", "run.failed", "run.cancelled")
PAGE = 1_000
"""Events in one page of a log."""


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
        longest: seconds, between two signs of life of a run that was open and waited for nobody: its events; and that a
            node took it to which something was then done before it had begun it, which no log can show.
        between: the longest, between two events.
        compared: answers of nodes that were compared with those of the first.
        started: of each further attempt: the node whose run it was, when it had last said something, and when the next
            attempt began (seconds since the epoch).
    """

    began: float = 0.0
    faults: list[str] = []
    runs: dict[str, int] = {}
    attempts: int = 0
    longest: float = 0.0
    between: float = 0.0
    compared: int = 0
    started: list[tuple[str, float, float]] = []


class NodeLife(msgspec.Struct):
    """What became of a node.

    Attributes:
        hits: when something began to be done to it, seconds since the epoch.
        takes: when it took which run that was not begun with its message.
    """

    hits: list[float] = []
    takes: list[tuple[str, float]] = []


def lost_takes(lives: Iterable[NodeLife]) -> dict[str, list[tuple[float, float]]]:
    """By run: when a node took it, and when something was first done to that node then."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for life in lives:
        for run, at in life.takes:
            if (hit := min((hit for hit in life.hits if hit > at), default=None)) is not None:
                found[run].append((at, hit))
    return found


async def judged(
    ports: Sequence[int], spoken: Sequence[Spoken], *, most: float, began: float, lives: Iterable[NodeLife] = ()
) -> Verdict:
    """Compare what was heard with what is in the logs, as each node gives them.

    Args:
        ports: of the nodes, all of them up and at peace.
        spoken: what was taken.
        began: see ``Verdict``.
        most: seconds that an open run may say nothing; it says something once in ``1 / rate`` of them besides.
        lives: of the nodes, as far as they are known.
    """
    verdict = Verdict(began)
    takes = lost_takes(lives)
    sessions: dict[str, list[Spoken]] = defaultdict(list)
    for each in spoken:
        if each.session:
            sessions[each.session].append(each)
    gate = asyncio.Semaphore(8)

    async def one(session: str, of_it: list[Spoken]) -> None:
        async with gate:
            logs = await asyncio.gather(*(_log(port, session) for port in ports))
            chats = [each for talk in of_it for each in talk.listeners if isinstance(each, ChatListener)]
            told = []
            if None not in logs and (events := logs[0]) is not None:
                told = await asyncio.gather(*(retold(port, session, events, chats) for port in ports))
        verdict.faults += [f"{session}: {fault}" for fault in differences(told)]
        verdict.compared += sum(map(len, told))
        _judge(verdict, session, of_it, logs, most, takes)

    await asyncio.gather(*(one(session, of_it) for session, of_it in sessions.items()))
    return verdict


def differences(told: Sequence[Mapping[str, bytes | None]]) -> list[str]:
    """What nodes do not tell, or tell otherwise than the first of them."""
    found: list[str] = []
    for name in dict.fromkeys(name for each in told for name in each):
        answers = [each.get(name) for each in told]
        if None in answers:
            found.append(f"a node does not give the {name}")
        elif len(set(answers)) > 1:
            found.append(f"nodes give different bytes of the {name}")
    return found


async def _log(port: int, session: str) -> list[dict[str, Any]] | None:
    """The log, as a node gives it; None where it gives none."""
    events: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = await bytes_of(port, "GET", f"/api/sessions/{session}/events?after={after}&limit={PAGE}")
        if page is None:
            return None
        found = msgspec.json.decode(page)
        events += found["events"]
        after = found["next"]
    return events


def _judge(
    verdict: Verdict,
    session: str,
    spoken: list[Spoken],
    logs: Sequence[list[dict[str, Any]] | None],
    most: float,
    takes: Mapping[str, list[tuple[float, float]]],
) -> None:
    events = logs[0]
    if events is None or None in logs:
        verdict.faults.append(f"{session}: a node does not give it")
        return
    if any(msgspec.json.encode(log) != msgspec.json.encode(events) for log in logs[1:]):
        verdict.faults.append(f"{session}: nodes give different logs")
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
        found = _faults(verdict, each, by_run.get(each.run, []), most, takes.get(each.run, []))
        verdict.faults += [f"{each.run}: {fault}" for fault in found]


def _faults(
    verdict: Verdict, spoken: Spoken, events: list[dict[str, Any]], most: float, takes: list[tuple[float, float]]
) -> list[str]:
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
    found += _late(verdict, events, most + 1 / spoken.rate, takes)
    if spoken.agent:
        found += _counted(verdict, spoken, events)
    return found


def _difference(heard: str, said: str) -> str:
    one, other = heard.split(), said.split()
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    here, there = one[place : place + 3], other[place : place + 3]
    return f"{len(one)} pieces, and the log {len(other)}; at {place} {here} in the place of {there}"


def _late(verdict: Verdict, events: list[dict[str, Any]], most: float, takes: list[tuple[float, float]]) -> list[str]:
    waits = 0  # for answers of people
    for before, event in itertools.pairwise(events):
        waits += (before["type"] == "permission.requested") - (before["type"] == "permission.resolved")
        if waits:
            continue
        taken = sorted(at for at, hit in takes if before["at"] < at <= hit < event["at"])
        signs = [before["at"], *taken, event["at"]]
        gap = max(after - sign for sign, after in itertools.pairwise(signs))
        verdict.longest = max(verdict.longest, gap)
        verdict.between = max(verdict.between, event["at"] - before["at"])
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

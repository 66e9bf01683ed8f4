"""For tests of what is built on Legato, and of what it can be built on.

Stores: ``check_store`` runs the contract of ``legato.log.Store`` on a store of yours; ``STORE_CHECKS`` are its parts,
so that a test runner can show them one by one. ``FakeClock`` is the time they run on. ``simulate`` lets nodes, people
and readers live on it while everything goes wrong.

Dialects: ``check_dialect`` runs the rules of frames on an encoder of yours.

Applications: ``Driver`` drives one in this process, without sockets; its streams can be stalled, and cut at any byte.
``check_cluster`` serves one on many nodes, which are killed, stopped and cut off.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from .errors import (
    Conflict,
    CursorInvalid,
    HeadMoved,
    IllegalTransition,
    InvalidInput,
    LeaseHeld,
    LegatoError,
    RunEnded,
    SessionExists,
    SessionNotFound,
    StaleLease,
)
from .event import (
    CallDelta,
    CancelRequested,
    Delta,
    Draft,
    Event,
    MessageCreated,
    OtherFact,
    RefusalDelta,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    Said,
    SessionCreated,
    SessionDeleted,
    TextDelta,
    ThinkingDelta,
    ToolBegun,
    ToolCompleted,
)
from .json import JsonObject
from .log import READ_LIMIT, Bell, Log, SessionPage, Store, Subscription, Take, Thinning, build
from .machine import Lease, OpenRun, RunState
from .sse import Decoder
from .store.moving import move, portable
from .testing_asgi import ASGIResponse as ASGIResponse
from .testing_asgi import ASGIStream as ASGIStream
from .testing_asgi import Driver as Driver

PATIENCE = 60.0
"""Seconds after which a check that hangs is given up. It measures nothing."""


class FakeClock:
    """A clock that stands still until told otherwise. Call it for the time, seconds since the epoch."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


# Stores ---------------------------------------------------------------------------------------------------------------

MakeStore = Callable[[str, Callable[[], float]], Store]
"""Makes a store, not yet open, from the name of a place (letters and ``_``) and a clock.

Different names are different places, each empty at first. The same name is the same place again: what was stored
there and closed is found there. (For a store in memory: give the same object again.)
"""


class Place:
    """Where one check works.

    Attributes:
        store: open.
        clock: the store's.
    """

    def __init__(self, make: MakeStore, name: str) -> None:
        self._make = make
        self._name = name
        self._others: list[Store] = []
        self.clock = FakeClock()
        self.store = make(name, self.clock)

    async def reopen(self) -> Store:
        """Close the store, and open another one on the same place."""
        await self.store.close()
        self.store = self._make(self._name, self.clock)
        await self.store.open()
        return self.store

    async def another(self, name: str) -> Store:
        """A store on another place, open; it is closed with this one."""
        self._others.append(self._make(f"{self._name}_{name}", self.clock))
        await self._others[-1].open()
        return self._others[-1]

    async def close(self) -> None:
        """Close the store, and all others."""
        for store in (self.store, *self._others):
            await store.close()

    async def begin(self, session: str = "s", *runs: str) -> Log:
        """A new session with these runs open."""
        log = Log(self.store, session)
        await log.append(Draft(SessionCreated(session)), *[_message(run) for run in runs])
        return log

    async def lease(self, session: str, run: str, *, owner: str = "owner", ttl: float = 30.0) -> Lease:
        """The lease of an open run."""
        return await self.store.acquire(session, run, owner=owner, ttl=ttl)


class StoreCheck(NamedTuple):
    """One rule of the contract. Call it with a ``MakeStore``; it raises AssertionError when the rule is broken."""

    name: str
    rule: str
    body: Callable[[Place], Awaitable[None]]

    async def __call__(self, make: MakeStore) -> None:
        """Run it, on a place of its own."""
        place = Place(make, self.name)
        async with asyncio.timeout(PATIENCE):
            await place.store.open()
            try:
                await self.body(place)
            finally:
                await place.close()


STORE_CHECKS: list[StoreCheck] = []
"""What every store must pass."""
EMBEDDED_STORE_CHECKS: list[StoreCheck] = []
"""What a store that only one process can use must pass too."""


async def check_store(make: MakeStore, *, shared: bool = False) -> None:
    """Run the whole contract. ``shared``: several processes can use the store, so opening it forgets no leases.

    Raises:
        AssertionError: a rule is broken; its note says which.
    """
    for check in [*STORE_CHECKS, *([] if shared else EMBEDDED_STORE_CHECKS)]:
        try:
            await check(make)
        except Exception as exc:
            exc.add_note(f"{check.name}: {check.rule}")
            raise


def simulate(
    make: MakeStore,
    *,
    seeds: Iterable[int] = range(20),
    steps: int = 150,
    shared: bool = False,
    real_time: bool = False,
) -> None:
    """Let small worlds of nodes, people and readers live on a store, with crashes, lost answers, pauses, clocks that
    are set and much else between any two steps; and check after each that R1 to R7 hold. Not within an event loop.

    Args:
        make: as for ``check_store``. Called for each node; it may give one and the same object to all, if ``shared``.
        seeds: each decides all that is random in a world: the same seed is the same world. Every fifth is calm: there
            nothing goes wrong, and everything must be in time.
        steps: of people and faults in a world.
        shared: several nodes have the store at once. If not, one has it at a time, and its crash closes the store.
        real_time: the store waits for something outside of its event loop, such as a network. Then a world takes some
            ten seconds, and a seed is the same but for what decides the order there.

    Raises:
        AssertionError: something did not hold: the seed, the steps that led there, and what.
    """
    from .torture.ground import GivenGround
    from .torture.simulate import WorldPlan, simulated

    for seed in seeds:
        ground = GivenGround(make, f"simulated_{seed}", shared=shared, real=real_time)
        found = simulated(ground, WorldPlan(seed, steps))
        if found.faults:
            raise AssertionError(found.told())


async def check_cluster(
    store: str,
    app: str | None = None,
    *,
    nodes: int = 2,
    sessions: int = 20,
    seconds: float = 30.0,
    lease_ttl: float = 5.0,
    say: str = "Hello",
    seed: int = 0,
) -> None:
    """Serve an application on several nodes, behind a proxy that remembers nobody, while they are killed, stopped and
    cut off from their database; then compare what each reader has with the log. It takes a little longer than
    ``seconds``.

    Args:
        store: the URL of one that several processes can use; ``"postgresql:"`` or ``"redis:"`` start one.
        app: what ``legato serve`` takes; it should answer without asking back. None: agents that count.
        nodes, sessions: how many nodes, and conversations at once.
        seconds: for which messages are sent.
        lease_ttl: see ``Legato``.
        say: what is said to ``app``.
        seed: of what is random.

    Raises:
        AssertionError: something was lost, doubled or out of order, did not end once, or stood still for too long.
        LegatoError: the nodes, or their database, cannot be started.
    """
    from .torture.cluster import ClusterPlan, torture_cluster

    plan = ClusterPlan(store, nodes, sessions, seconds, lease_ttl, app=app, say=say, seed=seed)
    chart = await torture_cluster(plan)
    if chart.faults:
        raise AssertionError("\n".join(chart.lines()))


def _rule(checks: list[StoreCheck]) -> Callable[[Callable[[Place], Awaitable[None]]], None]:
    def add(body: Callable[[Place], Awaitable[None]]) -> None:
        checks.append(StoreCheck(body.__name__, (body.__doc__ or "").strip(), body))

    return add


def _same(expected: object, actual: object) -> None:
    if expected != actual:
        raise AssertionError(f"\nexpected {expected!r}\n     got {actual!r}")


async def _refused(error: type[LegatoError] | tuple[type[LegatoError], ...], doing: Awaitable[Any]) -> LegatoError:
    try:
        done = await doing
    except error as exc:
        return exc
    raise AssertionError(f"expected {error}, got {done!r}")


def _message(run: str, text: str = "Hello") -> Draft:
    return Draft(MessageCreated(f"m-{run}", "user", text), run)


def _text(run: str, text: str = "x", start: int = 0) -> Draft:
    return Draft(TextDelta(0, 0, start, text), run)


def _started(run: str) -> Draft:
    return Draft(RunStarted("a", 1), run)


_SAID = Said("m", "", [])


def _completed(run: str) -> Draft:
    return Draft(RunCompleted("stop", _SAID), run)


def _cancel(run: str) -> Draft:
    return Draft(CancelRequested(), run)


_DELETED = Draft(SessionDeleted())


def _texts(events: Sequence[Event]) -> list[str]:
    return [event.fact.text for event in events if isinstance(event.fact, TextDelta)]


def _titles(events: Sequence[Event]) -> list[str | None]:
    return [event.fact.title for event in events if isinstance(event.fact, SessionCreated)]


async def _all(log: Log, *, deltas: bool = True) -> list[Event]:
    return [event async for event in log.all(deltas=deltas)]


@_rule(STORE_CHECKS)
async def append_gives_what_read_gives(place: Place) -> None:
    """The events an append returns are those that are read: in order, from offset 1, with the store's time."""
    log = await place.begin()
    place.clock.advance(2.5)
    drafts = [_message("r"), _started("r"), _text("r")]
    appended = await log.append(*drafts)

    _same(False, appended.repeated)
    _same([2, 3, 4], [event.offset for event in appended.events])
    _same([(draft.fact, draft.run) for draft in drafts], [(event.fact, event.run) for event in appended.events])
    _same(True, all(abs(event.at - place.clock.now) < 0.01 for event in appended.events))
    _same(appended.events, (await log.read())[1:])


@_rule(STORE_CHECKS)
async def sessions_count_alone(place: Place) -> None:
    """Each session has its own offsets, from 1, and only its own events."""
    for name in ("a", "b"):
        log = await place.begin(name, f"run of {name}")
        _same([1, 2], [event.offset for event in await log.read()])
        _same([name], _titles(await log.read()))


@_rule(STORE_CHECKS)
async def offsets_are_dense(place: Place) -> None:
    """Many appenders at once: no offset is missing or doubled, and each append stays together and in its order."""
    log = await place.begin("s", "r")

    async def appender(name: int) -> None:
        for number in range(10):
            drafts = [_text("r", f"{name} {number} {part}") for part in range(1 + name % 3)]
            stored = (await log.append(*drafts)).events
            _same([draft.fact for draft in drafts], [event.fact for event in stored])
            _same([stored[0].offset + step for step in range(len(stored))], [event.offset for event in stored])

    await asyncio.gather(*[appender(name) for name in range(20)])
    events = await _all(log)
    _same(list(range(1, len(events) + 1)), [event.offset for event in events])
    _same(2 + sum(10 * (1 + name % 3) for name in range(20)), len(events))
    for name in range(20):
        mine = [text for text in _texts(events) if text.startswith(f"{name} ")]
        _same([f"{name} {number} {part}" for number in range(10) for part in range(1 + name % 3)], mine)


@_rule(STORE_CHECKS)
async def refused_appends_leave_no_trace(place: Place) -> None:
    """An append of which one draft is refused is refused whole, and no offset is lost with it."""
    log = await place.begin("s", "r")
    await _refused(RunEnded, log.append(_started("r"), _completed("r"), _text("unknown")))

    _same(2, (await place.store.info("s")).head)
    _same(2, len(await log.read()))
    _same([3], [event.offset for event in (await log.append(_text("r"))).events])
    _same(["r"], [run.run for run in await place.store.open_runs()])


@_rule(STORE_CHECKS)
async def refusals_do_not_spread(place: Place) -> None:
    """Appends that are made at the same moment as refused ones are stored."""
    log = await place.begin("s", "r")
    doings = [log.append(_text("r" if number % 2 else "unknown", str(number))) for number in range(20)]
    done = await asyncio.gather(*doings, return_exceptions=True)

    _same([number % 2 == 0 for number in range(20)], [isinstance(result, RunEnded) for result in done])
    _same([str(number) for number in range(1, 20, 2)], _texts(await log.read(2)))


@_rule(STORE_CHECKS)
async def an_append_needs_a_draft(place: Place) -> None:
    """An append of nothing is a ValueError."""
    log = await place.begin()
    try:
        await log.append()
    except ValueError:
        return
    raise AssertionError("expected ValueError")


@_rule(STORE_CHECKS)
async def unknown_sessions(place: Place) -> None:
    """A session that never was is not found, and a read of it is empty."""
    log = Log(place.store, "nowhere")

    _same([], await log.read())
    _same([], await log.read(deltas=False))
    await _refused(SessionNotFound, log.append(_message("r")))
    await _refused(SessionNotFound, place.store.info("nowhere"))
    await _refused((RunEnded, SessionNotFound), place.lease("nowhere", "r"))
    _same([], await log.read())


@_rule(STORE_CHECKS)
async def sessions_are_created_once(place: Place) -> None:
    """Of many who create a session one succeeds; the others are told that it exists."""
    doings = [place.begin() for _ in range(10)]
    done = await asyncio.gather(*doings, return_exceptions=True)

    _same(9, sum(isinstance(result, SessionExists) for result in done))
    _same(1, (await place.store.info("s")).head)


@_rule(STORE_CHECKS)
async def once_keys(place: Place) -> None:
    """Under one key a session stores once; whoever comes later gets the events of the first."""
    log = await place.begin()
    first = await log.append(_message("r"), _started("r"), once="key")
    again = await log.append(_message("another"), once="key")

    _same((False, True), (first.repeated, again.repeated))
    _same(first.events, again.events)
    _same(3, (await place.store.info("s")).head)
    other = await place.begin("other")
    _same(False, (await other.append(_message("r"), once="key")).repeated)
    _same(False, (await log.append(_message("another"), once="key 2")).repeated)


@_rule(STORE_CHECKS)
async def once_keys_in_a_race(place: Place) -> None:
    """Of many appends at once under one key one is stored, and all get its events."""
    log = await place.begin()
    done = await asyncio.gather(*[log.append(_message(f"r{number}"), once="key") for number in range(20)])

    _same(1, sum(not appended.repeated for appended in done))
    _same([done[0].events] * 20, [appended.events for appended in done])
    _same(2, (await place.store.info("s")).head)


@_rule(STORE_CHECKS)
async def appends_at_a_head(place: Place) -> None:
    """An append that names a head is stored only if the log ends there, unless its key was used before."""
    log = await place.begin()
    stored = await log.append(_message("r"), once="key", head=1)
    await _refused(HeadMoved, log.append(_started("r"), head=1))
    await _refused(HeadMoved, log.append(_started("r"), head=3))
    await _refused(HeadMoved, log.append(_DELETED, head=1))

    _same(2, (await place.store.info("s")).head)
    _same(stored.events, (await log.append(_message("r"), once="key", head=1)).events)
    _same([3], [event.offset for event in (await log.append(_started("r"), head=2)).events])


@_rule(STORE_CHECKS)
async def deltas_do_not_move_a_head(place: Place) -> None:
    """What was decided at a head holds as long as nothing but deltas has come since."""
    log = await place.begin("s", "r")
    await log.append(_started("r"))
    await log.append(_text("r"))
    await log.append(_text("r", start=1), head=3)
    await log.append(_cancel("r"), head=3)
    await _refused(HeadMoved, log.append(_cancel("r"), head=5))

    _same(6, (await place.store.info("s")).head)
    await log.append(_text("r", start=2))
    await place.reopen()
    log = Log(place.store, "s")
    await _refused(HeadMoved, log.append(_cancel("r"), head=5))
    await log.append(_cancel("r"), head=6)


@_rule(STORE_CHECKS)
async def appends_at_a_head_in_a_race(place: Place) -> None:
    """Of many appends at once at one head one is stored."""
    log = await place.begin()
    doings = [log.append(_message(f"r{number}"), head=1) for number in range(20)]
    done = await asyncio.gather(*doings, return_exceptions=True)

    _same(19, sum(isinstance(result, HeadMoved) for result in done))
    _same(2, (await place.store.info("s")).head)


@_rule(STORE_CHECKS)
async def once_keys_of_refused_appends(place: Place) -> None:
    """A refused append does not use up its key; a stored one answers also when it would now be refused."""
    log = await place.begin()
    await _refused(RunEnded, log.append(_started("r"), once="key"))
    stored = await log.append(_message("r"), _started("r"), _completed("r"), once="key")

    _same(False, stored.repeated)
    _same(stored.events, (await log.append(_text("r"), once="key")).events)


@_rule(STORE_CHECKS)
async def runs_end_once(place: Place) -> None:
    """Of many terminal events for a run one is stored, and nothing of the run after it."""
    log = await place.begin("s", "r")
    await log.append(_started("r"), _cancel("r"))
    ends = itertools.cycle([RunCompleted("stop", _SAID), RunFailed("c", "m", _SAID), RunCancelled(_SAID)])
    done = await asyncio.gather(*[log.append(Draft(end, "r")) for end in itertools.islice(ends, 12)],
                                return_exceptions=True)  # fmt: skip

    _same(11, sum(isinstance(result, RunEnded) for result in done))
    for draft in (_text("r"), _started("r"), _cancel("r"), _completed("r")):
        await _refused(RunEnded, log.append(draft))
    _same(1, sum(event.fact.terminal for event in await log.read()))
    _same([], (await place.store.info("s")).open_runs)


@_rule(STORE_CHECKS)
async def runs_within_one_append(place: Place) -> None:
    """A run may be opened and ended by one append; in it, too, nothing may follow the end."""
    log = await place.begin()
    await log.append(_message("r"), _started("r"), _text("r"), _completed("r"))
    await _refused(RunEnded, log.append(_message("q"), _started("q"), _completed("q"), _text("q")))
    await _refused(RunEnded, log.append(_text("q"), _message("q")))
    await _refused(RunEnded, log.append(_message("q"), _message("q")))

    _same([], await place.store.open_runs())
    _same(5, (await place.store.info("s")).head)


@_rule(STORE_CHECKS)
async def runs_move_by_the_table(place: Place) -> None:
    """What a run's state forbids is refused, and its state is told, also after reopening."""
    log = await place.begin("s", "r")
    for early in (_completed("r"), Draft(RunCancelled(_SAID), "r")):
        await _refused(IllegalTransition, log.append(early))
    states = [RunState.QUEUED]
    for draft in (_started("r"), _cancel("r")):
        await log.append(draft)
        await place.reopen()
        log = Log(place.store, "s")
        states += [run.state for run in await place.store.open_runs()]
    _same([RunState.QUEUED, RunState.RUNNING, RunState.CANCELLING], states)
    await log.append(Draft(RunCancelled(_SAID), "r"))


@_rule(STORE_CHECKS)
async def facts_of_the_future(place: Place) -> None:
    """Types that nobody knows, and fields that nobody knows, are kept as they came, and move no state."""
    log = await place.begin("s", "r")
    new = OtherFact("weather.changed", {"sky": ["blue", None, {"a": 0.5}]})
    stored = await log.append(Draft(new), Draft(new, "r"))
    await _refused(RunEnded, log.append(Draft(new, "unknown")))
    _same([new, new], [event.fact for event in stored.events])
    _same(["r"], [run.run for run in await place.store.open_runs()])
    await place.reopen()
    _same([(new, None), (new, "r")], [(event.fact, event.run) for event in await Log(place.store, "s").read(2)])
    _same([new.data] * 2, [event.data for event in await Log(place.store, "s").read(2, deltas=False)])


@_rule(STORE_CHECKS)
async def leases_fence(place: Place) -> None:
    """Each acquisition has a higher epoch, and appends with an older one are refused whole."""
    log = await place.begin("s", "r")
    old = await place.lease("s", "r")
    await log.append(_started("r"), lease=old)
    new = await place.lease("s", "r")
    await log.append(_text("r", "new"), lease=new)
    error = await _refused(StaleLease, log.append(_text("r", "old"), _completed("r"), lease=old))

    _same(("s", "r", "owner", True), (new.session, new.run, new.owner, new.epoch > old.epoch))
    _same({"run": "r", "epoch": new.epoch, "owner": "owner"}, error.detail)
    _same(["new"], _texts(await log.read(3)))
    await log.append(_completed("r"), lease=new)
    await _refused(RunEnded, log.append(_text("r"), lease=new))


@_rule(STORE_CHECKS)
async def leases_come_with_appends(place: Place) -> None:
    """An append can take the lease of a run along, also of one that it opens; else it is refused whole."""
    log = await place.begin()
    begun = await log.append(_message("r"), _started("r"), once="key", head=1, take=Take("r", "me", 10))
    lease = begun.lease
    assert lease is not None
    _same(("s", "r", "me"), (lease.session, lease.run, lease.owner))
    _same([lease], [run.lease() for run in await place.store.open_runs()])
    again = await log.append(_message("q"), once="key", take=Take("q", "you", 10))
    _same((True, None, begun.events), (again.repeated, again.lease, again.events))
    await _refused(LeaseHeld, log.append(_message("q"), _started("q"), take=Take("q", "me", 10)))
    await _refused(RunEnded, log.append(_message("q"), take=Take("unknown", "me", 10)))
    await _refused(LeaseHeld, log.append(_text("r"), take=Take("r", "you", 10)))

    _same(3, (await place.store.info("s")).head)
    await log.append(_text("r"), lease=lease)
    place.clock.advance(11)
    taken = (await log.append(_text("r"), take=Take("r", "you", 10))).lease
    assert taken is not None
    _same(True, taken.epoch > lease.epoch)
    await _refused(StaleLease, log.append(_text("r"), lease=lease))


@_rule(STORE_CHECKS)
async def runs_are_claimed(place: Place) -> None:
    """A claim takes as many runs as are wanted of those that nobody holds, one of each session."""
    for name in ("a", "b", "c"):
        await place.begin(name, f"{name}1", f"{name}2")
    held = await place.lease("a", "a1", owner="you", ttl=10)
    _same([], await place.store.claim(owner="me", ttl=10, limit=0))
    first = await place.store.claim(owner="me", ttl=30, limit=1)
    rest = await place.store.claim(owner="me", ttl=30, limit=5)

    _same(["b1", "c1"], sorted(lease.run for lease in first + rest))
    _same((1, 1), (len(first), len(rest)))
    _same([], await place.store.claim(owner="other", ttl=10, limit=5))
    for lease in first + rest:
        await place.store.append(lease.session, [_started(lease.run), _completed(lease.run)], lease=lease)
    place.clock.advance(11)
    late = await place.store.claim(owner="me", ttl=10, limit=5)
    _same(["a1", "b2", "c2"], sorted(lease.run for lease in late))
    _same(True, next(lease for lease in late if lease.run == "a1").epoch > held.epoch)


@_rule(STORE_CHECKS)
async def runs_are_claimed_once(place: Place) -> None:
    """Of many who claim at once each run goes to one."""
    for number in range(10):
        await place.begin(f"s{number}", "r")
    claims = await asyncio.gather(*[place.store.claim(owner=f"o{n}", ttl=10, limit=3) for n in range(10)])

    taken = [lease.session for leases in claims for lease in leases]
    _same(sorted({f"s{number}" for number in range(10)}), sorted(taken))


@_rule(STORE_CHECKS)
async def leases_are_given_back(place: Place) -> None:
    """Who gives a lease back writes no more under it; others can take the run at once, and hear of it."""
    log = await place.begin("s", "r")
    lease = await place.lease("s", "r", owner="me", ttl=1_000)
    bell = Bell()
    place.store.doorbell.hang_work(bell)
    await place.store.release(lease)
    _same(True, await bell.wait(PATIENCE))
    place.store.doorbell.take_work(bell)
    await _refused(StaleLease, log.append(_text("r"), lease=lease))
    (taken,) = await place.store.claim(owner="you", ttl=10, limit=1)

    _same(True, taken.epoch > lease.epoch)
    await _refused(StaleLease, log.append(_text("r"), lease=lease))
    await place.store.release(lease)  # too late: it is somebody else's
    _same([("you", taken.epoch)], [(run.owner, run.epoch) for run in await place.store.open_runs()])
    await log.append(_started("r"), _completed("r"), lease=taken)
    await place.store.release(taken)  # of a run that has ended


@_rule(STORE_CHECKS)
async def the_doorbell_rings_for_work(place: Place) -> None:
    """Whoever looks for runs is woken when one may be free, and not by what a run says."""
    log = await place.begin()
    bell = Bell()
    place.store.doorbell.hang_work(bell)
    await log.append(_message("r"))
    _same(True, await bell.wait(PATIENCE))
    bell.clear()
    lease = await place.lease("s", "r")
    await log.append(_message("q"))
    await log.append(_started("r"), _text("r"), lease=lease)
    _same(False, await bell.wait(0.0))
    await log.append(_completed("r"), lease=lease)
    _same(True, await bell.wait(PATIENCE))
    place.store.doorbell.take_work(bell)


@_rule(STORE_CHECKS)
async def leases_are_held_until_they_expire(place: Place) -> None:
    """Nobody else can take a run that is held, until its time is over; then anybody can."""
    await place.begin("s", "r")
    lease = await place.lease("s", "r", owner="a", ttl=10)
    _same(True, abs(lease.expires_at - (place.clock.now + 10)) < 0.01)
    error = await _refused(LeaseHeld, place.lease("s", "r", owner="b"))
    _same("a", error.detail["owner"])

    place.clock.advance(9.5)
    await _refused(LeaseHeld, place.lease("s", "r", owner="b"))
    place.clock.advance(1)
    taken = await place.lease("s", "r", owner="b")
    _same(True, taken.epoch > lease.epoch)
    await _refused(StaleLease, place.store.append("s", [_text("r")], lease=lease))


@_rule(STORE_CHECKS)
async def leases_are_renewed_by_owner(place: Place) -> None:
    """Renewing extends all leases of one owner and of nobody else, and keeps their epochs."""
    for name in ("a1", "a2", "b"):
        await place.begin(name, "r")
    leases = {name: await place.lease(name, "r", owner=name[0], ttl=10) for name in ("a1", "a2", "b")}
    place.clock.advance(8)
    await place.store.renew(owner="a", ttl=10)
    await place.store.renew(owner="nobody", ttl=10)
    place.clock.advance(8)

    await _refused(LeaseHeld, place.lease("a1", "r", owner="c"))
    await _refused(LeaseHeld, place.lease("a2", "r", owner="c"))
    await place.lease("b", "r", owner="c")
    for name in ("a1", "a2"):
        await place.store.append(name, [_text("r")], lease=leases[name])
        run = (await place.store.info(name)).open_runs[0]
        _same((name[0], leases[name].epoch), (run.owner, run.epoch))
        _same(True, abs(run.expires_at - (place.clock.now + 2)) < 0.01)


@_rule(STORE_CHECKS)
async def runs_take_turns(place: Place) -> None:
    """Only the first open run of a session can be leased; the next one when it has ended."""
    log = await place.begin("s", "r1", "r2")
    await _refused(LeaseHeld, place.lease("s", "r2"))
    lease = await place.lease("s", "r1")
    await _refused(LeaseHeld, place.lease("s", "r2"))
    await log.append(_started("r1"), _completed("r1"), lease=lease)

    _same("r2", (await place.lease("s", "r2")).run)
    await _refused(RunEnded, place.lease("s", "r1"))


@_rule(STORE_CHECKS)
async def open_runs_are_listed(place: Place) -> None:
    """All runs without a terminal event are listed, in a session in the order of their messages."""
    log = await place.begin("s", "z", "y")
    await log.append(_message("x"))
    await place.begin("t", "r")
    lease = await place.lease("s", "z", owner="me")
    await log.append(_started("z"), lease=lease)
    await log.append(_started("y"), _completed("y"))

    runs = await place.store.open_runs()
    _same([("t", "r", 2)], [(run.session, run.run, run.offset) for run in runs if run.session == "t"])
    mine = [run for run in runs if run.session == "s"]
    _same([("z", 2, True), ("x", 4, False)], [(run.run, run.offset, run.started) for run in mine])
    _same([("me", lease.epoch, lease.expires_at), (None, 0, 0.0)], [_held(run) for run in mine])
    _same(mine, (await place.store.info("s")).open_runs)


def _held(run: OpenRun) -> tuple[str | None, int, float]:
    return run.owner, run.epoch, run.expires_at


@_rule(STORE_CHECKS)
async def info_tells(place: Place) -> None:
    """The info of a session has its head, its first data, and the times of its first and last event but deltas."""
    log = await place.begin()
    place.clock.advance(5)
    last = (await log.append(_message("r"), _text("r"))).events[-1]
    info = await place.store.info("s")

    _same(("s", 3, SessionCreated("s")), (info.session, info.head, info.created))
    _same(((await log.read())[0].at, last.at), (info.created_at, info.updated_at))
    place.clock.advance(5)
    await log.append(_text("r"))
    _same((4, last.at), ((await place.store.info("s")).head, (await place.store.info("s")).updated_at))


@_rule(STORE_CHECKS)
async def deletion(place: Place) -> None:
    """A deleted session is one event at its last offset; all but reading it says that there is no such session."""
    log = await place.begin("s", "r1", "r2")
    lease = await place.lease("s", "r1")
    await log.append(_text("r1"), _text("r1"), lease=lease, once="key")
    tombstone = (await log.append(_DELETED)).events

    _same([(6, "session.deleted")], [(event.offset, event.type) for event in tombstone])
    for after in (0, 1, 5):
        _same(tombstone, await log.read(after))
        _same(tombstone, await log.read(after, deltas=False))
    _same([], await log.read(6))
    _same([], await place.store.open_runs())
    _same(SessionPage([]), await place.store.sessions())
    for doing in (
        log.append(_message("r3")),
        log.append(_text("r1"), lease=lease),
        log.append(_message("r3"), once="key"),
        log.append(_DELETED),
        place.store.info("s"),
    ):
        await _refused(SessionNotFound, doing)
    await _refused((RunEnded, SessionNotFound), place.lease("s", "r1"))
    await _refused(SessionExists, place.begin())
    _same(tombstone, await log.read())


@_rule(STORE_CHECKS)
async def deletion_outlives_reopening(place: Place) -> None:
    """However much was said in a session that is deleted, nothing but its tombstone is there after reopening."""
    tombstones = []
    for number in range(40):
        log = await place.begin(f"s{number}", "r")
        await log.append(*[_text("r", "x", start) for start in range(number + 1)])
        tombstones.append((await log.append(_DELETED)).events)
    await place.reopen()

    for number, tombstone in enumerate(tombstones):
        _same(tombstone, await place.store.read(f"s{number}", 0))
        _same(tombstone, await place.store.read(f"s{number}", number + 2))
        await _refused(SessionNotFound, place.store.info(f"s{number}"))
        await _refused(SessionExists, place.begin(f"s{number}"))
    _same(([], []), ((await place.store.sessions()).infos, await place.store.open_runs()))


@_rule(STORE_CHECKS)
async def reads_are_pages(place: Place) -> None:
    """A read gives at most ``limit`` events after an offset, and nothing from beyond the head."""
    log = await place.begin("s", "r")
    for start in range(0, 30, 3):
        await log.append(*[_text("r", str(number)) for number in range(start, start + 3)])

    _same([1, 2, 3], [event.offset for event in await log.read(0, limit=3)])
    _same([31, 32], [event.offset for event in await log.read(30, limit=10)])
    _same([8], [event.offset for event in await log.read(7, limit=1)])
    for after in (32, 33, 10**6, 2**70):
        _same([], await log.read(after))
    _same([], await log.read(0, limit=0))
    _same(list(range(1, 33)), [event.offset for event in await _all(log)])


@_rule(STORE_CHECKS)
async def reads_without_deltas(place: Place) -> None:
    """With ``deltas=False`` just these types are left out, and a page is filled with others."""
    log = await place.begin("s", "r")
    deltas: list[Delta] = [kind(0, 0, 0, "x") for kind in (ThinkingDelta, TextDelta, RefusalDelta)]
    deltas.append(CallDelta(0, 0, "c", 0, "x"))
    for number in range(20):
        drafts = [Draft(delta, "r") for delta in deltas]
        await log.append(*drafts, Draft(ToolBegun(str(number), "n", ""), "r"))

    kept = list(range(3 + len(deltas), 3 + 20 * (len(deltas) + 1), len(deltas) + 1))
    _same([1, 2, *kept], [event.offset for event in await _all(log, deltas=False)])
    _same(kept[:3], [event.offset for event in await log.read(2, limit=3, deltas=False)])
    _same(kept[:3], [event.offset for event in await log.read(kept[0] - 1, limit=3, deltas=False)])
    _same([], await log.read(kept[-1], deltas=False))
    _same(kept[-1], len(await _all(log)))


@_rule(STORE_CHECKS)
async def what_was_appended_is_visible(place: Place) -> None:
    """When an append returns, every way of reading shows it, also while others append."""
    log = await place.begin("s", "r")

    async def appender(name: str) -> None:
        for _ in range(20):
            offset = (await log.append(_text("r", name))).events[-1].offset
            _same(offset, (await log.read(offset - 1, limit=1))[0].offset)
            head = (await place.store.info("s")).head
            _same(True, head >= offset)
            # What info told of must not be missing from the log.
            _same([head], [event.offset for event in await log.read(head - 1, limit=1)])

    await asyncio.gather(*[appender(str(number)) for number in range(10)])


@_rule(STORE_CHECKS)
async def the_doorbell_rings_after_the_append(place: Place) -> None:
    """Each append rings for its session, and whoever then reads finds its events; other sessions hear nothing."""
    log = await place.begin("s", "r")
    await place.begin("t", "r")
    bell, other = Bell(), Bell()
    place.store.doorbell.hang("s", bell)
    place.store.doorbell.hang("t", other)
    for number in range(5):
        bell.clear()
        appending = asyncio.create_task(log.append(_text("r", str(number))))
        _same(True, await bell.wait(PATIENCE))
        _same([str(number)], _texts(await log.read(2 + number)))
        await appending
    _same(False, await other.wait(0.0))


@_rule(STORE_CHECKS)
async def the_doorbell_knows_outside(place: Place) -> None:
    """A bell for outside rings for appends without a lease only."""
    log = await place.begin("s", "r")
    lease = await place.lease("s", "r")
    every, outside = Bell(), Bell()
    place.store.doorbell.hang("s", every)
    place.store.doorbell.hang("s", outside, outside=True)
    await log.append(_text("r"), lease=lease)
    _same((True, False), (await every.wait(PATIENCE), await outside.wait(0.0)))
    await log.append(_cancel("r"))
    _same(True, await outside.wait(PATIENCE))


@_rule(STORE_CHECKS)
async def subscriptions_miss_nothing(place: Place) -> None:
    """Readers who follow a log while many append to it get every event once, in order, wherever they begin."""
    log = await place.begin("s", "r")
    count = 300

    async def follow(after: int) -> None:
        seen: list[int] = []
        with Subscription(place.store, "s", after, heartbeat=PATIENCE, limit=7) as subscription:
            while not seen or seen[-1] < count + 2:
                seen += [event.offset for event in await subscription.next()]
        _same(list(range(after + 1, count + 3)), seen)

    async def append(share: int) -> None:
        for _ in range(share):
            await log.append(_text("r"))

    await asyncio.gather(*[follow(after) for after in (0, 1, 5, 100)], *[append(count // 10) for _ in range(10)])


@_rule(STORE_CHECKS)
async def what_is_at_hand_is_what_is_read(place: Place) -> None:
    """``peek``, where a store has it, gives what ``read`` gives, and no fewer, or None."""
    peek = getattr(place.store, "peek", None)
    if peek is None:
        return
    log = await place.begin("s", "r")
    for number in range(20):
        await log.append(*[_text("r", f"{number} {piece}") for piece in range(1 + number % 3)])
        for after in (0, 1, 5, number, number + 2, 1_000):
            for limit in (1, 3, READ_LIMIT):
                for deltas in (True, False):
                    seen = peek("s", after, limit=limit, deltas=deltas)
                    if seen is not None:
                        _same(await place.store.read("s", after, limit=limit, deltas=deltas), seen)
    _same((), tuple(peek("never was", 0, limit=1, deltas=True) or ()))


@_rule(STORE_CHECKS)
async def cancelled_appends_are_whole(place: Place) -> None:
    """An append whose caller was cancelled is stored and visible, or it is not; never a part of it."""
    log = await place.begin("s", "r")
    for number in range(20):
        appending = asyncio.create_task(log.append(_text("r", f"{number} a"), _text("r", f"{number} b")))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        appending.cancel()
        await asyncio.gather(appending, return_exceptions=True)
    last = (await log.append(_text("r", "last"))).events[0]

    events = await _all(log)
    _same(list(range(1, last.offset + 1)), [event.offset for event in events])
    texts = _texts(events)[:-1]
    _same([text[:-1] + "b" for text in texts[::2]], texts[1::2])


@_rule(STORE_CHECKS)
async def sessions_are_listed(place: Place) -> None:
    """Sessions come by their last event, newest first, in pages that ``before`` joins without gap or overlap."""
    for number in range(7):
        await place.begin(f"s{number}")
        place.clock.advance(number % 2)  # also while the clock stands still
    await place.store.append("s2", [_message("r")])

    order = ["s2", "s6", "s5", "s4", "s3", "s1", "s0"]
    infos = (await place.store.sessions()).infos
    _same(order, [info.session for info in infos])
    _same([await place.store.info(name) for name in order], infos)
    seen: list[str] = []
    page = await place.store.sessions(limit=3)
    while page.infos:
        seen += [info.session for info in page.infos]
        page = await place.store.sessions(limit=3, after=page.next) if page.next else SessionPage([])
    _same(order, seen)
    await _refused(CursorInvalid, place.store.sessions(after="no such token"))


@_rule(STORE_CHECKS)
async def sessions_have_owners(place: Place) -> None:
    """Lists can be of one owner's sessions; those that are nobody's have the owner ""."""
    for name, owner in [("a", "ann"), ("b", None), ("c", "ann"), ("d", "bob")]:
        await place.store.append(name, [Draft(SessionCreated(name, owner=owner))])
    await place.reopen()

    for owner, names in [
        ("ann", ["c", "a"]),
        ("bob", ["d"]),
        ("", ["b"]),
        ("nobody", []),
        (None, ["d", "c", "b", "a"]),
    ]:
        _same(names, [info.session for info in (await place.store.sessions(owner=owner)).infos])
    page = await place.store.sessions(owner="ann", limit=1)
    _same(["c"], [info.session for info in page.infos])
    _same(["a"], [info.session for info in (await place.store.sessions(owner="ann", after=page.next)).infos])
    _same(("ann", ""), ((await place.store.info("a")).owner, (await place.store.info("b")).owner))


@_rule(STORE_CHECKS)
async def sessions_are_built_whole(place: Place) -> None:
    """What begins a session in pieces (``log.build``) is there whole, and as if it had come at once; or not at all."""

    async def pieces(error: Exception | None = None, *, there: int = 0) -> AsyncIterator[Sequence[Draft]]:
        yield [Draft(SessionCreated("copy", owner="me"))]
        for number in range(3):
            yield [Draft(MessageCreated(f"m{number}", "user", str(number)))]
            _same(there, len(await place.store.read("s", 0)))
        if error is not None:
            raise error

    try:
        await build(place.store, "s", pieces(KeyError("gone")))
    except KeyError:
        pass
    await _refused(SessionNotFound, place.store.info("s"))
    await build(place.store, "s", pieces())
    events = await place.store.read("s", 0)
    _same([1, 2, 3, 4], [event.offset for event in events])
    _same(["0", "1", "2"], [event.fact.text for event in events if isinstance(event.fact, MessageCreated)])
    _same(("me", 4), ((await place.store.info("s")).owner, (await place.store.info("s")).head))
    _same(["s"], [info.session for info in (await place.store.sessions(owner="me")).infos])
    await _refused(SessionExists, build(place.store, "s", pieces(there=4)))
    await Log(place.store, "s").append(_message("r"), head=4)


@_rule(STORE_CHECKS)
async def sessions_move_whole(place: Place) -> None:
    """What a ``Portable`` store gives of its sessions another one takes: events, times, keys, epochs and tombstones."""
    if not hasattr(place.store, "adopt"):
        return
    log = await place.begin("s", "first")
    await log.append(_started("first"), *[_text("first", f"{number} ", number) for number in range(1_200)])
    place.clock.advance(1.5)
    kept = await log.append(_text("first", "x" * 10_000), _completed("first"), _message("second"), once="key")
    for _ in range(2):
        lease = await place.lease("s", "second")
        await place.store.release(lease)
    await Log(place.store, "mine").append(Draft(SessionCreated("m", owner="me")))
    await (await place.begin("gone", "r")).append(_DELETED, once="deletion")
    target, back = await place.another("target"), await place.another("back")
    moved = await move(place.store, target)

    _same((3, 1, 0), (moved.source.sessions, moved.source.deleted, moved.found))
    _same(moved.source, moved.target)
    _same(moved.source, (await move(target, back)).target)
    _same((3, moved.source), ((again := await move(place.store, target)).found, again.target))
    there = Log(target, "s")
    shown = [[(event.offset, event.at, event.run, event.json) async for event in each.all()] for each in (log, there)]
    _same(*shown)
    _same(await place.store.info("s"), await target.info("s"))
    _same([("second", None, 2)], [(run.run, run.owner, run.epoch) for run in await target.open_runs()])
    _same(["me"], [info.owner for info in (await target.sessions(owner="me")).infos])
    pages = [[info.session for info in (await each.sessions()).infos] for each in (place.store, target)]
    _same(*pages)
    _same([("session.deleted", 3)], [(event.type, event.offset) for event in await target.read("gone", 0)])
    await _refused(SessionExists, target.append("gone", [Draft(SessionCreated("again"))]))
    _same((True, kept.events), ((same := await there.append(_started("second"), once="key")).repeated, same.events))
    await _refused(StaleLease, there.append(_started("second"), lease=lease))
    _same(3, (taken := await target.acquire("s", "second", owner="o", ttl=30.0)).epoch)
    last = kept.events[-1].offset
    _same([last + 1], [event.offset for event in (await there.append(_started("second"), lease=taken)).events])
    await _refused(Conflict, move(place.store, target))


@_rule(STORE_CHECKS)
async def sessions_are_adopted_whole(place: Place) -> None:
    """A session that another store gives is there once all of it has come, and only if it is one; or not at all."""
    if not hasattr(place.store, "adopt"):
        return
    source, store = await place.another("source"), place.store
    await Log(source, "s").append(Draft(SessionCreated("s")), _message("r"), _started("r"))
    await Log(source, "s").append(_text("r"), _text("r", start=1))
    events, record = await source.read("s", 0), await portable(source).record("s")
    assert record is not None

    async def pieces(*parts: Sequence[Event], error: Exception | None = None) -> AsyncIterator[Sequence[Event]]:
        for part in parts:
            yield part
            _same([], await store.read("s", 0))
        if error is not None:
            raise error

    async def adopted(*parts: Sequence[Event], error: Exception | None = None, **changed: Any) -> None:
        await portable(store).adopt(msgspec.structs.replace(record, **changed), pieces(*parts, error=error))

    await _refused(InvalidInput, adopted(events[:2], events[3:]))
    await _refused(InvalidInput, adopted(events[1:]))
    await _refused(InvalidInput, adopted(events[:4]))
    await _refused(InvalidInput, adopted(events, events))
    await _refused(InvalidInput, adopted(events, epochs={}))
    await _refused(InvalidInput, adopted(events, once={"key": (5, 6)}))
    await _refused(Conflict, adopted(events[:2], events[2:], error=Conflict("gone")))
    await _refused(SessionNotFound, store.info("s"))
    _same(None, await portable(store).record("s"))
    _same([], [each async for each in portable(store).records()])
    await adopted(events[:1], events[1:])
    _same(5, (await store.info("s")).head)
    _same((record, None), (await portable(store).record("s"), await portable(store).record("none")))
    await _refused(SessionExists, portable(store).adopt(record, _pages(events)))
    await place.reopen()
    _same([6], [event.offset for event in (await Log(place.store, "s").append(_completed("r"))).events])


async def _pages(*parts: Sequence[Event]) -> AsyncIterator[Sequence[Event]]:
    for part in parts:
        yield part


@_rule(STORE_CHECKS)
async def pieces_are_joined(place: Place) -> None:
    """A store that can make a log thin (``thin``) joins what runs that have ended said, in place: no offset, no word
    and nothing else changes, however it is read."""
    thin = getattr(place.store, "thin", None)
    if thin is None:
        return

    log = await place.begin("s", "r1")
    await log.append(_started("r1"), *[_text("r1", f"{number} ", 4 * (number - 100)) for number in range(100, 700)])
    await log.append(_completed("r1"))
    await log.append(_message("r2"), _started("r2"), *[_text("r2", "ab", 2 * number) for number in range(100)])
    before = await _all(log)
    await place.reopen()
    log, thin = Log(place.store, "s"), place.store.thin  # type: ignore[attr-defined]
    for again in (False, True):
        changed, after = 0, 0
        while after is not None:
            step = await thin("s", after, 150)
            changed, after = changed + step.changed, step.after
        _same(again, not changed)
    now = await _all(log)
    said = [[event for event in events if isinstance(event.fact, TextDelta)] for events in (before, now)]
    for run in ("r1", "r2"):
        one, two = ("".join([e.fact.text for e in some if e.run == run]) for some in said)  # type: ignore[union-attr]
        _same(one, two)
    empty = sum(not event.fact.text for event in said[1] if isinstance(event.fact, TextDelta))
    _same(True, empty > 500)
    _same([(e.offset, e.type, e.run) for e in before], [(e.offset, e.type, e.run) for e in now])
    _same([e for e in before if not e.fact.delta], [e for e in now if not e.fact.delta])
    _same([e for e in before if e.run == "r2"], [e for e in now if e.run == "r2"])
    place.store = await place.reopen()
    for after in range(0, len(now), 37):
        _same(now[after : after + 60], await place.store.read("s", after, limit=60))
    _same((0, None), tuple(await thin_of(place.store, "none")))


async def thin_of(store: Store, session: str) -> Thinning:
    """What making this log thin gives."""
    found: Thinning = await store.thin(session, 0, 100)  # type: ignore[attr-defined]
    return found


@_rule(STORE_CHECKS)
async def nodes_count_together(place: Place) -> None:
    """``tally`` gives what all other nodes count, added up, as long as what they told is not too old."""
    tally = getattr(place.store, "tally", None)
    if tally is None:
        return
    _same({}, await tally("one", {"a": 1, "b": 2, "odd \U0001f9d1 name": 3}, 10.0))
    _same({"a": 1, "b": 2, "odd \U0001f9d1 name": 3}, await tally("two", {"a": 10}, 60.0))
    _same({"a": 11, "b": 2, "odd \U0001f9d1 name": 3}, await tally("three", {}, 60.0))
    await tally("two", {"a": 20}, 60.0)
    _same({"a": 20}, await tally("one", {"a": 1}, 10.0))
    place.clock.advance(11.0)
    _same({"a": 20}, await tally("three", {}, 60.0))
    await tally("two", {}, 60.0)
    _same({}, await tally("three", {}, 60.0))


@_rule(STORE_CHECKS)
async def large_appends(place: Place) -> None:
    """An append of many drafts, and one of a large draft, are stored whole and read in pages."""
    log = await place.begin("s", "r")
    await log.append(*[_text("r", "x" * (number % 50), number) for number in range(3_000)])
    large = "0123456789abcdef" * 200_000
    await log.append(*[_text("r", large) for _ in range(4)])

    events = await _all(log)
    _same(list(range(1, 3_007)), [event.offset for event in events])
    texts = [event.fact for event in events if isinstance(event.fact, TextDelta)]
    _same(list(range(3_000)), [fact.start for fact in texts[:-4]])
    _same([large] * 4, [fact.text for fact in texts[-4:]])


@_rule(STORE_CHECKS)
async def any_text_is_kept(place: Place) -> None:
    """Every JSON value comes back as it was, and ids may be any text without control characters."""
    odd = (
        'quote " backslash \\ slash / tab \t NUL \0 line \u2028 e\u0301 \U0001f9d1\u200d\U0001f680 \u05d0\u202e \ufffe'
    )
    data: JsonObject = {
        odd: odd,
        "numbers": [0, -1, 2**53, 2**63 - 1, -(2**63), 0.1, 1e300, 5e-324, -0.5],
        "others": [None, True, False, "", [], {}, [[["deep"]]]],
    }
    session, run, key = "S/ü:\u2028'\"", "r\U0001f680;--", "ключ ' \" ?"
    log = await place.begin(session, run)
    done = ToolCompleted("c", odd, odd, True, data)
    stored = await log.append(Draft(done, run), Draft(OtherFact("x", data), run), once=key)
    place.store = await place.reopen()

    log = Log(place.store, session)
    _same([done, OtherFact("x", data)], [event.fact for event in await log.read(2)])
    _same(data, (await log.read(3))[0].data)
    _same(stored.events, (await log.append(_message("q"), once=key)).events)
    _same((session, [run]), ((info := await place.store.info(session)).session, [r.run for r in info.open_runs]))
    _same(run, (await place.lease(session, run)).run)


@_rule(STORE_CHECKS)
async def everything_is_there_after_reopening(place: Place) -> None:
    """Closing and opening again changes no event, no info, no key and no open run, and offsets go on."""
    log = await place.begin("s", "r1", "r2", "r3")
    await log.append(_started("r1"), *[_text("r1", str(number)) for number in range(700)], once="key")
    await log.append(_completed("r1"))
    await place.begin("gone", "r")
    await place.store.append("gone", [_DELETED])
    events, info = await _all(log), await place.store.info("s")
    whole, gone = await _all(log, deltas=False), await place.store.read("gone", 0)
    await place.reopen()

    log = Log(place.store, "s")
    _same(events, await _all(log))
    _same(whole, await _all(log, deltas=False))
    _same(info, await place.store.info("s"))
    _same(SessionPage([info]), await place.store.sessions())
    _same(["r2", "r3"], [run.run for run in await place.store.open_runs()])
    _same(events[4:705], (await log.append(_message("q"), once="key")).events)
    await _refused(RunEnded, log.append(_text("r1")))
    _same(gone, await place.store.read("gone", 0))
    await _refused(SessionExists, place.begin("gone"))
    _same([info.head + 1], [event.offset for event in (await log.append(_message("q"))).events])


@_rule(STORE_CHECKS)
async def closing_is_idempotent(place: Place) -> None:
    """A store can be closed again, and whoever does it at the same time waits for the same end."""
    await place.begin()
    await asyncio.gather(place.store.close(), place.store.close())
    await place.store.close()
    await place.reopen()
    _same(1, (await place.store.info("s")).head)


@_rule(EMBEDDED_STORE_CHECKS)
async def opening_forgets_owners(place: Place) -> None:
    """After an opening nobody holds a run, but epochs go on, so that a writer of the earlier life is refused."""
    await place.begin("s", "r")
    old = await place.lease("s", "r", owner="earlier", ttl=1_000)
    await place.reopen()

    run = (await place.store.open_runs())[0]
    _same((None, old.epoch), (run.owner, run.epoch))
    new = await place.lease("s", "r", owner="later")
    _same(True, new.epoch > old.epoch)
    await _refused(StaleLease, place.store.append("s", [_text("r")], lease=old))
    await place.store.append("s", [_text("r")], lease=new)


# Dialects -------------------------------------------------------------------------------------------------------------


def check_dialect(make: Callable[[], Callable[[Event], bytes]], events: Sequence[Event]) -> None:
    """Check that an encoder is a pure fold of events into frames that every client survives.

    Args:
        make: gives an encoder that has seen nothing yet: the bytes of one event's frames, empty if it has none.
        events: of one session, in order, with as many kinds as there are.

    Raises:
        AssertionError: which event broke which rule.
    """
    first, second = make(), make()
    decoder = Decoder()
    ids: set[str] = set()
    for event in events:
        frames = first(event)
        _rule_of_frames(event, "the same bytes each time", frames == second(msgspec.structs.replace(event, wire={})))
        _rule_of_frames(event, "LF only", b"\r" not in frames)
        _rule_of_frames(event, "a blank line after each frame", not frames or frames.endswith(b"\n\n"))
        messages = decoder.feed(frames)
        blocks = frames.split(b"\n\n")[:-1]
        _rule_of_frames(event, "each frame is one event", len(messages) == len(blocks))
        for block in blocks:
            fields = [line.partition(b":")[0] for line in block.split(b"\n")]
            _rule_of_frames(event, "one line of data", fields.count(b"data") == 1)
            _rule_of_frames(event, "id is the last field", b"id" not in fields[:-1])
        new = [block.rpartition(b"\nid: ")[2].decode() for block in blocks if b"\nid: " in block]
        _rule_of_frames(event, "no id is used twice", len({*ids, *new}) == len(ids) + len(new))
        ids.update(new)


def _rule_of_frames(event: Event, rule: str, kept: bool) -> None:
    if not kept:
        raise AssertionError(f"Event {event.offset} ({event.type}) breaks a rule of frames: {rule}.")

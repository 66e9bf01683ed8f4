"""The rules of runs: their states, who may drive them, and what nodes count together."""

from __future__ import annotations

import asyncio
import itertools

from ..doorbell import Bell
from ..errors import IllegalTransition, LeaseHeld, RunEnded, StaleLease
from ..event import Draft, OtherFact, RunCancelled, RunCompleted, RunFailed
from ..log import Log, Take
from ..machine import OpenRun, RunState
from .place import SAID, Place, cancel, completed, message, started, text
from .rules import PATIENCE, StoreCheck, refused, rule, same, texts_of

RULES: list[StoreCheck] = []


@rule(RULES)
async def runs_end_once(place: Place) -> None:
    """Of many terminal events for a run one is stored, and nothing of the run after it."""
    log = await place.begin("s", "r")
    await log.append(started("r"), cancel("r"))
    ends = itertools.cycle([RunCompleted("stop", SAID), RunFailed("c", "m", SAID), RunCancelled(SAID)])
    done = await asyncio.gather(*[log.append(Draft(end, "r")) for end in itertools.islice(ends, 12)],
                                return_exceptions=True)  # fmt: skip

    same(11, sum(isinstance(result, RunEnded) for result in done))
    for draft in (text("r"), started("r"), cancel("r"), completed("r")):
        await refused(RunEnded, log.append(draft))
    same(1, sum(event.fact.terminal for event in await log.read()))
    same([], (await place.store.info("s")).open_runs)


@rule(RULES)
async def runs_within_one_append(place: Place) -> None:
    """A run may be opened and ended by one append; in it, too, nothing may follow the end."""
    log = await place.begin()
    await log.append(message("r"), started("r"), text("r"), completed("r"))
    await refused(RunEnded, log.append(message("q"), started("q"), completed("q"), text("q")))
    await refused(RunEnded, log.append(text("q"), message("q")))
    await refused(RunEnded, log.append(message("q"), message("q")))

    same([], await place.store.open_runs())
    same(5, (await place.store.info("s")).head)


@rule(RULES)
async def runs_move_by_the_table(place: Place) -> None:
    """What a run's state forbids is refused, and its state is told, also after reopening."""
    log = await place.begin("s", "r")
    for early in (completed("r"), Draft(RunCancelled(SAID), "r")):
        await refused(IllegalTransition, log.append(early))
    states = [RunState.QUEUED]
    for draft in (started("r"), cancel("r")):
        await log.append(draft)
        await place.reopen()
        log = Log(place.store, "s")
        states += [run.state for run in await place.store.open_runs()]
    same([RunState.QUEUED, RunState.RUNNING, RunState.CANCELLING], states)
    await log.append(Draft(RunCancelled(SAID), "r"))


@rule(RULES)
async def facts_of_the_future(place: Place) -> None:
    """Types that nobody knows, and fields that nobody knows, are kept as they came, and move no state."""
    log = await place.begin("s", "r")
    new = OtherFact("weather.changed", {"sky": ["blue", None, {"a": 0.5}]})
    stored = await log.append(Draft(new), Draft(new, "r"))
    await refused(RunEnded, log.append(Draft(new, "unknown")))
    same([new, new], [event.fact for event in stored.events])
    same(["r"], [run.run for run in await place.store.open_runs()])
    await place.reopen()
    same([(new, None), (new, "r")], [(event.fact, event.run) for event in await Log(place.store, "s").read(2)])
    same([new.data] * 2, [event.data for event in await Log(place.store, "s").read(2, deltas=False)])


@rule(RULES)
async def leases_fence(place: Place) -> None:
    """Each acquisition has a higher epoch, and appends with an older one are refused whole."""
    log = await place.begin("s", "r")
    old = await place.lease("s", "r")
    await log.append(started("r"), lease=old)
    new = await place.lease("s", "r")
    await log.append(text("r", "new"), lease=new)
    error = await refused(StaleLease, log.append(text("r", "old"), completed("r"), lease=old))

    same(("s", "r", "owner", True), (new.session, new.run, new.owner, new.epoch > old.epoch))
    same({"run": "r", "epoch": new.epoch, "owner": "owner"}, error.detail)
    same(["new"], texts_of(await log.read(3)))
    await log.append(completed("r"), lease=new)
    await refused(RunEnded, log.append(text("r"), lease=new))


@rule(RULES)
async def leases_come_with_appends(place: Place) -> None:
    """An append can take the lease of a run along, also of one that it opens; else it is refused whole."""
    log = await place.begin()
    begun = await log.append(message("r"), started("r"), once="key", head=1, take=Take("r", "me", 10))
    lease = begun.lease
    assert lease is not None
    same(("s", "r", "me"), (lease.session, lease.run, lease.owner))
    same([lease], [run.lease() for run in await place.store.open_runs()])
    again = await log.append(message("q"), once="key", take=Take("q", "you", 10))
    same((True, None, begun.events), (again.repeated, again.lease, again.events))
    await refused(LeaseHeld, log.append(message("q"), started("q"), take=Take("q", "me", 10)))
    await refused(RunEnded, log.append(message("q"), take=Take("unknown", "me", 10)))
    await refused(LeaseHeld, log.append(text("r"), take=Take("r", "you", 10)))

    same(3, (await place.store.info("s")).head)
    await log.append(text("r"), lease=lease)
    place.clock.advance(11)
    taken = (await log.append(text("r"), take=Take("r", "you", 10))).lease
    assert taken is not None
    same(True, taken.epoch > lease.epoch)
    await refused(StaleLease, log.append(text("r"), lease=lease))


@rule(RULES)
async def runs_are_claimed(place: Place) -> None:
    """A claim takes as many runs as are wanted of those that nobody holds, one of each session."""
    for name in ("a", "b", "c"):
        await place.begin(name, f"{name}1", f"{name}2")
    held = await place.lease("a", "a1", owner="you", ttl=10)
    same([], await place.store.claim(owner="me", ttl=10, limit=0))
    first = await place.store.claim(owner="me", ttl=30, limit=1)
    rest = await place.store.claim(owner="me", ttl=30, limit=5)

    same(["b1", "c1"], sorted(lease.run for lease in first + rest))
    same((1, 1), (len(first), len(rest)))
    same([], await place.store.claim(owner="other", ttl=10, limit=5))
    for lease in first + rest:
        await place.store.append(lease.session, [started(lease.run), completed(lease.run)], lease=lease)
    place.clock.advance(11)
    late = await place.store.claim(owner="me", ttl=10, limit=5)
    same(["a1", "b2", "c2"], sorted(lease.run for lease in late))
    same(True, next(lease for lease in late if lease.run == "a1").epoch > held.epoch)


@rule(RULES)
async def runs_are_claimed_once(place: Place) -> None:
    """Of many who claim at once each run goes to one."""
    for number in range(10):
        await place.begin(f"s{number}", "r")
    claims = await asyncio.gather(*[place.store.claim(owner=f"o{n}", ttl=10, limit=3) for n in range(10)])

    taken = [lease.session for leases in claims for lease in leases]
    same(sorted({f"s{number}" for number in range(10)}), sorted(taken))


@rule(RULES)
async def leases_are_given_back(place: Place) -> None:
    """Who gives a lease back writes no more under it; others can take the run at once, and hear of it."""
    log = await place.begin("s", "r")
    lease = await place.lease("s", "r", owner="me", ttl=1_000)
    bell = Bell()
    place.store.doorbell.hang_work(bell)
    await place.store.release(lease)
    same(True, await bell.wait(PATIENCE))
    place.store.doorbell.take_work(bell)
    await refused(StaleLease, log.append(text("r"), lease=lease))
    (taken,) = await place.store.claim(owner="you", ttl=10, limit=1)

    same(True, taken.epoch > lease.epoch)
    await refused(StaleLease, log.append(text("r"), lease=lease))
    await place.store.release(lease)  # too late: it is somebody else's
    same([("you", taken.epoch)], [(run.owner, run.epoch) for run in await place.store.open_runs()])
    await log.append(started("r"), completed("r"), lease=taken)
    await place.store.release(taken)  # of a run that has ended


@rule(RULES)
async def the_doorbell_rings_for_work(place: Place) -> None:
    """Whoever looks for runs is woken when one may be free, and not by what a run says."""
    log = await place.begin()
    bell = Bell()
    place.store.doorbell.hang_work(bell)
    await log.append(message("r"))
    same(True, await bell.wait(PATIENCE))
    bell.clear()
    lease = await place.lease("s", "r")
    await log.append(message("q"))
    await log.append(started("r"), text("r"), lease=lease)
    same(False, await bell.wait(0.0))
    await log.append(completed("r"), lease=lease)
    same(True, await bell.wait(PATIENCE))
    place.store.doorbell.take_work(bell)


@rule(RULES)
async def leases_are_held_until_they_expire(place: Place) -> None:
    """Nobody else can take a run that is held, until its time is over; then anybody can."""
    await place.begin("s", "r")
    lease = await place.lease("s", "r", owner="a", ttl=10)
    same(True, abs(lease.expires_at - (place.clock.now + 10)) < 0.01)
    error = await refused(LeaseHeld, place.lease("s", "r", owner="b"))
    same("a", error.detail["owner"])

    place.clock.advance(9.5)
    await refused(LeaseHeld, place.lease("s", "r", owner="b"))
    place.clock.advance(1)
    taken = await place.lease("s", "r", owner="b")
    same(True, taken.epoch > lease.epoch)
    await refused(StaleLease, place.store.append("s", [text("r")], lease=lease))


@rule(RULES)
async def leases_are_renewed_by_owner(place: Place) -> None:
    """Renewing extends all leases of one owner and of nobody else, and keeps their epochs."""
    for name in ("a1", "a2", "b"):
        await place.begin(name, "r")
    leases = {name: await place.lease(name, "r", owner=name[0], ttl=10) for name in ("a1", "a2", "b")}
    place.clock.advance(8)
    await place.store.renew(owner="a", ttl=10)
    await place.store.renew(owner="nobody", ttl=10)
    place.clock.advance(8)

    await refused(LeaseHeld, place.lease("a1", "r", owner="c"))
    await refused(LeaseHeld, place.lease("a2", "r", owner="c"))
    await place.lease("b", "r", owner="c")
    for name in ("a1", "a2"):
        await place.store.append(name, [text("r")], lease=leases[name])
        run = (await place.store.info(name)).open_runs[0]
        same((name[0], leases[name].epoch), (run.owner, run.epoch))
        same(True, abs(run.expires_at - (place.clock.now + 2)) < 0.01)


@rule(RULES)
async def runs_take_turns(place: Place) -> None:
    """Only the first open run of a session can be leased; the next one when it has ended."""
    log = await place.begin("s", "r1", "r2")
    await refused(LeaseHeld, place.lease("s", "r2"))
    lease = await place.lease("s", "r1")
    await refused(LeaseHeld, place.lease("s", "r2"))
    await log.append(started("r1"), completed("r1"), lease=lease)

    same("r2", (await place.lease("s", "r2")).run)
    await refused(RunEnded, place.lease("s", "r1"))


@rule(RULES)
async def open_runs_are_listed(place: Place) -> None:
    """All runs without a terminal event are listed, in a session in the order of their messages."""
    log = await place.begin("s", "z", "y")
    await log.append(message("x"))
    await place.begin("t", "r")
    lease = await place.lease("s", "z", owner="me")
    await log.append(started("z"), lease=lease)
    await log.append(started("y"), completed("y"))

    runs = await place.store.open_runs()
    same([("t", "r", 2)], [(run.session, run.run, run.offset) for run in runs if run.session == "t"])
    mine = [run for run in runs if run.session == "s"]
    same([("z", 2, True), ("x", 4, False)], [(run.run, run.offset, run.started) for run in mine])
    same([("me", lease.epoch, lease.expires_at), (None, 0, 0.0)], [_held(run) for run in mine])
    same(mine, (await place.store.info("s")).open_runs)


def _held(run: OpenRun) -> tuple[str | None, int, float]:
    return run.owner, run.epoch, run.expires_at


@rule(RULES)
async def nodes_count_together(place: Place) -> None:
    """``tally`` gives what all other nodes count, added up, as long as what they told is not too old."""
    tally = getattr(place.store, "tally", None)
    if tally is None:
        return
    same({}, await tally("one", {"a": 1, "b": 2, "odd \U0001f9d1 name": 3}, 10.0))
    same({"a": 1, "b": 2, "odd \U0001f9d1 name": 3}, await tally("two", {"a": 10}, 60.0))
    same({"a": 11, "b": 2, "odd \U0001f9d1 name": 3}, await tally("three", {}, 60.0))
    await tally("two", {"a": 20}, 60.0)
    same({"a": 20}, await tally("one", {"a": 1}, 10.0))
    place.clock.advance(11.0)
    same({"a": 20}, await tally("three", {}, 60.0))
    await tally("two", {}, 60.0)
    same({}, await tally("three", {}, 60.0))

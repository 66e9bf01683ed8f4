"""The tail cache: what it answers must be what the whole log would answer, or nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facts import stored
from legato.event import DELTAS, Event
from legato.log import READ_LIMIT
from legato.store.tail import EVENT_BYTES, BlockCache, TailCache


def events(*offsets: int, type: str = "text.delta") -> list[Event]:
    return [stored(type, {}, offset=offset, at=0.0) for offset in offsets]


def put(tail: TailCache, session: str, new: list[Event], size: int = 100) -> None:
    tail.put(session, sized(new, size))


def sized(events: list[Event], size: int) -> list[Event]:
    """The same with so many bytes of JSON each."""
    return [msgspec.structs.replace(event, json=b"{}".ljust(size) if size else b"") for event in events]


def offsets(found: Iterable[Event] | None) -> list[int] | None:
    return None if found is None else [event.offset for event in found]


def test_reads_what_was_put() -> None:
    """A read gives the events after an offset, at most ``limit``; none when it is at the head or beyond."""
    tail = TailCache()
    put(tail, "s", events(1, 2, 3))
    put(tail, "s", events(4))

    assert [1, 2, 3, 4] == offsets(tail.read("s", 0, 10))
    assert [3] == offsets(tail.read("s", 2, 1))
    assert [] == tail.read("s", 4, 10)
    assert [] == tail.read("s", 2**70, 10)


def test_readers_share_the_events() -> None:
    """All readers get the same objects, so that bytes are encoded once."""
    tail = TailCache()
    new = events(1)
    tail.put("s", new)

    assert new[0] is (tail.read("s", 0, 10) or [None])[0]


def test_what_is_held_already_stays() -> None:
    """Others may have stored more, and somebody read it, before it is known that something was stored here: what comes
    late takes nothing back."""
    tail = TailCache()
    put(tail, "s", events(1, 2, 3, 4))
    for late in (events(2, 3), events(4), events(3, 4, 5)):
        put(tail, "s", late)
    assert [1, 2, 3, 4, 5] == offsets(tail.read("s", 0, 10))
    assert 5 == tail.head("s")

    put(tail, "s", events(6, 9, type="session.deleted"))
    assert [9] == offsets(tail.read("s", 0, 10))


def test_unknown_session() -> None:
    """Of a session that was never put nothing is known, not even that it is empty."""
    assert TailCache().read("s", 0, 10) is None


def test_from_below_the_floor() -> None:
    """A tail that began in the middle does not answer for what was before."""
    tail = TailCache()
    put(tail, "s", events(5, 6))

    assert [5, 6] == offsets(tail.read("s", 4, 10))
    assert tail.read("s", 3, 10) is None
    assert tail.read("s", 3, 10, deltas=False) is None


def test_a_gap_starts_anew() -> None:
    """Events that do not follow on what is held replace it."""
    tail = TailCache()
    put(tail, "s", events(1, 2))
    put(tail, "s", events(4))

    assert tail.read("s", 2, 10) is None
    assert [4] == offsets(tail.read("s", 3, 10))


def test_deletion_covers_everything() -> None:
    """After the deletion the tombstone is the answer to all reads from before it."""
    tail = TailCache()
    put(tail, "s", events(5, 6))
    put(tail, "s", events(7, type="session.deleted"))

    assert [7] == offsets(tail.read("s", 0, 10))
    assert [7] == offsets(tail.read("s", 6, 10, deltas=False))
    assert [] == tail.read("s", 7, 10)


def test_without_deltas() -> None:
    """With ``deltas=False`` deltas are left out, and a page is filled with others."""
    tail = TailCache()
    for offset in range(1, 9):
        put(tail, "s", events(offset, type="text.delta" if offset % 2 else "tool.started"))

    assert [4, 6] == offsets(tail.read("s", 2, 2, deltas=False))
    assert [8] == offsets(tail.read("s", 7, 2, deltas=False))


def test_deltas_do_not_push_out_the_rest() -> None:
    """Of a run with very many deltas the other events stay, for those who read without deltas."""
    tail = TailCache(events=10)
    put(tail, "s", events(1, type="run.started"))
    for offset in range(2, 100):
        put(tail, "s", events(offset))

    assert tail.read("s", 1, 10) is None
    assert [1] == offsets(tail.read("s", 0, 10, deltas=False))
    assert [] == tail.read("s", 1, 10, deltas=False)


def test_bound_of_events() -> None:
    """Of one session only the newest are kept."""
    tail = TailCache(events=10)
    put(tail, "s", events(*range(1, 101)))

    assert tail.read("s", 89, 10) is None
    assert list(range(91, 101)) == offsets(tail.read("s", 90, 10))


def test_bound_of_sessions() -> None:
    """A session that was used since room was made the last time stays; one that was not goes."""
    tail = TailCache(sessions=2)
    for session in "xab":
        put(tail, session, events(1))
    tail.read("a", 0, 1)
    put(tail, "c", events(1))

    assert [True, False, True] == [tail.read(session, 0, 1) is not None for session in "abc"]


def test_bound_of_bytes() -> None:
    """What is held never passes the bound, and a session of large events does not push out all others."""
    tail = TailCache(bytes=100 * EVENT_BYTES)
    put(tail, "small", events(1), size=10)
    for offset in range(1, 50):
        put(tail, "large", events(offset), size=10 * EVENT_BYTES)
        assert tail.bytes <= 100 * EVENT_BYTES

    assert [1] == offsets(tail.read("small", 0, 1))
    assert [49] == offsets(tail.read("large", 48, 10))


def test_many_sessions_share_the_bytes() -> None:
    """Sessions that are used in turn each keep their newest events, and none is let go."""
    tail = TailCache(bytes=50 * 20 * (EVENT_BYTES + 100))
    for offset in range(1, 200):
        for session in range(50):
            put(tail, str(session), events(offset))

    assert 50 == len(tail)
    assert all(tail.read(str(session), 191, 10) is not None for session in range(50))


def test_what_has_just_come_is_there() -> None:
    """Of sessions that are used in any order, none loses what its readers have not looked at yet."""
    tail, order = TailCache(bytes=50 * 20 * (EVENT_BYTES + 100)), random.Random(1)
    for offset in range(1, 200, 2):
        for new in (offset, offset + 1):
            for session in order.sample(range(50), 50):
                put(tail, str(session), events(new))
        found = [tail.read(str(session), offset - 1, 10) for session in range(50)]
        assert [[offset, offset + 1]] * 50 == [offsets(each) for each in found]


def test_who_is_idle_makes_room() -> None:
    """A session that nobody uses loses its events before those that are used."""
    tail = TailCache(bytes=100 * EVENT_BYTES)
    put(tail, "idle", events(*range(1, 41)), size=0)
    for offset in range(1, 60):
        put(tail, "used", events(offset), size=0)
        put(tail, "other", events(offset), size=0)

    assert tail.read("idle", 20, 1) is None
    assert tail.read("used", 40, 1) is not None
    assert tail.read("other", 40, 1) is not None


def test_one_event_beyond_the_bound() -> None:
    """An event that is too large to be held is not, and the tail still knows where the head is."""
    tail = TailCache(bytes=1_000)
    put(tail, "s", events(1), size=5_000)

    assert tail.read("s", 0, 10) is None
    assert [] == tail.read("s", 1, 10)
    put(tail, "s", events(2), size=0)
    assert tail.bytes <= 1_000


def test_forget() -> None:
    """A session that was forgotten takes no room."""
    tail = TailCache()
    put(tail, "s", events(1, type="run.started"))
    tail.forget("s")
    tail.forget("s")

    assert (0, 0) == (len(tail), tail.bytes)
    assert tail.read("s", 0, 1) is None


def test_seed() -> None:
    """What the disk answered serves the next readers, and what is appended goes on from there."""
    tail = TailCache()
    tail.seed("s", 3, events(4, 5), tail.evictions)
    put(tail, "s", events(6))

    assert [4, 5, 6] == offsets(tail.read("s", 3, 10))
    assert tail.read("s", 2, 10) is None


def test_seed_of_nothing() -> None:
    """A session whose head is known, though none of its events, has nothing after it."""
    tail = TailCache()
    tail.seed("s", 7, [], tail.evictions)
    assert [] == tail.read("s", 7, 10)
    put(tail, "s", events(8))

    assert [8] == offsets(tail.read("s", 7, 10))


def test_seed_too_late() -> None:
    """An answer of the disk is not taken when newer events may have come and gone since it was asked."""
    tail = TailCache(sessions=1)
    before = tail.evictions
    put(tail, "s", events(6))
    put(tail, "other", events(1))  # pushes s out
    tail.forget("other")
    tail.seed("s", 3, events(4, 5), before)

    assert tail.read("s", 5, 10) is None


def test_seed_changes_nothing_that_is_held() -> None:
    """What is held already is at least as new as what the disk answered."""
    tail = TailCache()
    put(tail, "s", events(5, 6))
    tail.seed("s", 3, events(4, 5), tail.evictions)

    assert [6] == offsets(tail.read("s", 5, 10))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 6),
        st.sampled_from(["text.delta", "tool.started"]),
        st.integers(0, 3_000),
        st.booleans(),
    ),
    max_size=60,
)


@pytest.mark.parametrize("deltas", [True, False])
@given(steps=STEPS, bound=st.integers(1, 8), reads=st.integers(0, 60), limit=st.integers(1, 9))
def test_never_a_gap(deltas: bool, steps: list, bound: int, reads: int, limit: int) -> None:
    """Whatever is appended, evicted and seeded: an answer is what the whole log would answer."""
    tail = TailCache(events=bound, bytes=20_000, sessions=2)
    logs: dict[str, list[Event]] = {"a": [], "b": [], "c": []}
    for session, count, kind, size, seeded in steps:
        log = logs[session]
        after = min(reads, len(log))
        if seeded:
            tail.seed(session, after, log[after:], tail.evictions)
        new = sized(events(*range(len(log) + 1, len(log) + 1 + count), type=kind), size)
        log += new
        tail.put(session, new)
        for name, whole in logs.items():
            for start in {0, after, len(whole)}:
                found = tail.read(name, start, limit, deltas=deltas)
                wanted = [event for event in whole[start:] if deltas or event.type not in DELTAS][:limit]
                assert found is None or wanted == found
        assert tail.bytes <= 20_000
        assert tail.bytes == sum(held.bytes for held in tail._tails.values())


# Blocks


def block(blocks: BlockCache, session: str, number: int) -> None:
    start = number * READ_LIMIT
    new = events(*range(start + 1, start + 1 + READ_LIMIT))
    blocks.put(session, start, sized(new, 0), blocks.forgotten)


def held(blocks: BlockCache, *keys: tuple[str, int]) -> list[bool]:
    return [bool(blocks.read(session, number * READ_LIMIT)) for session, number in keys]


def test_what_follows_in_a_block() -> None:
    """From any place in it, to its end and no further; nothing of another session, or another block."""
    blocks = BlockCache(bytes=2 * READ_LIMIT * EVENT_BYTES)
    block(blocks, "a", 1)
    for after in (READ_LIMIT, READ_LIMIT + 7, 2 * READ_LIMIT - 1):
        assert list(range(after + 1, 2 * READ_LIMIT + 1)) == offsets(blocks.read("a", after))

    assert [[], [], []] == [blocks.read("a", READ_LIMIT - 1), blocks.read("a", 2 * READ_LIMIT), blocks.read("b", 500)]


def test_blocks_are_bounded() -> None:
    """Those that were not used for longest go first; where there is no room for one, none is taken."""
    blocks = BlockCache(bytes=2 * READ_LIMIT * EVENT_BYTES)
    block(blocks, "a", 0)
    block(blocks, "a", 1)
    blocks.read("a", 3)
    block(blocks, "b", 0)
    assert [True, False, True] == held(blocks, ("a", 0), ("a", 1), ("b", 0))
    small = BlockCache(bytes=READ_LIMIT * EVENT_BYTES - 1)
    block(small, "a", 0)
    assert [False] == held(small, ("a", 0))


def test_blocks_of_a_deleted_session() -> None:
    """Its blocks are let go, and one that was read before and comes after is not taken; others' stay."""
    blocks = BlockCache(bytes=2 * READ_LIMIT * EVENT_BYTES)
    block(blocks, "a", 0)
    block(blocks, "b", 0)
    before = blocks.forgotten
    blocks.forget("a")
    blocks.put("a", READ_LIMIT, events(READ_LIMIT + 1), before)

    assert [False, True, False] == held(blocks, ("a", 0), ("b", 0), ("a", 1))
    block(blocks, "b", 1)  # the room of those that went is free again
    assert [True, True] == held(blocks, ("b", 0), ("b", 1))

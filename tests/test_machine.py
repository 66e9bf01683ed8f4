"""The machine that moves a session: the life of a run, what may follow what, and leases."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facts import draft
from legato.errors import (
    HeadMoved,
    IllegalTransition,
    LeaseHeld,
    LegatoError,
    RunEnded,
    SessionExists,
    SessionNotFound,
    StaleLease,
)
from legato.event import EVENTS, Draft, OtherFact
from legato.machine import (
    OPEN,
    TRANSITIONS,
    Lease,
    OpenRun,
    RunState,
    SessionState,
    advance,
    check_head,
    free,
    leased,
    moved,
    released,
    renewed,
)

# The life of a run ----------------------------------------------------------------------------------------------------

DONE = [RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED]


def life(*types: str) -> RunState | None:
    state: RunState | None = None
    for type_ in types:
        state = advance(state, type_)
    return state


@pytest.mark.parametrize(
    ("types", "state"),
    [
        (["message.created"], RunState.QUEUED),
        (["message.created", "run.started"], RunState.RUNNING),
        (["message.created", "run.started", "text.delta", "tool.started"], RunState.RUNNING),
        (["message.created", "run.started", "run.started", "run.completed"], RunState.COMPLETED),
        (["message.created", "run.started", "run.failed"], RunState.FAILED),
        (["message.created", "run.failed"], RunState.FAILED),
        (["message.created", "run.cancel_requested"], RunState.CANCELLING),
        (["message.created", "run.cancel_requested", "run.started", "run.cancelled"], RunState.CANCELLED),
        (["message.created", "run.started", "run.cancel_requested", "text.delta"], RunState.CANCELLING),
        (["message.created", "run.started", "run.cancel_requested", "run.completed"], RunState.COMPLETED),
    ],
)
def test_lives(types: list[str], state: RunState) -> None:
    """A run goes through these states."""
    assert state == life(*types)


@pytest.mark.parametrize(("state", "type_"), list(itertools.product(DONE, EVENTS)))
def test_nothing_follows_the_end(state: RunState, type_: str) -> None:
    """A run that has ended takes no event at all."""
    with pytest.raises(IllegalTransition) as caught:
        advance(state, type_)

    assert {"state": state, "type": type_} == {"state": RunState(caught.value.detail["state"]), "type": type_}


@pytest.mark.parametrize("type_", [type_ for type_ in EVENTS if type_ != "message.created"])
def test_a_message_comes_first(type_: str) -> None:
    """Only a message begins a run."""
    with pytest.raises(IllegalTransition, match="a new run"):
        advance(None, type_)


@pytest.mark.parametrize(
    ("state", "type_"),
    [
        (RunState.QUEUED, "run.completed"),
        (RunState.QUEUED, "run.cancelled"),
        (RunState.RUNNING, "run.cancelled"),
        (RunState.RUNNING, "message.created"),
        (RunState.CANCELLING, "message.created"),
    ],
)
def test_illegal(state: RunState, type_: str) -> None:
    """What is in no row of the table is an error that names state and event."""
    with pytest.raises(IllegalTransition, match=f"{type_} cannot follow in a run that is {state.value}"):
        advance(state, type_)


def test_every_state_can_end() -> None:
    """From each state that is no end, an end can be reached."""
    for state in RunState:
        if state not in DONE:
            assert any(to in DONE for (from_, _), to in TRANSITIONS.items() if from_ == state)


def test_what_nobody_knows_leaves_a_run_where_it_is() -> None:
    """A type of a later version moves nothing, and is refused like any other where no run is open."""
    for state in RunState:
        if state in OPEN:
            assert state is advance(state, "tool.dreamt")
        else:
            with pytest.raises(IllegalTransition):
                advance(state, "tool.dreamt")


# A session ------------------------------------------------------------------------------------------------------------

NEW = SessionState("s")
CREATED = draft("session.created", {})
DELETED = draft("session.deleted", {})
REWOUND = draft("session.rewound", {"to": ""})
KINDS = ("message.created", "run.started", "text.delta", "run.cancel_requested", "run.completed", "run.failed",
         "run.cancelled")  # fmt: skip


def text(run: str = "r") -> Draft:
    return draft("text.delta", {"part": 0, "step": 0, "start": 0, "text": "x"}, run)


def asked(run: str = "r") -> Draft:
    return draft("message.created", {}, run)


def of_run(type: str, run: str = "r") -> Draft:
    return draft(type, {}, run)


def existing(*runs: OpenRun, head: int = 9, whole: int = 9) -> SessionState:
    return SessionState("s", head, whole, runs={run.run: run for run in runs})


def open_run(run: str = "r", **fields: object) -> OpenRun:
    return OpenRun(session="s", run=run, offset=2, **fields)  # type: ignore[arg-type]


def lease(run: str = "r", epoch: int = 1) -> Lease:
    return Lease("s", run, "me", epoch, 0.0)


def test_a_session_begins() -> None:
    """A message opens its run, and the same append may go on with it and end it."""
    begun = moved(NEW, [CREATED, asked()])
    assert SessionState("s", 2, 2, runs={"r": open_run()}) == begun
    assert (False, True) == (NEW.exists, begun.exists)

    whole = moved(NEW, [CREATED, asked(), of_run("run.started"), text(), text(), of_run("run.completed")])
    assert SessionState("s", 6, 6) == whole


def test_deltas_move_the_head_alone() -> None:
    """``whole`` stays at the last event that is more."""
    state = existing(open_run(state=RunState.RUNNING))

    assert (12, 9, state.runs) == ((after := moved(state, [text()] * 3)).head, after.whole, after.runs)
    assert (12, 11) == ((after := moved(state, [text(), of_run("run.started"), text()])).head, after.whole)


def test_a_run_moves() -> None:
    """Its state is in the session's, and its place and lease stay."""
    state = existing(open_run(owner="me", epoch=3, expires_at=7.0), open_run("q"))
    after = moved(state, [of_run("run.started"), of_run("run.cancel_requested", "q")])

    assert open_run(owner="me", epoch=3, expires_at=7.0, state=RunState.RUNNING) == after.runs["r"]
    assert open_run("q", state=RunState.CANCELLING) == after.runs["q"]
    assert ["r", "q"] == list(after.runs)
    assert [True, True] == [run.started for run in after.runs.values()]
    assert [False, False] == [run.started for run in state.runs.values()]


def test_runs_stand_in_the_order_of_their_messages() -> None:
    """An end takes one out, a message puts one behind."""
    state = moved(NEW, [CREATED, asked("a"), asked("b"), asked("c")])
    state = moved(state, [of_run("run.failed", "a"), asked("d")])

    assert [("b", 3), ("c", 4), ("d", 6)] == [(run.run, run.offset) for run in state.runs.values()]


def test_a_deleted_session() -> None:
    """Its runs are gone, and nothing follows: it is not there, and cannot be created again."""
    deleted = moved(existing(open_run()), [DELETED])

    assert (SessionState("s", 10, 10, deleted=True), False) == (deleted, deleted.exists)
    with pytest.raises(SessionNotFound):
        moved(deleted, [REWOUND])
    with pytest.raises(SessionExists, match="existed and was deleted"):
        moved(deleted, [CREATED])


@pytest.mark.parametrize(
    ("error", "drafts", "state"),
    [
        (ValueError, [], existing()),
        (ValueError, [DELETED] * 2, existing()),
        (ValueError, [DELETED, REWOUND], existing()),
        (ValueError, [REWOUND, CREATED], existing()),
        (ValueError, [CREATED] * 2, NEW),
        (SessionExists, [CREATED], existing()),
        (SessionNotFound, [REWOUND], NEW),
        (SessionNotFound, [DELETED], NEW),
        (RunEnded, [text()], existing()),
        (RunEnded, [of_run("run.started")], existing()),
        (RunEnded, [Draft(OtherFact("tool.dreamt", {}), "r")], existing()),
        (RunEnded, [asked(), of_run("run.failed"), text()], existing()),
        (RunEnded, [asked(), of_run("run.failed"), of_run("run.failed")], existing()),
        (RunEnded, [asked(), of_run("run.failed"), asked()], existing()),
        (RunEnded, [asked(), asked()], existing()),
        (RunEnded, [asked()], existing(open_run())),
        (IllegalTransition, [of_run("run.completed")], existing(open_run())),
        (IllegalTransition, [of_run("run.cancelled")], existing(open_run(state=RunState.RUNNING))),
        (IllegalTransition, [text(), of_run("run.cancelled")], existing(open_run(state=RunState.RUNNING))),
    ],
)
def test_what_breaks_a_rule_is_refused(error: type[Exception], drafts: list[Draft], state: SessionState) -> None:
    """And nothing has moved."""
    before = msgspec.structs.replace(state, runs=dict(state.runs))
    with pytest.raises(error):
        moved(state, drafts)

    assert before == state


def test_what_is_of_no_run_moves_none() -> None:
    """A message that was said before, an answer to a notification, an unknown fact of the session."""
    drafts = [draft("message.created", {}), REWOUND, Draft(OtherFact("session.dreamt", {}))]
    state = existing(open_run())

    assert existing(open_run(), head=12, whole=12) == moved(state, drafts)


def test_an_unknown_fact_of_a_run() -> None:
    """It is no delta: whoever decides on what there is has to look at it."""
    state = existing(open_run(state=RunState.RUNNING))

    assert existing(*state.runs.values(), head=10, whole=10) == moved(state, [Draft(OtherFact("tool.dreamt", {}), "r")])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(KINDS)), min_size=2, max_size=9), st.data())
def test_two_appends_are_as_good_as_one(moves: list[tuple[str, str]], data: st.DataObject) -> None:
    """Wherever the drafts are cut, the state is the same, or they are refused; and the state before never changes."""
    drafts = [of_run(kind, run) for run, kind in moves]
    cut = data.draw(st.integers(1, len(drafts) - 1))
    begun = moved(NEW, [CREATED])
    before = msgspec.structs.replace(begun, runs=dict(begun.runs))

    def result(*appends: list[Draft]) -> SessionState | type[LegatoError]:
        state = begun
        try:
            for append in appends:
                state = moved(state, append)
        except (RunEnded, IllegalTransition) as exc:
            return type(exc)
        return state

    once = result(drafts)
    twice = result(drafts[:cut], drafts[cut:])
    reopened = {run for run, _ in moves if sum(pair == (run, "message.created") for pair in moves) > 1}
    assert reopened or once == twice  # that a run of an earlier append has ended is known to the store alone
    assert before == begun
    if isinstance(once, SessionState):
        assert 1 + len(drafts) == once.head
        assert all(run.state in OPEN for run in once.runs.values())


# What was decided on an older head ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expected", "moves"), [(None, True), (6, False), (7, True), (9, True), (10, False)])
def test_only_deltas_may_have_come(expected: int | None, moves: bool) -> None:
    """At head 9, whose last two events are deltas: what was decided since 7 still holds."""
    state = existing(head=9, whole=7)
    if moves:
        check_head(state, expected)
    else:
        with pytest.raises(HeadMoved) as caught:
            check_head(state, expected)
        assert {"head": 9} == caught.value.detail


def test_a_new_session_is_at_0() -> None:
    """Who has seen that there is none can begin it; only one can."""
    check_head(NEW, 0)
    with pytest.raises(HeadMoved):
        check_head(moved(NEW, [CREATED]), 0)


# Leases ---------------------------------------------------------------------------------------------------------------


def test_a_lease_counts_with_its_run_s_present_epoch_and_owner() -> None:
    """And only while that is open, whatever is to be appended under it."""
    moved(existing(open_run(epoch=1, owner="me")), [text()], lease=lease())
    with pytest.raises(StaleLease) as caught:
        moved(existing(open_run(epoch=2, owner="you")), [text()], lease=lease())
    assert ("r", 2, "you") == (caught.value.detail["run"], caught.value.detail["epoch"], caught.value.detail["owner"])
    with pytest.raises(RunEnded):
        moved(existing(open_run("other")), [REWOUND], lease=lease())
    with pytest.raises(SessionNotFound):
        moved(NEW, [text()], lease=lease())


@pytest.mark.parametrize(
    "held", [{}, {"owner": "me", "expires_at": 9.0}, {"owner": "you", "expires_at": 5.0}], ids=["free", "mine", "late"]
)
def test_a_run_can_be_taken(held: dict[str, object]) -> None:
    """Nobody holds it, the same owner does, or its lease is over: with each taking the epoch grows by one."""
    state = leased(existing(open_run(epoch=4, **held)), "r", owner="me", now=5.0, until=8.0)

    assert Lease("s", "r", "me", 5, 8.0) == state.runs["r"].lease()
    assert (True, False) == (state.runs["r"].held(7.9), state.runs["r"].held(8.0))
    assert (9, 9, ["r"]) == (state.head, state.whole, list(state.runs))


def test_a_run_that_cannot_be_taken() -> None:
    """Another owner holds it, an earlier one is open (held or not), or there is none."""
    with pytest.raises(LeaseHeld) as caught:
        leased(existing(open_run(owner="you", expires_at=5.1)), "r", owner="me", now=5.0, until=8.0)
    assert {"run": "r", "owner": "you", "expires_at": 5.1} == caught.value.detail
    with pytest.raises(LeaseHeld) as caught:
        leased(existing(open_run("first"), open_run()), "r", owner="me", now=5.0, until=8.0)
    assert {"run": "r", "first": "first"} == caught.value.detail
    for state in (existing(open_run("other")), existing(), NEW):
        with pytest.raises(RunEnded):
            leased(state, "r", owner="me", now=5.0, until=8.0)


def test_a_lease_is_kept_when_the_run_moves_and_goes_with_its_end() -> None:
    """The next run of the session can be taken then."""
    state = leased(existing(open_run(), open_run("next")), "r", owner="me", now=5.0, until=8.0)
    state = moved(state, [of_run("run.started"), text()], lease=state.runs["r"].lease())
    assert state.runs["r"].held(5.0)
    state = moved(state, [of_run("run.completed")], lease=state.runs["r"].lease())

    assert "next" == next(iter(leased(state, "next", owner="you", now=5.0, until=8.0).runs))


def test_renewing() -> None:
    """All that one owner holds, and nothing of others; epochs stay."""
    mine, other, nobody = open_run("a", owner="me", epoch=2), open_run("b", owner="you", epoch=3), open_run("c")
    state = renewed(existing(mine, other, nobody), owner="me", until=20.0)

    assert [("a", 20.0, 2), ("b", 0.0, 3), ("c", 0.0, 0)] == [
        (run.run, run.expires_at, run.epoch) for run in state.runs.values()
    ]


def test_giving_back() -> None:
    """Anybody may take it at once, with the next epoch; who gives back what is no longer theirs changes nothing."""
    state = leased(existing(open_run()), "r", owner="me", now=5.0, until=8.0)
    given = released(state, state.runs["r"].lease())
    assert open_run(epoch=1) == given.runs["r"]
    taken = leased(given, "r", owner="you", now=5.0, until=9.0)

    assert Lease("s", "r", "you", 2, 9.0) == taken.runs["r"].lease()
    assert taken == released(taken, state.runs["r"].lease())
    assert existing() == released(existing(), lease())
    for after in (given, taken):
        with pytest.raises(StaleLease):
            moved(after, [text()], lease=state.runs["r"].lease())


def test_which_run_is_free() -> None:
    """Only the first of a session ever is."""
    held = {"owner": "you", "expires_at": 5.0}

    assert None is free({}, 0.0)
    assert open_run() == free({"r": open_run(), "q": open_run("q")}, 5.0)
    assert None is free({"r": open_run(**held), "q": open_run("q")}, 4.9)
    assert open_run(**held) == free({"r": open_run(**held), "q": open_run("q")}, 5.0)

"""The vocabulary: equality of events, and the life of a run."""

from __future__ import annotations

import itertools

import pytest

from legato.errors import IllegalTransition
from legato.event import DELTAS, EVENTS, TERMINAL, TRANSITIONS, Event, RunState, advance

DONE = [RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED]


def life(*types: str) -> RunState | None:
    state: RunState | None = None
    for type_ in types:
        state = advance(state, type_)
    return state


def test_events_are_equal_without_their_bytes() -> None:
    """What has been encoded of an event so far is no part of the fact."""
    one = Event(type="text.delta", data={"text": "a"}, offset=1, at=2.0, run="r")
    two = Event(type="text.delta", data={"text": "a"}, offset=1, at=2.0, run="r", wire={"mix": b"x"})

    assert one == two
    assert one != Event(type="text.delta", data={"text": "a"}, offset=2, at=2.0, run="r")
    assert one != "text.delta"


def test_events_share_no_wire() -> None:
    """Each event has its own place for its bytes."""
    one, two = (Event(type="text.delta", data={}, offset=offset, at=0.0) for offset in (1, 2))
    one.wire["mix"] = b"x"

    assert {} == two.wire


def test_tables_agree() -> None:
    """Deltas, terminal types and transitions speak of types that exist."""
    assert DELTAS | TERMINAL | {type_ for _, type_ in TRANSITIONS} <= set(EVENTS)


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

"""The machine that moves a session: which facts may follow which, and what becomes of the session's state.

Every store decides with ``moved``, and there is no other copy of these rules. It is pure: the same state and the same
drafts give the same state, or the same error. The run states are a table; what it does not have is refused.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping, Sequence

import msgspec

from .errors import HeadMoved, IllegalTransition, LeaseHeld, RunEnded, SessionExists, SessionNotFound, StaleLease
from .event import Draft, Offset


class RunState(enum.Enum):
    """Where a run is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[tuple[RunState | None, str], RunState] = {
    (None, "message.created"): RunState.QUEUED,
    (RunState.QUEUED, "run.started"): RunState.RUNNING,
    (RunState.QUEUED, "run.cancel_requested"): RunState.CANCELLING,
    (RunState.QUEUED, "run.failed"): RunState.FAILED,
    (RunState.RUNNING, "run.started"): RunState.RUNNING,  # a further attempt, after a crash
    (RunState.RUNNING, "run.cancel_requested"): RunState.CANCELLING,
    (RunState.RUNNING, "run.completed"): RunState.COMPLETED,
    (RunState.RUNNING, "run.failed"): RunState.FAILED,
    (RunState.CANCELLING, "run.started"): RunState.CANCELLING,
    (RunState.CANCELLING, "run.cancel_requested"): RunState.CANCELLING,
    (RunState.CANCELLING, "run.completed"): RunState.COMPLETED,  # it was done before it saw the cancel
    (RunState.CANCELLING, "run.failed"): RunState.FAILED,
    (RunState.CANCELLING, "run.cancelled"): RunState.CANCELLED,
}
"""The whole life of a run. An event type that is in no row leaves an unfinished run where it is."""

_MOVES = frozenset(type_ for _, type_ in TRANSITIONS)
OPEN = frozenset({RunState.QUEUED, RunState.RUNNING, RunState.CANCELLING})
"""The states that are no end."""


def advance(state: RunState | None, type_: str) -> RunState:
    """The state of a run after an event of ``type_``.

    Raises:
        IllegalTransition: the state forbids it; in particular, nothing follows a terminal event.
    """
    if type_ in _MOVES:
        moved = TRANSITIONS.get((state, type_))
        if moved is not None:
            return moved
    elif state in OPEN:
        return state
    name = "a new run" if state is None else f"a run that is {state.value}"
    raise IllegalTransition(f"{type_} cannot follow in {name}.", state=state and state.value, type=type_)


class Lease(msgspec.Struct, frozen=True):
    """The right to append to a run now.

    Attributes:
        session, run: what it is for.
        owner: who holds it, any string that is unique to a process's life.
        epoch: grows by one with each acquisition; an append with an older one is refused (``StaleLease``).
        expires_at: seconds since the epoch; after it anybody may acquire the run.
    """

    session: str
    run: str
    owner: str
    epoch: int
    expires_at: float


class OpenRun(msgspec.Struct, frozen=True):
    """A run without its terminal event.

    Attributes:
        offset: of the ``message.created`` that opened it.
        state: one of ``OPEN``.
        owner, epoch, expires_at: of its last lease; owner is None when nobody holds it.
    """

    session: str
    run: str
    offset: Offset
    state: RunState = RunState.QUEUED
    owner: str | None = None
    epoch: int = 0
    expires_at: float = 0.0

    @property
    def started(self) -> bool:
        """Whether its agent has been asked."""
        return self.state is not RunState.QUEUED

    def held(self, now: float) -> bool:
        """Whether somebody has it, at ``now`` seconds since the epoch."""
        return self.owner is not None and self.expires_at > now

    def lease(self) -> Lease:
        """Its last lease."""
        return Lease(self.session, self.run, self.owner or "", self.epoch, self.expires_at)


class SessionState(msgspec.Struct, frozen=True):
    """What of a session decides what may be appended to it.

    Attributes:
        head: the offset of its last event; 0 of a session that never was.
        whole: the offset of the last event that is no delta.
        deleted: only its tombstone is left.
        runs: its open runs, by id, in the order of their messages. Only the first can be leased.
    """

    session: str
    head: Offset = 0
    whole: Offset = 0
    deleted: bool = False
    runs: Mapping[str, OpenRun] = {}

    @property
    def exists(self) -> bool:
        """Whether it has been created and not deleted."""
        return self.head > 0 and not self.deleted


def moved(state: SessionState, drafts: Sequence[Draft], *, lease: Lease | None = None) -> SessionState:
    """The state after ``drafts``, in order.

    Args:
        state: before them.
        drafts: at least one.
        lease: of the run that they belong to; None: they come from outside of any run.

    Raises:
        ValueError: there are none, or a session would begin or end in the middle of them.
        SessionExists, SessionNotFound: it does (or did), or does not exist.
        RunEnded: a run of theirs is not open, or one is to be opened that is.
        IllegalTransition: a run's state forbids it.
        StaleLease: somebody else has taken the run since.
    """
    if not drafts:
        raise ValueError("append needs at least one draft")
    session = state.session
    for draft in drafts:
        if not draft.fact.delta or draft.run not in state.runs:
            break
    else:  # deltas of open runs, as most appends are, which move nothing but the head
        if lease is not None:
            current = state.runs.get(lease.run)
            if current is None or current.epoch != lease.epoch or current.owner != lease.owner:
                check_lease(state, lease)  # which says so
        return SessionState(session, state.head + len(drafts), state.whole, False, state.runs)
    if drafts[0].type == "session.created":
        if state.deleted:
            raise SessionExists(f"Session {session!r} existed and was deleted.", session=session)
        if state.head:
            raise SessionExists(f"Session {session!r} exists already.", session=session)
    elif not state.exists:
        raise SessionNotFound(session)
    if lease is not None:
        check_lease(state, lease)
    head, whole, runs = state.head, state.whole, state.runs
    ended: set[str] = set()
    for draft in drafts:
        head += 1
        fact, run = draft.fact, draft.run
        if not fact.delta:
            whole = head
        if run is None:
            continue
        before = runs.get(run)
        if before is None and (run in ended or fact.type != "message.created"):
            raise RunEnded(f"Run {run!r} is not open, so {fact.type} cannot be appended to it.", run=run)
        if before is not None and fact.type == "message.created":
            raise RunEnded(f"Run {run!r} was opened before; each message needs a run of its own.", run=run)
        after = advance(before.state if before is not None else None, fact.type)
        if before is None:
            runs = {**runs, run: OpenRun(session=session, run=run, offset=head)}
        elif fact.terminal:
            runs = {name: other for name, other in runs.items() if name != run}
            ended.add(run)
        elif after is not before.state:
            runs = {**runs, run: msgspec.structs.replace(before, state=after)}
    deleted = drafts[-1].type == "session.deleted"
    for draft, following in itertools.pairwise(drafts):
        if draft.type == "session.deleted" or following.type == "session.created":
            raise ValueError("session.created can only be the first draft of an append, session.deleted the last")
    return SessionState(session, head, whole, deleted, {} if deleted else runs)


def check_head(state: SessionState, expected: Offset | None) -> None:
    """Refuse what was decided on less than there is: only deltas may have come since, which decide nothing.

    Raises:
        HeadMoved: others have come after ``expected``, or the log does not reach so far.
    """
    if expected is not None and not state.whole <= expected <= state.head:
        raise HeadMoved(
            f"Session {state.session!r} has grown up to offset {state.head}, what came was decided at {expected}.",
            head=state.head,
        )


# Leases ---------------------------------------------------------------------------------------------------------------


def check_lease(state: SessionState, lease: Lease) -> None:
    """Refuse a writer who no longer has its run.

    Raises:
        RunEnded: it is not open any more.
        StaleLease: it has been given back, or somebody else has taken it since.
    """
    current = state.runs.get(lease.run)
    if current is None:
        raise RunEnded(f"Run {lease.run!r} has ended.", run=lease.run)
    if current.epoch != lease.epoch or current.owner != lease.owner:
        raise StaleLease(
            f"Run {lease.run!r} is at epoch {current.epoch}, of {current.owner or 'nobody'}; "
            f"the append came with epoch {lease.epoch}, of {lease.owner}.",
            run=lease.run,
            epoch=current.epoch,
            owner=current.owner,
        )


def free(runs: Mapping[str, OpenRun], now: float) -> OpenRun | None:
    """Of a session's open runs the one that anybody may take now: the first, if nobody holds it."""
    first = next(iter(runs.values()), None)
    return None if first is None or first.held(now) else first


def leased(state: SessionState, run: str, *, owner: str, now: float, until: float) -> SessionState:
    """The state with ``run`` taken by ``owner`` until ``until`` (seconds since the epoch), with the next epoch.

    Raises:
        RunEnded: it is not open.
        LeaseHeld: another owner holds it, or an earlier run of the session is open.
    """
    current = state.runs.get(run)
    if current is None:
        raise RunEnded(f"Run {run!r} is not open.", run=run)
    first = next(iter(state.runs.values()))
    if first.run != run:
        raise LeaseHeld(f"Run {first.run!r} of the session comes before {run!r}.", run=run, first=first.run)
    if current.held(now) and current.owner != owner:
        raise LeaseHeld(
            f"Run {run!r} is held by {current.owner!r}.", run=run, owner=current.owner, expires_at=current.expires_at
        )
    taken = msgspec.structs.replace(current, owner=owner, epoch=current.epoch + 1, expires_at=until)
    return msgspec.structs.replace(state, runs={**state.runs, run: taken})


def renewed(state: SessionState, *, owner: str, until: float) -> SessionState:
    """The state with every lease of ``owner`` extended to ``until``, seconds since the epoch."""
    runs = {
        name: msgspec.structs.replace(run, expires_at=until) if run.owner == owner else run
        for name, run in state.runs.items()
    }
    return msgspec.structs.replace(state, runs=runs)


def released(state: SessionState, lease: Lease) -> SessionState:
    """The state with ``lease`` given back, if it is still the run's: anybody may take the run at once."""
    current = state.runs.get(lease.run)
    if current is None or current.epoch != lease.epoch:
        return state
    given = msgspec.structs.replace(current, owner=None, expires_at=0.0)
    return msgspec.structs.replace(state, runs={**state.runs, lease.run: given})

"""``Resolutions``: what users answer to what agents ask. The first answer to an ask holds."""

from __future__ import annotations

from .admission import Admission
from .asks import A, resolve_key
from .caller import Caller
from .errors import AskNotFound, InvalidInput, RunEnded, SessionNotFound
from .event import (
    Draft,
    NotificationCreated,
    NotificationResolved,
    PermissionRequested,
    PermissionResolved,
)
from .log import Store
from .questions import session_of
from .run import Runner


class Resolutions:
    """Stores answers to permissions and notifications, each once.

    Args:
        store: open.
        runner: knows by when what it asked is to be answered.
        admission: says what a caller may answer.
    """

    def __init__(self, store: Store, runner: Runner, admission: Admission) -> None:
        self._store = store
        self._runner = runner
        self._contents = runner.contents
        self._admission = admission

    async def permission(self, caller: Caller, id: str, granted: bool) -> bool:
        """Answer a permission request. The first answer wins.

        Args:
            caller: who answers.
            id: of the request.
            granted: the answer; after the request's end it is none.

        Returns:
            The answer that holds, which may be an earlier one.

        Raises:
            AskNotFound: no such request.
        """
        run, request = await self._find_ask(caller, id, PermissionRequested)
        late = await self._is_late(id, run, request.expires_at)
        fact = PermissionResolved(id, granted and not late, "timeout" if late else "user")
        try:
            events = (await self._store.append(session_of(id), [Draft(fact, run)], once=resolve_key(id))).events
        except RunEnded:  # with that it has been answered, unless somebody else wrote the log
            answer = (await self._admission.look(caller, session_of(id), "resolve")).contents.granted.get(id)
            if answer is None:
                raise AskNotFound(f"The run that asked {id[:200]!r} has ended.") from None
            return answer
        return next(event.fact.granted for event in events if isinstance(event.fact, PermissionResolved))

    async def notification(self, caller: Caller, id: str, response: str, value: str | None = None) -> None:
        """Answer a notification, once.

        Raises:
            AskNotFound: unknown, expired, or answered already.
            InvalidInput: not an answer of the kind it asked for.
        """
        run, asked = await self._find_ask(caller, id, NotificationCreated)
        if response != asked.response:
            raise InvalidInput(f"This notification expects an answer of type {asked.response!r}, got {response!r}.")
        if response == "choice" and value not in (asked.choices or ()):
            raise InvalidInput(f"Expected one of {asked.choices}, got {value!r}.", choices=asked.choices)
        if response == "text" and value is None:
            raise InvalidInput("An answer of type 'text' needs a value.")
        if await self._is_late(id, run, asked.created_at + asked.timeout):
            raise AskNotFound("The notification's time to answer is over.")
        fact = NotificationResolved(id, "user", run, response, value)
        if (await self._store.append(session_of(id), [Draft(fact)], once=resolve_key(id))).repeated:
            raise AskNotFound("The notification has been answered already.")

    async def _is_late(self, id: str, run: str | None, expires_at: float | None) -> bool:
        """Whether an answer comes too late. Of what a run asks that another node drives, that node decides, whose clock
        it was asked by: when the time is over it stores so, and the first answer wins."""
        runner = self._runner
        if not runner.deadlines.is_late(id, expires_at, runner.clock()):
            return False
        if runner.deadlines.left(id) is not None or run is None:
            return True
        driven = (await self._store.info(session_of(id))).runs.get(run)
        return driven is None or driven.owner in (None, runner.owner)

    async def _find_ask(self, caller: Caller, id: str, kind: type[A]) -> tuple[str | None, A]:
        # An ask's id begins with its session's, so that any node can find it without an index.
        try:
            contents = (await self._admission.look(caller, session_of(id), "resolve")).contents
            if (kind.type, id) in contents.asks:
                run, offset = contents.asks[kind.type, id]
                fact = (await self._contents.event(session_of(id), offset)).fact
                assert isinstance(fact, kind)
                return run, fact
        except SessionNotFound:
            pass
        raise AskNotFound(f"There is no {kind.type.partition('.')[0]} {id[:200]!r}.")

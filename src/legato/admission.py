"""``Admission``: what a caller is let do, before anything is stored: by rules and scopes, by quotas and rates, and by
what there is room for."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .bounds import Rate
from .caller import ACTIONS, NEEDS, Caller, May, MayWithSession, Quota, Verb
from .caller import may as may_what_is_theirs
from .contents import Contents
from .errors import (
    Draining,
    Forbidden,
    InvalidInput,
    Overloaded,
    QueueFull,
    QuotaRefused,
    ScopeMissing,
    SessionFull,
    SessionNotFound,
    TooLarge,
)
from .event import Offset
from .fault import contained
from .log import SessionInfo, Store
from .run import Runner
from .spending import is_own
from .tally import named

logger = logging.getLogger("legato")


class Seen(NamedTuple):
    """A session as it was when a verb looked at it. The contents go on changing with the next await."""

    info: SessionInfo
    contents: Contents

    @property
    def head(self) -> Offset:
        """The log's."""
        return self.info.head


class Admission:
    """Lets callers at sessions.

    Args:
        store: open.
        runner: whose limits and load count.
        may: decides what a caller may do, see ``caller.may`` and ``caller.MayWithSession``.
        quota: the application's own limit, see ``caller.Quota``.

    Attributes:
        may: the same of either form; see ``caller.may``.
    """

    def __init__(self, store: Store, runner: Runner, may: May | MayWithSession, quota: Quota | None) -> None:
        self._store = store
        self._runner = runner
        self._quota = quota
        self._rate = Rate(lambda: runner.limits.owner_sends)
        runner.tally.sources.append(lambda: named("sent", self._rate.taken))
        runner.tally.watchers.append(self._count_elsewhere)
        self._accounts = runner.accounts
        self._contents = runner.contents
        self._refusing = False
        self.may = _checked(may)

    async def info(self, caller: Caller, session: str, verb: Verb) -> SessionInfo:
        """What is known of a session without reading its log.

        Raises:
            SessionNotFound: there is none, or the caller may not do ``verb`` to it.
        """
        self.check_scope(caller, verb)
        info = await self._store.info(session)
        if is_own(session) or not self.may(caller, verb, info.owner, info):
            raise SessionNotFound(session)
        return info

    async def look(self, caller: Caller, session: str, verb: Verb) -> Seen:
        """A session as it is now, as ``info`` lets the caller see it."""
        while True:
            info = await self.info(caller, session, verb)
            contents = await self._contents.of(session, info.head)
            if contents.whole <= info.head:  # else somebody has stored something meanwhile, which the info has not
                return Seen(info, contents)

    def check_scope(self, caller: Caller, verb: Verb) -> None:
        """Raise ``ScopeMissing`` if the caller's credential is not good for this."""
        for scope in NEEDS[verb].scopes:
            if not caller.has(scope):
                raise ScopeMissing(scope)

    def check_begin(self, caller: Caller, *verbs: Verb) -> None:
        """Raise ``Forbidden`` if the caller may not do this to a session that would be theirs."""
        for verb in ("create", *verbs):
            self.check_scope(caller, verb)
            if not self.may(caller, verb, caller.subject, None):
                raise Forbidden("This caller may not begin a session.")

    def allowed(self, caller: Caller, info: SessionInfo) -> list[str]:
        """What a caller may do to a session that they may read, of ``ACTIONS``."""
        return [
            action
            for action, verb in ACTIONS.items()
            if all(map(caller.has, NEEDS[verb].scopes)) and self.may(caller, verb, info.owner, info)
        ]

    def check_inspect(self, caller: Caller) -> None:
        """Raise ``Forbidden`` if the caller may not look at everything that the server does."""
        if not self.may(caller, "inspect", None, None):
            raise Forbidden("The inspector shows what is everybody's; this caller may not look.")

    async def admit(self, caller: Caller, verb: Verb, session: str) -> None:
        """Let a caller do what costs something, before anything of it is stored.

        Raises:
            TooFast, QuotaSpent, QuotaRefused: they have had what they may.
        """
        if verb == "send":
            self._rate.take(caller.party, "owner_sends")
            await self._accounts.check(caller.subject)
        if self._quota is not None:
            with contained("quota"):
                refusal: object = await self._quota(caller, verb, session)
            if refusal is not None:
                if not isinstance(refusal, str):
                    raise TypeError(f"quota gives None, or why not as text, got {refusal!r:.200}")
                raise QuotaRefused(refusal)

    def check_agent(self, agent: str | None) -> None:
        """Raise ``InvalidInput`` if ``agent`` is not None and there is none of that name."""
        if agent is not None and agent not in self._runner.agents:
            known = ", ".join(self._runner.agents)
            raise InvalidInput(f"There is no agent {agent[:100]!r}; this server has: {known}.", agents=known)

    def check_text(self, text: str) -> None:
        """Raise ``InvalidInput`` or ``TooLarge`` if no message can say this."""
        if not text.strip():
            raise InvalidInput("A message needs text, got nothing but blanks.")
        if len(text) > (most := self._runner.limits.message_characters):
            raise TooLarge(
                f"A message may have {most} characters, got {len(text)}.", bound="message_characters", limit=most
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("The text holds half of a surrogate pair, which cannot be stored as UTF-8.") from None

    def check_ready(self) -> None:
        """Raise ``Draining`` or ``Overloaded`` if no new messages are taken."""
        if self._runner.draining:
            raise Draining("The server is shutting down and takes no new messages; try again.")
        limits = self._runner.limits
        lag, waiting = self._runner.load.lag, self._runner.load.waiting
        late = lag > limits.lag_seconds or waiting > limits.wait_seconds
        if late and not self._refusing:  # once, and not for each of those who are refused
            logger.warning(
                "new messages are refused: the event loop is late by %.2g s, and one waits for %.2g s to be stored",
                lag,
                waiting,
            )
        self._refusing = late
        if late:
            raise Overloaded(
                "The server has too much to do and takes no new messages now; try again later.",
                bound="lag_seconds" if lag > limits.lag_seconds else "wait_seconds",
            )

    def check_queue(self, info: SessionInfo) -> None:
        """Raise ``QueueFull`` if as many messages wait in the session as may."""
        if len(info.open_runs) > (most := self._runner.limits.queued_messages):
            raise QueueFull(
                f"{len(info.open_runs)} messages wait in this session already.", bound="queued_messages", limit=most
            )

    async def check_room(self, info: SessionInfo) -> None:
        """Raise ``SessionFull`` if the session holds what one may. What it held when it was last looked at counts, as
        its run, which looks too, has no more room than there is then."""
        limits = self._runner.limits
        contents = self._contents.known(info.session)
        if contents is None:
            few = info.head < min(limits.session_events, limits.session_runs)
            if few and info.head * limits.run_bytes < limits.session_bytes:
                return  # so little is in it that nothing need be read to know
            contents = await self._contents.of(info.session, info.head)
        runs = len(contents.runs) + sum(run.run not in contents.runs for run in info.open_runs)
        for name, has in (("events", info.head), ("bytes", contents.bytes), ("runs", runs)):
            most = getattr(limits, f"session_{name}")
            if has >= most:
                raise SessionFull(
                    f"This session has {has} {name}, and one may have {most}; go on in another.",
                    bound=f"session_{name}",
                    limit=most,
                )

    def _count_elsewhere(self, before: Mapping[str, int], now: Mapping[str, int]) -> None:
        more = {name[5:]: count - before.get(name, 0) for name, count in now.items() if name.startswith("sent ")}
        self._rate.count_elsewhere({party: count for party, count in more.items() if count > 0})


_Rule = Callable[[Caller, Verb, str | None, SessionInfo | None], bool]


def _checked(may: May | MayWithSession) -> _Rule:
    """``may``, of either form, whose mistakes let nobody do anything."""
    rule: Callable[..., object] = may
    of_sessions = _asks_of_sessions(rule)

    def checked(caller: Caller, verb: Verb, owner: str | None, info: SessionInfo | None) -> bool:
        if of_sessions and info is None:
            return may_what_is_theirs(caller, verb, owner)
        with contained("may"):
            allowed: object = rule(caller, info, NEEDS[verb].action) if of_sessions else rule(caller, verb, owner)
        if inspect.isawaitable(allowed):  # which would count as yes
            if inspect.iscoroutine(allowed):
                allowed.close()
            raise TypeError("may is a plain function that gives True or False; this one is async.")
        return bool(allowed)

    return checked


def _asks_of_sessions(may: Callable[..., object]) -> bool:
    """Whether a rule is of the form ``(caller, session, action)``: one of the two names says so."""
    try:
        names = list(inspect.signature(may).parameters)
    except (TypeError, ValueError):
        return False
    return names[1:2] == ["session"] or names[2:3] == ["action"]

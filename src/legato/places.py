"""The places of a process's runs: who has them, who waits for one, and whose turn it is.

Places are shared out among *parties*, however many messages each of them sends. A party is a caller's subject, or where
nobody is signed in, the address that a request came from. It is known here, in memory, and nowhere else: an address is
somebody's, so no log has it, and after a restart what waits of those without a subject is one party's.

Pure: no clock, no store, nothing to await.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container

from .errors import TooMany

SPARE = 10
"""Beyond the bound one place more for so many, for parties that have few: nobody has all, however long their runs."""


class Places:
    """See the module's head.

    The next place is the party's that has the fewest, and of those that have as many, the one's that has waited for
    longest; among a party's sessions, the one's that came first.

    Args:
        count: gives how many there are.
        waiting: gives how many messages of one party may wait.
        elsewhere: gives how many of a party wait that were sent through other nodes.
        most: gives how many places one party may have; 0 for all.

    Attributes:
        taken: how many are.
        sent: by party, how many messages wait that were sent through this node.
    """

    def __init__(
        self,
        count: Callable[[], int],
        waiting: Callable[[], int],
        elsewhere: Callable[[str], int] = lambda party: 0,
        most: Callable[[], int] = lambda: 0,
    ) -> None:
        self.taken = 0
        self._count = count
        self._waiting = waiting
        self._elsewhere = elsewhere
        self._most = most
        self._held: Counter[str] = Counter()
        self._queued: dict[str, dict[str, str]] = {}  # by session the runs that wait, and whose they are
        self._counts: Counter[str] = Counter()  # of those
        self._storing: set[str] = set()  # of those what may not be stored yet: nobody finds it in the store
        self._here: dict[str, str] = {}  # those that were sent through this node, and whose they are
        self.sent: Counter[str] = Counter()  # how many of each party those are
        self._lines: dict[str, dict[str, None]] = {}  # by party the sessions whose first run waits for a place
        self._parties: dict[str, str] = {}  # of those sessions
        self._levels: dict[int, dict[str, None]] = {}  # by how many places they have the parties with a line

    # Places -----------------------------------------------------------------------------------------------------------

    def take(self, party: str) -> bool:
        """Take a place, unless there is none for this party, or somebody waits who comes first."""
        if self._next() is not None or not self._may(party):
            return False
        self._hold(party, 1)
        return True

    def take_all(self, party: str, most: int) -> int:
        """Take up to so many places, if nobody waits for one; how many. However many the party has."""
        count = 0 if self._lines else max(min(most, self._count() - self.taken), 0)
        self._hold(party, count)
        return count

    def give_back(self, party: str, count: int = 1) -> None:
        """Give back what was taken."""
        self._hold(party, -count)

    def turn(self) -> tuple[str, str] | None:
        """The session that is to have the next place, and its party, for which it is taken; None if none can be had."""
        party = self._next()
        if party is None:
            return None
        session = next(iter(self._lines[party]))
        self._leave(session)
        self._hold(party, 1)
        return session, party

    def _next(self) -> str | None:
        if not self._levels:
            return None
        party = next(iter(self._levels[min(self._levels)]))
        return party if self._may(party) else None  # who has more may not either

    def _may(self, party: str) -> bool:
        count, held, most = self._count(), self._held[party], self._most()
        if most and party and held >= most:
            return False
        if self.taken < count:
            return True
        free = count + count // SPARE - self.taken
        return free > 0 and (held == 0 or 2 * held < free)

    def _hold(self, party: str, count: int) -> None:
        lined = party in self._lines
        if lined:
            self._unrank(party)
        self.taken += count
        self._held[party] += count
        if lined:
            self._levels.setdefault(self._held[party], {})[party] = None
        if not self._held[party]:
            del self._held[party]

    def _unrank(self, party: str) -> None:
        held = self._held[party]
        level = self._levels[held]
        del level[party]
        if not level:
            del self._levels[held]

    # Who waits --------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether a session waits for a place."""
        return bool(self._lines)

    @property
    def full(self) -> bool:
        """Whether there is no place but the spare ones."""
        return self.taken >= self._count()

    @property
    def waiting_runs(self) -> int:
        """How many runs wait, be it for a place or behind another."""
        return self._counts.total()

    @property
    def queued(self) -> dict[str, str]:
        """The runs that wait, be it for a place or behind another, with their sessions; as far as they are stored."""
        return {run: session for session, runs in self._queued.items() for run in runs if run not in self._storing}

    def check(self, party: str) -> None:
        """Raise ``TooMany`` if so much of this party waits that no more may."""
        # What was sent elsewhere may be known here as well, so the two are not added up.
        count = max(self._counts[party], self.sent[party] + self._elsewhere(party))
        if count >= self._waiting():
            raise TooMany(
                f"{count} messages of yours wait for their answers already; try again later.",
                bound="waiting_messages",
                limit=self._waiting(),
            )

    def queue(self, session: str, run: str, party: str, *, here: bool = False, stored: bool = True) -> None:
        """A run waits; ``here``: it was sent through this node. Idempotent. Until it is stored, nobody lets go of it
        but who has queued it."""
        if stored:
            self._storing.discard(run)
        else:
            self._storing.add(run)
        if here and run not in self._here:
            self._here[run] = party
            self.sent[party] += 1
        runs = self._queued.setdefault(session, {})
        if run not in runs:
            runs[run] = party
            self._counts[party] += 1

    def unqueue(self, session: str, run: str) -> None:
        """It does not wait (any more). Idempotent."""
        self._storing.discard(run)
        sender = self._here.pop(run, None)
        if sender is not None:
            self.sent[sender] -= 1
            if not self.sent[sender]:
                del self.sent[sender]
        runs = self._queued.get(session, {})
        party = runs.pop(run, None)
        if party is None:
            return
        self._counts[party] -= 1
        if not self._counts[party]:
            del self._counts[party]
        if not runs:
            del self._queued[session]

    def keep(self, session: str, runs: Container[str]) -> None:
        """Of the session's runs only these may still wait."""
        for run in [run for run in self._queued.get(session, ()) if run not in runs and run not in self._storing]:
            self.unqueue(session, run)

    def wait(self, session: str) -> None:
        """The session's next run waits for a place, if one of its runs waits; behind those of its party. Idempotent."""
        runs = self._queued.get(session)
        if not runs or session in self._parties:
            return
        party = self._parties[session] = next(iter(runs.values()))
        if party not in self._lines:
            self._lines[party] = {}
            self._levels.setdefault(self._held[party], {})[party] = None
        self._lines[party][session] = None

    def leave(self, session: str) -> None:
        """The session's first run waits for no place. Idempotent."""
        if session in self._parties:
            self._leave(session)

    def _leave(self, session: str) -> None:
        party = self._parties.pop(session)
        line = self._lines[party]
        del line[session]
        if not line:
            self._unrank(party)
            del self._lines[party]

"""The contract of stores, rule by rule: what ``legato.log.Store`` promises."""

from __future__ import annotations

from . import appends, keeping, moving, reads, runs, sessions
from .place import MakeStore
from .rules import StoreCheck

STORE_CHECKS: list[StoreCheck] = [
    check for part in (appends, runs, sessions, reads, moving, keeping) for check in part.RULES
]
"""What every store must pass."""
EMBEDDED_STORE_CHECKS: list[StoreCheck] = keeping.EMBEDDED_RULES
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

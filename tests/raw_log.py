"""Events put into a log past the server, as a newer version or another node would, and logs seen from outside."""

from __future__ import annotations

from typing import Any

from facts import draft


async def append_raw(store: Any, session: str, type: str, data: dict[str, Any], run: str | None = None) -> int:
    """Store one event of any type, known or not; its offset."""
    appended = await store.append(session, [draft(type, data, run)])
    return int(appended.events[-1].offset)


async def canonical(driver: Any, session: str) -> list[dict[str, Any]]:
    """All events of a session as the canonical log has them."""
    events: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = (await driver.request("GET", f"/api/sessions/{session}/events?after={after}&limit=1000")).json()
        events += page["events"]
        after = page["next"]
    return events


async def heads(driver: Any) -> dict[str, int]:
    """The head of every session's log, by id: what was stored so far, as numbers."""
    sessions = (await driver.request("GET", "/api/sessions?limit=1000")).json()
    return {
        each["id"]: (await driver.request("GET", f"/api/sessions/{each['id']}/events?limit=1")).json()["head"]
        for each in sessions
    }

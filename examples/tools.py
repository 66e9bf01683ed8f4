"""Tools for a model: ``legato serve examples/tools.py --model ollama:llama3.2``, then ask what time it is in Lima."""

from datetime import datetime
from zoneinfo import ZoneInfo

from legato.tool import ToolError, tool

notes = {}


@tool
def clock(zone: str = "UTC") -> str:
    """The time in a time zone.

    Args:
        zone: its name in the tz database, for example Europe/Oslo.
    """
    try:
        return datetime.now(ZoneInfo(zone)).isoformat(timespec="minutes")
    except (KeyError, ValueError):
        raise ToolError(f"There is no time zone {zone!r}.") from None


@tool(approval="Write down {text!r} as {name!r}?")
def write_note(name: str, text: str) -> str:
    """Keep a note under a name, for later."""
    notes[name] = text
    return f"{len(notes)} notes are kept."

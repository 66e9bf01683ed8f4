"""Agents of frameworks in a server of their own, in an environment of their own, and what was said with them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from facts import stored
from legato import Client
from legato.client import AnswerStream, LogEvent, PermissionEvent, StreamEvent
from legato.event import Event
from processes import Server, running
from running import check_log
from venvs import framework_python

HERE = Path(__file__).parent
AGENTS = HERE / "frameworks"
FRAMEWORKS = ["pydantic-ai", "openai-agents", "langgraph"]


@dataclasses.dataclass
class Said:
    """One answer.

    Attributes:
        events: of its run, as the log has them.
        stream: what a reader of the Mix stream got.
    """

    events: list[Event]
    stream: list[StreamEvent]

    @property
    def end(self) -> Event:
        return self.events[-1]

    @property
    def message(self) -> dict[str, Any]:
        """The whole message, as the terminal event has it."""
        data = self.end.data
        return dict(data["message"] if "message" in data and isinstance(data["message"], dict) else data["partial"])

    def types(self) -> list[str]:
        """The types of the events, deltas of one part as one."""
        types = [event.type for event in self.events]
        return [type for place, type in enumerate(types) if not place or type != types[place - 1]]


class Talk:
    """A session with the agent of a framework."""

    def __init__(self, client: Client, notes: Path) -> None:
        self.client = client
        self.session = client.sessions.create().id
        self._notes = notes
        notes.touch()

    def say(
        self,
        text: str,
        *,
        agent: str = "agent",
        grant: bool | None = None,
        fields: dict[str, Any] | None = None,
        stop_at: Callable[[StreamEvent], bool] | None = None,
    ) -> Said:
        """Say something and read the answer to its end; answer what it asks with ``grant``.

        ``fields`` are sent with the text. The run is cancelled at the first event for which ``stop_at`` is true.
        """
        stream: list[StreamEvent] = []
        sent = self.client.messages.send(self.session, text=text, agent=agent, metadata=fields)
        events = self.client.streaming.stream_events(session_id=self.session, last_event_id=sent.cursor, quiet=True)
        with AnswerStream(self.client, sent, events) as answer:
            for event in answer:
                stream.append(event)
                if isinstance(event, PermissionEvent) and grant is not None:
                    answers = self.client.permissions
                    (answers.grant if grant else answers.deny)(event.data.id)
                if stop_at and stop_at(event):
                    answer.cancel()
                    stop_at = None
        return Said([event for event in self.log() if event.run == answer.run_id], stream)

    def log(self) -> list[Event]:
        """The session's log, every rule of which has been checked."""
        events: list[LogEvent] = []
        after: int | None = 0
        while after is not None:
            page = self.client.sessions.events(self.session, after=after)
            events += page.events
            after = page.next
        log = [stored(e.type, e.data, e.offset, e.at, e.run) for e in events]
        check_log(log)
        return log

    def notes(self) -> list[str]:
        """What model and tools have left since the last call of this."""
        lines = self._notes.read_text().splitlines()
        self._notes.write_text("")
        return lines

    def noted(self, line: str) -> bool:
        """Wait until model or tools have left this line. The bound is a safety net."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if line in self._notes.read_text().splitlines():
                return True
            time.sleep(0.02)
        return False


def environment(**more: str) -> dict[str, str]:
    """Of a server: without the keys of any vendor."""
    keys = [name for name in os.environ if re.fullmatch(r"(OPENAI|ANTHROPIC|LANGSMITH|LANGCHAIN|LOGFIRE)_.*", name)]
    return {**dict.fromkeys(keys, ""), **more}


@contextlib.contextmanager
def serving(framework: str, target: Path, store: str, **env: str) -> Iterator[Server]:
    """``legato serve`` with a file, in the framework's own environment."""
    arguments = ("legato", "serve", str(target), "--port", "0", "--store", store)
    with running(*arguments, python=framework_python(framework), env=environment(**env)) as server:
        yield server


@contextlib.contextmanager
def scripted(framework: str, folder: Path, store: str = "memory:", **env: str) -> Iterator[Server]:
    """A server with the script's model behind an agent of the framework; ``PACE`` are its seconds for a word."""
    target = AGENTS / f"agent_{framework.replace('-', '_')}.py"
    with serving(
        framework, target, store, NOTES=str(folder / "notes"), CHECKPOINTS=str(folder / "checkpoints.db"), **env
    ) as server:
        yield server

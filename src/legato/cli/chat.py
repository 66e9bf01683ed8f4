"""``legato chat``: a conversation in the terminal.

Two threads feed one queue, the stream's events and the keyboard's lines, and the main thread takes from it: so a
question can be answered elsewhere while it is being asked here.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import click

from ..check import digits
from ..errors import LegatoError
from .connect import agent_option, come_back, connected, explained, key_option, url_option, why
from .failure import debug_option
from .text import line, typed

if TYPE_CHECKING:
    from ..client import Client, ClientError, EventStream, NotificationEvent, PermissionEvent, SendResult, StreamEvent
    from .terminal import TerminalView

    Item: TypeAlias = "StreamEvent | _Line | _Cut | _Ended | _Trouble"

QUIET = 0.15
"""Seconds without an event after which a question is asked: one that was answered long ago is answered by then."""
WAITING = 1000
"""Events that wait while the user types; then the reader waits, and the server does not mind."""
RESEND = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between tries of sending a message."""


@click.command(short_help="Talk to an agent, live.")
@click.argument("session", required=False)
@url_option
@key_option
@agent_option
@click.option("--thinking", is_flag=True, help="Show the model's reasoning, not just that there was one.")
@debug_option
def chat(session: str | None, url: str, agent: str | None, thinking: bool) -> None:
    """Talk to an agent; with SESSION, go on with an earlier conversation.

    Ctrl-C stops an answer, and leaves when there is none; Ctrl-D leaves. An answer that is going on when you leave is
    written to its end, and is there when you come back. When the line is cut, the chat comes back by itself.

    \b
    Examples:
      legato chat
      legato chat s_4Rk2c0pT --thinking
      legato chat --url http://10.0.0.5:8088 --agent support
      echo "What is a cursor?" | legato chat
    """
    from rich.console import Console

    from .terminal import TerminalView

    view = TerminalView(Console(highlight=False), thinking=thinking)
    with connected(url) as client:
        Chat(client, view, url=url, session=session, agent=agent).run()


@dataclass(frozen=True, slots=True)
class _Line:
    text: str | None


@dataclass(frozen=True, slots=True)
class _Cut:
    attempt: int
    wait: float
    error: ClientError | None


@dataclass(frozen=True, slots=True)
class _Ended:
    error: LegatoError | None


@dataclass(frozen=True, slots=True)
class _Trouble:
    text: str


class _Leave(Exception):
    """The user wants to go."""


class Chat:
    """One conversation, from the first prompt to the farewell.

    Args:
        client: of the server.
        view: where it is shown.
        url: the server's address, for the farewell.
        session: to go on with; None begins one with the first message.
        agent: who answers; None for the default.
    """

    def __init__(self, client: Client, view: TerminalView, *, url: str, session: str | None, agent: str | None) -> None:
        from .keyboard import Keyboard

        self._client = client
        self._view = view
        self._url = url
        self._session = session
        self._agent = agent
        self._items: queue.Queue[Item] = queue.Queue(WAITING)
        self._keyboard = Keyboard(lambda text: self._items.put(_Line(text)))
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._typed: list[str | None] = []  # lines that came when nothing was asked any more
        self._runs: dict[str, None] = {}  # that have not ended, in their order: the first is going on
        self._ended: set[str] = set()
        self._asks: dict[str, PermissionEvent | NotificationEvent] = {}
        self._following = False
        self._cancelling = False
        self._cut = False
        self._stream: EventStream | None = None

    def run(self) -> None:
        """Talk until the user leaves.

        Raises:
            LegatoError, Failure: it cannot go on.
        """
        with self._interruptible():
            try:
                self._begin()
                while True:
                    self._follow()
                    self._converse()
            except (_Leave, KeyboardInterrupt):
                pass
            except LegatoError as exc:
                if exc.code == "session_not_found":
                    self._session = None  # there is nothing to come back to
                raise
            finally:
                self._farewell()

    def _begin(self) -> None:
        if self._interactive:
            try:
                import readline  # noqa: F401  # makes input() edit lines
            except ImportError:
                pass
        if self._session is not None:
            self._resume(self._session)
        elif self._interactive:
            self._view.say("Type a message. Ctrl-C stops an answer, Ctrl-D leaves.")

    def _resume(self, session: str) -> None:
        # In this order: what is said meanwhile is then seen twice rather than not at all, and cut out here.
        position = self._open(session)
        messages = self._client.sessions.messages(session)
        running = self._running(session, position)
        if running is not None:
            self._runs[running] = None
            mine = (place for place, message in enumerate(messages) if message.id.startswith(f"{running}~"))
            messages = messages[: next(mine, None)]
        self._view.history(messages)

    def _open(self, session: str) -> str:
        """Begin to read the session's stream; the position from which it reads."""
        self._stream = self._client.streaming.stream_events(session_id=session, on_reconnect=self._on_reconnect)
        first = next(self._stream, None)
        threading.Thread(target=self._read, args=(self._stream,), daemon=True, name="legato-stream").start()
        return first.id if first is not None else ""

    def _running(self, session: str, position: str) -> str | None:
        """The run that the stream begins with, if one is going on."""
        from ..client import APIError

        after = digits(position)
        if after is None:
            return None
        try:
            events = self._client.sessions.events(session, after=after, limit=1).events
        except APIError:
            return None  # a server without this operation
        return events[0].run if events else None

    # The other threads ------------------------------------------------------------------------------------------------

    def _read(self, stream: EventStream) -> None:
        error: LegatoError | None = None
        try:
            for event in stream:
                if event.event != "heartbeat":
                    self._items.put(event)
        except LegatoError as exc:
            error = exc
        self._items.put(_Ended(error))

    def _on_reconnect(self, attempt: int, wait: float, error: ClientError | None) -> None:
        self._items.put(_Cut(attempt, wait, error))

    def _cancel(self, session: str, run: str) -> None:
        try:
            self._client.sessions.cancel(session, run_id=run or None, retries=None)
        except LegatoError as exc:
            text = explained(exc, self._url).message
            self._items.put(_Trouble(f"the answer could not be stopped ({text}); Ctrl-C again leaves"))

    # Ctrl-C -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _on_interrupt(self, number: int, frame: object) -> None:
        if self._session is None or not self._runs or not self._following or self._cancelling:
            raise KeyboardInterrupt
        self._cancelling = True
        # In a thread: what was interrupted may hold the locks that a request needs.
        arguments = (self._session, next(iter(self._runs)))
        threading.Thread(target=self._cancel, args=arguments, daemon=True, name="legato-cancel").start()

    # Following --------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Show what has come, and what comes until every run has ended."""
        self._cancelling = False
        while self._runs or not self._items.empty():
            self._following = bool(self._runs)
            self._take()
        self._following = False
        self._asks.clear()

    def _take(self) -> None:
        """Take one item from the queue, or ask what is to be asked when there is none for a moment."""
        waits = bool(self._asks) and not self._view.prompting
        try:
            self._handle(self._items.get(timeout=QUIET if waits else None))
        except queue.Empty:
            self._ask(next(iter(self._asks.values())))

    def _handle(self, item: Item) -> None:
        match item:
            case _Line(text):
                self._answer(text)
            case _Cut():
                self._show_lost(item)
            case _Trouble(text):
                self._view.say(text, "bad")
            case _Ended(error):
                if error is None:
                    raise _Leave
                raise error
            case event:
                self._show(event)

    def _show_lost(self, lost: _Cut) -> None:
        if not self._runs:
            return  # nobody waits for anything
        text = f"{why(lost.error)}, retrying in {lost.wait:.1f} s…"
        if lost.attempt == 1 or not self._interactive:
            self._view.say(text, "warning")
        else:
            self._view.status(text)
        self._cut = True

    def _show(self, event: StreamEvent) -> None:
        if event.event == "connected":
            self._show_connected(reset=event.data.reset)
            return
        self._view.show(event)
        run = event.data.run_id or ""
        match event.event:
            case "user_message_created" if run not in self._ended:
                self._runs[run] = None
            case "permission" | "notification":
                self._asks[event.data.id] = event
            case "permission_resolved" | "notification_resolved":
                self._asks.pop(event.data.id, None)
            case "complete" | "error":
                self._runs.pop(run, None)
                self._ended.add(run)
            case "session_deleted":
                self._session = None  # there is nothing to come back to

    def _show_connected(self, *, reset: bool) -> None:
        if reset:
            self._view.say("the server has lost part of this conversation; this is what it still has", "bad")
        elif self._cut:
            self._view.say("reconnected", "good")
        self._cut = False

    # Questions --------------------------------------------------------------------------------------------------------

    def _ask(self, event: PermissionEvent | NotificationEvent) -> None:
        from .terminal import question

        self._view.prompt(question(event))
        if self._typed:
            self._answer(self._typed.pop(0))
        else:
            self._keyboard.ask()

    def _answer(self, text: str | None) -> None:
        if not self._asks:
            self._typed.append(text)
            return
        if text is None and self._interactive:
            raise _Leave
        self._view.entered(None if self._interactive else text or "(no more input)")
        if text is None:
            self._typed.append(None)  # so is it for the next question, and for the prompt
        id, event = next(iter(self._asks.items()))
        try:
            given = self._respond(event, "no" if text is None else text.strip())
        except LegatoError as exc:
            given = True
            late = exc.code == "ask_not_found"
            self._view.say("answered already, or too late" if late else exc.message, "warning")
        if given or text is None:
            self._asks.pop(id, None)

    def _respond(self, event: PermissionEvent | NotificationEvent, text: str) -> bool:
        """Give the server the answer; False when ``text`` is none."""
        if event.event == "permission":
            answers = {"y": self._client.permissions.grant, "n": self._client.permissions.deny}
            give = answers.get(text[:1].lower())
            if give is not None:
                give(event.data.id)
            return give is not None
        data = event.data
        respond = self._client.notifications.respond
        if data.response_type == "choice":
            text = _choice(text, data.choices or [])
        elif data.response_type != "text":
            respond(data.id, type="acknowledge")
            return True
        if text:
            respond(data.id, type="choice" if data.response_type == "choice" else "text", value=text)
        return bool(text)

    # Sending ----------------------------------------------------------------------------------------------------------

    def _converse(self) -> None:
        text = self._read_message()
        if text is None:
            raise _Leave
        if not text.strip():
            return
        try:
            self._send(typed(text))
        except LegatoError as exc:
            if not self._interactive:
                raise
            self._view.say(f"not sent: {explained(exc, self._url).message}", "bad")

    def _read_message(self) -> str | None:
        """What the user wants to say; None at the end of the input."""
        if self._typed:
            return self._typed.pop(0)
        if self._interactive and not self._keyboard.pending:
            try:
                text = input("> ")
            except (EOFError, KeyboardInterrupt):
                self._view.write("\n")
                raise _Leave from None
            self._view.entered()
            return text
        return self._await_message()

    def _await_message(self) -> str | None:
        """The next line of the keyboard; what happens meanwhile is shown."""
        if self._interactive:
            self._view.prompt("> ")
        self._keyboard.ask()
        while True:
            item = self._items.get()
            if isinstance(item, _Line):
                if self._interactive:
                    self._view.entered()
                elif item.text is not None:
                    self._view.write(f"> {item.text}\n", "user")
                return item.text
            self._handle(item)

    def _send(self, text: str) -> None:
        if self._session is None:
            title = line(text, 80)
            self._session = self._client.sessions.create(title=title, agent=self._agent).id
            self._open(self._session)
        sent = self._deliver(self._session, text)
        if sent.message_id:
            self._view.mine.add(sent.message_id)
        run = sent.run_id or ""
        if run == "" or run not in self._ended:
            self._runs[run] = None

    def _deliver(self, session: str, text: str) -> SendResult:
        """Send a message, and again when nobody answers: under one key, so that it is said once."""
        from ..client import APIError, ConnectionFailed, ConnectionLost

        key = str(uuid.uuid4())
        for wait in (*RESEND, None):
            try:
                return self._client.messages.send(
                    session, text=text, agent=self._agent, idempotency_key=key, retries=None
                )
            except (ConnectionFailed, ConnectionLost, APIError) as exc:
                passing = not isinstance(exc, APIError) or exc.status_code in (429, 502, 503, 504)
                if wait is None or not passing:
                    raise
                self._view.say(f"not sent yet ({why(exc)}), retrying in {wait:g} s…", "warning")
                time.sleep(wait)
        raise AssertionError("The last try returns or raises.")

    # Leaving ----------------------------------------------------------------------------------------------------------

    def _farewell(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._session is None:
            return
        going_on = "the answer goes on; " if self._runs else ""
        self._view.say(f"{going_on}to come back: {come_back(self._session, self._url)}")


def _choice(text: str, choices: list[str]) -> str:
    """The choice that ``text`` means, by its number or by its words; empty when it means none."""
    number = int(text) if text.isdecimal() and len(text) < 10 else 0  # people may have digits of their own
    if 1 <= number <= len(choices):
        return choices[number - 1]
    return next((choice for choice in choices if choice.casefold() == text.casefold()), "")

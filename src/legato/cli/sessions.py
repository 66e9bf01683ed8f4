"""``legato send``, ``tail``, ``log`` and ``sessions``: for scripts, and for looking at what is there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

from ..check import digits
from ..json import JsonObject
from .connect import agent_option, api_key_option, come_back, connected, key_option, quiet_interrupt, url_option, why
from .failure import Failure, Misuse, debug_option
from .text import escaped, line, safe, typed

if TYPE_CHECKING:
    from ..client import Client, ClientError, LogEvent, NotificationEvent, PermissionEvent, StreamEvent

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object per line, nothing left out.")

_PAGE = 500


# Send -----------------------------------------------------------------------------------------------------------------


@click.command(short_help="Send one message and print the answer.")
@click.argument("text")
@url_option
@api_key_option
@click.option("--session", metavar="ID", help="Go on with this conversation, instead of beginning one.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Wait for the answer and print it.")
@click.option("--key", metavar="KEY", help="The same KEY and TEXT again give the same answer, not a second one.")
@agent_option
@debug_option
@quiet_interrupt
def send(text: str, url: str, session: str | None, follow: bool, key: str | None, agent: str | None) -> None:
    """Send TEXT ("-" reads it from standard input) and print the answer as it comes.

    Standard output gets the answer's text and nothing else; the session's id and whatever happens go to standard
    error. With --no-follow, the session's id goes to standard output. The status is 1 when the run failed or was
    cancelled. Ctrl-C leaves; the answer is written to its end all the same.

    \b
    Examples:
      legato send "What is a cursor?"
      git diff | legato send - --agent reviewer > review.md
      legato send "And then?" --session s_4Rk2c0pT
      SESSION=$(legato send --no-follow "Take your time.")
    """
    if key is not None and session is None:
        raise Misuse("--key needs --session: a key is known within its session")
    message = sys.stdin.buffer.read().decode("utf-8", "replace") if text == "-" else typed(text)
    if not message.strip():
        raise Misuse("There is nothing to send; give the message as TEXT, or - to read it from standard input.")
    with connected(url) as client:
        if session is None:
            session = client.sessions.create(title=line(message, 80), agent=agent).id
        if follow:
            click.echo(f"session {line(session)}", err=True)
            _print_answer(client, message, session, key, agent, come_back(session, url))
        else:
            client.messages.send(session, text=message, agent=agent, idempotency_key=key)
            click.echo(line(session))


def _print_answer(
    client: Client, message: str, session: str, key: str | None, agent: str | None, come_back: str
) -> None:
    from ..client import CompleteEvent, ContentEvent, ErrorEvent, NotificationEvent, PermissionEvent

    lost = _Outage()
    written = _Written()
    answer = client.ask(message, session_id=session, agent=agent, idempotency_key=key, on_reconnect=lost)
    for event in answer:
        lost.over()
        match event:
            case ContentEvent() if event.data.parent_tool_call_id is None:
                written.add(event.data.content, event.data.assistant_message_id)
            case PermissionEvent() | NotificationEvent():
                click.echo(f"the agent asks: {line(_question(event), None)}\nto answer: {come_back}", err=True)
            case _:
                pass
    written.end()
    match answer.outcome:
        case ErrorEvent(data=data):
            raise Failure(f"the run failed: {data.error} ({data.type})")
        case CompleteEvent(data=data) if data.finish_reason != "cancelled":
            pass
        case _:
            raise Failure("the run was cancelled")


def _question(event: PermissionEvent | NotificationEvent) -> str:
    if event.event == "permission":
        return f"{event.data.tool_name}: {event.data.description}"
    return f"{event.data.title}: {event.data.message}"


class _Written:
    """Standard output, with a line end between the messages of one answer, and at its end."""

    def __init__(self) -> None:
        self._message: str | None = None
        self._fresh = True

    def add(self, text: str, message: str | None) -> None:
        if message != self._message:
            self.end()
            self._message = message
        click.echo(safe(text), nl=False)
        self._fresh = text.endswith("\n")

    def end(self) -> None:
        if not self._fresh:
            click.echo()
            self._fresh = True


class _Outage:
    """Tells on standard error of a connection that was lost, and that it is back."""

    def __init__(self) -> None:
        self._cut = False

    def __call__(self, attempt: int, wait: float, error: ClientError | None) -> None:
        click.echo(f"{why(error)}, retrying in {wait:.1f} s…", err=True)
        self._cut = True

    def over(self) -> None:
        if self._cut:
            click.echo("reconnected", err=True)
            self._cut = False


# Tail -----------------------------------------------------------------------------------------------------------------


def _start(ctx: click.Context, param: click.Parameter, value: str) -> str | int:
    if value in ("start", "turn", "tail"):
        return value
    offset = digits(value)
    if offset is not None:
        return offset
    raise click.BadParameter(f"expected start, turn, tail or an offset, not {value!r}.")


@click.command(short_help="Follow a session's events.")
@click.argument("session")
@url_option
@key_option
@click.option(
    "--from",
    "start",
    callback=_start,
    metavar="start|turn|tail|OFFSET",
    default="turn",
    show_default=True,
    help="Begin with the first event, with the answer that is going on (else with what comes), with what "
    "comes, or behind an offset.",
)
@json_option
@debug_option
@quiet_interrupt
def tail(session: str, url: str, start: str | int, as_json: bool) -> None:
    """Follow the events of SESSION until it is deleted, one line for each: its offset, its name, its data.

    A lost connection comes back by itself, and goes on behind the last event; standard error tells.

    \b
    Examples:
      legato tail s_4Rk2c0pT
      legato tail s_4Rk2c0pT --from start --json | jq .data
      legato tail s_4Rk2c0pT --from 120
    """
    lost = _Outage()
    width = _width()
    with connected(url, give_up_after=None) as client:
        stream = client.streaming.stream_events(
            session_id=session, from_=None if start == "turn" else start, on_reconnect=lost
        )
        for event in stream:
            lost.over()
            if event.event == "connected" and event.data.reset:
                click.echo("the log does not go on where it was left; this is what it has", err=True)
            if event.event not in ("connected", "heartbeat"):
                click.echo(_event_json(event) if as_json else _event_line(event, width))


def _event_json(event: StreamEvent) -> str:
    import msgspec

    number = digits(event.id)
    offset = event.id if number is None else number
    data = {name: value for name, value in msgspec.to_builtins(event.data).items() if value is not None}
    return escaped(msgspec.json.encode({"offset": offset, "event": event.event, "data": data}).decode())


def _event_line(event: StreamEvent, width: int) -> str:
    import msgspec

    data = {
        name: value
        for name, value in msgspec.to_builtins(event.data).items()
        if name != "type" or event.event == "error"
    }
    return _row(event.id, event.event, data, width)


def _row(offset: str | int, name: str, data: JsonObject, width: int, before: str = "") -> str:
    head = f"{line(str(offset), 16):>6}  {before}{line(name, 40):<24} "
    return head + line("  ".join(_fields(data)), max(width - len(head), 20))


_FIRST = ("content", "text", "name", "toolName", "error", "message")


def _fields(data: JsonObject) -> Iterator[str]:
    """The fields as words, those that a person looks for first."""
    names = [name for name in _FIRST if name in data] + [name for name in data if name not in _FIRST]
    for name in names:
        value = data[name]
        if isinstance(value, str) and name in _FIRST:
            yield repr(value[:400])
        elif value is not None and value != "":
            yield f"{name}={str(value)[:400]}"


def _width() -> int:
    """Columns for a line; what is not shown on a terminal may be longer."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 400


# Log ------------------------------------------------------------------------------------------------------------------


@click.command(short_help="Print a session's log.")
@click.argument("session")
@url_option
@key_option
@click.option(
    "--after",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="OFFSET",
    help="Only what comes behind this offset.",
)
@json_option
@debug_option
@quiet_interrupt
def log(session: str, url: str, after: int, as_json: bool) -> None:
    """Print the log of SESSION as the server keeps it, and end.

    \b
    Examples:
      legato log s_4Rk2c0pT
      legato log s_4Rk2c0pT --json > session.jsonl
      legato log s_4Rk2c0pT --after 120
    """
    show: Callable[[LogEvent], str] = _log_json if as_json else _log_line(_width())
    with connected(url) as client:
        for event in _log(client, session, after):
            click.echo(show(event))


def _log(client: Client, session: str, after: int) -> Iterator[LogEvent]:
    position: int | None = after
    while position is not None:
        page = client.sessions.events(session, after=position, limit=_PAGE)
        yield from page.events
        position = page.next


def _log_json(event: LogEvent) -> str:
    import msgspec

    return escaped(msgspec.json.encode(event).decode())


def _log_line(width: int) -> Callable[[LogEvent], str]:
    def show(event: LogEvent) -> str:
        at = datetime.fromtimestamp(event.at).astimezone()
        return _row(event.offset, event.type, event.data, width, f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}  ")

    return show


# Sessions -------------------------------------------------------------------------------------------------------------


@click.command(short_help="List the server's sessions.")
@url_option
@key_option
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, at most.")
@json_option
@debug_option
def sessions(url: str, limit: int, as_json: bool) -> None:
    """List the sessions, those last written to first.

    \b
    Examples:
      legato sessions
      legato sessions --limit 1000 --json | jq -r .id
    """
    import msgspec

    with connected(url) as client:
        found = client.sessions.list(limit=limit)
    if as_json:
        for session in found:
            data = {name: value for name, value in msgspec.to_builtins(session).items() if value is not None}
            click.echo(escaped(msgspec.json.encode(data).decode()))
        return
    if not found:
        click.echo("No sessions yet; `legato chat` begins one.", err=True)
    width = _width()
    for session in found:
        count = f"{session.user_message_count} message{'' if session.user_message_count == 1 else 's'}"
        head = f"{line(session.id, 40):<26} {_local(session.created_at):<16} {count:>12}"
        title = session.title or session.first_user_message or ""
        click.echo(f"{head}  {line(title, max(width - len(head) - 2, 10))}")


def _local(time: str) -> str:
    try:
        return f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:  # another server's idea of a time
        return line(time, 16)

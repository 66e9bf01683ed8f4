"""How a session's events look on a terminal, or in a file when there is none. It writes; it never reads.

Text is written as it comes and never again, so it does not flicker and all of it can be scrolled back to. Only the
last line may be transient: what a tool is doing, how long a thought has become. Without a terminal there is no such
line.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.style import Style

from ..client.events import (
    CancelRequestedEvent,
    CompleteData,
    CompleteEvent,
    ContentEvent,
    DeltaData,
    ErrorData,
    ErrorEvent,
    HeartbeatEvent,
    NotificationData,
    NotificationEvent,
    NotificationResolvedData,
    NotificationResolvedEvent,
    PermissionData,
    PermissionEvent,
    PermissionResolvedData,
    PermissionResolvedEvent,
    RunStartedEvent,
    RunWaitingEvent,
    SessionDeletedEvent,
    SessionRewoundEvent,
    StreamEvent,
    ThinkingEvent,
    ToolExecutionCompleteData,
    ToolExecutionCompleteEvent,
    ToolExecutionStartData,
    ToolExecutionStartEvent,
    ToolUseParameterStreamingCompleteData,
    ToolUseParameterStreamingCompleteEvent,
    ToolUseStartData,
    ToolUseStartEvent,
    UserMessageCreatedData,
    UserMessageCreatedEvent,
)
from ..client.models import BackendMessage
from .text import cells, line, safe

STYLES: Mapping[str, Style] = {
    "answer": Style(),
    "prompt": Style(bold=True),
    "user": Style(bold=True),
    "quiet": Style(dim=True),
    "good": Style(color="green"),
    "warning": Style(color="yellow"),
    "bad": Style(color="red"),
}

_ERASE = Control((ControlType.CURSOR_MOVE_TO_COLUMN, 0), (ControlType.ERASE_IN_LINE, 2))

LEVELS = {"info": "quiet", "warning": "warning", "error": "bad", "question": "prompt"}


class TerminalView:
    """Writes events to ``console``.

    Args:
        console: where to.
        thinking: write the model's reasoning out, instead of one line about it.

    Attributes:
        prompting: the last thing written is a prompt that has not been answered.
        mine: ids of messages that were typed here: they are on the screen already.
    """

    def __init__(self, console: Console, *, thinking: bool = False) -> None:
        self.prompting = False
        self.mine: set[str] = set()
        self._console = console
        self._thinking = thinking
        self._transient = console.is_terminal and not console.is_dumb_terminal
        self._fresh = True  # the cursor stands at the beginning of a line
        self._status = ""
        self._place: tuple[object, ...] | None = None  # message and part that the last text belonged to
        self._thought = 0  # characters of the thought that is being thought
        self._tools: dict[str, _ToolLine] = {}

    # Writing ----------------------------------------------------------------------------------------------------------

    def write(self, text: str, style: str = "answer") -> None:
        """Write a piece of text behind what stands there."""
        self._clear_status()
        if self.prompting:
            self.prompting = False
            self._put("\n")
        self._put(safe(text), style)

    def say(self, text: str, style: str = "quiet", *, indent: str = "") -> None:
        """Write one line, on its own, whatever its length."""
        self._place = None
        self._end_line()
        self._put(f"{indent}{line(text, None)}\n", style)

    def prompt(self, text: str) -> None:
        """Write a prompt; what is typed goes behind it."""
        self._place = None
        self._end_line()
        self._put(text, "prompt")
        self.prompting = True

    def entered(self, text: str | None = None) -> None:
        """Take note that the prompt was answered; ``text`` is what was, where no terminal has shown it."""
        self.prompting, self._fresh, self._place = False, True, None
        if text is not None:
            self._put(f"{safe(text)}\n", "user")

    def status(self, text: str) -> None:
        """Show one transient line, which the next thing written replaces. Only on a terminal."""
        if not self._transient:
            return
        if not self._status:
            self._end_line()
        # Erased and written in one go, so that it does not flicker.
        self._status = line(text, self._console.width - 1)
        self._console.print(Segments([_ERASE.segment, Segment(self._status, STYLES["quiet"])]), end="", soft_wrap=True)

    def _clear_status(self) -> None:
        if self._status:
            self._status = ""
            self._console.control(_ERASE)

    def _end_line(self) -> None:
        self._clear_status()
        self.prompting = False
        if not self._fresh:
            self._put("\n")

    def _put(self, text: str, style: str = "answer") -> None:
        if text:
            # Segments are written as they are. Rich's own layout would take blanks from the ends of pieces.
            self._console.print(Segments([Segment(text, STYLES[style])]), end="", soft_wrap=True)
            self._fresh = text.endswith("\n")

    # Events -----------------------------------------------------------------------------------------------------------

    def show(self, event: StreamEvent) -> None:
        """Write what an event says. Questions are written, not asked."""
        if not isinstance(event, ThinkingEvent | HeartbeatEvent):
            self._end_thought()
        match event:
            case UserMessageCreatedEvent(data=data):
                self._user_message(data)
            case RunWaitingEvent():
                self.say("waiting for a place…", "warning")
            case RunStartedEvent(data=data) if data.attempt > 1:
                self.say(f"the server was interrupted; attempt {data.attempt}", "warning")
            case ThinkingEvent(data=data):
                self._think(data)
            case ContentEvent(data=data):
                self._delta(data)
            case ToolUseStartEvent(data=data):
                self._tool_called(data)
            case ToolUseParameterStreamingCompleteEvent(data=data):
                self._tool_ready(data)
            case ToolExecutionStartEvent(data=data):
                self._tool_started(data)
            case ToolExecutionCompleteEvent(data=data):
                self._tool_completed(data)
            case PermissionEvent(data=data):
                self._asked(data)
            case PermissionResolvedEvent(data=data):
                self._permission_resolved(data)
            case NotificationEvent(data=data):
                self._notified(data)
            case NotificationResolvedEvent(data=data):
                self._notification_resolved(data)
            case CancelRequestedEvent():
                self.say("stopping…", "warning")
            case CompleteEvent(data=data):
                self._completed(data)
            case ErrorEvent(data=data):
                self._failed(data)
            case SessionDeletedEvent():
                self.say("the session has been deleted", "warning")
            case SessionRewoundEvent():
                self.say("the end of the conversation has been taken back", "warning")

    def _user_message(self, data: UserMessageCreatedData) -> None:
        if data.message_id not in self.mine:
            self._end_line()
            self.write(f"> {data.content}\n", "user")

    def _delta(self, data: DeltaData) -> None:
        if data.parent_tool_call_id is not None:
            self._think(data)
            return
        self._begin(("text", data.assistant_message_id, data.part))
        self.write(data.content)

    def _begin(self, place: tuple[object, ...]) -> None:
        """Begin on a new line when the text belongs to another part than the text before."""
        if place != self._place:
            self._end_line()
            self._place = place

    def _think(self, data: DeltaData) -> None:
        if self._thinking:
            self._begin(("thinking", data.assistant_message_id, data.part))
            self.write(data.content, "quiet")
        else:
            self._thought += len(data.content)
            self.status(f"thinking… {self._thought} characters")

    def _end_thought(self) -> None:
        if self._thought:
            self.say(f"thought, {self._thought} characters")
            self._thought = 0

    def _tool_called(self, data: ToolUseStartData) -> None:
        self._tools[data.id] = _ToolLine(data.name)
        self._show_tools()

    def _tool_ready(self, data: ToolUseParameterStreamingCompleteData) -> None:
        self._tools.setdefault(data.id, _ToolLine(data.name)).arguments = data.input
        self._show_tools()

    def _tool_started(self, data: ToolExecutionStartData) -> None:
        tool = self._tools.setdefault(data.tool_call_id, _ToolLine(data.tool_name))
        tool.progress = data.progress
        self._show_tools()

    def _tool_completed(self, data: ToolExecutionCompleteData) -> None:
        tool = self._tools.pop(data.tool_call_id, _ToolLine(data.tool_name))
        tool.progress = data.progress or tool.progress
        mark, style = ("✓", "good") if data.success else ("✗", "bad")
        self.say(tool.describe(mark, self._console.width), style)
        self._show_tools()

    def _show_tools(self) -> None:
        if self._tools:
            running = [tool.describe("…", self._console.width) for tool in self._tools.values()]
            self.status("  ".join(running))

    def _asked(self, data: PermissionData) -> None:
        self.say(f"{line(data.tool_name)} asks for permission: {data.description}", "warning")
        about = [data.action, data.path or "", "" if data.params is None else str(data.params)]
        self.say(line(" ".join(filter(None, about)), 400), indent="  ")

    def _permission_resolved(self, data: PermissionResolvedData) -> None:
        by = {"timeout": ": nobody answered in time", "run_ended": ": the run has ended"}.get(data.by or "", "")
        self.say(f"permission {'granted' if data.granted else 'denied'}{by}", "good" if data.granted else "bad")

    def _notified(self, data: NotificationData) -> None:
        self.say(f"{data.title}: {data.message}", LEVELS.get(data.notification_type, "quiet"))
        for number, choice in enumerate(data.choices or (), 1):
            self.say(f"{number} {line(choice)}", indent="  ")

    def _notification_resolved(self, data: NotificationResolvedData) -> None:
        if data.by == "timeout":
            self.say("nobody answered in time")
        else:
            self.say(f"answered: {data.value}" if data.value else "acknowledged")

    def _completed(self, data: CompleteData) -> None:
        self._end_run()
        if data.finish_reason == "cancelled":
            self.say("cancelled", "warning")
        elif data.finish_reason not in (None, "stop"):
            self.say(f"ended: {data.finish_reason}", "warning")

    def _failed(self, data: ErrorData) -> None:
        self._end_run()
        self.say(f"failed: {data.error} ({data.type})", "bad")

    def _end_run(self) -> None:
        for tool in self._tools.values():
            self.say(tool.describe("·", self._console.width))
        self._tools.clear()
        self._place = None
        self._end_line()

    # What was said before ---------------------------------------------------------------------------------------------

    def history(self, messages: list[BackendMessage]) -> None:
        """Write the last of ``messages``, each cut to a few lines."""
        if len(messages) > SHOWN:
            self.say(f"({len(messages) - SHOWN} earlier messages)")
        for message in messages[-SHOWN:]:
            user = message.role == "user"
            text = message.user_input if user else message.assistant_response or message.user_input
            if text.strip():
                self.write(("> " if user else "") + _brief(text) + "\n", "user" if user else "answer")


SHOWN = 6
"""Messages of the history that are shown."""


class _ToolLine:
    def __init__(self, name: str) -> None:
        self.name = name
        self.arguments = ""
        self.progress = ""

    def describe(self, mark: str, width: int) -> str:
        """The call on one line: its arguments get what room the rest leaves."""
        head = f"{mark} {line(self.name, 40)}"
        tail = f": {line(self.progress, width // 2)}" if self.progress else ""
        room = width - 2 - cells(head) - cells(tail)
        arguments = line(self.arguments, room) if room > 8 and self.arguments not in ("", "{}") else ""
        return f"{head} {arguments}".rstrip() + tail


def _brief(text: str) -> str:
    lines = text.strip()[:600].splitlines()
    cut = len(lines) > 6 or len(text.strip()) > 600
    return "\n".join(lines[:6]) + (" …" if cut else "")


def question(event: PermissionEvent | NotificationEvent) -> str:
    """The prompt at which ``event`` is answered."""
    if isinstance(event, PermissionEvent):
        return "allow? [y/n] "
    match event.data.response_type:
        case "choice":
            return f"choose 1-{len(event.data.choices or ())}: "
        case "text":
            return "answer: "
        case _:
            return "[Enter] to acknowledge "

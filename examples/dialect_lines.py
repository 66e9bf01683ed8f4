"""A dialect for readers who want whole lines, such as a screen reader: ``Legato(dialects=[LINES])``."""

import msgspec

from legato import sse
from legato.dialect.common import idempotency_key, offset_cursor
from legato.errors import LegatoError, RunNotFound
from legato.event import Event, Offset, RefusalDelta, SessionCreated, SessionDeleted, TextDelta
from legato.server.operation import Dialect, Frames, Operation, Param, session_id
from legato.server.reply import Body, Follow, View, come_back
from legato.server.request import Request
from legato.sessions import Question, new_session


class Line(msgspec.Struct):
    text: str


class LinesFold:
    def __init__(self, rest: str = "", *, over: bool = False) -> None:
        self.rest, self.over = rest, over  # the line that is not whole yet; whether nothing can follow

    def copy(self) -> "LinesFold":
        return LinesFold(self.rest, over=self.over)

    def encode(self, event: Event) -> bytes:
        lines: list[str] = []
        if isinstance(event.fact, TextDelta | RefusalDelta):
            *lines, self.rest = (self.rest + event.fact.text).split("\n")
        elif event.fact.terminal or isinstance(event.fact, SessionDeleted):
            lines, self.over = [self.rest], True
        message = sse.SSEMessage(
            msgspec.json.encode(lines).decode(), event.type if self.over else "lines", str(event.offset)
        )
        return sse.encode(message) if lines else b""

    def heartbeat(self, cursor: Offset) -> bytes:
        return sse.HEARTBEAT


async def say(request: Request) -> Body:
    line, key = await request.body(Line), idempotency_key(request.headers.get("idempotency-key"))
    session, question = new_session(request.caller, key), Question(line.text, key=key)
    sent = await request.sessions.send(request.caller, session, question, begin=SessionCreated())
    return Body(202, {"answer": f"{request.prefix}/lines/{sent.run}"})


async def answer(request: Request) -> Follow:
    run, cursor = request.path["run"], offset_cursor(request.headers.get("last-event-id"))
    found = await request.sessions.find(request.caller, session_id(run.partition("~")[0]), run)
    if found is None:
        raise RunNotFound(run)
    exact = cursor is None or run == await request.sessions.run_at(request.caller, found.session, cursor)
    after = (cursor, 1) if cursor is not None and exact else (0, 0)  # behind the one frame of that event
    return request.life.follow_run(found, VIEW, "lines", after=after, first=b"retry: %d\n" % come_back(), exact=exact)


def refuse(error: LegatoError) -> Body:
    return Body(error.status, [error.code, error.message])


VIEW = View("lines", fold=lambda run: LinesFold())
RUN = Param("run", "path", "The run's id.", required=True)
LAST = Param("Last-Event-ID", "header", "The id of the last frame that you have.")
FRAMES = Frames("Lines", [list[str]], reset="when the cursor is none of this answer's, which then comes from its start")
ROUTES = [
    Operation(
        "sayLine", "POST", "/lines", "lines", "Say a line", say, {202: dict[str, str]}, body=Line,
        errors=(409,), error=list[str],
    ),
    Operation(
        "getLines", "GET", "/lines/{run}", "lines", "Read an answer", answer, {}, params=[RUN, LAST],
        errors=(404, 429), error=list[str], stream=FRAMES,
    ),
]  # fmt: skip
LINES = Dialect("lines", ROUTES, refuse, view={"lines": VIEW}.get, views=["lines"], roots=["lines"])

"""Traces: one span for each attempt of a run, with its steps, its tools and its requests to models, for OpenTelemetry.

A run may wait, and outlive the process that began it. So what ties its spans together stands in the log: with the
message the span of who sent it (W3C ``traceparent``), and with each ``run.started`` the attempt's own. A later attempt,
wherever it is made, is of the same trace, and has a link to each before it.

Names are those of OpenTelemetry's semantic conventions for generative AI, version 1.41, which still move: all of them
stand in ``NAMES``. No span has what people or models say, or what tools are given and give.

It needs ``opentelemetry-api``, and a tracer provider that the program has set up; without one nothing is recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import legato

from .about import ABOUT
from .errors import InvalidInput
from .event import CallStarted, Draft, Event, RunStarted, ToolBegun, ToolCompleted
from .logs import is_word
from .part import Usage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext

NAMES = {
    "operation": "gen_ai.operation.name",
    "provider": "gen_ai.provider.name",
    "agent": "gen_ai.agent.name",
    "session": "gen_ai.conversation.id",
    "request_model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "response": "gen_ai.response.id",
    "finish": "gen_ai.response.finish_reasons",
    "input": "gen_ai.usage.input_tokens",
    "cached": "gen_ai.usage.cache_read.input_tokens",
    "output": "gen_ai.usage.output_tokens",
    "reasoning": "gen_ai.usage.reasoning.output_tokens",
    "tool": "gen_ai.tool.name",
    "call": "gen_ai.tool.call.id",
    "tool_type": "gen_ai.tool.type",
    "error": "error.type",
    "server": "server.address",
    "port": "server.port",
    "run": "legato.run.id",
    "attempt": "legato.run.attempt",
    "step": "legato.step",
    "outcome": "legato.run.outcome",
}
"""What attributes are called; those that the conventions have no word for are ours."""
OURS = "legato"
"""The provider of an agent that has asked no model through us; the conventions want one of each."""
SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

CURRENT: ContextVar[RunSpan | None] = ContextVar("legato_run_span", default=None)
"""Of the run whose agent this is."""


def named(**attributes: object) -> dict[str, Any]:
    """Attributes by the names of the conventions, without those that are not known."""
    return {NAMES[name]: value for name, value in attributes.items() if value not in (None, "")}


class Traces:
    """Makes the spans of an application's runs, with the tracer provider of the process.

    Raises:
        InvalidInput: opentelemetry-api is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import trace
        except ImportError as exc:
            raise InvalidInput("Traces need the package opentelemetry-api: pip install 'legato[otel]'.") from exc
        self.api = trace
        self.tracer = trace.get_tracer("legato", legato.__version__, schema_url=SCHEMA)

    def sent(self) -> str | None:
        """The span in which a message is sent: that of the program around us, else what the request says; None if it is
        in none."""
        return self._told(self.api.get_current_span().get_span_context()) or ABOUT.get().trace or None

    def _told(self, context: SpanContext) -> str | None:
        if not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def _read(self, text: str | None) -> SpanContext | None:
        match = _PARENT.fullmatch(text or "")
        if match is None:
            return None
        trace, span, flags = (int(part, 16) for part in match.groups())
        context = self.api.SpanContext(trace, span, is_remote=True, trace_flags=self.api.TraceFlags(flags))
        return context if context.is_valid else None

    def run(
        self, *, session: str, run: str, agent: str, attempt: int, parent: str | None, at: float | None,
        before: Iterable[Event] = (),
    ) -> RunSpan:  # fmt: skip
        """The span of an attempt.

        Args:
            session, run, agent, attempt: of the run.
            parent: what ``sent`` gave.
            at: when the message was sent, seconds since the epoch, if this is the first attempt: it has waited since.
            before: the run's events so far, with those that began earlier attempts.
        """
        trace = self.api
        context = self._read(parent)
        earlier = [self._read(event.fact.trace) for event in before if isinstance(event.fact, RunStarted)]
        links: Sequence[Link] = [trace.Link(each) for each in earlier if each is not None]
        span = self.tracer.start_span(
            f"invoke_agent {agent}",
            # In the context of nobody: not of the request or the runner's task in which it happens to be made.
            context=trace.set_span_in_context(
                trace.INVALID_SPAN if context is None else trace.NonRecordingSpan(context), _nothing()
            ),
            kind=trace.SpanKind.INTERNAL,
            attributes=named(
                operation="invoke_agent", provider=OURS, agent=agent, session=session, run=run, attempt=attempt
            ),
            links=links,
            start_time=None if at is None else round(at * 1_000_000_000),
        )
        return RunSpan(self, span, self._told(span.get_span_context()))


def _nothing() -> Context:
    from opentelemetry.context import Context

    return Context()


class RunSpan:
    """One attempt of a run: its span, and those within it.

    Args:
        traces: makes them.
        span: of the attempt.
        told: its ``traceparent``.
    """

    def __init__(self, traces: Traces, span: Span, told: str | None) -> None:
        self.told = told
        self._traces = traces
        self._span = span
        self._context = traces.api.set_span_in_context(span, _nothing())
        self._step: Span | None = None
        self._steps = 0
        self._answered = False  # a tool has given something, so what comes now is another step
        self._tools: dict[str, Span] = {}
        self._over = False

    def enter(self) -> None:
        """From now on, spans that others make in this task are within this one."""
        from opentelemetry.context import attach

        CURRENT.set(self)
        attach(self._context)
        self._span.add_event("run.started")

    def heard(self, drafts: Iterable[Draft]) -> None:
        """Take note of what the agent says: of tools that begin and end, and of further steps."""
        for draft in drafts:
            fact = draft.fact
            if isinstance(fact, ToolBegun):
                self._begin_tool(fact.id, fact.name)
            elif isinstance(fact, ToolCompleted):
                self._end_tool(fact)
            elif fact.delta or isinstance(fact, CallStarted):
                self._in_step()

    def _in_step(self) -> Context:
        """The step that is going on; another one, if tools have answered since the last."""
        if self._step is None or self._answered:
            self._end_step()
            self._answered = False
            self._steps += 1
            self._step = self._traces.tracer.start_span(
                f"step {self._steps}", context=self._context, attributes=named(step=self._steps)
            )
        return self._around(self._step)

    def _around(self, span: Span) -> Context:
        context: Context = self._traces.api.set_span_in_context(span, _nothing())
        return context

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.end()
            self._step = None

    def _within(self) -> Context:
        """The step that is going on, be it that tools have answered in it."""
        return self._in_step() if self._step is None else self._around(self._step)

    def _begin_tool(self, id: str, name: str) -> Span:
        span = self._traces.tracer.start_span(
            f"execute_tool {name}",
            context=self._within(),
            attributes=named(operation="execute_tool", tool=name, call=id, tool_type="function"),
        )
        self._tools[id] = span
        return span

    def _end_tool(self, fact: ToolCompleted) -> None:
        span = self._tools.pop(fact.id, None)
        if span is None:
            span = self._begin_tool(fact.id, fact.name)  # it did not say when
            del self._tools[fact.id]
        if not fact.success:
            _fail(self._traces, span, "tool_error")
        span.end()
        self._answered = True

    @contextmanager
    def asking(self, **attributes: object) -> Iterator[Span]:
        """Around a request to a model."""
        trace = self._traces.api
        span = self._traces.tracer.start_span(
            f"chat {attributes['request_model']}",
            context=self._in_step(),
            kind=trace.SpanKind.CLIENT,
            attributes=named(operation="chat", **attributes),
        )
        self._span.set_attributes(named(provider=attributes.get("provider")))
        try:
            yield span
        except BaseException as exc:
            _fail(self._traces, span, type(exc).__name__)
            raise
        finally:
            span.end()

    def end(self, outcome: str, code: str, usage: Usage | None) -> None:
        """The attempt is over; ``outcome`` is how the run ended, or ``left`` if it goes on elsewhere. Idempotent."""
        if self._over:
            return
        self._over = True
        for tool in self._tools.values():
            _fail(self._traces, tool, "cancelled")
            tool.end()
        self._tools.clear()
        self._end_step()
        used = {} if usage is None else {
            "input": usage.input_tokens, "output": usage.output_tokens, "cached": usage.cached_tokens or None,
            "reasoning": usage.reasoning_tokens or None, "response_model": usage.model,
        }  # fmt: skip
        self._span.set_attributes(named(outcome=outcome, **used))
        if outcome == "failed":
            _fail(self._traces, self._span, code)
        self._span.end()


def _fail(traces: Traces, span: Span, kind: str) -> None:
    """Without the error's words, which may be a user's; so may a code be that is none."""
    kind = kind if is_word(kind) else "_OTHER"
    span.set_attributes(named(error=kind))
    span.set_status(traces.api.Status(traces.api.StatusCode.ERROR, kind))


@contextmanager
def asking(**attributes: object) -> Iterator[Span | None]:
    """Around a request to a model, by an agent; gives its span, if somebody traces. See ``NAMES``."""
    run = CURRENT.get()
    if run is None:
        yield None
        return
    with run.asking(**attributes) as span:
        yield span

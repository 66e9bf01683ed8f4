"""``legato serve``: an application on one port, from a target or with the guide."""

from __future__ import annotations

import contextlib
import functools
import gc
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import click

from ..check import digits
from ..errors import InvalidInput
from ..logs import Format, set_up
from .failure import Failure, Misuse, debug_option
from .settings import NUMBER_OR_TEXT, Configured, Misset, said

if TYPE_CHECKING:
    from ..agent import Agent
    from ..auth import APIKeys
    from ..retention import Retention
    from ..server.app import Legato
    from .target import Target

STORE = "sqlite:///legato.db"
EVERYWHERE = {"0.0.0.0", "::", ""}  # noqa: S104  # only recognised
SAME = {"localhost", "127.0.0.1"}

Command = TypeVar("Command", bound=Callable[..., Any])


def store_option(help: str) -> Callable[[Command], Command]:
    """Of a command about what a server has stored: which store that is."""
    return click.option(
        "--store", metavar="URL", envvar="LEGATO_STORE", show_envvar=True, default=STORE, show_default=True, help=help
    )


_APP_OPTIONS = ("heartbeat", "client", "cors", "allow_host", "bounds", "keys", "keep", "keep_pieces", "blobs")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+")
_MODEL_OPTIONS = ("base_url", "instructions", "background")


class ServeOptions(TypedDict):
    """The options of ``legato serve``, but for those of its process."""

    store: str | None
    models: tuple[str, ...]
    base_url: str | None
    instructions: str
    background: bool | None
    docs: Path | None
    pace: float
    grace: float
    wait: float
    lease_ttl: float
    heartbeat: float
    client: str
    cors: tuple[str, ...]
    allow_host: tuple[str, ...]
    bounds: tuple[str, ...]
    keep: str
    keep_pieces: str
    blobs: str | None
    keys: bool
    open_: bool
    metrics: str | None


@click.command(cls=Configured, short_help="Serve agents: yours, or the guide.")
@click.argument("target", required=False)
@click.option(
    "--store",
    metavar="URL",
    help=f"Where what is said is kept: sqlite:///FILE, postgresql://..., redis://... or memory:  [default: {STORE}]",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 lets other machines in.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8088,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="PROVIDER:NAME",
    help="Let a model answer: openai:gpt-5-mini, anthropic:..., ollama:llama3.2, openrouter:..., or chat:, responses:, "
    "messages: with --base-url. The key comes from the environment. May be repeated.",
)
@click.option(
    "--base-url",
    metavar="URL",
    help="Address of the model's server, up to the version: http://host:8000/v1. Its key, if it wants one, is taken "
    "from MODEL_API_KEY, or the provider's own variable.",
)
@click.option("--instructions", metavar="TEXT", default="", help="What the model is told before each conversation.")
@click.option(
    "--background/--no-background",
    default=None,
    help="Whether the model's provider writes answers in the background, so that they survive a crash of this server. "
    " [default: where the provider is known to support it]",
)
@click.option(
    "--docs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of documents for the guide to answer from.",
)
@click.option(
    "--pace",
    type=click.FloatRange(min=0),
    default=40.0,
    show_default=True,
    help="Pieces per second of the guide's answers; 0 is as fast as it can.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=25.0,
    show_default=True,
    help="How long answers may go on when the server is told to stop.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="How long to wait while another process has the store open, answering 503; if given, for a port that is "
    "taken, too.",
)
@click.option(
    "--lease-ttl",
    type=click.FloatRange(min=1, max=3600),
    metavar="SECONDS",
    default=15.0,
    show_default=True,
    help="With several nodes on one store: after how long without news of one the others take over what it ran.",
)
@click.option(
    "--heartbeat",
    type=click.FloatRange(min=0.1, max=3600),
    metavar="SECONDS",
    default=15.0,
    show_default=True,
    help="A silent stream says that it is alive this often.",
)
@click.option(
    "--client",
    metavar="NAME-X.Y.Z",
    default="python-0.8.1",
    show_default=True,
    help="What to take a client for that does not tell its version.",
)
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    help="Origin of a web site whose pages may use this server; may be repeated.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Name that the server goes by besides localhost, '*' for any; may be repeated. Needed with a --host that "
    "lets other machines in.",
)
@click.option("--keys", is_flag=True, help="Let in who has an API key of the store; `legato keys` makes them.")
@click.option(
    "--open",
    "open_",
    is_flag=True,
    help="Let in whoever reaches this server, also with a --host that lets other machines in.",
)
@click.option(
    "--limit",
    "bounds",
    multiple=True,
    metavar="NAME=VALUE",
    help="A limit that is not to be as it is, such as owner_sends=60 or max_body=1000000; may be repeated. "
    "docs/limits.md has all of them.",
)
@click.option(
    "--keep",
    type=NUMBER_OR_TEXT,
    metavar="TIME",
    default="0",
    help="Delete sessions in which nothing has been stored for so long, such as 90d; 0 keeps them.  [default: 0]",
)
@click.option(
    "--keep-pieces",
    type=NUMBER_OR_TEXT,
    metavar="TIME",
    default="0",
    help="After so long, join the pieces of answers that are kept; 0 keeps them as they are.  [default: 0]",
)
@click.option(
    "--blobs",
    metavar="URL",
    help="Where files that come in messages are kept if they are large: file:///FOLDER or s3://BUCKET/PREFIX, from "
    "?above=BYTES on.  [default: in the store]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="What the log on standard error tells.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines of the log for people, or for programs: with the ids of session, run and request.",
)
@click.option(
    "--log-content",
    is_flag=True,
    help="Let lines of the log have what exceptions say, which may be what users, models and tools said.",
)
@click.option("--access-log", is_flag=True, help="A line in the log for each answer: method, path, status, time.")
@click.option(
    "--metrics",
    type=NUMBER_OR_TEXT,
    metavar="[HOST:]PORT",
    help="Answer Prometheus at http://HOST:PORT/metrics; HOST is 127.0.0.1, unless it is given. Whoever reaches that "
    "port can read figures, and no content.",
)
@click.option(
    "--traces",
    is_flag=True,
    help="Trace runs with OpenTelemetry, by the tracer provider that TARGET or opentelemetry-instrument sets up.",
)
@debug_option
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    target: str | None,
    host: str,
    port: int,
    log_level: str,
    log_format: Format,
    log_content: bool,
    access_log: bool,
    traces: bool,
    **options: Unpack[ServeOptions],
) -> None:
    """Serve the agents of TARGET until Ctrl-C.

    TARGET is a module, a file, or an object in one of them (module:agent, file.py:agent): an agent function, an Agent
    or a whole Legato app. Of a module or file alone, its app is served, else all its agents; the one called "agent"
    is the default. With --model a model answers, and TARGET gives its tools. Without both, the guide is served, which
    answers from documents and needs no model.

    \b
    Examples:
      legato serve
      legato serve agent.py
      legato serve shop.agents:support --port 9000
      legato serve --docs ./handbook --store memory:
      legato serve --model ollama:llama3.2
      legato serve tools.py --model openai:gpt-5-mini
    """
    gc.disable()  # what is loaded stays; to look through all of it ten times is a tenth of the start
    from ..server import serve as server
    from ..server.arguments import Misconfigured

    gc.freeze()
    gc.enable()
    # Before the target is imported: what it sets up for logging itself wins.
    set_up(log_level, log_format, access=access_log, content=log_content)
    logging.getLogger("stamina").addFilter(_in_words)
    given = given_of(ctx, ctx.command.params, options)
    inherited = server.inherited()
    if inherited is not None:
        host, port = inherited.getsockname()[:2]
    try:
        app = application(_found(target, (host, port), given, options), target, host, given, options)
        if traces:
            app.trace()
    except Misconfigured as exc:
        raise Misset(exc.faults) from exc
    except InvalidInput as exc:
        raise Misuse(exc.message) from exc
    try:
        listener = inherited or server.listen(host, port, wait=options["wait"] if "wait" in given else 0.0)
    except server.AddressTaken as exc:
        if "in use" not in exc.message:
            raise
        advice = (
            "Perhaps a server runs there already (--wait 30 waits for its end); --port takes another, and --port 0 a "
            "free one."
        )
        if "store" not in given:
            advice += " Two servers need two stores, too: --store sqlite:///other.db, or memory:."
        raise Failure(f"{exc.message} {advice}") from exc
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        measured = None
        if options["metrics"] is not None:
            app.metrics()  # for its error
            measured = stack.enter_context(server.listen(*_metrics_at(options["metrics"], host, port)))
        announce = _announcement(app, listener, host, measured)
        server.serve(app, listener, log_level=log_level, on_ready=announce, metrics=measured)
    click.echo("Stopped.")


def _in_words(record: logging.LogRecord) -> bool:
    """Let a line about a request that is repeated say why, and when; stamina has that in fields beside the line."""
    wait, cause = getattr(record, "stamina.wait_for", None), getattr(record, "stamina.caused_by", None)
    if wait is not None:
        record.msg, record.args = "a request is repeated in %s s: %s", (wait, cause)
    return True


def application(
    found: Target, target: str | None, host: str, given: Mapping[str, str], options: ServeOptions
) -> Legato:
    """What is served, of options that are right by themselves.

    Raises:
        Misuse, InvalidInput: they are not together, or not with this target.
    """
    _check_door(host, found.app, options)
    app = _new_app(found, options) if found.app is None else _given_app(found.app, target, given, options)
    chosen = {"base_url": options["base_url"], "background": options["background"]}
    for spec in reversed(options["models"]):  # so that the first of them is the default
        app.model(spec, first=True, instructions=options["instructions"], **chosen)
    return app


def _found(target: str | None, at: tuple[str, int], given: Mapping[str, str], options: ServeOptions) -> Target:
    """What TARGET is, unless something is wrong with it or with the options: then all of that, at once."""
    faults = list(faults_of(at, given, options))
    try:
        found = target_of(target, given, options)
    except Misuse as exc:
        if not faults:
            raise
        raise Misset([*faults, *(exc.faults if isinstance(exc, Misset) else [exc.message])]) from exc
    if faults:
        raise Misset(faults)
    return found


def _check_door(host: str, app: Legato | None, options: ServeOptions) -> None:
    """Whoever lets other machines in has to say by which names, and whom."""
    if _is_loopback(host):
        return
    if not (options["allow_host"] or (app is not None and app.hosts)):
        how = "Legato(hosts=['chat.example.com'])" if app is not None else "--allow-host chat.example.com"
        every = "hosts='*'" if app is not None else "--allow-host '*'"
        raise Misuse(
            f"--host {host} lets other machines in; say by which names they reach this server: {how}. With {every} "
            "it goes by any name, and a web page that somebody visits can read the chats under one of its own, unless "
            "what stands before the server looks at names."
        )
    signs_in = options["keys"] if app is None else app.signs_in
    if not (signs_in or options["open_"]):
        how = "--keys, which lets in who has an API key (legato keys add)" if app is None else "Legato(auth=...)"
        raise Misuse(
            f"--host {host} lets other machines in, and nobody is asked who they are. Say who may come in: {how}; or "
            "--open, if whoever reaches this port may read and send, as where a proxy before it signs people in."
        )


def _given_app(app: Legato, target: str | None, given: Mapping[str, str], options: ServeOptions) -> Legato:
    """A whole app, with what may be said of it from outside."""
    if own := app_sets(given):
        raise Misuse(f"{target} is a whole app; it sets {own} itself, in Legato(...).")
    if "store" in given and options["store"] is not None:
        app.source = options["store"]
    if "grace" in given:
        app.grace = options["grace"]
    if "wait" in given:
        app.lock_wait = options["wait"]
    if "lease_ttl" in given:
        app.lease_ttl = options["lease_ttl"]
    return app


def _new_app(found: Target, options: ServeOptions) -> Legato:
    """An app of agents and tools."""
    from ..server.app import Legato

    app = Legato(
        options["store"] or STORE,
        agents=found.agents,
        heartbeat=options["heartbeat"],
        client=options["client"],
        cors=options["cors"],
        hosts=options["allow_host"],
        auth=_keys() if options["keys"] else None,
        grace=options["grace"],
        lock_wait=options["wait"],
        lease_ttl=options["lease_ttl"],
        retention=retention(options["keep"], options["keep_pieces"]),
        blobs=options["blobs"],
        **settings(options["bounds"]),
    )
    for tool in found.tools:
        app.tool(tool)
    return app


def given_of(ctx: click.Context, params: Iterable[click.Parameter], options: Mapping[str, object]) -> dict[str, str]:
    """How each option was said, of those that were; what a file or a variable says as it is anyway was not."""
    given: dict[str, str] = {}
    for param in params:
        name, how = param.name or "", said(ctx, param)
        if how and name in options and (how.startswith("-") or options[name] != param.default):
            given[name] = how
    return given


def app_sets(given: Mapping[str, str]) -> str:
    """Which of these an app has to set itself."""
    return ", ".join(sorted(how for name, how in given.items() if name in _APP_OPTIONS))


def faults_of(at: tuple[str, int], given: Mapping[str, str], options: ServeOptions) -> Iterator[str]:
    """What is wrong with options, whatever the target is. ``at``: the host and port to listen on."""
    for name, value in (("store", options["store"]), ("base_url", options["base_url"])):
        if name in given and value == "":  # which would be the default: another file, or another company
            yield f"{given[name]} is empty; leave it out, or say which it is."
    if not options["models"] and (alone := [how for name, how in given.items() if name in _MODEL_OPTIONS]):
        yield f"{alone[0]} is for a model; name it with --model."
    for spec in dict.fromkeys(models := options["models"]):
        if spec.startswith("-"):
            yield f"--model wants a name such as ollama:llama3.2, got {spec!r}."
        if models.count(spec) > 1:
            yield f"--model {spec} is given twice; each model is one agent."
    for origin in options["cors"]:
        if not _ORIGIN.fullmatch(origin):
            yield f"--cors wants an origin as browsers send it, such as https://app.example.com, got {origin!r}."
    if options["keys"] and options["open_"]:
        yield "--keys lets in who has a key, and --open everybody; give one of them."
    from ..server.guard import host_names
    from ..store import open_store

    looks: list[Callable[[], object]] = [
        lambda: open_store(options["store"] or STORE),
        functools.partial(_check_base_url, options["base_url"]),
        *(functools.partial(host_names, [each]) for each in options["allow_host"]),
        lambda: None if options["metrics"] is None else _metrics_at(options["metrics"], *at),
        lambda: retention(options["keep"]),
        lambda: retention("0", options["keep_pieces"]),
        *(functools.partial(settings, [each]) for each in options["bounds"]),
    ]
    for look in looks:
        try:
            look()
        except (Misuse, InvalidInput) as exc:
            yield exc.message
        except ModuleNotFoundError as exc:
            yield str(exc)


def _check_base_url(url: str | None) -> None:
    if url:
        from ..http.settings import address  # which loads what a server without a model never needs

        address(url, of="model")


def retention(keep: str, keep_pieces: str = "0") -> Retention:
    """How long sessions are kept.

    Raises:
        Misuse: it is no time, or a very short one.
    """
    from ..retention import Retention, seconds_of

    try:
        found = Retention(sessions=seconds_of(keep), deltas=seconds_of(keep_pieces))
        found.check()
    except InvalidInput as exc:
        raise Misuse(f"--keep or --keep-pieces: {exc.message}") from exc
    return found


def settings(given: Sequence[str]) -> dict[str, Any]:
    """The arguments of ``Legato`` that set these limits, each as ``NAME=VALUE``.

    Raises:
        Misuse: there is no such limit, or it is no such number.
    """
    from ..server.limits import UnknownLimit, arguments

    values: dict[str, str] = {}
    for each in given:
        name, mark, value = each.partition("=")
        if not mark:
            raise Misuse(f"--limit wants NAME=VALUE, such as owner_sends=60, got {each!r}.")
        values[name.strip()] = value.strip()
    try:
        return arguments(values)
    except UnknownLimit as exc:
        raise Misuse(f"--limit: {exc.message}") from exc


def target_of(target: str | None, given: Mapping[str, str], options: ServeOptions) -> Target:
    """What TARGET is; without it, the guide, unless a model answers."""
    from .target import Target, load

    models = options["models"]
    for name in ("docs", "pace"):
        if name in given and (target is not None or models):
            raise Misuse(
                f"{given[name]} is for the guide, which is served without {'--model' if models else 'a TARGET'}."
            )
    if target is not None:
        return load(target, tools_only=bool(models))
    return Target(None, [] if models else _guide(options), [])


def _guide(options: ServeOptions) -> list[Agent]:
    from ..agents.guide import guide

    return [guide(options["docs"], pace=options["pace"])]


def _keys() -> APIKeys:
    from ..auth import APIKeys

    return APIKeys()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _metrics_at(text: str, host: str, port: int) -> tuple[str, int]:
    """Where to listen for what asks for metrics, beside a server on this host and port.

    Raises:
        Misuse: it is no address, or that of the server.
    """
    name, _, digit = text.rpartition(":")
    number = digits(digit, most=5)
    if number is None or number > 65_535 or text.startswith(":") or "/" in name:
        raise Misuse(f"--metrics wants a port, or host:port, such as 9464 or 10.0.0.5:9464, got {text!r}.")
    name = name.strip("[]") or "127.0.0.1"
    if number == port != 0 and (name == host or {name, host} & EVERYWHERE or {name, host} == SAME):
        raise Misuse(f"--metrics {text} is where the server listens, too (port {port}); give it another port.")
    return name, number


def _announcement(app: Legato, listener: socket.socket, host: str, metrics: socket.socket | None) -> Callable[[], None]:
    def announce() -> None:
        for text in _banner(app, listener, host, metrics):
            click.echo(text)  # flushes: whoever started us may be waiting for the address

    return announce


def _banner(app: Legato, listener: socket.socket, host: str, metrics: socket.socket | None) -> Sequence[str]:
    port = listener.getsockname()[1]
    everywhere = host in EVERYWHERE
    name = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
    url = f"http://{name}:{port}"
    chat = "legato chat" if port == 8088 and name in ("127.0.0.1", "localhost") else f"legato chat --url {url}"
    lines = [f"Legato is ready: {url}"]
    for place, agent in enumerate(app.agents.values()):
        about = f": {agent.description}" if agent.description else ""
        lines.append(f"  {'' if place else 'agents' if len(app.agents) > 1 else 'agent':<7} {agent.name}{about}")
    lines += [f"  store   {_store(app)}"]
    if metrics is not None:
        at, number = metrics.getsockname()[:2]
        lines.append(f"  metrics http://{f'[{at}]' if ':' in at else at}:{number}/metrics")
    lines += [f"  try     {chat}, or open the address in a browser", "  stop    Ctrl-C"]
    if app.lets_nobody_in:
        lines.append(
            "  note    there are no keys yet: stop this, make one (legato keys add NAME --admin), and start again"
        )
    if not _is_loopback(host):
        where = "on all of this machine's addresses" if everywhere else f"on {host}"
        who = "who has signed in" if app.signs_in else "whoever reaches this port"
        lines.append(f"  note    listening {where}: {who} can read and send{'' if app.signs_in else ', it is --open'}")
    return lines


def _store(app: Legato) -> str:
    store = app.source
    if not isinstance(store, str):
        return type(store).__name__
    from ..store import file_of, lasts, shown

    if not lasts(store):
        return f"{store} (gone when the server stops)"
    file = file_of(store)
    return f"{store} (in {Path.cwd()})" if file is not None and not file.is_absolute() else shown(store)

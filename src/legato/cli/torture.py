"""``legato torture``: whether this version, on this machine, holds what it promises while it is ill-treated."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from .failure import INTERRUPTED, Failure, Misuse, debug_option

if TYPE_CHECKING:
    import asyncio

    from ..torture.report import Chart
    from ..torture.simulate import Simulated
    from ..torture.soak import Report

T = TypeVar("T")
F = TypeVar("F", "Chart", "Report")
"""What was found."""

FOR: dict[str, Sequence[str]] = {
    "people": ("soak",),
    "seconds": ("soak", "cluster"),
    "store": ("cluster", "simulate"),
    **dict.fromkeys(("seeds", "steps"), ("simulate",)),
    **dict.fromkeys(("nodes", "sessions", "lease_ttl", "do", "app", "say", "front"), ("cluster",)),
}
"""What options are for; the others are for all."""
PROGRESS_SECONDS = 10.0
"""After which it is said again how far a simulation has come."""


class Seconds(click.FloatRange):
    """A number of seconds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """``nan`` is within all bounds, since it is not beyond them."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail("nan is no number of seconds.", param, ctx)
        return seconds


@click.command(short_help="Ill-treat servers or a store, and see whether they hold.")
@click.option("--soak", is_flag=True, help="Honest people beside hostile callers, texts, connections and agents.")
@click.option("--cluster", is_flag=True, help="Several nodes on one database, which are killed, stopped and cut off.")
@click.option("--simulate", is_flag=True, help="Small worlds of nodes, people and faults on a store, each from a seed.")
@click.option(
    "--seconds",
    type=Seconds(min=5, max=86_400),
    help="How long it is ill-treated: 600 by default with --soak, 60 with --cluster.",
)
@click.option(
    "--people", type=click.IntRange(1, 200), default=10, show_default=True, help="How many talk honestly at once."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is random; of several the first.")
@click.option("--seeds", type=click.IntRange(1), default=20, show_default=True, help="With --simulate: how many.")
@click.option("--steps", type=click.IntRange(1), default=150, show_default=True, help="With --simulate: in each world.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for all figures: .json; with --cluster and --simulate also .txt, .svg or .html, with a picture of what "
    "was done when.",
)
@click.option(
    "--store",
    help="With --cluster or --simulate: its URL; or postgresql: or redis:, for one that is thrown away. --simulate "
    "without it: memory, and SQLite on a disk whose power is cut.",
)
@click.option("--nodes", type=click.IntRange(1, 16), default=2, show_default=True, help="With --cluster: how many.")
@click.option(
    "--sessions", type=click.IntRange(1, 2_000), default=200, show_default=True, help="With --cluster: talks at once."
)
@click.option(
    "--lease-ttl",
    type=Seconds(min=1, max=60),
    default=5.0,
    show_default=True,
    help="With --cluster: seconds after which a node that is not heard of is taken for dead.",
)
@click.option("--do", multiple=True, metavar="KIND", help="With --cluster: only this to nodes; may be repeated.")
@click.option("--app", metavar="TARGET", help="With --cluster: your own agents, as for legato serve.")
@click.option("--say", default="Hello", show_default=True, help="With --app: what is said to them.")
@click.option("--front", type=click.Choice(["haproxy", "relay"]), help="With --cluster: what stands before the nodes.")
@debug_option
def torture(
    soak: bool, cluster: bool, simulate: bool, seconds: float | None, report: Path | None, **options: Any
) -> None:
    """Start servers on free ports, with a store that is thrown away, and ill-treat them; or a store alone.

    With --soak, honest people talk while others send hostile texts, hold connections, read nothing, leave early, and
    let agents do what they should not. It prints how long the honest waited, alone and beside that, and what the server
    held. The status is 1 if anything was lost, doubled, out of order or not ended, or if the server holds more
    afterwards than before.

    With --cluster, people talk and readers come and go by way of a proxy, while nodes are killed (kill -9), stopped for
    a while (SIGSTOP), told to stop, and cut off from their database. Then every reader's text is compared with the log,
    and the logs of all nodes with each other. The status is 1 if anything was lost, doubled or out of order, did not
    end once, or stood still for longer than a lease and 5 seconds.

    With --simulate there are no servers: nodes, people and readers live on a store, and between any two steps a node is
    killed, paused or cut off, answers are lost, clocks set, the power goes. What must hold is checked after each step.
    A seed that fails is printed with the steps that led there, and fails in the same way again.

    Ctrl-C or SIGTERM ends it early: what it started ends with it, and what was found until then is printed. After a
    kill -9, too, nothing that it started is left.

    \b
    Examples:
      legato torture --soak
      legato torture --soak --seconds 30 --report soak.json
      legato torture --cluster --store postgresql: --nodes 4 --report cluster.html
      legato torture --cluster --store redis://10.0.0.7 --app my_agents.py --say "What is a cursor?"
      legato torture --simulate --seeds 1000
      legato torture --simulate --seed 17 --seeds 1 --report seed17.html
      legato torture --simulate --store postgresql: --seeds 5
    """
    if soak + cluster + simulate != 1:
        raise Misuse("say what to do: --soak, --cluster or --simulate")
    kind = "simulate" if simulate else "cluster" if cluster else "soak"
    context = click.get_current_context()
    for name, kinds in FOR.items():
        if kind not in kinds and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            others = " and ".join(f"--{each}" for each in kinds)
            raise Misuse(f"--{name.replace('_', '-')} is for {others}, not for --{kind}")
    with _stoppable() as told:
        try:
            if simulate:
                first = options["seed"]
                _simulate(range(first, first + options["seeds"]), options["steps"], options["store"], report)
            elif cluster:
                _cluster(60.0 if seconds is None else seconds, report, options)
            else:
                _soak(600.0 if seconds is None else seconds, report, options)
        except KeyboardInterrupt:  # not as after a fault
            click.echo("legato: stopped before its end", err=True)
            context.exit(128 + told[0] if told else INTERRUPTED)


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Let what would end the process do what Ctrl-C does, so that all that was started ends, too; gives which signals
    have come. It does not raise SIGINT, which a shell has those ignore that it begins with ``&``."""
    told: list[int] = []

    def stop(number: int, frame: object) -> None:
        told.append(number)
        if len(told) > 1:
            return  # what is ending is not to be left halfway
        if _running is None:
            raise KeyboardInterrupt
        _running.get_loop().call_soon_threadsafe(_running.cancel)

    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield told
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


_running: asyncio.Task[Any] | None = None
"""What a signal is to cancel."""


def _run(work: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, see ``_stoppable``."""
    import asyncio

    async def main() -> T:
        global _running
        _running = asyncio.current_task()
        try:
            return await work
        finally:
            _running = None

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _progress(text: str) -> None:
    click.echo(f"{text} ...", err=True)


def _cluster(seconds: float, report: Path | None, options: dict[str, Any]) -> None:
    from ..torture.cluster import KINDS, ClusterPlan, torture_cluster
    from ..torture.report import check_name, write_chart

    if report is not None:
        check_name(report)
    if options["store"] is None:
        raise Misuse("--cluster wants --store: postgresql: or redis: starts one, or name one that is there by its URL")
    if unknown := set(options["do"]) - set(KINDS):
        raise Misuse(f"--do is one of {', '.join(KINDS)}; got {', '.join(sorted(unknown))}")
    plan = ClusterPlan(
        seconds=seconds,
        kinds=options["do"] or KINDS,
        **{name: options[name] for name in ("store", "nodes", "sessions", "lease_ttl", "app", "say", "front", "seed")},
    )

    def tell(chart: Chart) -> None:
        for name, figure in chart.figures.items():
            click.echo(f"{name}: {figure}")
        if report is not None:
            write_chart(chart, report)

    def torment(stopped: Callable[[Chart], None]) -> Coroutine[Any, Any, Chart]:
        def tell_stopped(chart: Chart) -> None:
            click.echo(chart.title)
            stopped(chart)

        return torture_cluster(plan, _progress, tell_stopped)

    _find(torment, tell, "Nothing was lost, doubled or out of order; each run ended once, and all nodes say the same.")


def _find(
    torment: Callable[[Callable[[F], None]], Coroutine[Any, Any, F]], tell: Callable[[F], None], held: str
) -> None:
    """Torture, and tell what was found, also where it is stopped, whose status does not say that there are faults."""

    def listed(found: F) -> str:
        return f"{len(found.faults)} thing(s) must not be: {'; '.join(found.faults[:10])}"

    def stopped(found: F) -> None:
        tell(found)
        if found.faults:
            click.echo(f"legato: {listed(found)}", err=True)

    found = _run(torment(stopped))
    tell(found)
    if found.faults:
        raise Failure(listed(found))
    click.echo(f"\n{held}")


def _soak(seconds: float, report: Path | None, options: dict[str, Any]) -> None:
    from ..torture.report import check_name
    from ..torture.soak import Plan, written
    from ..torture.soak import soak as run

    if report is not None:
        check_name(report, [".json"])

    def tell(found: Report) -> None:
        for each in found.lines():
            click.echo(each)
        if report is not None:
            written(found, report)

    _find(
        lambda stopped: run(Plan(seconds, options["people"], options["seed"]), _progress, stopped),
        tell,
        "Nothing was lost, doubled or out of order, and the server let go of all that was left.",
    )


def _simulate(seeds: range, steps: int, store: str | None, report: Path | None) -> None:
    from ..torture.database import OWN
    from ..torture.report import check_name, write_chart
    from ..torture.simulate import WorldPlan, grounds

    if report is not None:
        check_name(report)
    if store not in OWN:
        grounds(store)
    with _database(store) as url:
        for name, simulated in grounds(url).items():
            counts: Counter[str] = Counter()
            began = told_at = time.perf_counter()
            failed: list[Simulated] = []
            interrupted: KeyboardInterrupt | None = None
            tried = 0
            for seed in seeds:
                if time.perf_counter() - told_at > PROGRESS_SECONDS:
                    told_at = time.perf_counter()
                    _progress(f"{name}: {tried} of {len(seeds)} seeds")
                try:
                    found = simulated(WorldPlan(seed, steps))
                except KeyboardInterrupt as exc:
                    interrupted = exc
                    break
                tried += 1
                counts.update(found.counts)
                if found.faults:
                    click.echo(f"{name}, {found.told()}\n")
                    failed.append(found)
                if report is not None and not failed[:-1]:
                    write_chart(found.chart, report)
                if len(failed) == 3:
                    break
            took = time.perf_counter() - began
            told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            if tried:
                last = seeds[0] + tried - 1
                click.echo(f"{name}: seeds {seeds[0]} to {last} of {steps} steps in {took:.1f} s: {told}")
            if interrupted is not None:
                raise interrupted
            if failed:
                listed = ", ".join(str(each.plan.seed) for each in failed)
                raise Failure(f"of {name} {len(failed)} seed(s) failed: {listed}")
    click.echo("\nNothing was lost, doubled, out of order or seen too early, and every run ended once.")


@contextlib.contextmanager
def _database(store: str | None) -> Iterator[str | None]:
    """The URL of a store that is there meanwhile. Each world has an event loop of its own, so none runs here then."""
    import asyncio

    from ..torture.database import database

    if store is None:
        yield None
        return
    there = database(store)
    with asyncio.Runner() as runner:
        url = runner.run(there.__aenter__())
        try:
            yield url
        finally:
            runner.run(there.__aexit__(None, None, None))

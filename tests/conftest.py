"""Which files come first where several processes share them, so that all end together; that none is lost on the way;
that no test is timed, and no request of one soon given up; what is told of one that hangs; which have a second try; and
the stage on which runs are driven, with each store that needs no server.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx2._config
import pytest
import pytest_timeout
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import HealthCheck, settings

from running import STORES, Stage, staged

settings.register_profile("legato", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("legato")

# A request that names no time would be given up after five seconds, which a busy machine may take.
for _each in ("connect", "read", "write", "pool"):
    setattr(httpx2._config.DEFAULT_TIMEOUT_CONFIG, _each, 60.0)

FIRST = (
    "test_check",
    "test_bundles",
    "test_web",
    "test_openapi",
    "test_simulate",
    "test_cluster",
    "test_rolling",
    "test_torture",
    "test_engines",
    "test_real_models",
    "test_frameworks",
    "test_agent_clients",
    "test_cli",
    "test_run",
    "test_execution",
    "test_upstream",
    "test_upstream_streams",
    "test_real_mix",
    "test_postgres",
    "test_redis",
)

OTHERS = {"browser", "engines", "node_packages", "venvs"}
"""Modules that start browsers, and other people's clients. On a busy machine one of them may fail a test for reasons of
its own. A file that uses one has a second try for each of its tests, which is named in the summary, where the first one
is told in full. Elsewhere a failure is a fault of ours, however seldom it comes: nothing is tried again."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Larger settings of tests take the time that they are given."""
    if any(name.startswith("LEGATO_") for name in os.environ):
        config._inicache.update(timeout="0", faulthandler_timeout="0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))
    if alike := sorted(id for id, count in Counter(item.nodeid for item in items).items() if count > 1):
        wrong = f"Of tests of one id only one would be run by several processes: {', '.join(alike)}"
        print(wrong, file=sys.__stderr__)  # of what ends a process among several, nobody says why
        raise pytest.UsageError(wrong)
    modules = {item.path: item for item in items}
    drive_others = {path for path, item in modules.items() if OTHERS & _uses(item)}
    for item in items:
        if item.path in drive_others:
            item.add_marker(pytest.mark.flaky(reruns=1))


def _uses(item: pytest.Item) -> set[str]:
    """The modules that its own takes something from."""
    module = getattr(item, "module", None)
    return {str(getattr(each, "__module__", "")) for each in vars(module).values()} if module else set()


def pytest_collection_finish() -> None:
    """Some tests collect garbage; thousands of tests that wait their turn are none."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test that has hung, add where each of its tasks stood: the loop's own place says nothing. And of one that
    will have a second try all that would be told if it had none."""
    report = yield
    if call.excinfo is not None and "from pytest-timeout" in str(call.excinfo.value):
        tasks = [each for each in gc.get_objects() if issubclass(type(each), asyncio.Task) and not each.done()]
        report.sections += [(f"Task {task.get_name()}", "".join(_where(task.get_coro()))) for task in tasks]
    if report.failed and item.get_closest_marker("flaky") and getattr(item, "execution_count", 0) == 1:
        report.longrepr = "\n".join(
            [report.longreprtext, *(f"--- {head} ---\n{text}" for head, text in report.sections)]
        )
    return report


def _where(awaited: Any) -> Iterator[str]:
    while awaited is not None:
        if type(awaited).__name__ in ("async_generator_asend", "async_generator_athrow"):
            awaited = next(each for each in gc.get_referents(awaited) if hasattr(each, "ag_frame"))
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is None:
            yield f"  {awaited!r}\n"
            return
        yield from traceback.format_list(traceback.StackSummary.extract([(frame, frame.f_lineno)]))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Bound what comes after a first failure, too: at it, for a debugger, what bounds a test lets go of it."""
    seconds = float(node.config.getini("faulthandler_timeout"))
    if seconds and isinstance(node, pytest.Item):
        node.config.hook.pytest_timeout_set_timer(item=node, settings=pytest_timeout._get_item_settings(node))
        faulthandler.dump_traceback_later(seconds, exit=True, file=node.config.stash[fault_handler_stderr_fd_key])


@pytest.fixture(params=STORES)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(request.param, tmp_path) as stage:
        yield stage

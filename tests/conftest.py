"""Which files come first where several processes share them, so that all end together; that none is lost on the way;
that no test is timed, and no request of one soon given up; what is told of one that hangs; which have a second try; and
the stage on which runs are driven, with each store that needs no server.
"""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx2._config
import pytest
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

OTHERS = {"browser", "engines", "fronts", "hosts", "node_packages", "venvs"}
"""Modules that start browsers, proxies, other people's servers and clients. On a busy machine one of them may fail a
test for reasons of its own: it then has a second try, is named in the summary, and the first one is told in full. In
our own processes and on our stores a failure is a fault, however seldom it comes: nothing there is tried again."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))
    if alike := sorted(id for id, count in Counter(item.nodeid for item in items).items() if count > 1):
        raise pytest.UsageError(f"Of tests of one id only one would be run by several processes: {', '.join(alike)}")
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
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test that has hung, add where each of its tasks stood: the loop's own place says nothing."""
    report = yield
    if call.excinfo is not None and "from pytest-timeout" in str(call.excinfo.value):
        tasks = [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]
        report.sections += [(f"Task {task.get_name()}", "".join(_where(task.get_coro()))) for task in tasks]
    return report


def _where(awaited: Any) -> Iterator[str]:
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is None:
            yield f"  {awaited!r}\n"
            return
        yield from traceback.format_list(traceback.StackSummary.extract([(frame, frame.f_lineno)]))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)


@pytest.fixture(params=STORES)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(request.param, tmp_path) as stage:
        yield stage

"""Which files come first where several processes share them, so that all end together; that no test is timed, and no
request of one soon given up; and the stage on which runs are driven, with each store that needs no server.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from pathlib import Path

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))


def pytest_collection_finish() -> None:
    """Some tests collect garbage; thousands of tests that wait their turn are none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=STORES)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(request.param, tmp_path) as stage:
        yield stage

"""Metrics for Prometheus, out of the measures: made when they are asked for, in a registry of their own.

It needs ``prometheus-client`` (``pip install 'legato[metrics]'``), which brings the form of the answer and what is
known of any process: memory, processor, descriptors, garbage.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from ..errors import InvalidInput, LegatoError
from ..figures import Spread
from .adaptor import WholeResponse, respond_error
from .guard import HostRefused, authority
from .life import Life
from .measures import Measure, measures
from .operation import NoSuchRoute, WrongMethod, path_within

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from .connections import Connections


class Metrics:
    """An ASGI application that answers ``GET /metrics`` (and ``/``) with the figures of an application.

    Args:
        life: gives the application's life; raises while there is none, as ``Legato.life`` does.
        connections: gives those of the process, where the server is our own.
        local: only requests for this machine's own names are answered, and so none of a page that had its name lead
            here.

    Attributes:
        registry: where an application may register further metrics.

    Raises:
        InvalidInput: prometheus-client is not installed.
    """

    def __init__(
        self, life: Callable[[], Life], connections: Callable[[], Connections | None] = lambda: None,
        *, local: bool = False,
    ) -> None:  # fmt: skip
        try:
            import prometheus_client
        except ImportError as exc:
            raise InvalidInput("Metrics need the package prometheus-client: pip install 'legato[metrics]'.") from exc
        self._life = life
        self._connections = connections
        self._local = local
        self._found: Sequence[Measure] = ()
        self._choose = prometheus_client.exposition.choose_encoder
        self.registry: CollectorRegistry = prometheus_client.CollectorRegistry()
        self.registry.register(self)
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.GCCollector(registry=self.registry)

    async def text(self, accept: str = "") -> tuple[bytes, str]:
        """The figures as they are now, in a form that ``accept`` has, and that form's name.

        Raises:
            LegatoError: there is no life.
        """
        self._found = await measures(self._life(), self._connections())
        encode, kind = self._choose(accept)
        return encode(self.registry), kind

    def collect(self) -> Iterable[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        return [_metric(measure) for measure in self._found]

    def describe(self) -> Iterable[Metric]:
        """Nothing; asked for when this is registered."""
        return []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] != "http":
            raise InvalidInput(f"Metrics are asked for over HTTP, got a {scope['type']} connection.")
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._local and not _is_local(host):
            await respond_error(HostRefused(host))(scope, receive, send)
        elif path_within(scope).rstrip("/") not in ("", "/metrics"):
            await respond_error(NoSuchRoute(scope))(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await respond_error(WrongMethod(scope, "GET"))(scope, receive, send)
        else:
            try:
                text, kind = await self.text(headers.get(b"accept", b"").decode("latin-1"))
            except LegatoError as exc:
                await respond_error(exc)(scope, receive, send)
                return
            await WholeResponse(text, media_type=kind, headers={"cache-control": "no-store"})(scope, receive, send)


def _is_local(host: str) -> bool:
    """Whether a name is one that nobody can have lead here: an address, or localhost."""
    found = authority(host)
    if found is None:
        return False
    try:
        return bool(ipaddress.ip_address(found[0]))
    except ValueError:
        return found[0] == "localhost"


def _metric(measure: Measure) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    names = list(measure.samples[0][0]) if measure.samples else []
    if measure.kind == "histogram":
        histogram = HistogramMetricFamily(measure.name, measure.help, labels=names)
        for labels, spread in measure.samples:
            assert isinstance(spread, Spread)
            histogram.add_metric(list(labels.values()), _buckets(spread), spread.sum)
        return histogram
    family = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    made = family(measure.name, measure.help, labels=names)
    for labels, value in measure.samples:
        assert not isinstance(value, Spread)
        made.add_metric(list(labels.values()), value)
    return made


def _buckets(spread: Spread) -> list[tuple[str, float]]:
    """What Prometheus has of a spread: of each bound, how many are not beyond it."""
    buckets, count = [], 0
    for bound, more in zip([*map(repr, spread.bounds), "+Inf"], list(spread.counts), strict=True):
        count += more
        buckets.append((bound, float(count)))
    return buckets

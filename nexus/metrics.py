"""What manager and agent share of their ``/metrics``: registries, the exposition, HTTP measured.

Each application has a registry of its own, never prometheus_client's global one, so that several
of them in one process do not count each other's. See docs/metrics.md.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import prometheus_client
from anyio import to_thread
from fastapi import Response
from prometheus_client import CollectorRegistry, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OTHER = "other"
"""The label of what is not one of ours: paths and methods are chosen by whoever sends them."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS = (0.005, 0.02, 0.1, 0.5, 2.5, 10.0, 30.0)
"""Few: there are as many series of each route and status."""
MIB = 1 << 20

# Of each counter a second series would tell when it began: twice as much to read, and no use here.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Registry(CollectorRegistry):
    """A registry that tells of its process and of what runs in it."""

    def __init__(self) -> None:
        super().__init__()
        ProcessCollector(registry=self)
        build = Info("nexus_build", "The version of Nexus that answers.", registry=self)
        build.info({"version": installed()})


def installed() -> str:
    """The version that is installed; ``0`` when it runs from sources that are not."""
    try:
        return version("nexus-microvm")
    except PackageNotFoundError:
        return "0"


class HttpMetrics:
    """How long answers take, by the routes there are and never by what was sent."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "nexus_http_request_duration_seconds",
            "From a request to the head of its answer: a stream counts when it begins, however "
            "long it goes on, and a request that waits for something with all its waiting. route "
            "is a template, or other for what was refused before it came to a route; status is "
            "none for a client that left. WebSockets are not in it.",
            ["method", "route", "status"],
            buckets=SECONDS,
            registry=registry,
        )
        being_served = Gauge(
            "nexus_http_open",
            "Requests and WebSockets being served at this moment, endless streams among them.",
            ["protocol"],
            registry=registry,
        )
        self.open = {protocol: being_served.labels(protocol) for protocol in ("http", "websocket")}
        """By the types of ASGI's scopes."""

    def answered(self, scope: Scope, status: int | None, seconds: float) -> None:
        method, path = scope["method"], getattr(scope.get("route"), "path", None)
        self._seconds.labels(
            method if method in METHODS else OTHER,
            path if isinstance(path, str) else OTHER,
            status or "none",
        ).observe(seconds)


class Measured:
    """ASGI middleware that measures. It goes outside of all others: what they refuse counts."""

    def __init__(self, app: App, *, http: HttpMetrics) -> None:
        self.app = app
        self.http = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        being_served = self.http.open.get(scope["type"])
        if being_served is None:
            await self.app(scope, receive, send)
            return
        being_served.inc()
        try:
            if scope["type"] == "http":
                await self._request(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            being_served.dec()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        answered = False

        async def measured_send(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self.http.answered(scope, message["status"], time.perf_counter() - begun)
            await send(message)

        try:
            await self.app(scope, receive, measured_send)
        finally:
            if not answered:
                self.http.answered(scope, None, time.perf_counter() - begun)


class Shown:
    """Families that were read for one answer, as prometheus_client wants to have them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def exposition(families: Iterable[Metric]) -> Response:
    """The answer of a ``/metrics``: Prometheus' text format. It is written in a thread: where many
    routes were asked that takes some ms, in which nobody else would be served."""
    content = await to_thread.run_sync(prometheus_client.generate_latest, Shown(families))
    return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)


def gauge(
    name: str,
    documentation: str,
    labels: Iterable[str],
    values: Iterable[tuple[Iterable[str], float]],
) -> GaugeMetricFamily:
    """A gauge with what was read of it: the labels' values, and the number."""
    family = GaugeMetricFamily(name, documentation, labels=[*labels])
    for of, value in values:
        family.add_metric([*of], value)
    return family

"""The gateway's counters as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from airflow_ml_provider.serving.aio.proxy import Routes
from airflow_ml_provider.serving.stats import LATENCY_BOUNDS_MS, TRAFFIC


class GatewayCollector(Collector):
    """Reads the counters when it is asked for them."""

    def __init__(self, service: str, routes: Routes) -> None:
        self._service, self._routes = service, routes

    def collect(self) -> Iterator[Metric]:
        labels = ["service", "version", "traffic"]
        requests = CounterMetricFamily("ml_gateway_requests", "Requests given to a version", labels=labels)
        rejected = CounterMetricFamily("ml_gateway_rejected", "Answers of 4xx", labels=labels)
        errors = CounterMetricFamily("ml_gateway_errors", "5xx, timeouts, lost connections", labels=[*labels, "fault"])
        latency = HistogramMetricFamily("ml_gateway_latency_seconds", "From the gateway to the server", labels=labels)
        scores = HistogramMetricFamily("ml_gateway_score", "Scores", labels=labels)
        for version, stats in self._routes.stats.items():
            for traffic in TRAFFIC:
                answers, values = stats.of(traffic), [self._service, version, traffic]
                requests.add_metric(values, answers.requests)
                rejected.add_metric(values, answers.rejected)
                for fault, count in answers.errors.items():
                    errors.add_metric([*values, fault], count)
                bounds = [bound / 1000 for bound in LATENCY_BOUNDS_MS]
                latency.add_metric(values, _buckets(bounds, answers.latency.counts), answers.latency.sum_ms / 1000)
                scores.add_metric(values, _buckets(answers.scores.edges, answers.scores.counts), None)
        yield from (requests, rejected, errors, latency, scores)
        yield from self._versions()

    def _versions(self) -> Iterator[Metric]:
        labels = ["service", "version"]
        fallbacks = CounterMetricFamily(
            "ml_gateway_fallbacks", "Requests that the stable version took over", labels=labels
        )
        dropped = CounterMetricFamily("ml_gateway_mirror_dropped", "Copies that were not sent", labels=labels)
        compared = CounterMetricFamily("ml_gateway_mirror_compared", "Copies compared with the users'", labels=labels)
        agreed = CounterMetricFamily("ml_gateway_mirror_agreed", "Copies that were answered alike", labels=labels)
        for version, stats in self._routes.stats.items():
            fallbacks.add_metric([self._service, version], stats.fallbacks)
            dropped.add_metric([self._service, version], stats.mirror_dropped)
            compared.add_metric([self._service, version], stats.compared)
            agreed.add_metric([self._service, version], stats.agreed)
        ready = GaugeMetricFamily("ml_gateway_version_ready", "1 when requests go to it", labels=labels)
        restarts = GaugeMetricFamily("ml_gateway_version_restarts", "Restarts of the server", labels=labels)
        for version, replica in self._routes.replicas.items():
            ready.add_metric([self._service, version], float(replica.ready))
            restarts.add_metric([self._service, version], replica.restarts)
        yield from (fallbacks, dropped, compared, agreed, ready, restarts)


def registry(service: str, routes: Routes) -> CollectorRegistry:
    """Return a registry with the gateway's counters alone."""
    found = CollectorRegistry()
    found.register(GatewayCollector(service, routes))
    return found


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return cumulative buckets."""
    found, total = [], 0
    for bound, count in zip([*map(str, bounds), "+Inf"], counts):
        total += count
        found.append((bound, float(total)))
    return found

"""What each version counted, asked of Prometheus: one query out, its answer to readings. Pure.

One query for everything, because Prometheus answers a query from one state of its samples: asked one after the other,
errors could be newer than the requests that they are part of.

- A version without any request has no series, and an empty reading.
- A server that is gone, or has not been scraped, for longer than the window is left out, as is one with a value that is
  no number: it has counted nothing new then, and what it counted before stays counted (`state.Version.read`).
- A counter that falls has started anew, which `VersionStats` sees for itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from airflow_ml_provider.exceptions import SpecError, Unavailable, invalid
from airflow_ml_provider.stages.deploy.metrics import NAME, Metrics
from airflow_ml_provider.stages.deploy.service import Readings
from airflow_ml_provider.stages.deploy.stats import Histogram, VersionStats

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_MARK = "airflow_ml"  # label that says what a series counts, of which part
_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000}

Series = Mapping[str, Any]
Counts = Mapping[str, Mapping[float, float]]
"""What is counted to the counts by upper bound; one that has no bounds is under infinity."""


@dataclass(frozen=True)
class Part:
    """Servers of a version. A version has one part, or in the mode Knative one for each of its revisions.

    Attributes:
        version: name of the version.
        workload: name of the Deployment.
        revision: name of the Kubernetes Service before it, which is Knative's revision.
    """

    version: str
    workload: str
    revision: str


def query(metrics: Metrics, service: str, namespace: str, parts: Sequence[Part]) -> str:
    """Return the query for all that the parts of a service counted; empty without any part.

    Raises:
        SpecError: a name is no DNS label.
    """
    asked = []
    for part in parts:
        values = {
            "service": service, "namespace": namespace, "version": part.version, "workload": part.workload,
            "revision": part.revision,
        }  # fmt: skip
        for what, value in values.items():
            if not _LABEL.fullmatch(value):  # nothing else gets into a query
                raise invalid(f"{what} in a query", value, "a DNS label")
        # Kubernetes cuts the name of a Deployment with its hash when it is long.
        values["pods"] = f"{part.workload}-?[a-z0-9]+(-[a-z0-9]+)?"
        values |= {"server": metrics.server, "window": metrics.window}
        for counter, text in metrics.queries.items():
            mark = f"{counter} {part.version} {part.workload}"
            asked.append(f'label_replace({_filled(text, values)}\n, "{_MARK}", "{mark}", "", "")')
    return "\nor ".join(asked)


def _filled(text: str, values: Mapping[str, str]) -> str:
    return NAME.sub(lambda found: values[found[1]], text)


def readings(found: Sequence[Series], metrics: Metrics, parts: Sequence[Part]) -> Readings:
    """Return what each version's servers counted.

    Parameters:
        found: the series that Prometheus answered `query` with.
        metrics: those of `query`.
        parts: those of `query`; each of their versions has a reading, if an empty one.

    Raises:
        SpecError: the queries do not give one series per server, or no counters.
        Unavailable: a server has counted requests but not how long they took.
    """
    servers: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    for series in found:
        counter, version, workload = series["metric"][_MARK].split()
        server = f"{workload}/{_label(series, metrics.server, counter)}"
        counts = servers.setdefault((version, server), {}).setdefault(counter, {})
        bound = float(_label(series, "le", counter)) if counter.endswith("_bucket") else math.inf
        if bound in counts:
            raise SpecError(
                f"{counter} gives several series for server {server!r}, such as {_shown(series)}; sum them up by the "
                f"label {metrics.server!r}" + (" and le" if counter.endswith("_bucket") else "")
            )
        counts[bound] = _value(series, counter)
    read: dict[str, dict[str, VersionStats]] = {part.version: {} for part in parts}
    for (version, server), counted in servers.items():
        stats = _stats(counted, metrics, f"server {server!r} of version {version!r}")
        if stats is not None:
            read[version][server] = stats
    return read


def _stats(counted: Counts, metrics: Metrics, whose: str) -> Optional[VersionStats]:
    """Return what a server counted; none if that is not known."""
    finite = all(math.isfinite(count) for counts in counted.values() for count in counts.values())
    if "requests" not in counted or not finite:
        return None
    requests = round(counted["requests"][math.inf])
    errors = round(counted.get("errors", {}).get(math.inf, 0))
    if requests and metrics.latency_bucket and "latency_bucket" not in counted:
        raise Unavailable(f"Prometheus knows no latency_bucket of {whose}, but {requests} requests; look at its query")
    try:
        latency_s = _histogram(counted.get("latency_bucket", {}), _PER_SECOND[metrics.latency_unit])
        return VersionStats(requests, errors, latency_s, _histogram(counted.get("score_bucket", {})))
    except SpecError as error:
        raise SpecError(f"the queries do not give cumulative counters of {whose}: {error}") from error


def _histogram(buckets: Mapping[float, float], per_unit: int = 1) -> Histogram:
    """Return a histogram; counts are whole, whatever Prometheus makes of them, and rounding keeps their order."""
    if buckets and math.inf not in buckets:
        raise invalid("le", sorted(buckets), "up to +Inf")
    return Histogram.from_cumulative({bound / per_unit: round(count) for bound, count in buckets.items()})


def _label(series: Series, name: str, counter: str) -> str:
    found = str(series["metric"].get(name, ""))
    if not found:
        raise SpecError(f"{counter} gives a series without the label {name!r}: {_shown(series)}; sum by it, too")
    return found


def _value(series: Series, counter: str) -> float:
    if "value" not in series:
        raise SpecError(f"{counter} gives a native histogram: {_shown(series)}; ask for a classic one, by le")
    return float(series["value"][1])


def _shown(series: Series) -> str:
    return str({key: value for key, value in series["metric"].items() if key != _MARK})

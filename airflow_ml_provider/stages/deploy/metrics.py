"""Which counters in Prometheus tell what a version did: sets by name, or queries of one's own. Pure.

Every query gives one series per server, since a sum over servers falls when one of them goes, as if all had restarted.
The sets also give the last samples of a server that is gone, so that what it counted at the end is not lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Union

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.stages.deploy.policy import ErrorRate, Latency, ScoreShift

if TYPE_CHECKING:
    from airflow_ml_provider.stages.deploy.strategies import Policy

COUNTERS = ("requests", "errors", "latency_bucket", "score_bucket")
FILLED_IN = ("service", "version", "namespace", "workload", "revision", "pods", "server", "window")
NAME = re.compile(r"\{([a-z_]+)\}")
_RATES = re.compile(r"\b(rate|irate|increase|delta|idelta|deriv)\s*\(")


@dataclass(frozen=True)
class Metrics:
    """PromQL for what one version counted, one series per server.

    Filled in are `{service}`, `{version}` and `{namespace}`; `{workload}`, the name of the Deployment; `{revision}`,
    that of the Kubernetes Service before it, which is Knative's revision; `{pods}`, a regular expression for the names
    of its pods; `{server}` and `{window}`.

    Attributes:
        requests: answered ones, failed ones included.
        errors: failed ones.
        latency_bucket: requests by the time they took, cumulative by `le`; empty when nothing counts it.
        latency_unit: unit of that `le`.
        score_bucket: what the model said, cumulative by `le`; likewise.
        server: label that tells one server from another.
        window: how long a server that is gone, or does not answer Prometheus, is still told of, as PromQL writes times.
    """

    requests: str
    errors: str
    latency_bucket: str = ""
    latency_unit: Literal["s", "ms", "us"] = "s"
    score_bucket: str = ""
    server: str = "pod"
    window: str = "5m"

    def __post_init__(self) -> None:
        for name in ("requests", "errors"):
            if not getattr(self, name).strip():
                raise invalid(name, getattr(self, name), "PromQL", "no rollout can do without")
        for name in COUNTERS:
            if found := _RATES.search(getattr(self, name)):
                raise invalid(name, found[1], "the counters themselves, not their rates", "they are subtracted here")
            for word in NAME.findall(getattr(self, name)):
                if word not in FILLED_IN:
                    raise unknown_name(f"name in {name}", word, FILLED_IN)
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", self.server):
            raise invalid("server", self.server, "the name of a label")
        if not re.fullmatch(r"([1-9]\d*[smh])+", self.window):
            raise invalid("window", self.window, "a time such as 5m or 90s")

    @property
    def queries(self) -> Mapping[str, str]:
        """The queries that there are, by what they count."""
        return {name: getattr(self, name) for name in COUNTERS if getattr(self, name)}


def resolve(metrics: Union[str, Mapping[str, str]]) -> Metrics:
    """Return the queries that a place's `metrics` means: a name, or a mapping with what differs from its `base`.

    Raises:
        SpecError: there is no such name or key, or nothing counts errors.
    """
    given = {"base": metrics} if isinstance(metrics, str) else dict(metrics)
    base = given.pop("base", None)
    if base is not None and base not in SETS:
        raise unknown_name("metrics", base, SETS)
    merged = {**(SETS[base] if base is not None else {}), **given}
    if base is not None and not merged.get("errors"):
        raise SpecError(
            f"metrics {base!r} count no errors; give what does: {{'base': {base!r}, 'errors': PromQL}}, or take istio"
        )
    return codec.decode(Metrics, merged, "metrics")


def counted(metrics: Metrics) -> frozenset[str]:
    """Return the kinds of checks that can be made."""
    found = {ErrorRate.kind}
    found |= {Latency.kind} if metrics.latency_bucket else set()
    found |= {ScoreShift.kind} if metrics.score_bucket else set()
    return frozenset(found)


def check(metrics: Metrics, policy: Policy) -> None:
    """Refuse a policy with a check that could never be made.

    Raises:
        SpecError: nothing counts what it needs, so that the rollout would wait for it until its time is over.
    """
    if missing := sorted({one.kind for one in policy.checks} - counted(metrics)):
        raise SpecError(
            f"nothing in Prometheus tells {', '.join(missing)}, which the policy checks; the place's metrics tell "
            f"{', '.join(sorted(counted(metrics)))}: leave such checks out, or take metrics that tell it"
        )


def _counters(requests: str, errors: str = "", latency_bucket: str = "") -> dict[str, str]:
    """Return the queries for some selectors."""
    series = {"requests": requests, "errors": errors, "latency_bucket": latency_bucket}
    le = {"latency_bucket": ", le"}
    return {what: _by_server(one, requests, le.get(what, "")) for what, one in series.items() if one}


def _by_server(series: str, alive: str, by: str = "") -> str:
    """Return the query for the sums by server; of a server that is not there any more, the last ones.

    Not the last ones of all, since a server that starts anew lacks the labels that it has not met again yet: what it
    counted under them before would be added to what it counts now.
    """
    now, last = (f"sum by ({{server}}{by}) ({one})" for one in (series, f"last_over_time({series}[{{window}}])"))
    return f"{now} or ({last} unless on ({{server}}) {alive})"


def _istio(where: str) -> Mapping[str, str]:
    counters = _counters(
        f"istio_requests_total{{{where}}}",
        f'istio_requests_total{{{where},response_code=~"5.."}}',
        f"istio_request_duration_milliseconds_bucket{{{where}}}",
    )
    return {**counters, "latency_unit": "ms"}


_POD = 'namespace="{namespace}",pod=~"{pods}"'  # labels that a PodMonitor gives to what it scrapes
_REST = f'{_POD},path=~"/v2/models/.+/infer"'
_QUEUE = 'k8s_namespace_name="{namespace}",kn_revision_name="{revision}"'
_OLD_QUEUE = 'namespace_name="{namespace}",revision_name="{revision}"'
_GOOD = f'nv_inference_request_success{{{_POD},model="{{service}}"}}'
# `reason` is there in newer ones. A request that its client gave up is none of the model's.
_BAD = f'nv_inference_request_failure{{{_POD},model="{{service}}",reason!="CANCELED"}}'
_TRITON = _counters(_GOOD, _BAD)

SETS: Mapping[str, Mapping[str, str]] = {
    # https://istio.io/latest/docs/reference/config/metrics/, told by the sidecar of each pod.
    "istio": _istio(
        'reporter="destination",destination_workload_namespace="{namespace}",destination_workload="{workload}"'
    ),
    # The same, told by the gateway, so that `server` is a pod of the gateway. It also sees what no pod answered.
    "istio_gateway": _istio(
        'reporter="source",destination_service_namespace="{namespace}",destination_service_name="{revision}"'
    ),
    # https://knative.dev/docs/serving/observability/metrics/serving-metrics/ (OpenTelemetry).
    "knative": {
        **_counters(
            f"kn_serving_invocation_duration_seconds_count{{{_QUEUE}}}",
            f'kn_serving_invocation_duration_seconds_count{{{_QUEUE},http_response_status_code=~"5.."}}',
            f"kn_serving_invocation_duration_seconds_bucket{{{_QUEUE}}}",
        ),
        "server": "k8s_pod_name",
    },
    # https://knative.dev/v1.10-docs/serving/services/service-metrics/ (OpenCensus, up to Knative 1.18).
    "knative_opencensus": {
        **_counters(
            f"revision_app_request_count{{{_OLD_QUEUE}}}",
            f'revision_app_request_count{{{_OLD_QUEUE},response_code_class="5xx"}}',
            f"revision_app_request_latencies_bucket{{{_OLD_QUEUE}}}",
        ),
        "latency_unit": "ms",
        "server": "pod_name",
    },
    # KServe's python/kserve/kserve/metrics.py and model.py: the time of `predict`, failed calls included, no errors.
    "kserve": _counters(
        f"request_predict_seconds_count{{{_POD}}}", latency_bucket=f"request_predict_seconds_bucket{{{_POD}}}"
    ),
    # MLServer's mlserver/rest/app.py (starlette_exporter): REST only.
    "mlserver": _counters(
        f"rest_server_requests_total{{{_REST}}}",
        f'rest_server_requests_total{{{_REST},status_code=~"5.."}}',
        f"rest_server_request_duration_seconds_bucket{{{_REST}}}",
    ),
    # https://docs.seldon.ai/seldon-core-2/user-guide/operational-monitoring/operational: no histogram per model.
    "seldon": _counters(
        'seldon_model_infer_total{namespace="{namespace}",model="{workload}"}',
        'seldon_model_infer_total{namespace="{namespace}",model="{workload}",code=~"5.."}',
    ),
    # https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md: of the time there are sums
    # and summaries, and no histogram but that of the first response, which is not on by default.
    "triton": {
        **_TRITON,
        "requests": "({requests}) + (({errors}) or 0 * ({requests}))".format(**_TRITON),
    },
}

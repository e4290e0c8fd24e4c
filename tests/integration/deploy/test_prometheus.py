"""What a real Prometheus scrapes from servers is what a rollout reads."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")

from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.hooks.kserve import KServeServing
from airflow_ml_provider.hooks.prometheus import PrometheusHook
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy import metrics, prometheus
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.kserve.manifest import manifest
from airflow_ml_provider.stages.deploy.place import KServe
from airflow_ml_provider.stages.deploy.policy import ErrorRate, Latency, RolloutPolicy
from airflow_ml_provider.stages.deploy.prometheus import Part
from airflow_ml_provider.stages.deploy.rollout import advance, begin
from airflow_ml_provider.stages.deploy.service import Readings, Service
from airflow_ml_provider.stages.deploy.service import Version as ServedVersion
from airflow_ml_provider.stages.deploy.state import Seen, Version
from airflow_ml_provider.stages.deploy.stats import Histogram, VersionStats

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

PODS = {"v1": ("one-6f9d-abcde", "two-6f9d-fghij"), "v2": ("three-7c4b-klmno",)}
ISTIO = metrics.resolve("istio")


class Servers(http.server.ThreadingHTTPServer):
    """One page of counters for each pod that is there; the others answer 404, as if they were gone."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.pages: dict[str, str] = {}

    def handle_error(self, *args: object) -> None:
        """Say nothing when Prometheus ends in the middle of a page."""


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Servers)
        page = self.server.pages.get(self.path.strip("/"))
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write((page or "").encode())

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def port(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Prometheus that scrapes every pod twice a second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus on the PATH; Debian: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    target = f"127.0.0.1:{servers.server_address[1]}"
    jobs = [
        {
            "job_name": pod, "metrics_path": f"/{pod}", "honor_labels": True,
            "static_configs": [{"targets": [target], "labels": {"pod": pod, "namespace": "ml"}}],
        }
        for pods in PODS.values() for pod in pods
    ]  # fmt: skip
    config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{number}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for_prometheus(process, number, folder / "log")
            yield number
        finally:
            process.terminate()


def _wait_for_prometheus(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
                return
        except URLError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture
def hook(port: int, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> PrometheusHook:
    servers.pages.clear()
    monkeypatch.setenv("AIRFLOW_CONN_PROMETHEUS", json.dumps({"conn_type": "http", "host": "127.0.0.1", "port": port}))
    return PrometheusHook("prometheus")


def part(service: str, version: str) -> Part:
    return Part(version, f"{service}-{version}-predictor", f"{service}-{version}-predictor")


def read(hook: PrometheusHook, service: str, of: metrics.Metrics = ISTIO) -> Readings:
    parts = [part(service, version) for version in PODS]
    return prometheus.readings(hook.query(prometheus.query(of, service, "ml", parts)), of, parts)


def until(read: Callable[[], Any], expected: Any) -> None:
    """Wait until Prometheus has scraped what is expected, and fail by showing what it has instead."""
    found = None
    for _ in range(100):
        found = read()
        if found == expected:
            return
        time.sleep(0.1)
    assert found == expected


def istio(service: str, version: str, good: int, bad: int = 0, reporter: str = "destination") -> str:
    """Return what a sidecar shows: good answers within 25 ms, bad ones within 250 ms, from two callers."""
    workload = f"{service}-{version}-predictor"
    where = f'destination_workload="{workload}",destination_workload_namespace="ml",reporter="{reporter}"'
    codes = {"200": good - 1, "404": 1, **({"503": bad} if bad else {})}
    lines = [
        f'istio_requests_total{{{where},response_code="{code}",source_workload="{caller}"}} {count}'
        for code, whole in codes.items()
        for caller, count in (("gateway", whole // 2), ("job", whole - whole // 2))
    ]
    name = "istio_request_duration_milliseconds_bucket"
    lines += [
        f'{name}{{{where},le="{le}"}} {count}'
        for le, count in (("25", good), ("250", good + bad), ("+Inf", good + bad))
    ]
    return "\n".join([*lines, ""])


def counted(good: int, bad: int = 0) -> VersionStats:
    return VersionStats(good + bad, bad, Histogram((0.025, 0.25), (good, bad, 0)))


def names(service: str, version: str) -> list[str]:
    return [f"{service}-{version}-predictor/{pod}" for pod in PODS[version]]


def test_each_server_of_each_version(hook: PrometheusHook, servers: Servers) -> None:
    """A version without requests has an empty reading; what callers report is not counted twice."""
    one, two = PODS["v1"]
    servers.pages[one] = istio("late", "v1", 70, 7) + istio("late", "v1", 999, reporter="source")
    servers.pages[two] = istio("late", "v1", 30)
    servers.pages["three-7c4b-klmno"] = istio("other", "v2", 5)
    first, second = names("late", "v1")
    until(lambda: read(hook, "late"), {"v1": {first: counted(70, 7), second: counted(30)}, "v2": {}})
    assert read(hook, "nowhere") == {"v1": {}, "v2": {}}


def test_what_a_server_counted_before_it_went(hook: PrometheusHook, servers: Servers) -> None:
    one, two = PODS["v1"]
    first, second = names("gone", "v1")
    servers.pages.update({one: istio("gone", "v1", 100), two: istio("gone", "v1", 50)})
    until(lambda: read(hook, "gone")["v1"], {first: counted(100), second: counted(50)})
    seen = Version("sha256:1", read(hook, "gone")["v1"])
    servers.pages[one] = istio("gone", "v1", 110, 3)
    until(lambda: read(hook, "gone")["v1"][first], counted(110, 3))
    del servers.pages[one]
    # Prometheus itself has forgotten it …
    until(lambda: hook.query(f'istio_requests_total{{pod="{one}",destination_workload="gone-v1-predictor"}}'), [])
    servers.pages[two] = istio("gone", "v1", 51)
    until(lambda: read(hook, "gone")["v1"][second], counted(51))
    seen = seen.read(read(hook, "gone")["v1"])  # … but this was not read before
    assert (seen.window, seen.restarts) == (counted(11, 3), 0)
    assert seen.read({second: counted(52)}).window == counted(12, 3), "when the window is over, nothing is lost"


def test_a_server_that_starts_anew(hook: PrometheusHook, servers: Servers) -> None:
    """It has no series of errors yet, and those of its former life are not added to its requests."""
    (pod,), (name,) = PODS["v2"], names("anew", "v2")
    servers.pages[pod] = istio("anew", "v2", 1000, 10)
    until(lambda: read(hook, "anew")["v2"], {name: counted(1000, 10)})
    seen = Version("sha256:2", read(hook, "anew")["v2"])
    servers.pages[pod] = istio("anew", "v2", 4)
    until(lambda: read(hook, "anew")["v2"], {name: counted(4)})
    seen = seen.read(read(hook, "anew")["v2"])
    assert (seen.window, seen.restarts) == (counted(4), 1)


def test_a_sample_that_is_too_old(hook: PrometheusHook, servers: Servers) -> None:
    of = metrics.resolve({"base": "istio", "window": "1s"})
    (pod,), (name,) = PODS["v2"], names("old", "v2")
    servers.pages[pod] = istio("old", "v2", 5)
    until(lambda: read(hook, "old", of)["v2"], {name: counted(5)})
    del servers.pages[pod]
    until(lambda: read(hook, "old", of)["v2"], {})


def test_no_numbers(hook: PrometheusHook, servers: Servers) -> None:
    (pod,), (name,) = PODS["v2"], names("odd", "v2")
    own = {"requests": 'sum by ({server}) (own_requests{service="{service}",version="{version}"})', "errors": "own_bad"}
    of = metrics.resolve(own)
    servers.pages[pod] = 'own_requests{service="odd",version="v2"} NaN\n'
    until(lambda: [one["value"][1] for one in hook.query('own_requests{service="odd"}')], ["NaN"])
    assert read(hook, "odd", of) == {"v1": {}, "v2": {}}
    servers.pages[pod] = 'own_requests{service="odd",version="v2"} 1.2e3\n'
    until(lambda: read(hook, "odd", of)["v2"], {name: VersionStats(1200)})


def test_queries_that_cannot_be_used(hook: PrometheusHook, servers: Servers) -> None:
    (pod,) = PODS["v2"]
    servers.pages[pod] = istio("bad", "v2", 10, 2)
    until(lambda: read(hook, "bad")["v2"] != {}, True)
    where = '{destination_workload="{workload}"}'
    for requests, message in (
        (f"istio_requests_total{where}", "several series for server .* sum them up by the label 'pod'"),
        (f"sum(istio_requests_total{where})", "without the label 'pod': {}"),
        (f"sum by (pod) (istio_requests_total{where}) / 100", "errors must be between 0 and requests"),
        ("sum by (pod", "Prometheus does not take the query: 400 .*parse error"),
        ("max by (pod) (up) + on () up", "Prometheus does not take the query: 422 "),
    ):
        with pytest.raises(SpecError, match=message):
            read(hook, "bad", metrics.resolve({"base": "istio", "requests": requests}))
    with pytest.raises(Unavailable, match=r"knows no latency_bucket of server .* but 12 requests"):
        read(hook, "bad", metrics.resolve({"base": "istio", "latency_bucket": "none_such_bucket"}))
    with pytest.raises(SpecError, match="query must be one that gives a vector, got 'scalar'"):
        hook.query("1")


_POD = PODS["v2"][0]
_QUEUE = 'k8s_namespace_name="ml",k8s_pod_name="q",kn_revision_name="late-v2-predictor"'
_OLD = 'namespace_name="ml",pod_name="q",revision_name="late-v2-predictor"'
_GATEWAY = 'reporter="source",destination_service_namespace="ml",destination_service_name="late-v2-predictor"'
_INFER = 'app_name="mlserver",method="POST",path="/v2/models/{model_name}/infer"'
PAGES: Mapping[str, str] = {
    "istio": istio("late", "v2", 8, 2),
    "istio_gateway": f"""
istio_requests_total{{{_GATEWAY},response_code="200"}} 8
istio_requests_total{{{_GATEWAY},response_code="503"}} 2
istio_request_duration_milliseconds_bucket{{{_GATEWAY},le="25"}} 8
istio_request_duration_milliseconds_bucket{{{_GATEWAY},le="250"}} 10
istio_request_duration_milliseconds_bucket{{{_GATEWAY},le="+Inf"}} 10
""",
    "knative": f"""
kn_serving_invocation_duration_seconds_bucket{{{_QUEUE},http_response_status_code="200",le="0.025"}} 8
kn_serving_invocation_duration_seconds_bucket{{{_QUEUE},http_response_status_code="200",le="0.25"}} 8
kn_serving_invocation_duration_seconds_bucket{{{_QUEUE},http_response_status_code="200",le="+Inf"}} 8
kn_serving_invocation_duration_seconds_count{{{_QUEUE},http_response_status_code="200"}} 8
kn_serving_invocation_duration_seconds_bucket{{{_QUEUE},http_response_status_code="502",le="0.025"}} 0
kn_serving_invocation_duration_seconds_bucket{{{_QUEUE},http_response_status_code="502",le="0.25"}} 2
kn_serving_invocation_duration_seconds_bucket{{{_QUEUE},http_response_status_code="502",le="+Inf"}} 2
kn_serving_invocation_duration_seconds_count{{{_QUEUE},http_response_status_code="502"}} 2
""",
    "knative_opencensus": f"""
revision_app_request_count{{{_OLD},response_code_class="2xx"}} 8
revision_app_request_count{{{_OLD},response_code_class="5xx"}} 2
revision_app_request_latencies_bucket{{{_OLD},le="25"}} 8
revision_app_request_latencies_bucket{{{_OLD},le="250"}} 10
revision_app_request_latencies_bucket{{{_OLD},le="+Inf"}} 10
""",
    "kserve": """
request_predict_seconds_bucket{model_name="late",le="0.025"} 8
request_predict_seconds_bucket{model_name="late",le="0.25"} 10
request_predict_seconds_bucket{model_name="late",le="+Inf"} 10
request_predict_seconds_count{model_name="late"} 10
own_errors 2
""",
    "mlserver": f"""
rest_server_requests_total{{{_INFER},status_code="200"}} 8
rest_server_requests_total{{{_INFER},status_code="500"}} 2
rest_server_requests_total{{method="GET",path="/v2/models/{{model_name}}/ready",status_code="200"}} 99
rest_server_request_duration_seconds_bucket{{{_INFER},le="0.025"}} 8
rest_server_request_duration_seconds_bucket{{{_INFER},le="0.25"}} 10
rest_server_request_duration_seconds_bucket{{{_INFER},le="+Inf"}} 10
""",
    "seldon": """
seldon_model_infer_total{model="late-v2-predictor",method_type="rest",code="200"} 7
seldon_model_infer_total{model="late-v2-predictor",method_type="rest",code="400"} 1
seldon_model_infer_total{model="late-v2-predictor",method_type="rest",code="500"} 2
""",
    "triton": """
nv_inference_request_success{model="late",version="1"} 8
nv_inference_request_failure{model="late",version="1",reason="BACKEND"} 2
nv_inference_request_failure{model="late",version="1",reason="CANCELED"} 7
""",
}
LABELS = {"knative": "q", "knative_opencensus": "q"}


@pytest.mark.parametrize("name", metrics.SETS)
def test_sets(hook: PrometheusHook, servers: Servers, name: str) -> None:
    """Every set reads its source's counters as they are written, and nothing of the others'."""
    servers.pages[_POD] = "".join(PAGES.values())
    given: Any = {"base": name, "errors": "sum by (pod) (own_errors)"} if name == "kserve" else name
    of = metrics.resolve(given)
    # Where it is told by the server, its name begins with that of the Deployment, as Kubernetes makes it.
    workload = "three" if name in ("kserve", "mlserver", "triton") else "late-v2-predictor"
    parts = [Part("v2", workload, "late-v2-predictor")]
    stats = VersionStats(10, 2) if name in ("seldon", "triton") else counted(8, 2)
    asked = prometheus.query(of, "late", "ml", parts)
    expected = {"v2": {f"{workload}/{LABELS.get(name, _POD)}": stats}}
    until(lambda: prometheus.readings(hook.query(asked), of, parts), expected)


def version(name: str) -> ServedVersion:
    return ServedVersion(name, ModelRef("roll", f"s3://models/{name}", f"sha256:{name}"))


def test_a_rollout_sees_a_bad_candidate(
    hook: PrometheusHook, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the InferenceService to the decision; only the cluster is left out."""
    place = KServeServing(KServe(namespace="ml", prometheus_conn_id="prometheus"))
    made = manifest(Service("roll", version("v1"), version("v2"), 50), Abilities())
    monkeypatch.setitem(vars(place), "abilities", Abilities())
    monkeypatch.setattr(place, "_found", lambda name: made)
    (one, _), (three,) = PODS["v1"], PODS["v2"]
    (first, _), (name,) = names("roll", "v1"), names("roll", "v2")
    servers.pages[one] = istio("roll", "v1", 5000)
    until(lambda: place.readings("roll"), {"v1": {first: counted(5000)}, "v2": {}})

    policy = RolloutPolicy(steps=(50, 100), checks=(ErrorRate(), Latency()), min_samples=100)
    seen = Seen(health="ready", percent=50, stable=place.readings("roll")["v1"])
    state = begin(policy, seen, 0, candidate="sha256:v2", stable="sha256:v1")
    state = advance(state, policy, seen, 1).state
    servers.pages.update({one: istio("roll", "v1", 5400, 1), three: istio("roll", "v2", 300, 100)})
    until(lambda: place.readings("roll"), {"v1": {first: counted(5400, 1)}, "v2": {name: counted(300, 100)}})
    found = place.readings("roll")
    decision = advance(state, policy, Seen("ready", percent=50, stable=found["v1"], candidate=found["v2"]), 2)
    assert decision.action == "roll_back"
    assert decision.state.stable is not None
    assert (decision.state.stable.window, decision.state.candidate.window) == (counted(400, 1), counted(300, 100))


def test_without_prometheus() -> None:
    with pytest.raises(SpecError, match=r"nothing counts the requests of service 'late': .* set prometheus_conn_id"):
        KServeServing(KServe()).readings("late")

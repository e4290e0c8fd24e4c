"""What the load test is asked and what it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional

from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages import Result, Spec

Arrivals = Literal["poisson", "constant", "recorded"]

PARTS = ("wait", "network", "queue", "pre", "model", "post")
"""What a latency is made of, in the order of a request: in the generator, on the way, and in the server."""
Protocol = Literal["rest", "grpc"]
_URLS: Mapping[str, tuple[str, str]] = {
    "rest": (r"https?://[^/\s]+(/\S*)?", "an address such as http://127.0.0.1:8080"),
    "grpc": (r"grpcs?://[^/\s]+:\d+", "an address such as grpc://127.0.0.1:8081, or grpcs://…, with protocol 'grpc'"),
}


@dataclass(frozen=True)
class LoadProfile:
    """When requests are sent. Nobody waits for an answer before the next one is sent: arrivals are open-loop.

    Attributes:
        rate: requests per second at which the latency is judged; 0 with `recorded`, which has its own.
        seconds: for how long.
        warmup_s: requests are sent for so long before, and not counted.
        arrivals: `poisson` has independent users, `constant` even gaps, `recorded` the gaps of the recorded requests.
        speed: recorded gaps are divided by it: 2 is twice the recorded rate.
        ramp: increasing rates that are tried first, to find the knee; empty finds none.
        ramp_s: for how long each of them.
        timeout_s: a request without an answer so long after it was due has failed.
        connections: requests that are under way at a time at most; what is due meanwhile waits, and the wait counts.
        max_lag_ms: the figures are not trusted when the generator sent 1 % of the requests later than this by its own
            fault.
        seed: of arrivals and of the choice of rows.
    """

    rate: float = 0.0
    seconds: float = 30.0
    warmup_s: float = 3.0
    arrivals: Arrivals = "poisson"
    speed: float = 1.0
    ramp: tuple[float, ...] = ()
    ramp_s: float = 5.0
    timeout_s: float = 10.0
    connections: int = 256
    max_lag_ms: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arrivals not in ("poisson", "constant", "recorded"):
            raise invalid("arrivals", self.arrivals, "poisson, constant or recorded")
        for name in ("seconds", "speed", "ramp_s", "timeout_s", "max_lag_ms"):
            if getattr(self, name) <= 0:
                raise invalid(name, getattr(self, name), "greater than 0")
        if self.warmup_s < 0:
            raise invalid("warmup_s", self.warmup_s, "0 or greater")
        if (self.rate > 0) == (self.arrivals == "recorded") or self.rate < 0:
            raise invalid("rate", self.rate, "greater than 0 (per second), and 0 with arrivals 'recorded'")
        if any(a >= b for a, b in zip((0.0, *self.ramp), self.ramp)):
            raise invalid("ramp", self.ramp, "increasing rates greater than 0")
        if not 1 <= self.connections <= 900:
            raise invalid("connections", self.connections, "in [1, 900]", "a process has about a thousand files")


@dataclass(frozen=True)
class LoadTestResult(Result):
    """How fast, how many, and where the time goes.

    Attributes:
        report: latencies with intervals, the ramp, the parts and what the generator says of itself; JSON and a page.
        model: the model that was tested.
        knee: highest rate of the ramp that the server sustained; none without one.
        trusted: whether the generator kept up.
    """

    report: Optional[ReportRef] = None
    model: Optional[ModelRef] = None
    knee: Optional[float] = None
    trusted: bool = True


@dataclass(frozen=True)
class LoadTestSpec(Spec):
    """Send requests to a model's server at a given rate and measure what its users would see.

    Attributes:
        model: the model that is tested.
        output: root folder for reports.
        profile: when requests are sent.
        protocol: form of the Open Inference Protocol v2: `rest` or `grpc`.
        url: a service of that protocol that serves the model, for gRPC as `grpc://HOST:PORT` (`grpcs` with TLS); empty
            starts a server of the package for the test, and ends it after.
        service: what the model is called in the service's URLs; empty takes the model's name.
        version: ask this version of the service; empty asks whichever the service chooses.
        requests: Parquet or JSON lines with rows of the model's inputs, or recorded requests (a prediction log, or a
            folder of them); empty takes the sample of the model package.
        rows: rows per request, where requests are made from rows.
        budget: part of a latency (`network`, `queue`, `pre`, `model`, `post` …) to the most milliseconds that 99 % of
            the requests may spend in it.
        scaled_to_zero: the service has no replica now, so the time to its first answer is its cold start. That of a
            server which the test itself starts is always measured, from the start of its process.
        start_s: how long the first answer may take.
        headers: HTTP headers, with gRPC metadata, such as the `Host` behind an ingress; not for secrets.
        confidence: of the intervals.
    """

    stage: ClassVar[str] = "load_test"
    entry: ClassVar[str] = "airflow_ml_provider.stages.load_test.report:run"
    result: ClassVar[type[Result]] = LoadTestResult
    model: ModelRef
    output: str
    profile: LoadProfile
    protocol: Protocol = "rest"
    url: str = ""
    service: str = ""
    version: str = ""
    requests: str = ""
    rows: int = 1
    budget: Mapping[str, float] = field(default_factory=dict)
    scaled_to_zero: bool = False
    start_s: float = 120.0
    headers: Mapping[str, str] = field(default_factory=dict)
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.protocol not in _URLS:
            raise invalid("protocol", self.protocol, "rest or grpc")
        form, allowed = _URLS[self.protocol]
        if self.url and not re.fullmatch(form, self.url):
            raise invalid("url", self.url, allowed)
        if self.rows < 1:
            raise invalid("rows", self.rows, "at least 1")
        if self.start_s <= 0:
            raise invalid("start_s", self.start_s, "greater than 0")
        if self.scaled_to_zero and not self.url:
            raise invalid("scaled_to_zero", True, "False without a url", "the test starts a server by itself then")
        if not 0 < self.confidence < 1:
            raise invalid("confidence", self.confidence, "in (0, 1)", "give a fraction, not percent")
        check_budget(self.budget)
        if self.profile.arrivals == "recorded" and not self.requests:
            raise SpecError("arrivals 'recorded' need requests: a prediction log, or JSON lines with a time")

    def requires(self) -> dict[str, str]:
        needs = {"aiohttp": "aiohttp"}
        if self.protocol == "grpc":
            needs = {"grpc": "grpcio", "google.protobuf": "protobuf"}
        if self.requests.endswith(".parquet") or not self.requests:
            needs["pyarrow"] = "pyarrow"
        if not self.url:
            needs.update({"aiohttp": "aiohttp", "prometheus_client": "prometheus-client"})
            needs.update({"onnxruntime": "onnxruntime", "numpy": "numpy"})
        return needs


def check_budget(budget: Mapping[str, float]) -> None:
    """Refuse a budget of parts that a latency does not have, or of no time.

    Raises:
        SpecError: it is one.
    """
    for part, limit in budget.items():
        if part not in PARTS:
            raise unknown_name("part of the budget", part, PARTS)
        if limit <= 0:
            raise invalid(f"budget.{part}", limit, "greater than 0 (milliseconds)")

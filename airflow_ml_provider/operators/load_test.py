"""Send requests to a model's server at a given rate, before users do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider import codec
from airflow_ml_provider.links import ReportLink
from airflow_ml_provider.operators._base import StageOperator, boolean
from airflow_ml_provider.refs import ModelRef, as_ref

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval
    from airflow_ml_provider.stages.load_test.spec import LoadProfile, LoadTestSpec


class LoadTestOperator(StageOperator):
    """Measure what users of a model would see at a given rate: latencies, errors, the knee, the cold start.

    Requests are sent when they are due, whatever became of those before, and a latency counts from that moment. The
    task is refused when a part exceeds its budget, or when the generator itself fell behind. `GateOperator` judges the
    report by the `load` of its policy.

    Parameters:
        model: the model: the register stage's result, its `model`, or a ref.
        output: root folder for reports.
        profile: when requests are sent, as a `LoadProfile` or a mapping of its attributes.
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
        scaled_to_zero: the service has no replica now, so the time to its first answer is its cold start.
        start_s: how long the first answer may take (seconds).
        headers: HTTP headers, with gRPC metadata, such as the `Host` behind an ingress; not for secrets.
        confidence: of the intervals, in (0, 1).
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "model", "output_root", "profile", "protocol", "url", "service",
        "version", "requests", "rows", "budget", "scaled_to_zero", "start_s", "headers", "confidence",
    )  # fmt: skip
    operator_extra_links = (*StageOperator.operator_extra_links, ReportLink())  # type: ignore[assignment]
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        output: str,
        profile: LoadProfile | Mapping[str, Any],
        protocol: str = "rest",
        url: str = "",
        service: str = "",
        version: str = "",
        requests: str = "",
        rows: int = 1,
        budget: Mapping[str, float] | None = None,
        scaled_to_zero: bool | str = False,
        start_s: float = 120.0,
        headers: Mapping[str, str] | None = None,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(profile, Mapping) and "{{" not in str(profile):
            from airflow_ml_provider.stages.load_test.spec import LoadProfile  # only files that test load pay for it

            codec.decode(LoadProfile, profile, "profile")
        self.model = model
        self.output_root = output  # `output` is a property of every operator
        self.profile = profile
        self.protocol = protocol
        self.url = url
        self.service = service
        self.version = version
        self.requests = requests
        self.rows = rows
        self.budget = budget
        self.scaled_to_zero = scaled_to_zero
        self.start_s = start_s
        self.headers = headers
        self.confidence = confidence

    def build_spec(self, interval: Interval, context: Context) -> LoadTestSpec:
        from airflow_ml_provider.stages.load_test.spec import LoadProfile, LoadTestSpec

        return LoadTestSpec(
            model=as_ref(ModelRef, self.model, "model"),
            output=self.output_root,
            profile=codec.decode(LoadProfile, self.profile, "profile"),
            protocol=self.protocol or "rest",  # type: ignore[arg-type]  # the spec checks it
            url=self.url or "",
            service=self.service or "",
            version=str(self.version or ""),
            requests=self.requests or "",
            rows=int(self.rows),
            budget={part: float(limit) for part, limit in (self.budget or {}).items()},
            scaled_to_zero=boolean(self.scaled_to_zero, "scaled_to_zero"),
            start_s=float(self.start_s),
            headers=dict(self.headers or {}),
            confidence=float(self.confidence),
        )

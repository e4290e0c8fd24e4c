"""The load test stage: find the first answer, the knee, and the latencies at a rate; write the report and its page."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import DataError, Unavailable
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ReportRef
from airflow_ml_provider.stages.load_test import generator, logic, page, target, traffic
from airflow_ml_provider.stages.load_test.logic import Estimate, Knee, Sample, Step
from airflow_ml_provider.stages.load_test.spec import PARTS, LoadTestResult, LoadTestSpec
from airflow_ml_provider.stages.load_test.target import Target
from airflow_ml_provider.stages.load_test.traffic import Traffic

if TYPE_CHECKING:
    from airflow_ml_provider.stages.load_test.rest import RestClient
    from airflow_ml_provider.stages.load_test.rpc import RpcClient

    Client = Union[RestClient, RpcClient]

log = logging.getLogger(__name__)

KIND = "airflow_ml.load_test/1"
REPORT, PAGE = "load_test.json", "load_test.html"
_AGAIN_S = 0.01


@dataclass(frozen=True)
class Seen:
    """All that was seen.

    Attributes:
        cold_start_s: time to the first answer; none when that was no cold start.
        traffic: what was sent.
        ramp: the steps that were tried.
        judged: the step at the profile's rate.
        samples: its requests.
        versions: who answered, by `x-model-version`, a header or trailing metadata.
    """

    cold_start_s: Optional[float]
    traffic: Traffic
    ramp: tuple[Step, ...]
    judged: Step
    samples: Sequence[Sample]
    versions: tuple[str, ...]


def run(spec: LoadTestSpec, info: RunInfo) -> LoadTestResult:
    """Test a server under load.

    Raises:
        DataError: there is no package, or there are no requests for the model.
        IntegrityError: the package is another model.
        Unavailable: the service did not answer at all.
        StageCrashed: the server that was started has ended.
    """
    with target.opened(spec) as place, generator.punctual() as loop:
        seen = loop.run_until_complete(_test(spec, place))
        place.check()
    return _publish(spec, info, seen)


async def _test(spec: LoadTestSpec, place: Target) -> Seen:
    profile = spec.profile
    async with _client(spec, place) as client:
        found, first_s = await _begin(spec, place, client)
        due, rate = _due(spec, found)
        if profile.warmup_s:
            await _drive(spec, client, found, logic.arrivals(rate, profile.warmup_s, "poisson", profile.seed + 1))
        steps: list[Step] = []
        for at in profile.ramp:
            steps.append(await _step(spec, client, found, at, profile.seed + 2 + len(steps)))
            place.check()
            if steps[-1].problem or not logic.sustained(steps[-1], steps[0]):
                break  # what is higher would say nothing more, and fill the server with requests
        samples = await _drive(spec, client, found, due, in_order=profile.arrivals == "recorded")
        seconds = min(profile.seconds, due[-1]) if profile.arrivals == "recorded" else profile.seconds
        judged = logic.measured(samples, rate, seconds or profile.seconds, profile.max_lag_ms, spec.confidence)
        log.info("%g requests/s: %s", rate, {name: one.value for name, one in judged.figures.items()})
        return Seen(first_s, found, tuple(steps), judged, samples, tuple(sorted(client.versions)))


def _client(spec: LoadTestSpec, place: Target) -> Client:
    version = spec.version if spec.url else ""
    if spec.protocol == "grpc":
        from airflow_ml_provider.stages.load_test.rpc import RpcClient

        return RpcClient(place.url, place.name, version, spec.headers)
    from airflow_ml_provider.stages.load_test.rest import RestClient

    return RestClient(place.url, place.name, version, spec.headers)


async def _begin(spec: LoadTestSpec, place: Target, client: Client) -> tuple[Traffic, Optional[float]]:
    """Wait for the first answer; return the requests, and how long it took if that was a cold start."""
    began = time.perf_counter() if place.began is None else place.began
    package = tables.local_path(spec.model.uri)
    found: Optional[Traffic] = None
    why = "nothing was asked"
    while (left := began + spec.start_s - time.perf_counter()) > 0:
        place.check()
        try:
            if found is None:
                known = (package / models.MANIFEST).is_file()
                found = _traffic(spec, traffic.inputs_of(package) if known else await client.inputs())
                client.prepare(found.requests)
            (sample,) = await generator.drive([0.0], client.send, connections=1, timeout_s=left)
            why = sample.error
            if not why:
                cold = spec.scaled_to_zero or place.began is not None
                return found, time.perf_counter() - began if cold else None
            if why == client.refused:
                raise DataError(f"{place.url} refuses the requests of {spec.requests or 'the sample'}: {why}")
        except Unavailable as error:
            why = str(error)
        time.sleep(_AGAIN_S)
    raise Unavailable(f"{place.url} did not answer a request within {spec.start_s:g} s: {why}")


def _traffic(spec: LoadTestSpec, inputs: Sequence[Mapping[str, Any]]) -> Traffic:
    source = spec.requests or f"{spec.model.uri.rstrip('/')}/{models.SAMPLE}"
    timed = spec.profile.arrivals == "recorded"
    return traffic.load(tables.local_path(source), inputs, spec.rows, timed=timed)


def _due(spec: LoadTestSpec, found: Traffic) -> tuple[list[float], float]:
    """Return when the requests that are judged are due, and their mean rate."""
    profile = spec.profile
    if found.times is None:
        return logic.arrivals(profile.rate, profile.seconds, profile.arrivals, profile.seed), profile.rate
    due = logic.replayed(found.times, profile.seconds, profile.speed)
    if len(due) < 2 or not due[-1]:
        raise DataError(f"requests {spec.requests}: a replay takes two of different times within {profile.seconds:g} s")
    return due, len(due) / due[-1]


async def _step(spec: LoadTestSpec, client: Client, found: Traffic, rate: float, seed: int) -> Step:
    profile = spec.profile
    kind = "poisson" if profile.arrivals == "recorded" else profile.arrivals
    samples = await _drive(spec, client, found, logic.arrivals(rate, profile.ramp_s, kind, seed))
    step = logic.measured(samples, rate, profile.ramp_s, profile.max_lag_ms, spec.confidence)
    log.info("ramp, %g requests/s: %s", rate, {name: one.value for name, one in step.figures.items()})
    return step


async def _drive(
    spec: LoadTestSpec, client: Client, found: Traffic, due: Sequence[float], *, in_order: bool = False
) -> list[Sample]:
    draw, many = random.Random(spec.profile.seed), len(found.requests)  # noqa: S311 - a choice of rows
    chosen = range(many) if in_order else [draw.randrange(many) for _ in due]
    profile = spec.profile
    return await generator.drive(
        due, lambda at: client.send(chosen[at]), connections=profile.connections, timeout_s=profile.timeout_s
    )


def _body(spec: LoadTestSpec, info: RunInfo, seen: Seen) -> dict[str, Any]:
    judged, knee = seen.judged, logic.knee(seen.ramp)
    budget = logic.parts(seen.samples, PARTS, spec.budget, spec.confidence)
    figures = {
        **judged.figures,
        "cold_start_s": Estimate(seen.cold_start_s),
        "knee_per_s": Estimate(knee.rate),
    }
    reasons = [judged.problem, logic.over_budget(budget)]
    body = {
        "kind": KIND,
        "model": {"name": spec.model.name, "version": spec.model.version, "digest": spec.model.digest},
        "target": {
            "url": spec.url, "protocol": spec.protocol, "versions": seen.versions,
            "own": not spec.url,
        },
        "interval": info.interval,
        "requests": {
            "source": spec.requests or models.SAMPLE, "digest": seen.traffic.digest,
            "different": len(seen.traffic.requests), "rows": spec.rows,
        },
        "settings": {"profile": spec.profile, "confidence": spec.confidence, "budget": spec.budget},
        "rate": judged.rate,
        "metrics": {name: one for name, one in figures.items() if one.value is not None or name in judged.figures},
        "judged": judged,
        "parts": budget,
        "ramp": seen.ramp,
        "knee": knee,
        "generator": {"trusted": not judged.problem, "reason": judged.problem, "lag_ms": judged.lag_ms},
        "passed": not any(reasons),
        "reason": "; ".join(filter(None, reasons)),
    }  # fmt: skip
    plain: dict[str, Any] = codec.encode(body)
    return plain


def _folder(spec: LoadTestSpec, info: RunInfo) -> Path:
    """Return where the report goes: another model, setting or interval gets another folder."""
    what = {k: v for k, v in codec.encode(spec).items() if k not in ("model", "output")}
    identity = codec.digest({**what, "model": spec.model.digest, "interval": info.interval and info.interval.key})
    return tables.local_path(spec.output) / spec.model.name / identity.partition(":")[2][:12]


def _publish(spec: LoadTestSpec, info: RunInfo, seen: Seen) -> LoadTestResult:
    body, folder = _body(spec, info, seen), _folder(spec, info)
    tables.write_text(folder / PAGE, page.render(body))
    path = tables.write_text(folder / REPORT, json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False))
    metrics = {name: one["value"] for name, one in body["metrics"].items() if one["value"] is not None}
    report = ReportRef(
        name=f"{spec.model.name}_load_test", uri=str(path), digest=tables.file_digest(path), passed=body["passed"],
        html=str(folder / PAGE), summary={"rate": body["rate"], **metrics},
    )  # fmt: skip
    knee: Knee = logic.knee(seen.ramp)
    return LoadTestResult(
        status="ok" if body["passed"] else "refused",
        reason=body["reason"],
        inputs=(spec.model,),
        outputs=(report,),
        metrics=metrics,
        links={"report": str(folder / PAGE)},
        report=report,
        model=spec.model,
        knee=knee.rate,
        trusted=body["generator"]["trusted"],
    )

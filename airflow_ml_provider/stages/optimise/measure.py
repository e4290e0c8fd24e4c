"""One candidate after the other on the same rows: accuracy and slices, parity with the model, latency."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from airflow_ml_provider import codec, models
from airflow_ml_provider.exceptions import IntegrityError
from airflow_ml_provider.stages.evaluate import logic as evaluation
from airflow_ml_provider.stages.evaluate import slices
from airflow_ml_provider.stages.evaluate.metrics import Rows, descending, estimate
from airflow_ml_provider.stages.gate.challenge import paired
from airflow_ml_provider.stages.gate.logic import signed_gain
from airflow_ml_provider.stages.optimise import rows as divided
from airflow_ml_provider.stages.optimise.logic import Measured, quantiles, slice_losses
from airflow_ml_provider.stages.optimise.onnx import zeros
from airflow_ml_provider.stages.optimise.spec import ORIGINAL, Measurement, OptimiseSpec
from airflow_ml_provider.stages.register.logic import compare

CPU = "CPUExecutionProvider"
_WARM_UP, _ROUNDS, _SHOWN = 3, 5, 300


@dataclass(frozen=True)
class Candidate:
    """A graph that can be opened.

    Attributes:
        folder: a package with the graph and the manifest.
        scores: of the newer rows.
        size: bytes of the graph.
    """

    folder: Path
    scores: Any
    size: int

    @classmethod
    def of(cls, folder: Path, table: Any) -> Candidate:
        """Score the rows of a table with the package in a folder."""
        return cls(folder, models.Scorer(folder).score(table), (folder / models.ONNX).stat().st_size)

    @property
    def finite(self) -> bool:
        """Whether all scores are probabilities."""
        return bool(((self.scores >= 0) & (self.scores <= 1)).all())  # NaN is neither


def accuracy(spec: Measurement, rows: divided.Divided, candidate: Candidate, threshold: float) -> dict[str, Any]:
    """Return all metrics with intervals, the slices and the worst of them."""
    labels = rows.labels()
    ordered = Rows.of(labels, candidate.scores)
    settings: dict[str, Any] = {"resamples": spec.resamples, "confidence": spec.confidence}
    judged = slices.judge_all(
        spec.slices, rows.newer, ordered, descending(labels, candidate.scores.astype("float64")), threshold,
        min_rows=spec.min_rows, seed=spec.seed, **settings,
    )  # fmt: skip
    return {
        "metrics": estimate(ordered, threshold, seed=(spec.seed,), **settings),
        "slices": judged,
        "worst_slice": evaluation.worst_slices(judged),
    }


def parity(original: Candidate, candidate: Candidate, threshold: float, max_flips: float) -> dict[str, Any]:
    """Return how far a candidate's scores are from the model's: the parity report, and the largest relative difference.

    Only the flips decide here: what a difference of scores costs, the metrics tell.
    """
    import numpy as np

    found = compare(
        original.scores.tolist(), candidate.scores.tolist(), threshold=threshold, max_difference=float("inf"),
        max_flips=max_flips,
    )  # fmt: skip
    before = np.maximum(np.abs(original.scores.astype(np.float64)), np.finfo(np.float32).tiny)
    relative = float((np.abs(candidate.scores - original.scores) / before).max())
    return {**codec.encode(found), "max_relative_difference": relative if np.isfinite(relative) else None}


def compared(
    spec: Measurement, rows: divided.Divided, original: Candidate, candidate: Candidate, threshold: float,
    before: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return a candidate's entry in the table, but for its latency.

    Parameters:
        before: what `accuracy` says of the original.
    """
    body: dict[str, Any] = {
        "bytes": candidate.size,
        "zero_weights": zeros((candidate.folder / models.ONNX).read_bytes()),
        "digest": models.package_digest(candidate.folder),
        "finite": candidate.finite,
        "parity": parity(original, candidate, threshold, spec.policy.max_flips),
    }
    if not candidate.finite:
        return body
    metric = spec.policy.metric
    gain = paired(
        rows.labels(), candidate.scores, original.scores, metric=metric, thresholds=(threshold, threshold),
        confidence=spec.confidence, resamples=spec.resamples, seed=spec.seed,
    )  # fmt: skip
    found = accuracy(spec, rows, candidate, threshold)
    losses = slice_losses(lambda a, b: signed_gain(metric, a, b), _values(before, metric), _values(found, metric))
    loss = {name: None if value is None else -value for name, value in (("value", gain.gain), ("bound", gain.low))}
    return {**body, **found, "loss": loss, "slice_losses": losses}


def measured(spec: OptimiseSpec, name: str, entry: Mapping[str, Any], found: Speeds) -> Measured:
    """Return what the decision looks at of an entry of the table."""
    provider = found.providers[0]
    times = found.times[name].get(provider)
    return Measured(
        size=entry["bytes"],
        latency_ms=times[str(spec.at_batch)]["p50_ms"] if times else float("inf"),
        value=entry["metrics"][spec.policy.metric]["value"] if entry["finite"] else None,
        loss=entry.get("loss", {}).get("value"),
        loss_bound=entry.get("loss", {}).get("bound"),
        slice_losses=entry.get("slice_losses", {}),
        flips=entry["parity"]["flip_share"],
        finite=entry["finite"],
        fails="" if times else f"it does not run on {provider}: {found.failed[name][provider]}",
    )


@dataclass(frozen=True)
class Speeds:
    """Latencies, and what does not run where.

    Attributes:
        providers: execution providers that the model runs on, in order of preference; the first decides.
        unusable: the others that were asked for, and why.
        times: by candidate, provider and batch size `p50_ms` and `p95_ms` of a call.
        failed: by candidate the providers of `providers` that it does not run on, and why.
    """

    providers: list[str]
    unusable: dict[str, str]
    times: dict[str, dict[str, dict[str, dict[str, float]]]]
    failed: dict[str, dict[str, str]]


def speeds(candidates: Mapping[str, Candidate], table: Any, spec: OptimiseSpec) -> Speeds:
    """Return how fast all candidates are on every provider that is here.

    They take turns, so that whatever else the machine does meets all of them.
    """
    import onnxruntime as ort

    found = Speeds([], {}, {name: {} for name in candidates}, {name: {} for name in candidates})
    here = ort.get_available_providers()
    for provider in dict.fromkeys((*spec.providers, CPU)):
        if provider not in here:
            found.unusable[provider] = "this ONNX Runtime lacks it"
        elif provider in spec.providers or not found.providers:  # the CPU unasked where nothing else works
            _on(provider, candidates, table, spec, found)
    return found


def _on(provider: str, candidates: Mapping[str, Candidate], table: Any, spec: OptimiseSpec, found: Speeds) -> None:
    scorers = {}
    for name, candidate in candidates.items():
        order = tuple(dict.fromkeys((provider, CPU)))
        try:
            scorers[name] = models.Scorer(candidate.folder, providers=order, threads=spec.threads)
        except IntegrityError as error:  # it opens on the CPU, where it has been scored
            found.failed[name][provider] = " ".join(str(error).split())[-_SHOWN:]  # what matters comes last
    if ORIGINAL not in scorers:
        found.unusable[provider] = found.failed[ORIGINAL][provider]
        for reasons in found.failed.values():
            reasons.pop(provider, None)
        return
    found.providers.append(provider)
    for size in spec.batch_sizes:
        calls = {name: _call(scorer, table, size) for name, scorer in scorers.items()}
        for name, seconds in take_turns(calls, spec.repeats).items():
            found.times[name].setdefault(provider, {})[str(size)] = quantiles(seconds)


def _call(scorer: models.Scorer, table: Any, size: int) -> Callable[[], Any]:
    import numpy as np

    manifest = scorer.manifest
    index = models.arrow_array(np.arange(size, dtype=np.int64) % table.num_rows)
    feeds = divided.feeds(table.take(index), manifest.inputs, manifest.name)
    return lambda: scorer.run(feeds)


def take_turns(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return how long each call took, `repeats` times (seconds), in turns and after a few that do not count."""
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rounds = min(_ROUNDS, repeats)
    for turn in range(rounds):
        for name, call in calls.items():
            for _ in range(repeats * turn // rounds, repeats * (turn + 1) // rounds):
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _values(body: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    return [
        {"slice": entry["slice"], "value": entry["metrics"].get(metric, {}).get("value")} for entry in body["slices"]
    ]

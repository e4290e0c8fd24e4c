"""What a file for devices scores, against the model it was made from, on the same rows; and whether that will do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from airflow_ml_provider import codec, models
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.edge.export_inputs import NotMeasurable, Runnable, feeds
from airflow_ml_provider.stages.edge.spec import FILES, EdgeExportSpec, ExportPolicy
from airflow_ml_provider.stages.optimise import measure, rows
from airflow_ml_provider.stages.optimise.logic import Measured, quantiles, refusal
from airflow_ml_provider.stages.optimise.measure import Candidate
from airflow_ml_provider.stages.register.logic import compare

NOT_MEASURED = "not measured"


def measured(
    spec: EdgeExportSpec, parent: Path, package: Path, load: Callable[[Path], Runnable], threshold: float
) -> dict[str, Any]:
    """Return what was seen of a file: parity, latency, and with labelled rows accuracy and slices.

    Parameters:
        spec: what was asked for.
        parent: the model's package.
        package: a package with the file.
        load: opens the file.
        threshold: the operating point.
    """
    file = package / FILES[spec.format]
    body: dict[str, Any] = {"parent_bytes": (parent / models.ONNX).stat().st_size}
    try:
        runnable = load(file)
    except NotMeasurable as error:
        return {**body, "max_difference": None, "flips": None, "unmeasured": str(error)}
    divided = rows.divide(spec, spec.dataset, parent) if spec.dataset else None
    table = divided.newer if divided else _sample(parent)
    original = Candidate.of(parent, table)
    candidate = Candidate(package, runnable.score(table), file.stat().st_size)
    parity = compare(
        original.scores.tolist(), candidate.scores.tolist(), threshold=threshold,
        max_difference=spec.policy.max_difference, max_flips=spec.policy.max_flips,
    )  # fmt: skip
    body.update(codec.encode(parity), measured_on=spec.dataset.name if spec.dataset else models.SAMPLE)
    body["latency"] = _latency(spec, parent, runnable, table)
    if divided:
        before = measure.accuracy(spec, divided, original, threshold)
        found = measure.compared(spec, divided, original, candidate, threshold, before)
        names = ("finite", "metrics", "slices", "worst_slice", "loss", "slice_losses")
        body["accuracy"] = {name: found[name] for name in names if name in found}
        body["parent_metrics"] = before["metrics"]
    return body


def judge(policy: ExportPolicy, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return `parity` in words, `passed` (none where nothing was measured), `reason`, and whether the file is `kept`.

    >>> judge(ExportPolicy(unmeasured="allow"), {"unmeasured": "no such machine"})["parity"]
    'not measured'
    """
    if "unmeasured" in found:
        allowed = policy.unmeasured == "allow"
        what = (
            "kept by policy, not known to be equal" if allowed else "refused; policy unmeasured='allow' would keep it"
        )
        reason = f"parity: {NOT_MEASURED}: {found['unmeasured']}; {what}"
        return {"parity": NOT_MEASURED, "passed": None, "reason": reason, "kept": allowed}
    reasons = [] if found["passed"] else [found["reason"]]
    if accuracy := found.get("accuracy"):
        reasons += refusal(policy, _seen(policy, accuracy))
    parity = "equal" if found["passed"] else "different"
    reason = "; ".join(dict.fromkeys(reasons)) or (
        f"{found['rows']} rows: scores differ by up to {found['max_difference']:.2g}, {found['flips']} other decisions"
    )
    return {"parity": parity, "passed": not reasons, "reason": reason, "kept": not reasons}


def _seen(policy: ExportPolicy, accuracy: Mapping[str, Any]) -> Measured:
    """Return what the decision looks at; flips are those of the parity."""
    loss = accuracy.get("loss", {})
    return Measured(
        size=0,
        latency_ms=0.0,
        value=accuracy["metrics"][policy.metric]["value"] if accuracy["finite"] else None,
        loss=loss.get("value"),
        loss_bound=loss.get("bound"),
        slice_losses=accuracy.get("slice_losses", {}),
        finite=accuracy["finite"],
    )


def _latency(spec: EdgeExportSpec, parent: Path, runnable: Runnable, table: Any) -> dict[str, Any]:
    """Return the times of calls of one batch by the model and by the file, on one thread of this machine."""
    import numpy as np

    scorer = models.Scorer(parent)
    batch = table.take(models.arrow_array(np.arange(spec.batch_size, dtype=np.int64) % table.num_rows))
    given = rows.feeds(batch, scorer.manifest.inputs, scorer.manifest.name)
    asked = feeds(runnable.signature, batch)
    calls = {"parent": lambda: scorer.run(given), spec.format: lambda: runnable.call(asked)}
    return {name: quantiles(seconds) for name, seconds in measure.take_turns(calls, spec.repeats).items()}


def _sample(parent: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = parent / models.SAMPLE
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; give `dataset`") from error
    if not table.num_rows:
        raise DataError(f"{path} has no rows to compare; give `dataset`")
    return table

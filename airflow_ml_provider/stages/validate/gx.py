"""Write, audit, publish: check one batch, then let it through wholly, without its bad rows, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, provenance, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ReportRef
from airflow_ml_provider.stages.validate import data_docs, logic, page, profile, series, suite
from airflow_ml_provider.stages.validate.expectations import Evaluation, evaluate
from airflow_ml_provider.stages.validate.logic import Decision, Outcome
from airflow_ml_provider.stages.validate.profile import Profile
from airflow_ml_provider.stages.validate.spec import ValidateResult, ValidateSpec
from airflow_ml_provider.stages.validate.suite import Suite

_ROW = "file_row_number"
_LIBRARIES = ("duckdb", "great-expectations", "pandas", "pyarrow")


@dataclass(frozen=True)
class _Audit:
    """All that is known of a batch before anything is published."""

    suite: Optional[Suite]
    profile: Profile
    outcomes: tuple[Outcome, ...]
    quality: Mapping[str, float]
    aside: Mapping[int, str]
    decision: Decision
    evaluation: Optional[Evaluation]


def run(spec: ValidateSpec, info: RunInfo) -> ValidateResult:
    """Check the batch of `spec`, write what was found, and admit the batch if it may be used.

    The admitted partition is written last: whoever sees new rows finds the report on them.

    Raises:
        SpecError: the suite or the profile is wrong; nothing was written.
        DataError: the batch is missing or is not Parquet.
        IntegrityError: the batch is not the one that its ref names, or was changed before it was admitted.
    """
    interval = _interval(spec)
    path = _batch_file(spec.dataset, interval)
    digest = _digest(spec.dataset, path)
    with closing(tables.connect()) as connection:
        _open(connection, path)
        audit = _audit(spec, interval, path, connection)
        quarantine = _write_quarantine(spec, interval, audit, connection)
        docs = _write_docs(spec, interval, audit)
        report = _write_report(spec, interval, audit, docs)
        series.write_point(spec.reports, interval, _point(spec, interval, audit))
        admitted = _admit(spec, interval, audit, connection, path, digest) if audit.decision.admitted else None
    return _result(spec, info, audit, admitted, quarantine, report, docs)


def _interval(spec: ValidateSpec) -> Interval:
    if spec.interval is None:
        raise DataError("the batch has no interval")  # the spec fills it in
    return spec.interval


def _batch_file(dataset: DatasetRef, interval: Interval) -> Path:
    """Return the file of the batch: the ref's own, or the interval's partition when it names a whole table."""
    path = tables.local_path(dataset.uri)
    if path.is_dir():
        path = tables.partition(dataset.uri, interval)
        if not path.is_file():
            raise DataError(f"dataset {dataset.name!r} has no partition {interval.key} ({path}); run its ingest first")
        return path
    if not path.is_file():
        raise DataError(f"dataset {dataset.name!r} at {path} does not exist; run its ingest first")
    return path


def _digest(dataset: DatasetRef, path: Path) -> str:
    """Return the digest of the batch, which must be that of its ref; the ref of a whole table has another one."""
    found = tables.file_digest(path)
    if dataset.digest and path == tables.local_path(dataset.uri):
        _check_same(dataset, path, found, dataset.digest, "after its ref was made")
    return found


def _check_same(dataset: DatasetRef, path: Path, found: str, expected: str, when: str) -> None:
    if found != expected:
        raise IntegrityError(
            f"dataset {dataset.name!r} at {path} has digest {found}, not {expected}: it was changed {when}; "
            "run its ingest again, then this"
        )


def _open(connection: Any, path: Path) -> None:
    import duckdb

    # Without hive_partitioning=false, DuckDB adds a column `interval` from the name of the folder.
    source = f"read_parquet({tables.quote(str(path))}, hive_partitioning = false, {_ROW} = true)"
    try:
        connection.execute(f"CREATE VIEW numbered AS SELECT * FROM {source}")  # noqa: S608
    except duckdb.Error as error:
        raise DataError(f"the batch at {path} cannot be read as Parquet: {error}") from error
    connection.execute(f"CREATE VIEW batch AS SELECT * EXCLUDE ({_ROW}) FROM numbered")  # noqa: S608


def _audit(spec: ValidateSpec, interval: Interval, path: Path, connection: Any) -> _Audit:
    expected = suite.read(spec.suite) if spec.suite else None
    measured = profile.measure(connection, spec.profile)
    evaluation = None
    if expected is not None:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            table = file.read()
        window = {"interval_start": interval.start, "interval_end": interval.end}
        evaluation = evaluate(expected, table, name=spec.dataset.name, parameters=window)
    outcomes = evaluation.outcomes if evaluation else ()
    quality, aside = logic.scores(measured.counts), logic.set_aside(outcomes)
    decision = logic.decide(
        measured.counts, outcomes, quality, spec.profile.minimum,
        quarantined=len(aside), allow_empty=spec.allow_empty,
    )  # fmt: skip
    return _Audit(expected, measured, outcomes, quality, aside, decision, evaluation)


def _write_quarantine(spec: ValidateSpec, interval: Interval, audit: _Audit, connection: Any) -> Optional[DatasetRef]:
    """Replace the interval's rows set aside, with the reason of each; without any, what is there is removed."""
    path = tables.partition(spec.quarantine_root, interval)
    if not audit.aside:
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()
        return None
    import pyarrow as pa

    names = [row[0] for row in connection.execute("DESCRIBE batch").fetchall()]
    column = "reason"
    while column in names:
        column += "_"
    reasons = pa.table({"row": list(audit.aside), "reason": list(audit.aside.values())})
    connection.register("aside", reasons)
    tables.write(
        connection,
        f"SELECT numbered.* EXCLUDE ({_ROW}), aside.reason AS {tables.quote_name(column)} "  # noqa: S608
        f"FROM numbered JOIN aside ON {_ROW} = aside.row ORDER BY {_ROW}",
        path,
    )
    return tables.describe(f"{spec.dataset.name}_quarantine", path, interval=interval)


def _admit(
    spec: ValidateSpec, interval: Interval, audit: _Audit, connection: Any, batch: Path, digest: str
) -> DatasetRef:
    """Write the rows that may pass aside, and put them in place if the batch is still the one that was checked."""
    path = tables.partition(spec.target, interval)
    query = "SELECT * FROM batch"
    if audit.aside:
        kept = f"FROM numbered WHERE {_ROW} NOT IN (SELECT row FROM aside) ORDER BY {_ROW}"  # noqa: S608
        query = f"SELECT * EXCLUDE ({_ROW}) {kept}"
    checked = path.with_name(f".{path.name}.checked")  # a killed run leaves it to the next one
    try:
        tables.write(connection, query, checked)
        _check_same(spec.dataset, batch, tables.file_digest(batch), digest, "while it was checked")
        os.replace(checked, path)
    finally:
        checked.unlink(missing_ok=True)
    counts = {"read": audit.profile.counts.rows, "quarantined": len(audit.aside)}
    return tables.describe(spec.dataset.name, path, interval=interval, counts=counts)


def _write_docs(spec: ValidateSpec, interval: Interval, audit: _Audit) -> Path:
    site = data_docs.build(interval, audit.evaluation) if audit.evaluation else data_docs.Site()
    first = page.render(
        f"{spec.dataset.name} {interval.key}", audit.decision, audit.profile.counts, audit.outcomes, audit.quality,
        spec.profile.minimum, quarantined=len(audit.aside), results=site.results, suite=site.suite,
    )  # fmt: skip
    return data_docs.publish(tables.local_path(spec.reports) / "data_docs" / interval.key, site, first)


def _write_report(spec: ValidateSpec, interval: Interval, audit: _Audit, docs: Path) -> ReportRef:
    """Write all that was found and decided; the same batch, suite and profile give the same bytes."""
    body = {
        "dataset": spec.dataset,
        "interval": interval,
        "suite": {"name": audit.suite.name, "digest": audit.suite.digest} if audit.suite else None,
        "expectations": [_outcome(o) for o in audit.outcomes],
        "profile": {"asked": spec.profile, "counted": audit.profile},
        "quality": audit.quality,
        "rows": {"read": audit.profile.counts.rows, "quarantined": len(audit.aside)},
        "decision": audit.decision,
    }
    path = tables.local_path(spec.reports) / "reports" / f"interval={interval.key}" / "report.json"
    text = json.dumps(codec.encode(body), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    tables.write_text(path, text + "\n")
    return ReportRef(
        name=f"{spec.dataset.name} validation",
        uri=str(path),
        digest=tables.file_digest(path),
        passed=audit.decision.admitted,
        html=str(docs),
        summary={"rows": audit.profile.counts.rows, "quarantined": len(audit.aside), **audit.quality},
    )


def _outcome(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome for the report, with the number of its rows instead of their positions."""
    body: dict[str, Any] = codec.encode(outcome)
    body["rows"] = len(outcome.rows)
    return {**body.pop("check"), **body, "severity": outcome.severity}


def _point(spec: ValidateSpec, interval: Interval, audit: _Audit) -> dict[str, Any]:
    return {
        "interval": interval.key,
        "dataset": spec.dataset.digest,
        "rows": audit.profile.counts.rows,
        "quarantined": len(audit.aside),
        "quality": audit.quality,
        "passed": audit.decision.admitted,
        "failed": logic.failed(audit.outcomes),
        "reason": _reason(audit),
    }


def _reason(audit: _Audit) -> str:
    return "; ".join(audit.decision.reasons or audit.decision.notices)


def _result(
    spec: ValidateSpec, info: RunInfo, audit: _Audit,
    admitted: Optional[DatasetRef], quarantine: Optional[DatasetRef], report: ReportRef, docs: Path,
) -> ValidateResult:  # fmt: skip
    metrics = {"rows": float(audit.profile.counts.rows), "quarantined": float(len(audit.aside))}
    metrics.update({f"quality_{name}": score for name, score in audit.quality.items()})
    return ValidateResult(
        status="ok" if admitted else "refused",
        reason=_reason(audit),
        inputs=(spec.dataset,),
        outputs=tuple(ref for ref in (admitted, quarantine, report) if ref is not None),
        metrics=metrics,
        links={"data_docs": str(docs)},
        facets=_facets(spec, info, audit),
        dataset=admitted,
        quarantine=quarantine,
        report=report,
        quality=audit.quality,
        failed=logic.failed(audit.outcomes),
    )


def _facets(spec: ValidateSpec, info: RunInfo, audit: _Audit) -> dict[str, Any]:
    of_batch = {
        "assertions": [
            {
                "assertion": o.check.name,
                "success": o.passed,
                "column": o.check.column,
                "severity": "warn" if o.severity == "warn" else "error",
            }
            for o in audit.outcomes
        ],
        "quality_metrics": {"row_count": audit.profile.counts.rows, "columns": audit.profile.columns},
        "input_rows": audit.profile.counts.rows,
    }
    data = {spec.dataset.name: spec.dataset.digest}
    if audit.suite:
        data["suite"] = audit.suite.digest
    made_from = provenance.Provenance(
        code=provenance.code(info),
        data=data,
        environment=provenance.environment(_LIBRARIES),
        why=provenance.why(info),
    )
    return {"inputs": {spec.dataset.uri: of_batch}, "run": {"provenance": made_from}}

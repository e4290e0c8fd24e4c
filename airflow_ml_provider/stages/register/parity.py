"""Score the sample of a package with ONNX Runtime and compare with what its own engine said when it was trained."""

from __future__ import annotations

import json
from pathlib import Path

from airflow_ml_provider import codec, models, tables
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.refs import ModelRef, ReportRef
from airflow_ml_provider.stages.register.logic import Parity, compare

REPORT = "parity.json"


def check(folder: Path, ref: ModelRef, *, threshold: float, max_difference: float, max_flips: float) -> ReportRef:
    """Write `parity.json` into the package and return its ref; the verdict is in it.

    Raises:
        DataError: the package has no sample with native scores.
        IntegrityError: the graph cannot be opened.
    """
    scorer = models.Scorer(folder)
    native, exported = _scores(folder, scorer)
    found = compare(native, exported, threshold=threshold, max_difference=max_difference, max_flips=max_flips)
    body = {
        "model": {"name": ref.name, "digest": ref.digest, "segment": ref.segment},
        "sample": tables.file_digest(folder / models.SAMPLE),
        "allowed": {"max_difference": max_difference, "max_flips": max_flips},
        **codec.encode(found),
    }
    path = tables.write_text(folder / REPORT, json.dumps(codec.encode(body), indent=1, sort_keys=True) + "\n")
    return ReportRef(
        name="parity", uri=str(path), digest=tables.file_digest(path), passed=found.passed, summary=_summary(found)
    )


def _scores(folder: Path, scorer: models.Scorer) -> tuple[list[float], list[float]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / models.SAMPLE
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        native = table.column(models.SAMPLE_SCORE).cast(pa.float64()).fill_null(float("nan")).to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"parity cannot be checked: {path} with the column {models.SAMPLE_SCORE!r} cannot be read: {error}; train "
            "the model again"
        ) from error
    return native, scorer.score(table).tolist()


def _summary(found: Parity) -> dict[str, object]:
    return {"rows": found.rows, "max_difference": found.max_difference, "flips": found.flips, "reason": found.reason}

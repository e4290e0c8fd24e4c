"""Small real model packages and rows to go with them, made in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from airflow_ml_provider import models, tables
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.models import Manifest
from airflow_ml_provider.provenance import Provenance
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef

CARRIERS, ORIGINS = ("AA", "B6", "UA"), ("EWR", "JFK", "LGA")
_SCALES = {"distance": 1000.0, "hour": 10.0}
MIDNIGHT = datetime(2013, 1, 1, tzinfo=timezone.utc)


def rows(count: int = 600, *, seed: int = 0, start: datetime = MIDNIGHT) -> Any:
    """Return an Arrow table of made-up flights with label, in time order; later hours and `UA` are late more often."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    hour, distance = rng.integers(5, 23, count).astype(float), rng.integers(100, 3000, count).astype(float)
    carrier, origin = rng.choice(CARRIERS, count), rng.choice(ORIGINS, count)
    logit = 0.35 * (hour - 14) + 1.2 * (carrier == "UA") - 0.0004 * distance
    label = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype("int64")
    times = [start + timedelta(seconds=int(s)) for s in np.sort(rng.integers(0, 86400, count))]
    return pa.table(
        {
            "flight_id": [f"{start:%Y-%m-%d}-{i}" for i in range(count)],
            "event_timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
            "carrier": carrier.tolist(),
            "origin": origin.tolist(),
            "distance": distance,
            "hour": hour,
            "label": label,
        }
    )


def dataset(path: Path, table: Any, *, name: str = "rows", interval: Interval | None = None) -> DatasetRef:
    """Write an Arrow table as Parquet and return its ref."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return tables.describe(name, path, interval=interval)


def package(
    folder: Path,
    name: str = "late",
    *,
    seed: int = 0,
    skill: float = 1.0,
    features: Sequence[str] = ("distance", "hour", "carrier"),
    segment: Mapping[str, str] | None = None,
    trained_until: datetime = MIDNIGHT,
    run_id: str | None = None,
    threshold: float = 0.5,
) -> ModelRef:
    """Fit a logistic regression, write it as a model package and return its ref.

    Parameters:
        skill: what the coefficients are multiplied by; 0 knows nothing, -1 is always wrong.
        features: what the model knows; without `hour` it is a weak one.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.linear_model import LogisticRegression

    folder.mkdir(parents=True, exist_ok=True)
    table = rows(seed=seed)
    columns = {name: table.column(name).to_numpy() / scale for name, scale in _SCALES.items() if name in features}
    if "carrier" in features:
        carrier = np.array(table["carrier"].to_pylist())
        columns.update({c: (carrier == c).astype(float) for c in CARRIERS})
    matrix = np.column_stack(list(columns.values()))
    fitted = LogisticRegression().fit(matrix, table["label"])
    weights, bias = fitted.coef_[0] * skill, float(fitted.intercept_[0])
    _write_onnx(folder / models.ONNX, dict(zip(columns, weights.tolist(), strict=True)), bias)
    native = 1 / (1 + np.exp(-(matrix @ weights + bias)))
    sample = table.drop_columns(["label"]).append_column(models.SAMPLE_SCORE, pa.array(native))
    pq.write_table(sample.slice(0, 200), folder / models.SAMPLE)
    training = DatasetRef(name="training", uri="file:///training", digest=f"sha256:{seed:064x}", rows=table.num_rows)
    manifest = Manifest(
        name=name,
        engine="sklearn",
        inputs={feature: "string" if feature == "carrier" else "float" for feature in features},
        label="label",
        training=training,
        trained_until=trained_until,
        threshold=threshold,
        segment=dict(segment or {}),
        metrics={"auc": 0.8},
        provenance=Provenance(
            code={"package": "0"},
            data={training.name: training.digest},
            environment={"python": "3", "digest": "sha256:0"},
            randomness={"seed": seed},
            why={"reason": "manual"},
        ),
        run_id=run_id,
    )
    models.write_manifest(folder, manifest)
    return models.describe(folder)


def _write_onnx(path: Path, weights: Mapping[str, float], bias: float) -> None:
    """Write sigmoid(sum of weight * feature / scale + effect of the carrier + bias) as a graph."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    def constant(name: str, value: float) -> Any:
        return numpy_helper.from_array(np.array([value], np.float32), name)

    constants, inputs, nodes, total = [constant("bias", bias)], [], [], "bias"
    for name, scale in _SCALES.items():
        if name in weights:
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]))
            constants.append(constant(f"{name}_weight", weights[name] / scale))
            nodes.append(helper.make_node("Mul", [name, f"{name}_weight"], [f"{name}_part"]))
            nodes.append(helper.make_node("Add", [total, f"{name}_part"], [f"{name}_sum"]))
            total = f"{name}_sum"
    if effects := {c: weights[c] for c in CARRIERS if c in weights}:
        inputs.append(helper.make_tensor_value_info("carrier", TensorProto.STRING, [None, 1]))
        table = {"keys_strings": list(effects), "values_floats": list(effects.values()), "default_float": 0.0}
        nodes.append(helper.make_node("LabelEncoder", ["carrier"], ["effect"], domain="ai.onnx.ml", **table))
        nodes.append(helper.make_node("Add", [total, "effect"], ["logit"]))
        total = "logit"
    nodes.append(helper.make_node("Sigmoid", [total], ["score"]))
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph(nodes, "late", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="airflow-ml-provider")
    checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def evaluation(path: Path, ref: ModelRef, test: DatasetRef, **changes: Any) -> ReportRef:
    """Measure a package on a test set and write the report as the evaluate stage does, without slices by default.

    Parameters:
        changes: top-level entries of the report that replace the measured ones.
    """
    import json

    import pyarrow.parquet as pq

    from airflow_ml_provider.stages.evaluate.metrics import Rows, estimate

    scorer = models.Scorer(Path(ref.uri))
    with pq.ParquetFile(test.uri) as file:
        table = file.read()
    table = table.filter(models.segment_mask(table, ref.segment))
    labels, scores = table.column("label").to_numpy(), scorer.score(table)
    threshold = scorer.manifest.threshold
    found = estimate(Rows.of(labels, scores), threshold, resamples=200, confidence=0.95, seed=(0,))
    times = table.column("event_timestamp").to_pylist()
    body = {
        "model": {"name": ref.name, "digest": ref.digest, "segment": dict(ref.segment)},
        "test": {
            "digest": test.digest,
            "rows": table.num_rows,
            "base_rate": float(labels.mean()),
            "start": times[0].isoformat(),
            "end": times[-1].isoformat(),
        },
        "operating_point": {"by": "threshold", "value": threshold, "threshold": threshold},
        "metrics": found,
        "calibration": [],
        "slices": [],
        "worst_slice": {},
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_text(path, json.dumps(body, indent=1, sort_keys=True))
    return ReportRef(name="evaluation", uri=str(path), digest=tables.file_digest(path))

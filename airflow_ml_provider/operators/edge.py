"""Models for devices: exports to their formats, and releases over the air."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.operators._base import StageOperator, boolean, names
from airflow_ml_provider.refs import DatasetRef, ModelRef, as_ref
from airflow_ml_provider.stages.edge.spec import FILES, KEY, EdgeExportSpec, ExportPolicy, OtaSpec
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


class EdgeExportOperator(StageOperator):
    """Convert a model to the format of a device, and prove on real rows that the file scores as the model does.

    The result's `model` is a package with the file, a child of the model: evaluate, register, gate and promote take it
    as any other, and `OtaReleaseOperator` releases its `file`. Its `report` says how far scores and decisions are from
    the model's, how long a call takes here and, with labelled rows, what it costs in every slice. What differs by more
    than `policy` allows is refused, and so is what this machine cannot run, unless `policy` allows that: a file that
    was not run is never called equal.

    Parameters:
        model: the model package: the train stage's result, its `model`, or a ref. All formats but `ort` take a network
            of PyTorch.
        format: `ort` for ONNX Runtime, `executorch`, `litert` or `coreml`.
        output: root folder for packages and reports.
        dataset: labelled rows to measure on, as for `OptimiseOperator`; none compares scores on the package's sample.
        network: `package.module:function` that makes the untrained module of a package whose training function was
            your own; none takes the network of engine `torch`.
        batch_size: rows of a call of the file; `ort` takes any number.
        precision: of weights and arithmetic; `float16` is for `coreml`.
        policy: when the file counts as the model, as the fields of an `ExportPolicy`; none takes the defaults.
        label: column with 0 or 1.
        timestamp: column with the time of a row.
        slices: columns, or pairs joined by `*`, in which the file may lose no more than the policy allows.
        min_rows: slices with fewer rows, or without both labels, are not judged.
        operating_point: where decisions are compared; none takes the threshold 0.5.
        older_share: share of the rows, oldest first, that are left out where the package does not say which rows it was
            fitted to.
        repeats: calls whose latency is measured.
        resamples: bootstrap resamples for intervals.
        confidence: of the intervals, in (0, 1).
        seed: seed of the bootstrap.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "model", "format", "output_root", "dataset", "network", "batch_size",
        "precision", "policy", "label_column", "timestamp", "slices", "min_rows", "operating_point", "older_share",
        "repeats", "resamples", "confidence", "seed",
    )  # fmt: skip
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        format: str,
        output: str,
        dataset: DatasetRef | Mapping[str, Any] | None = None,
        network: str = "",
        batch_size: int | str = 1,
        precision: str = "float32",
        policy: ExportPolicy | Mapping[str, Any] | None = None,
        label: str = "label",
        timestamp: str = "event_timestamp",
        slices: Sequence[str] = (),
        min_rows: int = 100,
        operating_point: OperatingPoint | Mapping[str, Any] | None = None,
        older_share: float = 0.5,
        repeats: int = 50,
        resamples: int = 500,
        confidence: float = 0.95,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if "{{" not in format and format not in FILES:
            raise invalid("format", format, f"one of {', '.join(FILES)}")
        if isinstance(policy, Mapping) and "{{" not in str(policy):
            codec.decode(ExportPolicy, policy, "policy")
        self.model, self.format, self.dataset, self.network = model, format, dataset, network
        self.output_root, self.label_column = output, label  # `output` and `label` are properties of every operator
        self.batch_size, self.precision, self.policy = batch_size, precision, policy
        self.timestamp, self.slices, self.min_rows, self.operating_point = timestamp, slices, min_rows, operating_point
        self.older_share, self.repeats = older_share, repeats
        self.resamples, self.confidence, self.seed = resamples, confidence, seed

    def build_spec(self, interval: Interval, context: Context) -> EdgeExportSpec:
        fields: dict[str, Any] = {
            "model": codec.encode(as_ref(ModelRef, self.model, "model")),
            "format": self.format,
            "output": self.output_root,
            "dataset": codec.encode(as_ref(DatasetRef, self.dataset, "dataset")) if self.dataset else None,
            "network": self.network,
            "batch_size": int(self.batch_size),
            "precision": self.precision,
            "policy": codec.encode(self.policy or {}),
            "label": self.label_column,
            "timestamp": self.timestamp,
            "slices": names(self.slices),
            "min_rows": int(self.min_rows),
            "operating_point": codec.encode(self.operating_point or {}),
            "older_share": float(self.older_share),
            "repeats": int(self.repeats),
            "resamples": int(self.resamples),
            "confidence": float(self.confidence),
            "seed": int(self.seed),
        }
        return codec.decode(EdgeExportSpec, fields, "edge_export")


class OtaReleaseOperator(StageOperator):
    """Publish a model for devices: its file, deltas to it, and a signed manifest that says which devices get it.

    A greater `percent` for the same model adds devices, 0 takes the model back; the others, and those on which it does
    not work, have the model that all had before. The same again changes nothing, but signs the manifest anew once half
    of its time is over, so run it on a schedule. `stages.edge.client` is the reference client for devices.

    The result's `release` is the manifest; its metrics are `sequence`, `percent`, `bytes` and `delta_bytes`.

    Parameters:
        model: the model: the result of `promote`, `gate` or `register`, its `model`, or a ref.
        target: folder of the releases, one for each model, which a web server shows to the devices.
        signing_conn_id: connection whose password is the private Ed25519 key (PEM); it goes nowhere else.
        file: file of the model package that devices get.
        percent: share of the devices, in [0, 100], that get it.
        edge_runtime: what runs it on the devices; empty for anything.
        minimum: lowest version of that, such as `1.20`; devices with an older one keep what all had before.
        valid_days: devices believe the manifest for so many days.
        deltas: also publish deltas from the files that devices may have; it takes `bsdiff4`.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "model", "target", "signing_conn_id", "file", "percent", "edge_runtime",
        "minimum", "valid_days", "deltas",
    )  # fmt: skip
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        target: str,
        signing_conn_id: str = "edge_signing",
        file: str = "model.onnx",
        percent: float | str = 100.0,
        edge_runtime: str = "onnxruntime",
        minimum: str = "",
        valid_days: float | str = 30.0,
        deltas: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model, self.target, self.signing_conn_id, self.file = model, target, signing_conn_id, file
        self.percent, self.edge_runtime, self.minimum = percent, edge_runtime, minimum
        self.valid_days, self.deltas = valid_days, deltas

    def build_spec(self, interval: Interval, context: Context) -> OtaSpec:
        return OtaSpec(
            model=as_ref(ModelRef, self.model, "model"),
            target=self.target,
            file=self.file,
            percent=float(self.percent),
            runtime=self.edge_runtime,
            minimum=str(self.minimum),
            valid_days=float(self.valid_days),
            deltas=boolean(self.deltas, "deltas"),
        )

    def environment(self) -> dict[str, str]:
        from airflow.providers.common.compat.sdk import AirflowNotFoundException
        from airflow.sdk import BaseHook

        try:
            key = BaseHook.get_connection(self.signing_conn_id).password
        except AirflowNotFoundException as error:
            raise SpecError(
                f"connection {self.signing_conn_id!r} is not defined; create it with a private Ed25519 key (PEM) as "
                "its password: openssl genpkey -algorithm ed25519"
            ) from error
        return {KEY: key or ""}

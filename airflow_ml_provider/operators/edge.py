"""Models for devices: releases over the air."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.operators._base import StageOperator, boolean
from airflow_ml_provider.refs import ModelRef, as_ref
from airflow_ml_provider.stages.edge.spec import KEY, OtaSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


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

        from airflow_ml_provider.exceptions import SpecError

        try:
            key = BaseHook.get_connection(self.signing_conn_id).password
        except AirflowNotFoundException as error:
            raise SpecError(
                f"connection {self.signing_conn_id!r} is not defined; create it with a private Ed25519 key (PEM) as "
                "its password: openssl genpkey -algorithm ed25519"
            ) from error
        return {KEY: key or ""}

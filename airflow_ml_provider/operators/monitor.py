"""Watch the world that the models meet, and start training when it has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import Asset, AssetAlias

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.links import ReportLink
from airflow_ml_provider.operators._base import StageOperator, names
from airflow_ml_provider.refs import DatasetRef, as_ref
from airflow_ml_provider.stages.monitor.spec import DriftPolicy, MonitorResult, MonitorSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval
    from airflow_ml_provider.stages import Result


class MonitorOperator(StageOperator):
    """Compare the rows of an interval with the training rows, and predictions with the labels that arrived.

    Drift never fails the task: it stands in the report, in the series and in XCom. Sustained drift updates
    `retrain_asset` once per episode, which starts whatever is scheduled on it. `DriftSensor` waits on the series.

    Parameters:
        name: name of the series.
        dataset: the rows that were scored: the features stage's result, its `dataset`, or a ref.
        models: registered names; their training profiles, merged, are the reference.
        predictions: root folder of the score stage's table.
        output: root folder of reports and the series.
        labels: root folder of arrived labels (see the features stage); none measures drift alone.
        key: columns that join labels to predictions.
        alias: the holder of this alias when the interval began is what is watched.
        policy: when is it drift, when does training start again; none takes the defaults.
        retrain_asset: asset to update when training shall start; none leaves it at the result's `retrain`. It is
            updated through the asset alias `NAME-retrain`, so `name` cannot be a template then, and the task cannot be
            mapped.
        after_previous: as in every stage, but by default on: the series is read from its beginning.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "name", "dataset", "models", "predictions", "output_root", "labels", "key",
        "alias", "policy",
    )  # fmt: skip
    operator_extra_links = (*StageOperator.operator_extra_links, ReportLink())  # type: ignore[assignment]
    uses_mlflow: ClassVar[bool] = True

    def __init__(
        self,
        *,
        name: str,
        dataset: DatasetRef | Mapping[str, Any],
        models: Sequence[str],
        predictions: str,
        output: str,
        labels: str | None = None,
        key: Sequence[str] = (),
        alias: str = "champion",
        policy: DriftPolicy | Mapping[str, Any] | None = None,
        retrain_asset: Asset | None = None,
        after_previous: bool | str = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(after_previous=after_previous, **kwargs)
        if isinstance(policy, Mapping) and "{{" not in str(policy):
            codec.decode(DriftPolicy, policy, "policy")
        self.name = name
        self.dataset = dataset
        self.models = models
        self.predictions = predictions
        self.output_root = output  # `output` is a property of every operator
        self.labels = labels
        self.key = key
        self.alias = alias
        self.policy = policy
        self.retrain_asset = retrain_asset
        self.retrain_alias: AssetAlias | None = None
        if retrain_asset is not None:
            if "{{" in str(name):
                raise SpecError(
                    f"name {name!r} is a template: with retrain_asset it must be known when the DAG is parsed"
                )
            # An outlet that is an asset would be updated by every run; an alias only when something is added to it.
            self.retrain_alias = AssetAlias(f"{name}-retrain")
            self.outlets = [*(self.outlets or ()), self.retrain_alias]

    def build_spec(self, interval: Interval, context: Context) -> MonitorSpec:
        dataset = as_ref(DatasetRef, self.dataset, "dataset")
        return MonitorSpec(
            name=self.name,
            dataset=dataset,
            models=names(self.models),
            predictions=self.predictions,
            output=self.output_root,
            interval=interval if self.interval else dataset.interval or interval,
            labels=self.labels or None,
            key=names(self.key),
            alias=self.alias,
            policy=codec.decode(DriftPolicy, self.policy or {}, "policy"),
        )

    def publish(self, context: Context, result: Result, interval: Interval) -> None:
        super().publish(context, result, interval)
        if self.retrain_asset is None or self.retrain_alias is None or not isinstance(result, MonitorResult):
            return
        if result.retrain:
            extra: dict[str, Any] = {
                "interval_start": interval.start.isoformat(),
                "interval_end": interval.end.isoformat(),
                "severity": result.severity,
                "drift_share": result.drift_share,
                "reason": result.reason,
            }
            context["outlet_events"][self.retrain_alias].add(self.retrain_asset, extra=extra)
            self.log.warning("training starts: %s", result.reason)

"""Let a batch of data through, wholly, without its bad rows, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider import codec
from airflow_ml_provider.operators._base import StageOperator
from airflow_ml_provider.refs import DatasetRef, as_ref
from airflow_ml_provider.stages.validate.spec import ProfileSpec, ValidateSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


class ValidateOperator(StageOperator):
    """Check a batch by a Great Expectations suite and a quality profile, and admit it to a table if it may be used.

    Rows that break a `quarantine` expectation are set aside with the reason; a failed `block` expectation or a score
    below its minimum refuses the whole batch and leaves the table as it was. Report, Data Docs and the point in the
    quality series are written either way. `IngestOperator` makes the batch; `MonitorOperator` compares distributions
    with those of the training data, which is not a question of right or wrong.

    Parameters:
        dataset: the batch: the ingest stage's result, its `dataset`, or a ref.
        target: root folder of the admitted table; the interval's partition is replaced.
        reports: root folder of reports, Data Docs and the quality series.
        suite: absolute path of a suite (JSON or YAML), read when the task runs, by the process that the stage runs in;
            none checks the profile alone. See `docs/stages/validate.md` for severities.
        profile: what quality is measured by, and the lowest scores that pass; by default nothing is measured.
        quarantine: root folder of rows set aside; by default `TARGET` with `_quarantine` appended.
        allow_empty: a batch without rows passes, with a notice; by default it is refused.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields,
        "dataset", "target", "reports", "suite", "profile", "quarantine", "allow_empty",
    )  # fmt: skip

    def __init__(
        self,
        *,
        dataset: DatasetRef | Mapping[str, Any],
        target: str,
        reports: str,
        suite: str | None = None,
        profile: ProfileSpec | Mapping[str, Any] | None = None,
        quarantine: str | None = None,
        allow_empty: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(profile, Mapping) and "{{" not in repr(profile):
            codec.decode(ProfileSpec, profile, "profile")
        self.dataset = dataset
        self.target = target
        self.reports = reports
        self.suite = suite
        self.profile = profile
        self.quarantine = quarantine
        self.allow_empty = allow_empty

    def build_spec(self, interval: Interval, context: Context) -> ValidateSpec:
        dataset = _dataset(self.dataset)
        return ValidateSpec(
            dataset=dataset,
            target=self.target,
            reports=self.reports,
            suite=self.suite or None,
            profile=codec.decode(ProfileSpec, self.profile or {}, "profile"),
            # The batch knows what it is about; the run's window stands in where it does not.
            interval=interval if self.interval or dataset.interval is None else dataset.interval,
            quarantine=self.quarantine or None,
            allow_empty=codec.decode(bool, self.allow_empty, "allow_empty"),
        )


def _dataset(value: Any) -> DatasetRef:
    """Return the batch's ref; the whole result of a stage stands for its `dataset`."""
    if isinstance(value, Mapping) and "kind" not in value and value.get("dataset"):
        value = value["dataset"]
    return as_ref(DatasetRef, value, "dataset")

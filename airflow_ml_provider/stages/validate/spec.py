"""What the validate stage is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Optional

from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef, ReportRef
from airflow_ml_provider.stages import Result, Spec
from airflow_ml_provider.tables import local_path

DIMENSIONS = ("completeness", "accuracy", "consistency", "timeliness", "uniqueness")


@dataclass(frozen=True)
class ProfileSpec:
    """What the quality of a batch is measured by; every score is a share in [0, 1], 1 is flawless.

    The scores are about the batch as it came, before rows are set aside.

    Attributes:
        required: columns that should have a value: completeness is the share of their cells that have one.
        valid: column to an SQL predicate that a value should fulfil, such as `distance BETWEEN 50 AND 6000`: accuracy
            is the share of the values that do; missing values are the matter of completeness.
        rules: name to an SQL predicate over several columns of a row: consistency is the share of rows and rules that
            do not contradict; where a predicate is null it does not apply, as in a CHECK constraint.
        key: columns that should identify a row: uniqueness is the number of different complete keys over that of rows.
        event_time: column with the time that a row is about.
        known_time: column with the time when the row was recorded.
        max_delay_s: rows recorded later than this after their event are late (seconds): timeliness is the share of
            rows that are not.
        minimum: dimension, or `overall`, to the lowest score that may pass; below it the batch is refused.
    """

    required: tuple[str, ...] = ()
    valid: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    event_time: Optional[str] = None
    known_time: Optional[str] = None
    max_delay_s: float = 86400.0
    minimum: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.event_time) != bool(self.known_time):
            raise SpecError("event_time and known_time go together: how long after the event was it recorded?")
        if self.max_delay_s < 0:
            raise invalid("max_delay_s", self.max_delay_s, "at least 0 (seconds)")
        for name, value in self.minimum.items():
            if name not in (*DIMENSIONS, "overall"):
                raise unknown_name("dimension in minimum", name, (*DIMENSIONS, "overall"))
            if not 0 <= value <= 1:
                raise invalid(f"minimum.{name}", value, "in [0, 1]", "give a fraction, not percent")
            if name not in self.measured() and (name != "overall" or not self.measured()):
                raise SpecError(f"minimum.{name} can never be met: nothing says how {name} is measured")

    def measured(self) -> tuple[str, ...]:
        """Return the dimensions that this profile says how to measure."""
        told = (self.required, self.valid, self.rules, self.event_time, self.key)
        return tuple(name for name, what in zip(DIMENSIONS, told) if what)


@dataclass(frozen=True)
class ValidateResult(Result):
    """Whether the batch may be used.

    Attributes:
        dataset: the admitted rows; none when the batch was refused.
        quarantine: rows that broke a `quarantine` expectation, with the reason; none when there are none.
        report: the full report with every expectation and the profile.
        quality: score per measured dimension, and `overall`, their unweighted mean; empty for a batch without rows.
        failed: names of the expectations that did not hold, by severity (`block`, `quarantine`, `warn`).
    """

    dataset: Optional[DatasetRef] = None
    quarantine: Optional[DatasetRef] = None
    report: Optional[ReportRef] = None
    quality: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidateSpec(Spec):
    """Check one batch and admit it, wholly, without its bad rows, or not at all.

    Attributes:
        dataset: the batch.
        target: root folder of the admitted table; the interval's partition is replaced.
        reports: root folder of reports, Data Docs and the quality series.
        suite: Great Expectations suite (JSON or YAML) in the user's repository; none checks the profile alone.
            An expectation's `meta.severity` is `block` (default), `quarantine` (its rows are set aside) or `warn`;
            Great Expectations' own `severity` counts as block (critical) or warn (warning, info). An expectation may
            refer to `$PARAMETER: interval_start` and `interval_end`.
        profile: what quality is measured by.
        interval: the window of the batch; by default that of `dataset`.
        quarantine: root folder of rows set aside; by default `TARGET` with `_quarantine` appended.
        allow_empty: a batch without rows passes, with a notice, whatever its expectations say; otherwise it is refused.
    """

    stage: ClassVar[str] = "validate"
    entry: ClassVar[str] = "airflow_ml_provider.stages.validate.gx:run"
    result: ClassVar[type[Result]] = ValidateResult
    dataset: DatasetRef
    target: str
    reports: str
    suite: Optional[str] = None
    profile: ProfileSpec = field(default_factory=ProfileSpec)
    interval: Optional[Interval] = None
    quarantine: Optional[str] = None
    allow_empty: bool = False

    def __post_init__(self) -> None:
        if self.interval is None:
            object.__setattr__(self, "interval", self.dataset.interval)
        if self.interval is None:
            raise invalid("interval", None, "given, or part of the dataset ref")
        if self.dataset.format != "parquet":
            raise invalid("dataset.format", self.dataset.format, "'parquet'", "bring it in by the ingest stage first")
        if local_path(self.quarantine_root) == local_path(self.target):
            raise invalid("quarantine", self.quarantine, "another folder than target")

    @property
    def quarantine_root(self) -> str:
        """Root folder of the rows that are set aside."""
        return self.quarantine or self.target.rstrip("/") + "_quarantine"

    def requires(self) -> dict[str, str]:
        needs = {"duckdb": "duckdb", "pyarrow": "pyarrow"}
        if self.suite:
            needs.update({"great_expectations": "great-expectations", "pandas": "pandas"})
            if not self.suite.endswith(".json"):
                needs["yaml"] = "PyYAML"
        return needs

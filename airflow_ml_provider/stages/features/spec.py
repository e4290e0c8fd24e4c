"""What the features stage is asked and what it answers: feature tables per interval, and training sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Optional

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef, ReportRef
from airflow_ml_provider.stages import Result, Spec


@dataclass(frozen=True)
class Source:
    """A table that features are computed from.

    Attributes:
        root: root folder of the table, or one Parquet file.
        key: columns that identify a row; of several versions of a row the newest known one counts.
        version: column that orders the versions. A timestamp also says when a later version became known, unless
            `corrected_at` does.
        corrected_at: timestamp column that says when a corrected version of a row became known, null for the first
            version; before that moment the earlier version counts.
        known_at: column to the timestamp column that says when its value became known (see ingest's `Column`).
    """

    root: str
    key: tuple[str, ...] = ()
    version: Optional[str] = None
    corrected_at: Optional[str] = None
    known_at: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spine:
    """The rows that predictions are made for: who, when, what is known by then, and later the label.

    Attributes:
        source: name of the source.
        timestamp: column with the moment of the prediction, t. Whatever becomes known later cannot enter a feature.
        key: columns that identify a prediction.
        request: name to an SQL expression over what is known at t, such as `hour: hour(scheduled_departure)`.
            Columns with a `known_at` do not exist for it.
        label: SQL expression of the outcome (1, 0, or null when there is none).
        label_known_at: SQL expression of the moment when the outcome is known.
        where: SQL predicate for the rows that count, over what is known at t.
    """

    source: str
    timestamp: str
    key: tuple[str, ...]
    request: Mapping[str, str] = field(default_factory=dict)
    label: Optional[str] = None
    label_known_at: Optional[str] = None
    where: Optional[str] = None

    def __post_init__(self) -> None:
        if bool(self.label) != bool(self.label_known_at):
            raise SpecError("label and label_known_at go together: when is the outcome known?")


@dataclass(frozen=True)
class Split:
    """Division by time: the newest rows are the locked test set, never shown to training or tuning.

    Attributes:
        test_s: length of the test window at the end (seconds).
        gap_s: rows in this window before the test set are left out, so that no outcome straddles (seconds).
    """

    test_s: float = 7 * 86400.0
    gap_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("test_s", "gap_s"):
            if getattr(self, name) < 0:
                raise invalid(name, getattr(self, name), "at least 0 (seconds)")


@dataclass(frozen=True)
class FeaturesResult(Result):
    """What was computed.

    Attributes:
        dataset: the spine rows of the interval with request and historical features at their t, unlabelled.
        labels: outcomes that became known during the interval: key, timestamp, label, label_known_at.
        tables: one ref per feature table.
        skew: online/offline skew report.
    """

    dataset: Optional[DatasetRef] = None
    labels: Optional[DatasetRef] = None
    tables: tuple[DatasetRef, ...] = ()
    skew: Optional[ReportRef] = None


@dataclass(frozen=True)
class FeaturesSpec(Spec):
    """Compute the feature tables of one interval, apply the Feast repository, materialise, join, check for skew.

    Attributes:
        repo: folder with the Feast repository and `features.yaml` (how the feature tables are computed).
        sources: name to table.
        store: root folder for feature tables (`tables/NAME`), joined rows (`joined`), labels (`labels`) and Feast's
            registry and online store (`feast`).
        interval: the window to compute.
        spine: the rows to join features to; none computes and materialises only.
        features: `view:feature` names to join, or one Feast feature service by its name; empty means all views.
        materialize: write the newest values to the online store.
        max_skew: highest share of compared online values that may differ from the offline ones.
    """

    stage: ClassVar[str] = "features"
    entry: ClassVar[str] = "airflow_ml_provider.stages.features.feast:run"
    result: ClassVar[type[Result]] = FeaturesResult
    repo: str
    sources: Mapping[str, Source]
    store: str
    interval: Interval
    spine: Optional[Spine] = None
    features: tuple[str, ...] = ()
    materialize: bool = True
    max_skew: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_skew <= 1:
            raise invalid("max_skew", self.max_skew, "in [0, 1]", "give a fraction, not percent")
        if self.spine and self.spine.source not in self.sources:
            raise SpecError(f"spine.source {self.spine.source!r} is not one of the sources: {', '.join(self.sources)}")

    def requires(self) -> dict[str, str]:
        return {"duckdb": "duckdb", "pyarrow": "pyarrow", "feast": "feast[duckdb]", "yaml": "PyYAML"}


@dataclass(frozen=True)
class TrainingSetResult(Result):
    """Labelled rows for training and the locked test set.

    Attributes:
        train: rows before the test window, with labels that were known at its start.
        test: rows of the test window whose labels were known at the cutoff.
        views: the feature views and the digests of what they read: the training data's provenance.
    """

    train: Optional[DatasetRef] = None
    test: Optional[DatasetRef] = None
    views: tuple[DatasetRef, ...] = ()


@dataclass(frozen=True)
class TrainingSetSpec(Spec):
    """Join features to labels with exact point-in-time semantics and lock away the newest rows as the test set.

    Attributes:
        repo: as in `FeaturesSpec`.
        sources: as in `FeaturesSpec`.
        store: as in `FeaturesSpec`; the sets are written to `training`.
        name: name of the training set.
        interval: its end is the cutoff: nothing that became known later is used.
        spine: the rows and their labels.
        since: first moment of t; none takes all history.
        features: as in `FeaturesSpec`.
        split: division by time.
        min_rows: fewer labelled training rows than this are an error.
    """

    stage: ClassVar[str] = "training_set"
    entry: ClassVar[str] = "airflow_ml_provider.stages.features.training_set:run"
    result: ClassVar[type[Result]] = TrainingSetResult
    repo: str
    sources: Mapping[str, Source]
    store: str
    name: str
    interval: Interval
    spine: Spine
    since: Optional[datetime] = None
    features: tuple[str, ...] = ()
    split: Split = field(default_factory=Split)
    min_rows: int = 100

    def __post_init__(self) -> None:
        if not self.spine.label:
            raise SpecError("a training set needs spine.label and spine.label_known_at")

    def requires(self) -> dict[str, str]:
        return {"duckdb": "duckdb", "pyarrow": "pyarrow", "feast": "feast[duckdb]", "yaml": "PyYAML"}

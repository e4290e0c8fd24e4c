"""What the monitor stage is asked and what it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef, ReportRef
from airflow_ml_provider.stages import Result, Spec

Severity = Literal["none", "warn", "significant"]

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class Levels:
    """Two thresholds of one drift measure.

    Attributes:
        warn: from here on a column has drifted a little.
        significant: from here on it has drifted.
    """

    warn: float
    significant: float

    def __post_init__(self) -> None:
        if not 0 <= self.warn <= self.significant:
            raise invalid("levels", (self.warn, self.significant), "0 <= warn <= significant")


@dataclass(frozen=True)
class DriftPolicy:
    """When a column has drifted, when a batch has, and when training shall start again.

    Attributes:
        psi: population stability index.
        ks: Kolmogorov-Smirnov statistic, for numbers.
        js: Jensen-Shannon distance (base 2, in [0, 1]).
        alpha: a column counts as drifted only if its KS or chi-square test is significant at this level, Bonferroni
            corrected over the columns.
        ignore: columns, or patterns such as `weather__*`, that are reported but not judged: what is nearly the same for
            all rows of a batch, such as the weekday when a batch is one day, never looks like the training rows.
        min_rows: batches with fewer rows are reported but not judged.
        share: share of drifted columns from which the whole batch has drifted significantly.
        min_auc: AUC on arrived labels below this is significant; none leaves performance out of the decision.
        min_labels: fewer labels than this are not judged.
        window: how many of the last batches are looked at …
        needed: … and how many of them must be significant before training starts again (hysteresis). Batches that
            could not be judged are passed over, here and below.
        recover: batches in a row without a significant one that end an episode; within one episode training starts
            once.
        cooldown: after a start, so many batches pass before the next one.
        backfill: whether a backfilled or cleared run may start training.
    """

    psi: Levels = field(default_factory=lambda: Levels(0.1, 0.25))
    ks: Levels = field(default_factory=lambda: Levels(0.1, 0.2))
    js: Levels = field(default_factory=lambda: Levels(0.1, 0.2))
    alpha: float = 0.01
    ignore: tuple[str, ...] = ()
    min_rows: int = 100
    share: float = 0.3
    min_auc: Optional[float] = None
    min_labels: int = 200
    window: int = 3
    needed: int = 2
    recover: int = 3
    cooldown: int = 7
    backfill: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise invalid("alpha", self.alpha, "in (0, 1)", "give a fraction, not percent")
        if self.min_auc is not None and not 0 <= self.min_auc <= 1:
            raise invalid("min_auc", self.min_auc, "in [0, 1]", "give a fraction, not percent")
        for name in ("min_rows", "min_labels"):
            if getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "at least 1")
        if not 0 < self.share <= 1:
            raise invalid("share", self.share, "in (0, 1]", "give a fraction, not percent")
        if not 1 <= self.needed <= self.window:
            raise invalid("needed", self.needed, f"between 1 and window ({self.window})")
        if self.recover < 1 or self.cooldown < 0:
            raise invalid("recover, cooldown", (self.recover, self.cooldown), "at least 1 and 0 batches")

    def judges(self, column: str) -> bool:
        """Return whether a column counts for the severity of a batch."""
        from fnmatch import fnmatchcase

        return not any(fnmatchcase(column, pattern) for pattern in self.ignore)


@dataclass(frozen=True)
class MonitorResult(Result):
    """Does the world still fit?

    Attributes:
        report: every column with its measures, the drift share, and performance on arrived labels.
        severity: of the batch.
        drift_share: share of drifted columns.
        retrain: training shall start again.
    """

    report: Optional[ReportRef] = None
    severity: Severity = "none"
    drift_share: Optional[float] = None
    retrain: bool = False


@dataclass(frozen=True)
class MonitorSpec(Spec):
    """Compare one interval with what the models were trained on, and predictions with the labels that arrived.

    Attributes:
        name: name of the series.
        dataset: the rows that were scored.
        models: registered names; their training profiles, merged, are the reference.
        predictions: root folder of the score stage's table.
        output: root folder of reports and the series.
        interval: the window; by default that of `dataset`.
        labels: root folder of arrived labels (see the features stage); none measures drift alone.
        key: columns that join labels to predictions.
        alias: as in the score stage.
        policy: when is it drift, when does training start again.
    """

    stage: ClassVar[str] = "monitor"
    entry: ClassVar[str] = "airflow_ml_provider.stages.monitor.drift:run"
    result: ClassVar[type[Result]] = MonitorResult
    name: str
    dataset: DatasetRef
    models: tuple[str, ...]
    predictions: str
    output: str
    interval: Optional[Interval] = None
    labels: Optional[str] = None
    key: tuple[str, ...] = ()
    alias: str = "champion"
    policy: DriftPolicy = field(default_factory=DriftPolicy)

    def __post_init__(self) -> None:
        if not _SAFE_NAME.match(self.name):
            raise invalid("name", self.name, "letters, digits and _ . - (it names a folder)")
        if not self.models:
            raise invalid("models", self.models, "at least one registered name")
        if self.labels and not self.key:
            raise invalid("key", self.key, "given when labels are: they are joined to predictions by it")
        if self.interval is None:
            object.__setattr__(self, "interval", self.dataset.interval)
        if self.interval is None:
            raise invalid("interval", None, "given, or part of the dataset ref")

    def requires(self) -> dict[str, str]:
        return {"mlflow": "mlflow-skinny", "numpy": "numpy", "pyarrow": "pyarrow", "duckdb": "duckdb"}

"""Questions that sensors wait on: is it there yet? Airflow-free.

A check is a frozen dataclass with its parameters and a method `ask`. `CHECKS` is the closed set of them, so that what a
deferred task hands to the triggerer is a name and JSON, never a path of code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable, ClassVar, Literal, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import DataError, SpecError, invalid, unknown_name
from airflow_ml_provider.intervals import Interval

SEVERITIES = ("none", "warn", "significant")


@dataclass(frozen=True)
class Answer:
    """What a check found.

    Attributes:
        done: what was waited for has come.
        message: what was found, in one sentence with numbers.
        value: what the waiting task shall know once it is done; small and plain.
    """

    done: bool
    message: str
    value: Mapping[str, Any] = field(default_factory=dict)


class Check:
    """Base of the checks."""

    check: ClassVar[str]

    def ask(self, env: Mapping[str, str]) -> Answer:
        """Look once. `env` holds connection settings; it is part of no check.

        Raises:
            MlError: the question cannot be answered; a retryable one may be asked again.
        """
        raise TypeError(f"{type(self).__name__} must define ask")


@dataclass(frozen=True)
class LandingCheck(Check):
    """Has a landing file come?

    Attributes:
        source: path or glob of the files.
    """

    check: ClassVar[str] = "landing"
    source: str

    def ask(self, env: Mapping[str, str]) -> Answer:
        from airflow_ml_provider.stages.ingest.reader import landing_files

        files = [path.name for path in landing_files(self.source)[1]]
        if not files:
            return Answer(False, f"no file matches {self.source} yet")
        return Answer(True, f"{len(files)} files match {self.source}", {"files": files})


@dataclass(frozen=True)
class PartitionCheck(Check):
    """Are these partitions of a table complete? A partition that exists is: it is renamed into place when written.

    Attributes:
        table: root folder of the table.
        keys: keys of the partitions.
        later: a later partition of the table answers for the last key, too.
        min_rows: fewest rows of all the partitions together; reading them takes pyarrow.
        whole: key of one partition that answers for all of them.
    """

    check: ClassVar[str] = "partition"
    table: str
    keys: tuple[str, ...]
    later: bool = False
    min_rows: int = 0
    whole: str = ""

    def __post_init__(self) -> None:
        if not self.keys:
            raise invalid("keys", self.keys, "at least one key")

    def ask(self, env: Mapping[str, str]) -> Answer:
        found = {path.parent.name.partition("=")[2]: path for path in tables.partitions(self.table)}
        keys = (self.whole,) if self.whole in found else self.keys
        missing = [key for key in keys if key not in found]
        if self.later and missing == [self.keys[-1]] and any(key > self.keys[-1] for key in found):
            missing = []
        if missing:
            return Answer(False, f"{self.table} lacks {len(missing)} of {len(keys)}: {', '.join(missing[:5])}")
        paths = [found[key] for key in keys if key in found]
        value: dict[str, Any] = {"table": self.table, "partitions": [key for key in keys if key in found]}
        if self.min_rows:
            import pyarrow.parquet as pq

            value["rows"] = sum(pq.read_metadata(path).num_rows for path in paths)
            if value["rows"] < self.min_rows:
                return Answer(False, f"{self.table} has {value['rows']} of at least {self.min_rows} rows", value)
        return Answer(True, f"{self.table} is complete for {', '.join(keys)}", value)


@dataclass(frozen=True)
class LabelsCheck(Check):
    """Have enough outcomes arrived for the predictions of one interval?

    Attributes:
        predictions: root folder of the predictions.
        labels: root folder of the labels; all partitions from that of the interval on are looked at.
        key: columns that join labels to predictions.
        interval: key of the interval of the predictions.
        min_share: lowest share of predictions with a label.
        min_labels: fewest labels.
        label: column with the outcome; rows without one do not count.
        parts: keys of the partitions that make up the interval where it is none itself.
    """

    check: ClassVar[str] = "labels"
    predictions: str
    labels: str
    key: tuple[str, ...]
    interval: str
    min_share: float = 0.9
    min_labels: int = 1
    label: str = "label"
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.min_share <= 1:
            raise invalid("min_share", self.min_share, "in [0, 1]", "give a fraction, not percent")
        if not self.key:
            raise invalid("key", self.key, "at least one column that predictions and labels share")

    def ask(self, env: Mapping[str, str]) -> Answer:
        found = {path.parent.name.partition("=")[2]: str(path) for path in tables.partitions(self.predictions)}
        keys = (self.interval,) if self.interval in found or not self.parts else self.parts
        if missing := [key for key in keys if key not in found]:
            return Answer(False, f"{self.predictions} has no predictions for {', '.join(missing[:5])} yet")
        arrived = tables.partitions(self.labels, since=keys[0])
        rows, labels = self._count([found[key] for key in keys], [str(path) for path in arrived])
        share = labels / rows if rows else 0.0
        value = {"interval": self.interval, "predictions": rows, "labels": labels, "share": round(share, 6)}
        message = f"{labels} of {rows} predictions of {self.interval} have a label ({share:.1%})"
        return Answer(labels >= self.min_labels and share >= self.min_share, message, value)

    def _count(self, predictions: list[str], labels: list[str]) -> tuple[int, int]:
        """Return the number of predictions, and of those with a label.

        Raises:
            DataError: a column is missing.
        """
        import duckdb

        keys = ", ".join(tables.quote_name(name) for name in self.key)
        files, scores = (", ".join(map(tables.quote, paths)) for paths in (labels, predictions))
        scored = f"SELECT DISTINCT {keys} FROM read_parquet([{scores}])"  # noqa: S608
        known = f"SELECT {keys} FROM read_parquet([{files}]) WHERE {tables.quote_name(self.label)} IS NOT NULL"  # noqa: S608
        try:
            with tables.connect() as connection:
                rows = connection.execute(f"SELECT count(*) FROM ({scored})").fetchone()[0]  # noqa: S608
                if not labels:
                    return int(rows), 0
                query = f"SELECT count(*) FROM ({scored}) SEMI JOIN ({known}) USING ({keys})"  # noqa: S608
                return int(rows), int(connection.execute(query).fetchone()[0])
        except duckdb.BinderException as error:
            raise DataError(f"{self.predictions} and {self.labels} cannot be joined: {error}") from error


@dataclass(frozen=True)
class FreshnessCheck(Check):
    """Is the newest partition of a feature table recent enough?

    Attributes:
        table: root folder of the table.
        at: the moment to look from; partitions that begin later do not count.
        max_age_s: the newest partition must end at most this long before `at` (seconds).
    """

    check: ClassVar[str] = "freshness"
    table: str
    at: datetime
    max_age_s: float = 86400.0

    def __post_init__(self) -> None:
        if self.max_age_s < 0:
            raise invalid("max_age_s", self.max_age_s, "at least 0 (seconds)")

    def ask(self, env: Mapping[str, str]) -> Answer:
        keys = [path.parent.name.partition("=")[2] for path in tables.partitions(self.table)]
        windows = [window for window in map(_window, keys) if window and window.start < self.at]
        if not windows:
            return Answer(False, f"{self.table} has no partition before {self.at.isoformat()}")
        newest = max(windows, key=lambda window: window.end)
        age = max(0.0, (self.at - newest.end).total_seconds())
        message = f"{self.table} ends at {newest.end.isoformat()}, {age:.0f} s before {self.at.isoformat()}"
        return Answer(age <= self.max_age_s, message, {"table": self.table, "interval": newest.key, "age_s": age})


def _window(key: str) -> Optional[Interval]:
    """Return the window that a key names; somebody's own key names none."""
    try:
        return Interval.from_key(key)
    except SpecError:
        return None


@dataclass(frozen=True)
class AliasCheck(Check):
    """Does an alias point to a version, to the right one, or has it moved?

    Attributes:
        name: registered name.
        alias: the alias.
        version: it must point to this version.
        other_than: it must point to another version than this.
        moved_after: its last move must be later than this moment (by the journal, wall-clock time).
    """

    check: ClassVar[str] = "alias"
    name: str
    alias: str = "champion"
    version: Optional[str] = None
    other_than: Optional[str] = None
    moved_after: Optional[datetime] = None

    def ask(self, env: Mapping[str, str]) -> Answer:
        from airflow_ml_provider.registry import Registry

        registry = Registry.from_env(env)
        holder = registry.holder(self.name, self.alias)
        what = f"{self.name}@{self.alias}"
        if holder is None:
            return Answer(False, f"{what} points to no version yet")
        done = self.version in (None, holder.version) and holder.version != self.other_than
        message = f"{what} points to version {holder.version}"
        if done and self.moved_after is not None:
            moves = registry.journal(self.name, self.alias)
            moved = moves[-1].recorded_at if moves else datetime.min.replace(tzinfo=timezone.utc)
            done = moved > self.moved_after
            message += f", since {moved.isoformat()}" if moves else ", and has never moved"
        return Answer(done, message, {"model": codec.encode(holder)})


@dataclass(frozen=True)
class DriftCheck(Check):
    """Has the monitor found drift in an interval?

    Attributes:
        series: root folder of the monitor's reports and series.
        name: name of the series.
        interval: key of the interval.
        severity: at least this severity …
        share: … or, where it is given, at least this share of drifted columns.
        parts: keys of the points that make up the interval where it is none itself; drift in one of them is enough.
    """

    check: ClassVar[str] = "drift"
    series: str
    name: str
    interval: str
    severity: Literal["warn", "significant"] = "significant"
    share: Optional[float] = None
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share <= 1:
            raise invalid("share", self.share, "in [0, 1]", "give a fraction, not percent")

    def ask(self, env: Mapping[str, str]) -> Answer:
        from airflow_ml_provider.stages.monitor.series import read_series

        points = [p for p in read_series(self.series, self.name) if p["interval"] in (self.interval, *self.parts)]
        if not points:
            return Answer(False, f"series {self.name!r} has no point for {self.interval} yet")
        worst = max(points, key=self._badness)
        severity, share = str(worst["severity"]), worst.get("drift_share")
        shown = "unknown" if share is None else f"{share:.0%}"
        message = f"{self.name} {worst['interval']}: severity {severity}, {shown} of the columns drifted"
        value = {"interval": worst["interval"], "severity": severity, "drift_share": share}
        return Answer(self._badness(worst)[0], message, value)

    def _badness(self, point: Mapping[str, Any]) -> tuple[bool, int, float]:
        """Return whether a point is drift, and how bad it is."""
        severity, share = SEVERITIES.index(str(point["severity"])), point.get("drift_share")
        enough = self.share is not None and share is not None and share >= self.share
        return severity >= SEVERITIES.index(self.severity) or enough, severity, share or 0.0


CHECKS: dict[str, type[Check]] = {
    cls.check: cls for cls in (LandingCheck, PartitionCheck, LabelsCheck, FreshnessCheck, AliasCheck, DriftCheck)
}


def load(check: str, question: Mapping[str, Any], known: Mapping[str, type[Check]] = CHECKS) -> Check:
    """Return the check of a name with its parameters.

    Parameters:
        check: the name.
        question: the parameters, as JSON.
        known: name to check.

    Raises:
        SpecError: there is no such check, or the parameters do not fit it.
    """
    if check not in known:
        raise unknown_name("check", check, known)
    return codec.decode(known[check], question, f"check {check!r}")


def poll(check: Check, settings: Callable[[], Mapping[str, str]]) -> Answer:
    """Ask once; a system that does not answer is an answer, too: not yet."""
    from airflow_ml_provider.exceptions import MlError

    try:
        return check.ask(settings())
    except MlError as error:
        if error.verdict == "terminal":
            raise
        return Answer(False, f"no answer: {error}")
    except ModuleNotFoundError as error:
        raise SpecError(f"check {check.check!r} needs {error.name}; install it where sensors run") from error

"""Decisions of the features stage, without I/O: which features are meant, how rows are split, what skew there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Optional

from airflow_ml_provider.exceptions import DataError, SpecError, unknown_name
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features.spec import Split


@dataclass(frozen=True)
class View:
    """What of a Feast feature view matters here.

    Attributes:
        name: its name.
        table: the feature table that it shows; none for a view of files that somebody else writes.
        path: path or glob of its files.
        event: column with the moment that a row is about.
        created: column with the moment when the row became known; none when every row is known at once.
        ttl_s: values older than this do not count any more (seconds); 0 for none.
        keys: join key to the source column.
        features: feature to its source column, in order.
        types: feature to the SQL type that the view declares; those that have none here are left as they are.
        online: its newest values go to the online store.
    """

    name: str
    path: str
    event: str
    keys: Mapping[str, str]
    features: Mapping[str, str]
    table: Optional[str] = None
    created: Optional[str] = None
    ttl_s: float = 0.0
    types: Mapping[str, str] = field(default_factory=dict)
    online: bool = True


@dataclass(frozen=True)
class Pick:
    """Features of one view as a join shall bring them.

    Attributes:
        view: the view.
        features: names of the features.
        alias: prefix of the output columns: `ALIAS__FEATURE`.
        keys: join key of the view to the column of the rows that are joined to.
    """

    view: View
    features: tuple[str, ...]
    alias: str
    keys: Mapping[str, str]

    def columns(self) -> dict[str, str]:
        """Return output column to feature."""
        return {f"{self.alias}__{feature}": feature for feature in self.features}


def whole(view: View) -> Pick:
    """Return all features of a view."""
    return Pick(view, tuple(view.features), view.name, {key: key for key in view.keys})


def choose(wanted: Sequence[str], views: Mapping[str, View], services: Mapping[str, Sequence[Pick]]) -> list[Pick]:
    """Return what `wanted` means: `view:feature` names, one feature service, or (empty) everything.

    Raises:
        SpecError: a view, feature or service does not exist; the message names the nearest.
    """
    if not wanted:
        return [whole(view) for view in views.values()]
    if len(wanted) == 1 and ":" not in wanted[0]:
        if wanted[0] not in services:
            raise unknown_name("feature service", wanted[0], services)
        return list(services[wanted[0]])
    chosen: dict[str, dict[str, None]] = {}
    for name in wanted:
        view, colon, feature = name.partition(":")
        if not colon:
            raise SpecError(f"features must be `view:feature` names or one feature service alone, got {list(wanted)}")
        if view not in views:
            raise unknown_name("feature view", view, views)
        if feature not in views[view].features:
            raise unknown_name(f"feature of view {view!r}:", feature, views[view].features)
        chosen.setdefault(view, {})[feature] = None
    return [Pick(views[v], tuple(names), v, {key: key for key in views[v].keys}) for v, names in chosen.items()]


def check_columns(names: Iterable[str]) -> None:
    """Raise `SpecError` when two parts of the output claim the same column."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise SpecError(f"column {name!r} would be in the output twice; rename the request column or the feature")
        seen.add(name.lower())


@dataclass(frozen=True)
class Windows:
    """Bounds of a training set.

    Attributes:
        train_end: training rows have t before this, and labels known by it.
        test_start: test rows have t from here on …
        test_end: … and before this, and labels known by it.
    """

    train_end: datetime
    test_start: datetime
    test_end: datetime


def windows(interval: Interval, split: Split, since: Optional[datetime]) -> Windows:
    """Return the bounds of the training and the test rows; the end of the interval is the cutoff.

    Raises:
        SpecError: nothing would be left for training.
    """
    test_start = interval.end - timedelta(seconds=split.test_s)
    found = Windows(test_start - timedelta(seconds=split.gap_s), test_start, interval.end)
    if since is not None and since >= found.train_end:
        raise SpecError(
            f"since must be before the end of the training rows {found.train_end.isoformat()}, got {since.isoformat()};"
            f" the test window takes {split.test_s:g} s and the gap {split.gap_s:g} s before {interval.end.isoformat()}"
        )
    return found


def check_counts(train: int, test: int, bad: int, min_rows: int, split: Split, bounds: Windows) -> None:
    """Raise `DataError` when the rows are too few, or a label is neither 0 nor 1."""
    if bad:
        raise DataError(f"{bad} labels are neither 0 nor 1; spine.label must give 1, 0 or null")
    if train < min_rows:
        raise DataError(
            f"{train} labelled training rows before {bounds.train_end.isoformat()}, at least {min_rows} are needed "
            f"({test} test rows); take a longer history or a shorter test window"
        )
    if split.test_s and not test:
        raise DataError(
            f"no labelled test rows from {bounds.test_start.isoformat()} to {bounds.test_end.isoformat()} "
            f"({train} training rows); take a longer test window"
        )


@dataclass(frozen=True)
class ViewSkew:
    """Online against offline values of one view.

    Attributes:
        entities: entities that the interval updated.
        compared: values that were compared.
        different: how many of them differ.
        examples: the first few that do.
    """

    entities: int
    compared: int
    different: int
    examples: tuple[Mapping[str, Any], ...] = ()


def compare(
    keys: Sequence[str],
    features: Sequence[str],
    offline: Sequence[Mapping[str, Any]],
    online: Mapping[str, Sequence[Any]],
    entities: int,
) -> ViewSkew:
    """Compare rows of offline values with columns of online values in the same order."""
    different, examples = 0, []
    for i, row in enumerate(offline):
        for feature in features:
            left, right = row[feature], online[feature][i]
            if not same(left, right):
                different += 1
                entity = {key: str(row[key]) for key in keys}
                examples.append({**entity, "feature": feature, "offline": str(left), "online": str(right)})
    return ViewSkew(entities, len(offline) * len(features), different, tuple(examples[:5]))


def same(left: Any, right: Any) -> bool:
    """Return whether two values are equal; no value equals no value, and NaN equals NaN.

    >>> same(None, 0.0), same(float("nan"), float("nan")), same(1, 1.0)
    (False, True, True)
    """
    if left is None or right is None:
        return left is right
    return bool(left == right or (left != left and right != right))


def skew_share(views: Mapping[str, ViewSkew]) -> float:
    """Return the share of compared values that differ, over all views; 0 when nothing was compared."""
    compared = sum(view.compared for view in views.values())
    return sum(view.different for view in views.values()) / compared if compared else 0.0

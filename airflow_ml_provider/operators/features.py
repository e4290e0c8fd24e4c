"""Features as they were known at the time: tables, joined rows and labels of an interval; training sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.operators._base import StageOperator, boolean
from airflow_ml_provider.stages.features.spec import FeaturesSpec, Source, Spine, Split, TrainingSetSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval

Sources = Mapping[str, Source | Mapping[str, Any]]


class FeaturesOperator(StageOperator):
    """Compute the feature tables of an interval, keep Feast up to date, and join features to the rows to predict.

    The feature tables are described in `features.yaml` beside the Feast definitions (see `docs/stages/features.md`).
    The result's `dataset` are the interval's rows with what was known at their time, ready for `ScoreOperator`; its
    `labels` are the outcomes that became known during the interval. For training rows use `TrainingSetOperator`.

    Parameters:
        repo: absolute path of the Feast repository, read when the task runs, by the process that the stage runs in.
        sources: name to table, as `Source` or its mapping (templates work inside a mapping).
        store: root folder for feature tables, joined rows, labels, and Feast's registry and online store.
        spine: the rows to join features to, as `Spine` or its mapping; by default tables are computed and
            materialised only.
        features: `view:feature` names, or one feature service by its name; empty (the default) means all views.
        materialize: write the newest values to the online store; an older interval never overwrites a newer one.
        max_skew: highest share of compared online values that may differ from the offline ones, in [0, 1]; more is
            refused. By default none may.
        after_previous: as in every stage, but by default on: what is known at t comes from earlier windows, too.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields,
        "repo", "sources", "store", "spine", "features", "materialize", "max_skew",
    )  # fmt: skip

    def __init__(
        self,
        *,
        repo: str,
        sources: Sources,
        store: str,
        spine: Spine | Mapping[str, Any] | None = None,
        features: Sequence[str] = (),
        materialize: bool = True,
        max_skew: float = 0.0,
        after_previous: bool | str = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(after_previous=after_previous, **kwargs)
        _check(sources, spine)
        if not _templated(max_skew) and not 0 <= _number(max_skew, "max_skew") <= 1:
            raise invalid("max_skew", max_skew, "in [0, 1]", "give a fraction, not percent")
        self.repo = repo
        self.sources = sources
        self.store = store
        self.spine = spine
        self.features = features
        self.materialize = materialize
        self.max_skew = max_skew

    def build_spec(self, interval: Interval, context: Context) -> FeaturesSpec:
        return FeaturesSpec(
            repo=self.repo,
            sources=_sources(self.sources),
            store=self.store,
            interval=interval,
            spine=codec.decode(Spine, self.spine, "spine") if self.spine else None,
            features=codec.decode(tuple[str, ...], self.features or (), "features"),
            materialize=boolean(self.materialize, "materialize"),
            max_skew=_number(self.max_skew, "max_skew"),
        )


class TrainingSetOperator(StageOperator):
    """Join features to labels as they were known at the time, and lock away the newest rows as the test set.

    The end of the run's interval is the cutoff: nothing that became known later is used. The result's `train` goes to
    `TrainOperator`, its `test` to `EvaluateOperator` and `GateOperator`. Running it again must give the same test set,
    otherwise it fails. `FeaturesOperator` must have run for the intervals before.

    Parameters:
        repo: as in `FeaturesOperator`.
        sources: as in `FeaturesOperator`; only the spine's source is read.
        store: as in `FeaturesOperator`; the sets are written to `training/NAME`.
        name: name of the training set.
        spine: the rows and their labels, as `Spine` or its mapping.
        since: first moment of t, as a datetime or ISO 8601 text with a time zone; by default all history.
        history_days: alternative to `since`: so many days before the cutoff.
        features: as in `FeaturesOperator`.
        split: lengths of the test window and of the gap before it, as `Split` or its mapping; by default the last
            seven days are the test set.
        min_rows: fewer labelled training rows than this are an error.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields,
        "repo", "sources", "store", "name", "spine", "since", "history_days", "features", "split", "min_rows",
    )  # fmt: skip

    def __init__(
        self,
        *,
        repo: str,
        sources: Sources,
        store: str,
        name: str,
        spine: Spine | Mapping[str, Any],
        since: datetime | str | None = None,
        history_days: float | None = None,
        features: Sequence[str] = (),
        split: Split | Mapping[str, Any] | None = None,
        min_rows: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check(sources, spine)
        if isinstance(split, Mapping) and not _templated(split):
            codec.decode(Split, split, "split")
        if since and history_days:
            raise SpecError(f"since ({since}) and history_days ({history_days}) say the same; give one of them")
        self.repo = repo
        self.sources = sources
        self.store = store
        self.name = name
        self.spine = spine
        self.since = since
        self.history_days = history_days
        self.features = features
        self.split = split
        self.min_rows = min_rows

    def build_spec(self, interval: Interval, context: Context) -> TrainingSetSpec:
        since = codec.decode(datetime, self.since, "since") if self.since else None
        if self.history_days:
            since = interval.end - timedelta(days=_number(self.history_days, "history_days"))
        return TrainingSetSpec(
            repo=self.repo,
            sources=_sources(self.sources),
            store=self.store,
            name=self.name,
            interval=interval,
            spine=codec.decode(Spine, self.spine, "spine"),
            since=since,
            features=codec.decode(tuple[str, ...], self.features or (), "features"),
            split=codec.decode(Split, self.split or {}, "split"),
            min_rows=int(_number(self.min_rows, "min_rows")),
        )


def _check(sources: Any, spine: Any) -> None:
    """Check what can be checked when the DAG is parsed."""
    if isinstance(sources, Mapping) and not _templated(sources):
        known = _sources(sources)
        if isinstance(spine, Mapping) and not _templated(spine):
            spine = codec.decode(Spine, spine, "spine")
        if isinstance(spine, Spine) and spine.source not in known:
            raise SpecError(f"spine.source {spine.source!r} is not one of the sources: {', '.join(known)}")


def _sources(sources: Any) -> dict[str, Source]:
    return codec.decode(dict[str, Source], sources, "sources")


def _templated(value: Any) -> bool:
    return "{{" in repr(value) or "XComArg" in repr(value)


def _number(value: Any, what: str) -> float:
    """Return a number that a template may have made text of."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise invalid(what, value, "a number") from None

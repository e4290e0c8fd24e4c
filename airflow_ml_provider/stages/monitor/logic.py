"""The decisions of the monitor stage, on sketches and on the series: what has drifted, when training starts again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.monitor import measures
from airflow_ml_provider.stages.monitor.sketch import Column, Numbers, Texts
from airflow_ml_provider.stages.monitor.spec import DriftPolicy, Levels, Severity

_ORDER: Sequence[Severity] = ("none", "warn", "significant")
SHOWN_VALUES = 10


@dataclass(frozen=True)
class ColumnDrift:
    """How far one column is from the reference.

    Attributes:
        name: the column.
        kind: `float` or `string`.
        severity: worst level that a measure reached, if the test is significant.
        p_value: of the test (KS for numbers, chi-square for texts, and of missing values), before correction.
        psi: population stability index over cells.
        js: Jensen-Shannon distance over cells, base 2.
        ks: Kolmogorov-Smirnov statistic, for numbers.
        w1: Wasserstein-1 distance in the column's unit, for numbers; it takes no part in the decision.
        missing: share of missing values in the reference and in the batch.
        unseen: share of values that the reference does not know.
        unseen_values: the most frequent of these.
        ignored: the policy leaves the column out of the judgement.
    """

    name: str
    kind: str
    severity: Severity
    p_value: float
    psi: float
    js: float
    ks: Optional[float] = None
    w1: Optional[float] = None
    missing: tuple[float, float] = (0.0, 0.0)
    unseen: float = 0.0
    unseen_values: tuple[str, ...] = ()
    ignored: bool = False


@dataclass(frozen=True)
class Performance:
    """How good the predictions were whose labels arrived in the interval.

    Attributes:
        labels: labels that arrived.
        rows: of these, labels of rows that had been scored.
        not_a_number: labels of rows whose score is not a number; `rows` are without them.
        judged: there are enough of them, and of both kinds.
        auc: area under the ROC curve; none when one label only arrived.
        log_loss: mean negative log-likelihood.
        base_rate: share of label 1.
        models: model name to its `versions`, `rows`, `not_a_number`, `auc`, `log_loss`, `base_rate`.
    """

    labels: int = 0
    rows: int = 0
    not_a_number: int = 0
    judged: bool = False
    auc: Optional[float] = None
    log_loss: Optional[float] = None
    base_rate: Optional[float] = None
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """The judgement of one interval.

    Attributes:
        judged: there was enough to judge: rows for drift, or labels for performance.
        severity: of the batch.
        drift_share: share of columns that have drifted significantly; none when drift was not judged.
        reason: what led to it, in one sentence.
    """

    judged: bool
    severity: Severity
    drift_share: Optional[float]
    reason: str


@dataclass(frozen=True)
class Entry:
    """One interval in the series.

    Attributes:
        interval: key of the interval.
        rows: rows of the batch.
        judged: as in `Batch`.
        severity: as in `Batch`.
        drift_share: as in `Batch`.
        auc: on the labels that arrived, where judged.
        labels: labels of scored rows that arrived.
        called: the data called for training: enough of the last batches were significant.
        retrain: training was started.
        models: model name to the version that held the alias.
        started_by: identity of the task that started training.
    """

    interval: str
    rows: int = 0
    judged: bool = False
    severity: Severity = "none"
    drift_share: Optional[float] = None
    auc: Optional[float] = None
    labels: int = 0
    called: bool = False
    retrain: bool = False
    models: Mapping[str, str] = field(default_factory=dict)
    started_by: str = ""

    @property
    def significant(self) -> bool:
        """Whether the batch was judged to be significantly off."""
        return self.judged and self.severity == "significant"


def judge_column(name: str, reference: Column, current: Column, policy: DriftPolicy, tests: int) -> ColumnDrift:
    """Return how far a column is from the reference.

    Parameters:
        name: the column.
        reference: its sketch in the training rows.
        current: its sketch in the batch.
        policy: levels and `alpha`.
        tests: number of columns that are judged; `alpha` is divided by it (Bonferroni).
    """
    pair, _ = measures.fine(reference, current)
    cells = measures.cells(reference, current)
    psi, js = measures.psi(cells), measures.jensen_shannon(cells)
    found = [_level(psi, policy.psi), _level(js, policy.js)]
    ks = w1 = None
    if isinstance(reference, Numbers) and isinstance(current, Numbers):
        ks, p_value = measures.kolmogorov_smirnov(pair)
        w1 = measures.wasserstein(reference, current)
        found.append(_level(ks, policy.ks))
    else:
        _, p_value = measures.chi_square(pair)
    if reference.nulls or current.nulls:  # two tests of one column
        p_value = min(1.0, 2 * min(p_value, measures.null_test(reference, current)))
    ignored = not policy.judges(name)
    significant = not ignored and p_value < policy.alpha / max(1, tests)
    unseen = _unseen(reference, current)
    return ColumnDrift(
        name=name,
        kind=reference.kind,
        severity=max(found, key=_ORDER.index) if significant else "none",
        p_value=p_value,
        psi=psi,
        js=js,
        ks=ks,
        w1=w1,
        missing=(_share(reference.nulls, reference), _share(current.nulls, current)),
        unseen=sum(unseen.values()) / current.count if unseen else 0.0,
        unseen_values=tuple(sorted(unseen, key=lambda value: (-unseen[value], value))[:SHOWN_VALUES]),
        ignored=ignored,
    )


def judge_batch(columns: Sequence[ColumnDrift], rows: int, performance: Performance, policy: DriftPolicy) -> Batch:
    """Return the judgement of an interval from its columns and from the labels that arrived."""
    columns = [c for c in columns if not c.ignored]
    drift_judged = rows >= policy.min_rows and bool(columns)
    drifted = [c.name for c in columns if c.severity == "significant"]
    share = len(drifted) / len(columns) if drift_judged else None
    severity: Severity = "none"
    if not drift_judged:
        reasons = [f"{rows} rows, drift is judged from {policy.min_rows} on"]
    else:
        reasons = [f"{len(drifted)} of {len(columns)} columns drifted" + _listed(drifted)]
        if share is not None and share >= policy.share:
            severity = "significant"
        elif any(c.severity != "none" for c in columns):
            severity = "warn"
    performance_judged = performance.judged and policy.min_auc is not None
    if performance.judged and performance.auc is not None:
        reasons.append(f"AUC {performance.auc:.3f} on {performance.rows} arrived labels")
        if policy.min_auc is not None and performance.auc < policy.min_auc:
            severity = "significant"
            reasons[-1] += f", below {policy.min_auc:g}"
    if performance.not_a_number:  # no model may give such a score, whatever its share
        severity = max(severity, "warn", key=_ORDER.index)
        reasons.append(f"{performance.not_a_number} scores of rows with labels are not a number")
    return Batch(drift_judged or performance_judged, severity, share, "; ".join(reasons))


def decide(entries: Sequence[Entry], now: Entry, info: RunInfo, policy: DriftPolicy) -> tuple[Entry, bool, str]:
    """Return the entry to keep of this interval, whether training starts now, and why not although called for.

    Parameters:
        entries: the series as it stands, in any order; an earlier entry of this interval is replaced.
        now: the entry of this interval, without the decision.
        info: this run.
        policy: hysteresis, episodes, cool-down.
    """
    earlier = sorted((e for e in entries if e.interval < now.interval), key=lambda e: e.interval)
    now = replace(now, called=called(earlier, now, policy))
    why_not = obstacle(entries, now.interval, info, policy) if now.called else ""
    starts = now.called and not why_not
    own = next((e for e in entries if e.interval == now.interval and e.retrain), None)
    if own is not None:  # what was started stays on record, and by whom
        return replace(now, retrain=True, started_by=own.started_by), starts, why_not
    return replace(now, retrain=starts, started_by=info.identity if starts else ""), starts, why_not


def called(earlier: Sequence[Entry], now: Entry, policy: DriftPolicy) -> bool:
    """Return whether the data calls for training: `needed` of the last `window` judged batches are significant.

    A batch that is not significant itself, or was not judged, calls for nothing.

    Parameters:
        earlier: entries of earlier intervals, in order.
        now: the entry of this interval.
        policy: hysteresis.
    """
    if not now.significant:
        return False
    window = [*(e for e in earlier if e.judged), now][-policy.window :]
    return sum(e.significant for e in window) >= policy.needed


def obstacle(entries: Iterable[Entry], interval: str, info: RunInfo, policy: DriftPolicy) -> str:
    """Return why a call does not start training, in a few words; empty when nothing is in the way.

    Parameters:
        entries: the whole series, later intervals included: days may run out of order.
        interval: key of this interval.
        info: this run.
        policy: `recover`, `cooldown` and `backfill`.
    """
    ordered = sorted(entries, key=lambda e: e.interval)
    own = next((e for e in ordered if e.interval == interval and e.retrain), None)
    if own is not None:
        if own.started_by == info.identity and not info.cleared:
            return ""  # an earlier try of this very task, killed before it could say so
        return "training was started for this interval before"
    if (info.cleared or info.reason == "backfill") and not policy.backfill:
        return f"a {'cleared' if info.cleared else 'backfilled'} run does not start training"
    judged = [e for e in ordered if e.judged and e.interval != interval]
    before = [e for e in judged if e.interval < interval]
    after = [e for e in judged if e.interval > interval]
    for nearest_first in (before[::-1], after):
        if found := _start_nearby(nearest_first, policy):
            return found
    return ""


def _start_nearby(entries: Sequence[Entry], policy: DriftPolicy) -> str:
    """Return what a start among `entries`, nearest first, has against another one."""
    calm = longest_calm = 0
    for between, entry in enumerate(entries):
        if entry.retrain:
            if longest_calm < policy.recover:
                return f"training was started on {entry.interval}, in the same episode"
            if between < policy.cooldown:
                return (
                    f"training was started on {entry.interval}, {between} of {policy.cooldown} cool-down batches apart"
                )
            return ""
        calm = 0 if entry.significant else calm + 1
        longest_calm = max(longest_calm, calm)
    return ""


def _level(value: float, levels: Levels) -> Severity:
    return "significant" if value >= levels.significant else "warn" if value >= levels.warn else "none"


def _share(count: int, column: Column) -> float:
    return count / (column.count + column.nulls) if column.count + column.nulls else 0.0


def _unseen(reference: Column, current: Column) -> dict[str, int]:
    if not (isinstance(reference, Texts) and isinstance(current, Texts) and reference.by_name and current.by_name):
        return {}
    return {value: count for value, count in current.values.items() if value not in reference.values}


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:SHOWN_VALUES])
    return f" ({shown}, …)" if len(names) > SHOWN_VALUES else f" ({shown})"

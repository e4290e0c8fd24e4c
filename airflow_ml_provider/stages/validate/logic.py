"""May this batch be used? Decisions on expectations' outcomes and on profile counts, without any I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.validate.spec import DIMENSIONS

Severity = Literal["block", "quarantine", "warn"]

# Ours, and the words that Great Expectations itself writes into a suite.
_SEVERITIES: dict[str, Severity] = {
    "block": "block", "quarantine": "quarantine", "warn": "warn",
    "critical": "block", "warning": "warn", "info": "warn",
}  # fmt: skip
_SHOWN = 3
_LONGEST = 80  # characters of an observed value in a sentence


@dataclass(frozen=True)
class Check:
    """One expectation of a suite.

    Attributes:
        name: how reports call it: `meta.name`, or its type and columns; unique in its suite.
        type: Great Expectations' name of the expectation.
        kwargs: its arguments.
        severity: what a failure does.
        description: the suite author's words for it.
        notes: more of them.
    """

    name: str
    type: str
    kwargs: Mapping[str, Any]
    severity: Severity = "block"
    description: str = ""
    notes: tuple[str, ...] = ()

    @property
    def column(self) -> Optional[str]:
        """The column that it is about, if it is about exactly one."""
        column = self.kwargs.get("column")
        return column if isinstance(column, str) else None


@dataclass(frozen=True)
class Outcome:
    """What became of one expectation.

    Attributes:
        check: the expectation.
        passed: whether it held.
        error: why it could not be judged; then it did not hold and blocks, whatever its severity.
        observed: what Great Expectations saw, as plain JSON.
        rows: positions in the batch of the rows that break a `quarantine` expectation.
    """

    check: Check
    passed: bool
    error: str = ""
    observed: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[int, ...] = ()

    @property
    def severity(self) -> Severity:
        """What its failure does in fact."""
        return "block" if self.error else self.check.severity

    @property
    def seen(self) -> str:
        """What was seen, in a few words."""
        if self.error:
            return f"could not be judged: {self.error}"
        if "unexpected_count" in self.observed and "element_count" in self.observed:
            return f"{self.observed['unexpected_count']} of {self.observed['element_count']} rows"
        # Expectations about distinct values count these, and no rows.
        found = {what: self.observed.get(f"{what}_count") for what in ("unexpected", "missing")}
        if any(found.values()):
            return " and ".join(_number(count, f"{what} value") for what, count in found.items() if count)
        value = self.observed.get("observed_value")
        if value is not None:
            return "observed " + (f"{value:.6g}" if isinstance(value, float) else _shortened(str(value)))
        return "" if self.passed else "not so"


@dataclass(frozen=True)
class Counts:
    """What the profile's scan counted; counts of partitions add up.

    Attributes:
        rows: all rows.
        good: dimension to the number of cells or rows that are as they should be.
        total: dimension to the number that was looked at.
        missing_columns: columns that the profile names and the batch lacks.
    """

    rows: int
    good: Mapping[str, int] = field(default_factory=dict)
    total: Mapping[str, int] = field(default_factory=dict)
    missing_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Whether the batch is admitted.

    Attributes:
        admitted: the batch, without the rows set aside, may be used.
        reasons: why not.
        notices: what the reader of an admitted batch should know.
    """

    admitted: bool
    reasons: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def severity_of(meta: Mapping[str, Any], native: Optional[str]) -> Severity:
    """Return what the failure of an expectation does; `meta.severity` counts before Great Expectations' own.

    >>> severity_of({}, "warning"), severity_of({"severity": "quarantine"}, "critical"), severity_of({}, None)
    ('warn', 'quarantine', 'block')
    """
    word = meta.get("severity", native or "block")
    if word not in _SEVERITIES:
        raise invalid("severity", word, f"one of {', '.join(_SEVERITIES)}")
    return _SEVERITIES[word]


def named(type_: str, kwargs: Mapping[str, Any]) -> str:
    """Return the name of an expectation: its type and the columns that it is about.

    >>> named("expect_column_pair_values_to_be_equal", {"column_A": "a", "column_B": "b"})
    'expect_column_pair_values_to_be_equal(a, b)'
    """
    columns = [kwargs[k] for k in ("column", "column_A", "column_B") if isinstance(kwargs.get(k), str)]
    columns += [str(c) for c in kwargs.get("column_list") or ()]
    return f"{type_}({', '.join(columns)})" if columns else type_


def unique(names: Iterable[str]) -> list[str]:
    """Return the names with a number after those that occur again: `a`, `a #2`."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return result


def check_repeats(checks: Sequence[Check]) -> None:
    """Raise `SpecError` when an expectation stands in the suite twice; Great Expectations would drop one silently."""
    for position, check in enumerate(checks):
        for earlier in checks[:position]:
            if (check.type, check.kwargs) == (earlier.type, earlier.kwargs):
                raise SpecError(
                    f"expectation {position + 1} ({check.name}) repeats {earlier.name} with the same arguments; "
                    "keep one of them, with the stricter severity"
                )


def scores(counts: Counts) -> dict[str, float]:
    """Return the score per measured dimension and `overall`, their unweighted mean; nothing for a batch without rows.

    >>> scores(Counts(4, good={"completeness": 7, "uniqueness": 4}, total={"completeness": 8, "uniqueness": 4}))
    {'completeness': 0.875, 'uniqueness': 1.0, 'overall': 0.9375}
    """
    found = {d: counts.good[d] / counts.total[d] for d in DIMENSIONS if counts.rows and counts.total.get(d)}
    if found:
        found["overall"] = sum(found.values()) / len(found)
    return found


def set_aside(outcomes: Iterable[Outcome]) -> dict[int, str]:
    """Return position of a row to the reason why it is set aside: the names of what it breaks."""
    reasons: dict[int, list[str]] = {}
    for outcome in outcomes:
        for row in outcome.rows:
            reasons.setdefault(row, []).append(outcome.check.name)
    return {row: "; ".join(reasons[row]) for row in sorted(reasons)}


def failed(outcomes: Iterable[Outcome]) -> dict[str, tuple[str, ...]]:
    """Return the names of the expectations that did not hold, by what that does."""
    found: dict[str, tuple[str, ...]] = {}
    for outcome in outcomes:
        if not outcome.passed:
            found[outcome.severity] = (*found.get(outcome.severity, ()), outcome.check.name)
    return found


def decide(
    counts: Counts,
    outcomes: Sequence[Outcome],
    quality: Mapping[str, float],
    minimum: Mapping[str, float],
    *,
    quarantined: int,
    allow_empty: bool,
) -> Decision:
    """Return whether the batch is admitted, and why not or with what reservations."""
    if counts.rows == 0:
        empty = ("the batch is empty",)
        return Decision(True, notices=empty) if allow_empty else Decision(False, reasons=empty)
    broken = [o for o in outcomes if not o.passed]
    blocking = [o for o in broken if o.severity == "block"]
    reasons = []
    if blocking:
        reasons.append(f"{_number(len(blocking), 'expectation')} that must hold failed: {_listed(blocking)}")
    if counts.missing_columns:
        reasons.append(f"the batch lacks columns that its profile names: {', '.join(counts.missing_columns)}")
    reasons += _below(quality, minimum)
    if quarantined == counts.rows:
        reasons.append(f"every one of {_number(counts.rows, 'row')} breaks a quarantine expectation")
    if reasons:
        return Decision(False, tuple(reasons))
    notices = []
    if quarantined:
        aside = [o for o in broken if o.severity == "quarantine"]
        notices.append(f"{quarantined} of {_number(counts.rows, 'row')} set aside: {_listed(aside)}")
    if warnings := [o for o in broken if o.severity == "warn"]:
        notices.append(f"{_number(len(warnings), 'warning')}: {_listed(warnings)}")
    return Decision(True, notices=tuple(notices))


def _below(quality: Mapping[str, float], minimum: Mapping[str, float]) -> list[str]:
    found = []
    for name, bound in minimum.items():
        if name not in quality:
            found.append(f"{name} could not be measured, its minimum is {bound:g}")
        elif quality[name] < bound:
            found.append(f"{name} {quality[name]:.4f} is below its minimum {bound:g}")
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _listed(outcomes: Sequence[Outcome]) -> str:
    text = ", ".join(f"{o.check.name} ({o.seen})" for o in outcomes[:_SHOWN])
    more = len(outcomes) - _SHOWN
    return f"{text} and {more} more" if more > 0 else text

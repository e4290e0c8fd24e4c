from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.validate import logic
from airflow_ml_provider.stages.validate.logic import Check, Counts, Outcome
from airflow_ml_provider.stages.validate.spec import DIMENSIONS


def outcome(name: str, severity: logic.Severity, passed: bool = False, **more: object) -> Outcome:
    return Outcome(Check(name, "expect_x", {"column": name}, severity), passed, **more)  # type: ignore[arg-type]


def decide(*outcomes: Outcome, rows: int = 10, quarantined: int = 0, **more: object) -> logic.Decision:
    counts = Counts(rows, missing_columns=more.pop("missing", ()))  # type: ignore[arg-type]
    settings = {"quality": {}, "minimum": {}, "allow_empty": False, **more}
    return logic.decide(counts, outcomes, quarantined=quarantined, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("meta", "native", "expected"),
    [
        ({}, None, "block"),
        ({}, "critical", "block"),
        ({}, "warning", "warn"),
        ({}, "info", "warn"),
        ({"severity": "quarantine"}, "critical", "quarantine"),  # GX always writes its own default beside ours
        ({"severity": "warn"}, None, "warn"),
    ],
)
def test_severity(meta: dict[str, str], native: str | None, expected: str) -> None:
    assert logic.severity_of(meta, native) == expected


def test_unknown_severity() -> None:
    with pytest.raises(SpecError, match="severity must be one of block, quarantine, warn"):
        logic.severity_of({"severity": "fatal"}, None)


def test_names_are_unique() -> None:
    assert logic.unique(["a", "b", "a", "a"]) == ["a", "b", "a #2", "a #3"]


def test_repeated_expectation_is_refused() -> None:
    twice = [Check("a", "t", {"column": "x"}, "block"), Check("a #2", "t", {"column": "x"}, "warn")]
    with pytest.raises(SpecError, match=r"expectation 2 \(a #2\) repeats a"):
        logic.check_repeats(twice)
    logic.check_repeats([twice[0], Check("b", "t", {"column": "y"})])


def test_scores_by_hand() -> None:
    counts = Counts(
        4,
        good={"completeness": 7, "accuracy": 3, "uniqueness": 3},
        total={"completeness": 8, "accuracy": 4, "consistency": 0, "uniqueness": 4},
    )
    found = logic.scores(counts)
    assert found == {"completeness": 0.875, "accuracy": 0.75, "uniqueness": 0.75, "overall": (0.875 + 0.75 + 0.75) / 3}
    assert logic.scores(Counts(0, good={"completeness": 0}, total={"completeness": 0})) == {}


@given(
    st.dictionaries(
        st.sampled_from(DIMENSIONS), st.tuples(st.integers(0, 50), st.integers(1, 50)).filter(lambda p: p[0] <= p[1])
    )
)
def test_scores_are_shares(parts: dict[str, tuple[int, int]]) -> None:
    found = logic.scores(Counts(1, {d: p[0] for d, p in parts.items()}, {d: p[1] for d, p in parts.items()}))
    assert set(found) == ({*parts, "overall"} if parts else set())
    assert all(0 <= score <= 1 for score in found.values())
    if parts:
        assert min(found.values()) <= found["overall"] <= max(found.values())


@given(st.lists(st.lists(st.integers(0, 20), unique=True).map(sorted), max_size=4))
def test_rows_are_set_aside_once_with_every_reason(broken: list[list[int]]) -> None:
    outcomes = [outcome(f"e{i}", "quarantine", rows=tuple(rows)) for i, rows in enumerate(broken)]
    aside = logic.set_aside(outcomes)
    assert list(aside) == sorted({row for rows in broken for row in rows})
    for row, reason in aside.items():
        assert reason.split("; ") == [f"e{i}" for i, rows in enumerate(broken) if row in rows]


def test_an_expectation_that_cannot_be_judged_blocks() -> None:
    broken = outcome("a", "warn", error="no such column")
    assert broken.severity == "block"
    assert logic.failed([broken, outcome("b", "warn"), outcome("c", "block", passed=True)]) == {
        "block": ("a",),
        "warn": ("b",),
    }
    decision = decide(broken)
    assert not decision.admitted
    assert decision.reasons == ("1 expectation that must hold failed: a (could not be judged: no such column)",)


def test_block_refuses_quarantine_and_warn_do_not() -> None:
    seen = {"unexpected_count": 2, "element_count": 10}
    assert not decide(outcome("a", "block")).admitted
    decision = decide(
        outcome("q", "quarantine", observed=seen),
        outcome("w", "warn", observed={"observed_value": 0.123456789}),
        quarantined=2,
    )
    assert decision.admitted
    assert decision.notices == ("2 of 10 rows set aside: q (2 of 10 rows)", "1 warning: w (observed 0.123457)")


@pytest.mark.parametrize(
    ("observed", "seen"),
    [
        ({"unexpected_count": 2, "element_count": 10, "observed_value": 1}, "2 of 10 rows"),
        ({"observed_value": None, "unexpected_count": 1}, "1 unexpected value"),
        ({"observed_value": None, "missing_count": 3, "unexpected_count": 0}, "3 missing values"),
        ({"missing_count": 1, "unexpected_count": 2}, "2 unexpected values and 1 missing value"),
        ({"observed_value": None, "unexpected_count": 0}, "not so"),
        ({"observed_value": 0}, "observed 0"),
        ({}, "not so"),
    ],
)
def test_what_was_seen(observed: dict[str, object], seen: str) -> None:
    assert outcome("a", "warn", observed=observed).seen == seen


def test_everything_set_aside_is_a_refusal() -> None:
    assert decide(quarantined=10).reasons == ("every one of 10 rows breaks a quarantine expectation",)


def test_minimum() -> None:
    assert decide(quality={"overall": 0.95}, minimum={"overall": 0.95}).admitted
    refused = decide(quality={"accuracy": 0.9499}, minimum={"accuracy": 0.95, "consistency": 0.5})
    assert refused.reasons == (
        "accuracy 0.9499 is below its minimum 0.95",
        "consistency could not be measured, its minimum is 0.5",
    )


def test_missing_columns_refuse() -> None:
    assert decide(missing=("carrier",)).reasons == ("the batch lacks columns that its profile names: carrier",)


def test_empty() -> None:
    broken = outcome("count", "block")
    assert decide(broken, rows=0).reasons == ("the batch is empty",)
    assert decide(broken, rows=0, allow_empty=True) == logic.Decision(True, notices=("the batch is empty",))


def test_long_lists_and_values_are_cut() -> None:
    many = [outcome(f"e{i}", "warn", observed={"observed_value": "x" * 500}) for i in range(9)]
    (notice,) = decide(*many).notices
    assert notice.startswith("9 warnings: e0 (observed xxx")
    assert notice.endswith("and 6 more")
    assert len(notice) < 400

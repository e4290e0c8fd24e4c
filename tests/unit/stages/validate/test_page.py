from __future__ import annotations

from airflow_ml_provider.stages.validate import page
from airflow_ml_provider.stages.validate.logic import Check, Counts, Decision, Outcome


def test_page_says_what_was_decided_and_escapes_everything() -> None:
    check = Check("<i>name", "t", {}, "quarantine")
    text = page.render(
        "<b>flights", Decision(False, ("too <few>",)), Counts(10),
        [Outcome(check, False, observed={"unexpected_count": 2, "element_count": 10})],
        {"overall": 0.5}, {"overall": 0.9, "accuracy": 1.0},
        quarantined=2, results="validations/x.html", suite=None,
    )  # fmt: skip
    for part in ("&lt;b&gt;flights", "Refused", "too &lt;few&gt;", "&lt;i&gt;name", "2 of 10 rows", "set aside"):
        assert part in text
    assert "<td>accuracy</td><td>not measured</td><td>1</td>" in text
    assert '<a href="validations/x.html">' in text
    assert "Expectation suite" not in text
    assert "<td>Admitted</td><td>0</td>" in text

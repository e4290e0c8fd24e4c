"""Which queries a place's `metrics` means, and which policies they can serve."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.deploy import metrics, place
from airflow_ml_provider.stages.deploy.metrics import SETS, Metrics, resolve
from airflow_ml_provider.stages.deploy.policy import Agreement, Business, ErrorRate, Latency, RolloutPolicy, ScoreShift

OWN = {"requests": 'sum by ({server}) (mine{version="{version}"})', "errors": "mine_bad"}


@pytest.mark.parametrize("name", sorted(set(SETS) - {"kserve"}))
def test_sets_are_whole(name: str) -> None:
    found = resolve(name)
    assert {"requests", "errors"} <= set(found.queries)
    for query in found.queries.values():
        assert "{server}" in query


def test_what_counts_no_errors_needs_some() -> None:
    with pytest.raises(SpecError, match="metrics 'kserve' count no errors; give what does"):
        resolve("kserve")
    assert resolve({"base": "kserve", "errors": "mine_bad"}).errors == "mine_bad"


def test_ones_own() -> None:
    assert resolve(OWN) == Metrics(OWN["requests"], "mine_bad")
    mixed = resolve({"base": "istio", "server": "instance", "score_bucket": "scores_bucket"})
    assert (mixed.requests, mixed.server) == (resolve("istio").requests, "instance")
    assert list(mixed.queries) == ["requests", "errors", "latency_bucket", "score_bucket"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("istoi", "unknown metrics 'istoi'; did you mean 'istio'"),
        ({"base": "none"}, "unknown metrics 'none'"),
        ({**OWN, "request": "x"}, "unknown key in metrics 'request'; did you mean 'requests'"),
        ({"requests": "x"}, "metrics lacks errors"),
        ({**OWN, "errors": " "}, "errors must be PromQL, got ' '"),
        ({**OWN, "errors": "sum by (pod) (rate(mine_bad[1m]))"}, "must be the counters themselves, .* got 'rate'"),
        ({**OWN, "errors": "increase (mine_bad[1m])"}, "must be the counters themselves, .* got 'increase'"),
        ({**OWN, "errors": 'bad{pod="{pod}"}'}, "unknown name in errors 'pod'; did you mean 'pods'"),
        ({**OWN, "server": 'pod="x"'}, "server must be the name of a label"),
        ({**OWN, "window": "5m] offset 1d"}, "window must be a time such as 5m"),
        ({**OWN, "window": "0s"}, "window must be a time such as 5m"),
        ({**OWN, "latency_unit": "min"}, "metrics.latency_unit must be one of"),
    ],
)
def test_mistakes(given: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve(given)
    with pytest.raises(SpecError, match=message):
        place.resolve({"kserve": {"metrics": given}})


@pytest.mark.parametrize("given", ["knative", OWN])
def test_a_place_survives_json(given: Any) -> None:
    one = place.KServe(metrics=given)
    assert place.resolve(place.encode(one)) == one
    assert codec.json_schema(place.KServe)


def test_policies_that_can_be_served() -> None:
    scores = {"base": "triton", "score_bucket": "scores_bucket"}
    metrics.check(resolve("istio"), RolloutPolicy())
    metrics.check(resolve("triton"), RolloutPolicy(checks=(ErrorRate(),)))
    metrics.check(resolve(scores), RolloutPolicy(checks=(ErrorRate(), ScoreShift())))


@pytest.mark.parametrize(
    ("name", "check", "message"),
    [
        ("triton", Latency(), "nothing in Prometheus tells latency, .* tell error_rate:"),
        ("istio", ScoreShift(), "nothing in Prometheus tells score_shift, .* tell error_rate, latency:"),
        ("istio", Business("clicks"), "nothing in Prometheus tells business"),
    ],
)
def test_policies_that_cannot(name: str, check: Any, message: str) -> None:
    policy = RolloutPolicy(checks=(ErrorRate(), check))
    with pytest.raises(SpecError, match=message):
        place.check(place.KServe(metrics=name), policy)


def test_what_this_machine_counts() -> None:
    place.check(place.Local("/srv"), RolloutPolicy(checks=(ErrorRate(), Latency(), ScoreShift())))
    with pytest.raises(SpecError, match="checks business, which a gateway on this machine does not count"):
        place.check(place.Local("/srv"), RolloutPolicy(checks=(ErrorRate(), Business("clicks"))))
    shadow = RolloutPolicy(strategy="shadow", checks=(ErrorRate(), Agreement()))
    place.check(place.Local("/srv"), shadow)
    with pytest.raises(SpecError, match="nothing in Prometheus tells agreement"):
        place.check(place.KServe(), shadow)

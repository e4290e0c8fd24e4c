"""From parts of a service to one query, and from its answer to readings."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities
from airflow_ml_provider.stages.deploy.kserve.manifest import manifest
from airflow_ml_provider.stages.deploy.kserve.parts import parts
from airflow_ml_provider.stages.deploy.metrics import Metrics
from airflow_ml_provider.stages.deploy.prometheus import Part, query, readings
from airflow_ml_provider.stages.deploy.service import Server, Service, Version
from airflow_ml_provider.stages.deploy.state import Version as Counted
from airflow_ml_provider.stages.deploy.stats import Histogram, VersionStats

V7, V8 = Part("v7", "late-v7-predictor", "late-v7-predictor"), Part("v8", "late-v8-predictor", "late-v8-predictor")
MINE = Metrics("requests", "errors", latency_bucket="buckets", latency_unit="ms")
BOUNDS = (0.1, 1.0)


def series(counter: str, value: Any, part: Part = V8, **labels: str) -> dict[str, Any]:
    mark = f"{counter} {part.version} {part.workload}"
    return {"metric": {"airflow_ml": mark, "pod": "a", **labels}, "value": [1700000000.5, str(value)]}


def buckets(*counts: float, **labels: str) -> list[dict[str, Any]]:
    levels = ("100", "1000", "+Inf")
    return [series("latency_bucket", n, le=le, **labels) for le, n in zip(levels, counts, strict=True)]


def read(*found: dict[str, Any], metrics: Metrics = MINE) -> dict[str, Any]:
    return {name: dict(one) for name, one in readings(found, metrics, [V7, V8]).items()}


class TestQuery:
    def test_names_are_filled_in(self) -> None:
        given = Metrics(
            'sum by ({server}) (a{s="{service}",v="{version}",n="{namespace}",w="{workload}",r="{revision}"})',
            'b{pod=~"{pods}"}[{window}] # of a pod',
        )
        part = Part("v8", "late-predictor-00002-deployment", "late-predictor-00002")
        assert query(given, "late", "ml", [part]) == (
            'label_replace(sum by (pod) (a{s="late",v="v8",n="ml",w="late-predictor-00002-deployment",'
            'r="late-predictor-00002"})\n, "airflow_ml", "requests v8 late-predictor-00002-deployment", "", "")\n'
            'or label_replace(b{pod=~"late-predictor-00002-deployment-?[a-z0-9]+(-[a-z0-9]+)?"}[5m] # of a pod\n'
            ', "airflow_ml", "errors v8 late-predictor-00002-deployment", "", "")'
        )

    def test_each_part_and_counter(self) -> None:
        asked = query(MINE, "late", "ml", [V7, V8])
        assert asked.count("label_replace(") == 6
        assert query(MINE, "late", "ml", []) == ""

    @pytest.mark.parametrize("name", ['ml"} or up{a="', "ml\\", "Ml", "a b", "", "ml\n", "{version}"])
    def test_nothing_else_gets_in(self, name: str) -> None:
        for service, namespace, part in (
            (name, "ml", V8), ("late", name, V8), ("late", "ml", Part(name, "w", "r")),
            ("late", "ml", Part("v8", name, "r")), ("late", "ml", Part("v8", "w", name)),
        ):  # fmt: skip
            with pytest.raises(SpecError, match="in a query must be a DNS label"):
                query(MINE, service, namespace, [part])


class TestReadings:
    def test_servers(self) -> None:
        found = read(
            series("requests", 10), series("errors", 2), *buckets(7, 9, 10),
            series("requests", 4, pod="b"), *buckets(4, 4, 4, pod="b"), series("errors", 0, V7),
        )  # fmt: skip
        assert found == {
            "v7": {},
            "v8": {
                "late-v8-predictor/a": VersionStats(10, 2, Histogram(BOUNDS, (7, 2, 1))),
                "late-v8-predictor/b": VersionStats(4, 0, Histogram(BOUNDS, (4, 0, 0))),
            },
        }

    def test_no_requests_yet(self) -> None:
        assert read() == {"v7": {}, "v8": {}}
        assert read(series("requests", 0)) == {"v7": {}, "v8": {"late-v8-predictor/a": VersionStats()}}

    def test_two_revisions_of_a_version(self) -> None:
        old = Part("v8", "late-predictor-00001-deployment", "late-predictor-00001")
        found = readings([series("requests", 3, old), series("requests", 4)], Metrics("requests", "errors"), [old, V8])
        assert {name: one.requests for name, one in found["v8"].items()} == {
            "late-predictor-00001-deployment/a": 3, "late-v8-predictor/a": 4,
        }  # fmt: skip

    @pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
    def test_no_number(self, value: str) -> None:
        """Such a server is left out, and not taken for one that has started anew."""
        good = read(series("requests", 10), *buckets(7, 9, 10))["v8"]
        for odd in (
            read(series("requests", value), *buckets(7, 9, 10)),
            read(series("requests", 11), *buckets(8, float(value), 11)),
        ):
            assert odd == {"v7": {}, "v8": {}}
            seen = Counted("sha256:8", good).read(odd["v8"])
            assert (seen.window, seen.restarts, seen.readings) == (VersionStats(), 0, good)

    def test_counts_are_whole(self) -> None:
        found = read(series("requests", "1.2000000004e1"), series("errors", 0.9999999), *buckets(6.6, 11.6, 12.0))
        assert found["v8"]["late-v8-predictor/a"] == VersionStats(12, 1, Histogram(BOUNDS, (7, 5, 0)))

    def test_scores(self) -> None:
        given = Metrics("requests", "errors", score_bucket="scores")
        found = read(
            series("requests", 3), series("score_bucket", 1, le="0.5"), series("score_bucket", 3, le="+Inf"),
            metrics=given,
        )  # fmt: skip
        assert found["v8"]["late-v8-predictor/a"] == VersionStats(3, scores=Histogram((0.5,), (1, 2)))

    def test_requests_without_latencies(self) -> None:
        """A later reading that had them would pass for a server that has started anew."""
        with pytest.raises(Unavailable, match=r"no latency_bucket of server 'late-v8-predictor/a' .* but 10 requests"):
            read(series("requests", 10))

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            ([series("requests", 1, pod="")], "requests gives a series without the label 'pod'"),
            ([series("latency_bucket", 1)], "latency_bucket gives a series without the label 'le'"),
            ([series("requests", 1, code="200"), series("requests", 1, code="500")], "several series .* sum them up"),
            ([series("requests", 10), *buckets(7, 9, 10)[:2]], r"le must be up to \+Inf"),
            (
                [series("requests", 10), *buckets(9, 7, 10)],
                "cumulative counters .* counts must be at least 0",
            ),
            ([series("requests", 1), series("errors", 2), *buckets(1, 1, 1)], "errors must be between 0 and requests"),
            ([{"metric": series("requests", 1)["metric"], "histogram": [0, {}]}], "gives a native histogram"),
        ],
    )
    def test_what_cannot_be_used(self, found: list[dict[str, Any]], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            read(*found)


class TestParts:
    def test_standard(self) -> None:
        """A version that comes in the place of another keeps that one's Deployment."""
        v7, v8, v9 = (
            Version(name, ModelRef("late", f"s3://models/{name}", f"sha256:{name}"), Server())
            for name in ("v7", "v8", "v9")
        )
        made = manifest(Service("late", v7, v8, 20), Abilities())
        assert parts(made) == [V7, V8]
        again = manifest(Service("late", v9), Abilities(), made)
        assert parts(again) == [Part("v9", "late-v7-predictor", "late-v7-predictor")]

    def test_serverless(self) -> None:
        def revision(name: str, version: str) -> dict[str, Any]:
            return {"metadata": {"name": name, "annotations": {"airflow-ml/version": version} if version else {}}}

        found = {"metadata": {"name": "late"}, "spec": {"predictor": {}}}
        made = [revision("late-predictor-00001", "v7"), revision("late-predictor-00002", "")]
        assert parts(found, made) == [Part("v7", "late-predictor-00001-deployment", "late-predictor-00001")]
        assert parts(found, []) == []

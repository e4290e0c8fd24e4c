"""The stage as a whole: candidates of real models, the table, the choice and the package."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir", reason="needs what ONNX Runtime's 4-bit quantiser needs")
pytest.importorskip("pyarrow")

from airflow_ml_provider import models
from airflow_ml_provider.exceptions import DataError, IntegrityError
from airflow_ml_provider.lineage.facets import lineage
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages import run
from airflow_ml_provider.stages.evaluate.spec import EvaluateSpec, OperatingPoint
from airflow_ml_provider.stages.optimise.spec import OptimisePolicy, OptimiseSpec, recipe
from airflow_ml_provider.stages.register import parity
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
GRAPH_STEPS = ("graph", "fp16", "int8_dynamic", "int8_static", "int4", "magnitude")
LENIENT = OptimisePolicy(choose="smallest", max_loss=0.2, max_slice_loss=0.5, max_flips=1.0)
INFO = RunInfo()
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


def spec(ref, flights, output, *recipes, **changes):
    body = {"policy": LENIENT, "slices": ("carrier",), "batch_sizes": (1, 16), "repeats": 3, "resamples": 100}
    return OptimiseSpec(
        model=ref, dataset=flights, output=str(output), recipes=tuple(map(recipe, recipes)), **{**body, **changes}
    )


def report(result):
    return json.loads(Path(result.report.uri).read_text())


def by_name(result):
    return {entry["name"]: entry for entry in report(result)["candidates"]}


def become_champion(ref, test, folder, info):
    from airflow_ml_provider.stages.gate.spec import GateSpec
    from airflow_ml_provider.stages.promote.spec import PromoteSpec
    from airflow_ml_provider.stages.register.spec import RegisterSpec

    point = OperatingPoint("share", 0.2)  # chosen on the package's validation rows
    evaluation = run(EvaluateSpec(ref, test, str(folder / "evaluations"), operating_point=point), info).report
    registered = run(RegisterSpec(ref, evaluation), info)
    (folder / "gate.json").write_text('{"metrics": {"auc": {"at_least": 0.7}}, "challenge": {"min_gain": -0.05}}')
    asked = GateSpec(
        registered.model, evaluation, policy=str(folder / "gate.json"), output=str(folder / "evidence"), test=test,
        parity=registered.parity,
    )  # fmt: skip
    gate = run(asked, info)
    assert gate.passed, gate.reason
    promoted = run(PromoteSpec(gate.model), info)
    assert promoted.status == "ok", promoted.reason
    return promoted


@pytest.fixture(scope="module")
def optimised(network, flights, tmp_path_factory):
    """The network with every step that changes a graph."""
    return run(spec(network, flights, tmp_path_factory.mktemp("out"), *GRAPH_STEPS), INFO)


class TestTable:
    def test_every_step_gives_a_model_that_scores_nearly_alike(self, optimised):
        found = by_name(optimised)
        assert list(found) == ["original", *GRAPH_STEPS]
        nearest = {"original": 0, "graph": 1e-5, "fp16": 0.01, "int8_dynamic": 0.03, "int8_static": 0.03, "int4": 0.2}
        for name, most in nearest.items():
            assert found[name]["parity"]["max_difference"] <= most, name
        assert len({entry["digest"] for entry in found.values()}) == len(found)

    def test_sizes_are_those_that_the_bits_promise(self, optimised):
        found = by_name(optimised)
        share = {name: entry["bytes"] / found["original"]["bytes"] for name, entry in found.items()}
        assert 0.5 < share["fp16"] < 0.56
        assert 0.25 < share["int8_dynamic"] < 0.35
        assert 0.25 < share["int8_static"] < 0.35
        assert 0.125 < share["int4"] < 0.25

    def test_pruning_tells_that_zeros_save_no_bytes(self, optimised):
        entry = by_name(optimised)["magnitude"]
        assert entry["zero_weights"] == pytest.approx(0.5, abs=0.01)
        assert entry["bytes"] == pytest.approx(by_name(optimised)["original"]["bytes"], rel=0.02)
        assert "50% zeros" in Path(optimised.report.html).read_text()

    def test_every_entry_says_what_it_costs(self, optimised):
        for name, entry in by_name(optimised).items():
            assert entry["metrics"]["auc"]["low"] <= entry["metrics"]["auc"]["value"] <= entry["metrics"]["auc"]["high"]
            assert (
                {e["slice"] for e in entry["slices"]}
                == {"carrier=AA", "carrier=B6", "carrier=UA"}
                == set(entry["slice_losses"])
            )
            assert set(entry["latency"]["CPUExecutionProvider"]) == {"1", "16"}
            assert all(0 < t["p50_ms"] <= t["p95_ms"] for t in entry["latency"]["CPUExecutionProvider"].values())
            assert entry["loss"]["value"] <= entry["loss"]["bound"]
            assert name != "original" or (entry["loss"]["value"], entry["parity"]["flips"]) == (0, 0)

    def test_rows_that_calibrate_do_not_measure(self, optimised, network):
        body = report(optimised)["dataset"]
        assert (body["rows"], body["older_rows"]) == (600, 3400)  # the 15 % newest rows of the training validate
        assert body["divided_by"] == "the package's first validation row"

    def test_the_page_shows_every_candidate_and_the_choice(self, optimised):
        page = Path(optimised.report.html).read_text()
        for name in (*GRAPH_STEPS, "CPUExecutionProvider", "p50 / p95 ms × 16", optimised.reason):
            assert name in page


class TestPackage:
    def test_the_smallest_is_chosen_and_names_its_parent(self, optimised, network, flights):
        assert (optimised.chosen, optimised.parent) == ("int4", network)
        folder = models.verify(Path(optimised.model.uri), optimised.model)
        manifest, before = models.read_manifest(folder), models.read_manifest(Path(network.uri))
        assert optimised.model.digest != network.digest
        assert manifest.provenance.data == {
            **before.provenance.data, "parent_model": network.digest, "train": flights.digest
        }  # fmt: skip
        assert json.loads(manifest.provenance.code["recipe"])["steps"] == ["int4"]
        assert not manifest.provenance.missing()
        assert (manifest.name, manifest.inputs, manifest.trained_until) == (
            before.name, before.inputs, before.trained_until
        )  # fmt: skip

    def test_its_own_scores_are_what_registering_proves(self, optimised):
        folder = Path(optimised.model.uri)
        found = parity.check(folder, optimised.model, threshold=0.5, max_difference=1e-4, max_flips=0.001)
        assert found.passed, found.summary
        assert found.summary["rows"] == 600

    def test_reference_has_the_scores_of_the_candidate(self, optimised, network):
        own, before = (
            json.loads((Path(ref.uri) / models.REFERENCE).read_text())["columns"] for ref in (optimised.model, network)
        )
        assert own.pop("score") != before.pop("score")
        assert own == before

    def test_it_becomes_champion_as_any_other(self, optimised, network, tmp_path, tracking_uri):
        """Evaluated, registered, gated against its parent, promoted."""
        pytest.importorskip("mlflow")
        later = packages.rows(800, seed=3, start=packages.MIDNIGHT + timedelta(days=1))
        test = packages.dataset(tmp_path / "test.parquet", later, name="test")
        first = become_champion(network, test, tmp_path, RunInfo(run_id="first"))
        second = become_champion(optimised.model, test, tmp_path, RunInfo(run_id="second"))
        assert (first.model.version, second.model.version) == ("1", "2")
        assert second.model.digest == optimised.model.digest

    def test_lineage_tells_what_came_from_what(self, optimised, network):
        told = lineage(optimised, INFO)
        assert len(told.inputs) == 2
        assert {d["facets"]["datasetType"]["datasetType"] for d in told.outputs} == {"MODEL", "FILE"}
        assert {t["name"]: t["status"] for t in told.run_facets["test"]["tests"]}["candidate int4"] == "pass"


class TestChoice:
    def test_when_nothing_is_allowed_the_model_stays(self, network, flights, tmp_path):
        strict = OptimisePolicy(choose="smallest", max_flips=0.0, max_loss=0.0)
        found = run(spec(network, flights, tmp_path, "int4", policy=strict), INFO)
        assert (found.model, found.chosen) == (network, "original")
        assert found.reason == "nothing beats the original: none of 1 measured candidates is allowed by policy"
        entry = by_name(found)["int4"]
        assert entry["verdict"] == "refused"
        assert "of decisions differ; 0.00% may" in entry["why"]

    def test_trees_cannot_be_quantised(self, trees, flights, tmp_path):
        found = run(spec(trees, flights, tmp_path, *GRAPH_STEPS), INFO)
        entries = by_name(found)
        for name in GRAPH_STEPS[1:]:
            assert entries[name]["verdict"] == "not applicable"
            assert (
                "(trees compare, they do not multiply): Imputer, LabelEncoder, TreeEnsembleClassifier"
                in (entries[name]["why"])
            )
        assert found.chosen == "original"

    def test_other_packages_are_in_the_same_table(self, network, trees, flights, tmp_path):
        found = run(spec(network, flights, tmp_path, others=(trees,)), INFO)
        assert (found.chosen, found.model) == ("other 1", trees)  # 20 trees are smaller than the network
        assert by_name(found)["other 1"]["parity"]["max_difference"] > 0.01

    def test_steps_can_follow_each_other(self, network, flights, tmp_path):
        found = by_name(run(spec(network, flights, tmp_path, "magnitude+int8_dynamic"), INFO))
        entry = found["magnitude+int8_dynamic"]
        assert entry["bytes"] < 0.35 * found["original"]["bytes"]
        assert entry["zero_weights"] == 0  # the layers' weights are integers now

    def test_quantising_twice_is_not_applicable(self, network, flights, tmp_path):
        found = by_name(run(spec(network, flights, tmp_path, "int8_dynamic+int8_static"), INFO))
        assert found["int8_dynamic+int8_static"]["verdict"] == "not applicable"

    @pytest.mark.parametrize("method", ["entropy", "percentile"])
    def test_other_calibrations(self, network, flights, tmp_path, method):
        steps = {"steps": ["int8_static"], "calibrate": method, "name": method}
        entry = by_name(run(spec(network, flights, tmp_path, steps, calibration_rows=256), INFO))[method]
        assert entry["parity"]["max_difference"] < 0.2

    def test_providers_that_are_not_here_are_told(self, network, flights, tmp_path):
        wanted = ("TensorrtExecutionProvider", "CPUExecutionProvider")
        found = report(run(spec(network, flights, tmp_path, "graph", providers=wanted), INFO))["providers"]
        assert found["unusable"] == {"TensorrtExecutionProvider": "this ONNX Runtime lacks it"}
        assert found["decides"] == "CPUExecutionProvider"

    @pytest.mark.parametrize("broken", ["original", "int4"])
    def test_a_provider_may_refuse_a_graph(self, network, flights, tmp_path, monkeypatch, broken):
        """As OpenVINO does with graphs whose ranks it does not know."""
        import onnxruntime as ort

        other = "OpenVINOExecutionProvider"
        monkeypatch.setattr(ort, "get_available_providers", lambda: [other, "CPUExecutionProvider"])

        class Scorer(models.Scorer):
            def __init__(self, folder, *, providers=("CPUExecutionProvider",), threads=1):
                name = "original" if folder == Path(network.uri) else folder.name
                if other in providers and name == broken:
                    raise IntegrityError("dynamic rank")
                super().__init__(folder, providers=("CPUExecutionProvider",), threads=threads)

        monkeypatch.setattr(models, "Scorer", Scorer)
        result = run(spec(network, flights, tmp_path, "int4", "graph", providers=(other,)), INFO)
        told = report(result)["providers"]
        if broken == "original":
            assert (told["decides"], told["unusable"]) == ("CPUExecutionProvider", {other: "dynamic rank"})
            assert result.chosen == "int4"
        else:
            assert told == {"decides": other, "measured": [other], "unusable": {}}
            entry = by_name(result)["int4"]
            assert (entry["verdict"], entry["why"]) == ("refused", f"it does not run on {other}: dynamic rank")
            assert entry["does_not_run_on"] == {other: "dynamic rank"}


class TestAgain:
    def test_a_retry_finds_what_was_finished_and_a_clear_measures_anew(self, network, flights, tmp_path):
        asked = spec(network, flights, tmp_path, "int8_dynamic")
        first, retry = run(asked, INFO), run(asked, INFO)
        assert first == retry
        anew = run(asked, replace(INFO, cleared=True, clear_number=1))
        assert anew.report.uri != first.report.uri
        assert anew.model.digest == first.model.digest  # the same recipe gives the same bytes

    def test_a_damaged_package_is_made_again(self, network, flights, tmp_path):
        asked = spec(network, flights, tmp_path, "int8_dynamic")
        first = run(asked, INFO)
        (Path(first.model.uri) / models.ONNX).write_bytes(b"")
        assert run(asked, INFO).model.digest == first.model.digest


class TestErrors:
    def test_rows_that_were_changed(self, network, flights, tmp_path):
        shutil.copy(flights.uri, tmp_path / "rows.parquet")
        other = packages.dataset(tmp_path / "rows.parquet", packages.rows(50), name="train")
        with pytest.raises(IntegrityError, match="they were changed since"):
            run(spec(network, replace(other, digest=flights.digest), tmp_path, "graph"), INFO)

    def test_rows_that_the_model_was_fitted_to_cannot_measure(self, network, tmp_path):
        old = packages.rows(100, start=packages.MIDNIGHT - timedelta(days=3))
        with pytest.raises(DataError, match=r"100 older rows, 0 newer ones; give rows of both labels"):
            run(spec(network, packages.dataset(tmp_path / "old.parquet", old), tmp_path, "graph"), INFO)

    def test_a_column_is_missing(self, network, tmp_path):
        rows = packages.dataset(tmp_path / "r.parquet", packages.rows(100).drop_columns(["hour"]))
        with pytest.raises(DataError, match="lacks column hour"):
            run(spec(network, rows, tmp_path, "graph"), INFO)

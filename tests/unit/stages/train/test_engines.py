"""The whole stage on real flights, with the engines that need no torch."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_ml_provider import models, stages, tables
from airflow_ml_provider.exceptions import Conflict, DataError, IntegrityError, MissingLibrary, SpecError
from airflow_ml_provider.models import Scorer
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.monitor.sketch import Sketch
from airflow_ml_provider.stages.train import lightgbm, package
from airflow_ml_provider.stages.train.spec import Function

INFO = RunInfo("flights", "train", "scheduled__2013-01-12", 2, code_version="c0ffee")
# The fewest rounds that still make a model.
FAST = {"num_boost_round": 20}
FILES = {"model.json", "model.onnx", "preprocess.json", "reference.json", "sample.parquet", "validation.parquet"}


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def run(spec):
    return lambda info=INFO, **changes: stages.run(spec(**{"params": FAST, **changes}), info)


class TestPackage:
    def test_what_it_holds(self, run, flights, tmp_path):
        result = run(segment={"origin": "EWR"})
        model = result.model
        folder = tmp_path / "models" / "flight_delay_ewr" / f"{INFO.identity}_lightgbm"
        assert Path(model.uri) == folder
        assert set(contents(model.uri)) == FILES | {"model.txt"}
        assert (model.name, model.engine, model.segment) == ("flight_delay_ewr", "lightgbm", {"origin": "EWR"})
        assert model.trained_until == flights.interval.end
        manifest = models.read_manifest(folder)
        assert list(manifest.inputs)[-3:] == ["carrier", "dest", "manufacturer"]
        assert manifest.provenance.missing() == []
        assert manifest.provenance.data == {"flights_training": flights.digest}
        assert manifest.provenance.code["bundle"] == "c0ffee"
        assert manifest.provenance.environment["lightgbm"]
        assert manifest.provenance.randomness == {"seed": 0}
        assert manifest.provenance.why["run_id"] == "scheduled__2013-01-12"
        assert 0.6 < model.metrics["validation_auc"] < 0.9
        assert models.verify(folder, model) == folder

    def test_result_is_small_and_tells_the_lineage(self, run, flights):
        result = run()
        assert (result.status, result.resumed_from, result.links) == ("ok", None, {})
        assert result.inputs == (flights,)
        assert result.outputs == (result.model,)
        assert result.facets["run"]["model"]["digest"] == result.model.digest
        assert result.facets["inputs"][flights.uri] == {"input_rows": flights.rows}
        assert [flights.uri, "carrier"] in result.facets["outputs"][result.model.uri]["column_lineage"]["score"]

    def test_trained_until_the_newest_row_without_a_cutoff(self, run, flights):
        result = run(dataset=replace(flights, interval=None))
        assert result.model.trained_until.isoformat() == "2013-01-09T23:59:00+00:00"

    @pytest.mark.parametrize("engine", ["lightgbm", "sklearn"])
    def test_served_scores_are_the_native_ones(self, run, engine):
        folder = Path(run(engine=engine, params=FAST if engine == "lightgbm" else {}).model.uri)
        sample = pq.read_table(folder / models.SAMPLE)
        native = np.array(sample.column(models.SAMPLE_SCORE).to_pylist())
        assert sample.num_rows == 1000
        assert np.abs(Scorer(folder).score(sample) - native).max() < 1e-6

    def test_rows_unlike_any_seen_are_served_as_scored(self, run):
        """Unknown and missing texts, and numbers missing in a column that never missed one in training."""
        folder = Path(run().model.uri)
        import lightgbm as library

        from airflow_ml_provider import codec
        from airflow_ml_provider.stages.train.preprocess import Preprocessor

        sample = pq.read_table(folder / models.SAMPLE).slice(0, 60)
        for name in ("distance", "carrier", "wind_dir"):
            index = sample.schema.get_field_index(name)
            sample = sample.set_column(index, name, pa.nulls(60, sample.schema.field(name).type))
        dest = pa.array(["?"] * 60)
        sample = sample.set_column(sample.schema.get_field_index("dest"), "dest", dest)
        pre = codec.decode(Preprocessor, json.loads((folder / models.PREPROCESS).read_text()))
        native = library.Booster(model_file=str(folder / lightgbm.MODEL)).predict(pre.matrix(sample))
        assert np.abs(Scorer(folder).score(sample) - native).max() < 1e-6

    def test_validation_rows_are_the_newest(self, run, flights):
        folder = Path(run().model.uri)
        validation = pq.read_table(folder / models.VALIDATION)
        times = validation.column(models.VALIDATION_TIME).to_pylist()
        older = [t for t in pq.read_table(flights.uri).column("event_timestamp").to_pylist() if t < times[0]]
        assert len(older) + len(times) == flights.rows
        assert 0.13 < len(times) / flights.rows <= 0.16
        assert set(validation.column(models.VALIDATION_LABEL).to_pylist()) == {0, 1}

    def test_reference_profiles_rows_and_scores(self, run, flights):
        folder = Path(run(segment={"origin": "JFK"}).model.uri)
        sketch = Sketch.from_json((folder / models.REFERENCE).read_text())
        manifest = models.read_manifest(folder)
        origins = pq.read_table(flights.uri).column("origin").to_pylist()
        assert sketch.rows == origins.count("JFK") == manifest.metrics["rows"]
        assert set(sketch.columns) == {*manifest.inputs, "score"}
        assert sketch.columns["score"].count == manifest.metrics["rows_validation"]
        assert sketch.columns["carrier"].values["B6"] > 100


class TestReproducible:
    @pytest.mark.parametrize(
        ("engine", "params"),
        [
            ("lightgbm", FAST),
            ("sklearn", {}),
            ("sklearn", {"estimator": "sklearn.ensemble.RandomForestClassifier", "n_estimators": 5}),
        ],
    )
    def test_from_scratch_twice(self, run, engine, params):
        first = run(engine=engine, params=params)
        graph = (Path(first.model.uri) / models.ONNX).read_bytes()
        shutil.rmtree(first.model.uri)
        second = run(engine=engine, params=params)
        assert second.model == first.model
        assert (Path(second.model.uri) / models.ONNX).read_bytes() == graph

    def test_digest_does_not_depend_on_the_run(self, run):
        other = replace(INFO, run_id="manual__1", map_index=0, reason="manual")
        first, second = run(), run(info=other)
        assert first.model.digest == second.model.digest
        assert first.model.uri != second.model.uri

    def test_threads_change_nothing(self, run):
        one = run(params={**FAST, "num_threads": 1}).model.digest
        assert run(info=replace(INFO, map_index=5), params={**FAST, "num_threads": 2}).model.digest == one

    def test_seed_does(self, run):
        assert run().model.digest != run(info=replace(INFO, map_index=5), seed=1).model.digest


class TestRetry:
    def test_finished_package_is_returned_untouched(self, run):
        first = run()
        stamps = {p: p.stat().st_mtime_ns for p in Path(first.model.uri).iterdir()}
        assert run() == first
        assert {p: p.stat().st_mtime_ns for p in Path(first.model.uri).iterdir()} == stamps

    def test_other_settings_replace_it(self, run):
        first, second = run(), run(params={"num_boost_round": 5})
        assert first.model.uri == second.model.uri
        assert first.model.digest != second.model.digest
        assert models.describe(Path(first.model.uri)) == second.model

    @pytest.mark.parametrize("damage", ["model.json", "model.onnx"])
    def test_incomplete_package_is_made_again(self, run, damage):
        first = run()
        (Path(first.model.uri) / damage).unlink()
        assert run() == first
        assert models.describe(Path(first.model.uri)) == first.model

    @pytest.mark.parametrize("moment", ["written", "moved away", "in place"])
    def test_killed_while_it_is_put_in_place(self, run, moment):
        """At each of the three moments between writing aside and removing the old one, a package is found again."""
        first = run()
        folder = Path(first.model.uri)
        aside, old = package.beside(folder, "new"), package.beside(folder, "old")
        if moment == "written":
            shutil.copytree(folder, aside)
        elif moment == "moved away":
            shutil.copytree(folder, aside)
            folder.rename(old)
        else:
            shutil.copytree(folder, old)
        assert run() == first
        assert sorted(p.name for p in folder.parent.iterdir()) == [f".{folder.name}.lock", folder.name]

    def test_only_one_at_a_time(self, run, spec):
        folder = package.place(spec(params=FAST), INFO)
        with package.owned(folder), pytest.raises(Conflict, match="another process is training into"):
            run()
        assert run().status == "ok"


class TestRefusals:
    def test_changed_rows(self, run, flights, tmp_path):
        copy = tmp_path / "rows.parquet"
        shutil.copy(flights.uri, copy)
        with open(copy, "ab") as handle:
            handle.write(b"more")
        with pytest.raises(IntegrityError, match="were changed since"):
            run(dataset=replace(flights, uri=str(copy)))

    @pytest.mark.parametrize(
        ("engine", "params", "message"),
        [
            ("lightgbm", {"objective": "regression"}, "params.objective must be left out, got 'regression'"),
            ("lightgbm", {"seed": 3}, "params.seed must be left out, got 3; the stage sets it"),
            ("lightgbm", {"random_state": 3}, "params.random_state must be left out, got 3; the stage sets it"),
            ("lightgbm", {"loss": "regression"}, "params.loss must be left out, got 'regression'"),
            ("lightgbm", {"metrics": "auc"}, "params.metrics must be left out, got 'auc'"),
            ("lightgbm", {"linear_trees": True}, "params.linear_trees must be left out, got True"),
            ("lightgbm", {"num_leafs": 7}, "params.num_leafs is no setting of LightGBM; did you mean 'num_leaf'?"),
            ("lightgbm", {"min_child_sample": 7}, "did you mean 'min_child_samples'?"),
            ("lightgbm", {"eta": 0.1, "learning_rate": 0.2}, "params.eta and params.learning_rate are one setting"),
            ("lightgbm", {"num_leaves": 0}, "LightGBM refused params"),
            ("sklearn", {"estimator": "os.system"}, "unknown params.estimator 'os.system'"),
            (
                "sklearn",
                {"estimator": "sklearn.ensemble.HistGradientBoostingClassifier"},
                "does not convert to ONNX; take engine 'lightgbm'",
            ),
            ("sklearn", {"maxiter": 3}, "unknown setting of LogisticRegression 'maxiter'; did you mean 'max_iter'?"),
            ("sklearn", {"C": -1.0}, "scikit-learn refused params"),
        ],
    )
    def test_bad_settings(self, run, engine, params, message):
        with pytest.raises(SpecError, match=message):
            run(engine=engine, params=params)

    def test_settings_of_this_package_may_be_repeated(self, run):
        assert run(params={**FAST, "application": "binary", "verbose": -1, "metric": "binary_logloss"}).status == "ok"

    def test_failed_training_leaves_the_old_package(self, run):
        first = run()
        before = contents(first.model.uri)
        with pytest.raises(DataError, match="no column is left"):
            run(features=(), exclude=(*models.read_manifest(Path(first.model.uri)).inputs, "flight_id"))
        assert contents(first.model.uri) == before


class TestEstimators:
    @pytest.mark.parametrize(
        ("estimator", "params"),
        [
            ("sklearn.linear_model.SGDClassifier", {}),
            ("sklearn.neural_network.MLPClassifier", {"hidden_layer_sizes": [4], "max_iter": 300, "tol": 0.01}),
            ("sklearn.naive_bayes.GaussianNB", {}),
            ("sklearn.tree.DecisionTreeClassifier", {}),
            ("sklearn.ensemble.ExtraTreesClassifier", {"n_estimators": 3}),
            ("sklearn.ensemble.GradientBoostingClassifier", {"n_estimators": 3}),
            ("sklearn.ensemble.AdaBoostClassifier", {"n_estimators": 3}),
        ],
    )
    def test_every_one_that_is_offered_converts(self, run, estimator, params):
        result = run(engine="sklearn", params={"estimator": estimator, **params})
        assert result.metrics["onnx_max_difference"] < 1e-4

    def test_skops_file_holds_no_untrusted_code(self, run):
        import skops.io

        folder = Path(run(engine="sklearn", params={}).model.uri)
        assert skops.io.get_untrusted_types(file=folder / "model.skops") == []


class TestLightgbmNames:
    @pytest.mark.parametrize(
        ("other", "main"),
        [
            ({"min_child_samples": 400}, {"min_data_in_leaf": 400}),
            ({"eta": 0.5}, {"learning_rate": 0.5}),
            ({"max_leaf_nodes": 2}, {"num_leaves": 2}),
            ({"colsample_bytree": 0.5}, {"feature_fraction": 0.5}),
            ({"n_estimators": 3}, {"num_boost_round": 3}),
            ({"n_iter_no_change": 1, "eta": 1.0}, {"early_stopping_rounds": 1, "learning_rate": 1.0}),
        ],
    )
    def test_any_name_of_a_setting_counts(self, run, other, main):
        results = [run(info=replace(INFO, map_index=i), params={**p}) for i, p in enumerate((other, main))]
        assert results[0].model.digest == results[1].model.digest
        assert results[0].model.digest != run(info=replace(INFO, map_index=5)).model.digest

    def test_least_gain_stops_early(self, run):
        assert trees(run(params={"early_stopping_min_delta": 1.0, "early_stopping_rounds": 2})) < 5


def trees(result) -> int:
    return (Path(result.model.uri) / lightgbm.MODEL).read_text().count("\nTree=")


class TestSinglePrecision:
    def test_thresholds_move_down_to_float32(self):
        assert lightgbm._floors("0.5 1e-35 0.1 -0.1") == " ".join(
            repr(float(v))
            for v in (0.5, np.nextafter(np.float32(1e-35), -1), np.float32(0.099999994), np.float32(-0.1))
        )
        for text in ("0.1", "123456.789", "-0.3", "1.0000000180025095e-35"):
            floor = np.float32(lightgbm._floors(text))
            assert float(floor) <= float(text) < float(np.nextafter(floor, np.float32(np.inf)))

    def test_no_decision_changes(self):
        """Neighbouring float32 values on both sides of each threshold are told apart as before."""
        import lightgbm as library

        rng = np.random.default_rng(0)
        x = rng.normal(size=(400, 1)).astype(np.float32)
        y = (x[:, 0] + rng.normal(size=400) > 0).astype(int)
        params = {"objective": "binary", "verbosity": -1, "min_data_in_leaf": 3, "deterministic": True}
        booster = library.train(params, library.Dataset(x, y), 10)
        native = lightgbm.native(booster, 1)
        edges = np.sort(x[:, 0])
        probes = np.unique(np.concatenate([edges, *(np.nextafter(edges, np.float32(s)) for s in (-9, 9))]))[:, None]
        np.testing.assert_array_equal(native.score(probes), booster.predict(probes))


class TestFunction:
    def run_function(self, run, source, kwargs=None, **changes):
        function = Function("fit", source, kwargs or {})
        return run(engine="function", function=function, params={}, **changes)

    def test_lightgbm_classifier(self, run):
        result = self.run_function(
            run,
            "def fit(run, trees):\n"
            "    import lightgbm\n"
            "    x, y = run.train.numpy()\n"
            "    assert x.shape[1] == len(run.features)\n"
            "    return lightgbm.LGBMClassifier(n_estimators=trees, verbosity=-1, n_jobs=1).fit(x, y)\n",
            {"trees": 5},
        )
        assert result.model.engine == "function"
        assert result.metrics["onnx_max_difference"] < 1e-6
        assert models.read_manifest(Path(result.model.uri)).provenance.code["function"].startswith("sha256:")

    def test_sklearn_on_the_encoding_that_was_asked_for(self, run):
        result = self.run_function(
            run,
            "def fit(run):\n"
            "    from sklearn.tree import DecisionTreeClassifier\n"
            "    assert run.preprocessor.encoding == 'ordinal'\n"
            "    assert run.train.arrow().column_names[-2:] == ['label', 'event_timestamp']\n"
            "    return DecisionTreeClassifier(max_depth=3).fit(*run.train.numpy())\n",
            encoding="ordinal",
        )
        assert result.metrics["validation_auc"] > 0.5

    def test_onnx_bytes(self, run):
        result = self.run_function(
            run,
            "def fit(run):\n"
            "    from onnx import TensorProto, helper\n"
            "    features = len(run.features)\n"
            "    weights = helper.make_tensor('w', TensorProto.FLOAT, [features, 1], [0.01] * features)\n"
            "    nodes = [helper.make_node('MatMul', ['X', 'w'], ['z']), helper.make_node('Sigmoid', ['z'], ['p'])]\n"
            "    x = helper.make_tensor_value_info('X', TensorProto.FLOAT, ['N', features])\n"
            "    p = helper.make_tensor_value_info('p', TensorProto.FLOAT, ['N', 1])\n"
            "    graph = helper.make_graph(nodes, 'g', [x], [p], [weights])\n"
            "    imports = [helper.make_opsetid('', 17)]\n"
            "    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()\n",
        )
        assert set(contents(result.model.uri)) == FILES
        assert result.metrics["onnx_max_difference"] < 1e-6

    @pytest.mark.parametrize(
        ("body", "error", "message"),
        [
            ("return {'weights': [1]}", SpecError, "must return a LightGBM booster, .* got dict"),
            ("return numpy.zeros(3)", SpecError, "name 'numpy' is not defined; it travels alone"),
            (
                "import lightgbm; return lightgbm.LGBMRegressor(n_estimators=2, verbosity=-1).fit(*run.train.numpy())",
                SpecError,
                "must have the objective 'binary'",
            ),
            (
                "from sklearn.linear_model import Perceptron; return Perceptron().fit(*run.train.numpy())",
                SpecError,
                "must be a fitted classifier with predict_proba",
            ),
            (
                "from sklearn.ensemble import HistGradientBoostingClassifier as H\n"
                "    return H(max_iter=3).fit(*run.train.numpy())",
                SpecError,
                "HistGradientBoostingClassifier does not convert to ONNX",
            ),
            (
                "from sklearn.discriminant_analysis import LinearDiscriminantAnalysis as L\n"
                "    return L().fit(*run.train.numpy())",
                DataError,
                "the ONNX export differs from the model by up to",
            ),
            ("return 1 / 0", ZeroDivisionError, "division by zero"),
        ],
    )
    def test_what_cannot_be_packaged(self, run, body, error, message):
        with pytest.raises(error, match=message):
            self.run_function(run, f"def fit(run):\n    {body}\n", encoding="ordinal")

    def test_resumes_from_its_own_snapshot(self, run, tmp_path):
        """A first try that dies after its snapshot; the second one goes on with its numbers and random state."""
        pytest.importorskip("safetensors", reason="a snapshot needs safetensors")
        mark = tmp_path / "mark"
        source = (
            "def fit(run, mark):\n"
            "    import os, random\n"
            "    import numpy as np\n"
            "    from sklearn.tree import DecisionTreeClassifier\n"
            "    state = run.resume() or {'step': 0, 'drawn': [], 'weights': np.zeros(2)}\n"
            "    for step in range(state['step'], 4):\n"
            "        state['drawn'].append([random.random(), float(np.random.rand())])\n"
            "        run.snapshot(step + 1, drawn=state['drawn'], weights=state['weights'] + step)\n"
            "        if step == 1 and not os.path.exists(mark):\n"
            "            open(mark, 'w').close()\n"
            "            raise RuntimeError('killed')\n"
            "    run.log('drawn', sum(sum(pair) for pair in state['drawn']))\n"
            "    with open(mark + '.drawn', 'w') as file:\n"
            "        file.write(repr(state['drawn']))\n"
            "    return DecisionTreeClassifier(max_depth=2, random_state=0).fit(*run.train.numpy())\n"
        )
        with pytest.raises(RuntimeError, match="killed"):
            self.run_function(run, source, {"mark": str(mark)})
        snapshots = sorted(p.name for p in (tmp_path / "models").rglob("step=*"))
        assert snapshots == ["step=1", "step=2"]
        result = self.run_function(run, source, {"mark": str(mark)})
        assert result.resumed_from == 2
        interrupted = Path(f"{mark}.drawn").read_text()
        assert not list((tmp_path / "models").rglob("step=*"))
        self.run_function(run, source, {"mark": str(mark)}, info=replace(INFO, map_index=9))
        assert Path(f"{mark}.drawn").read_text() == interrupted

    def test_a_snapshot_without_safetensors_says_what_to_install(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors", None)
        source = "def fit(run):\n    run.snapshot(1, best=0.5)\n"
        with pytest.raises(MissingLibrary, match=r"pip install safetensors"):
            self.run_function(run, source)


def test_stage_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, pkgutil, importlib, airflow_ml_provider.stages.train as t\n"
        "for m in pkgutil.iter_modules(t.__path__): importlib.import_module(t.__name__ + '.' + m.name)\n"
        "heavy = {'numpy', 'pyarrow', 'onnx', 'torch', 'sklearn', 'lightgbm', 'mlflow', 'pandas', 'duckdb'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_local_paths_may_be_uris(spec, tmp_path):
    uri = f"file://{tmp_path}/with%20space"
    result = stages.run(spec(output=uri, params=FAST), INFO)
    assert tables.local_path(result.model.uri).is_relative_to(tmp_path / "with space")

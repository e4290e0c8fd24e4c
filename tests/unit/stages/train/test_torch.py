from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from airflow_ml_provider import models, stages
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.models import Scorer
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.train import native, snapshots
from airflow_ml_provider.stages.train import torch as engine
from airflow_ml_provider.stages.train.snapshots import Snapshots
from airflow_ml_provider.stages.train.spec import Function, Launch

torch = pytest.importorskip("torch")

INFO = RunInfo("flights", "train", "r1")
FAST = {"epochs": 2, "hidden": [8], "batch_size": 1024}


@pytest.fixture
def run(spec):
    def inner(info=INFO, **changes):
        return stages.run(spec(**{"engine": "torch", "params": FAST, **changes}), info)

    return inner


class TestSettings:
    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"epoch": 3}, "unknown key in params 'epoch'; did you mean 'epochs'?"),
            ({"epochs": 0}, "params.epochs must be at least 1, got 0"),
            ({"dropout": 1.0}, r"params.dropout must be in \[0, 1\), got 1.0"),
            ({"learning_rate": "fast"}, "params.learning_rate must be of type float, got 'fast'"),
        ],
    )
    def test_bad_ones(self, run, params, message):
        with pytest.raises(SpecError, match=message):
            run(params=params)


def test_network_by_hand():
    """One number, one category of two codes, no hidden layer: a logistic regression."""
    net = engine.network(1, (2,), (), 0.0)
    with torch.no_grad():
        net.embeddings[0].weight.copy_(torch.tensor([[10.0], [20.0]]))
        net.layers[0].weight.copy_(torch.tensor([[0.5, 2.0]]))
        net.layers[0].bias.fill_(1.0)
        assert net(torch.tensor([[4.0, 0.0], [2.0, 1.0]])).tolist() == [0.5 * 4 + 2 * 10 + 1, 0.5 * 2 + 2 * 20 + 1]


class TestTraining:
    def test_package(self, run):
        result = run(params={"epochs": 6})
        folder = Path(result.model.uri)
        assert {"model.safetensors", "model.config.json", "model.onnx"} <= {p.name for p in folder.iterdir()}
        assert not (folder / "snapshots").exists()
        assert result.metrics["validation_auc"] > 0.55
        assert result.metrics["onnx_max_difference"] < 1e-5
        sample = pq.read_table(folder / models.SAMPLE)
        difference = Scorer(folder).score(sample) - np.array(sample.column("native_score").to_pylist())
        assert np.abs(difference).max() < 1e-5
        one_by_one = [Scorer(folder).score(sample.slice(i, 1))[0] for i in range(3)]
        np.testing.assert_allclose(one_by_one, Scorer(folder).score(sample.slice(0, 3)), atol=1e-6)

    def test_native_file_rebuilds_the_network(self, run):
        from safetensors.torch import load_file

        from airflow_ml_provider import codec
        from airflow_ml_provider.stages.train.preprocess import Preprocessor

        folder = Path(run().model.uri)
        config = json.loads((folder / engine.CONFIG).read_text())
        net = engine.network(config["numbers"], tuple(config["sizes"]), tuple(config["hidden"]), config["dropout"])
        net.load_state_dict(load_file(folder / engine.WEIGHTS))
        pre = codec.decode(Preprocessor, json.loads((folder / models.PREPROCESS).read_text()))
        sample = pq.read_table(folder / models.SAMPLE)
        scores = torch.sigmoid(net.eval()(torch.from_numpy(pre.matrix(sample)))).detach().numpy()
        np.testing.assert_allclose(scores, sample.column("native_score").to_pylist(), atol=1e-7)

    def test_from_scratch_twice(self, run):
        first = run()
        graph = (Path(first.model.uri) / models.ONNX).read_bytes()
        shutil.rmtree(first.model.uri)
        assert run() == first
        assert (Path(first.model.uri) / models.ONNX).read_bytes() == graph

    def test_settings_of_the_process_come_back(self, run):
        before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        run()
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before

    @pytest.mark.parametrize(("every", "dies_at", "resumes"), [(0, 6, 6), (0, 11, 6), (4, 7, 4), (5, 10, 10)])
    def test_interrupted_training_ends_in_the_same_weights(self, run, monkeypatch, tmp_path, every, dies_at, resumes):
        """Six steps per epoch and three epochs; dropout draws random numbers all along."""
        changes = {"params": {**FAST, "epochs": 3, "dropout": 0.3}, "launch": Launch(snapshot_every=every)}
        whole = run(info=replace(INFO, run_id="whole"), **changes)
        learn = engine._Training._learn

        def dying(self, chosen):
            if self.step == dies_at:
                raise KeyboardInterrupt
            learn(self, chosen)

        monkeypatch.setattr(engine._Training, "_learn", dying)
        with pytest.raises(KeyboardInterrupt):
            run(**changes)
        monkeypatch.undo()
        found = run(**changes)
        assert (whole.resumed_from, found.resumed_from) == (None, resumes)
        assert found.model.digest == whole.model.digest
        assert found.metrics == whole.metrics

    @pytest.fixture
    def dying(self, run, monkeypatch):
        """Run a training that dies at a step, with a snapshot every four."""

        def inner(step, info=INFO, **launch):
            learn = engine._Training._learn

            def until(self, chosen):
                if self.step == step:
                    raise KeyboardInterrupt
                learn(self, chosen)

            with monkeypatch.context() as patch:
                patch.setattr(engine._Training, "_learn", until)
                with pytest.raises(KeyboardInterrupt):
                    run(info, launch=Launch(snapshot_every=4, **launch))

        return inner

    def test_cleared_it_begins_anew_and_its_own_retry_goes_on(self, run, dying):
        launch = Launch(snapshot_every=4, after_clear="fresh")
        whole = run(replace(INFO, run_id="whole"), launch=launch)
        dying(9, after_clear="fresh")
        cleared = replace(INFO, cleared=True, clear_number=1)
        dying(6, cleared, after_clear="fresh")
        found = run(cleared, launch=launch)
        assert found.resumed_from == 4  # not 8, of before the clear
        assert found.model.digest == whole.model.digest
        assert not list(Path(found.model.uri).glob("snapshots*"))
        assert run(cleared, launch=launch).resumed_from is None  # complete: the package of before is the answer
        dying(3, replace(cleared, clear_number=2), after_clear="fresh")  # cleared again, it is not

    def test_cleared_it_goes_on_unless_told_otherwise(self, run, dying):
        dying(9)
        assert run(replace(INFO, cleared=True, clear_number=1), launch=Launch(snapshot_every=4)).resumed_from == 8

    def test_snapshots_at_a_uri_and_what_it_costs(self, run, dying, tmp_path):
        where = {"snapshots": f"file://{tmp_path}/else where", "price_per_hour": 3.6}
        dying(9, **where)
        (kept,) = (tmp_path / "else where" / "flight_delay").glob("*/snapshots")
        assert sorted(path.name for path in kept.iterdir()) == ["step=4", "step=8"]
        found = run(launch=Launch(snapshot_every=4, **where))
        assert found.resumed_from == 8
        assert not kept.exists()
        assert found.model.digest == run(replace(INFO, run_id="whole")).model.digest
        figures = found.performance
        assert figures["cost_per_million_samples"] == pytest.approx(1000 / figures["samples_per_s"])

    def test_divergence_is_told(self, run):
        with pytest.raises(DataError, match=r"training diverged in epoch 0: .*give a learning_rate below 1e"):
            run(params={**FAST, "learning_rate": 1e30})

    def test_stops_when_nothing_gets_better(self, run):
        launch = Launch(keep=99)
        steps = []
        save = Snapshots.save

        def recording(self, step, state, **how):
            steps.append((step, state["progress"]["stale"]))
            save(self, step, state, **how)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(snapshots.Snapshots, "save", recording)
            run(params={**FAST, "epochs": 60, "patience": 2, "learning_rate": 0.05}, launch=launch)
        assert steps[-1][1] == 2
        assert all(stale < 2 for _, stale in steps[:-1])
        assert steps[-1][0] < 60 * 6


class TestFunction:
    def run_function(self, run, source, **changes):
        return run(engine="function", function=Function("fit", source), params={}, **changes)

    def test_module(self, run):
        source = (
            "def fit(run):\n"
            "    import torch\n"
            "    x, y = (torch.from_numpy(part) for part in run.train.numpy())\n"
            "    net = torch.nn.Linear(x.shape[1], 1)\n"
            "    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
            "    for epoch in range(2):\n"
            "        for rows in run.batches(epoch, 512):\n"
            "            logits = net(x[rows]).squeeze(1)\n"
            "            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows])\n"
            "            optimizer.zero_grad(); loss.backward(); optimizer.step()\n"
            "        run.log('loss', loss.item(), epoch)\n"
            "    return net\n"
        )
        first = self.run_function(run, source)
        assert first.metrics["onnx_max_difference"] < 1e-5
        assert self.run_function(run, source, info=replace(INFO, map_index=3)).model.digest == first.model.digest

    def test_wrong_shape(self, run):
        source = "def fit(run):\n    import torch\n    return torch.nn.Linear(len(run.features), 2)\n"
        with pytest.raises(
            SpecError, match=r"must give logits of shape \[N\] or \[N, 1\] for \d+ columns, got \(3, 2\)"
        ):
            self.run_function(run, source)


class TestSnapshotsOfTorch:
    def test_optimizer_and_scheduler_go_on(self, tmp_path):
        torch.manual_seed(0)
        x = torch.randn(8, 3)

        def build():
            net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
            return net, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

        def learn(net, optimizer, scheduler):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
            scheduler.step()

        first = build()
        for _ in range(3):
            learn(*first)
        store = Snapshots(tmp_path, "r")
        store.save(3, {"parts": list(first), "half": torch.ones(2, dtype=torch.bfloat16), "nan": float("nan")})
        _, state = store.load()
        second = build()
        for part, saved in zip(second, state["parts"], strict=True):
            part.load_state_dict(saved)
        assert state["half"].dtype == torch.bfloat16
        for parts in (first, second):
            for _ in range(3):
                learn(*parts)
        for mine, other in zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True):
            assert torch.equal(mine, other)

    def test_random_numbers(self, tmp_path):
        store = Snapshots(tmp_path, "r")
        store.save(1, {})
        expected = torch.rand(3)
        torch.manual_seed(99)
        store.load()
        assert torch.equal(torch.rand(3), expected)


def test_adapter_refuses_what_is_not_a_model():
    with pytest.raises(SpecError, match="torch gave a Tensor"):
        native.of(torch.zeros(3), 3)

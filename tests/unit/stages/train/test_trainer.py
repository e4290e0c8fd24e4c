from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest

from airflow_ml_provider.exceptions import MissingLibrary, SpecError
from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.stages.train.standalone import training
from airflow_ml_provider.stages.train.trainer import Trainer

torch = pytest.importorskip("torch")


def loss(model, batch):
    return torch.nn.functional.mse_loss(model(batch["x"]).squeeze(1), batch["y"])


def rows(count: int):
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(count, 3, generator=generator), "y": torch.randn(count, generator=generator)}


def learnt(run, batch, **settings) -> tuple[torch.Tensor, int, float]:
    """Return the weights after one step, the number of micro steps and the loss."""
    torch.manual_seed(2)
    net = torch.nn.Linear(3, 1)
    sizes = []
    net.register_forward_hook(lambda module, given, found: sizes.append(len(given[0])))
    found = Trainer(run, net, torch.optim.SGD(net.parameters(), lr=1.0), **settings).step(batch, loss)
    return torch.cat([p.detach().flatten() for p in net.parameters()]), len(sizes), found


@pytest.fixture
def alone(tmp_path):
    with training(str(tmp_path / "snapshots")) as run:
        yield run


class TestAccumulate:
    @pytest.mark.parametrize("count", [8, 7, 3])
    def test_is_the_gradient_of_the_whole_batch(self, alone, count):
        weights, calls, found = learnt(alone, rows(count))
        again, more, same = learnt(alone, rows(count), accumulate=4)
        assert (calls, more) == (1, min(4, count))
        torch.testing.assert_close(again, weights)
        assert same == pytest.approx(found, rel=1e-5)

    def test_bad_ones(self, alone):
        with pytest.raises(SpecError, match="accumulate must be at least 1, got 0"):
            learnt(alone, rows(2), accumulate=0)
        with pytest.raises(SpecError, match="batch must be at least one row on every rank"):
            learnt(alone, rows(0))


class TestUnevenShares:
    """Two ranks of three, and three of four: shares differ, the number of micro steps must not."""

    @pytest.mark.parametrize(("full", "shares"), [(3, (2, 1)), (3, (5, 4)), (4, (2, 1, 1)), (4, (6, 5, 5))])
    def test_all_make_as_many_micro_steps_and_the_mean_gradient_is_that_of_the_batch(self, alone, full, shares):
        whole, _, _ = learnt(alone, rows(sum(shares)))
        run = SimpleNamespace(
            world_size=len(shares), full_size=full, device=alone.device, launch=Launch(), sum=lambda rows: sum(shares)
        )
        found, calls, batch = [], [], rows(sum(shares))
        for rank, share in enumerate(shares):
            first = sum(shares[:rank])
            piece = {name: values[first : first + share] for name, values in batch.items()}
            weights, micro, _ = learnt(run, piece)
            found.append(weights)
            calls.append(micro)
        assert calls == [2] * len(shares)
        torch.testing.assert_close(torch.stack(found).mean(0), whole)

    def test_fewer_rows_than_micro_steps(self, alone):
        run = SimpleNamespace(world_size=2, full_size=2, device=alone.device, launch=Launch())
        weights, calls, _ = learnt(run, rows(2), accumulate=5)
        assert calls == 5
        torch.testing.assert_close(weights, learnt(alone, rows(2))[0])


def test_without_an_optimizer(alone):
    with pytest.raises(SpecError, match="optimizer is missing"):
        alone.trainer(torch.nn.Linear(1, 1))


class TestDeepSpeed:
    CONFIG: ClassVar[dict[str, object]] = {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}

    def test_is_not_there(self, alone, monkeypatch):
        monkeypatch.setattr("airflow_ml_provider.stages.train.deepspeed.find_spec", lambda name: None)
        with pytest.raises(MissingLibrary, match=r"lacks deepspeed; run: .* -m pip install deepspeed"):
            alone.parallel(torch.nn.Linear(1, 1), deepspeed=self.CONFIG)

    @pytest.mark.parametrize("more", [{"shard": torch.nn.Linear}, {"precision": "bf16"}])
    def test_does_not_go_with_the_kit_s_own_ways(self, alone, more):
        with pytest.raises(SpecError, match="deepspeed shards by its zero_optimization"):
            alone.parallel(torch.nn.Linear(1, 1), deepspeed=self.CONFIG, **more)


def test_goes_on_at_the_same_step_with_scheduler_and_scaler(tmp_path):
    def train(steps: int) -> tuple[int, list[float], float]:
        with training(str(tmp_path / "snapshots"), launch=Launch(snapshot_every=2)) as run:
            torch.manual_seed(3)
            net = torch.nn.Linear(3, 1)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            trainer = run.trainer(net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), precision="fp16")
            found = trainer.resume()
            while trainer.steps < steps:
                trainer.step(rows(4), loss)
                trainer.keep(note=trainer.steps)
            assert found == {"step": 0} or found == {"step": found["step"], "note": found["step"]}
            return found["step"], net.weight.tolist(), optimizer.param_groups[0]["lr"]

    assert train(3)[0] == 0
    resumed, weights, rate = train(5)
    assert (resumed, rate) == (2, 0.1 * 0.5**5)
    for folder in (tmp_path / "snapshots").iterdir():
        for path in folder.iterdir():
            path.unlink()
    begun, same, _ = train(5)
    assert begun == 0
    assert same == weights

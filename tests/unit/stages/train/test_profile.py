from __future__ import annotations

import json

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.train.profile import WARM_UP, communication_share
from airflow_ml_provider.stages.train.spec import Launch


def event(name: str, start: float, duration: float, category: str = "user_annotation") -> dict[str, object]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}


STEPS = [event("ProfilerStep#3", 100, 50), event("ProfilerStep#4", 150, 50)]


class TestCommunicationShare:
    def test_collectives_at_the_same_time_count_once(self):
        """From 110 to 130 by one thread and from 120 to 140 by the other: 30 of 100."""
        assert (
            communication_share([*STEPS, event("gloo:all_reduce", 110, 20), event("gloo:all_reduce", 120, 20)]) == 0.3
        )

    def test_only_what_lies_within_the_steps(self):
        """From before the first step to 110, over the border of the steps, and from 190 to after the last."""
        outside = [event("gloo:all_gather", ts, dur) for ts, dur in ((50, 60), (145, 10), (190, 40))]
        assert communication_share([*STEPS, *outside, event("gloo:barrier", 300, 10)]) == 0.3

    def test_kernels_of_a_gpu(self):
        """Annotations of the GPU's timeline repeat what lies below them, and what the host does is no device time."""
        events = [
            *STEPS,
            event("ampere_sgemm_128x64_tn", 100, 50, "kernel"),
            event("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 120, 30, "kernel"),
            event("nccl:all_reduce", 120, 30, "gpu_user_annotation"),
            event("nccl:all_reduce", 110, 5),
            event("Memcpy HtoD (Pinned -> Device)", 150, 15, "gpu_memcpy"),
            event("Memset (Device)", 165, 5, "gpu_memset"),
            event("cudaLaunchKernel", 100, 70, "cuda_runtime"),
            {"ph": "M", "name": "process_name"},
        ]
        assert communication_share(events) == 0.3

    def test_one_rank_does_not_communicate(self):
        assert communication_share([*STEPS, event("aten::mm", 110, 20, "cpu_op")]) == 0


def test_bad_settings(spec):
    with pytest.raises(SpecError, match="profile_steps must be at least 0, got -1"):
        Launch(profile_steps=-1)
    with pytest.raises(SpecError, match="profile_steps must be 0 for engine 'lightgbm', got 5"):
        spec(launch=Launch(profile_steps=5))


class TestOneProcess:
    @pytest.fixture
    def train(self, tmp_path):
        torch = pytest.importorskip("torch")
        from airflow_ml_provider.stages.train.standalone import training

        def inner(steps: int, profile_steps: int):
            launch = Launch(profile_steps=profile_steps)
            with training(str(tmp_path / "snapshots"), launch=launch, traces=tmp_path / "traces") as run:
                torch.manual_seed(1)
                net = torch.nn.Linear(4, 1)
                trainer = run.trainer(net, torch.optim.Adam(net.parameters()))
                for _ in range(steps):
                    trainer.step(torch.randn(8, 4), lambda model, batch: model(batch).square().mean())
                return run, net.weight.tolist()

        return inner

    def test_records_the_steps_after_the_warm_up(self, train, tmp_path):
        run, weights = train(12, 5)
        (path,) = (tmp_path / "traces").iterdir()
        assert path.name == "rank-0.pt.trace.json"
        events = json.loads(path.read_text())["traceEvents"]
        assert sum(found["name"].startswith("ProfilerStep#") for found in events) == 5
        assert sum(found["name"] == "Optimizer.step#Adam.step" for found in events) == 5
        assert run.performance["communication_share"] == 0
        assert weights == train(12, 0)[1]

    def test_off_makes_nothing(self, train, tmp_path):
        run, _ = train(12, 0)
        assert (run._profile, run.performance) == (None, {})
        assert not (tmp_path / "traces").exists()

    @pytest.mark.parametrize("steps", range(WARM_UP + 2))
    def test_too_short_a_training(self, train, tmp_path, caplog, steps):
        run, _ = train(steps, 2)
        assert "there is no profile: it takes 5 steps" in caplog.text
        assert run.performance == {}
        assert not (tmp_path / "traces").exists()
        train(WARM_UP + 2, 2)  # torch has but one profiler: it is free again
        assert len(list((tmp_path / "traces").iterdir())) == 1

from __future__ import annotations

import pytest

from airflow_ml_provider.stages.train import meter
from airflow_ml_provider.stages.train.meter import Meter

pytest.importorskip("torch")


def counted(steps: int, world_size: int = 1, price: float | None = None) -> Meter:
    """A meter after steps of 100 rows, half a second each, of which 0.2 s were busy."""
    found = Meter(world_size, price)
    for step in range(steps):
        found.add(100, 0.2, found._since + 0.5 * (step + 1))
    return found


def test_one_rank():
    figures = counted(4).report()
    assert figures == pytest.approx(
        {"samples_per_s": 200, "samples_per_s_per_rank": 200, "step_s": 0.5, "straggler_ratio": 1}
    )


def test_each_report_counts_anew():
    one = counted(4)
    one.report()
    one.add(100, 0.2, one._since + 1)
    assert one.report()["samples_per_s"] == pytest.approx(100)


def test_ranks_together(monkeypatch):
    """The slowest rank's clock counts; who computes three times as long as the median is the straggler."""
    others = [[400, 2.0, 0.5, 0.1, -1, -1], [400, 2.5, 0.6, 0.3, -1, -1]]
    monkeypatch.setattr(meter, "_gathered", lambda mine, world_size: [[*mine[:3], 0.1, *mine[4:]], *others])
    figures = counted(4, 3, price=3.0).report()
    assert figures["samples_per_s"] == pytest.approx(1200 / 2.5)
    assert figures["samples_per_s_per_rank"] == pytest.approx(160)
    assert figures["step_s"] == pytest.approx(0.6)
    assert figures["straggler_ratio"] == pytest.approx(3)
    # Three ranks for 1e6 / 480 seconds at 3 an hour each.
    assert figures["cost_per_million_samples"] == pytest.approx(3 * 3 * 1e6 / 480 / 3600)


def test_gpu_figures_only_where_all_ranks_have_them(monkeypatch):
    rows = [[100, 1.0, 1.0, 1.0, 3.0, 80.0], [100, 1.0, 1.0, 1.0, 5.0, -1.0]]
    monkeypatch.setattr(meter, "_gathered", lambda mine, world_size: rows)
    figures = counted(1, 2).report()
    assert figures["gpu_memory_gib"] == 5
    assert "gpu_utilisation" not in figures


def test_without_a_step_there_is_nothing_to_pay():
    assert "cost_per_million_samples" not in Meter(1, 2.0).report()

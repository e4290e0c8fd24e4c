from __future__ import annotations

import subprocess
import sys

import pytest

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.monitor import series
from airflow_ml_provider.stages.monitor.logic import Entry
from airflow_ml_provider.stages.monitor.series import read_series


@pytest.fixture
def written(tmp_path):
    place = series.folder(str(tmp_path), "late")
    for key in ("2013-01-07", "2013-01-05", "2013-01-06"):
        series.write(place, Entry(interval=key, rows=10, judged=True, severity="warn", models={"late": "1"}))
    return tmp_path


def test_entries_in_order_as_plain_mappings(written):
    found = read_series(str(written), "late")
    assert [e["interval"] for e in found] == ["2013-01-05", "2013-01-06", "2013-01-07"]
    assert found[0] == {
        "interval": "2013-01-05", "rows": 10, "judged": True, "severity": "warn", "drift_share": None, "auc": None,
        "labels": 0, "called": False, "retrain": False, "models": {"late": "1"}, "started_by": "",
    }  # fmt: skip


@pytest.mark.parametrize("until", ["2013-01-06", Interval.from_key("2013-01-06")])
def test_until(written, until):
    assert len(read_series(str(written), "late", until)) == 2


def test_no_series_yet(tmp_path):
    assert read_series(str(tmp_path), "late") == []


def test_foreign_file(written):
    (written / "late" / "series" / "interval=x.json").write_text("{}")
    with pytest.raises(DataError, match=r"interval=x\.json is no entry of a monitor's series"):
        read_series(str(written), "late")


def test_a_dead_decider_does_not_block(tmp_path):
    code = (
        "import os, pathlib; from airflow_ml_provider.stages.monitor import series\n"
        f"with series.deciding(pathlib.Path({str(tmp_path)!r})):\n    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with series.deciding(tmp_path):
        assert series.read(tmp_path) == []

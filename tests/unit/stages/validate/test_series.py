from __future__ import annotations

from pathlib import Path

import pytest

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.validate.series import point, read_series, write_point


def test_series(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert read_series(root) == []
    for key in ("2013-01-03", "2013-01-01", "2013-01-02"):
        write_point(root, Interval.from_key(key), {"interval": key, "quality": {"overall": 1.0}, "passed": True})
    assert [p["interval"] for p in read_series(root)] == ["2013-01-01", "2013-01-02", "2013-01-03"]
    day = Interval.from_key("2013-01-02")
    assert [p["interval"] for p in read_series(root, until=day)] == ["2013-01-01", "2013-01-02"]
    assert read_series(root, until="2013-01-02") == read_series(root, until=day)


def test_a_point_is_replaced_by_equal_bytes(tmp_path: Path) -> None:
    day, body = Interval.from_key("2013-01-02"), {"interval": "2013-01-02", "quality": {}}
    first = write_point(str(tmp_path), day, body).read_bytes()
    assert write_point(str(tmp_path), day, body).read_bytes() == first
    assert len(read_series(str(tmp_path))) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"interval": "2013-01-02"}'])
def test_broken_point(tmp_path: Path, text: str) -> None:
    path = point(str(tmp_path), Interval.from_key("2013-01-02"))
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DataError, match="run validate of that interval again"):
        read_series(str(tmp_path))

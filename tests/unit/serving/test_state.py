"""The wanted state survives, and nobody overwrites what they have not seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_ml_provider.exceptions import Conflict, SpecError
from airflow_ml_provider.serving.spec import Version, Wanted
from airflow_ml_provider.serving.state import WANTED, Store

WANTS = Wanted({"1": Version("/m", "sha256:" + "a" * 64, percent=100)}, stable="1", rollout={"step": 1})


def test_kept_and_found_again(tmp_path) -> None:
    assert Store(tmp_path).wanted == Wanted()
    kept = Store(tmp_path).replace(WANTS)
    assert kept == replace(WANTS, generation=1)
    assert Store(tmp_path).wanted == kept


def test_stale(tmp_path) -> None:
    store = Store(tmp_path)
    store.replace(WANTS)
    with pytest.raises(Conflict, match="generation is 1 by now, not 0"):
        store.replace(WANTS)
    assert store.wanted.generation == Store(tmp_path).wanted.generation == 1


def test_what_cannot_follow_changes_nothing(tmp_path) -> None:
    store = Store(tmp_path)
    kept = store.replace(WANTS)
    other = {"1": replace(WANTS.versions["1"], package="/other")}
    with pytest.raises(SpecError, match="another name"):
        store.replace(replace(kept, versions=other))
    assert Store(tmp_path).wanted == kept


@pytest.mark.parametrize("text", ["{", '{"stable": 3}', '{"generations": 3}', "[]"])
def test_a_broken_file_is_said_to_be_one(tmp_path, text: str) -> None:
    (tmp_path / WANTED).write_text(text)
    with pytest.raises(SpecError, match=r"wanted\.json holds no wanted state: .*mend or remove it"):
        Store(tmp_path)

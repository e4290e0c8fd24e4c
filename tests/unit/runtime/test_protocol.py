from __future__ import annotations

import json

import pytest

from airflow_ml_provider.exceptions import (
    BY_NAME,
    Conflict,
    DataError,
    MissingLibrary,
    MlError,
    SpecError,
    StageFailed,
)
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.runtime import protocol
from airflow_ml_provider.stages.ingest.spec import IngestResult


def test_call_keeps_the_order_of_columns(spec, tmp_path):
    path = tmp_path / "call.json"
    protocol.write_call(path, spec, RunInfo(run_id="r"))
    found, info = protocol.read_call(path, "ingest")
    assert (found, info) == (spec, RunInfo(run_id="r"))
    assert list(found.columns) == list(spec.columns)


@pytest.mark.parametrize("body", [None, "", "[]", '{"stage": "train"}'])
def test_not_a_call(tmp_path, body):
    path = tmp_path / "call.json"
    if body is not None:
        path.write_text(body)
    with pytest.raises(SpecError, match=r"call file .* (cannot be read|is not for stage 'ingest')"):
        protocol.read_call(path, "ingest")


def test_result_survives(spec):
    result = IngestResult(status="refused", reason="no", counts={"read": 1}, facets={"run": {"x": [1]}})
    outcome = json.loads(json.dumps(protocol.outcome_of_result(result)))
    assert protocol.open_outcome(outcome, spec) == result
    assert protocol.exit_code(outcome) == protocol.EXIT_OK


class Nearby(DataError):
    pass


class Refused(Exception):
    """Somebody else's exception with a name of ours."""


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        *[(cls("m"), cls, None) for cls in BY_NAME.values()],
        (Nearby("m"), DataError, 65),
        (MissingLibrary("m"), MissingLibrary, 69),
        (Conflict("m"), Conflict, 75),
        (MlError("m"), MlError, 65),
        (ValueError("m"), StageFailed, 75),
        (Refused("m"), StageFailed, 75),
        (MemoryError(), StageFailed, 75),
    ],
)
def test_errors_keep_kind_and_verdict(spec, error, kind, code):
    outcome = json.loads(json.dumps(protocol.outcome_of_error(error)))
    with pytest.raises(MlError) as caught:
        protocol.open_outcome(outcome, spec)
    assert type(caught.value) is kind
    assert code is None or protocol.exit_code(outcome) == code


def test_unknown_error_of_a_newer_side_may_be_retried(spec):
    outcome = {"error": {"type": "Brandnew", "message": "m", "traceback": "t"}}
    with pytest.raises(StageFailed, match="m\nt"):
        protocol.open_outcome(outcome, spec)

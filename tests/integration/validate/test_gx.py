"""The whole stage with Great Expectations on real days of flights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider import stages, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.runtime import Interpreter
from airflow_ml_provider.stages.validate.series import read_series
from airflow_ml_provider.stages.validate.spec import ProfileSpec, ValidateResult, ValidateSpec

pytest.importorskip("great_expectations")

DAY = "2013-01-04"
DEMO = Path(__file__).parents[3] / "dags" / "flight_delay" / "suites" / "flights.yaml"
PROFILE = ProfileSpec(
    required=("carrier", "origin", "dest", "scheduled_departure"),
    valid={"distance": "distance BETWEEN 50 AND 6000"},
    rules={"order": "actual_arrival > actual_departure"},
    key=("flight_id",),
    event_time="scheduled_departure",
    known_time="recorded_at",
    minimum={"overall": 0.9},
)
Rows = list[dict[str, Any]]
Day = Callable[..., DatasetRef]


@pytest.fixture
def validate(tmp_path: Path) -> Callable[..., ValidateResult]:
    """Run the stage below a folder, on expectations or a suite file."""

    def run(dataset: DatasetRef, *expectations: Mapping[str, Any], **settings: Any) -> ValidateResult:
        return stages.run(spec_of(tmp_path, dataset, *expectations, **settings), RunInfo())  # type: ignore[return-value]

    return run


def spec_of(root: Path, dataset: DatasetRef, *expectations: Mapping[str, Any], **settings: Any) -> ValidateSpec:
    if expectations:
        suite = root / "suite.json"
        suite.write_text(json.dumps({"name": "test", "expectations": expectations}))
        settings["suite"] = str(suite)
    settings = {"suite": str(DEMO), "profile": PROFILE, **settings}
    return ValidateSpec(dataset=dataset, target=str(root / "valid"), reports=str(root / "reports"), **settings)


def expect(kind: str, severity: str = "block", **kwargs: Any) -> dict[str, Any]:
    return {"type": f"expect_{kind}", "kwargs": kwargs, "meta": {"severity": severity}}


def read(ref: DatasetRef | None) -> Any:
    import pyarrow.parquet as pq

    assert ref is not None
    with pq.ParquetFile(ref.uri) as file:
        return file.read()


def report(result: ValidateResult) -> Any:
    assert result.report is not None
    assert tables.file_digest(Path(result.report.uri)) == result.report.digest
    return json.loads(Path(result.report.uri).read_text())


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def spoil(rows: Rows) -> None:
    rows[3]["distance"] = 7
    rows[10]["carrier"] = "<script>alert(1)</script>"
    rows[12].update(distance=-1, dep_delay=99999)


def test_a_sound_day_is_admitted_as_it_is(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    batch = flights_day(DAY)
    result = validate(batch)
    assert (result.status, result.reason, result.failed, result.quarantine) == ("ok", "", {}, None)
    assert read(result.dataset).to_pylist() == read(batch).to_pylist()
    assert result.dataset is not None
    assert result.dataset.counts == {"read": batch.rows, "quarantined": 0}
    assert "interval" not in result.dataset.columns  # DuckDB would make one of the name of the folder
    assert result.quality["overall"] == pytest.approx(1.0, abs=0.01)
    assert len(report(result)["expectations"]) == 15
    assert all(e["passed"] for e in report(result)["expectations"])


def test_bad_rows_are_set_aside_with_every_reason(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    batch = flights_day(DAY, spoil)
    result = validate(batch)
    assert result.status == "ok"
    assert result.reason.startswith("3 of 917 rows set aside: ")
    aside, admitted, whole = (read(ref).to_pylist() for ref in (result.quarantine, result.dataset, batch))
    reasons = [row.pop("reason") for row in aside]
    assert aside == [whole[i] for i in (3, 10, 12)]
    assert admitted == [row for i, row in enumerate(whole) if i not in (3, 10, 12)]
    assert reasons == [
        "expect_column_values_to_be_between(distance)",
        "expect_column_values_to_match_regex(carrier)",
        "expect_column_values_to_be_between(distance); expect_column_values_to_be_between(dep_delay)",
    ]
    assert set(result.failed) == {"quarantine", "warn"}  # the mean delay is worth a look as well
    assert report(result)["rows"] == {"read": 917, "quarantined": 3}


def test_rows_found_under_a_row_condition_are_the_right_ones(
    flights_day: Day, validate: Callable[..., ValidateResult]
) -> None:
    condition = {"type": "comparison", "column": {"name": "origin"}, "operator": "==", "parameter": "JFK"}
    long = expect(
        "column_values_to_be_between", "quarantine", column="distance", max_value=2000, row_condition=condition
    )
    result = validate(flights_day(DAY), long)
    for row in read(result.quarantine).to_pylist():
        assert (row["origin"], row["distance"] > 2000) == ("JFK", True)
    assert not any(r["origin"] == "JFK" and r["distance"] > 2000 for r in read(result.dataset).to_pylist())


def test_a_refused_batch_leaves_the_table_as_it_was(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    sound = validate(flights_day(DAY))
    before = Path(sound.dataset.uri).read_bytes()  # type: ignore[union-attr]

    def repeat(rows: Rows) -> None:
        spoil(rows)
        rows.append(dict(rows[0]))

    result = validate(flights_day(DAY, repeat))
    assert (result.status, result.dataset) == ("refused", None)
    assert result.reason == (
        "1 expectation that must hold failed: expect_column_values_to_be_unique(flight_id) (2 of 918 rows)"
    )
    assert Path(sound.dataset.uri).read_bytes() == before  # type: ignore[union-attr]
    assert result.quarantine is not None  # to look at
    assert result.report is not None
    assert result.report.passed is False
    assert report(result)["decision"]["reasons"] == [result.reason]
    assert "Refused" in Path(result.links["data_docs"]).read_text()
    (point,) = read_series(str(Path(result.report.uri).parents[2]))
    assert (point["passed"], point["rows"], point["quarantined"]) == (False, 918, 3)
    # The fix comes: the day is admitted, and what was set aside is gone.
    again = validate(flights_day(DAY))
    assert again.dataset == sound.dataset
    assert not Path(result.quarantine.uri).exists()


def test_low_quality_is_refused(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    def empty_carrier(rows: Rows) -> None:
        for row in rows[:100]:
            row["carrier"] = None

    profile = ProfileSpec(required=("carrier",), minimum={"completeness": 0.99})
    result = validate(flights_day(DAY, empty_carrier), suite=None, profile=profile)
    assert (result.status, result.reason) == ("refused", "completeness 0.8909 is below its minimum 0.99")
    assert result.metrics == pytest.approx(
        {"rows": 917, "quarantined": 0, "quality_completeness": 1 - 100 / 917, "quality_overall": 1 - 100 / 917}
    )


def test_twice_is_once(flights_day: Day, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, flights_day(DAY, spoil))
    first = stages.run(spec, RunInfo(run_id="one"))
    files = tree(tmp_path)
    second = stages.run(spec, RunInfo(run_id="two"))
    assert tree(tmp_path) == files  # Data Docs, too
    assert first.outputs == second.outputs


def test_another_python_gives_the_same(flights_day: Day, tmp_path: Path) -> None:
    batch = flights_day(DAY, spoil)
    here = stages.run(spec_of(tmp_path, batch), RunInfo())
    files = tree(tmp_path)
    there = Interpreter(sys.executable).call(spec_of(tmp_path, batch), RunInfo(), {})
    assert there.outputs == here.outputs
    assert tree(tmp_path) == files


def test_what_cannot_be_judged_blocks(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    result = validate(
        flights_day(DAY),
        expect("column_values_to_be_between", "warn", column="nope", min_value=1),
        expect("column_values_to_be_between", "quarantine", column="carrier", min_value=1),
        expect("column_values_to_match_like_pattern", "warn", column="carrier", like_pattern="A%"),  # not on pandas
        expect("table_row_count_to_be_between", min_value=1),
    )
    assert result.status == "refused"
    assert len(result.failed["block"]) == 3
    errors = [e["error"] for e in report(result)["expectations"]]
    assert errors[0] == 'The column "nope" in BatchData does not exist.'
    assert "same type" in errors[1]
    assert "No provider found" in errors[2]
    assert errors[3] == ""


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        (expect("column_values_to_be_betwen", column="a"), "did you mean 'expect_column_values_to_be_between'"),
        (expect("column_values_to_be_between", colunm="a", min_value=1), "did you mean 'column'"),
        (expect("column_values_to_be_between", column="a", min_value="three"), "has a bad argument: .*min_value"),
        (expect("column_values_to_be_between", column="a"), "min_value and max_value cannot both be None"),
        (expect("column_values_to_be_between", column="a", min_value=1, mostly=95), "has a bad argument"),
        (expect("table_row_count_to_equal", "quarantine", value=3), "has severity 'quarantine' but names no rows"),
        (
            expect("column_values_to_be_of_type", "quarantine", column="carrier", type_="str"),
            "has severity 'quarantine' but names no rows",
        ),
        (
            expect("column_values_to_be_between", column="a", min_value={"$PARAMETER": "interval_stat"}),
            "unknown \\$PARAMETER 'interval_stat'; did you mean 'interval_start'",
        ),
    ],
)
def test_a_wrong_suite_is_an_error_before_anything_is_written(
    flights_day: Day, tmp_path: Path, expectation: dict[str, Any], message: str
) -> None:
    spec = spec_of(tmp_path, flights_day(DAY), expectation)
    before = tree(tmp_path)
    with pytest.raises(SpecError, match=message):
        stages.run(spec, RunInfo())
    assert tree(tmp_path) == before


def test_interval_as_a_parameter(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    inside = expect(
        "column_values_to_be_between", column="scheduled_departure",
        min_value={"$PARAMETER": "interval_start"}, max_value={"$PARAMETER": "interval_end"},
    )  # fmt: skip
    batch = flights_day(DAY)
    assert validate(batch, inside).status == "ok"
    assert validate(batch, inside, interval=Interval.from_key("2013-01-06")).status == "refused"


def test_great_expectations_own_serialisation(
    flights_day: Day, tmp_path: Path, validate: Callable[..., ValidateResult]
) -> None:
    import great_expectations as gx

    gx.get_context(mode="ephemeral")
    suite = gx.ExpectationSuite(
        "native",
        [
            gx.expectations.ExpectColumnValuesToBeInSet(column="origin", value_set=["EWR", "JFK"], severity="warning"),
            gx.expectations.ExpectTableRowCountToBeBetween(min_value=1),
        ],
    )
    path = tmp_path / "native.json"
    path.write_text(json.dumps(suite.to_json_dict()))
    result = validate(flights_day(DAY), suite=str(path))
    assert result.status == "ok"
    assert result.failed == {"warn": ("expect_column_values_to_be_in_set(origin)",)}


def test_empty_day(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    batch = flights_day(DAY, lambda rows: rows.clear())
    assert validate(batch).reason == "the batch is empty"
    result = validate(batch, allow_empty=True)
    assert (result.status, result.reason, result.quality) == ("ok", "the batch is empty", {})
    assert result.dataset is not None
    assert (result.dataset.rows, result.dataset.columns) == (0, batch.columns)


def test_the_batch_must_be_what_its_ref_says(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    batch = flights_day(DAY)
    flights_day(DAY, spoil)
    with pytest.raises(IntegrityError, match="it was changed after its ref was made"):
        validate(batch)
    Path(batch.uri).unlink()
    with pytest.raises(DataError, match="does not exist; run its ingest first"):
        validate(batch)


@pytest.mark.parametrize("whole_table", [False, True])
def test_a_batch_that_changes_while_it_is_checked_is_not_admitted(
    flights_day: Day, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_table: bool
) -> None:
    from airflow_ml_provider.stages.validate import gx

    old = stages.run(spec_of(tmp_path, flights_day(DAY)), RunInfo())
    admitted = Path(old.dataset.uri)  # type: ignore[attr-defined]
    before = admitted.read_bytes()
    batch = flights_day(DAY, spoil)
    if whole_table:
        batch = tables.combined("flights", str(Path(batch.uri).parents[1]), [batch])
    write_docs = gx._write_docs

    def late(*args: Any) -> Any:
        flights_day(DAY, lambda rows: rows.clear())
        return write_docs(*args)

    monkeypatch.setattr(gx, "_write_docs", late)
    with pytest.raises(IntegrityError, match="it was changed while it was checked; run its ingest again"):
        stages.run(spec_of(tmp_path, batch, interval=Interval.from_key(DAY)), RunInfo())
    assert admitted.read_bytes() == before
    assert [p.name for p in admitted.parent.iterdir()] == ["data.parquet"]


def test_a_whole_table_is_validated_by_partition(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    day, other = flights_day(DAY), flights_day("2013-01-06")
    root = str(Path(day.uri).parents[1])
    table = tables.combined("flights", root, [day, other])
    result = validate(table, interval=Interval.from_key("2013-01-06"))
    assert result.dataset is not None
    assert result.dataset.rows == other.rows
    with pytest.raises(DataError, match="has no partition 2013-01-07"):
        validate(table, interval=Interval.from_key("2013-01-07"))


def test_a_column_called_reason(tmp_path: Path, validate: Callable[..., ValidateResult]) -> None:
    path, day = tmp_path / "in.parquet", Interval.from_key(DAY)
    connection = tables.connect()
    tables.write(connection, "SELECT i AS x, 'why' AS reason, i AS reason_ FROM range(5) r(i)", path)
    connection.close()
    batch = tables.describe("t", path, interval=day)
    result = validate(
        batch, expect("column_values_to_be_between", "quarantine", column="x", max_value=3), profile=ProfileSpec()
    )
    assert read(result.quarantine).to_pylist() == [
        {"x": 4, "reason": "why", "reason_": 4, "reason__": "expect_column_values_to_be_between(x)"}
    ]


def test_large_ids_beside_nulls_are_not_rounded(tmp_path: Path, validate: Callable[..., ValidateResult]) -> None:
    path = tmp_path / "in.parquet"
    connection = tables.connect()
    tables.write(connection, "SELECT * FROM (VALUES (9007199254740992), (9007199254740993), (NULL)) t(id)", path)
    connection.close()
    batch = tables.describe("t", path, interval=Interval.from_key(DAY))
    unique = expect("column_values_to_be_unique", "quarantine", column="id")
    assert validate(batch, unique, profile=ProfileSpec()).failed == {}


def test_nothing_goes_over_the_network(
    flights_day: Day, validate: Callable[..., ValidateResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        called.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: called.append(a) or [])
    assert validate(flights_day(DAY, spoil)).status == "ok"
    assert called == []


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("link", "script", "img"):
            self.fetched += [v for k, v in found.items() if k in ("src", "href") and v]
        elif tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))


def test_data_docs_need_nothing_and_run_nothing_foreign(
    flights_day: Day, validate: Callable[..., ValidateResult]
) -> None:
    result = validate(flights_day(DAY, spoil))
    index = Path(result.links["data_docs"])
    pages = sorted(index.parent.rglob("*"))
    assert [p.suffix for p in pages if p.is_file()] == [".html"] * 3
    for page in (p for p in pages if p.is_file()):
        text = page.read_text()
        assert text.index("Content-Security-Policy") < text.index("<style>")
        assert "script-src &#x27;sha256-" in text or "script-src 'sha256-" in text
        assert "<script>alert(1)</script>" not in text
        parser = _References()
        parser.feed(text)
        assert parser.fetched == []
        for link in parser.links:
            if not link.startswith(("http", "#")):
                assert (page.parent / link).resolve().is_file(), link
    batch = next(p for p in pages if "validations" in p.parts and p.is_file())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in batch.read_text()


def test_facets(flights_day: Day, validate: Callable[..., ValidateResult]) -> None:
    batch = flights_day(DAY, spoil)
    facets = json.loads(json.dumps(_encoded(validate(batch).facets)))
    of_batch = facets["inputs"][batch.uri]
    assert of_batch["input_rows"] == 917
    assert of_batch["quality_metrics"]["columns"]["distance"]["min"] == -1
    assert {a["severity"] for a in of_batch["assertions"]} == {"error", "warn"}
    broken = [a for a in of_batch["assertions"] if not a["success"]]
    assert broken[0] == {
        "assertion": "expect_column_values_to_match_regex(carrier)",
        "success": False, "column": "carrier", "severity": "error",
    }  # fmt: skip
    assert facets["run"]["provenance"]["data"]["flights"] == batch.digest


def _encoded(value: Any) -> Any:
    from airflow_ml_provider import codec

    return codec.encode(value)


KILL = """
import os, signal, sys
from airflow_ml_provider import codec, stages
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages.validate.spec import ValidateSpec
import json
import great_expectations

spec = codec.decode(ValidateSpec, json.load(open(sys.argv[1])))
replace, count = os.replace, 0
for fatal in range(1, 20):
    child = os.fork()
    if child == 0:
        def deadly(source, target):
            global count
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
        os.replace = deadly
        stages.run(spec, RunInfo())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(fatal, os.WIFSIGNALED(status), flush=True)
    sys.stdin.readline()
    if not os.WIFSIGNALED(status):
        break
"""


def test_killed_at_any_moment_a_retry_gives_the_same(flights_day: Day, tmp_path: Path) -> None:
    """Kill before each file is put in place: the table is always the old one or the new one."""
    old = stages.run(spec_of(tmp_path, flights_day(DAY)), RunInfo())
    spec = spec_of(tmp_path, flights_day(DAY, spoil))
    target = Path(old.dataset.uri)  # type: ignore[attr-defined]
    states = [target.read_bytes()]
    call = tmp_path / "spec.json"
    call.write_text(json.dumps(_encoded(spec)))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILL, str(call)], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    kills = 0
    for line in process.stdout:
        kills += line.split()[1] == "True"
        states.append(target.read_bytes())
        process.stdin.write("\n")
        process.stdin.flush()
    process.communicate()
    assert process.returncode == 0
    assert kills == 8  # quarantine, three pages, report, series, admitted aside, admitted
    assert states[: kills + 1] == [states[0]] * (kills + 1)
    after = tree(tmp_path)
    assert not [name for name in after if name.endswith((".tmp", ".checked"))]
    stages.run(spec, RunInfo())
    assert tree(tmp_path) == after
    assert states[-1] == target.read_bytes() != states[0]

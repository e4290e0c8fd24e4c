"""What ingest decides, without touching a file: which column is which, what is a value, what came of a delivery."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Optional

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.ingest.spec import Column, ColumnType, IngestSpec
from airflow_ml_provider.tables import quote, quote_name

SQL_TYPES: dict[ColumnType, str] = {
    "string": "VARCHAR",
    "int": "BIGINT",
    "float": "DOUBLE",
    "bool": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
}
_ARTICLES: dict[ColumnType, str] = {"int": "an int"}
_SHOWN = 80  # characters of an offending value in a reason
_PLACEHOLDER = re.compile(r"\{(partition|start|end)(?::([^{}]+))?\}")

Status = Literal["accepted", "duplicate", "quarantined", "empty"]


@dataclass
class FileReport:
    """What became of one landing file.

    Attributes:
        name: as the user knows it: below the folder that the glob begins with.
        path: where it is.
        digest: of its bytes as delivered.
        format: `csv` or `jsonl`, with `.gz` or `.zst` when compressed.
        status: what became of it.
        reason: why it is not simply accepted.
        rows: rows that could be read, good and bad.
        quarantined: rows among them that are dead letters.
        ignored: columns that nobody expects.
    """

    name: str
    path: str
    digest: str
    format: str
    status: Status = "accepted"
    reason: str = ""
    rows: int = 0
    quarantined: int = 0
    ignored: tuple[str, ...] = ()

    def same_as(self, later: FileReport) -> bool:
        """Return whether a later file brings nothing but what this one brought already."""
        known = self.status in ("accepted", "empty")
        return known and (self.digest, self.format) == (later.digest, later.format)

    def public(self) -> dict[str, object]:
        """Return the entry for `IngestResult.files`."""
        return {
            "name": self.name,
            "digest": self.digest,
            "rows": self.rows,
            "quarantined": self.quarantined,
            "status": self.status,
            "reason": self.reason,
            "ignored": list(self.ignored),
        }


@dataclass(frozen=True)
class Match:
    """Which column of a file is which expected column.

    Attributes:
        found: expected column to the positions in the file that hold it, the preferred one first.
        problem: why the file cannot be used; empty when it can.
        ignored: names in the file that nobody expects.
    """

    found: Mapping[str, tuple[int, ...]]
    problem: str
    ignored: tuple[str, ...]


def match_columns(names: Sequence[str], columns: Mapping[str, Column]) -> Match:
    """Return which of `names` (a header, or the keys of JSON objects) holds which expected column.

    Every expected column must be there under its name or an alias; the name comes before the aliases. Further columns
    are ignored, but named.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, column in columns.items():
        titles = (name, *column.aliases)
        found[name] = tuple(i for title in titles for i, other in enumerate(names) if other == title)
    wanted = {title for name, column in columns.items() for title in (name, *column.aliases)}
    ignored = tuple(dict.fromkeys(name for name in names if name not in wanted))
    twice = sorted({name for name in names if name in wanted and list(names).count(name) > 1})
    missing = [name for name, positions in found.items() if not positions]
    if twice:
        problem = f"column {twice[0]!r} is there twice"
    elif missing:
        problem = "; ".join(_missing(name, ignored) for name in missing)
    else:
        problem = ""
    return Match(found, problem, ignored)


def resolve_source(source: str, interval: Interval) -> str:
    """Return `source` with `{partition}`, `{start:%Y-%m-%d}` and `{end:…}` replaced by those of the interval.

    >>> from datetime import datetime, timezone
    >>> day = Interval.of_grain(datetime(2013, 1, 5, tzinfo=timezone.utc), "day")
    >>> resolve_source("landing/{start:%Y/%m}/flights_{partition}*.csv.gz", day)
    'landing/2013/01/flights_2013-01-05*.csv.gz'
    """

    def value(found: re.Match[str]) -> str:
        name, form = found.group(1), found.group(2)
        if name == "partition":
            return interval.key
        moment = interval.start if name == "start" else interval.end
        return moment.strftime(form or "%Y-%m-%dT%H%M%S")

    return _PLACEHOLDER.sub(value, source)


def required_columns(spec: IngestSpec) -> set[str]:
    """Return the columns without a value in which a row is a dead letter."""
    named = {name for name, column in spec.columns.items() if column.required} | set(spec.key)
    return named | ({spec.partition_by} if spec.partition_by else set())


def text_sql(field: str, null_values: Iterable[str]) -> str:
    """Return SQL for the text of a field, NULL when it means "no value"."""
    nulls = ", ".join(quote(value) for value in null_values)
    return f"CASE WHEN {field} NOT IN ({nulls}) THEN {field} END" if nulls else field


def first_sql(texts: Sequence[str]) -> str:
    """Return SQL for the first of some texts that is a value."""
    return texts[0] if len(texts) == 1 else f"coalesce({', '.join(texts)})"


def parse_sql(text: str, kind: ColumnType) -> str:
    """Return SQL for the value that a text stands for; NULL when it is not of its type.

    DuckDB's casts are more lenient than a contract may be: `3.7` would round to an int, `1_000` be a number, `epoch`
    a time, `NaN` and infinity numbers, `+99:99` an offset. Years are 1 to 9999 in UTC, as everywhere else. Spaces
    around a value do no harm.
    """
    cast = f"TRY_CAST({text} AS {SQL_TYPES[kind]})"
    if kind == "string":
        return text
    if kind == "int":
        return _only(text, r"[+-]?[0-9]+([.]0*)?", cast)
    if kind == "float":  # adding zero turns -0.0 into 0.0: equal values have equal bytes
        return f"CASE WHEN isfinite({cast}) AND NOT contains({text}, '_') THEN {cast} + 0.0 END"
    if kind == "bool":
        return f"TRY_CAST(lower(trim({text})) AS BOOLEAN)"
    pattern, last = "[0-9]{4}-[0-9]{2}-[0-9]{2}", "9999-12-31"
    if kind == "timestamp":
        offset = "[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?"
        pattern, last = f"{pattern}([T ][0-9:.]+ ?(Z|{offset})?)?", f"{last} 23:59:59.999999"
    inside = f"{cast} BETWEEN {SQL_TYPES[kind]} '0001-01-01' AND {SQL_TYPES[kind]} '{last}'"
    # Only these texts can be outside, also by their offset; to look at the values of all would cost a second cast.
    edge = f"{text} < '0001-01-03' OR {text} > '9999-12-30'"
    return _only(text, pattern, f"CASE WHEN {edge} THEN CASE WHEN {inside} THEN {cast} END ELSE {cast} END")


def reason_sql(name: str, text: str, value: str, kind: ColumnType, null_values: Iterable[str], required: bool) -> str:
    """Return SQL for what is wrong with one value of column `name`, NULL when nothing is."""
    absent = f"{text} IS NULL"
    nulls = ", ".join(quote(null) for null in null_values)
    if kind != "string" and nulls:  # looked at only where a value did not parse: trimming all would cost more than that
        absent += f" OR trim({text}) IN ({nulls})"
    shown = f"CASE WHEN length({text}) > {_SHOWN} THEN left({text}, {_SHOWN}) || '…' ELSE {text} END"
    before, after = quote(f"column {name!r}: '"), quote(f"' is not {_ARTICLES.get(kind, f'a {kind}')}")
    missing = quote(f"column {name!r} has no value") if required else "NULL"
    return (
        f"CASE WHEN {value} IS NULL THEN CASE WHEN {absent} THEN {missing} ELSE {before} || {shown} || {after} END END"
    )


def all_sql(reasons: Sequence[str]) -> str:
    """Return SQL for all reasons that there are, NULL when there are none."""
    return f"nullif(concat_ws('; ', {', '.join(reasons)}), '')" if reasons else "NULL"


def inexact_sql(name: str, text: str, token: str) -> str:
    """Return SQL for why a JSON value of column `name` is not what was sent, NULL when it is.

    The JSON reader keeps numbers with a point or an exponent as doubles, which from 2**53 on round whole numbers.

    Parameters:
        name: name of the column.
        text: SQL for the value as the reader gives it.
        token: SQL for its JSON type; looked at only for texts that can be such numbers.
    """
    number = "-?[0-9]([0-9]{15,}[.]0|[0-9.]*[eE][+]?[0-9]+)"
    before = quote(f"column {name!r}: ")
    after = quote(" came as a JSON number that is not exact; send it without a point, or as a text")
    return (
        f"CASE WHEN regexp_full_match({text}, {quote(number)}) THEN CASE WHEN {token} = 'DOUBLE' "
        f"AND abs(TRY_CAST({text} AS DOUBLE)) >= {2**53} THEN {before} || {text} || {after} END END"
    )


def repeated_sql(keys: str, titles: Sequence[str]) -> str:
    """Return SQL for which of `titles` is in a list of keys more than once, NULL when none is."""
    again = f"len(list_filter({keys}, lambda key: key = title)) > 1"
    found = f"list_filter([{', '.join(map(quote, titles))}], lambda title: {again})"
    before, after = quote("key '"), quote("' is there twice")
    return f"{before} || ({found})[1] || {after}"


def order_sql(columns: Iterable[str], key: Sequence[str]) -> str:
    """Return the one order in which rows are written: by key, then by everything else."""
    names = [*key, *(name for name in columns if name not in key)]
    return ", ".join(f"{quote_name(name)} ASC NULLS LAST" for name in names)


def newest_first_sql(version: Optional[str], *position: str) -> str:
    """Return the order that puts the row that wins among rows of one key first."""
    by_version = [f"{version} DESC NULLS LAST"] if version else []
    return ", ".join([*by_version, *(f"{name} DESC" for name in position)])


def place_sql(files: Sequence[FileReport]) -> str:
    """Return SQL for where the file of a row stands in the delivery: bytes that come again stand where they do last."""
    last = {(file.digest, file.format): number for number, file in enumerate(files)}
    places = [last[file.digest, file.format] for file in files]
    return "file" if places == list(range(len(files))) else f"{places}[file + 1]"


def counts(files: Sequence[FileReport], accepted: int) -> dict[str, int]:
    """Return the counts of a delivery of which `accepted` rows are left without dead letters and duplicates."""
    read, quarantined = sum(f.rows for f in files), sum(f.quarantined for f in files)
    return {
        "files": len(files),
        "duplicate_files": sum(f.status == "duplicate" for f in files),
        "bad_files": sum(f.status == "quarantined" for f in files),
        "read": read,
        "accepted": accepted,
        "duplicates": read - quarantined - accepted,
        "quarantined": quarantined,
    }


def verdict(files: Sequence[FileReport], accepted: int, where: str) -> tuple[Literal["ok", "refused"], str]:
    """Return status and reason of a delivery.

    It is refused when something came but nothing of it can be used: replacing good rows by none would hide the fault.
    """
    bad = [f for f in files if f.status == "quarantined"]
    rows = sum(f.quarantined for f in files if f.status != "quarantined")
    notes = []
    if bad:
        shown = "; ".join(f"{f.name}: {f.reason}" for f in bad[:3]) + ("; …" if len(bad) > 3 else "")
        notes.append(f"{len(bad)} of {len(files)} files quarantined ({shown})")
    if rows:
        good = [f for f in files if f.status != "quarantined" and f.quarantined]
        names = ", ".join(f.name for f in good[:3]) + (", …" if len(good) > 3 else "")
        notes.append(f"{rows} of {sum(f.rows for f in good)} rows of {names} quarantined ({good[0].reason})")
    if notes:
        text = " and ".join(notes)
        if accepted == 0:
            return "refused", f"nothing usable: {text}; the dead letters are in {where}"
        return "ok", f"{text}; the dead letters are in {where}"
    if not files:
        return "ok", "empty delivery: no file"
    if accepted == 0:
        return "ok", f"empty delivery: {len(files)} file{'s' if len(files) > 1 else ''} without rows"
    twins = [f for f in files if f.status == "duplicate"]
    return "ok", "; ".join(f"{f.name} absorbed: {f.reason}" for f in twins[:3])


def check_table(columns: Mapping[str, Column], found: Mapping[str, str], where: str, key: Sequence[str] = ()) -> None:
    """Check that rows of `columns` can join a table that has the columns `found` (name to SQL type).

    A column that the table lacks is added, with no value in its old rows; so it cannot be part of the key.

    Raises:
        SpecError: a column has another type, the table has one that is not expected and would be lost, or lacks one of
            the key.
    """
    for name, kind in found.items():
        if name not in columns:
            raise SpecError(f"the table {where} has a column {name!r} that is not expected; add it to columns")
        want = SQL_TYPES[columns[name].type]
        if kind not in (want, "TIMESTAMP WITH TIME ZONE" if want == "TIMESTAMPTZ" else want):
            raise SpecError(f"column {name!r} of the table {where} is of type {kind}, not {want}; use another target")
    for name in key:
        if name not in found:
            raise SpecError(
                f"the table {where} lacks the key column {name!r}, so that its rows would have no key; give the key "
                "that the table was made with, or use another target"
            )


def _only(text: str, pattern: str, value: str) -> str:
    return f"CASE WHEN regexp_full_match({text}, {quote(f' *{pattern} *')}) THEN {value} END"


def _missing(name: str, others: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.0)
    hint = f"; the nearest unknown column is {near[0]!r}: is it an alias?" if near else ""
    return f"column {name!r} is missing{hint}"

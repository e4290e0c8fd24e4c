"""How feature tables are computed: `features.yaml` of a Feast repository, checked. Light, no I/O but reading the file.

```yaml
tables:
  origin_traffic:                 # rolling windows on a grid
    source: flights
    entity: [origin]
    known_at: actual_departure    # when a row's values are known
    every: 1h
    windows: [3h, 24h]
    aggregates: {dep_delay_mean: avg(dep_delay), departures: count(*)}
  origin_weather:                 # one feature row per source row
    source: weather
    entity: [origin]
    columns: {temp: temp, visib: visib}
    event_timestamp: observed_at
    created_timestamp: recorded_at
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name

FILE = "features.yaml"
EVENT, CREATED = "event_timestamp", "created_timestamp"

Shape = Literal["rolling", "rows", "snapshot"]

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+)([smhdw])\Z")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class Table:
    """One feature table, in one of three shapes.

    *rolling* (`windows`): for every grid point h the aggregates over the source rows whose `known_at` lies in
    [h - window, h), that is strictly before h. *rows* (`columns`): one feature row per version of a source row, with
    the moment that it is about and the moment when it was known. *snapshot* (`sql`): the result of a query that is run
    for every grid point over the sources as they were known strictly before it.

    Attributes:
        entity: columns that name whom the features are about; rows without a value in one of them are left out.
        source: name of the source.
        sql: query over the sources by their names; `getvariable('h')` is the grid point.
        known_at: SQL expression of the moment when a row is known.
        every: distance of the grid points, such as `1h` (units s, m, h, d, w); they are multiples of it since 1970.
        windows: lengths, such as `[3h, 24h, 7d]`; a feature is called `AGGREGATE_WINDOW`, such as `dep_delay_mean_3h`.
        aggregates: name to SQL aggregate.
        where: SQL predicate for the rows that count.
        columns: name to SQL expression over one row.
        event_timestamp: SQL expression of the moment that a row is about.
        created_timestamp: SQL expression of the moment when it was known; by default the latest of event_timestamp,
            the known_at columns of all columns used, and the source's corrected_at. Never earlier than these.
        description: for the reader.
    """

    entity: tuple[str, ...]
    source: Optional[str] = None
    sql: Optional[str] = None
    known_at: Optional[str] = None
    every: Optional[str] = None
    windows: tuple[str, ...] = ()
    aggregates: Mapping[str, str] = field(default_factory=dict)
    where: Optional[str] = None
    columns: Mapping[str, str] = field(default_factory=dict)
    event_timestamp: Optional[str] = None
    created_timestamp: Optional[str] = None
    description: str = ""

    _NEEDED: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rolling": ("source", "known_at", "every", "windows", "aggregates"),
        "rows": ("source", "columns", "event_timestamp"),
        "snapshot": ("sql", "every"),
    }
    _ALLOWED: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rolling": ("where",),
        "rows": ("where", "created_timestamp"),
        "snapshot": (),
    }

    def __post_init__(self) -> None:
        if not self.entity:
            raise invalid("entity", self.entity, "at least one column")
        needed, allowed = self._NEEDED[self.shape], self._ALLOWED[self.shape]
        for name in ("source", "sql", "known_at", "every", "windows", "aggregates", "where", "columns", EVENT, CREATED):
            given = bool(getattr(self, name))
            if name in needed and not given:
                raise SpecError(f"{name} is missing; a table of shape {self.shape!r} needs {', '.join(needed)}")
            if given and name not in (*needed, *allowed):
                raise SpecError(f"{name} does not go with a table of shape {self.shape!r} ({', '.join(needed)})")
        for text in (*self.windows, *((self.every,) if self.every else ())):
            seconds(text)
        _check_names((*self.entity, *self.feature_names()))

    @property
    def shape(self) -> Shape:
        if self.sql:
            return "snapshot"
        return "rolling" if self.windows or self.aggregates or self.every else "rows"

    def feature_names(self) -> tuple[str, ...]:
        """Return the names of the feature columns; those of a snapshot are known once its query has run."""
        if self.shape == "rolling":
            return tuple(f"{name}_{window}" for window in self.windows for name in self.aggregates)
        return tuple(self.columns)


@dataclass(frozen=True)
class Definition:
    """All feature tables of a repository.

    Attributes:
        tables: name to how the table is computed; a table is written to `STORE/tables/NAME`.
    """

    tables: Mapping[str, Table]

    def __post_init__(self) -> None:
        _check_names(self.tables)


def read(repo: Path) -> Definition:
    """Return the definition in a repository.

    Raises:
        SpecError: the file is missing, is not YAML, or says something that is not understood.
    """
    import yaml

    path = repo / FILE
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read ({error.strerror}); a feature repository needs {FILE}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML: {error}") from error
    return parse(data)


def parse(data: Any) -> Definition:
    """Return `data`, the content of a `features.yaml`, as a definition."""
    return codec.decode(Definition, data, FILE)


def check_sources(definition: Definition, sources: Iterable[str]) -> None:
    """Raise `SpecError` when a table names a source that is not there."""
    known = list(sources)
    for name, table in definition.tables.items():
        if table.source is not None and table.source not in known:
            raise unknown_name(f"source of table {name!r}", table.source, known)


def seconds(text: str) -> int:
    """Return the length of a duration.

    >>> seconds("7d")
    604800
    """
    match = _DURATION.match(text)
    if not match or not int(match.group(1)):
        raise invalid("duration", text, "a whole number above 0 and a unit s, m, h, d or w, such as 3h")
    return int(match.group(1)) * _UNIT_S[match.group(2)]


def _check_names(names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if not _NAME.match(name) or name.startswith("__") or name in (EVENT, CREATED):
            raise invalid("name", name, f"letters, digits and single _, and neither {EVENT} nor {CREATED}")
        if name.lower() in seen:
            raise invalid("name", name, "used once")
        seen.add(name.lower())

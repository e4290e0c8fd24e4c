"""The feature tables of one interval: computed, written, described."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import DatasetRef
from airflow_ml_provider.stages.features import rows, sources, windows
from airflow_ml_provider.stages.features.definition import Definition, Table
from airflow_ml_provider.stages.features.logic import View
from airflow_ml_provider.stages.features.windows import Lineage


@dataclass(frozen=True)
class Computed:
    """One feature table of an interval.

    Attributes:
        ref: the file.
        lineage: feature to the (source, column) pairs that it comes from.
    """

    ref: DatasetRef
    lineage: Lineage


def root(store: Path, table: str) -> Path:
    """Return the root folder of a feature table."""
    return store / "tables" / table


def all_tables(
    connection: Any, definition: Definition, opened: Mapping[str, sources.Table], store: Path, interval: Interval
) -> dict[str, Computed]:
    """Compute every feature table of an interval and write it to `STORE/tables/NAME/interval=KEY/data.parquet`.

    Raises:
        SpecError: an expression does not fit its source.
    """
    done = {}
    for name, table in definition.tables.items():
        with explained(f"table {name!r}"):
            query, lineage = _query(connection, name, table, opened, interval)
            path = tables.partition(str(root(store, name)), interval)
            tables.write(connection, query, path)
        done[name] = Computed(tables.describe(name, path, interval=interval), lineage)
    return done


def files(view: View, store: Path, until: Interval) -> list[Path]:
    """Return the files of a view that a run for the interval `until` may see."""
    if view.table is not None:
        return sources.visible(str(root(store, view.table)), until)
    return matching(view.path)


def matching(path: str) -> list[Path]:
    """Return the files that a path or glob names."""
    return sorted(Path(name) for name in glob.glob(path, recursive=True))


def column_lineage(lineage: Lineage, uris: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """Return lineage in the neutral form of facets: column to [uri, column] pairs."""
    return {column: [[uris[name], origin] for name, origin in origins] for column, origins in lineage.items()}


def used_sources(definition: Definition, computed: Iterable[Computed], *further: str) -> list[str]:
    """Return the names of the sources that something was read from."""
    names = [table.source for table in definition.tables.values() if table.source]
    names += [name for item in computed for origins in item.lineage.values() for name, _ in origins]
    return list(dict.fromkeys([*names, *further]))


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn DuckDB's complaints about a user's SQL, or about the data that it met, into errors that say where it is."""
    import duckdb

    try:
        yield
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException) as error:
        raise SpecError(f"{what}: {str(error).strip()}") from error
    except (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException) as error:
        raise DataError(f"{what}: {str(error).strip()}") from error


def _query(
    connection: Any, name: str, table: Table, opened: Mapping[str, sources.Table], interval: Interval
) -> tuple[str, Lineage]:
    if table.shape == "snapshot" or table.source is None:
        return windows.snapshot(connection, table, name, opened, interval)
    if table.shape == "rolling":
        return windows.rolling(connection, table, name, opened[table.source], interval)
    return rows.query(connection, table, name, opened[table.source], interval)

"""What tasks hand to each other: small frozen descriptions of data, models and reports. Data stays out of XCom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Optional, TypeVar, Union

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.intervals import Interval


@dataclass(frozen=True)
class DatasetRef:
    """Rows at a place, named by their content.

    Attributes:
        name: logical name, such as `flights`.
        uri: the file or folder.
        digest: `sha256:…` of the content; equal content has an equal digest.
        format: `parquet`, `csv`, `jsonl` …
        interval: the window that the rows are about; none for data without one.
        rows: number of rows; none when unknown.
        columns: column name to type.
        counts: how the rows came about, such as `read`, `duplicates`, `quarantined`.
    """

    kind: ClassVar[str] = "dataset"
    name: str
    uri: str
    digest: str
    format: str = "parquet"
    interval: Optional[Interval] = None
    rows: Optional[int] = None
    columns: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelRef:
    """A trained model: a folder of safe formats, and its registered version once there is one.

    Attributes:
        name: registered name, such as `flight_delay_ewr`.
        uri: the folder of the model package.
        digest: `sha256:…` over the files of the package that serving uses.
        version: version in the registry; none before registration.
        run_id: tracking run that made it.
        engine: `lightgbm`, `sklearn`, `torch` or `function`.
        segment: column values that the model is for, such as `{"origin": "EWR"}`; empty for all rows.
        trained_until: nothing later than this, labels included, has been seen in training.
        metrics: a few numbers worth seeing in XCom.
    """

    kind: ClassVar[str] = "model"
    name: str
    uri: str
    digest: str
    version: Optional[str] = None
    run_id: Optional[str] = None
    engine: str = ""
    segment: Mapping[str, str] = field(default_factory=dict)
    trained_until: Optional[datetime] = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportRef:
    """A report file (JSON) with its digest and verdict.

    Attributes:
        name: what is reported on.
        uri: the JSON file.
        digest: `sha256:…` of the file's bytes.
        passed: the report's verdict; none for a report without one.
        html: the page for humans, if there is one.
        summary: a few numbers worth seeing in XCom.
    """

    kind: ClassVar[str] = "report"
    name: str
    uri: str
    digest: str
    passed: Optional[bool] = None
    html: Optional[str] = None
    summary: Mapping[str, Any] = field(default_factory=dict)


Ref = Union[DatasetRef, ModelRef, ReportRef]
R = TypeVar("R", DatasetRef, ModelRef, ReportRef)


def as_ref(cls: type[R], value: Any, what: str) -> R:
    """Return `value`, a ref or its XCom form, as a `cls`.

    A mapping that is no ref itself but has a field `what`, such as the whole result of a stage, gives that field.

    Raises:
        SpecError: it is none of these; `what` names the parameter.
    """
    if isinstance(value, cls):
        return value
    if isinstance(value, Mapping) and "kind" not in value and what in value:
        return as_ref(cls, value[what], what)
    if isinstance(value, Mapping):
        return codec.decode(cls, value, what)
    raise invalid(what, value, f"a {cls.__name__} or its XCom form", 'pass `upstream.output["…"]` or the ref itself')

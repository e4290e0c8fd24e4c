"""Wait for a model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.sensors._base import CheckSensor

if TYPE_CHECKING:
    from airflow_ml_provider.stages.checks import AliasCheck


class ModelAliasSensor(CheckSensor):
    """Wait until an alias points to a version, to a certain one, to another one, or has moved.

    Without `version`, `other_than` and `moved_after` any holder will do. The XCom value's `model` is the holder, as
    other stages take it.

    Parameters:
        name: registered name.
        alias: the alias.
        version: it must point to this version.
        other_than: it must point to another version than this.
        moved_after: it must have moved later than this moment, as a datetime or ISO 8601 text with a time zone, such
            as `{{ dag_run.start_date }}`; the journal of the alias decides.
        mlflow_conn_id: connection to MLflow; none takes the environment variable `MLFLOW_TRACKING_URI`.
        interval: not used by this sensor.
        grain: not used by this sensor.
        deferrable: wait in the triggerer, without a worker slot; by default as `[operators] default_deferrable` says.
    """

    template_fields: Sequence[str] = (
        *CheckSensor.template_fields, "name", "alias", "version", "other_than", "moved_after", "mlflow_conn_id",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        alias: str = "champion",
        version: str | None = None,
        other_than: str | None = None,
        moved_after: datetime | str | None = None,
        mlflow_conn_id: str | None = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.alias = alias
        self.version = version
        self.other_than = other_than
        self.moved_after = moved_after
        self.mlflow_conn_id = mlflow_conn_id

    def question(self, interval: Interval) -> AliasCheck:
        from airflow_ml_provider.stages.checks import AliasCheck

        return AliasCheck(
            name=self.name,
            alias=self.alias,
            version=self.version or None,
            other_than=self.other_than or None,
            moved_after=_moment(self.moved_after),
        )

    def conn_id(self) -> str | None:
        return self.mlflow_conn_id


def _moment(value: datetime | str | None) -> datetime | None:
    if not value:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        raise invalid("moved_after", value, "an ISO 8601 time such as 2013-01-05T00:00:00+00:00") from None
    if moment.tzinfo is None:
        raise invalid("moved_after", str(value), "a time with a time zone", "append Z or an offset")
    return moment

"""Wait for the rows of an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.sensors._base import CheckSensor, is_known, parts

if TYPE_CHECKING:
    from airflow_ml_provider.stages.checks import PartitionCheck

Need = Literal["all", "last", "reached"]


class PartitionSensor(CheckSensor):
    """Wait until a table holds the partitions of the run's interval.

    A partition appears in one step when it is complete, so one that is there can be read. A run about a longer window
    than the table is cut into (a week over a table by day) waits for all of its partitions, unless `need` says else.

    Parameters:
        table: root folder of the table.
        need: which partitions of the window: `all`; the `last` one; or the table must have `reached` the last one, so
            that a later partition will do in its place (a day that was refused leaves a gap for good).
        min_rows: fewest rows that the partitions must hold together; 0 asks for their existence alone.
        interval: the window of data, as `START/END`, a partition key or an `Interval`; by default that of the run.
        grain: length of the table's partitions; also that of the window in runs that have none of their own.
        deferrable: wait in the triggerer, without a worker slot; by default as `[operators] default_deferrable` says.
    """

    template_fields: Sequence[str] = (*CheckSensor.template_fields, "table", "need", "min_rows")

    def __init__(self, *, table: str, need: Need = "all", min_rows: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if is_known(need, str) and need not in get_args(Need):
            raise invalid("need", need, f"one of {', '.join(get_args(Need))}")
        self.table = table
        self.need = need
        self.min_rows = min_rows

    def question(self, interval: Interval) -> PartitionCheck:
        from airflow_ml_provider.stages.checks import PartitionCheck

        among = parts(interval, self.grain)
        keys = among or (interval.key,)
        return PartitionCheck(
            table=self.table,
            keys=keys if self.need == "all" else keys[-1:],
            later=self.need == "reached",
            min_rows=int(self.min_rows),
            whole=interval.key if among else "",
        )

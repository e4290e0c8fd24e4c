"""Find what stages in pods have left behind, and remove it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Unavailable
from airflow_ml_provider.operators._base import boolean, verdicts

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.leftovers.logic import Judged


class ReapOperator(BaseOperator):
    """List what stages in pods have left in a cluster and in the exchange folder, and remove it if told to.

    Left over is what belongs to a task instance that has ended, or is not there any more, and is older than a minimum
    age. Tasks that wait for another try count as alive: a retry goes on with the pod. What cannot be asked for is
    listed as unknown and stays. The XCom is the list, one mapping per thing with kind, name, uid, task, state, age,
    where, verdict and outcome. `airflow ml reap` does the same by hand.

    The task fails, to be tried again, when the cluster does not answer or something could not be removed.

    Parameters:
        kubernetes_conn_id: connection to the cluster.
        namespace: its namespace; none is that of the connection, or `default`. Airflows that share one would take each
            other's pods for left over: give each its own.
        exchange: the folder that workers and pods share; none is `[ml] exchange` of Airflow's configuration.
        older_than_min: what is younger stays (minutes).
        delete: remove what is left over; by default it is only listed.
    """

    template_fields: Sequence[str] = ("kubernetes_conn_id", "namespace", "exchange", "older_than_min", "delete")
    ui_color = "#e8e8e8"

    def __init__(
        self,
        *,
        kubernetes_conn_id: str = "kubernetes_default",
        namespace: str | None = None,
        exchange: str | None = None,
        older_than_min: float | str = 10.0,
        delete: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kubernetes_conn_id = kubernetes_conn_id
        self.namespace = namespace
        self.exchange = exchange
        self.older_than_min = older_than_min
        self.delete = delete

    def execute(self, context: Context) -> list[dict[str, str]]:
        from airflow_ml_provider.leftovers import reaper, states

        with verdicts():
            delete = boolean(self.delete, "delete")
            where = reaper.places(self.kubernetes_conn_id, self.namespace, self.exchange)
            judged = reaper.survey(where, states.through(context["ti"]), _number(self.older_than_min))
            self._tell(judged)
            removals = list(reaper.remove(judged, where)) if delete else []
            for removal in removals:
                level = self.log.error if removal.failed else self.log.info
                level("%s %s (%s): %s", removal.found.kind, removal.found.name, removal.found.uid, removal.outcome)
            rows = _rows(judged, {removal.found: removal.outcome for removal in removals})
            if failed := [removal for removal in removals if removal.failed]:
                context["ti"].xcom_push(key="return_value", value=rows)
                raise Unavailable(f"{len(failed)} of {len(removals)} left-overs stay; the first: {failed[0].outcome}")
            return rows

    def _tell(self, judged: Sequence[Judged]) -> None:
        left = sum(one.verdict == "left over" for one in judged)
        self.log.info("%s things of stages in pods, %s of them left over", len(judged), left)
        for line in _rows(judged, {}):
            self.log.info("%s", "  ".join(value for value in line.values() if value))


def _rows(judged: Sequence[Judged], outcomes: dict[Any, str]) -> list[dict[str, str]]:
    from airflow_ml_provider.leftovers.logic import row

    now = datetime.now(timezone.utc)
    return [{**row(one, now), "outcome": outcomes.get(one.found, "")} for one in judged]


def _number(value: Any) -> float:
    """Return a number that a template may have made text of."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return codec.decode(float, value, "older_than_min")

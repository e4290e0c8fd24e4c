"""Move an alias to a version with passing evidence, or give it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.operators._base import StageOperator
from airflow_ml_provider.refs import ModelRef, as_ref
from airflow_ml_provider.stages.promote.spec import PromoteSpec, RollbackSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


class PromoteOperator(StageOperator):
    """Move an alias to a registered version that the gate let pass, if its data is newer than the holder's.

    Every move is written to an append-only journal, which also says from which data on the version is used. Backfilled
    and cleared runs do not move the alias unless told to. Altered evidence, files or journals fail the task whatever
    `on_refusal` says. `RollbackOperator` gives the alias back.

    Parameters:
        model: the registered version: the gate's result, its `model`, or a ref.
        alias: the alias.
        backfill: what a backfilled or cleared run may do: `never` move the alias, or move it when the data is `newer`
            than the holder's.
        on_refusal: `skip` the task when the alias stays where it is, which is no failure of the run, or `fail` it.
    """

    template_fields: Sequence[str] = (*StageOperator.template_fields, "model", "alias", "backfill")
    uses_mlflow: ClassVar[bool] = True
    ui_color = "#dff0d8"

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        alias: str = "champion",
        backfill: str = "never",
        on_refusal: str = "skip",
        **kwargs: Any,
    ) -> None:
        super().__init__(on_refusal=on_refusal, **kwargs)
        if "{{" not in str(backfill) and backfill not in ("never", "newer"):
            raise invalid("backfill", backfill, "one of 'never', 'newer'")
        self.model = model
        self.alias = alias
        self.backfill = backfill

    def build_spec(self, interval: Interval, context: Context) -> PromoteSpec:
        return PromoteSpec(
            model=as_ref(ModelRef, self.model, "model"),
            alias=self.alias,
            backfill=self.backfill,  # type: ignore[arg-type]  # the spec checks it
        )


class RollbackOperator(StageOperator):
    """Give an alias back to its last healthy holder, in one task.

    Healthy is who held the alias before and was not itself rolled back from. The version that is left is not promoted
    again by later runs. Running the task again changes nothing; another run goes back one step further.

    Parameters:
        name: registered name of the model.
        reason: why; written to the journal.
        to: version to go back to, one that held the alias before; none takes the last healthy holder.
        alias: the alias.
        effective_from: data from this moment on is scored by the earlier version, such as `2013-02-05T00:00:00Z`; none
            is now, so that earlier intervals keep their predictions when they run again.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "name", "reason", "to", "alias", "effective_from",
    )  # fmt: skip
    uses_mlflow: ClassVar[bool] = True
    ui_color = "#f2dede"

    def __init__(
        self,
        *,
        name: str,
        reason: str = "",
        to: str | None = None,
        alias: str = "champion",
        effective_from: datetime | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.reason = reason
        self.to = to
        self.alias = alias
        self.effective_from = effective_from

    def build_spec(self, interval: Interval, context: Context) -> RollbackSpec:
        moment = self.effective_from or None
        return RollbackSpec(
            name=self.name,
            alias=self.alias,
            reason=self.reason or "",
            to=str(self.to) if self.to else None,
            effective_from=None if moment is None else codec.decode(datetime, moment, "effective_from"),
        )

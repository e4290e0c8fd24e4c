"""What promotion and rollback are asked and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal, Optional

from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages import Result, Spec


@dataclass(frozen=True)
class PromoteResult(Result):
    """Whether the alias moved.

    Attributes:
        moved: the alias points elsewhere than before.
        model: the holder of the alias now.
        previous: version that held it before; none when nobody did.
    """

    moved: bool = False
    model: Optional[ModelRef] = None
    previous: Optional[str] = None


@dataclass(frozen=True)
class PromoteSpec(Spec):
    """Move an alias to a version that has passing evidence for exactly its digest.

    Attributes:
        model: the registered version.
        alias: the alias.
        backfill: what a backfilled or cleared run may do: `never` move the alias, or move it when the data is
            `newer` than the holder's.
    """

    stage: ClassVar[str] = "promote"
    entry: ClassVar[str] = "airflow_ml_provider.stages.promote.mlflow:run"
    result: ClassVar[type[Result]] = PromoteResult
    model: ModelRef
    alias: str = "champion"
    backfill: Literal["never", "newer"] = "never"

    def __post_init__(self) -> None:
        if self.backfill not in ("never", "newer"):
            raise invalid("backfill", self.backfill, "one of 'never', 'newer'")

    def requires(self) -> dict[str, str]:
        return {"mlflow": "mlflow-skinny"}


@dataclass(frozen=True)
class RollbackSpec(Spec):
    """Move an alias back to the last healthy holder.

    Attributes:
        name: registered name.
        alias: the alias.
        reason: why; written to the journal.
        to: version to go back to; by default the newest earlier holder that was not itself rolled back from.
        effective_from: data from this moment on is scored with the earlier version; by default now.
    """

    stage: ClassVar[str] = "rollback"
    entry: ClassVar[str] = "airflow_ml_provider.stages.promote.mlflow:run_rollback"
    result: ClassVar[type[Result]] = PromoteResult
    name: str
    alias: str = "champion"
    reason: str = ""
    to: Optional[str] = None
    effective_from: Optional[datetime] = None

    def __post_init__(self) -> None:
        if self.effective_from is not None and self.effective_from.tzinfo is None:
            raise invalid("effective_from", self.effective_from.isoformat(), "a time with a time zone")

    def requires(self) -> dict[str, str]:
        return {"mlflow": "mlflow-skinny"}

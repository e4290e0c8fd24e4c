"""Wait for a service of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import ModelRef, as_ref
from airflow_ml_provider.sensors._base import CheckSensor, is_known
from airflow_ml_provider.stages.deploy import place as places

if TYPE_CHECKING:
    from airflow_ml_provider.stages.checks import Check
    from airflow_ml_provider.stages.deploy.place import Place


class _ServiceSensor(CheckSensor):
    """Base of the sensors that look at a service.

    Parameters:
        service: name of the service.
        place: where it is; as for `DeployOperator`.
        model: the model that is waited for: the result of a stage, its `model`, or a ref; none takes any.
    """

    template_fields: Sequence[str] = (*CheckSensor.template_fields, "service", "place", "model")

    def __init__(
        self,
        *,
        service: str,
        place: Place | Mapping[str, Any],
        model: ModelRef | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if is_known(place, (Mapping, places.Local, places.KServe)):
            places.resolve(place)
        self.service, self.place, self.model = service, place, model

    def _about(self) -> dict[str, Any]:
        """Return what the questions of these sensors have in common."""
        digest = as_ref(ModelRef, self.model, "model").digest if self.model else ""
        return {"service": self.service, "place": places.encode(places.resolve(self.place)), "digest": digest}


class ServiceReadySensor(_ServiceSensor):
    """Wait until a service serves a model to all its users, is ready, and has answered a request.

    The XCom value's `model` is the model that answers, `address` where. For the end of a rollout take `RolloutSensor`.

    Parameters:
        service: name of the service.
        place: where it is; as for `DeployOperator`.
        model: the model that must be the stable version: the result of a stage, its `model`, or a ref; none takes any.
        version: its number in the registry; none takes any.
        rows: rows of the request that must be answered, column to values; none makes one by the model's manifest, where
            that can be read, and asks nothing where it cannot.
        interval: not used by this sensor.
        grain: not used by this sensor.
        deferrable: wait in the triggerer, without a worker slot; by default as `[operators] default_deferrable` says.
    """

    template_fields: Sequence[str] = (*_ServiceSensor.template_fields, "version", "rows")

    def __init__(
        self, *, version: str | None = None, rows: Mapping[str, Sequence[Any]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.version, self.rows = version, rows

    def question(self, interval: Interval) -> Check:
        from airflow_ml_provider.triggers._services import ReadyCheck

        return ReadyCheck(**self._about(), version=str(self.version or ""), rows=self.rows)


class RolloutSensor(_ServiceSensor):
    """Wait until no rollout, deployment or experiment of a service is under way; how the last rollout ended is told.

    The XCom value's `outcome` is `done`, `rolled_back`, or empty when the last change was no rollout or its task was
    killed; `reason` says why, and `model` which model serves.

    Parameters:
        service: name of the service.
        place: where it is; as for `DeployOperator`.
        model: the model whose rollout must have ended, well or not; none takes any, and no rollout at all.
        interval: not used by this sensor.
        grain: not used by this sensor.
        deferrable: wait in the triggerer, without a worker slot; by default as `[operators] default_deferrable` says.
    """

    def question(self, interval: Interval) -> Check:
        from airflow_ml_provider.triggers._services import RolloutCheck

        return RolloutCheck(**self._about())

"""Questions about a service that sensors wait on; they open a place, which may take an Airflow connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.checks import Answer, Check

if TYPE_CHECKING:
    from airflow_ml_provider.stages.deploy.service import Observed, Service, Serving


@dataclass(frozen=True)
class ReadyCheck(Check):
    """Does a service answer with a certain model?

    Attributes:
        service: name of the service.
        place: as `stages.deploy.place.encode` gives it.
        digest: of the model that must answer; empty takes any.
        version: its number in the registry; empty takes any.
        rows: the request, column to values; none makes one by the model's manifest.
    """

    check: ClassVar[str] = "service_ready"
    service: str
    place: Mapping[str, Any]
    digest: str = ""
    version: str = ""
    rows: Mapping[str, Sequence[Any]] | None = None

    def ask(self, env: Mapping[str, str]) -> Answer:
        place = _opened(self.place)
        observed = place.look(self.service)
        if observed is None:
            return Answer(False, f"service {self.service!r} does not exist yet")
        stable = observed.wanted.stable
        if self.digest not in ("", stable.model.digest) or self.version not in ("", stable.model.version):
            return Answer(False, f"service {self.service!r} serves version {stable.name} ({stable.model.digest})")
        state = observed.states[stable.name]
        if state.phase != "ready":
            return Answer(False, f"version {stable.name} of service {self.service!r} is not ready: {state.why}")
        return self._answered(place, observed)

    def _answered(self, place: Serving, observed: Observed) -> Answer:
        from airflow_ml_provider.stages.deploy.requests import rows_for

        stable = observed.wanted.stable
        value = {"model": codec.encode(stable.model), "version": stable.name, "address": observed.address}
        if not (rows := rows_for(stable.model, self.rows)):
            return Answer(True, f"version {stable.name} of service {self.service!r} is ready", value)
        outputs, _ = place.predict(self.service, rows, stable.name)
        if not outputs:
            raise DataError(f"version {stable.name} of service {self.service!r} answers with no output")
        return Answer(True, f"version {stable.name} of service {self.service!r} answers {dict(outputs)}", value)


@dataclass(frozen=True)
class RolloutCheck(Check):
    """Is no rollout of a service under way?

    Attributes:
        service: name of the service.
        place: as `stages.deploy.place.encode` gives it.
        digest: of the model whose rollout must have ended; empty takes that of any.
    """

    check: ClassVar[str] = "rollout_over"
    service: str
    place: Mapping[str, Any]
    digest: str = ""

    def ask(self, env: Mapping[str, str]) -> Answer:
        from airflow_ml_provider.stages.deploy.logic import candidate_of, is_over

        observed = _opened(self.place).look(self.service)
        if observed is None:
            return Answer(False, f"service {self.service!r} does not exist yet")
        wanted = observed.wanted
        if not is_over(wanted):
            return Answer(False, f"service {self.service!r} is in the rollout of {_whose(wanted)}")
        rolled = candidate_of(wanted).model.digest if wanted.rollout else ""
        if self.digest not in ("", rolled, wanted.stable.model.digest):
            return Answer(False, f"service {self.service!r} has not been rolled out to {self.digest} yet")
        state = wanted.rollout.get("state", {})
        value = {
            "outcome": state.get("phase", ""),
            "reason": state.get("reason", ""),
            "model": codec.encode(wanted.stable.model),
        }
        return Answer(True, f"service {self.service!r} is at version {wanted.stable.name}; {_ended(value)}", value)


SERVICE_CHECKS: dict[str, type[Check]] = {cls.check: cls for cls in (ReadyCheck, RolloutCheck)}


def _opened(place: Mapping[str, Any]) -> Serving:
    from airflow_ml_provider.hooks._serving import serving
    from airflow_ml_provider.stages.deploy.place import resolve

    return serving(resolve(place))


def _whose(service: Service) -> str:
    rollout = service.rollout
    return f"{rollout['dag_id']}.{rollout['task_id']} of {rollout['run_id']}"


def _ended(value: Mapping[str, Any]) -> str:
    return (
        f"its last rollout ended {value['outcome']}: {value['reason']}" if value["outcome"] else "no rollout is noted"
    )

"""What a service in a cluster shall be, kept in a ConfigMap whose resource version is the service's revision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from airflow_ml_provider.exceptions import Conflict
from airflow_ml_provider.hooks._cluster import CONFLICT, NOT_FOUND, ClusterPlace, unless
from airflow_ml_provider.hooks.prometheus import PrometheusHook
from airflow_ml_provider.stages.deploy import prometheus
from airflow_ml_provider.stages.deploy.kserve.manifest import record, record_name, recorded
from airflow_ml_provider.stages.deploy.metrics import Metrics
from airflow_ml_provider.stages.deploy.prometheus import Part
from airflow_ml_provider.stages.deploy.service import Readings, Service


class RecordedPlace(ClusterPlace):
    """A place in a cluster that keeps such records."""

    record_suffix: ClassVar[str] = ""  # so that two systems may serve in one namespace under the same name
    metrics: Metrics
    prometheus_conn_id: str

    @cached_property
    def _prometheus(self) -> PrometheusHook:
        return PrometheusHook(self.prometheus_conn_id, timeout_s=self.timeout_s)

    def _counted(self, name: str, parts: Sequence[Part]) -> Readings:
        """Return what the parts of a service have counted, as Prometheus knows it."""
        asked = prometheus.query(self.metrics, name, self.namespace, parts)
        return prometheus.readings(self._prometheus.query(asked) if asked else [], self.metrics, parts)

    def _record_name(self, name: str) -> str:
        return record_name(name) + self.record_suffix

    def _record(self, name: str) -> dict[str, Any] | None:
        with unless(NOT_FOUND):
            found = self._core.read_namespaced_config_map(self._record_name(name), self.namespace, **self._raw)
            return self._json(found)
        return None

    def _keep(self, wanted: Service, kept: dict[str, Any] | None) -> dict[str, Any]:
        """Write down what a service shall be; return the record."""
        if kept is not None and recorded(kept["data"]) == wanted:
            return kept
        new = record(wanted)
        new["metadata"]["name"] = self._record_name(wanted.name)
        with unless(CONFLICT):
            if kept is None:
                return self._json(self._core.create_namespaced_config_map(self.namespace, new, **self._raw))
            return self._replace_record({**kept, "data": new["data"]})
        raise Conflict(f"service {wanted.name!r} was changed by somebody else at this moment")

    def _replace_record(self, kept: dict[str, Any]) -> dict[str, Any]:
        name = kept["metadata"]["name"]
        return self._json(self._core.replace_namespaced_config_map(name, self.namespace, kept, **self._raw))

    def _check_kept(self, name: str, kept: Mapping[str, Any]) -> None:
        """Raise `Conflict` unless a record is still the one that was written."""
        now = self._record(name)
        if now is None or now["metadata"]["resourceVersion"] != kept["metadata"]["resourceVersion"]:
            raise Conflict(f"service {name!r} was changed by somebody else at this moment")


def check_revision(name: str, revision: str | None, kept: Mapping[str, Any] | None) -> None:
    """Raise `Conflict` unless a record has a revision, or there is none and none was seen."""
    if kept is None and revision is not None:
        raise Conflict(f"service {name!r} is not there any more")
    if kept is not None and revision is None:
        raise Conflict(f"service {name!r} is there already")
    if kept is not None and revision != kept["metadata"]["resourceVersion"]:
        raise Conflict(f"service {name!r} was changed by somebody else")

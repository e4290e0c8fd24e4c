"""The bridge from a stage's result to Airflow's OpenLineage provider; without that provider there is none."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_ml_provider.lineage.facets import lineage

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.stages import Result

log = logging.getLogger(__name__)

# What only the worker has: its files, its output, its classes (the latter by their dotted names).
_LOCAL = ("", "file", "console", "noop")
# Settings of a transport that hold no secret; any other makes a secret of the whole.
_HARMLESS = (
    "type", "url", "endpoint", "timeout", "timeoutinmillis", "verify", "compression", "retry", "name", "priority",
    "continue_on_failure", "continue_on_success", "sort_transports", "topic", "flush", "messagekey",
)  # fmt: skip


def operator_lineage(
    result: Result | None, info: RunInfo | None, *, inlets: Iterable[Any] = (), outlets: Iterable[Any] = ()
) -> Any:
    """Return the `OperatorLineage` of a run, or none when there is nothing to tell or nobody to tell it to.

    Airflow reads `inlets` and `outlets` only for operators that name no dataset themselves, so they are added here,
    unless the result already names something within them.
    """
    if result is None and info is None:
        return None
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.event_v2 import InputDataset, OutputDataset
    except ModuleNotFoundError:
        return None
    found = lineage(result, info)
    inputs = [InputDataset(**body) for body in found.inputs]
    outputs = [OutputDataset(**body) for body in found.outputs]
    return OperatorLineage(
        inputs=inputs + [InputDataset(*name) for name in _further(inlets, inputs)],
        outputs=outputs + [OutputDataset(*name) for name in _further(outlets, outputs)],
        run_facets=found.run_facets,
    )


def _further(assets: Iterable[Any], named: list[Any]) -> list[tuple[str, str]]:
    """Return the datasets of assets, without those that are, or hold, one that is named already."""
    from airflow.providers.openlineage.utils.utils import translate_airflow_asset
    from airflow.sdk import Asset

    found = []
    for asset in assets or ():
        dataset = translate_airflow_asset(asset, None) if isinstance(asset, Asset) else None
        if dataset is None:
            continue
        within = f"{dataset.name.rstrip('/')}/"
        if not any(d.namespace == dataset.namespace and f"{d.name}/".startswith(within) for d in named):
            found.append((dataset.namespace, dataset.name))
    return found


def parent_environment(context: Context | Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables that make what emits OpenLineage in another process a child of this task: plain, secret.

    The parent goes by the names that the integrations read: `OPENLINEAGE_PARENT_ID` and `OPENLINEAGE_ROOT_PARENT_ID`,
    and `OPENLINEAGE_CONTEXT`, which also takes a namespace with a slash. `OPENLINEAGE__TRANSPORT` is where events go,
    unless that is a place that only this machine has; it is secret if it may hold credentials. Both are empty without
    OpenLineage. It never raises: a stage does not fail for its lineage.

    Parameters:
        context: that of the task.
    """
    try:
        from airflow.providers.openlineage import conf
    except ModuleNotFoundError:
        return {}, {}
    try:
        if conf.is_disabled():
            return {}, {}
        plain, transport = _parent(context["ti"]), _remote(_transport())
    except Exception:
        log.exception("what runs in other processes gets no OpenLineage parent")
        return {}, {}
    variable = {"OPENLINEAGE__TRANSPORT": json.dumps(transport)} if transport else {}
    return ({**plain, **variable}, {}) if _harmless(transport) else (plain, variable)


def _parent(ti: Any) -> dict[str, str]:
    from airflow.providers.openlineage.plugins import macros

    namespace = str(macros.lineage_job_namespace())  # type: ignore[no-untyped-call]
    root_namespace = getattr(macros, "lineage_root_job_namespace", lambda _: namespace)  # older providers have none
    parent = (namespace, macros.lineage_job_name(ti), macros.lineage_run_id(ti))
    root = (root_namespace(ti), macros.lineage_root_job_name(ti), macros.lineage_root_run_id(ti))
    return {
        "OPENLINEAGE_PARENT_ID": "/".join(parent),
        "OPENLINEAGE_ROOT_PARENT_ID": "/".join(root),
        "OPENLINEAGE_CONTEXT": json.dumps({"parent": {**_run(*parent), "root": _run(*root)}}),
    }


def _run(namespace: str, name: str, run_id: str) -> dict[str, Any]:
    return {"run": {"runId": run_id}, "job": {"namespace": namespace, "name": name}}


def _transport() -> dict[str, Any]:
    """Return what the worker's own events go by, wherever it is configured."""
    from airflow.providers.openlineage.plugins.listener import get_openlineage_listener

    client = get_openlineage_listener().adapter.get_or_create_openlineage_client()
    found = dict(client.config.transport or {})
    if found.get("type"):
        return found
    # The client has made this of OPENLINEAGE_URL and its like, and takes those if nothing else is configured.
    return dict(found.get("transports", {}).get(client.DEFAULT_URL_TRANSPORT_NAME, {}))


def _remote(transport: Mapping[str, Any]) -> dict[str, Any]:
    """Return a transport as another machine can use it, without parts that are of this one; nothing may be left."""
    kind, within = str(transport.get("type", "")), transport.get("transports")
    if kind == "composite" and isinstance(within, Mapping):
        kept = {name: body for name, one in within.items() if (body := _remote(one))}
        return {**transport, "transports": kept} if kept else {}
    if kind == "composite":
        rest = [body for one in within or () if (body := _remote(one))]
        return {**transport, "transports": rest} if rest else {}
    return {} if kind in _LOCAL or "." in kind else dict(transport)


def _harmless(transport: Mapping[str, Any]) -> bool:
    """Return whether a transport surely holds no credentials."""
    within = transport.get("transports", {})
    parts = within.values() if isinstance(within, Mapping) else within
    own = {key: value for key, value in transport.items() if key != "transports"}
    address = urlsplit(str(own.get("url", "")))
    return (
        all(key.lower() in _HARMLESS for key in own)
        and not ("@" in address.netloc or address.query)
        and all(_harmless(part) for part in parts)
    )

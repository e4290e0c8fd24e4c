"""The bridge from a stage's result to Airflow's OpenLineage provider; without that provider there is none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.lineage.facets import lineage

if TYPE_CHECKING:
    from airflow_ml_provider.provenance import RunInfo
    from airflow_ml_provider.stages import Result


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

"""The form of one facet: which schema it names, who made it, and no empty values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.lineage.naming import PRODUCER, schema_url

_SPEC = "https://openlineage.io/spec/facets"
SCHEMA_URLS: dict[str, str] = {
    "schema": f"{_SPEC}/1-2-0/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet",
    "version": f"{_SPEC}/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
    "datasetType": f"{_SPEC}/1-0-1/DatasetTypeDatasetFacet.json#/$defs/DatasetTypeDatasetFacet",
    "storage": f"{_SPEC}/1-0-1/StorageDatasetFacet.json#/$defs/StorageDatasetFacet",
    "hierarchy": f"{_SPEC}/1-0-0/HierarchyDatasetFacet.json#/$defs/HierarchyDatasetFacet",
    "lifecycleStateChange": (
        f"{_SPEC}/1-0-1/LifecycleStateChangeDatasetFacet.json#/$defs/LifecycleStateChangeDatasetFacet"
    ),
    "columnLineage": f"{_SPEC}/1-2-0/ColumnLineageDatasetFacet.json#/$defs/ColumnLineageDatasetFacet",
    "dataQualityMetrics": f"{_SPEC}/1-0-0/DataQualityMetricsDatasetFacet.json#/$defs/DataQualityMetricsDatasetFacet",
    "input:dataQualityMetrics": (
        f"{_SPEC}/1-0-3/DataQualityMetricsInputDatasetFacet.json#/$defs/DataQualityMetricsInputDatasetFacet"
    ),
    "dataQualityAssertions": (
        f"{_SPEC}/1-1-0/DataQualityAssertionsDatasetFacet.json#/$defs/DataQualityAssertionsDatasetFacet"
    ),
    "inputStatistics": f"{_SPEC}/1-0-0/InputStatisticsInputDatasetFacet.json#/$defs/InputStatisticsInputDatasetFacet",
    "outputStatistics": (
        f"{_SPEC}/1-0-2/OutputStatisticsOutputDatasetFacet.json#/$defs/OutputStatisticsOutputDatasetFacet"
    ),
    "subset": f"{_SPEC}/1-0-0/BaseSubsetDatasetFacet.json#/$defs/InputSubsetInputDatasetFacet",
    "test": f"{_SPEC}/1-0-1/TestRunFacet.json#/$defs/TestRunFacet",
    "ml_provenance": schema_url("MlProvenanceRunFacet"),
    "ml_model": schema_url("MlModelDatasetFacet"),
    "run:ml_model": schema_url("MlModelRunFacet"),
    "ml_gate": schema_url("MlGateRunFacet"),
}


def facet(key: str, **body: Any) -> dict[str, Any]:
    """Return one facet: `body` without empty values, its producer, and the schema that belongs to `key`."""
    return {"_producer": PRODUCER, "_schemaURL": SCHEMA_URLS[key], **pruned(body)}


def pruned(value: Any) -> Any:
    """Return `value` as plain JSON without nulls, which the specification's types do not allow."""
    if isinstance(value, Mapping):
        return {str(k): pruned(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [pruned(v) for v in value if v is not None]
    return codec.encode(value)

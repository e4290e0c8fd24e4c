"""Feature view of the rain model; how its table is computed stands in `features.yaml`."""

from __future__ import annotations

import os
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

station = Entity(name="station", value_type=ValueType.STRING, description="Weather station")

past_days = FeatureView(
    name="past_days",
    entities=[station],
    ttl=timedelta(days=2),
    schema=[
        Field(name=f"{name}_{window}", dtype=Float64)
        for window in ("1d", "3d", "7d", "30d")
        for name in ("rainy_share", "precipitation", "temp_max", "temp_range", "wind")
    ],
    source=FileSource(
        name="past_days",
        path=f"{os.environ['ML_FEATURE_STORE']}/tables/past_days/*/data.parquet",
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    ),
)

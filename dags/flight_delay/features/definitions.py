"""Feature views of the flight delay models; how their tables are computed stands in `features.yaml`."""

from __future__ import annotations

import os
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

TABLES = f"{os.environ['ML_FEATURE_STORE']}/tables"


def table(name: str) -> FileSource:
    """Return the source of a table that the features stage computes."""
    return FileSource(
        name=name,
        path=f"{TABLES}/{name}/*/data.parquet",
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )


origin = Entity(name="origin", value_type=ValueType.STRING, description="Airport of departure")
dest = Entity(name="dest", value_type=ValueType.STRING, description="Airport of arrival")
carrier = Entity(name="carrier", value_type=ValueType.STRING, description="Airline")
tailnum = Entity(name="tailnum", value_type=ValueType.STRING, description="Aircraft")

origin_traffic = FeatureView(
    name="origin_traffic",
    entities=[origin],
    ttl=timedelta(hours=2),
    schema=[
        Field(name="dep_delay_mean_3h", dtype=Float64),
        Field(name="late_share_3h", dtype=Float64),
        Field(name="departures_3h", dtype=Int64),
        Field(name="dep_delay_mean_24h", dtype=Float64),
        Field(name="late_share_24h", dtype=Float64),
        Field(name="departures_24h", dtype=Int64),
    ],
    source=table("origin_traffic"),
)

carrier_arrivals = FeatureView(
    name="carrier_arrivals",
    entities=[carrier],
    ttl=timedelta(hours=2),
    schema=[
        Field(name="arr_delay_mean_24h", dtype=Float64),
        Field(name="late_share_24h", dtype=Float64),
        Field(name="arr_delay_mean_7d", dtype=Float64),
        Field(name="late_share_7d", dtype=Float64),
    ],
    source=table("carrier_arrivals"),
)

route_arrivals = FeatureView(
    name="route_arrivals",
    entities=[origin, dest],
    ttl=timedelta(hours=2),
    schema=[Field(name="late_share_7d", dtype=Float64), Field(name="arrivals_7d", dtype=Int64)],
    source=table("route_arrivals"),
)

aircraft_last_leg = FeatureView(
    name="aircraft_last_leg",
    entities=[tailnum],
    ttl=timedelta(days=2),
    schema=[Field(name="arr_delay", dtype=Int64), Field(name="air_time", dtype=Int64)],
    source=table("aircraft_last_leg"),
)

origin_weather = FeatureView(
    name="origin_weather",
    entities=[origin],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="temp", dtype=Float64),
        Field(name="wind_speed", dtype=Float64),
        Field(name="precip", dtype=Float64),
        Field(name="visib", dtype=Float64),
        Field(name="pressure", dtype=Float64),
    ],
    source=table("origin_weather"),
)

flight_delay = FeatureService(
    name="flight_delay",
    features=[origin_traffic, carrier_arrivals, route_arrivals, aircraft_last_leg, origin_weather],
)

"""The same real flights as the unit tests of the stage."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["flights", "flights_file", "spec", "tracking_uri"]

_there = Path(__file__).parents[2] / "unit" / "stages" / "train" / "conftest.py"
_spec = importlib.util.spec_from_file_location("train_flights", _there)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
flights, flights_file, spec = _module.flights, _module.flights_file, _module.spec

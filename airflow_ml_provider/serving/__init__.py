"""Serving on one machine: a gateway that splits traffic over one server process per model version. Airflow-free.

The gateway (`python -m airflow_ml_provider.serving`) is to a laptop what KServe is to a cluster: it is told which
versions are wanted and with what share of the traffic, starts and watches their servers, and counts what each answered.
All of them speak the Open Inference Protocol v2 over REST. `launch` starts it, `client` talks to it.
"""

from __future__ import annotations

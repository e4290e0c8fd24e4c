"""The record of a rollout: canonical JSON, named by its own digest, with one record for each step that was decided."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from airflow_ml_provider import codec, tables
from airflow_ml_provider.refs import ReportRef
from airflow_ml_provider.stages.deploy.service import Service
from airflow_ml_provider.stages.deploy.state import RolloutState

KIND = "airflow_ml.rollout/1"


def write(output: str, service: Service, state: RolloutState) -> ReportRef:
    """Write the record of a rollout that is over below `OUTPUT/rollouts`.

    Parameters:
        output: root folder for evidence.
        service: as it was in the rollout.
        state: the last one.
    """
    rollout = service.rollout
    body = {
        "kind": KIND,
        "service": service.name,
        "outcome": state.phase,
        "reason": state.reason,
        "stable": rollout["stable"],
        "candidate": rollout["candidate"],
        "policy": rollout["policy"],
        "task": {name: rollout[name] for name in ("dag_id", "task_id", "run_id", "map_index")},
        "steps": state.evidence,
    }
    text = codec.canonical(codec.encode(body))
    digest = hashlib.sha256(text.encode()).hexdigest()
    file = tables.write_text(tables.local_path(output) / "rollouts" / f"{digest}.json", text)
    return ReportRef(
        name=f"rollout of {service.name}",
        uri=str(file),
        digest=f"sha256:{digest}",
        passed=state.phase == "done",
        summary={"steps": len(state.evidence), "requests": requests(state)},
    )


def requests(state: RolloutState) -> int:
    """Return how many requests of the candidate the decisions of a rollout stand on."""
    steps = state.evidence[-1:] if _sums_up(state) else state.evidence
    criteria = [criterion for step in steps for criterion in step["criteria"]]
    return int(sum(criterion["observed"] for criterion in criteria if criterion["name"] == "requests"))


def verdict(state: RolloutState) -> Mapping[str, Any]:
    """Return what an experiment or a bandit said at its end; empty for other rollouts."""
    return dict(state.evidence[-1].get("verdict", {})) if state.evidence else {}


def _sums_up(state: RolloutState) -> bool:
    return bool(state.evidence) and state.evidence[-1]["strategy"] == "bandit"

"""What the demo has to show: a table of days, a table of trainings, and where to look further."""

from __future__ import annotations

from typing import Any

from airflow_api import AirflowApi
from airflow_ml_provider.stages.monitor.series import read_series as read_monitor
from airflow_ml_provider.stages.validate.series import read_series as read_quality
from services import Stack

NAME = "flight_delay"


def render(stack: Stack, api: AirflowApi, scoring: str, training: str) -> str:
    """Return both tables as text."""
    return f"\n{_days(stack, api, scoring)}\n\n{_trainings(api, training)}\n"


def addresses(stack: Stack) -> None:
    """Print where everything is."""
    print(f"Airflow   {stack.airflow_url}   (no password; DAGs, grid, the page 'ML')")
    print(f"MLflow    {stack.mlflow_url}")
    print(f"Files     {stack.store}")
    print(f"Lineage   {stack.lineage}")
    for name, address in stack.served().items():
        print(f"Model     {address}/v2/models/{name}")
    print("Stop with ./dev-airflow/down; run ./dev-airflow/up again to go on.")


def _days(stack: Stack, api: AirflowApi, dag_id: str) -> str:
    quality = {row["interval"]: row for row in read_quality(str(stack.store / "quality" / "flights"))}
    monitor = {row["interval"]: row for row in read_monitor(str(stack.store / "monitor"), NAME)}
    rows = []
    for run in api.runs(dag_id):
        day = str(run["logical_date"] or run["run_after"])[:10]
        ingest = api.xcom(dag_id, run["dag_run_id"], "ingest_flights") or {}
        counts, watched = ingest.get("counts", {}), monitor.get(day, {})
        bad = counts.get("quarantined", 0) + quality.get(day, {}).get("quarantined", 0)
        rows.append(
            [
                day,
                run["run_type"] + (" again" if _cleared(api, dag_id, run) else ""),
                counts.get("accepted", "-"),
                f"{bad} rows, {counts.get('bad_files', 0)} files" if bad or counts.get("bad_files") else "",
                _number(quality.get(day, {}).get("quality", {}).get("overall"), 4),
                _drift(watched),
                _number(watched.get("auc"), 3),
                " ".join(f"v{v}" for _, v in sorted(watched.get("models", {}).items())) or "-",
                _state(run, ingest),
            ]
        )
    head = ["day", "run", "rows in", "quarantined", "quality", "drift", "AUC", "champions", "what happened"]
    return _table(head, rows)


def _trainings(api: AirflowApi, dag_id: str) -> str:
    rows = []
    for run in api.runs(dag_id):
        run_id = run["dag_run_id"]
        rows_in = (api.xcom(dag_id, run_id, "training_set") or {}).get("train") or {}
        window = (rows_in.get("interval") or {}).get("key") or str(run["logical_date"] or run["run_after"])[:10]
        tasks = [t for t in api.tasks(dag_id, run_id) if t["task_id"] == "decide.gate"]
        for task in sorted(tasks, key=lambda t: t["map_index"]):
            index = task["map_index"]
            gate = api.xcom(dag_id, run_id, "decide.gate", map_index=index) or {}
            promote = api.xcom(dag_id, run_id, "decide.promote", map_index=index) or {}
            model = gate.get("model") or {}
            metrics = {**(model.get("metrics") or {}), **(gate.get("metrics") or {})}
            rows.append(
                [
                    window,
                    run["run_type"],
                    model.get("name", "-"),
                    f"v{model.get('version', '-')}",
                    model.get("engine", "-"),
                    _number(metrics.get("test_auc", metrics.get("auc")), 3),
                    _decision(task, gate),
                    "yes" if promote.get("moved") else "no",
                    _why(gate, promote),
                ]
            )
    rows.sort(key=lambda row: (row[0], row[2]))
    return _table(["training", "run", "model", "version", "engine", "test AUC", "gate", "promoted", "why"], rows)


def _decision(task: dict[str, Any], gate: dict[str, Any]) -> str:
    if not gate:
        return str(task["state"])
    return "passed" if gate.get("passed") else "refused"


def _why(gate: dict[str, Any], promote: dict[str, Any]) -> str:
    reason = str((gate if not gate.get("passed") else promote).get("reason") or "")
    return reason.removeprefix(f"{(gate.get('model') or {}).get('name')} version ").partition(": ")[2] or reason


def _cleared(api: AirflowApi, dag_id: str, run: dict[str, Any]) -> bool:
    return any(t["try_number"] > 1 for t in api.tasks(dag_id, run["dag_run_id"]) if t["task_id"] == "ingest_flights")


def _state(run: dict[str, Any], ingest: dict[str, Any]) -> str:
    reason = str(ingest.get("reason") or "")
    return reason if run["state"] == "success" else f"{run['state']}: {reason}"


def _drift(row: dict[str, Any]) -> str:
    if not row:
        return "-"
    text = f"{row['severity']} {_number(row.get('drift_share'), 2)}".strip()
    return text + (" retrain" if row.get("retrain") else "")


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    cells = [head, *[[str(c) for c in row] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head) - 1)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]]).rstrip() for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in [*widths, len(head[-1])]), *lines[1:]])

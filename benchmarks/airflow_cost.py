"""What the package costs an Airflow: at import, at DAG parse, and per task.

    .venv/bin/python benchmarks/airflow_cost.py [--repeat 5]

Three measurements, each the median of `--repeat` fresh processes: (1) importing all operators and templates after
`airflow.sdk`: CPU milliseconds and modules; (2) parsing and serialising the flights DAGs, built from templates, against
the same DAGs written with plain `@task`s (parameters, retries, assets included), for the first time in a process, which
includes the import of (1), and again; (3) running a stage operator in process against a plain call of the same work.
What Airflow itself has in memory by then is frozen, so that no garbage collection of it falls into a measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent

IMPORT = """
import json, pkgutil, sys, time, importlib
import airflow.sdk
from airflow.sdk import BaseOperator, BaseSensorOperator, DAG, task, task_group, Param, Asset, BaseOperatorLink
before, began = set(sys.modules), time.process_time()
import airflow_ml_provider
for kind in ("operators", "templates"):
    package = importlib.import_module(f"airflow_ml_provider.{kind}")
    for item in pkgutil.iter_modules(package.__path__):
        if not item.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{item.name}")
print(json.dumps({"cpu_ms": 1000 * (time.process_time() - began), "modules": len(set(sys.modules) - before)}))
"""

# The same graph by hand: as many tasks, decorators only.
PLAIN = """
from datetime import datetime, timedelta, timezone
from airflow.sdk import DAG, task, task_group, Asset, AssetAny, AssetOrTimeSchedule, CronDataIntervalTimetable, Param
MOMENT = {"type": ["null", "string"], "format": "date-time"}
WINDOW = {"interval_start": Param(None, **MOMENT, description="Start of the window; empty takes the run's own."),
          "interval_end": Param(None, **MOMENT, description="End of the window, not included.")}
DECIDE = {"allow_backfill_promotion": Param(False, type="boolean", description="Let this run promote newer models."),
          "approved_by": Param([], type="array", items={"type": "string"}, description="People who approved this run.")}
ROLLBACK = {"model": Param("late_ewr", enum=["late_ewr", "late_jfk", "late_lga"], description="Model to roll back."),
            "reason": Param("", type="string", description="Why."),
            "effective_from": Param(None, **MOMENT, description="Data from this moment on."),
            "to": Param(None, type=["null", "string"], description="Version to go back to.")}
ARGS = {"start_date": datetime(2013, 2, 5, tzinfo=timezone.utc), "catchup": True, "tags": ["ml", "late", "flights"],
        "max_active_runs": 1, "default_args": {
            "owner": "ml", "retries": 2, "retry_delay": timedelta(seconds=30), "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(seconds=600), "execution_timeout": timedelta(hours=1)}}
@task
def step(*args, **kwargs): return 1
def timetable(cron): return CronDataIntervalTimetable(cron, timezone="UTC")
def asset(name): return Asset(name=name, uri=f"x-airflow-ml://{name}")
with DAG("plain_scoring", schedule=timetable("0 0 * * *"), params=WINDOW, doc_md="Scores every day.", **ARGS):
    ingest = step.override(task_id="ingest_flights")()
    flights = step.override(task_id="validate_flights", outlets=[asset("late/flights")])(ingest)
    weather = step.override(task_id="ingest_weather", outlets=[asset("late/weather")])()
    features = step.override(task_id="features")(flights, weather)
    scores = step.override(task_id="score", outlets=[asset("late/predictions")])(features)
    step.override(task_id="monitor")(scores)
starts = AssetOrTimeSchedule(timetable=timetable("0 0 * * TUE"), assets=AssetAny(asset("late/a"), asset("late/b")))
with DAG("plain_training", schedule=starts, params={**WINDOW, **DECIDE}, doc_md="Trains every week.", **ARGS):
    rows = step.override(task_id="training_set")(step.override(task_id="wait_for_labels")())
    models = step.override(task_id="train").partial(rows=rows).expand_kwargs([{"origin": n} for n in range(6)])
    best = step.override(task_id="winners")(step.override(task_id="evaluate").expand(model=models))
    @task_group
    def decide(winner):
        step.override(task_id="promote")(step.override(task_id="gate")(step.override(task_id="register")(winner)))
    decide.expand(winner=best)
with DAG("plain_rollback", schedule=None, params=ROLLBACK, doc_md="Rolls back.", **{**ARGS, "catchup": False}):
    step.override(task_id="rollback")()
"""

PARSE = """
import gc, json, sys, time, importlib.util, logging
logging.disable(logging.CRITICAL)
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
paths = json.loads(sys.argv[1])
import tempfile, shutil, pathlib
def parse():
    bag_began = time.process_time()
    dags = []
    for path in paths:
        bag = DagBag(path)
        assert not bag.import_errors, bag.import_errors
        dags += bag.dags.values()
    for dag in dags:
        DagSerialization.to_dict(dag)
    return 1000 * (time.process_time() - bag_began)
gc.collect()
gc.freeze()
first = parse()
rest = sorted(parse() for _ in range(5))
print(json.dumps({"first_ms": first, "again_ms": rest[2]}))
"""

OVERHEAD = """
import json, sys, tempfile, time, logging
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
logging.disable(logging.CRITICAL)
from airflow.sdk import BaseOperator
from airflow_ml_provider.operators.ingest import IngestOperator
from airflow_ml_provider.stages import run
folder = Path(tempfile.mkdtemp())
(folder / "rows.csv").write_text("id,value\\n" + "".join(f"{n},{n}\\n" for n in range(1000)))
start = datetime(2013, 1, 1, tzinfo=timezone.utc)
ti = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1, dag_version_id=None, bundle_instance=None,
                     xcom_push=lambda **_: None)
context = {"ti": ti, "dag_run": SimpleNamespace(run_type="manual", run_after=start, clear_number=0), "params": {},
           "data_interval_start": start, "data_interval_end": start + timedelta(days=1), "outlet_events": {}}
operator = IngestOperator(task_id="t", name="rows", source=str(folder / "rows.csv"), target=str(folder / "table"),
                          columns={"id": "int", "value": "float"}, key=["id"])
from airflow_ml_provider.operators._context import resolve_interval, run_info
interval = resolve_interval(context, "day")
spec, info = operator.build_spec(interval, context), run_info(context, interval)
def timed(call):
    began = time.process_time(); call(); return 1000 * (time.process_time() - began)
timed(lambda: run(spec, info))
plain = sorted(timed(lambda: run(spec, info)) for _ in range(9))[4]
stage = sorted(timed(lambda: operator.execute(context)) for _ in range(9))[4]
print(json.dumps({"plain_ms": plain, "operator_ms": stage, "overhead_ms": stage - plain}))
"""


def fresh(code: str, *args: str) -> dict[str, float]:
    """Return what `code` prints in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(code: str, repeat: int, *args: str) -> dict[str, float]:
    """Return the median of every figure over fresh processes, after one that warms the disk."""
    fresh(code, *args)
    runs = [fresh(code, *args) for _ in range(repeat)]
    return {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    plain = REPO / "benchmarks" / "plain_dag.py"
    plain.write_text(PLAIN)
    ours = [str(REPO / "dags" / name) for name in ("flight_delay_scoring.py", "flight_delay_training.py")]
    try:
        template = medians(PARSE, repeat, json.dumps(ours))
        by_hand = medians(PARSE, repeat, json.dumps([str(plain)]))
    finally:
        plain.unlink()
    figures = {
        "import after airflow.sdk": medians(IMPORT, repeat),
        "parse from templates": template,
        "parse by hand": by_hand,
        "ratio": {name: round(template[name] / by_hand[name], 2) for name in template},
        "operator over plain call": medians(OVERHEAD, repeat),
    }
    for what, values in figures.items():
        print(f"{what:28}", "  ".join(f"{name} {value}" for name, value in values.items()))


if __name__ == "__main__":
    main()

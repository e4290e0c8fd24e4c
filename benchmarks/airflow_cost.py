"""What the package costs an Airflow: at import, at DAG parse, and per task.

    .venv/bin/python benchmarks/airflow_cost.py [--repeat 5]

Three measurements, each the median of `--repeat` fresh processes: (1) importing every operator, sensor, decorator and
template after `import airflow.sdk`: CPU milliseconds and modules; (2) parsing the flights DAG files, built from
templates, against the same tasks written with plain `@task`s; (3) running a stage operator in process against a plain
Python task that does the same.
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
for kind in ("operators", "sensors", "decorators", "templates"):
    package = importlib.import_module(f"airflow_ml_provider.{kind}")
    for item in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{item.name}")
print(json.dumps({"cpu_ms": 1000 * (time.process_time() - began), "modules": len(set(sys.modules) - before)}))
"""

# The same graph by hand: as many tasks, decorators only.
PLAIN = """
from datetime import datetime, timezone
from airflow.sdk import DAG, task, task_group, Param, CronDataIntervalTimetable
ARGS = {"start_date": datetime(2013, 2, 5, tzinfo=timezone.utc), "catchup": True, "tags": ["ml"], "params": {
    "interval_start": Param(None, type=["null", "string"]), "interval_end": Param(None, type=["null", "string"])}}
@task
def step(*args): return 1
with DAG("plain_scoring", schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"), **ARGS):
    flights = step.override(task_id="validate_flights")(step.override(task_id="ingest_flights")())
    weather = step.override(task_id="ingest_weather")()
    features = step.override(task_id="features")(flights, weather)
    step.override(task_id="monitor")(step.override(task_id="score")(features))
with DAG("plain_training", schedule=CronDataIntervalTimetable("0 0 * * TUE", timezone="UTC"), **ARGS):
    rows = step.override(task_id="training_set")(step.override(task_id="wait_for_labels")())
    best = step.override(task_id="winners")(step.override(task_id="evaluate")(step.override(task_id="train")(rows)))
    @task_group
    def decide(winner):
        step.override(task_id="promote")(step.override(task_id="gate")(step.override(task_id="register")(winner)))
    decide.expand(winner=best)
with DAG("plain_rollback", schedule=None, **ARGS):
    step.override(task_id="rollback")()
"""

PARSE = """
import json, sys, time, importlib.util, logging
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

"""What the commands of `airflow ml` do."""

from __future__ import annotations

import functools
import getpass
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from airflow_ml_provider.exceptions import MlError


def _readable(command: Callable[[Namespace], None]) -> Callable[[Namespace], None]:
    """Give a command Airflow's own connections, and its errors as one sentence and exit code 1."""

    @functools.wraps(command)
    def run(args: Namespace) -> None:
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"  # as Airflow's own commands do: connections of the database
        try:
            command(args)
        except MlError as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from error

    return run


def _show(rows: Sequence[Mapping[str, Any]], output: str) -> None:
    from airflow.cli.simple_table import AirflowConsole

    AirflowConsole().print_as(data=[dict(row) for row in rows], output=output)


@_readable
def doctor(args: Namespace) -> None:
    """Print which stages can run in which Python, and which connections answer."""
    from airflow_ml_provider.cli import doctor as examine

    asked = bool(args.stage or args.conn_id)
    rows = examine.libraries(args.python, args.stage) if args.stage or not asked else []
    rows += examine.connections(args.conn_id) if args.conn_id or not asked else []
    _show(rows, args.output)
    if asked and any(row["state"] != "ok" for row in rows):
        raise SystemExit(1)


@_readable
def lineage(args: Namespace) -> None:
    """Print what a dataset came from, or what came from it."""
    from airflow_ml_provider.hooks.lineage import LineageHook
    from airflow_ml_provider.lineage.graph import Graph
    from airflow_ml_provider.lineage.naming import parse

    graph = Graph.read(Path(args.events)) if args.events else LineageHook(args.conn_id).get_conn()
    start = parse(args.dataset)
    if start not in graph.datasets and not any(step.depth for step in graph.walk(start)):
        raise SystemExit(f"no event tells of {start}; {len(graph.datasets)} datasets are known")
    if args.downstream:
        _show([{"dataset": str(dataset)} for dataset in sorted(graph.downstream(start))], args.output)
        return
    _show(
        [
            {
                "depth": step.depth,
                "dataset": str(step.dataset),
                "version": (step.version or "")[:19],
                "made_by": step.run.job if step.run else "",
                "state": step.run.state if step.run else "",
            }
            for step in graph.walk(start)
        ],
        args.output,
    )


@_readable
def journal(args: Namespace) -> None:
    """Print the moves of an alias, oldest first, and what is wrong with the journal."""
    from airflow_ml_provider.hooks.registry import RegistryHook

    registry = RegistryHook(args.conn_id).get_conn()
    fields = ("seq", "action", "version", "previous", "effective_from", "recorded_at", "reason", "dag_id", "run_id")
    entries = registry.journal(args.name, args.alias)
    _show([{field: getattr(entry, field) for field in fields} for entry in entries], args.output)
    if faults := registry.verify_journal(args.name, args.alias):
        raise SystemExit("\n".join(faults))


@_readable
def rollback(args: Namespace) -> None:
    """Give an alias back and say to whom."""
    from airflow_ml_provider.hooks.registry import RegistryHook
    from airflow_ml_provider.provenance import RunInfo

    user = getpass.getuser()
    now = datetime.now(timezone.utc)
    info = RunInfo(dag_id="airflow-ml-cli", task_id="rollback", run_id=f"{user}__{now.isoformat()}", trigger=user)
    hook = RegistryHook(args.conn_id)
    result = hook.rollback(args.name, info, alias=args.alias, reason=args.reason, to=args.to)
    if result.status != "ok" or result.model is None:
        raise SystemExit(f"not rolled back: {result.reason}")
    rows = [{"model": args.name, "alias": args.alias, "from": result.previous, "to": result.model.version}]
    _show(rows, "table")


@_readable
def reap(args: Namespace) -> None:
    """Print what stages in pods have left behind; then, if told to, delete it and say so on standard error."""
    from airflow_ml_provider.leftovers import reaper, states
    from airflow_ml_provider.leftovers.logic import row

    where = reaper.places(args.conn_id, args.namespace, args.exchange)
    judged = reaper.survey(where, states.database(), args.older_than, frozenset(args.name))
    now = datetime.now(timezone.utc)
    _show([row(one, now) for one in judged], args.output)
    failed = False
    for removal in reaper.remove(judged, where) if args.delete else ():
        sys.stderr.write(f"{removal.found.kind} {removal.found.name} ({removal.found.uid}): {removal.outcome}\n")
        failed |= removal.failed
    if failed:
        raise SystemExit("not everything that is left over could be deleted")

"""The commands of `airflow ml`. Every `airflow` command reads this module, so it imports next to nothing."""

from __future__ import annotations

from typing import Any


def get_ml_cli_commands() -> list[Any]:
    """Return the group `airflow ml` with its commands."""
    from airflow.cli.cli_config import ARG_OUTPUT, GroupCommand

    conn_id = _arg("--conn-id", help="connection to MLflow", default="mlflow_default")
    alias = _arg("--alias", help="the alias", default="champion")
    name = _arg("name", help="registered name of the model")
    pythons = _arg("--python", help="further Python whose libraries to look at", action="append", default=[])
    stages = _arg("--stage", help="look at this stage only; it must be complete", action="append", default=[])
    connections = _arg("--conn-id", help="connection that must answer", action="append", default=[])
    dataset = _arg("dataset", help="a path, NAMESPACE:NAME, or models:/NAME/VERSION")
    events = _arg("--events", help="file or folder with lineage events; else that of the connection")
    lineage_conn_id = _arg("--conn-id", help="connection of type lineage_events", default="lineage_default")
    down = _arg("--downstream", help="what came from it, instead of what it came from", action="store_true")
    reason = _arg("--reason", help="why; written to the journal", required=True)
    to = _arg("--to", help="version to go back to; by default the newest healthy earlier holder")
    cluster = _arg("--conn-id", help="connection to the cluster", default="kubernetes_default")
    namespace = _arg("--namespace", help="its namespace; by default that of the connection")
    exchange = _arg("--exchange", help="folder that workers and pods share; by default [ml] exchange")
    older = _arg("--older-than", help="leave alone what is younger", metavar="MINUTES", type=float, default=10.0)
    things = _arg("--name", help="this thing only, even if its task is unknown", action="append", default=[])
    delete = _arg("--delete", help="delete what is left over, after it was shown", action="store_true")
    commands = [
        _command("doctor", "Which stages can run here, and do the connections answer?",
                 pythons, stages, connections, ARG_OUTPUT),
        _command("lineage", "What a dataset came from, or what came from it", dataset, events, lineage_conn_id, down,
                 ARG_OUTPUT),
        _command("journal", "Who held an alias, since when, and why", name, alias, conn_id, ARG_OUTPUT),
        _command("rollback", "Give an alias back to the last healthy holder", name, reason, alias, to, conn_id),
        _command("reap", "What have stages in pods left behind?", cluster, namespace, exchange, older, things, delete,
                 ARG_OUTPUT),
    ]  # fmt: skip
    return [GroupCommand(name="ml", help="Machine learning: look into pipelines and models", subcommands=commands)]


def _arg(name: str, **settings: Any) -> Any:
    from airflow.cli.cli_config import Arg

    return Arg((name,), **settings)  # type: ignore[no-untyped-call]


def _command(name: str, text: str, *args: Any) -> Any:
    from airflow.cli.cli_config import ActionCommand, lazy_load_command

    return ActionCommand(
        name=name, help=text, func=lazy_load_command(f"airflow_ml_provider.cli.commands.{name}"), args=args
    )

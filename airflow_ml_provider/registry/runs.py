"""What the registry needs of MLflow's tracking side: a run to put files beside, and those files back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.registry import _server
from airflow_ml_provider.registry.packages import TAG

IDENTITY = TAG + "identity"
EXPERIMENT = "airflow_ml"
_EXISTS = "RESOURCE_ALREADY_EXISTS"


def of_untracked(client: Any, uri: str, name: str, digest: str, identity: str) -> str:
    """Return the run that holds the files of a model that was trained without tracking; makes it when there is none."""
    place = _experiment(client, uri)
    query = f"tags.`{IDENTITY}` = '{identity}' and tags.`{TAG}digest` = '{digest}'"
    if found := client.search_runs([place], query, max_results=1):
        return str(found[0].info.run_id)
    run = client.create_run(place, tags={IDENTITY: identity, f"{TAG}digest": digest}, run_name=name)
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def artifacts(client: Any, uri: str, run_id: str, path: str, into: Path) -> Path:
    """Return a local copy of a run's file or folder; the path names nothing when there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return Path(client.download_artifacts(run_id, path, str(into)))
    except FileNotFoundError:
        return into / path
    except MlflowException as error:
        if isinstance(_server.translated(error, uri), DataError):
            return into / path
        raise


def make_model(client: Any, name: str) -> None:
    """Make a registered model, unless there is one."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={f"{TAG}managed": "true"})
    except MlflowException as error:
        if error.error_code != _EXISTS:
            raise
        client.set_registered_model_tag(name, f"{TAG}managed", "true")


def pages(page: Any) -> list[Any]:
    """Return all that `page(token)` gives, page by page."""
    found, token = [], None
    while True:
        part = page(token)
        found.extend(part)
        token = part.token
        if not token:
            return found


def _experiment(client: Any, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(EXPERIMENT):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(EXPERIMENT, _artifact_root(uri)))
    except MlflowException as error:
        if error.error_code != _EXISTS:  # another task was faster
            raise
        return str(client.get_experiment_by_name(EXPERIMENT).experiment_id)


def _artifact_root(uri: str) -> Optional[str]:
    """Return where files go without a server, which would know; MLflow's own default is the current folder."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri[len("sqlite:///") :]).resolve().parent / "mlartifacts").as_uri()

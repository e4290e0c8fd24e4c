"""Buttons on a task in the Airflow UI that lead to what the task made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator


class ResultLink(BaseOperatorLink):
    """A page that the task's result names; files are shown by this package's page in the Airflow UI.

    Airflow evaluates it on the worker when the task ends and keeps the address.
    """

    key: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        result = getattr(operator, "result", None)
        address = result.links.get(self.key, "") if result else ""
        return served(address) if address.startswith("/") else address


class MlflowLink(ResultLink):
    """The MLflow run."""

    name = "MLflow"  # type: ignore[assignment]
    key = "mlflow"


class DataDocsLink(ResultLink):
    """Great Expectations' Data Docs of the batch."""

    name = "Data Docs"  # type: ignore[assignment]
    key = "data_docs"


class EvidenceLink(ResultLink):
    """The evidence on which a gate decided."""

    name = "Evidence"  # type: ignore[assignment]
    key = "evidence"


class ProfileLink(ResultLink):
    """The Chrome trace of a training's rank 0."""

    name = "Profile"  # type: ignore[assignment]
    key = "profile"


class ReportLink(ResultLink):
    """The page of an evaluation, of a drift report or of a load test."""

    name = "Report"  # type: ignore[assignment]
    key = "report"


def served(path: str) -> str:
    """Return the address under which the Airflow web server shows a file of the store."""
    from airflow.providers.common.compat.sdk import conf

    base = conf.get("api", "base_url", fallback="") or ""
    return f"{base.rstrip('/')}/ml/files{quote(path)}"

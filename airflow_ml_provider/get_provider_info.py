"""What Airflow discovers of this package: plain data, nothing is imported for it."""

from __future__ import annotations

from typing import Any

_PACKAGE = "airflow_ml_provider"
_NAME = "Machine Learning"
_OPERATORS = (
    "ingest", "validate", "features", "train", "optimise", "evaluate", "register", "gate", "promote", "score",
    "monitor", "deploy", "kserve", "load_test", "edge", "reap",
)  # fmt: skip
_SENSORS = ("partition", "labels", "freshness", "alias", "drift", "serving")
_LINKS = ("MlflowLink", "DataDocsLink", "EvidenceLink", "ProfileLink", "ReportLink")
_ALL_FIELDS = ("port", "login", "password", "schema", "extra")


def get_provider_info() -> dict[str, Any]:
    """Return the package's entry in Airflow's list of providers."""
    return {
        "package-name": "airflow-ml-provider",
        "name": _NAME,
        "description": "Every stage of a model's life on Apache Airflow, with gates that carry their evidence.",
        "integrations": [
            {"integration-name": _NAME, "tags": ["software"]},
            {"integration-name": "MLflow", "external-doc-url": "https://mlflow.org/", "tags": ["software"]},
            {"integration-name": "Feast", "external-doc-url": "https://docs.feast.dev/", "tags": ["software"]},
            {
                "integration-name": "KServe",
                "external-doc-url": "https://kserve.github.io/website/",
                "tags": ["software"],
            },
            {"integration-name": "OpenLineage", "external-doc-url": "https://openlineage.io/", "tags": ["protocol"]},
            {
                "integration-name": "Amazon SageMaker",
                "external-doc-url": "https://aws.amazon.com/sagemaker/",
                "tags": ["service"],
            },
            {
                "integration-name": "Vertex AI",
                "external-doc-url": "https://cloud.google.com/vertex-ai",
                "tags": ["service"],
            },
            {"integration-name": "Seldon Core", "external-doc-url": "https://docs.seldon.ai/", "tags": ["software"]},
            {"integration-name": "Prometheus", "external-doc-url": "https://prometheus.io/", "tags": ["software"]},
        ],
        "operators": [_modules(_NAME, "operators", *_OPERATORS)],
        "sensors": [_modules(_NAME, "sensors", *_SENSORS)],
        "hooks": [
            _modules("MLflow", "hooks", "mlflow", "registry"),
            _modules("Feast", "hooks", "feast"),
            _modules("KServe", "hooks", "kserve", "gitops"),
            _modules("OpenLineage", "hooks", "lineage"),
            _modules("Amazon SageMaker", "hooks", "sagemaker"),
            _modules("Seldon Core", "hooks", "seldon"),
            _modules("Vertex AI", "hooks", "vertex"),
            _modules("Prometheus", "hooks", "prometheus"),
        ],
        "triggers": [_modules(_NAME, "triggers", "check", "jobs", "kserve", "pods", "previous", "serving")],
        "connection-types": _connection_types(),
        "task-decorators": [
            {"name": "train", "class-name": f"{_PACKAGE}.decorators.train.train_task"},
            {"name": "ingest", "class-name": f"{_PACKAGE}.decorators.ingest.ingest_task"},
            {"name": "deploy", "class-name": f"{_PACKAGE}.decorators.deploy.deploy_task"},
        ],
        "extra-links": [f"{_PACKAGE}.links.{name}" for name in _LINKS],
        "cli": [f"{_PACKAGE}.cli.definition.get_ml_cli_commands"],
        "config": _configuration(),
    }


def _modules(integration: str, kind: str, *names: str) -> dict[str, Any]:
    return {"integration-name": integration, "python-modules": [f"{_PACKAGE}.{kind}.{name}" for name in names]}


def _connection_types() -> list[dict[str, Any]]:
    return [
        {
            "connection-type": "mlflow",
            "hook-class-name": f"{_PACKAGE}.hooks.mlflow.MlflowHook",
            "hook-name": "MLflow",
            "ui-field-behaviour": {
                "hidden-fields": ["schema", "extra"],
                "relabeling": {"host": "Tracking URI"},
                "placeholders": {
                    "host": "https://mlflow.example, or sqlite:////data/mlflow.db",
                    "port": "if it is not part of the tracking URI",
                },
            },
            "conn-fields": {
                "token": {
                    "label": "Token",
                    "description": "Instead of login and password.",
                    "schema": {"type": ["string", "null"], "format": "password"},
                },
                "ui_url": {
                    "label": "Address for humans",
                    "description": "Where MLflow's pages are, if not at the tracking URI.",
                    "schema": {"type": ["string", "null"]},
                },
            },
        },
        {
            "connection-type": "feast",
            "hook-class-name": f"{_PACKAGE}.hooks.feast.FeastHook",
            "hook-name": "Feast",
            "ui-field-behaviour": {"hidden-fields": ["host", *_ALL_FIELDS]},
            "conn-fields": {
                "repo": {
                    "label": "Repository",
                    "description": "Folder with feature_store.yaml.",
                    "schema": {"type": ["string", "null"]},
                },
                "store": {
                    "label": "Store",
                    "description": "Root folder of the feature tables: what ${ML_FEATURE_STORE} stands for.",
                    "schema": {"type": ["string", "null"]},
                },
            },
        },
        {
            "connection-type": "lineage_events",
            "hook-class-name": f"{_PACKAGE}.hooks.lineage.LineageHook",
            "hook-name": "OpenLineage events (file)",
            "ui-field-behaviour": {
                "hidden-fields": list(_ALL_FIELDS),
                "relabeling": {"host": "Path"},
                "placeholders": {"host": "/data/lineage/events.jsonl, or a folder"},
            },
        },
    ]


def _configuration() -> dict[str, Any]:
    return {
        "ml": {
            "description": "Options of the provider airflow-ml-provider.",
            "options": {
                "documents": {
                    "description": (
                        "Folders, separated by commas, whose reports (pages, JSON, pictures) the web server may show "
                        "to users who are logged in. Nothing else is ever served; empty serves nothing."
                    ),
                    "version_added": "0.1.0",
                    "type": "string",
                    "example": "/data/ml/store",
                    "default": "",
                },
                "exchange": {
                    "description": "Folder that workers and pods see at the same path, for stages in pods.",
                    "version_added": "0.1.0",
                    "type": "string",
                    "example": "/data/ml/exchange",
                    "default": "",
                },
                "mlflow_conn_id": {
                    "description": "Connection to the MLflow whose models the page of this provider shows.",
                    "version_added": "0.1.0",
                    "type": "string",
                    "example": None,
                    "default": "mlflow_default",
                },
            },
        }
    }

"""A model package as a server uses it: verified, warmed up, scoring several requests in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_ml_provider import models, tables
from airflow_ml_provider.models import InputType
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.serving.oip import Request
from airflow_ml_provider.serving.spec import Version


def load(name: str, served: Version) -> models.Scorer:
    """Return the model of a package; its first calls, which take memory and plan the graph, are behind it.

    Raises:
        DataError: there is no complete package.
        IntegrityError: it is not the one that was asked for.
    """
    folder = tables.local_path(served.package)
    models.verify(folder, ModelRef(name=name, uri=served.package, digest=served.digest))
    scorer = models.Scorer(folder, threads=served.threads)
    for rows in sorted({1, served.max_batch}):
        scorer.run(_blank(scorer.manifest.inputs, rows))
    return scorer


def score(scorer: models.Scorer, asked: Sequence[Request]) -> list[Any]:
    """Return the scores of each request, all computed in one call."""
    import numpy as np

    if len(asked) == 1:
        return [scorer.run(asked[0].feeds)]
    found = scorer.run({name: np.concatenate([one.feeds[name] for one in asked]) for name in asked[0].feeds})
    return np.split(found, np.cumsum([one.rows for one in asked])[:-1])


def _blank(inputs: Mapping[str, InputType], rows: int) -> dict[str, Any]:
    import numpy as np

    blanks = {"float": np.zeros((rows, 1), np.float32), "string": np.full((rows, 1), "", object)}
    return {name: blanks[kind] for name, kind in inputs.items()}

"""`@task.ingest`: a function fetches the files, the ingest stage brings them into the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import DecoratedOperator, task_decorator_factory
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION

from airflow_ml_provider.decorators._function import called
from airflow_ml_provider.exceptions import invalid
from airflow_ml_provider.operators.ingest import IngestOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator

    from airflow_ml_provider.intervals import Interval
    from airflow_ml_provider.stages.ingest.spec import IngestSpec


class IngestDecoratedOperator(DecoratedOperator, IngestOperator):
    """Call a function in the task's process and ingest the files that it returns the path or glob of.

    What the function returns is taken as it is, never rendered as a template, since it may come from outside;
    `{partition}`, `{start}` and `{end}` are replaced as in `IngestOperator`.

    Parameters:
        python_callable: the function; it may ask for any key of the task's context by name.
        op_args: its positional arguments.
        op_kwargs: its keyword arguments.
    """

    custom_operator_name = "@task.ingest"
    overwrite_rtif_after_execution = True
    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *IngestOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = dict(DecoratedOperator.template_fields_renderers)

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "source" in kwargs:
            raise invalid("source", kwargs["source"], "left out", "the decorated function returns it")
        if kwargs.get("wait_s"):
            raise invalid("wait_s", kwargs["wait_s"], "left out", "the decorated function is what brings the files")
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            source=SET_DURING_EXECUTION,
            **kwargs,
        )

    def build_spec(self, interval: Interval, context: Context) -> IngestSpec:
        found, what = called(self, context)
        if not isinstance(found, (str, os.PathLike)) or not os.fspath(found):
            raise invalid(what, found, "the path or glob of the landing files")
        self.source = os.fspath(found)
        return super().build_spec(interval, context)


def ingest_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task that calls the function, say to download from an API, and ingests the files that it returns.

    Use it as `@task.ingest(name=…, target=…, columns=…)`, or import it from here where a type checker shall see its
    name; the arguments are those of `IngestOperator` without `source`.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=IngestDecoratedOperator, **kwargs
    )

"""`@task.deploy`: a function says which model, the deploy stage serves it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.providers.common.compat.sdk import DecoratedOperator, task_decorator_factory
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION

from airflow_ml_provider import codec
from airflow_ml_provider.decorators._function import called
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.operators.deploy import DeployOperator
from airflow_ml_provider.refs import ModelRef, as_ref

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator

    from airflow_ml_provider.stages import Result

RETURNED = ("model", "server", "rows")


class DeployDecoratedOperator(DecoratedOperator, DeployOperator):
    """Call a function in the task's process and deploy the model that it returns.

    It returns a model as `DeployOperator` takes it, or a mapping with `model` and, where they shall differ from the
    decorator's, `server` and `rows`. What it returns is taken as it is, never rendered as a template. While the service
    gets ready the task is deferred; then the function is not called again, but a retry calls it.

    Parameters:
        python_callable: the function; it may ask for any key of the task's context by name.
        op_args: its positional arguments.
        op_kwargs: its keyword arguments.
    """

    custom_operator_name = "@task.deploy"
    overwrite_rtif_after_execution = True
    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *DeployOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = dict(DecoratedOperator.template_fields_renderers)

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "model" in kwargs:
            raise invalid("model", kwargs["model"], "left out", "the decorated function returns it")
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            model=SET_DURING_EXECUTION,
            **kwargs,
        )

    def begin(self, context: Context) -> Result:
        found, what = called(self, context)
        try:
            self._take(found)
        except SpecError as error:
            raise SpecError(f"{what}: {error}") from error
        return super().begin(context)

    def proceed(self, context: Context, state: Mapping[str, Any] | None) -> Result:
        self._take(state)  # another process has called the function
        return super().proceed(context, state)

    def _wait_for(self, wait_s: float | None = None, kept: Mapping[str, Any] | None = None, **rollout: Any) -> NoReturn:
        super()._wait_for(wait_s, codec.encode({name: getattr(self, name) for name in RETURNED}), **rollout)

    def _take(self, found: Any) -> None:
        """Deploy what the function has returned.

        Raises:
            SpecError: it is no model.
        """
        given = found if isinstance(found, Mapping) and set(found) <= set(RETURNED) else {"model": found}
        for name, value in given.items():
            setattr(self, name, value)
        self.model = as_ref(ModelRef, given.get("model"), "model")


def deploy_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task that calls the function, say to choose among models, and serves the one that it returns.

    Use it as `@task.deploy(service=…, place=…)`, or import it from here where a type checker shall see its name; the
    arguments are those of `DeployOperator` without `model`.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=DeployDecoratedOperator, **kwargs
    )

"""`@task.train`: a training function of one's own, run, packaged and tracked as the built-in engines are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.operators.train import TrainOperator
from airflow_ml_provider.refs import DatasetRef, as_ref
from airflow_ml_provider.stages.train import function

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval
    from airflow_ml_provider.stages.train.spec import TrainSpec

# Parameters of these names also set the argument of the operator, so that calls and `.expand()` can give them.
SHARED = ("dataset", "segment", "engine_params")


class TrainDecoratedOperator(DecoratedOperator, TrainOperator):  # type: ignore[misc]
    """Train with the decorated function, in process, in another Python, or by torchrun with `launch`.

    Parameters:
        python_callable: the function, `fit(run, **kwargs)`; see `train_task`.
        op_args: its further positional arguments.
        op_kwargs: its keyword arguments.
        dataset: training rows; none when the function has a parameter `dataset` that the call gives.
    """

    template_fields: Sequence[str] = (*TrainOperator.template_fields, "op_args", "op_kwargs")
    template_fields_renderers: ClassVar[dict[str, str]] = {"op_args": "py", "op_kwargs": "py"}
    custom_operator_name = "@task.train"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        dataset: DatasetRef | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "engine" in kwargs:
            raise invalid("engine", kwargs["engine"], "left out of @task.train", "the function is the engine")
        function.check(python_callable)
        super().__init__(
            python_callable=python_callable,
            op_args=(None, *(op_args or ())),  # stands for `run`, which only the training itself can give
            op_kwargs=op_kwargs,
            engine="function",
            dataset=dataset,
            **kwargs,
        )

    @property
    def title(self) -> str:
        return " ".join([self.python_callable.__name__, *map(str, self.segment.values())])

    def build_spec(self, interval: Interval, context: Context) -> TrainSpec:
        arguments = self._arguments()
        for name in SHARED:
            if name in arguments:
                setattr(self, name, arguments[name])
        if self.dataset is None:
            raise SpecError("dataset is missing: give it to @task.train, or to the call as an argument of the function")
        travelling = function.extract(self.python_callable, arguments)
        return self._spec(as_ref(DatasetRef, self.dataset, "dataset"), travelling)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments of the call by name, without `run`."""
        signature = inspect.signature(self.python_callable)
        bound = dict(signature.bind(*self.op_args, **self.op_kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL and bound.get(parameter.name):
                raise SpecError(f"arguments of {self.python_callable.__name__!r} are given by name: *{parameter.name}")
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                bound.update(bound.pop(parameter.name, None) or {})
        bound.pop("run")
        return bound


def train_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool | None = None, **kwargs: Any
) -> TaskDecorator:
    """Return the decorator `@task.train`, which makes a training task out of a function `fit(run, **kwargs)`.

    The function gets `run` (see `airflow_ml_provider.stages.train.run.Run`: rows, seed, rank, measurements,
    snapshots) and gives back a LightGBM booster, a scikit-learn classifier, a torch module that maps the matrix to
    logits, or an ONNX model. It travels as source to wherever the stage runs: imports and constants belong inside of
    it, and its other arguments are JSON. Parameters called `dataset`, `segment` or `engine_params` also set the
    argument of the same name below, so that `.expand(segment=[…])` works.

    Parameters:
        python_callable: the function, when the decorator is used without parentheses.
        multiple_outputs: as in `@task`.
        kwargs: those of `TrainOperator`, without `engine`.

    Raises:
        SpecError: the function's first argument is not `run`, or it uses names from outside of it.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=TrainDecoratedOperator,
        **kwargs,
    )

"""What the decorators have in common that call a function of the user's in the task's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import context_merge, determine_kwargs

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import DecoratedOperator
    from airflow.sdk import Context


def called(task: DecoratedOperator, context: Context) -> tuple[Any, str]:
    """Return what the function of a decorated task returns, and what to call that in a message."""
    context_merge(context, task.op_kwargs)
    kwargs = determine_kwargs(task.python_callable, task.op_args, context)
    found = task.python_callable(*task.op_args, **kwargs)
    return found, f"what {getattr(task.python_callable, '__name__', 'the function')} returns"

"""Whether a task that fails is tried again. Nothing else reads the number of the try: it is no part of any identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context


def has_further_try(context: Context | Mapping[str, Any]) -> bool:
    """Return whether this is not the task's last try."""
    ti = context["ti"]
    further: bool = ti.try_number <= ti.max_tries
    return further

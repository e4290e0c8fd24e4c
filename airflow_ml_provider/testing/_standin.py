"""What the stand-ins for controllers have in common: conditions of a status, and others who change the same objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kubernetes.client import ApiException

RACES = (404, 409)  # somebody was quicker


def condition(status: dict[str, Any], kind: str, value: str, reason: str = "", message: str = "") -> None:
    """Set one condition of a status, and leave the others; what is empty is left out."""
    others = [one for one in status.get("conditions", ()) if one["type"] != kind]
    told = {"type": kind, "status": value, "reason": reason, "message": message}
    status["conditions"] = sorted([*others, {k: v for k, v in told.items() if v}], key=lambda one: str(one["type"]))


def holds(status: Mapping[str, Any], kind: str) -> bool:
    """Return whether a condition is `True`."""
    return any(one["type"] == kind and one["status"] == "True" for one in status.get("conditions", ()))


@contextmanager
def tolerant() -> Iterator[None]:
    """Let somebody else be quicker."""
    try:
        yield
    except ApiException as error:
        if error.status not in RACES:
            raise

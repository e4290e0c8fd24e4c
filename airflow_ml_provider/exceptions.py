"""Errors of the package. Each one says whether trying again can help.

`terminal` errors need a human (a bad value, bad data, a refused decision); `retryable` ones may pass on their own
(a killed process, a server that is away). The Airflow side turns the first into `AirflowFailException` and lets the
second run into the task's own retries. Nothing here knows Airflow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

Verdict = Literal["terminal", "retryable"]


class MlError(Exception):
    """Base of every error that this package raises on purpose."""

    verdict: ClassVar[Verdict] = "terminal"


class SpecError(MlError, ValueError):
    """A parameter, configuration file or environment is wrong; nothing was done."""


class DataError(MlError):
    """The data cannot be used for what was asked of it."""


class IntegrityError(MlError):
    """A digest does not match what it names: something was changed behind the pipeline's back."""


class MissingLibrary(MlError, ImportError):
    """The Python that runs the stage lacks one of its libraries."""


class Refused(MlError):
    """A decision said no. The full report was published before this was raised."""


class StageFailed(MlError):
    """A stage raised something unexpected in another Python; the message carries its traceback."""

    verdict: ClassVar[Verdict] = "retryable"


class StageCrashed(MlError):
    """The process of a stage ended without a result (killed, out of memory, lost node)."""

    verdict: ClassVar[Verdict] = "retryable"


class Unavailable(MlError):
    """A system outside (tracking server, store) did not answer."""

    verdict: ClassVar[Verdict] = "retryable"


class Conflict(MlError):
    """Somebody else changed the same thing at the same time; trying again sees the new state."""

    verdict: ClassVar[Verdict] = "retryable"


BY_NAME: dict[str, type[MlError]] = {
    cls.__name__: cls
    for cls in (
        MlError,
        SpecError,
        DataError,
        IntegrityError,
        MissingLibrary,
        Refused,
        StageFailed,
        StageCrashed,
        Unavailable,
        Conflict,
    )
}


def invalid(what: str, value: object, allowed: object, hint: str = "") -> SpecError:
    """Return the error for a bad value in the one form that all messages share.

    >>> str(invalid("min_auc", 91.2, "a number in [0, 1]", "give a fraction, not percent"))
    'min_auc must be a number in [0, 1], got 91.2; give a fraction, not percent'
    """
    return SpecError(f"{what} must be {allowed}, got {value!r}" + (f"; {hint}" if hint else ""))


def unknown_name(what: str, name: str, known: Iterable[str]) -> SpecError:
    """Return the error for a name that is not one of `known`, with the nearest one as the hint.

    >>> str(unknown_name("key", "tresholds", ["thresholds", "slices"]))
    "unknown key 'tresholds'; did you mean 'thresholds'? Known: slices, thresholds"
    """
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return SpecError(f"unknown {what} {name!r}; {hint}Known: {', '.join(names) or 'none'}")

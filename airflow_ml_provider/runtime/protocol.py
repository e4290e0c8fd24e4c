"""The two small files between a caller and a stage: the call and the outcome, and what the exit code says."""

from __future__ import annotations

import hashlib
import json
import traceback
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import BY_NAME, MissingLibrary, MlError, SpecError, StageFailed
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.stages import Result, Spec, spec_class

# sysexits.h: a caller that sees only the exit code still learns the verdict.
EXIT_OK, EXIT_TERMINAL, EXIT_MISSING, EXIT_RETRYABLE = 0, 65, 69, 75


def call_text(spec: Spec, info: RunInfo) -> str:
    """Return what a stage shall do, as it goes into a file. Secrets are not part of it."""
    # Not the canonical form: the order of columns is the user's.
    return json.dumps(codec.encode({"stage": spec.stage, "spec": spec, "info": info}), allow_nan=False)


def write_call(path: Path, spec: Spec, info: RunInfo) -> None:
    """Write what a stage shall do."""
    path.write_text(call_text(spec, info), encoding="utf-8")


def call_digest(path: Path) -> str:
    """Return the digest of a call file; an outcome says which call it answers."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def read_call(path: Path, stage: Optional[str] = None) -> tuple[Spec, RunInfo]:
    """Return spec and run of a call, which must be for `stage` if one is given.

    Raises:
        SpecError: the file is not a call, or one for another stage.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"call file {path} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("stage") != (stage or data.get("stage")):
        raise SpecError(f"call file {path} is not for stage {stage!r}")
    spec: Spec = codec.decode(spec_class(data["stage"]), data["spec"], "spec")
    return spec, codec.decode(RunInfo, data["info"], "info")


def outcome_of_result(result: Result) -> dict[str, Any]:
    """Return the outcome of a stage that worked (a refusal is a result, too)."""
    return {"result": codec.encode(result)}


def outcome_of_error(error: BaseException) -> dict[str, Any]:
    """Return the outcome of a stage that raised."""
    # A subclass that only the stage knows counts as the nearest class that both sides know.
    names = [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, MlError)]
    kind = next((name for name in names if name in BY_NAME), StageFailed.__name__)
    # An error of that name has the traceback already, of the process where it happened.
    told = isinstance(error, StageFailed)
    trace = "" if told else "".join(traceback.format_exception(type(error), error, error.__traceback__))
    message = str(error) if isinstance(error, MlError) else f"{type(error).__name__}: {error}"
    return {"error": {"type": kind, "message": message, "traceback": trace}}


def exit_code(outcome: dict[str, Any]) -> int:
    """Return the exit code that goes with an outcome."""
    if "error" not in outcome:
        return EXIT_OK
    kind = BY_NAME.get(outcome["error"]["type"], StageFailed)
    if kind is MissingLibrary:
        return EXIT_MISSING
    return EXIT_TERMINAL if kind.verdict == "terminal" else EXIT_RETRYABLE


def open_outcome(outcome: dict[str, Any], spec: Spec) -> Result:
    """Return the result in an outcome, or raise the stage's error."""
    if "error" in outcome:
        body = outcome["error"]
        kind = BY_NAME.get(body["type"], StageFailed)
        trace = body["traceback"] if kind is StageFailed else ""
        raise kind(f"{body['message']}\n{trace}" if trace else body["message"])
    return codec.decode(spec.result, outcome["result"], "result")

"""A user's training function: taken out of its file as text, and called wherever the stage runs."""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import linecache
import textwrap
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any, Callable

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.train.spec import Function

if TYPE_CHECKING:
    from airflow_ml_provider.stages.train.run import Run


def extract(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Function:
    """Return a function as it travels: its source without decorators, and its arguments.

    Raises:
        SpecError: the source cannot be found, or an argument is not JSON.
    """
    for name, value in kwargs.items():
        check_json(name, value)
    try:
        text = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(text)
    except (OSError, SyntaxError) as error:
        raise SpecError(
            f"the source of {function.__name__!r} cannot be read: {error}; define it with def in a file"
        ) from error
    node = tree.body[0]
    if not isinstance(node, ast.FunctionDef):
        raise invalid("training function", function.__name__, "a function defined with def")
    lines = text.splitlines()[node.lineno - 1 : node.end_lineno]  # a decorator stands above `def`
    return Function(node.name, textwrap.dedent("\n".join(lines)) + "\n", dict(kwargs))


def check_json(name: str, value: Any) -> None:
    """Raise `SpecError` unless `value` would arrive as it is at the other side of a process border."""
    try:
        arrives = codec.encode(value) == value
    except SpecError:
        arrives = False
    if not arrives:
        raise invalid(
            f"argument {name!r}",
            value,
            "of JSON types (numbers, texts, booleans, none, lists and dicts of them)",
            "pass the address of anything bigger",
        )


def check(function: Callable[..., Any]) -> None:
    """Raise `SpecError` when a function cannot travel: its first argument is not `run`, or it needs its file."""
    parameters = list(inspect.signature(function).parameters)
    if parameters[:1] != ["run"]:
        raise SpecError(
            f"the first argument of training function {function.__name__!r} must be `run`, it takes "
            f"({', '.join(parameters)})"
        )
    code = inspect.unwrap(function).__code__
    outside = {*code.co_freevars, *(n for n in _globals_of(code) if not hasattr(builtins, n))}
    if outside:
        raise SpecError(
            f"training function {function.__name__!r} uses {', '.join(sorted(outside))} from outside of it; it travels "
            f"alone: import, define or pass these inside of it or as arguments"
        )


def _globals_of(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def load(function: Function) -> Callable[[Run], Any]:
    """Return the training that a travelled function does.

    Raises:
        SpecError: the source is not what `extract` makes.
    """
    filename = f"<training function {function.name}>"
    namespace: dict[str, Any] = {"__name__": "airflow_ml_training_function"}
    try:
        # By this module's own future import, annotations are not evaluated: what they name did not travel.
        code = compile(function.source, filename, "exec")
        exec(code, namespace)  # noqa: S102 - the user's own code, as with any task of theirs
        found = namespace[function.name]
    except (SyntaxError, NameError, KeyError) as error:
        raise SpecError(f"the training function {function.name!r} cannot be defined: {error!r}") from error
    linecache.cache[filename] = (len(function.source), None, function.source.splitlines(True), filename)

    def fit(run: Run) -> Any:
        try:
            return found(run, **function.kwargs)
        except NameError as error:
            raise SpecError(
                f"training function {function.name!r}: {error}; it travels alone, so imports and constants belong "
                f"inside of it"
            ) from error

    return fit

from __future__ import annotations

import functools
from datetime import datetime

import pytest

from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.stages.train import function
from airflow_ml_provider.stages.train.spec import Function

OUTSIDE = 3


def plain(run, depth: int = 2):
    """Docstrings and comments travel."""
    import math

    # a comment
    return [math.floor(depth + len(item)) for item in run]


def decorator(f):
    @functools.wraps(f)
    def wrapper(*args):
        return f(*args)

    return wrapper


@decorator
@decorator
def decorated(run):
    return len(run)


def uses_global(run):
    return OUTSIDE


def uses_global_inside(run):
    def inner():
        return [OUTSIDE for _ in run]

    return inner()


class Holder:
    def nested(self):
        captured = 3

        def fit(run):
            return captured

        def free(run):
            return sorted(run, key=lambda item: -item)

        return fit, free


def wrong_first(rows):
    return rows


def annotated(run: Unknown) -> Unknown:  # noqa: F821
    return run


class TestExtract:
    def test_source_travels_and_runs(self):
        found = function.extract(plain, {"depth": 5})
        assert found.name == "plain"
        assert found.source.startswith("def plain(run, depth: int = 2):\n")
        assert "# a comment" in found.source
        assert function.load(found)(["ab"]) == [7]

    def test_decorators_stay_behind(self):
        assert function.extract(decorated, {}).source == "def decorated(run):\n    return len(run)\n"

    def test_indented_function(self):
        _, free = Holder().nested()
        assert function.load(function.extract(free, {}))([1, 3, 2]) == [3, 2, 1]

    def test_annotations_are_not_evaluated(self):
        assert function.load(function.extract(annotated, {}))("x") == "x"

    def test_no_source(self):
        namespace: dict = {}
        exec("def fit(run): return 1", namespace)
        with pytest.raises(SpecError, match="the source of 'fit' cannot be read"):
            function.extract(namespace["fit"], {})

    def test_a_lambda_is_no_function_with_a_name(self):
        fit = lambda run: 1  # noqa: E731
        with pytest.raises(SpecError, match="training function must be a function defined with def"):
            function.extract(fit, {})

    @pytest.mark.parametrize(
        "value", [(1, 2), {1: 2}, {"a": {3}}, float("nan"), datetime(2013, 1, 1), object(), b"x", [1, (2,)]]
    )
    def test_arguments_are_json(self, value):
        with pytest.raises(SpecError, match="argument 'x' must be of JSON types"):
            function.extract(plain, {"x": value})

    def test_json_arguments(self):
        kwargs = {"a": None, "b": [1, 2.5, "x", {"y": True}], "c": {}}
        assert function.extract(plain, kwargs).kwargs == kwargs


class TestCheck:
    @pytest.mark.parametrize("good", [plain, decorated, annotated, Holder().nested()[1]])
    def test_functions_that_can_travel(self, good):
        function.check(good)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (uses_global, "uses OUTSIDE from outside of it; it travels alone"),
            (uses_global_inside, "uses OUTSIDE from outside of it"),
            (Holder().nested()[0], "uses captured from outside of it"),
            (wrong_first, r"must be `run`, it takes \(rows\)"),
        ],
    )
    def test_functions_that_cannot(self, bad, message):
        with pytest.raises(SpecError, match=message):
            function.check(bad)


class TestLoad:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("def other(run): ...", "'fit' cannot be defined: KeyError"),
            ("def fit(run:", "'fit' cannot be defined: SyntaxError"),
            ("def fit(run, x=missing): ...", "'fit' cannot be defined: NameError"),
        ],
    )
    def test_bad_source(self, source, message):
        with pytest.raises(SpecError, match=message):
            function.load(Function("fit", source))

    def test_tracebacks_show_the_line(self):
        import traceback

        fit = function.load(Function("fit", "def fit(run):\n    return run['no such key']\n"))
        with pytest.raises(KeyError) as caught:
            fit({})
        text = "".join(traceback.format_exception(caught.value))
        assert "return run['no such key']" in text

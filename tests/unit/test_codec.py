# ruff: noqa: UP007, UP045 - specs write their types so that Python 3.9 can read them
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import DatasetRef, ModelRef, Ref, ReportRef, as_ref


@dataclass(frozen=True)
class Inner:
    """A part.

    Attributes:
        share: a share,
            in [0, 1].
        mode: how.
    """

    share: float = 0.5
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise invalid("share", self.share, "in [0, 1]")


@dataclass(frozen=True)
class Outer:
    """The whole."""

    kind: ClassVar[str] = "outer"
    name: str
    count: int = 0
    when: Optional[datetime] = None
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    pair: Optional[tuple[int, str]] = None
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    either: Union[str, Inner, None] = None
    anything: Any = None


WHOLE = Outer(
    name="x",
    count=3,
    when=datetime(2013, 1, 5, tzinfo=timezone.utc),
    inner=Inner(0.25, "b"),
    many=(Inner(), Inner(1.0)),
    pair=(1, "one"),
    by_name={"a": Inner(0.0)},
    either=Inner(),
    anything={"free": [1, None]},
)


class TestRoundTrip:
    def test_everything(self):
        assert codec.decode(Outer, json.loads(json.dumps(codec.encode(WHOLE)))) == WHOLE

    def test_defaults_may_be_left_out(self):
        assert codec.decode(Outer, {"name": "x"}) == Outer("x")

    def test_whole_numbers_are_floats_where_floats_are_wanted(self):
        share = codec.decode(Inner, {"share": 1}).share
        assert (share, type(share)) == (1.0, float)

    @pytest.mark.parametrize(
        "ref",
        [
            DatasetRef("d", "/d", "sha256:1", interval=Interval.from_key("2013-01-05"), rows=2, columns={"b": "int64"}),
            ModelRef(
                "m", "/m", "sha256:2", trained_until=datetime(2013, 1, 5, tzinfo=timezone.utc), metrics={"auc": 1}
            ),
            ReportRef("r", "/r", "sha256:3", passed=True, summary={"n": 1}),
        ],
    )
    def test_refs_tell_their_kind(self, ref):
        data = json.loads(json.dumps(codec.encode(ref)))
        assert data["kind"] == ref.kind
        assert codec.decode(Ref, data, "ref") == ref
        assert as_ref(type(ref), data, "ref") == ref

    def test_zones_of_times_survive(self):
        east = datetime(2013, 1, 5, tzinfo=timezone(timedelta(hours=-5)))
        assert codec.decode(datetime, codec.encode(east)) == east
        assert codec.decode(datetime, "2013-01-05T00:00:00Z") == datetime(2013, 1, 5, tzinfo=timezone.utc)

    def test_order_of_mappings_is_the_users(self):
        data = codec.encode({"b": 1, "a": 2})
        assert list(data) == ["b", "a"]
        assert list(codec.decode(Mapping[str, int], data, "m")) == ["b", "a"]


class TestErrors:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({}, "Outer lacks name"),
            ({"name": 7}, "name must be of type str, got 7"),
            ({"name": "x", "count": "7"}, "count must be of type int, got '7'"),
            ({"name": "x", "count": True}, "count must be of type int, got True"),
            ({"name": "x", "count": 1.0}, r"count must be of type int, got 1\.0"),
            ({"name": "x", "cuont": 1}, "unknown key 'cuont'; did you mean 'count'"),
            ({"name": "x", "inner": {"shrae": 1}}, r"unknown key in inner 'shrae'; did you mean 'share'"),
            ({"name": "x", "inner": {"mode": "c"}}, r"inner\.mode must be one of 'a', 'b', got 'c'"),
            ({"name": "x", "inner": {"share": 2}}, r"^inner: share must be in \[0, 1\], got 2\.0"),
            ({"name": "x", "inner": []}, r"inner must be of type Inner, got \[\]"),
            ({"name": "x", "many": [{}, {"share": "no"}]}, r"many\[1\]\.share must be of type float, got 'no'"),
            ({"name": "x", "many": "text"}, "many must be of type list, got 'text'"),
            ({"name": "x", "pair": [1]}, r"pair must be a list of 2, got \[1\]"),
            ({"name": "x", "by_name": {"a": {"share": None}}}, r"by_name\.a\.share must be of type float, got None"),
            ({"name": "x", "by_name": []}, r"by_name must be of type mapping, got \[\]"),
            ({"name": "x", "either": 7}, "either must be of type str or Inner, got 7"),
            ({"name": "x", "either": {"shar": 1}}, "unknown key in either 'shar'; did you mean 'share'"),
            ({"name": "x", "when": "2013-01-05"}, "when must be a time with a time zone, got '2013-01-05'; append Z"),
            ({"name": "x", "when": "soon"}, "when must be an ISO 8601 time such as .*, got 'soon'"),
            ({"kind": "inner", "name": "x"}, "kind must be 'outer', got 'inner'"),
            (7, "value must be of type Outer, got 7"),
        ],
    )
    def test_say_where_and_what(self, data, message):
        with pytest.raises(SpecError, match=message):
            codec.decode(Outer, data)

    @pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", datetime(2013, 1, 5), 1j])
    def test_what_is_not_json(self, value):
        with pytest.raises(SpecError, match=r"(value|datetime) must be"):
            codec.encode({"x": value})

    def test_not_a_ref(self):
        with pytest.raises(SpecError, match="dataset must be a DatasetRef or its XCom form, got '/d'"):
            as_ref(DatasetRef, "/d", "dataset")

    def test_ref_of_another_kind(self):
        with pytest.raises(SpecError, match=r"dataset\.kind must be 'dataset', got 'model'"):
            as_ref(DatasetRef, codec.encode(ModelRef("m", "/m", "sha256:2")), "dataset")

    def test_ref_within_a_result(self):
        ref = DatasetRef("d", "/d", "sha256:1")
        assert as_ref(DatasetRef, {"status": "ok", "dataset": codec.encode(ref)}, "dataset") == ref


class TestCanonical:
    def test_independent_of_order_and_form(self):
        assert codec.canonical({"b": (1, 2), "a": "ü"}) == '{"a":"ü","b":[1,2]}'
        assert codec.digest({"a": 1, "b": [1]}) == codec.digest({"b": (1,), "a": 1})

    def test_known_digest(self):
        import hashlib

        assert codec.digest({"a": 1}) == "sha256:" + hashlib.sha256(b'{"a":1}').hexdigest()

    def test_no_number_is_null(self):
        assert codec.canonical([float("nan"), float("inf"), 0.5]) == "[null,null,0.5]"

    json_values = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
        max_leaves=8,
    )

    @given(json_values)
    def test_json_is_left_as_it_is(self, value):
        assert codec.encode(value) == value
        assert json.loads(codec.canonical(value)) == value


class TestSchema:
    def test_accepts_what_decode_accepts(self):
        jsonschema = pytest.importorskip("jsonschema")
        schema = codec.json_schema(Outer)
        validator = jsonschema.Draft202012Validator(schema)
        jsonschema.Draft202012Validator.check_schema(schema)
        body = json.loads(json.dumps(codec.encode(WHOLE)))
        body.pop("kind")  # it tells refs apart in XCom; configuration has none
        validator.validate(body)
        for bad in ({}, {"name": 7}, {"name": "x", "cuont": 1}, {"name": "x", "inner": {"mode": "c"}}):
            assert not validator.is_valid(bad)
            with pytest.raises(SpecError):
                codec.decode(Outer, bad)

    def test_describes(self):
        properties = codec.json_schema(Outer)["$defs"]["Inner"]["properties"]
        assert properties["share"] == {"type": "number", "description": "a share, in [0, 1].", "default": 0.5}
        assert properties["mode"]["enum"] == ["a", "b"]


def test_identity_is_the_same_for_all_tries_and_for_no_other_task():
    info = RunInfo("d", "t", "r", 0)
    assert info.identity == RunInfo("d", "t", "r", 0, reason="backfill", cleared=True).identity
    others = [
        RunInfo("d2", "t", "r", 0),
        RunInfo("d", "t2", "r", 0),
        RunInfo("d", "t", "r2", 0),
        RunInfo("d", "t", "r"),
    ]
    assert len({info.identity, *(other.identity for other in others)}) == 5

from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.intervals import Interval

UTC = timezone.utc
moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
grains = st.sampled_from(["hour", "day", "week", "month"])


def utc(*args: int) -> datetime:
    return datetime(*args, tzinfo=UTC)


class TestOf:
    @pytest.mark.parametrize(
        ("start", "end", "key"),
        [
            (utc(2013, 1, 5), utc(2013, 1, 6), "2013-01-05"),
            (utc(2013, 1, 5), utc(2013, 1, 5, 1), "2013-01-05T00"),
            (utc(2013, 1, 5, 7), utc(2013, 1, 5, 8), "2013-01-05T07"),
            (utc(2013, 2, 1), utc(2013, 3, 1), "2013-02"),
            (utc(2013, 1, 7), utc(2013, 1, 14), "2013-01-07--2013-01-14"),
            (utc(2013, 1, 5, 5), utc(2013, 1, 6, 5), "2013-01-05T05--2013-01-06T05"),
            (utc(2013, 1, 5), utc(2013, 1, 5, 6), "2013-01-05--2013-01-05T06"),
            (utc(2013, 1, 5, 7, 30), utc(2013, 1, 5, 8, 30), "2013-01-05T073000--2013-01-05T083000"),
            (utc(2013, 1, 5, 7, 30, 1, 5), utc(2013, 1, 6), "2013-01-05T073001.000005--2013-01-06"),
        ],
    )
    def test_key_names_the_window(self, start, end, key):
        assert Interval.of(start, end).key == key
        assert Interval.from_key(key) == Interval(start, end, key)

    @given(moments, moments)
    def test_key_can_be_read_back(self, one, other):
        if one != other:
            interval = Interval.of(min(one, other), max(one, other))
            assert Interval.from_key(interval.key) == interval

    @given(moments, st.sampled_from([1, 15 * 60, 3600, 2 * 3600, 6 * 3600, 86400, 7 * 86400]))
    def test_keys_of_one_schedule_sort_in_time_order(self, moment, seconds):
        length = timedelta(seconds=seconds)
        keys = [Interval.of(moment + n * length, moment + (n + 1) * length).key for n in range(30)]
        assert sorted(keys) == keys

    @given(moments, grains)
    def test_a_calendar_interval_has_its_own_key(self, moment, grain):
        """However a window is found, by its bounds or by its key, it names the same partition."""
        calendar = Interval.of_grain(moment, grain)
        assert Interval.of(calendar.start, calendar.end) == calendar

    def test_bounds_become_utc(self):
        new_york = ZoneInfo("America/New_York")
        interval = Interval.of(datetime(2013, 1, 5, tzinfo=new_york), datetime(2013, 1, 6, tzinfo=new_york))
        assert (interval.start, interval.key) == (utc(2013, 1, 5, 5), "2013-01-05T05--2013-01-06T05")
        assert interval.start.tzinfo is UTC

    def test_time_without_zone_is_not_guessed(self):
        with pytest.raises(SpecError, match="must be a time with a time zone, got '2013-01-05T00:00:00'"):
            Interval.of(datetime(2013, 1, 5), utc(2013, 1, 6))
        with pytest.raises(SpecError, match="a time with a time zone"):
            Interval.of(utc(2013, 1, 5), datetime(2013, 1, 6))
        with pytest.raises(SpecError, match="a time with a time zone"):
            Interval.of_grain(datetime(2013, 1, 5), "day")

    @pytest.mark.parametrize("end", [utc(2013, 1, 5), utc(2013, 1, 4)])
    def test_end_after_start(self, end):
        with pytest.raises(SpecError, match=r"Interval\.end must be after its start"):
            Interval.of(utc(2013, 1, 5), end)


class TestKey:
    @pytest.mark.parametrize("key", ["../up", "a/b", "", ".hidden", "a b", "a\n", "a\\b", "ü"])
    def test_names_a_folder_and_nothing_else(self, key):
        with pytest.raises(SpecError, match=r"Interval\.key must be"):
            Interval(utc(2013, 1, 5), utc(2013, 1, 6), key)

    @pytest.mark.parametrize(
        ("key", "start", "length", "normal"),
        [
            ("2013-01-05", utc(2013, 1, 5), timedelta(days=1), "2013-01-05"),
            (" 2013-1-5 ", utc(2013, 1, 5), timedelta(days=1), "2013-01-05"),
            ("2013-01-05T03", utc(2013, 1, 5, 3), timedelta(hours=1), "2013-01-05T03"),
            ("2013-01-05T03:00", utc(2013, 1, 5, 3), timedelta(hours=1), "2013-01-05T03"),
            ("2013-01-05T00:00:00", utc(2013, 1, 5), timedelta(days=1), "2013-01-05"),
            ("2013-01-05T00:00:00+00:00", utc(2013, 1, 5), timedelta(days=1), "2013-01-05"),
            ("2013-02", utc(2013, 2, 1), timedelta(days=28), "2013-02"),
            ("2013-01-07 (W02)", utc(2013, 1, 7), timedelta(days=7), "2013-01-07--2013-01-14"),
            ("2013-Q1", utc(2013, 1, 1), timedelta(days=90), "2013-01-01--2013-04-01"),
            ("2013", utc(2013, 1, 1), timedelta(days=365), "2013-01-01--2014-01-01"),
        ],
    )
    def test_from_key(self, key, start, length, normal):
        interval = Interval.from_key(key)
        assert (interval.start, interval.end - interval.start, interval.key) == (start, length, normal)

    @pytest.mark.parametrize(
        ("key", "grain", "normal"),
        [
            ("2013-01-01T00:00:00", "hour", "2013-01-01T00"),
            ("2013-01-01T00:00:00", "day", "2013-01-01"),
            ("2013-01-01T00:00:00", "month", "2013-01"),
            ("2013-01-07T00:00:00", "week", "2013-01-07--2013-01-14"),
            ("2013-01-08T00:00:00", "week", "2013-01-08"),  # no week begins then
            ("2013-01-08T03:00:00", "day", "2013-01-08T03"),
            ("2013-01-01", "month", "2013-01"),
            ("2013-01-01T00", "day", "2013-01-01T00"),  # says itself that it is an hour
            ("2013-01", "day", "2013-01"),
        ],
    )
    def test_a_key_that_says_only_when_a_window_begins(self, key, grain, normal):
        assert Interval.from_key(key, grain).key == normal

    @pytest.mark.parametrize(
        "key",
        [
            "", "yesterday", "0000", "2013-Q5", "2013-01-06--2013-01-05", "2013-01-05--x", "2013-13", "2013-02-30",
            "2013-01-05T03:30:00", "05.01.13",
        ],
    )  # fmt: skip
    def test_other_keys(self, key):
        with pytest.raises(SpecError, match=r"must be (YYYY-MM-DD, YYYY-MM-DDTHH, YYYY-MM, START--END, or|after)"):
            Interval.from_key(key)


class TestGrain:
    @pytest.mark.parametrize(
        ("grain", "start", "end", "key"),
        [
            ("hour", utc(2013, 3, 10, 7), utc(2013, 3, 10, 8), "2013-03-10T07"),
            ("day", utc(2013, 3, 10), utc(2013, 3, 11), "2013-03-10"),
            ("week", utc(2013, 3, 4), utc(2013, 3, 11), "2013-03-04--2013-03-11"),  # Monday to Monday
            ("month", utc(2013, 3, 1), utc(2013, 4, 1), "2013-03"),
        ],
    )
    def test_calendar(self, grain, start, end, key):
        interval = Interval.of_grain(utc(2013, 3, 10, 7, 30), grain)
        assert (interval.start, interval.end, interval.key) == (start, end, key)

    def test_december(self):
        assert Interval.of_grain(utc(2013, 12, 31, 23), "month").end == utc(2014, 1, 1)

    def test_unknown(self):
        with pytest.raises(SpecError, match="grain must be one of hour, day, week, month, got 'year'"):
            Interval.of_grain(utc(2013, 1, 1), "year")  # type: ignore[arg-type]

    @given(moments, grains)
    def test_contains_its_moment_and_neighbours_do_not(self, moment, grain):
        interval = Interval.of_grain(moment, grain)
        assert moment in interval
        assert interval.end not in interval
        assert Interval.of_grain(interval.end, grain).start == interval.end
        assert Interval.of_grain(interval.start, grain) == interval

    @given(moments, moments, grains)
    def test_keys_sort_in_time_order(self, first, second, grain):
        a, b = Interval.of_grain(first, grain), Interval.of_grain(second, grain)
        assert (a.key < b.key) == (a.start < b.start)

    @given(moments, grains)
    def test_key_names_the_interval(self, moment, grain):
        interval = Interval.of_grain(moment, grain)
        assert Interval.from_key(interval.key) == interval

    @given(moments, grains)
    def test_survives_json_and_pickle(self, moment, grain):
        interval = Interval.of_grain(moment, grain)
        assert codec.decode(Interval, codec.encode(interval)) == interval
        assert pickle.loads(pickle.dumps(interval)) == interval

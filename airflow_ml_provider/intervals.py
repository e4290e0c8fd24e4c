"""The window of data that a run is about. Airflow-free; `operators/_context.py` finds it for a task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal, Optional

from airflow_ml_provider.exceptions import invalid

Grain = Literal["hour", "day", "week", "month"]

_FORMAT = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
_SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]*\Z")
_BETWEEN = "--"
# What Airflow's timetables and partition mappers write beside days, hours and months.
_WEEK = re.compile(r"(\d{4}-\d{2}-\d{2}) \(W\d{2}\)\Z")
_QUARTER = re.compile(r"(\d{4})-Q([1-4])\Z")
_YEAR = re.compile(r"\d{4}\Z")


@dataclass(frozen=True)
class Interval:
    """Half-open window [start, end) in UTC and the key of the partition that holds it.

    The key names folders, so it holds no path separators; keys of one grain sort in time order.
    """

    start: datetime
    end: datetime
    key: str

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if not isinstance(value, datetime) or value.tzinfo is None:
                raise invalid(f"Interval.{name}", value, "a datetime with a time zone")
            object.__setattr__(self, name, value.astimezone(timezone.utc).replace(fold=0))
        if self.end <= self.start:
            raise invalid("Interval.end", self.end.isoformat(), f"after its start {self.start.isoformat()}")
        if not _SAFE_KEY.match(self.key):
            raise invalid("Interval.key", self.key, "letters, digits and . _ : + - (it names a folder)")

    @classmethod
    def of(cls, start: datetime, end: datetime) -> Interval:
        """Return the interval. Its key is that of the calendar for an hour, a day or a month, else `START--END`.

        >>> Interval.of(datetime(2013, 1, 5, tzinfo=timezone.utc), datetime(2013, 1, 6, tzinfo=timezone.utc)).key
        '2013-01-05'
        >>> Interval.of(datetime(2013, 1, 7, tzinfo=timezone.utc), datetime(2013, 1, 14, tzinfo=timezone.utc)).key
        '2013-01-07--2013-01-14'
        """
        start, end = _utc(start), _utc(end)
        grains: tuple[Grain, ...] = ("hour", "day", "month")
        for calendar in (cls.of_grain(start, grain) for grain in grains):
            if (calendar.start, calendar.end) == (start, end):
                return calendar
        return cls(start, end, _BETWEEN.join(map(moment_key, (start, end))))

    @classmethod
    def of_grain(cls, moment: datetime, grain: Grain) -> Interval:
        """Return the calendar interval of `grain` (UTC; weeks start on Monday) that contains `moment`.

        >>> Interval.of_grain(datetime(2013, 1, 5, 7, 30, tzinfo=timezone.utc), "month").key
        '2013-01'
        """
        moment = _utc(moment)
        start = moment.replace(minute=0, second=0, microsecond=0)
        if grain == "hour":
            return cls(start, start + timedelta(hours=1), start.strftime(_FORMAT[grain]))
        start = start.replace(hour=0)
        if grain == "day":
            end = start + timedelta(days=1)
        elif grain == "week":
            start -= timedelta(days=start.weekday())
            return cls.of(start, start + timedelta(days=7))
        elif grain == "month":
            start = start.replace(day=1)
            end = _month_after(start)
        else:
            raise invalid("grain", grain, "one of hour, day, week, month")
        return cls(start, end, start.strftime(_FORMAT[grain]))

    @classmethod
    def from_key(cls, key: str, grain: Optional[Grain] = None) -> Interval:
        """Return the interval that a partition key names; the inverse of `of` and `of_grain`.

        Also read is what Airflow's timetables and partition mappers write: `2013-01-07 (W02)`, `2013-Q1`, `2013`, and
        a full timestamp such as `2013-01-05T00:00:00`, which says only when a window begins.

        Parameters:
            grain: length of a window of which the key says only when it begins, if one of this grain begins then. By
                default that is a day for midnight and an hour for other full hours.

        Raises:
            SpecError: the key has none of these forms.
        """
        text = key.strip()
        first, between, last = text.partition(_BETWEEN)
        if between and None not in (bounds := [_moment(first), _moment(last)]):
            return cls.of(*bounds)  # type: ignore[arg-type]
        if week := _WEEK.match(text):
            text, grain = week.group(1), "week"
        if quarter := _QUARTER.match(text):
            start = datetime(int(quarter.group(1)), 3 * int(quarter.group(2)) - 2, 1, tzinfo=timezone.utc)
            return cls.of(start, _month_after(_month_after(_month_after(start))))
        if _YEAR.match(text) and text > "0000":
            start = datetime(int(text), 1, 1, tzinfo=timezone.utc)
            return cls.of(start, start.replace(year=start.year + 1))
        if ":" in text and (stamp := _timestamp(text)):
            return cls._beginning(key, stamp, grain)
        for own in ("day", "hour", "month"):
            try:
                moment = datetime.strptime(text, _FORMAT[own]).replace(tzinfo=timezone.utc)
            except ValueError:
                continue
            return cls._beginning(key, moment, grain) if own == "day" else cls.of_grain(moment, own)  # type: ignore[arg-type]
        raise invalid("partition key", key, _FORMS)

    @classmethod
    def _beginning(cls, key: str, moment: datetime, grain: Optional[Grain]) -> Interval:
        """Return the window that begins at a moment: of `grain` if one does, else the day or the hour."""
        grains: tuple[Optional[Grain], ...] = (grain, "day", "hour")
        for one in grains:
            if one and (found := cls.of_grain(moment, one)).start == moment:
                return found
        raise invalid("partition key", key, _FORMS, "give the operator its interval")

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


_FORMS = "YYYY-MM-DD, YYYY-MM-DDTHH, YYYY-MM, START--END, or a full hour"


def moment_key(moment: datetime) -> str:
    """Return a moment in UTC as it stands in a key: no longer than it has to be."""
    moment = _utc(moment)
    if (moment.minute, moment.second, moment.microsecond) != (0, 0, 0):
        return moment.strftime("%Y-%m-%dT%H%M%S" + (".%f" if moment.microsecond else ""))
    return moment.strftime(_FORMAT["hour" if moment.hour else "day"])


def _moment(text: str) -> Optional[datetime]:
    """Return the moment that `moment_key` wrote, if it is one."""
    for form in (_FORMAT["day"], _FORMAT["hour"], "%Y-%m-%dT%H%M%S", "%Y-%m-%dT%H%M%S.%f"):
        try:
            return datetime.strptime(text, form).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
    return None


def _timestamp(text: str) -> Optional[datetime]:
    try:
        stamp = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return stamp.astimezone(timezone.utc) if stamp.tzinfo else stamp.replace(tzinfo=timezone.utc)


def _month_after(start: datetime) -> datetime:
    return (start + timedelta(days=32)).replace(day=1)


def _utc(moment: datetime) -> datetime:
    """Return the moment in UTC; one without a zone would silently be taken for local time."""
    if moment.tzinfo is None:
        raise invalid("interval bound", moment.isoformat(), "a time with a time zone", "append Z or an offset")
    return moment.astimezone(timezone.utc)

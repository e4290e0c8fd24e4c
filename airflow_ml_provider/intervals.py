"""The window of data that a run is about. Airflow-free; `operators/_context.py` finds it for a task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

from airflow_ml_provider.exceptions import invalid

Grain = Literal["hour", "day", "week", "month"]

_FORMAT = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m"}
_SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]*\Z")


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
        """Return the interval: that of the calendar if it is an hour, a day or a month, else named after its start.

        >>> Interval.of(datetime(2013, 1, 5, tzinfo=timezone.utc), datetime(2013, 1, 6, tzinfo=timezone.utc)).key
        '2013-01-05'
        >>> Interval.of(datetime(2013, 1, 1, tzinfo=timezone.utc), datetime(2013, 2, 1, tzinfo=timezone.utc)).key
        '2013-01'
        """
        start, end = _utc(start), _utc(end)
        grains: tuple[Grain, ...] = ("hour", "day", "month")
        for calendar in (cls.of_grain(start, grain) for grain in grains):
            if (calendar.start, calendar.end) == (start, end):
                return calendar
        if (start.hour, start.minute, start.second, start.microsecond) == (0, 0, 0, 0):
            return cls(start, end, start.strftime(_FORMAT["day"]))
        if (start.minute, start.second, start.microsecond) == (0, 0, 0):
            return cls(start, end, start.strftime(_FORMAT["hour"]))
        return cls(start, end, start.strftime("%Y-%m-%dT%H%M%S" + (".%f" if start.microsecond else "")))

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
            end = start + timedelta(days=7)
        elif grain == "month":
            start = start.replace(day=1)
            end = (start + timedelta(days=32)).replace(day=1)
        else:
            raise invalid("grain", grain, f"one of {', '.join(_FORMAT)}")
        return cls(start, end, start.strftime(_FORMAT[grain]))

    @classmethod
    def from_key(cls, key: str) -> Interval:
        """Return the interval that a partition key names: `2013-01-05`, `2013-01-05T03` or `2013-01`.

        A timestamp such as `2013-01-05T00:00:00` names the day or hour that it begins.

        Raises:
            SpecError: the key has none of these forms.
        """
        text = key.strip()
        full = re.match(r"(\d{4}-\d{2}-\d{2})T(\d{2}):00(?::00)?(?:Z|\+00:00)?\Z", text)
        if full:
            text = full.group(1) if full.group(2) == "00" else f"{full.group(1)}T{full.group(2)}"
        for grain in ("day", "hour", "month"):
            try:
                moment = datetime.strptime(text, _FORMAT[grain]).replace(tzinfo=timezone.utc)
            except ValueError:
                continue
            return cls.of_grain(moment, grain)  # type: ignore[arg-type]
        raise invalid("partition key", key, "YYYY-MM-DD, YYYY-MM-DDTHH or YYYY-MM")

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


def _utc(moment: datetime) -> datetime:
    """Return the moment in UTC; one without a zone would silently be taken for local time."""
    if moment.tzinfo is None:
        raise invalid("interval bound", moment.isoformat(), "a time with a time zone", "append Z or an offset")
    return moment.astimezone(timezone.utc)

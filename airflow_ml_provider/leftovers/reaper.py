"""Look, judge, remove: what the reaper's command and its operator share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from airflow_ml_provider import tables
from airflow_ml_provider.exceptions import MlError, invalid
from airflow_ml_provider.leftovers.cluster import ClusterPlace
from airflow_ml_provider.leftovers.exchange import ExchangePlace
from airflow_ml_provider.leftovers.logic import Found, Judged, judge
from airflow_ml_provider.leftovers.states import Ask, states_of


class Place(Protocol):
    """Where things can be left."""

    kinds: dict[str, Any]

    def look(self) -> list[Found]:
        """Return all that is there."""

    def remove(self, thing: Found) -> str:
        """Remove one thing and return what became of it."""


@dataclass(frozen=True)
class Removal:
    """What became of a thing that was to be removed; `failed` when it could not be."""

    found: Found
    outcome: str
    failed: bool = False


def places(conn_id: str, namespace: str | None, exchange: str | None) -> list[Place]:
    """Return where to look: a namespace of a cluster, and the exchange folder, if there is one.

    Parameters:
        conn_id: connection to the cluster.
        namespace: the namespace; none is that of the connection.
        exchange: the folder; none is `[ml] exchange` of Airflow's configuration.
    """
    from airflow.providers.common.compat.sdk import conf

    folder = exchange or conf.get("ml", "exchange", fallback="")
    found: list[Place] = [ClusterPlace(conn_id, namespace or "")]
    return [*found, ExchangePlace(tables.local_path(folder))] if folder else found


def survey(where: Sequence[Place], ask: Ask, older_than_min: float, named: Collection[str] = ()) -> list[Judged]:
    """Return all that is there and what it is.

    Parameters:
        where: the places to look at.
        ask: how to learn the states of tasks.
        older_than_min: what is younger is not left over (minutes).
        named: look at things of these names alone; none looks at all.

    Raises:
        SpecError: the age is negative, or a place cannot be looked at.
        Unavailable: a place does not answer.
    """
    from airflow.providers.common.compat.sdk import conf

    if not older_than_min >= 0:
        raise invalid("older_than", older_than_min, "a number of minutes, 0 or more")
    # First what is there, then the states: so a task that begins in between is seen as alive.
    things = [thing for place in where for thing in place.look()]
    states = states_of((thing.task for thing in things if thing.task), ask)
    age, here = timedelta(minutes=older_than_min), conf.get("api", "base_url", fallback="")
    judged = judge(things, states, datetime.now(timezone.utc), age, named, here)
    return [one for one in judged if not named or one.found.name in named]


def remove(judged: Sequence[Judged], where: Sequence[Place]) -> Iterator[Removal]:
    """Remove what is left over, one by one; what cannot be removed does not hold up the rest."""
    for one in judged:
        if one.verdict != "left over":
            continue
        place = next(place for place in where if one.found.kind in place.kinds)
        try:
            yield Removal(one.found, place.remove(one.found))
        except (MlError, OSError) as error:
            yield Removal(one.found, f"not deleted: {error}", failed=True)

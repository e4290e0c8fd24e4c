"""A place that serves in memory, for tests of one's own DAGs, and what every place must fulfil."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Conflict, DataError, Unavailable
from airflow_ml_provider.serving.place import counted
from airflow_ml_provider.serving.spec import Wanted
from airflow_ml_provider.serving.stats import Traffic, VersionStats
from airflow_ml_provider.stages.deploy.experiment import assign
from airflow_ml_provider.stages.deploy.service import Observed, Readings, Service, Sticky, Version, VersionState


@dataclass(frozen=True)
class Behaviour:
    """How a version of `MemoryServing` behaves.

    Attributes:
        phase: whether it is ready.
        why: what the place says when it is not.
        error_rate: share of its requests that fail.
        latency_s: median of the seconds until its answer; a tenth of the requests take twice as long.
        score: mean of its scores, which lie within 0.1 of it.
    """

    phase: Literal["ready", "waits", "failed"] = "ready"
    why: str = ""
    error_rate: float = 0.0
    latency_s: float = 0.02
    score: float = 0.5


class MemoryServing:
    """A place that serves in this process. What it is told takes effect at once; requests come when a test says so.

    Parameters:
        seed: of the requests.
    """

    def __init__(self, seed: int = 0) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        """How the versions behave, by name; the others are good."""
        self.away = False
        """The place does not answer."""
        self.puts: list[Service] = []
        """All that services were told to be, the newest last."""
        self._services: dict[str, tuple[Service, int]] = {}
        self._stats: dict[tuple[str, str], VersionStats] = {}
        self._random = random.Random(seed)  # noqa: S311 - requests of a test

    def look(self, name: str) -> Observed | None:
        """Return a service as it is, or none."""
        self._answer()
        if name not in self._services:
            return None
        wanted, revision = self._services[name]
        return Observed(wanted, str(revision), {v: self._state(wanted, v) for v in wanted.versions}, f"memory://{name}")

    def put(self, wanted: Service, revision: str | None = None) -> str:
        """Make a service what it shall be."""
        self._answer()
        wanted = codec.decode(Service, codec.encode(wanted), "service")
        before, number = self._services.get(wanted.name, (None, 0))
        if (str(number) if before else None) != revision:
            raise Conflict(f"service {wanted.name!r} has revision {number}, not {revision}")
        if before != wanted:
            number += 1
            self._services[wanted.name] = wanted, number
            self.puts.append(wanted)
        return str(number)

    def readings(self, name: str) -> Readings:
        """Return what each version has counted."""
        self._answer()
        return {
            version: {"memory": counted(codec.encode(stats))}
            for (service, version), stats in self._stats.items()
            if service == name
        }

    def remove(self, name: str) -> None:
        """Remove a service."""
        self._answer()
        self._services.pop(name, None)

    def predict(
        self, name: str, rows: Mapping[str, Sequence[Any]], version: str = "", key: str = ""
    ) -> tuple[Mapping[str, Any], str]:
        """Return a score for each row, as the version behaves; a key keeps its version in an experiment."""
        self._answer()
        wanted, _ = self._services[name]
        asked = version or self._chosen(wanted, key).name
        if len({len(values) for values in rows.values()}) != 1:
            raise DataError("all columns need as many values")
        count = len(next(iter(rows.values())))
        return {"score": [self._behaviour(asked).score] * count}, asked

    def serve(self, name: str, requests: int) -> None:
        """Let users ask so many times."""
        wanted, _ = self._services[name]
        for _ in range(requests):
            chosen = self._chosen(wanted)
            self._ask(name, chosen, "live")
            copied = wanted.candidate != chosen and self._random.random() * 100 < wanted.mirror
            if copied and wanted.candidate:
                self._ask(name, wanted.candidate, "mirror")
                self._compare(name, wanted.candidate, chosen, wanted.tolerance)

    def _chosen(self, wanted: Service, key: str = "") -> Version:
        if wanted.sticky and key and wanted.candidate:
            shares = {wanted.stable.name: 100 - wanted.percent, wanted.candidate.name: wanted.percent}
            return wanted.versions[assign(key, wanted.sticky.salt, shares)]
        taken = wanted.candidate is not None and self._random.random() * 100 < wanted.percent
        return wanted.candidate if taken and wanted.candidate else wanted.stable

    def _ask(self, name: str, version: Version, traffic: Traffic) -> None:
        how, chance = self._behaviour(version.name), self._random
        stats = self._stats.setdefault((name, version.name), VersionStats.empty(Wanted.score_edges))
        seconds = how.latency_s * (2 if chance.random() < 0.1 else 1) * chance.uniform(0.9, 1.1)
        error = chance.random() < how.error_rate
        scores = () if error else (how.score + chance.uniform(-0.1, 0.1),)
        stats.of(traffic).answered(500 if error else 200, 1000 * seconds, scores)

    def _compare(self, name: str, candidate: Version, chosen: Version, tolerance: float) -> None:
        mine, users = (self._behaviour(version.name).score for version in (candidate, chosen))
        stats = self._stats[name, candidate.name]
        stats.compared += 1
        stats.agreed += math.isclose(mine, users, rel_tol=tolerance, abs_tol=tolerance)

    def _behaviour(self, version: str) -> Behaviour:
        return self.behaviours.get(version, Behaviour())

    def _state(self, wanted: Service, version: str) -> VersionState:
        how = self._behaviour(version)
        if wanted.candidate is not None and version == wanted.candidate.name:
            return VersionState(how.phase, how.why, wanted.percent, wanted.mirror)
        return VersionState(how.phase, how.why, 100 - wanted.percent)

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("the memory does not answer")


class ServingContract:
    """What every place that serves must fulfil. A test class inherits it and overrides the fixtures."""

    @pytest.fixture
    def place(self) -> Any:
        """The place under test, with no service in it."""
        raise NotImplementedError("override the fixture `place`")

    @pytest.fixture
    def version(self) -> Callable[[str], Version]:
        """Make a version by its name, each of another model."""
        raise NotImplementedError("override the fixture `version`")

    @pytest.fixture
    def rows(self) -> Mapping[str, Sequence[Any]]:
        """Two rows that the models take."""
        raise NotImplementedError("override the fixture `rows`")

    ready_s = 60.0

    def ready(self, place: Any, name: str) -> Observed:
        """Return a service once all its versions are ready with the traffic that was asked for."""
        deadline = time.monotonic() + self.ready_s
        while True:
            seen: Observed | None = place.look(name)
            assert seen is not None, f"service {name!r} is not there"
            assert all(state.phase != "failed" for state in seen.states.values()), seen.states
            wanted, states = seen.wanted, seen.states
            moved = states[(wanted.candidate or wanted.stable).name]
            asked = (wanted.percent, wanted.mirror) if wanted.candidate else (100, 0)
            settled = (moved.percent, moved.mirror) == asked
            if settled and all(state.phase == "ready" for state in states.values()):
                return seen
            assert time.monotonic() < deadline, f"not ready after {self.ready_s:g} s: {states}"
            time.sleep(0.1)

    def test_what_is_not_there(self, place: Any) -> None:
        assert place.look("nothing") is None
        place.remove("nothing")

    def test_a_service_serves_until_it_is_removed(self, place: Any, version: Any, rows: Any) -> None:
        place.put(Service("one", version("v1")))
        assert self.ready(place, "one").wanted == Service("one", version("v1"))
        outputs, by = place.predict("one", rows)
        assert by == "v1"
        assert all(len(values) == len(next(iter(rows.values()))) for values in outputs.values())
        place.remove("one")
        assert place.look("one") is None

    def test_the_same_again_changes_nothing(self, place: Any, version: Any) -> None:
        service = Service("one", version("v1"), rollout={"identity": "a", "state": {"numbers": [1, 2.5]}})
        revision = place.put(service)
        seen = place.look("one")
        assert seen.wanted == service
        assert place.put(service, seen.revision) == seen.revision == revision

    def test_who_has_not_seen_the_last_change_is_refused(self, place: Any, version: Any) -> None:
        place.put(Service("one", version("v1")))
        seen = self.ready(place, "one")
        with pytest.raises(Conflict):
            place.put(Service("one", version("v2")))
        place.put(replace(seen.wanted, rollout={"identity": "a"}), seen.revision)
        with pytest.raises(Conflict):
            place.put(replace(seen.wanted, rollout={"identity": "b"}), seen.revision)
        assert place.look("one").wanted.rollout == {"identity": "a"}

    def test_a_candidate_becomes_the_stable_version(self, place: Any, version: Any, rows: Any) -> None:
        place.put(Service("one", version("v1")))
        for percent in (0, 25, 100):
            seen = self.ready(place, "one")
            place.put(Service("one", version("v1"), version("v2"), percent=percent), seen.revision)
            assert self.ready(place, "one").states["v2"].percent == percent
        assert place.predict("one", rows)[1] == "v2"
        place.put(Service("one", version("v2")), self.ready(place, "one").revision)
        assert set(self.ready(place, "one").states) == {"v2"}
        assert place.predict("one", rows)[1] == "v2"

    def ask_as(self, place: Any, name: str, rows: Any, key: str) -> str:
        """Return the version that answers a request with a key in the header `x-sticky-key`.

        Parameters:
            place: the place.
            name: of the service.
            rows: of the request.
            key: what the header has.
        """
        raise NotImplementedError("override `ask_as`")

    def test_a_key_keeps_its_version(self, place: Any, version: Any, rows: Any) -> None:
        if type(self).ask_as is ServingContract.ask_as:
            pytest.skip("requests with a key do not keep their version here")
        sticky = Sticky("x-sticky-key", "spring:v2")
        place.put(Service("one", version("v1")))
        keys, before = [f"user {number}" for number in range(20)], set[str]()
        for percent in (20, 50):
            seen = self.ready(place, "one")
            place.put(Service("one", version("v1"), version("v2"), percent=percent, sticky=sticky), seen.revision)
            self.ready(place, "one")
            shares = {"v1": 100.0 - percent, "v2": float(percent)}
            for _ in range(2):
                found = {key: self.ask_as(place, "one", rows, key) for key in keys}
                assert found == {key: assign(key, sticky.salt, shares) for key in keys}
            after = {key for key, by in found.items() if by == "v2"}
            assert before < after  # who has come to the candidate stays
            before = after

    def test_a_candidate_is_taken_away(self, place: Any, version: Any, rows: Any) -> None:
        place.put(Service("one", version("v1")))
        place.put(Service("one", version("v1"), version("v2"), percent=50), self.ready(place, "one").revision)
        place.put(Service("one", version("v1")), self.ready(place, "one").revision)
        assert set(self.ready(place, "one").states) == {"v1"}
        assert {place.predict("one", rows)[1] for _ in range(5)} == {"v1"}

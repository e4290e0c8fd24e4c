"""The graph that lineage events tell: what came from what, and in which run.

Events are read as they lie in a file or folder (JSON Lines, as OpenLineage's file transport writes them). Reading is
idempotent: events may be doubled, out of order or cut off, and runs of mapped tasks share the name of their job.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.lineage.naming import Dataset

_FINAL = ("COMPLETE", "FAIL", "ABORT")


@dataclass
class Use:
    """How one run used one dataset: its version (digest) and all facets, merged over the run's events."""

    version: Optional[str] = None
    facets: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """One run of a job, merged from all of its events."""

    id: str
    job: str = ""
    state: str = ""
    time: str = ""
    inputs: dict[Dataset, Use] = field(default_factory=dict)
    outputs: dict[Dataset, Use] = field(default_factory=dict)
    facets: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One dataset on the way upstream.

    Attributes:
        depth: number of runs between it and the start.
        dataset: what it is.
        version: its digest, where an event tells it.
        run: the run that made it; none for a source, which no run made.
        via: the dataset one step nearer to the start; none for the start.
    """

    depth: int
    dataset: Dataset
    version: Optional[str] = None
    run: Optional[Run] = None
    via: Optional[Dataset] = None


class Graph:
    """Datasets and runs as events tell them.

    Parameters:
        events: OpenLineage events as parsed JSON.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self.runs: dict[str, Run] = {}
        self.broken = 0
        self._made: dict[Dataset, set[str]] = defaultdict(set)
        self._read: dict[Dataset, set[str]] = defaultdict(set)
        self._parts: dict[Dataset, set[Dataset]] = defaultdict(set)
        for event in events:
            self.add(event)

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Return the graph of the events in a file or in all files of a folder.

        `broken` counts lines that are no JSON (a writer was killed, or two wrote at once).

        Raises:
            DataError: there is no such file or folder.
        """
        graph = cls()
        if not path.exists():
            raise DataError(f"no lineage events at {path}; is OpenLineage's file transport set to write there?")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            with open(file, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if line.strip():
                        graph._add_line(line)
        return graph

    def _add_line(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            self.broken += 1
            return
        if isinstance(event, dict):
            self.add(event)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event; one without a run tells of no edge and is left out."""
        body, job = event.get("run"), event.get("job") or {}
        if not body:
            return
        run = self.runs.setdefault(body["runId"], Run(body["runId"]))
        run.job = f"{job.get('namespace', '')}/{job.get('name', '')}"
        time, state = str(event.get("eventTime", "")), str(event.get("eventType", ""))
        # A late START must not hide the end of the run, nor its older facets the newer ones.
        newer = (state in _FINAL, time) >= (run.state in _FINAL, run.time)
        if newer:
            run.state, run.time = state, time
        _merge(run.facets, body.get("facets"), newer)
        for side, used, index in (("inputs", run.inputs, self._read), ("outputs", run.outputs, self._made)):
            for item in event.get(side) or ():
                dataset = Dataset(item["namespace"], item["name"])
                use = used.setdefault(dataset, Use())
                for key in ("facets", "inputFacets", "outputFacets"):
                    _merge(use.facets, item.get(key), newer)
                use.version = use.facets.get("version", {}).get("datasetVersion")
                index[dataset].add(run.id)
                if partition := dataset.partition:
                    self._parts[Dataset(dataset.namespace, partition[0])].add(dataset)

    @property
    def datasets(self) -> set[Dataset]:
        """Every dataset that some run read or wrote."""
        return set(self._made) | set(self._read)

    def producer(self, dataset: Dataset, version: Optional[str] = None, before: str = "") -> Optional[Run]:
        """Return the run that made a dataset, in that version if it is known.

        Of several the newest counts. Runs that only pass a dataset on (read and write it, as a promotion does with a
        model version) count only when no other made it, and a run that made partitions of a table made those, though
        an outlet may name the table. `before` prefers what had ended by then.
        """
        parts = self._parts.get(dataset, set())
        runs = [run for run in map(self.runs.__getitem__, self._made.get(dataset, ())) if not parts & set(run.outputs)]
        makers = [r for r in runs if dataset not in r.inputs] or runs
        exact = [r for r in makers if version and r.outputs[dataset].version == version] or makers
        timely = [r for r in exact if not before or r.time <= before] or exact
        return max(timely, key=lambda run: (run.time, run.id), default=None)

    def walk(self, start: Dataset, version: Optional[str] = None) -> Iterator[Step]:
        """Give the start and everything that it came from, nearest first, each dataset once per version.

        Without a `version` of the start its newest one counts. A run that read a table's folder read those of its
        partitions that its `subset` facet names.
        """
        first = self._resolve(Step(0, start, version), "")
        queue: deque[Step] = deque([first])
        seen = {(first.dataset, first.version)}
        while queue:
            step = queue.popleft()
            yield step
            for found in self._next(step):
                if (found.dataset, found.version) not in seen:
                    seen.add((found.dataset, found.version))
                    queue.append(found)

    def upstream(self, dataset: Dataset) -> set[Dataset]:
        """Return everything that a dataset came from."""
        return {step.dataset for step in self.walk(dataset)} - {dataset}

    def downstream(self, dataset: Dataset) -> set[Dataset]:
        """Return everything that came from a dataset, in whatever version."""
        found: set[Dataset] = set()
        queue = deque([dataset])
        while queue:
            for output in self._consumers_outputs(queue.popleft()):
                if output not in found and output != dataset:
                    found.add(output)
                    queue.append(output)
        return found

    def chain(self, start: Dataset, *stops: Dataset) -> list[Step]:
        """Return a shortest way upstream from `start` over all `stops`, in their order; empty when there is none."""
        way: list[Step] = []
        for end in stops:
            last = way[-1] if way else Step(0, start)
            part = self._shortest(last, end)
            if not part:
                return []
            way += [replace(step, depth=step.depth + last.depth) for step in (part[1:] if way else part)]
        return way

    def _shortest(self, start: Step, end: Dataset) -> list[Step]:
        steps: dict[Dataset, Step] = {}
        for step in self.walk(start.dataset, start.version):
            steps.setdefault(step.dataset, step)
            if step.dataset == end:
                way = [step]
                while way[-1].via is not None:
                    way.append(steps[way[-1].via])
                return way[::-1]
        return []

    def _resolve(self, step: Step, before: str) -> Step:
        run = self.producer(step.dataset, step.version, before)
        version = step.version or (run.outputs[step.dataset].version if run else None)
        return Step(step.depth, step.dataset, version, run, step.via)

    def _next(self, step: Step) -> Iterator[Step]:
        if step.run is None:
            if step.depth == 0:  # the start is a table: everything in it
                for part in sorted(self._parts.get(step.dataset, ())):
                    yield self._resolve(Step(1, part, None, None, step.dataset), "")
            return
        for dataset, use in step.run.inputs.items():
            if dataset != step.dataset:
                yield self._resolve(Step(step.depth + 1, dataset, use.version, None, step.dataset), step.run.time)
            for part in sorted(self._parts.get(dataset, ())):
                if part in self._made and part != step.dataset and _covers(use.facets.get("subset"), part):
                    yield self._resolve(Step(step.depth + 1, part, None, None, step.dataset), step.run.time)

    def _consumers_outputs(self, dataset: Dataset) -> Iterator[Dataset]:
        readers = [(run, dataset) for run in self._read.get(dataset, ())]
        if partition := dataset.partition:
            table = Dataset(dataset.namespace, partition[0])
            readers += [(run, table) for run in self._read.get(table, ())]
        for run_id, read in readers:
            run = self.runs[run_id]
            if read == dataset or _covers(run.inputs[read].facets.get("subset"), dataset):
                yield from run.outputs


def _merge(target: dict[str, Any], facets: Optional[Mapping[str, Any]], newer: bool) -> None:
    for key, value in (facets or {}).items():
        if newer or key not in target:
            target[key] = value


def _covers(subset: Optional[Mapping[str, Any]], part: Dataset) -> bool:
    """Return whether a `subset` facet includes a partition; without the facet, and in other forms, it does."""
    condition = (subset or {}).get("inputCondition") or {}
    key = part.partition[1] if part.partition else ""
    if condition.get("type") == "partition":
        return any(p.get("dimensions", {}).get("interval") == key for p in condition.get("partitions", ()))
    if condition.get("type") == "compare" and condition.get("comparison") == "LESS_THAN":
        return _begins(key) < _begins(str(condition.get("right", {}).get("value", "")))
    return True


def _begins(key: str) -> str:
    """Return when the window of a partition begins, as text that sorts in time order; of another text itself."""
    try:
        return Interval.from_key(key).start.isoformat()
    except SpecError:
        return key

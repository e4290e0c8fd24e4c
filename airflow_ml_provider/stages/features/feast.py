"""The features stage: tables of one interval, Feast's registry and online store, joined rows, labels, skew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.provenance import Provenance, RunInfo, code, environment, why
from airflow_ml_provider.refs import DatasetRef, ReportRef
from airflow_ml_provider.stages.features import compute, definition, joined, logic, online, repository, sources, spine
from airflow_ml_provider.stages.features.compute import Computed
from airflow_ml_provider.stages.features.logic import Pick, ViewSkew
from airflow_ml_provider.stages.features.repository import Repository, Session
from airflow_ml_provider.stages.features.spec import FeaturesResult, FeaturesSpec

LIBRARIES = ("duckdb", "feast", "pyarrow")


@dataclass
class Work:
    """What the steps of one run share."""

    spec: FeaturesSpec
    connection: Any
    store: Path
    definition: definition.Definition
    opened: Mapping[str, sources.Table]
    repository: Repository
    picks: Sequence[Pick]
    rows: Optional[spine.Rows]


def run(spec: FeaturesSpec, info: RunInfo) -> FeaturesResult:
    """Compute, apply, materialise, join, and compare online with offline, for one interval."""
    work = prepare(spec)
    computed = compute.all_tables(work.connection, work.definition, work.opened, work.store, spec.interval)
    with repository.session(work.repository) as session:
        session.apply()
        materialised, skew = _online(work, session, computed) if spec.materialize else (0, None)
    rows, labels = _rows(work), _labels(work)
    return _result(work, info, computed, rows, labels, skew, materialised)


def prepare(spec: FeaturesSpec) -> Work:
    """Read and check everything that the run is told, before any work.

    Raises:
        SpecError: something in spec, `features.yaml` or the Feast repository is wrong.
        DataError: a source has no data yet.
    """
    repo, store = tables.local_path(spec.repo).absolute(), tables.local_path(spec.store).absolute()
    defined = definition.read(repo)
    definition.check_sources(defined, spec.sources)
    connection = sources.connect()
    opened = sources.open_all(connection, spec.sources, spec.interval)
    rows = spine.Rows(connection, spec.spine, opened[spec.spine.source]) if spec.spine else None
    loaded = repository.load(repo, store)
    picks = logic.choose(spec.features, loaded.views, loaded.services)
    if rows is not None:
        logic.check_columns([*rows.columns(), *(column for pick in picks for column in pick.columns())])
    return Work(spec, connection, store, defined, opened, loaded, picks, rows)


def _online(work: Work, session: Session, computed: Mapping[str, Computed]) -> tuple[int, Optional[ReportRef]]:
    """Materialise every view and compare what is online with the tables; return the entities and the report."""
    count, views, interval = 0, {}, work.spec.interval
    shown = [view for view in work.repository.views.values() if view.online]
    for view in shown:
        # Another run may have computed later intervals that are not materialised yet; their rows are none of ours.
        horizon = replace(interval, end=session.newest(view.name, interval))
        visible = compute.files(view, work.store, horizon)
        with compute.explained(f"feature view {view.name}"):
            count += online.materialise(work.connection, session, view, _own(work, view), visible, interval)
    newest = max((session.newest(view.name, interval) for view in shown), default=interval.end)
    if newest == interval.end:
        for view in shown:
            until = compute.files(view, work.store, interval)
            with compute.explained(f"feature view {view.name}"):
                views[view.name] = online.skew(work.connection, session, view, _own(work, view), until, interval)
    return count, _report(work, computed, views, newest)


def _own(work: Work, view: logic.View) -> list[Path]:
    """Return the files of a view that this run wrote; those of a table that is not ours all count."""
    if view.table is None:
        return compute.matching(view.path)
    own = tables.partition(str(compute.root(work.store, view.table)), work.spec.interval)
    return [own] if own.exists() else []


def _report(work: Work, computed: Mapping[str, Computed], views: Mapping[str, ViewSkew], newest: Any) -> ReportRef:
    interval, path = work.spec.interval, work.store / "skew" / f"interval={work.spec.interval.key}.json"
    digests = {name: item.ref.digest for name, item in sorted(computed.items())}
    share = logic.skew_share(views)
    body: dict[str, Any] = {"interval": codec.encode(interval), "tables": digests, "comparable": bool(views)}
    if views:
        passed: Optional[bool] = share <= work.spec.max_skew
        body |= {"share": share, "max_skew": work.spec.max_skew, "passed": passed, "views": codec.encode(views)}
    else:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if before.get("passed") and before.get("tables") == digests:
            body, passed = before, True  # what was compared when this interval was the newest still holds
        else:
            passed = None
            body["reason"] = "a later interval is in the online store already"
    tables.write_text(path, json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False))
    summary: dict[str, Any] = {k: body[k] for k in ("comparable", "share") if k in body}
    return ReportRef("skew", str(path), tables.file_digest(path), passed, summary=summary)


def _rows(work: Work) -> Optional[DatasetRef]:
    if work.rows is None:
        return None
    interval = work.spec.interval
    path = tables.partition(str(work.store / "joined"), interval)
    query = work.rows.at_t(interval.start, interval.end, work.rows.join_keys(work.picks))
    joined.write(work.connection, work.rows, query, work.picks, path, work.store, interval)
    return tables.describe("joined", path, interval=interval)


def _labels(work: Work) -> Optional[DatasetRef]:
    if work.rows is None or work.rows.label is None:
        return None
    path = tables.partition(str(work.store / "labels"), work.spec.interval)
    with compute.explained("spine.label"):
        tables.write(work.connection, work.rows.labels_known_in(work.spec.interval), path)
    return tables.describe("labels", path, interval=work.spec.interval)


def provenance(info: RunInfo, repo: Repository, inputs: Sequence[Any]) -> Provenance:
    """Return what a result was made from."""
    features = tables.file_digest(repo.path / definition.FILE)
    return Provenance(
        code=code(info, features=features, feast=repo.digest),
        data={ref.name: ref.digest for ref in inputs},
        environment=environment(LIBRARIES),
        why=why(info),
    )


def _result(
    work: Work,
    info: RunInfo,
    computed: Mapping[str, Computed],
    rows: Optional[DatasetRef],
    labels: Optional[DatasetRef],
    skew: Optional[ReportRef],
    materialised: int,
) -> FeaturesResult:
    spine_source = [work.rows.source.name] if work.rows else []
    names = compute.used_sources(work.definition, computed.values(), *spine_source)
    inputs = {name: work.opened[name].ref() for name in names}
    uris = {name: ref.uri for name, ref in inputs.items()}
    outputs = {item.ref.uri: compute.column_lineage(item.lineage, uris) for item in computed.values()}
    if rows and work.rows:
        own = {p.view.name: _view_uri(work, p.view) for p in work.picks}
        lineage = {**work.rows.lineage(), **joined.lineage(work.picks)}
        outputs[rows.uri] = compute.column_lineage(lineage, {**uris, **own})
    if labels and work.rows:
        lineage = {k: v for k, v in work.rows.lineage().items() if k in labels.columns}
        outputs[labels.uri] = compute.column_lineage({**lineage, **work.rows.label_lineage()}, uris)
    written = [*(item.ref for item in computed.values()), *(ref for ref in (rows, labels) if ref)]
    facets = {
        "inputs": {ref.uri: {"input_rows": ref.rows} for ref in inputs.values()},
        "outputs": {
            ref.uri: {"column_lineage": outputs[ref.uri], "quality_metrics": {"row_count": ref.rows, "columns": {}}}
            for ref in written
        },
        "run": {"provenance": provenance(info, work.repository, list(inputs.values()))},
    }
    metrics = {"materialised": float(materialised)}
    metrics.update({ref.name: float(ref.rows or 0) for ref in (rows, labels) if ref})
    refused = skew is not None and skew.passed is False
    if skew is not None and "share" in skew.summary:
        metrics["skew"] = skew.summary["share"]
    return FeaturesResult(
        status="refused" if refused else "ok",
        reason=_reason(work.spec, skew, refused, _undelivered(work)),
        inputs=tuple(inputs.values()),
        outputs=tuple(written),
        metrics=metrics,
        links={"skew": skew.uri} if skew else {},
        facets=facets,
        dataset=rows,
        labels=labels,
        tables=tuple(item.ref for item in computed.values()),
        skew=skew,
    )


def _view_uri(work: Work, view: logic.View) -> str:
    if view.table is None:
        return view.path
    root = str(compute.root(work.store, view.table))
    return str(tables.partition(root, work.spec.interval))


def _undelivered(work: Work) -> list[str]:
    """Return the sources in folders that have no partition of the interval."""
    found = []
    for name, source in work.opened.items():
        root = tables.local_path(source.source.root)
        if root.is_dir() and not tables.partition(str(root), work.spec.interval).exists():
            found.append(name)
    return found


def _reason(spec: FeaturesSpec, skew: Optional[ReportRef], refused: bool, undelivered: Sequence[str]) -> str:
    parts = []
    if skew is not None and refused:
        parts.append(
            f"{skew.summary['share']:.4%} of the online values differ from the offline ones, at most "
            f"{spec.max_skew:.4%} are allowed; see {skew.uri}"
        )
    if undelivered:
        parts.append(f"no partition {spec.interval.key} of {', '.join(undelivered)}")
    return "; ".join(parts)

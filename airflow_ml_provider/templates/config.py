"""The configuration of a pipeline: what differs between one prediction problem and the next, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.intervals import Grain
from airflow_ml_provider.runtime import Pod
from airflow_ml_provider.stages.evaluate.spec import OperatingPoint
from airflow_ml_provider.stages.features.spec import Source, Spine, Split
from airflow_ml_provider.stages.ingest.spec import Column
from airflow_ml_provider.stages.load_test.spec import LoadProfile, check_budget
from airflow_ml_provider.stages.monitor.spec import DriftPolicy
from airflow_ml_provider.stages.optimise.spec import DEFAULT_RECIPES, OptimisePolicy, recipe
from airflow_ml_provider.stages.train.spec import Engine, Launch
from airflow_ml_provider.stages.validate.spec import ProfileSpec

_PLACEHOLDER = re.compile(r"\{(\w+)(?::[^}]*)?\}")


@dataclass(frozen=True)
class Schedule:
    """When runs happen; each is about the window between two ticks.

    Attributes:
        cron: ticks, in UTC.
        start: first window that the scheduler runs by itself; a backfill may go before it.
        end: last window that it runs; none goes on.
        catchup: run missed windows.
        max_active_runs: runs at the same time.
    """

    cron: str
    start: datetime
    end: datetime | None = None
    catchup: bool = True
    max_active_runs: int = 1


@dataclass(frozen=True)
class Dataset:
    """One landing feed and the table that it becomes.

    Attributes:
        source: glob of the landing files of a window, relative to the configuration; `{partition}` stands for its key,
            `{start}` and `{end}` for its bounds (with a format, such as `{start:%Y/%m/%d}`).
        columns: column to type, or to type with `required`, `known_at`, `aliases`.
        key: columns that identify a row.
        version: column of which the highest value wins.
        corrected_at: column that says when a corrected version of a row became known.
        mode: `overwrite` the window or `merge` by key.
        on_missing: no file is an error (`fail`) or an empty window (`empty`).
        wait_s: how long a run waits for its first file (seconds); by default it does not.
        suite: Great Expectations suite, relative to the configuration.
        profile: what quality is measured by; without suite and profile the dataset is not validated.
        allow_empty: an empty window passes validation, with a notice.
    """

    source: str
    columns: Mapping[str, str | Column]
    key: tuple[str, ...] = ()
    version: str | None = None
    corrected_at: str | None = None
    mode: Literal["overwrite", "merge"] = "overwrite"
    on_missing: Literal["fail", "empty"] = "fail"
    wait_s: float = 0.0
    suite: str | None = None
    profile: ProfileSpec | None = None
    allow_empty: bool = False

    def __post_init__(self) -> None:
        for name in _PLACEHOLDER.findall(self.source):
            if name not in ("partition", "start", "end"):
                raise unknown_name("placeholder in source", name, ("partition", "start", "end"))
        if self.wait_s < 0:
            raise invalid("wait_s", self.wait_s, "at least 0 (seconds)")
        late = {c.known_at for c in self.typed_columns().values()}
        for what, columns in (("key", self.key), ("version", {self.version}), ("corrected_at", {self.corrected_at}),
                              ("known_at", late)):  # fmt: skip
            for column in sorted(filter(None, columns)):
                if column not in self.columns:
                    raise unknown_name(f"column in {what}", column, self.columns)

    @property
    def validated(self) -> bool:
        """Whether the pipeline has a validate task for it."""
        return self.suite is not None or self.profile is not None

    def typed_columns(self) -> dict[str, Column]:
        """Return the columns with the short form spelt out."""
        return {n: c if isinstance(c, Column) else Column(type=c) for n, c in self.columns.items()}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Candidate:
    """One way to train.

    Attributes:
        engine: what trains.
        params: its settings.
        launch: processes and snapshots.
        runtime: path of the Python that has the engine, or a pod; empty takes that of the stage `train`.
    """

    engine: Engine
    params: Mapping[str, Any] = field(default_factory=dict)
    launch: Launch = field(default_factory=Launch)
    runtime: str | Pod = ""

    def __post_init__(self) -> None:
        if self.engine in ("function", "command"):
            hint = "a function of yours takes @task.train, a script TrainOperator"
            raise invalid("engine", self.engine, "lightgbm, sklearn or torch", hint)


@dataclass(frozen=True)
class Segments:
    """Separate models for separate values of one column.

    Attributes:
        column: the column.
        values: its values; each gets its own model.
    """

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Optimisation:
    """How each winner is made smaller or faster before it is registered.

    Attributes:
        recipes: what to try: steps joined by `+`, such as `int8_static` or `distill+int8_dynamic`.
        policy: what a candidate may lose, and what it is chosen by.
        batch_sizes: rows of a call whose latency is measured.
        providers: ONNX Runtime execution providers to measure on, in order of preference.
    """

    recipes: tuple[str, ...] = DEFAULT_RECIPES
    policy: OptimisePolicy = field(default_factory=OptimisePolicy)
    batch_sizes: tuple[int, ...] = (1, 64, 1024)
    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    def __post_init__(self) -> None:
        if not self.recipes:
            raise invalid("recipes", self.recipes, "at least one", "leave `optimise` out to try none")
        for name in self.recipes:
            recipe(name)


@dataclass(frozen=True)
class LoadTesting:
    """How fast each registered winner must answer before the gate decides, by a server of its own.

    Attributes:
        profile: when requests are sent.
        rows: rows per request.
        budget: part of a latency to the most milliseconds that 99 % of the requests may spend in it.
    """

    profile: LoadProfile
    rows: int = 1
    budget: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_budget(self.budget)


@dataclass(frozen=True)
class Training:
    """From labelled rows to the champion.

    Attributes:
        schedule: when training happens; none trains on assets and by hand only.
        candidates: ways to train; all are tried, the best per segment is registered.
        segments: separate models; none trains one for all rows.
        on_assets: names of further assets whose update starts training, beside the monitor's: those of this pipeline
            (`NAME.flights`, or `NAME.` and any other name, for updates by hand), or those that other DAGs define.
        history_days: how far back the training rows reach; none takes all.
        split: division by time.
        min_rows: fewer labelled training rows are an error.
        exclude: columns that are joined but never learnt from.
        metric: what the best candidate is chosen by.
        slices: columns and pairs (`a*b`) that are evaluated apart.
        min_slice_rows: smaller slices are listed, not judged.
        operating_point: where precision and recall are measured.
        optimise: try to make each winner smaller or faster; none registers it as it was trained.
        load_test: send requests to each winner before the gate judges it, by the `load` of its policy; none sends none.
        gate: policy file, relative to the configuration.
        promote_backfills: whether backfilled and cleared runs may promote newer models (`newer`) or not (`never`).
        on_refusal: a refused gate skips the promotion (`skip`) or also fails the run (`fail`).
        experiment: MLflow experiment; by default the pipeline's name.
        seed: seed of everything random.
        pool: Airflow pool of the training tasks.
        timeout_s: of one training task (seconds).
    """

    candidates: tuple[Candidate, ...]
    gate: str
    schedule: Schedule | None = None
    segments: Segments | None = None
    on_assets: tuple[str, ...] = ()
    history_days: int | None = None
    split: Split = field(default_factory=Split)
    min_rows: int = 500
    exclude: tuple[str, ...] = ()
    metric: str = "auc"
    slices: tuple[str, ...] = ()
    min_slice_rows: int = 100
    operating_point: OperatingPoint = field(default_factory=OperatingPoint)
    optimise: Optimisation | None = None
    load_test: LoadTesting | None = None
    promote_backfills: Literal["never", "newer"] = "never"
    on_refusal: Literal["skip", "fail"] = "skip"
    experiment: str | None = None
    seed: int = 0
    pool: str = "default_pool"
    timeout_s: float = 6 * 3600.0

    def __post_init__(self) -> None:
        from airflow_ml_provider.stages.evaluate.metrics import metric

        if not self.candidates:
            raise invalid("candidates", self.candidates, "at least one")
        metric(self.metric)
        if self.timeout_s <= 0:
            raise invalid("timeout_s", self.timeout_s, "greater than 0 (seconds)")


@dataclass(frozen=True)
class Serving:
    """Where the champions answer requests, and how traffic moves from one to the next.

    Attributes:
        place: where, as `{"local": {"root": …}}` or `{"kserve": {"namespace": …}}`.
        policy: attributes of a `RolloutPolicy`, or, by `strategy`, an `ExperimentPolicy` or a `BanditPolicy`.
        server: attributes of a `Server`.
        on_refusal: a candidate that is rolled back fails its task (`fail`) or skips it (`skip`).
        gate: `required`: only models with the gate's passing evidence are served; `waived`: any.
    """

    place: Mapping[str, Any]
    policy: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    on_refusal: Literal["fail", "skip"] = "fail"
    gate: Literal["required", "waived"] = "required"

    def __post_init__(self) -> None:
        from airflow_ml_provider.stages.deploy.place import resolve

        resolve(self.place)


@dataclass(frozen=True)
class Features:
    """What is known of a row at the moment of its prediction.

    Attributes:
        repo: folder of the Feast repository with `features.yaml`, relative to the configuration.
        spine: the rows that predictions are made for.
        use: `view:feature` names or one feature service; empty means all views.
        materialize: keep the online store fresh.
        max_skew: tolerated share of online values that differ from the offline ones.
        sources: further tables by name, beside the datasets.
    """

    repo: str
    spine: Spine
    use: tuple[str, ...] = ()
    materialize: bool = True
    max_skew: float = 0.0
    sources: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class Operations:
    """How the tasks behave as Airflow tasks.

    Attributes:
        owner: owner of the DAGs.
        tags: further tags.
        retries: tries after the first one; refusals are never retried.
        retry_delay_s: wait before the first retry; it doubles each time, with jitter (seconds).
        max_retry_delay_s: longest wait (seconds).
        timeout_s: of a task (seconds).
        mlflow_conn_id: connection to MLflow.
        runtime: path of the Python for the stages, or a pod (its `image` and so on); empty runs them in the task's
            process.
        runtimes: stage to path or pod, where a stage differs.
    """

    owner: str = "ml"
    tags: tuple[str, ...] = ()
    retries: int = 2
    retry_delay_s: float = 30.0
    max_retry_delay_s: float = 600.0
    timeout_s: float = 3600.0
    mlflow_conn_id: str = "mlflow_default"
    runtime: str | Pod = ""
    runtimes: Mapping[str, str | Pod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from airflow_ml_provider.stages import STAGES

        for stage in self.runtimes:
            if stage not in STAGES:
                raise unknown_name("stage", stage, STAGES)
        if self.timeout_s <= 0:
            raise invalid("timeout_s", self.timeout_s, "greater than 0 (seconds)")

    def runtime_of(self, stage: str) -> str | Pod:
        """Return the Python or the pod of a stage; empty means the task's own process."""
        return self.runtimes.get(stage, self.runtime)


@dataclass(frozen=True)
class PipelineConfig:
    """A whole pipeline: feeds in, predictions out, models kept honest.

    Attributes:
        name: name of the pipeline, its DAGs, models and experiment.
        store: root folder of everything that the pipeline writes, relative to the configuration.
        schedule: when scoring happens.
        datasets: feeds by name.
        features: what is known of a row at its prediction.
        training: from labels to champion.
        description: one sentence for the DAG's page.
        grain: window of runs that have none (manual runs without dates).
        monitor: when is it drift, when does training start again.
        serving: where the champions answer requests; none serves none.
        operations: how the tasks behave.
        folder: folder that relative paths start from; by default that of the configuration file.
    """

    name: str
    store: str
    schedule: Schedule
    datasets: Mapping[str, Dataset]
    features: Features
    training: Training
    description: str = ""
    grain: Grain = "day"
    monitor: DriftPolicy = field(default_factory=DriftPolicy)
    serving: Serving | None = None
    operations: Operations = field(default_factory=Operations)
    folder: str = ""

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").replace("-", "").isalnum():
            raise invalid("name", self.name, "letters, digits, - and _")
        spine = self.features.spine.source
        known = {**self.datasets, **self.features.sources}
        if spine not in known:
            raise unknown_name("spine.source", spine, known)
        segments = self.training.segments
        if segments and not segments.values:
            raise SpecError("training.segments.values is empty; leave segments out to train one model")
        if len(set(self.models)) < len(self.models):
            raise SpecError(f"training.segments.values give the same model name twice: {', '.join(self.models)}")

    @property
    def models(self) -> tuple[str, ...]:
        """Registered names of the pipeline's models, one per segment."""
        from airflow_ml_provider.stages.train.logic import model_name

        segments = self.training.segments
        if segments is None:
            return (self.name,)
        return tuple(model_name(self.name, {segments.column: value}) for value in segments.values)

    def path(self, relative: str) -> str:
        """Return a path of the configuration as an absolute one; the folder is where the configuration lies."""
        import os

        whole = os.path.isabs(relative) or "://" in relative
        return relative if whole else os.path.join(self.folder, relative)

    def place(self, *parts: str) -> str:
        """Return a folder of the store."""
        return "/".join([self.path(self.store).rstrip("/"), *parts])

    def table(self, dataset: str) -> str:
        """Return the root of a dataset's usable table: the admitted rows where it is validated, else the ingested."""
        kind = "valid" if self.datasets[dataset].validated else "raw"
        return self.place(kind, dataset)

    def sources(self) -> dict[str, Source]:
        """Return the tables that features are computed from."""
        tables = {
            name: Source(
                root=self.table(name),
                key=dataset.key,
                version=dataset.version,
                corrected_at=dataset.corrected_at,
                known_at={n: c.known_at for n, c in dataset.typed_columns().items() if c.known_at},
            )
            for name, dataset in self.datasets.items()
        }
        return {**tables, **self.features.sources}

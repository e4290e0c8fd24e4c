"""What the train stage is asked and what it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Optional, Union, get_args

from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.refs import DatasetRef, ModelRef
from airflow_ml_provider.stages import Result, Spec

Engine = Literal["lightgbm", "sklearn", "torch", "function", "command"]
Encoding = Literal["auto", "ordinal", "one_hot", "indexed"]
AfterClear = Literal["resume", "fresh"]

_NODES = re.compile(r"[0-9]+(:[0-9]+)?\Z")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class Function:
    """A user's training function, carried as source so that any runtime can run it.

    Attributes:
        name: name of the function in `source`.
        source: the function's source, decorators removed; imports belong inside it.
        kwargs: further arguments, JSON types only.
    """

    name: str
    source: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """How many processes train together, by torchrun with the gloo back end on CPUs and NCCL on GPUs.

    Attributes:
        processes: local processes, on each node; 1 on one node trains in the stage's own process.
        nodes: pods that train together, as a number, or as `FEWEST:MOST` when training may go on with fewer.
        max_restarts: how often torchrun starts all ranks again after one of them fails, resuming from the snapshot.
        snapshot_every: steps between snapshots; 0 writes one at the end of every epoch.
        keep: how many snapshots are kept.
        snapshots: root folder or URI for snapshots (`s3://bucket/snapshots`, whatever fsspec reaches), under which each
            training has a folder of its own; none keeps them in the folder of the package.
        after_clear: a cleared task goes on from snapshots and package of before (`resume`), or does not use them and
            begins anew (`fresh`); its own retries resume either way.
        price_per_hour: what one rank costs in an hour, in any currency, for the cost of a million samples.
        profile_steps: how many steps of every rank torch.profiler records, once, after a warm-up of three; 0 records
            none, and costs nothing.
    """

    processes: int = 1
    nodes: Union[int, str] = 1
    max_restarts: int = 0
    snapshot_every: int = 0
    keep: int = 2
    snapshots: Optional[str] = None
    after_clear: AfterClear = "resume"
    price_per_hour: Optional[float] = None
    profile_steps: int = 0

    def __post_init__(self) -> None:
        if self.after_clear not in get_args(AfterClear):
            raise unknown_name("launch.after_clear", str(self.after_clear), get_args(AfterClear))
        if self.price_per_hour is not None and self.price_per_hour < 0:
            raise invalid("launch.price_per_hour", self.price_per_hour, "0 or more")
        least = {"processes": 1, "max_restarts": 0, "snapshot_every": 0, "keep": 1, "profile_steps": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise invalid(f"launch.{name}", getattr(self, name), f"at least {number}")
        if not _NODES.match(str(self.nodes)) or not 1 <= self.span[0] <= self.span[1]:
            raise invalid("launch.nodes", self.nodes, "a number of 1 or more, or FEWEST:MOST such as '1:4'")

    @property
    def span(self) -> tuple[int, int]:
        """How many nodes there are at least and at most."""
        fewest, _, most = str(self.nodes).partition(":")
        return int(fewest), int(most or fewest)

    @property
    def ranks(self) -> int:
        """How many processes there are in all when no node is missing."""
        return self.processes * self.span[1]


@dataclass(frozen=True)
class TrainResult(Result):
    """The trained model.

    Attributes:
        model: the model package (see `airflow_ml_provider.models`), not registered yet.
        resumed_from: step of the snapshot that training went on from; none when it started afresh.
        performance: how fast it was: `samples_per_s`, `straggler_ratio` and more. Not part of what is compared: the
            same model is made at another speed.
    """

    model: Optional[ModelRef] = None
    resumed_from: Optional[int] = None
    performance: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class TrainSpec(Spec):
    """Fit one binary classifier and package it, reproducibly and resumably.

    Attributes:
        name: name of the model; per segment its values are appended: `flight_delay_ewr`.
        dataset: training rows.
        output: root folder for packages and snapshots.
        label: column with 0 or 1.
        timestamp: column with the time of a row; the newest rows are the validation rows.
        features: columns to learn from; empty takes all but `exclude`, label, timestamp and the segment's columns.
            Text columns are categorical.
        exclude: columns that identify rows and are never learnt from.
        engine: `lightgbm`, `sklearn` (logistic regression or `params.estimator`), `torch` (a network for tables),
            `function` (the user's), `command` (a script of the user's).
        params: settings of the engine.
        segment: column values that this model is for; rows that differ are left out.
        function: the user's function, for engine `function`.
        command: the user's script and its arguments, or `-m`, a module and its arguments, for engine `command`; see
            `airflow_ml_provider.stages.train.command` for what it finds and what it must leave.
        launch: processes and snapshots, for engines `torch`, `function` and `command`.
        validation: share of the newest training rows that is used for early stopping and the operating point.
        seed: seed of everything random.
        experiment: MLflow experiment; none trains without tracking.
        encoding: what the model sees: `ordinal` (numbers as they are, categories as ranks: trees), `one_hot`
            (standardised numbers, a column per category: linear models), `indexed` (standardised numbers, categories
            as indices: embeddings); `auto` takes what suits the engine, and `one_hot` for a function.
    """

    stage: ClassVar[str] = "train"
    entry: ClassVar[str] = "airflow_ml_provider.stages.train.engines:run"
    result: ClassVar[type[Result]] = TrainResult
    name: str
    dataset: DatasetRef
    output: str
    label: str = "label"
    timestamp: str = "event_timestamp"
    features: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    engine: Engine = "lightgbm"
    params: Mapping[str, Any] = field(default_factory=dict)
    segment: Mapping[str, str] = field(default_factory=dict)
    function: Optional[Function] = None
    command: tuple[str, ...] = ()
    launch: Launch = field(default_factory=Launch)
    validation: float = 0.15
    seed: int = 0
    experiment: Optional[str] = None
    encoding: Encoding = "auto"

    def __post_init__(self) -> None:
        if not _SAFE_NAME.match(self.name):
            raise invalid("name", self.name, "letters, digits and _ . - (it names a folder)")
        for name, kind in (("engine", Engine), ("encoding", Encoding)):
            if getattr(self, name) not in get_args(kind):
                raise unknown_name(name, str(getattr(self, name)), get_args(kind))
        if not 0 < self.validation < 1:
            raise invalid("validation", self.validation, "in (0, 1)", "give a fraction, not percent")
        if not 0 <= self.seed < 2**31:
            raise invalid("seed", self.seed, "in [0, 2**31)")
        if (self.engine == "function") != (self.function is not None):
            raise SpecError("engine 'function' and the argument function go together; use @task.train")
        if (self.engine == "command") != bool(self.command) or self.command == ("-m",):
            raise SpecError("engine 'command' and the argument command go together: a script, or -m and a module")
        for name, most in (("processes", self.launch.processes), ("nodes", self.launch.span[1])):
            if most > 1 and self.engine not in ("torch", "function", "command"):
                raise invalid(f"launch.{name}", getattr(self.launch, name), f"1 for engine {self.engine!r}")
        if self.launch.profile_steps and self.engine not in ("torch", "function"):
            raise invalid("launch.profile_steps", self.launch.profile_steps, f"0 for engine {self.engine!r}")

    @property
    def nodes(self) -> tuple[int, int]:
        return self.launch.span

    @property
    def processes(self) -> int:
        return self.launch.processes

    def requires(self) -> dict[str, str]:
        needs = {"numpy": "numpy", "pyarrow": "pyarrow", "onnx": "onnx", "onnxruntime": "onnxruntime"}
        if self.engine == "lightgbm":
            needs.update({"lightgbm": "lightgbm", "onnxmltools": "onnxmltools"})
        elif self.engine == "sklearn":
            needs.update({"sklearn": "scikit-learn", "skops": "skops", "skl2onnx": "skl2onnx"})
        elif self.engine == "torch" or self.launch.ranks > 1:
            needs.update({"torch": "torch", "safetensors": "safetensors", "onnxscript": "onnxscript"})
        if self.experiment:
            needs["mlflow"] = "mlflow-skinny"
        return needs

"""Train one model, reproducibly and resumably."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import XComArg

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.links import ProfileLink
from airflow_ml_provider.operators._base import StageOperator, names
from airflow_ml_provider.refs import DatasetRef, as_ref
from airflow_ml_provider.runtime import Pod
from airflow_ml_provider.stages.train.spec import Encoding, Engine, Function, Launch, TrainSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval


class TrainOperator(StageOperator):
    """Fit one binary classifier and package it as ONNX with its preprocessing, native file, profile and provenance.

    A retry finds what an earlier try has done: the finished package, the snapshot, the MLflow run. For a network or a
    model of your own take `@task.train`.

    Parameters:
        name: name of the model; per segment its values are appended: `flight_delay_ewr`.
        dataset: training rows: the training set stage's `train`, or a ref.
        output: root folder for packages and snapshots.
        label: column with 0 or 1.
        timestamp: column with the time of a row; the newest rows are the validation rows.
        features: columns to learn from; empty takes all but `exclude`, label, timestamp and the segment's columns.
        exclude: columns that identify rows and are never learnt from.
        engine: `lightgbm`, `sklearn`, `torch`, or `command` for a script of your own.
        engine_params: settings of the engine. (`params` is Airflow's own argument, for the parameters of a run.)
        segment: column values that this model is for; rows that differ are left out.
        command: script and arguments, for engine `command`; what it finds and must leave is told in the documentation.
        launch: processes and snapshots, for engines `torch` and `command`: a `Launch` or a mapping of its fields.
        validation: share of the newest training rows that is used for early stopping and the operating point.
        seed: seed of everything random.
        experiment: MLflow experiment; none trains without tracking.
        encoding: what the model sees: `ordinal`, `one_hot`, `indexed`, or `auto`, which takes what suits the engine.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "name", "dataset", "output_root", "label_column", "timestamp", "features",
        "exclude", "engine", "engine_params", "segment", "command", "launch", "validation", "seed", "experiment",
        "encoding",
    )  # fmt: skip
    operator_extra_links = (*StageOperator.operator_extra_links, ProfileLink())  # type: ignore[assignment]
    uses_mlflow: ClassVar[bool] = True

    def __init__(
        self,
        *,
        name: str,
        dataset: DatasetRef | Mapping[str, Any],
        output: str,
        label: str = "label",
        timestamp: str = "event_timestamp",
        features: Sequence[str] = (),
        exclude: Sequence[str] = (),
        engine: Engine = "lightgbm",
        engine_params: Mapping[str, Any] | None = None,
        segment: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
        launch: Launch | Mapping[str, Any] | None = None,
        validation: float = 0.15,
        seed: int = 0,
        experiment: str | None = None,
        encoding: Encoding = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.dataset = dataset
        self.output_root = output  # `output` and `label` are properties of every operator
        self.label_column = label
        self.timestamp = timestamp
        self.features = features
        self.exclude = exclude
        self.engine = engine
        self.engine_params = engine_params or {}
        self.segment = segment or {}
        self.command = command
        self.launch = launch or {}
        self.validation = validation
        self.seed = seed
        self.experiment = experiment
        self.encoding = encoding
        self._check()

    @property
    def title(self) -> str:
        """What tells this model from its siblings, for `map_index_template="{{ task.title }}"`."""
        return " ".join([str(self.engine), *map(str, self.segment.values())])

    def environment(self) -> dict[str, str]:
        return super().environment() if self.experiment else {}

    def build_spec(self, interval: Interval, context: Context) -> TrainSpec:
        return self._spec(as_ref(DatasetRef, self.dataset, "dataset"))

    def _spec(self, dataset: DatasetRef, function: Function | None = None) -> TrainSpec:
        if not isinstance(self.segment, Mapping):
            raise invalid("segment", self.segment, 'a mapping of columns to values, such as {"origin": "EWR"}')
        return TrainSpec(
            name=self.name,
            dataset=dataset,
            output=self.output_root,
            label=self.label_column,
            timestamp=self.timestamp,
            features=names(self.features),
            exclude=names(self.exclude),
            engine=self.engine,
            params=dict(self.engine_params),
            segment={str(column): str(value) for column, value in self.segment.items()},
            function=function,
            command=names(self.command),
            launch=codec.decode(Launch, self.launch, "launch"),
            validation=_number("validation", self.validation, float),
            seed=_number("seed", self.seed, int),
            experiment=self.experiment or None,
            encoding=self.encoding,
        )

    def _check(self) -> None:
        """Fail while the DAG is parsed, if all values are known by then and one of them is wrong."""
        values = [getattr(self, name) for name in TrainOperator.template_fields if name != "dataset"]
        if not any(map(_comes_later, values)):
            function = Function("fit", "") if self.engine == "function" else None
            spec = self._spec(DatasetRef(name="later", uri="", digest=""), function)
            if spec.nodes != (1, 1) and not isinstance(self._active, Pod):
                raise invalid("launch.nodes", spec.launch.nodes, "1 without pods", "give the task runtime=Pod(…)")


def _comes_later(value: Any) -> bool:
    """Whether a value is, or holds, a template or what another task will give."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(map(_comes_later, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_comes_later, value))
    return isinstance(value, XComArg)


def _number(what: str, value: Any, kind: type[Any]) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise SpecError(f"{what} must be a number, got {value!r}") from None

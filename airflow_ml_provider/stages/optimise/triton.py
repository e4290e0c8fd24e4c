"""A Triton model repository made of model packages: `NAME/config.pbtxt`, `NAME/VERSION/model.onnx`, warm-up rows.

The text is that of `ModelConfig` in Triton's `model_config.proto`, written without protobuf, so that nothing need be
installed. A repository of one model named as its service is what KServe's Triton runtime serves.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import models
from airflow_ml_provider.exceptions import DataError, SpecError, invalid
from airflow_ml_provider.models import InputType
from airflow_ml_provider.stages.optimise.spec import TritonSettings
from airflow_ml_provider.stages.train.package import beside, commit

CONFIG, WARM_UP = "config.pbtxt", "warmup"
_TYPES: Mapping[InputType, str] = {"float": "TYPE_FP32", "string": "TYPE_STRING"}


class Name(str):
    """A name of an enumeration, which stands without quotes."""


Fields = Mapping[str, Any]
"""Fields of a message: a sequence repeats the field, a mapping is a message within."""


def text(fields: Fields, indent: str = "") -> str:
    """Return a message in protobuf's text format.

    >>> print(text({"name": "late", "input": [{"name": "hour", "dims": [1]}]}), end="")
    name: "late"
    input {
      name: "hour"
      dims: 1
    }
    """
    lines = []
    for name, value in fields.items():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, Mapping):
                lines.append(f"{indent}{name} {{\n{text(one, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(one)}\n")
    return "".join(lines)


def write_model(
    repository: Path, package: Path, name: Optional[str] = None, settings: Optional[TritonSettings] = None
) -> Path:
    """Put a model package into a repository, in the place of the model of that name; return its folder.

    Parameters:
        repository: root folder of the repository.
        package: the model package.
        name: what requests call the model; none takes the package's own.
        settings: batching, instances, warm-up, accelerator; none takes the defaults.

    Raises:
        DataError: the package is not complete, or has no sample to warm up with.
    """
    settings = settings or TritonSettings()
    manifest = models.read_manifest(package)
    folder = repository / _checked(name or manifest.name)
    files = _warm_up_files(package, manifest.inputs) if settings.warm_up else {}
    body = model_config(folder.name, manifest.inputs, settings)
    return _write(folder, body, settings.version, (package / models.ONNX).read_bytes(), files)


def write_ensemble(
    repository: Path, name: str, packages: Mapping[str, Path], *, weights: Optional[Mapping[str, float]] = None,
    settings: Optional[TritonSettings] = None,
) -> Path:  # fmt: skip
    """Put several packages into a repository with an ensemble that answers the weighted mean of their scores.

    Triton runs the members side by side, each with what it needs of the ensemble's inputs, then `NAME_blend`.

    Parameters:
        repository: root folder of the repository.
        name: what requests call the ensemble.
        packages: member's name to its package.
        weights: by member; they are made to sum to 1. None weighs all alike.
        settings: of the members.

    Raises:
        SpecError: there are fewer than two members, weights are not theirs, or two read a column as different types.
    """
    settings = settings or TritonSettings()
    shares = _shares(packages, weights)
    inputs: dict[str, InputType] = {}
    steps = []
    for member, package in packages.items():
        write_model(repository, package, member, settings)
        own = models.read_manifest(package).inputs
        for column, kind in own.items():
            if inputs.setdefault(column, kind) != kind:
                raise SpecError(
                    f"ensemble {name!r}: column {column!r} is {kind} for {member!r}, {inputs[column]} before"
                )
        steps.append(step(member, {column: column for column in own}, {models.SCORE: f"{member}_score"}))
    blend = f"{name}_blend"
    outputs = {f"{member}_score": "TYPE_FP32" for member in packages}
    plain = replace(settings, warm_up=(), accelerator=None, accelerator_parameters={})
    _write(repository / blend, _config(blend, outputs, plain), settings.version, blend_graph(shares))
    steps.append(step(blend, {tensor: tensor for tensor in outputs}, {models.SCORE: models.SCORE}))
    return write_steps(repository, name, inputs, steps, settings)


def write_steps(
    repository: Path, name: str, inputs: Mapping[str, InputType], steps: Sequence[Fields], settings: TritonSettings
) -> Path:
    """Put an ensemble of any steps into a repository; the last step's `score` is its output.

    Parameters:
        repository: root folder of the repository.
        name: what requests call the ensemble.
        inputs: its columns and their types.
        steps: as `step` makes them; in any order.
        settings: of which the version and the largest batch count.

    Raises:
        SpecError: the steps are no directed acyclic graph from the inputs to `score`.
    """
    check_steps(name, inputs, steps)
    body = {
        "name": _checked(name),
        "platform": "ensemble",
        "max_batch_size": settings.max_batch_size,
        "input": [_tensor(column, _TYPES[kind]) for column, kind in inputs.items()],
        "output": [_tensor(models.SCORE, "TYPE_FP32")],
        "ensemble_scheduling": {"step": list(steps)},
    }
    return _write(repository / name, body, settings.version, None)


def step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str], version: int = -1) -> Fields:
    """Return one step of an ensemble.

    Parameters:
        model: name of the model in the repository.
        inputs: the model's input to the ensemble's tensor that feeds it.
        outputs: the model's output to the ensemble's tensor that it becomes.
        version: of the model; -1 is the newest.
    """

    def entries(pairs: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"key": key, "value": value} for key, value in pairs.items()]

    return {
        "model_name": model, "model_version": version, "input_map": entries(inputs), "output_map": entries(outputs)
    }  # fmt: skip


def check_steps(name: str, inputs: Iterable[str], steps: Sequence[Fields]) -> None:
    """Raise `SpecError` unless the steps lead from the inputs to `score`, each tensor made once, without a cycle."""
    made: dict[str, str] = {}
    for one in steps:
        for entry in one["output_map"]:
            if made.setdefault(entry["value"], one["model_name"]) != one["model_name"] or entry["value"] in inputs:
                raise SpecError(f"ensemble {name!r}: tensor {entry['value']!r} is made twice; give it another name")
    ready, waiting = set(inputs), list(steps)
    while waiting:
        able = [one for one in waiting if all(entry["value"] in ready for entry in one["input_map"])]
        if not able:
            lacks = {entry["value"] for one in waiting for entry in one["input_map"]} - ready
            cycle = "they wait for each other" if lacks <= set(made) else "no step makes them"
            raise SpecError(f"ensemble {name!r} never has {', '.join(sorted(lacks))}: {cycle}")
        ready.update(entry["value"] for one in able for entry in one["output_map"])
        waiting = [one for one in waiting if one not in able]
    if models.SCORE not in made:
        raise SpecError(f"ensemble {name!r}: no step makes {models.SCORE!r}; there are {', '.join(sorted(made))}")


def model_config(name: str, inputs: Mapping[str, InputType], settings: TritonSettings) -> dict[str, Any]:
    """Return the fields of the configuration of a model with these columns."""
    body = _config(name, {column: _TYPES[kind] for column, kind in inputs.items()}, settings)
    if settings.warm_up:
        body["model_warmup"] = [
            {
                "name": f"{size} rows",
                "batch_size": size,
                "inputs": [
                    {
                        "key": column,
                        "value": {"data_type": Name(_TYPES[kind]), "dims": [1], "input_data_file": f"{i}.raw"},
                    }
                    for i, (column, kind) in enumerate(inputs.items())
                ],
            }
            for size in settings.warm_up
        ]
    return body


def blend_graph(weights: Mapping[str, float]) -> bytes:
    """Return the graph of the weighted mean of scores: inputs `MEMBER_score` [N, 1], output `score` [N, 1]."""
    from onnx import TensorProto, checker, helper

    names = [f"{member}_score" for member in weights]
    column = helper.make_tensor("weights", TensorProto.FLOAT, [len(names), 1], list(weights.values()))
    nodes = [
        helper.make_node("Concat", names, ["scores"], axis=1),
        helper.make_node("MatMul", ["scores", "weights"], [models.SCORE]),
    ]
    graph = helper.make_graph(
        nodes,
        "blend",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in names],
        [helper.make_tensor_value_info(models.SCORE, TensorProto.FLOAT, ["N", 1])],
        [column],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _config(name: str, inputs: Mapping[str, str], settings: TritonSettings) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": _checked(name),
        "backend": "onnxruntime",
        "max_batch_size": settings.max_batch_size,
        "input": [_tensor(column, kind) for column, kind in inputs.items()],
        "output": [_tensor(models.SCORE, "TYPE_FP32")],
        "instance_group": [
            {"count": group.count, "kind": Name(f"KIND_{group.kind.upper()}"), "gpus": list(group.gpus)}
            for group in settings.instances
        ],
        "parameters": [{"key": "intra_op_thread_count", "value": {"string_value": str(settings.threads)}}],
    }
    if settings.dynamic_batching:
        body["dynamic_batching"] = {
            "preferred_batch_size": list(settings.preferred_batch_sizes),
            "max_queue_delay_microseconds": settings.queue_delay_us,
        }
    if settings.accelerator:
        where = "gpu_execution_accelerator" if settings.accelerator == "tensorrt" else "cpu_execution_accelerator"
        pairs = [{"key": key, "value": value} for key, value in settings.accelerator_parameters.items()]
        accelerator = {"name": settings.accelerator, "parameters": pairs}
        body["optimization"] = {"execution_accelerators": {where: [accelerator]}}
    return body


def _tensor(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "data_type": Name(kind), "dims": [1]}


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Name) or not isinstance(value, str):
        return str(value)
    body = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in value.encode())
    return f'"{body}"'


def _warm_up_files(package: Path, inputs: Mapping[str, InputType]) -> dict[str, bytes]:
    """Return the first row of the package's sample as Triton reads it: floats, and texts after their lengths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(package / models.SAMPLE) as file:
            table = file.read_row_group(0, columns=list(inputs)).slice(0, 1)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{package} has no sample to warm up with: {error}; give warm_up=()") from error
    files = {}
    for i, (column, kind) in enumerate(inputs.items()):
        value = models.read_input(table, column, kind, package.name)[0, 0]
        encoded = str(value).encode()
        raw = struct.pack("<f", value) if kind == "float" else struct.pack("<I", len(encoded)) + encoded
        files[f"{i}.raw"] = raw
    return files


def _write(
    folder: Path, body: Fields, version: int, graph: Optional[bytes], files: Optional[Mapping[str, bytes]] = None
) -> Path:
    """Write a model's folder aside and put it in place in one step."""
    aside = beside(folder, "new")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / str(version)).mkdir(parents=True)  # an ensemble has one, too, with nothing in it
    (aside / CONFIG).write_text(text(body), encoding="utf-8")
    if graph is not None:
        (aside / str(version) / models.ONNX).write_bytes(graph)
    for name, raw in (files or {}).items():
        (aside / WARM_UP).mkdir(exist_ok=True)
        (aside / WARM_UP / name).write_bytes(raw)
    commit(folder)
    return folder


def _shares(packages: Mapping[str, Path], weights: Optional[Mapping[str, float]]) -> dict[str, float]:
    if len(packages) < 2:
        raise invalid("members of an ensemble", list(packages), "at least two")
    given = dict.fromkeys(packages, 1.0) if weights is None else dict(weights)
    if set(given) != set(packages) or min(given.values()) < 0 or not sum(given.values()):
        raise invalid("weights of an ensemble", given, f"a positive number for each of {', '.join(packages)}")
    return {member: given[member] / sum(given.values()) for member in packages}


def _checked(name: str) -> str:
    if not name or set(name) & set("/\\") or name.startswith("."):
        raise invalid("name of a Triton model", name, "the name of a folder")
    return name

"""ONNX graphs as quantisers want them: every value with its type, one entry per operator set, weights found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_ml_provider.stages.optimise.logic import NotApplicable


def load(graph: bytes) -> Any:
    """Return the model of a graph with the type of every value in it.

    ONNX's own inference stops at operators of `ai.onnx.ml`, and quantisers leave alone what has no type; ONNX Runtime
    knows them all.
    """
    import onnx

    model = onnx.load_from_string(graph)
    _tidy_opsets(model)
    known = {value.name for value in [*model.graph.output, *model.graph.value_info]}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for found in session(probe.SerializeToString(), optimise=False).get_outputs():
        kind = _kinds().get(found.type)
        if found.name not in known and kind is not None:
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(found.name, kind, found.shape or None))
    return model


def save(model: Any) -> bytes:
    """Return the bytes of a model: the same for the same model, without what only the tools needed."""
    _tidy_opsets(model)
    del model.graph.value_info[:]
    model.producer_name = "airflow_ml_provider"
    for field in ("producer_version", "domain", "doc_string"):
        model.ClearField(field)
    del model.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


def session(graph: bytes, *, optimise: bool = True, path: str = "", level: str = "") -> Any:
    """Return a session on the CPU.

    Parameters:
        graph: the ONNX file.
        optimise: whether ONNX Runtime may change the graph.
        path: where to leave the changed graph.
        level: how far the changes go: `basic`, `extended`, or all.
    """
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    elif level:
        options.graph_optimization_level = getattr(levels, f"ORT_ENABLE_{level.upper()}")
    if path:
        options.optimized_model_filepath = path
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def products(model: Any) -> Iterator[tuple[Any, Any]]:
    """Give the nodes that multiply with a constant matrix or kernel, and that constant."""
    weights = {w.name: w for w in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv") and len(node.input) > 1 and node.input[1] in weights:
            yield node, weights[node.input[1]]


def before_products(model: Any) -> list[str]:
    """Return the names of the nodes that depend on no layer, which raw columns go through; nodes get names for it."""
    layers = {node.output[0] for node, _ in products(model)}
    behind: set[str] = set()
    found = []
    for i, node in enumerate(model.graph.node):  # in order of dependency
        node.name = node.name or f"node_{i}"
        if layers.intersection(node.output) or behind.intersection(node.input):
            behind.update(node.output)
        else:
            found.append(node.name)
    return found


def need_products(model: Any, what: str) -> None:
    """Raise `NotApplicable` unless there is a layer whose weights `what` can be done to."""
    if any(True for _ in products(model)):
        return
    kinds = sorted({node.op_type for node in model.graph.node if node.domain == "ai.onnx.ml"}) or sorted(
        {node.op_type for node in model.graph.node}
    )
    trees = " (trees compare, they do not multiply)" if any(k.startswith("TreeEnsemble") for k in kinds) else ""
    raise NotApplicable(
        f"{what} needs layers that multiply with weights; the graph has none{trees}: {', '.join(kinds)}"
    )


def _tidy_opsets(model: Any) -> None:
    """Keep one entry per operator set that is used: quantisers refuse two, servers may not know unused ones."""
    import onnx

    used = {_domain(node.domain) for node in model.graph.node} | {""}
    found: dict[str, int] = {}
    for entry in model.opset_import:
        name = _domain(entry.domain)
        found[name] = max(entry.version, found.get(name, 0))
    del model.opset_import[:]
    model.opset_import.extend(
        onnx.helper.make_opsetid(name, found.get(name, 1)) for name in sorted(used) if name or name in found
    )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _kinds() -> dict[str, int]:
    from onnx import TensorProto as T

    return {
        "tensor(float)": T.FLOAT, "tensor(string)": T.STRING, "tensor(int64)": T.INT64, "tensor(int32)": T.INT32,
        "tensor(bool)": T.BOOL, "tensor(double)": T.DOUBLE, "tensor(float16)": T.FLOAT16, "tensor(uint8)": T.UINT8,
        "tensor(int8)": T.INT8,
    }  # fmt: skip

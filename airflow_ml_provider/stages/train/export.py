"""One ONNX file from raw columns to the score: the preprocessing and the model's own graph, joined.

The bytes depend on the model alone: names, shapes and notes that converters put in are taken out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Union

from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.models import SCORE
from airflow_ml_provider.stages.train.preprocess import Preprocessor

MATRIX = "pre/matrix"
# The standard operators used here exist in this form from 9 on, LabelEncoder of text to float from ai.onnx.ml 2 on.
_OPSET, _ML_OPSET, _ML = 9, 3, "ai.onnx.ml"


def serving_graph(pre: Preprocessor, model: Union[bytes, Any], name: str) -> bytes:
    """Return the graph that serves: raw columns in, `score` out.

    Parameters:
        pre: preprocessing.
        model: ONNX model of the matrix [N, F]; its last output is the probability of label 1, [N], [N, 1], or [N, 2]
            with one column per label.
        name: name of the graph.

    Raises:
        SpecError: the model has several inputs, operators of its own, or weights outside of the file.
    """
    import onnx

    body = onnx.load_from_string(model) if isinstance(model, bytes) else model
    body = _one_output(_plain(body))
    opsets = {_domain(o.domain): o.version for o in body.opset_import}
    opsets[_ML] = max(opsets.get(_ML, 0), _ML_OPSET)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())]
    if opsets.get("", 0) < _OPSET:
        raise SpecError(f"the model's ONNX opset must be at least {_OPSET}, got {opsets.get('')}; export it again")
    del body.opset_import[:]
    body.opset_import.extend(imports)
    front = onnx.helper.make_model(_front(pre), opset_imports=imports, ir_version=body.ir_version)
    source, target = body.graph.input[0].name, body.graph.output[0].name
    joined = onnx.compose.merge_models(front, onnx.compose.add_prefix(body, "model/"), [(MATRIX, f"model/{source}")])
    _finish(joined, f"model/{target}", name)
    onnx.checker.check_model(joined)
    return bytes(joined.SerializeToString(deterministic=True))


def check(graph: bytes, pre: Preprocessor, table: Any, native: Any, tolerance: float = 0.01) -> float:
    """Return the highest absolute difference between the graph's scores and the native ones.

    Raises:
        DataError: it is above `tolerance`, which only a conversion that went wrong explains.
    """
    import numpy as np
    import onnxruntime as ort

    from airflow_ml_provider.models import read_input

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feeds = {name: read_input(table, name, kind, "in training") for name, kind in pre.inputs.items()}
    scores = session.run([SCORE], feeds)[0].reshape(-1)
    worst = float(np.abs(scores - native).max())
    if not worst <= tolerance:  # NaN, too
        raise DataError(
            f"the ONNX export differs from the model by up to {worst:.3g} in the score (at most {tolerance} can be "
            f"rounding): the converter does not handle this kind of model; use another one"
        )
    return worst


def _front(pre: Preprocessor) -> Any:
    """Return the graph from raw columns to the matrix."""
    from onnx import TensorProto, helper

    nodes, parts = [], []
    if pre.numbers:
        names = [column.name for column in pre.numbers]
        fills = [float("nan") if column.fill is None else column.fill for column in pre.numbers]
        nodes.append(helper.make_node("Concat", names, ["pre/raw"], axis=1))
        nodes.append(
            helper.make_node(
                "Imputer", ["pre/raw"], ["pre/filled"], domain=_ML,
                imputed_value_floats=fills, replaced_value_float=float("nan"),
            )
        )  # fmt: skip
        parts.append("pre/filled")
        if pre.encoding != "ordinal":
            offsets, scales = [c.offset for c in pre.numbers], [c.scale for c in pre.numbers]
            nodes.append(
                helper.make_node("Scaler", ["pre/filled"], ["pre/scaled"], domain=_ML, offset=offsets, scale=scales)
            )
            parts = ["pre/scaled"]
    sizes = []
    for i, column in enumerate(pre.categories):
        codes = column.codes
        # Without a known text the encoder still needs one; it has the code of the unknown ones.
        keys, values = list(codes) or [""], [float(code) for code in codes.values()] or [float(column.unknown)]
        nodes.append(
            helper.make_node(
                "LabelEncoder", [column.name], [f"pre/code{i}"], domain=_ML,
                keys_strings=keys, values_floats=values, default_float=float(column.unknown),
            )
        )  # fmt: skip
        parts.append(f"pre/code{i}")
        if pre.encoding == "one_hot":
            parts[-1] = f"pre/hot{i}"
            nodes += _one_hot(i)
            sizes.append(helper.make_tensor(f"pre/codes{i}", TensorProto.INT64, [1, column.size], range(column.size)))
    nodes.append(helper.make_node("Concat", parts, [MATRIX], axis=1))
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT if kind == "float" else TensorProto.STRING, ["N", 1]
        )
        for name, kind in pre.inputs.items()
    ]  # fmt: skip
    output = helper.make_tensor_value_info(MATRIX, TensorProto.FLOAT, ["N", len(pre.features)])
    return helper.make_graph(nodes, "preprocess", inputs, [output], initializer=sizes)


def _one_hot(i: int) -> list[Any]:
    from onnx import TensorProto, helper

    return [
        helper.make_node("Cast", [f"pre/code{i}"], [f"pre/index{i}"], to=TensorProto.INT64),
        helper.make_node("Equal", [f"pre/index{i}", f"pre/codes{i}"], [f"pre/equal{i}"]),
        helper.make_node("Cast", [f"pre/equal{i}"], [f"pre/hot{i}"], to=TensorProto.FLOAT),
    ]


def _plain(model: Any) -> Any:
    """Return a copy without notes, shapes of intermediate values and weights in other files."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {w.name for w in copy.graph.initializer}
    inputs = [i for i in copy.graph.input if i.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise SpecError(f"the model must have one input, the float32 matrix [N, F]; it has {[i.name for i in inputs]}")
    foreign = {_domain(o.domain) for o in copy.opset_import} - {"", _ML}
    foreign |= {_domain(node.domain) for node in copy.graph.node} - {"", _ML}
    if foreign or copy.functions:
        raise SpecError(
            f"the model's graph needs operators of {sorted(foreign) or 'its own functions'}; nothing serves"
        )
    if any(w.data_location == onnx.TensorProto.EXTERNAL for w in copy.graph.initializer):
        raise SpecError("the model's weights lie in another file; save them inside of the ONNX file")
    kept = onnx.ModelProto(ir_version=copy.ir_version)
    kept.opset_import.extend(copy.opset_import)
    graph = kept.graph
    graph.name = "model"
    graph.input.extend(inputs)
    graph.output.extend(copy.graph.output)
    graph.initializer.extend(copy.graph.initializer)
    graph.sparse_initializer.extend(copy.graph.sparse_initializer)
    graph.node.extend(copy.graph.node)
    _strip(item for group in (graph.node, graph.initializer, graph.input, graph.output) for item in group)
    return kept


def _one_output(model: Any) -> Any:
    """Return the model with its last output, and only what that needs."""
    graph = model.graph
    output = graph.output[len(graph.output) - 1]
    del graph.output[: len(graph.output) - 1]
    needed, kept = {output.name}, []
    for node in reversed(graph.node):  # ONNX orders nodes by dependency
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(name for attribute in node.attribute for name in _outer_names(attribute))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [w for w in graph.initializer if w.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    return model


def _outer_names(attribute: Any) -> Iterable[str]:
    """Return the names that graphs inside of a node (If, Loop) use."""
    for graph in [attribute.g, *attribute.graphs]:
        for node in graph.node:
            yield from node.input
            for inner in node.attribute:
                yield from _outer_names(inner)


def _finish(model: Any, probability: str, name: str) -> None:
    """Name the score, choose the column of label 1 where there are two, and take out what differs between runs."""
    from onnx import TensorProto, helper

    graph, kind = model.graph, model.graph.output[0].type.tensor_type
    shape = kind.shape.dim
    if kind.elem_type != TensorProto.FLOAT:
        graph.node.append(helper.make_node("Cast", [probability], ["post/float"], to=TensorProto.FLOAT))
        probability = "post/float"
    if len(shape) == 2 and shape[1].dim_value == 2:
        graph.initializer.append(helper.make_tensor("post/label", TensorProto.INT64, [1], [1]))
        graph.node.append(helper.make_node("Gather", [probability, "post/label"], [SCORE], axis=1))
    else:
        graph.initializer.append(helper.make_tensor("post/shape", TensorProto.INT64, [2], [-1, 1]))
        graph.node.append(helper.make_node("Reshape", [probability, "post/shape"], [SCORE]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, ["N", 1]))
    del graph.value_info[:]
    graph.name = name
    model.producer_name = "airflow_ml_provider"
    for field in ("producer_version", "domain", "doc_string"):
        model.ClearField(field)
    del model.metadata_props[:]


def _strip(items: Iterable[Any]) -> None:
    for item in items:
        item.ClearField("doc_string")
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name

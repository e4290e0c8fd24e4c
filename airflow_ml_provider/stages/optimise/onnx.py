"""The steps of a recipe that change a graph: ONNX Runtime's optimiser and quantisers, half precision, pruning."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

from airflow_ml_provider.stages.optimise import graph as graphs
from airflow_ml_provider.stages.optimise.logic import NotApplicable
from airflow_ml_provider.stages.optimise.spec import Recipe

_CALIBRATION_BATCH = 128
LAYERS = ["MatMul", "Gemm", "Conv"]


def apply(step: str, graph: bytes, recipe: Recipe, feeds: Mapping[str, Any]) -> bytes:
    """Return the graph after one step; it has the same inputs and output.

    Parameters:
        step: the step.
        graph: the ONNX file.
        recipe: its settings.
        feeds: calibration rows as the graph takes them.

    Raises:
        NotApplicable: the step has nothing to do on this graph.
    """
    work: Callable[[bytes, Recipe, Mapping[str, Any]], bytes] = {
        "graph": _graph, "fp16": _fp16, "int8_dynamic": _int8_dynamic, "int8_static": _int8_static, "int4": _int4,
        "magnitude": _magnitude,
    }[step]  # fmt: skip
    with quiet():
        return work(graph, recipe, feeds)


def zeros(graph: bytes) -> float:
    """Return the share of zeros among the weights of the layers; 0 without layers."""
    import onnx
    from onnx import numpy_helper

    values = [numpy_helper.to_array(w) for _, w in graphs.products(onnx.load_from_string(graph))]
    count = sum(v.size for v in values)
    return float(sum((v == 0).sum() for v in values) / count) if count else 0.0


def _graph(graph: bytes, recipe: Recipe, feeds: Mapping[str, Any]) -> bytes:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimised.onnx")
        graphs.session(graph, path=str(path), level=recipe.level)
        return graphs.save(onnx.load(path))


def _fp16(graph: bytes, recipe: Recipe, feeds: Mapping[str, Any]) -> bytes:
    from onnx import TensorProto, numpy_helper
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = graphs.load(graph)
    graphs.need_products(model, "fp16")
    found = ONNXModel(
        convert_float_to_float16(
            model, keep_io_types=True, disable_shape_infer=True, node_block_list=graphs.before_products(model)
        )
    )
    found.topological_sort()  # the converter appends its casts
    for weight in found.model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:  # it writes each as a number of up to three bytes
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight), weight.name))
    return graphs.save(found.model)


def _int8_dynamic(graph: bytes, recipe: Recipe, feeds: Mapping[str, Any]) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def work(model: Any, path: str) -> None:
        quantize_dynamic(
            model, path, op_types_to_quantize=LAYERS, per_channel=recipe.per_channel, weight_type=QuantType.QInt8,
            reduce_range=recipe.reduce_range, extra_options=_options(),
        )  # fmt: skip

    return _quantised(graph, "int8_dynamic", work)


def _int8_static(graph: bytes, recipe: Recipe, feeds: Mapping[str, Any]) -> bytes:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}

    def work(model: Any, path: str) -> None:
        quantize_static(
            model, path, _Reader(feeds), quant_format=QuantFormat.QDQ, op_types_to_quantize=LAYERS,
            per_channel=recipe.per_channel, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            reduce_range=recipe.reduce_range,
            calibrate_method=getattr(CalibrationMethod, methods[recipe.calibrate]), extra_options=_options(),
        )  # fmt: skip

    return _quantised(graph, "int8_static", work)


def _int4(graph: bytes, recipe: Recipe, feeds: Mapping[str, Any]) -> bytes:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = graphs.load(graph)
    graphs.need_products(model, "int4")
    wrapped = ONNXModel(model)
    wrapped.replace_gemm_with_matmul()  # the quantiser knows matrix products only
    quantiser = MatMulNBitsQuantizer(wrapped.model, block_size=recipe.block, is_symmetric=True, accuracy_level=4)
    quantiser.process()
    found = quantiser.model.model
    if not any(node.op_type == "MatMulNBits" for node in found.graph.node):
        raise NotApplicable("int4 found no matrix product of two dimensions")
    _drop_unused(found)
    return graphs.save(found)


def _magnitude(graph: bytes, recipe: Recipe, feeds: Mapping[str, Any]) -> bytes:
    """Set the weights of smallest magnitude, over all layers together, to zero (Han et al. 2015)."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(graph)
    graphs.need_products(model, "magnitude")
    weights = {w.name: w for _, w in graphs.products(model)}
    arrays = {name: numpy_helper.to_array(w).copy() for name, w in weights.items()}
    every = np.concatenate([np.abs(a).reshape(-1) for a in arrays.values()])
    cut = np.quantile(every, recipe.share)
    for name, values in arrays.items():
        values[np.abs(values) <= cut] = 0
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    return graphs.save(model)


def _quantised(graph: bytes, what: str, work: Callable[[Any, str], None]) -> bytes:
    import onnx

    model = graphs.load(graph)
    graphs.need_products(model, what)
    if any(node.op_type in ("DequantizeLinear", "MatMulInteger") for node in model.graph.node):
        raise NotApplicable(f"{what}: the graph is quantised already")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "quantised.onnx")
        work(model, str(path))
        found = onnx.load(path)
    if not any("QuantizeLinear" in node.op_type for node in found.graph.node):
        raise NotApplicable(f"{what} found no layer whose weights it can take")
    _drop_unused(found)
    return graphs.save(found)


def _options() -> dict[str, Any]:
    import onnx

    # Of values that the quantiser makes itself, such as the product of a layer that had product and sum in one.
    return {"DefaultTensorType": onnx.TensorProto.FLOAT}


def _drop_unused(model: Any) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [w for w in model.graph.initializer if w.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


class _Reader:
    """Calibration rows in batches, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, feeds: Mapping[str, Any]) -> None:
        rows = len(next(iter(feeds.values())))
        size = _CALIBRATION_BATCH
        self._batches: Iterator[dict[str, Any]] = iter(
            [{name: values[i : i + size] for name, values in feeds.items()} for i in range(0, rows, size)]
        )

    def get_next(self) -> Any:
        return next(self._batches, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the tools say to a person at a terminal; what goes wrong they raise."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as aside:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(aside):
                yield
    finally:
        root.setLevel(level)

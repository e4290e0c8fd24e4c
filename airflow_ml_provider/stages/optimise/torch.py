"""Pruning, distillation and quantisation-aware training for modules of PyTorch.

Functions for a training function of one's own, beside the trainer kit (`run.trainer`), and what the stage's own steps
`structured`, `distill` and `qat` are made of.
"""

from __future__ import annotations

from typing import Any, Optional

from airflow_ml_provider.exceptions import SpecError, invalid

# Weights of seven bits: see `Recipe.reduce_range`. As far to either side, so that the largest is on the grid.
WEIGHT_MIN, WEIGHT_MAX = -63, 63


def prune_magnitude(model: Any, share: float) -> Any:
    """Hold the smallest weights of all linear and convolution layers together at zero, and return the model.

    They stay at zero while the training goes on; `finish_pruning` makes the zeros plain weights. Zeros save neither
    bytes nor time in dense kernels: they are worth something to what compresses the file, or to `shrink`.

    Parameters:
        model: a module; changed in place.
        share: part of the weights, in (0, 1).
    """
    from torch.nn.utils import prune

    _share(share)
    prune.global_unstructured(_prunable(model), pruning_method=prune.L1Unstructured, amount=share)
    return model


def finish_pruning(model: Any) -> Any:
    """Make the zeros of `prune_magnitude` plain weights, as an export needs them; return the model."""
    from torch.nn.utils import prune

    for layer, name in _prunable(model):
        if prune.is_pruned(layer):
            prune.remove(layer, name)
    return model


def shrink(layers: Any, share: float) -> Any:
    """Return a smaller `Sequential` without the hidden units that matter least: its matrices have fewer rows, columns.

    A unit matters by the norm of what comes in times the norm of what goes out; scaling one and its inverse at the
    other, which changes nothing, does not change that. The first inputs and the last outputs stay. Train on afterwards.

    Parameters:
        layers: a `Sequential` of linear layers with anything that works unit by unit (activations, dropout) between.
        share: part of the units of each hidden layer, in (0, 1); at least one stays.

    Raises:
        SpecError: there are layers between whose shape depends on the units, or fewer than two linear ones.
    """
    import copy

    from torch import nn

    _share(share)
    found = copy.deepcopy(layers)
    at = [i for i, layer in enumerate(found) if isinstance(layer, nn.Linear)]
    strange = [type(layer).__name__ for layer in found if not isinstance(layer, nn.Linear) and _has_weights(layer)]
    if len(at) < 2 or strange:
        raise SpecError(
            f"shrink takes linear layers with activations between, got {len(at)} linear, {strange or 'none'}"
        )
    for first, second in zip(at, at[1:]):
        before, after = found[first], found[second]
        matters = before.weight.detach().norm(dim=1) * after.weight.detach().norm(dim=0)
        kept = matters.topk(max(1, round(before.out_features * (1 - share)))).indices.sort().values
        bias = None if before.bias is None else before.bias.detach()[kept]
        found[first] = _linear(before.weight.detach()[kept], bias)
        found[second] = _linear(after.weight.detach()[:, kept], None if after.bias is None else after.bias.detach())
    return found


def distillation_loss(
    logits: Any, teacher: Any, labels: Optional[Any] = None, *, weight: float = 0.7, temperature: float = 2.0
) -> Any:
    """Return the mean loss of a student that learns from a teacher's scores and from labels.

    `weight * T² * BCE(logits / T, sigmoid(logit(teacher) / T)) + (1 - weight) * BCE(logits, labels)`; the square keeps
    the gradients of both parts comparable (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
    for two classes).

    Parameters:
        logits: the student's, any shape.
        teacher: the teacher's P(label = 1), same shape; of any kind of model.
        labels: 0 or 1, same shape; none learns from the teacher alone.
        weight: of the teacher, in [0, 1].
        temperature: above 1 it shows more of how sure the teacher is.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as loss

    if temperature <= 0 or not 0 <= weight <= 1:
        raise invalid("temperature, weight", (temperature, weight), "positive, and in [0, 1]")
    soft = torch.sigmoid(torch.logit(teacher, eps=1e-6) / temperature)
    found = temperature**2 * loss(logits / temperature, soft)
    return found if labels is None else weight * found + (1 - weight) * loss(logits, labels)


def prepare_qat(model: Any) -> Any:
    """Put the rounding of eight bits into every linear layer of a module, in place, and return it: train on afterwards.

    Inputs of layers are rounded by ranges that are followed while training (`torch.ao.quantization.FakeQuantize`),
    weights by the largest of each output; gradients go through as if nothing were rounded.

    Raises:
        SpecError: it has no linear layer.
    """
    from torch import nn

    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _rounding(child))
                count += 1
    if not count:
        raise SpecError("quantisation-aware training needs linear layers; the module has none")
    return model


def convert_qat(model: Any) -> Any:
    """Give the layers of `prepare_qat` their integer weights, in place, and return the module for the export.

    The ONNX file holds eight-bit weights between `QuantizeLinear` and `DequantizeLinear`, which ONNX Runtime, TensorRT
    and OpenVINO compute with integers.

    Raises:
        SpecError: it was not prepared, or never saw a row.
    """
    layers = [(p, n, c) for p in list(model.modules()) for n, c in p.named_children() if hasattr(c, "of_weight")]
    if not layers:
        raise SpecError("the module has no layer of prepare_qat; call that first")
    for parent, name, layer in layers:
        setattr(parent, name, _integers(layer))
    return model.eval()


def _rounding(layer: Any) -> Any:
    import torch
    from torch import nn
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

    class Rounding(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = layer.weight, layer.bias
            self.of_input = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8)
            self.of_weight = FakeQuantize(
                MovingAveragePerChannelMinMaxObserver, quant_min=WEIGHT_MIN, quant_max=WEIGHT_MAX, dtype=torch.qint8,
                qscheme=torch.per_channel_symmetric, ch_axis=0, averaging_constant=1.0,
            )  # fmt: skip

        def forward(self, rows: Any) -> Any:
            return nn.functional.linear(self.of_input(rows), self.of_weight(self.weight), self.bias)

    return Rounding()


def _integers(layer: Any) -> Any:
    import torch
    import torch.ao.quantization.fx._decomposed  # registers operators that the exporter knows
    from torch import nn

    ops = torch.ops.quantized_decomposed
    if not torch.isfinite(layer.of_input.activation_post_process.min_val).all():
        raise SpecError("the module never saw a row since prepare_qat; train it on first")
    found_scale, found_zero = layer.of_input.calculate_qparams()
    scale, zero = float(found_scale), int(found_zero)
    layer.of_weight(layer.weight)  # of the last step's weights
    scales, _ = layer.of_weight.calculate_qparams()
    weight = layer.weight.detach()
    rounded = (weight / scales[:, None]).round().clamp(WEIGHT_MIN, WEIGHT_MAX).to(torch.int8)

    class Integers(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            # As a product and a sum, which ONNX Runtime turns into a product of integers.
            self.register_buffer("weight", rounded.t().contiguous())
            self.register_buffer("scales", scales)
            self.register_buffer("zeros", torch.zeros_like(scales, dtype=torch.int64))
            self.bias = layer.bias

        def forward(self, rows: Any) -> Any:
            codes = ops.quantize_per_tensor(rows, scale, zero, 0, 255, torch.uint8)
            rows = ops.dequantize_per_tensor(codes, scale, zero, 0, 255, torch.uint8)
            matrix = ops.dequantize_per_channel(
                self.weight, self.scales, self.zeros, 1, WEIGHT_MIN, WEIGHT_MAX, torch.int8
            )
            found = torch.matmul(rows, matrix)
            return found if self.bias is None else found + self.bias

    return Integers()


def _linear(weight: Any, bias: Any) -> Any:
    from torch import nn

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def _prunable(model: Any) -> list[tuple[Any, str]]:
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = [(layer, "weight") for layer in model.modules() if isinstance(layer, kinds)]
    if not found:
        raise SpecError("pruning needs linear or convolution layers; the module has none")
    return found


def _has_weights(layer: Any) -> bool:
    return any(True for _ in layer.parameters()) or any(True for _ in layer.buffers())


def _share(share: float) -> None:
    if not 0 < share < 1:
        raise invalid("share", share, "in (0, 1)", "give a fraction, not percent")

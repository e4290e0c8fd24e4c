"""The network of a package as one PyTorch program from columns of numbers to the score, which converters take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow_ml_provider import stages
from airflow_ml_provider.exceptions import DataError, SpecError
from airflow_ml_provider.stages.edge.export_inputs import preprocessor
from airflow_ml_provider.stages.train import torch as engine
from airflow_ml_provider.stages.train.preprocess import Preprocessor


def module(parent: Path, reference: str = "") -> Any:
    """Return a module: float32 [N, C], numbers as they are (missing is NaN) and then codes of texts, to scores [N, 1].

    Parameters:
        parent: the model's package.
        reference: `package.module:function` that makes the untrained module; empty for the network of engine `torch`.

    Raises:
        DataError: the package holds no such network.
        SpecError: there is no such function.
    """
    try:
        network = engine.stored(parent, _untrained(reference) if reference else None)
    except DataError as error:
        hint = "" if reference else "; give `network` for a module of your own, or take format 'ort', for any model"
        raise DataError(f"only networks of PyTorch can be exported to this format: {error}{hint}") from error
    return _whole(network, preprocessor(parent))


def program(parent: Path, reference: str, batch_size: int) -> Any:
    """Return the exported program of `module` for calls of so many rows."""
    import torch

    pre = preprocessor(parent)
    rows = torch.zeros(batch_size, len(pre.numbers) + len(pre.categories))
    return torch.export.export(module(parent, reference), (rows,))


def _untrained(reference: str) -> Any:
    try:
        make = stages.load(reference)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"network {reference!r} cannot be had in this Python: {error}") from error
    return make()


def _whole(network: Any, pre: Preprocessor) -> Any:
    """Return network and preprocessing as one; what `Preprocessor.matrix` does, but for the codes of texts."""
    import torch

    count, hot = len(pre.numbers), pre.encoding == "one_hot"
    scaled = pre.encoding != "ordinal"

    class Whole(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            for name in ("fill", "offset", "scale"):
                values = [getattr(column, name) for column in pre.numbers]
                numbers = [float("nan") if value is None else value for value in values]
                self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32))
            for i, column in enumerate(pre.categories):
                self.register_buffer(f"codes{i}", torch.arange(column.size, dtype=torch.float32))

        def forward(self, columns: Any) -> Any:
            numbers = columns[:, :count]
            numbers = torch.where(numbers != numbers, self.fill, numbers)  # NaN alone is not itself
            parts = [(numbers - self.offset) * self.scale if scaled else numbers] if count else []
            for i in range(len(pre.categories)):
                code = columns[:, count + i : count + i + 1]
                parts.append((code == getattr(self, f"codes{i}")).to(torch.float32) if hot else code)
            return torch.sigmoid(self.network(torch.cat(parts, dim=1))).reshape(-1, 1)

    return Whole().eval()

"""A network for tables in PyTorch: embeddings of the categories and a perceptron, alone or with DDP.

An interrupted training goes on from its snapshot to the very same weights: the order of the rows follows from seed and
epoch, and model, optimiser, schedule, position, best weights so far and the random numbers of every rank are restored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import DataError, SpecError, invalid
from airflow_ml_provider.stages.train import randomness
from airflow_ml_provider.stages.train.native import Native, need
from airflow_ml_provider.stages.train.run import Part, Run

WEIGHTS, CONFIG = "model.safetensors", "model.config.json"
LIBRARIES = ("torch", "safetensors", "onnxscript", "onnx", "onnxruntime", "numpy", "pyarrow")
_AT_ONCE = 65536  # rows that are scored in one go


@dataclass(frozen=True)
class Settings:
    """Settings of the network (`params` of engine `torch`).

    Attributes:
        epochs: most epochs.
        batch_size: rows per step, of all ranks together.
        hidden: width of each hidden layer.
        dropout: share of the hidden units that are left out at random in training.
        learning_rate: highest rate of the one-cycle schedule (Smith and Topin 2017).
        weight_decay: of AdamW.
        patience: epochs without a better validation loss that end the training.
        threads: of each rank; the result can depend on it in the last bits.
    """

    epochs: int = 15
    batch_size: int = 512
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1
    learning_rate: float = 0.01
    weight_decay: float = 0.01
    patience: int = 5
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "threads"):
            if getattr(self, name) < 1:
                raise invalid(f"params.{name}", getattr(self, name), "at least 1")
        if not 0 <= self.dropout < 1:
            raise invalid("params.dropout", self.dropout, "in [0, 1)")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise invalid("params.learning_rate, weight_decay", (self.learning_rate, self.weight_decay), "positive")


def network(numbers: int, sizes: tuple[int, ...], hidden: tuple[int, ...], dropout: float) -> Any:
    """Return an untrained network: matrix [N, numbers + len(sizes)] of standardised numbers, then category indices, to
    logits [N].

    Parameters:
        numbers: number columns.
        sizes: codes of each category column.
        hidden: width of each hidden layer.
        dropout: share of hidden units left out in training.
    """
    import torch
    from torch import nn

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            widths = [min(32, (size + 1) // 2) for size in sizes]
            self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(sizes, widths))
            layers: list[nn.Module] = []
            width = numbers + sum(widths)
            for units in hidden:
                layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
                width = units
            self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

        def forward(self, matrix: Any) -> Any:
            codes = matrix[:, numbers:].to(torch.int64)
            embedded = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
            return self.layers(torch.cat([matrix[:, :numbers], *embedded], dim=1)).squeeze(1)

    net = Network()
    net.config = {"numbers": numbers, "sizes": list(sizes), "hidden": list(hidden), "dropout": dropout}
    return net


def stored(folder: Path, module: Any = None) -> Any:
    """Return the network of a package with its weights, without dropout.

    Parameters:
        folder: the package.
        module: an untrained one of the same layers, which is filled; none makes the network of engine `torch`.

    Raises:
        DataError: the package holds no weights, or they are not those of `module` or of engine `torch`.
    """
    from safetensors.torch import load

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load((folder / WEIGHTS).read_bytes())
        if module is None:
            module = network(config["numbers"], tuple(config["sizes"]), tuple(config["hidden"]), 0.0)
        module.load_state_dict(weights)
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no network of PyTorch: it lacks {Path(error.filename).name}") from error
    except KeyError as error:
        raise DataError(f"{folder} holds a module of PyTorch, not the network of engine 'torch'") from error
    except RuntimeError as error:
        raise DataError(f"the weights in {folder} are not those of this module: {error}") from error
    return module.eval()


def fit(run: Run) -> Any:
    """Return the network with the weights of the best epoch on the validation rows.

    Raises:
        SpecError: a setting is not known or has a wrong value.
        DataError: the loss is no longer a number.
    """
    settings = codec.decode(Settings, run.params, "params")
    with reproducible(settings.threads):
        return _Training(run, settings).finish()


class _Training:
    """One training of the network: everything that a snapshot holds."""

    def __init__(self, run: Run, settings: Settings) -> None:
        import torch

        self.run, self.settings = run, settings
        self.device = run.device
        pre = run.preprocessor
        torch.manual_seed(run.seed)  # all ranks begin with the same weights
        self.net = network(
            len(pre.numbers), tuple(c.size for c in pre.categories), settings.hidden, settings.dropout
        ).to(self.device)
        randomness.seed(run.seed, run.rank)
        self.model = run.parallel(self.net)
        self.rows, self.labels = self._tensors(run.train, slice(None))
        self.later = self._tensors(run.validation, slice(run.rank, None, run.world_size))
        self.steps_per_epoch = len(run.batches(0, settings.batch_size))
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings.learning_rate, total_steps=settings.epochs * self.steps_per_epoch
        )
        self.trainer = run.trainer(self.model, self.optimizer, self.scheduler)
        self.progress: dict[str, Any] = {"loss": 0.0, "best": math.inf, "best_epoch": -1, "stale": 0}
        self.best: dict[str, Any] = {}

    def finish(self) -> Any:
        """Train from the newest snapshot, or from the beginning, to the end."""
        self._resume()
        settings = self.settings
        while self.step < settings.epochs * self.steps_per_epoch and self.progress["stale"] < settings.patience:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            for chosen in self.run.batches(epoch, settings.batch_size)[position:]:
                self._learn(chosen)
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch(epoch)
                self.trainer.keep(self.steps_per_epoch, progress=dict(self.progress), best=self.best)
        self.trainer.report()
        self.net.load_state_dict(self.best)
        self.run.log("best_epoch", self.progress["best_epoch"])
        return self.net.cpu().eval()

    @property
    def step(self) -> int:
        return self.trainer.steps

    def _learn(self, chosen: Any) -> None:
        import torch

        index = torch.from_numpy(chosen).to(self.device)
        loss = self.trainer.step((self.rows[index], self.labels[index]), _loss)
        # Of all ranks, at every step: a snapshot in the middle of an epoch then knows the others' part.
        self.progress["loss"] += self.run.sum(loss) / self.run.world_size

    def _end_epoch(self, epoch: int) -> None:
        progress = self.progress
        train_loss, validation_loss = progress["loss"] / self.steps_per_epoch, self._validate()
        if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
            raise DataError(
                f"training diverged in epoch {epoch}: loss {train_loss}, validation loss {validation_loss}; give a "
                f"learning_rate below {self.settings.learning_rate}"
            )
        self.run.log("train_loss", train_loss, epoch)
        self.run.log("validation_loss", validation_loss, epoch)
        progress.update(loss=0.0, stale=progress["stale"] + 1)
        if validation_loss < progress["best"]:
            progress.update(best=validation_loss, best_epoch=epoch, stale=0)
            self.best = {name: value.detach().clone() for name, value in self.net.state_dict().items()}

    def _validate(self) -> float:
        import torch

        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.net.eval()
        with torch.no_grad():
            for part, truth in zip(*(tensor.split(_AT_ONCE) for tensor in self.later)):
                total += torch.nn.functional.binary_cross_entropy_with_logits(
                    self.net(part).double(), truth.double(), reduction="sum"
                )
        return self.run.sum(total) / len(self.run.validation)

    def _resume(self) -> None:
        found = self.trainer.resume()
        if found["step"]:
            self.progress, self.best = found["progress"], found["best"]

    def _tensors(self, part: Part, share: slice) -> tuple[Any, Any]:
        import torch

        matrix, labels = (torch.from_numpy(values[share]).to(self.device) for values in part.numpy())
        return matrix, labels


def _loss(model: Any, batch: tuple[Any, Any]) -> Any:
    import torch

    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def native(model: Any, features: int) -> Native:
    """Return a module that maps the matrix [N, F] to logits [N] or [N, 1] as it will be served.

    Raises:
        SpecError: it is no module, or its output has another shape.
    """
    import torch

    need("onnxscript", "safetensors")
    if not isinstance(model, torch.nn.Module):
        raise SpecError(f"torch gave a {type(model).__name__}; a training function must return a torch.nn.Module")
    net = (model.module if type(model).__name__ == "DistributedDataParallel" else model).cpu().eval()
    with torch.no_grad():
        shape = tuple(net(torch.zeros(3, features)).shape)
    if shape not in ((3,), (3, 1)):
        raise SpecError(f"a torch module must give logits of shape [N] or [N, 1] for {features} columns, got {shape}")

    def score(matrix: Any) -> Any:
        with torch.no_grad():
            parts = [torch.sigmoid(net(part).reshape(-1)) for part in torch.from_numpy(matrix).split(_AT_ONCE)]
        return torch.cat(parts).double().numpy()

    def save(folder: Path) -> None:
        from safetensors.torch import save

        state = {name: value.contiguous().clone() for name, value in net.state_dict().items()}
        (folder / WEIGHTS).write_bytes(save(state))
        config: Mapping[str, Any] = getattr(net, "config", {"class": type(net).__name__})
        (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")

    return Native(score, lambda: _export(net, features), save, LIBRARIES)


def _export(net: Any, features: int) -> Any:
    import contextlib
    import io
    import logging
    import warnings

    import torch

    class Probability(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, matrix: Any) -> Any:
            return torch.sigmoid(self.net(matrix)).reshape(-1, 1)

    # The exporter tells of every step of its own, and warns of its own deprecations.
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Probability().eval(),
            (torch.zeros(3, features),),
            dynamo=True,
            input_names=["X"],
            output_names=["probability"],
            dynamic_shapes={"matrix": {0: torch.export.Dim.DYNAMIC}},
            verbose=False,
        )
    return program.model_proto


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Compute in the same order every time; what was set before comes back afterwards."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])

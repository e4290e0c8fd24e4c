"""The steps that train: a smaller or rounded network that learns from the model's own scores and from the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airflow_ml_provider import codec, models
from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.stages.optimise import torch as kit
from airflow_ml_provider.stages.optimise.logic import NotApplicable
from airflow_ml_provider.stages.optimise.rows import Divided
from airflow_ml_provider.stages.optimise.spec import Recipe
from airflow_ml_provider.stages.train import export, preprocess
from airflow_ml_provider.stages.train import torch as engine
from airflow_ml_provider.stages.train.preprocess import Preprocessor

_BATCH = 256


def apply(step: str, recipe: Recipe, parent: Path, rows: Divided) -> bytes:
    """Return the graph of the trained network; it has the same inputs and output as the model's.

    Parameters:
        step: `structured`, `distill` or `qat`.
        recipe: its settings.
        parent: the model's package, which is the teacher.
        rows: of which the older ones are learnt from.

    Raises:
        NotApplicable: the step needs the network of engine `torch`, and the package holds none.
    """
    import torch

    manifest = models.read_manifest(parent)
    with engine.reproducible(1):
        torch.manual_seed(recipe.seed)
        if step == "distill":
            pre, net = _student(recipe, manifest.inputs, rows)
        else:
            pre, net = _own(parent, step)
        if step == "structured":
            net.layers = kit.shrink(net.layers, recipe.share)
        elif step == "qat":
            kit.prepare_qat(net)
        _train(net, recipe, pre, parent, rows)
        if step == "qat":
            kit.convert_qat(net)
        return export.serving_graph(pre, engine.native(net, len(pre.features)).graph(), manifest.name)


def _student(recipe: Recipe, inputs: Any, rows: Divided) -> tuple[Preprocessor, Any]:
    """Return an untrained network for the teacher's columns, whatever the teacher itself made of them."""
    pre = preprocess.fit(rows.older, rows.older.column("label").to_numpy(), inputs, "indexed")
    sizes = tuple(column.size for column in pre.categories)
    return pre, engine.network(len(pre.numbers), sizes, recipe.hidden, 0.0)


def _own(parent: Path, step: str) -> tuple[Preprocessor, Any]:
    """Return the model's own preprocessing and network."""
    try:
        net = engine.stored(parent)
    except DataError as error:
        raise NotApplicable(
            f"{step} takes the network of engine 'torch'; for a module of your own use "
            "`airflow_ml_provider.stages.optimise.torch` in its training function and give the package as one of "
            "`others`; `distill` takes any model"
        ) from error
    text = json.loads((parent / models.PREPROCESS).read_text(encoding="utf-8"))
    pre = codec.decode(Preprocessor, text, models.PREPROCESS)
    return pre, net


def _train(net: Any, recipe: Recipe, pre: Preprocessor, parent: Path, rows: Divided) -> None:
    import torch

    matrix = torch.from_numpy(pre.matrix(rows.older))
    teacher = torch.from_numpy(models.Scorer(parent).score(rows.older).copy())
    labels = torch.from_numpy(rows.older.column("label").to_numpy().astype("float32"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(recipe.seed)
    net.train()
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(matrix), generator=order).split(_BATCH):
            loss = kit.distillation_loss(net(matrix[chosen]), teacher[chosen], labels[chosen], weight=recipe.weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

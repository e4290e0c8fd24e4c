"""What the trainer kit costs over a loop by hand, and a snapshot over none.

    .venv-ml/bin/python benchmarks/trainer.py [--width 1024] [--rows 512] [--steps 100] [--every 50] [--repeat 3]

One training under `python`, or several ranks under `torchrun`: a perceptron with AdamW, its loop written by hand with
DDP and by the kit, in turn, without snapshots; then the kit with a snapshot every so many steps. Medians of the
repeats; then what a resumed training needs from its beginning to its first step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from airflow_ml_provider.stages.train.run import Run
from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.stages.train.standalone import training


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("width", 1024), ("rows", 512), ("steps", 100), ("every", 50), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, training(str(Path(folder) / "s"), launch=Launch(keep=1)) as run:
        x, y = torch.randn(args.rows, args.width), torch.randn(args.rows)
        times: dict[str, list[float]] = {"by hand": [], "kit": [], "kit with snapshots": []}
        for _ in range(args.repeat):
            times["by hand"].append(by_hand(run, args, x, y))
            times["kit"].append(by_kit(run, args, x, y, 0))
            times["kit with snapshots"].append(by_kit(run, args, x, y, args.every))
        run._snapshots.finish()
        began = time.perf_counter()
        trainer = made(run, args)
        trainer.resume()
        trainer.step((x, y), loss)
        resumed = time.perf_counter() - began
        if run.rank == 0:
            size = sum(p.numel() for p in trainer.model.parameters()) * 4 / 1e6
            print(f"torch {torch.__version__}, {run.world_size} ranks, model of {size:.0f} MB, {args.rows} rows a rank")
            for name, found in times.items():
                step = statistics.median(found)
                print(f"{name:20} {step * 1e3:7.2f} ms/step {args.rows * run.world_size / step:9.0f} samples/s", found)
            print(f"{'resumed first step':20} {resumed:7.2f} s")


def loss(model: Any, batch: Any) -> Any:
    return torch.nn.functional.mse_loss(model(batch[0]).squeeze(1), batch[1])


def network(run: Run, args: argparse.Namespace) -> Any:
    torch.manual_seed(1)
    hidden = [torch.nn.Linear(args.width, args.width), torch.nn.ReLU()]
    return torch.nn.Sequential(*hidden, *[torch.nn.Linear(args.width, args.width)] * 1, torch.nn.Linear(args.width, 1))


def by_hand(run: Run, args: argparse.Namespace, x: Any, y: Any) -> float:
    net = network(run, args)
    model = torch.nn.parallel.DistributedDataParallel(net) if run.world_size > 1 else net
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()
    for step in range(args.steps + 3):
        if step == 3:  # the first ones also arrange memory
            began = time.perf_counter()
        found = loss(model, (x, y))
        found.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.item()
    return (time.perf_counter() - began) / args.steps


def made(run: Run, args: argparse.Namespace) -> Any:
    model = run.parallel(network(run, args))
    return run.trainer(model, torch.optim.AdamW(model.parameters()))


def by_kit(run: Run, args: argparse.Namespace, x: Any, y: Any, every: int) -> float:
    trainer = made(run, args)
    for step in range(args.steps + 3):
        if step == 3:
            began = time.perf_counter()
        trainer.step((x, y), loss)
        trainer.keep(every)
    return (time.perf_counter() - began) / args.steps


if __name__ == "__main__":
    main()

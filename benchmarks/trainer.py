"""What the trainer kit costs over a loop by hand, and a snapshot over none.

    PYTHONPATH=. .venv-ml/bin/python -m torch.distributed.run --standalone --nproc-per-node=2 benchmarks/trainer.py
        [--width 1024] [--rows 96] [--every 50] [--repeat 9]

One training under `python`, or several ranks under `torchrun`: a perceptron with AdamW, its loop written by hand with
DDP, by the kit, and by the kit with a snapshot every so many steps. They take turns, a fifth of the time between two
snapshots each, so that whatever else the machine does meets all of them; the turn with a snapshot ends when it is
written. Medians of such times, and of their ratios. Then what a resumed training needs to its first step, beside the
loading of the snapshot.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from airflow_ml_provider.stages.train.run import Run
from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.stages.train.standalone import training

Step = Callable[[Any, Any], None]
_PARTS = 5


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("width", 1024), ("rows", 96), ("every", 50), ("repeat", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shared = os.environ.get("TORCHELASTIC_RUN_ID", str(os.getpid()))  # a folder of all ranks
    place, world = Path(tempfile.gettempdir()) / f"benchmark-trainer-{shared}", int(os.environ.get("WORLD_SIZE", "1"))
    with training(str(place), launch=Launch(processes=world, keep=1)) as run:
        compare(run, args)
        run.sum(0.0)  # all have read it
        run.forget()


def compare(run: Run, args: argparse.Namespace) -> None:
    x, y = torch.randn(args.rows, args.width), torch.randn(args.rows)
    plain, kit, keeping = by_hand(run, args), by_kit(run, args, 0), by_kit(run, args, args.every)
    ways = {"by hand": plain, "kit": kit, "kit with snapshots": keeping}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        for _ in range(max(args.every // 2, 3)):  # the first ones also arrange memory
            way(x, y)
    size = max(args.every // _PARTS, 1)
    for turn in range(args.repeat):
        names = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
        taken = dict.fromkeys(ways, 0.0)
        for name in names * _PARTS:
            began = time.perf_counter()
            for _ in range(size):
                ways[name](x, y)
            run._snapshots.finish()
            run.sum(0.0)  # so that all ranks are done
            taken[name] += time.perf_counter() - began
        for name, total in taken.items():
            times[name].append(total / size / _PARTS)
    found = resumed(run, args, x, y)
    if run.rank == 0:
        size = sum(p.numel() for p in network(run, args).parameters()) * 4 / 1e6
        print(f"torch {torch.__version__}, {run.world_size} ranks, model of {size:.0f} MB, {args.rows} rows a rank")
        for name, taken in times.items():
            before = times["by hand" if name == "kit" else "kit"]
            ratio = statistics.median(a / b for a, b in zip(taken, before, strict=True)) if name != "by hand" else 1
            step = statistics.median(taken)
            shown = " ".join(f"{t * 1e3:.1f}" for t in taken)
            print(f"{name:20} {step * 1e3:7.2f} ms/step, {ratio:.3f} x of the line before ({shown})")
        print("resumed: {:.2f} s to load, {:.2f} s besides to the end of the first step".format(*found))


def resumed(run: Run, args: argparse.Namespace, x: Any, y: Any) -> tuple[float, float]:
    """Return the medians of what loading takes, and of the rest to the end of the first step."""
    loads, rests = [], []
    for _ in range(3):
        began = time.perf_counter()
        trainer = made(run, args)
        loading = time.perf_counter()
        trainer.resume()
        loads.append(time.perf_counter() - loading)
        trainer.step((x, y), loss)
        rests.append(time.perf_counter() - began - loads[-1])
    return statistics.median(loads), statistics.median(rests)


def loss(model: Any, batch: Any) -> Any:
    return torch.nn.functional.mse_loss(model(batch[0]).squeeze(1), batch[1])


def network(run: Run, args: argparse.Namespace) -> Any:
    torch.manual_seed(1)
    hidden = [part for _ in range(3) for part in (torch.nn.Linear(args.width, args.width), torch.nn.ReLU())]
    return torch.nn.Sequential(*hidden, torch.nn.Linear(args.width, 1))


def by_hand(run: Run, args: argparse.Namespace) -> Step:
    net = network(run, args)
    model = torch.nn.parallel.DistributedDataParallel(net) if run.world_size > 1 else net
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()

    def step(x: Any, y: Any) -> None:
        found = loss(model, (x, y))
        found.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.item()

    return step


def made(run: Run, args: argparse.Namespace) -> Any:
    model = run.parallel(network(run, args))
    return run.trainer(model, torch.optim.AdamW(model.parameters()))


def by_kit(run: Run, args: argparse.Namespace, every: int) -> Step:
    trainer = made(run, args)

    def step(x: Any, y: Any) -> None:
        trainer.step((x, y), loss)
        trainer.keep(every)

    return step


if __name__ == "__main__":
    main()

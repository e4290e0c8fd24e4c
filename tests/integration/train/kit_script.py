"""A training with the kit, in a script of one's own: what each rank of the tests runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.stages.train.standalone import training

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--every", type=int, default=4)
parser.add_argument("--ranks", type=int, default=2, help="of an undisturbed training")
parser.add_argument("--rows", type=int, default=18, help="per batch, of all ranks")
parser.add_argument("--shard", action="store_true")
parser.add_argument("--precision", default="fp32")
parser.add_argument("--term", type=int, nargs=2, default=(-1, -1), help="rank and step of a SIGTERM")
parser.add_argument("--profile", type=int, default=0, help="steps that are profiled")
parser.add_argument("--out", type=Path)
args = parser.parse_args()
torch.use_deterministic_algorithms(True)


def loss(model, batch):
    return torch.nn.functional.mse_loss(model(batch[0]).squeeze(1), batch[1])


launch = Launch(processes=args.ranks, snapshot_every=args.every, profile_steps=args.profile)
traces = args.folder.with_name("traces")
with training(f"file://{args.folder}", recipe="kit", launch=launch, traces=traces) as run:
    torch.manual_seed(5)
    x = torch.randn(64, 8)
    y = x.sum(1)
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    )
    model = run.parallel(net, shard=torch.nn.Linear if args.shard else None, checkpoint=torch.nn.Tanh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    trainer = run.trainer(model, optimizer, precision=args.precision, clip=1.0)
    start, losses = trainer.resume()["step"], []
    while trainer.steps < args.steps:
        rows = torch.arange(args.rows).add(args.rows * trainer.steps).remainder(64)[run.rank :: run.world_size]
        losses.append(run.sum(len(rows) * trainer.step((x[rows], y[rows]), loss)) / args.rows)
        if (run.rank, trainer.steps) == tuple(args.term):
            os.kill(os.getpid(), signal.SIGTERM)
        trainer.keep()
        if args.term[0] >= 0:
            time.sleep(0.01)
    trainer.report()
    figures = run.performance
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in net.parameters()]
    digest = hashlib.sha256(b"".join(w.detach().contiguous().numpy().tobytes() for w in weights)).hexdigest()
    if run.rank == 0 and args.out:
        kind = type(next(iter(net.parameters()))).__name__
        args.out.write_text(
            json.dumps({"start": start, "losses": losses, "digest": digest, "kind": kind, "figures": figures})
        )
sys.exit(0)

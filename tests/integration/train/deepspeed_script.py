"""A training with DeepSpeed, in a script of one's own: what each rank of the tests runs."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import deepspeed
import torch

from airflow_ml_provider.stages.train.spec import Launch
from airflow_ml_provider.stages.train.standalone import training

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--stage", type=int, required=True)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--plain", action="store_true", help="DDP instead of DeepSpeed")
parser.add_argument("--steps", type=int, default=9)
parser.add_argument("--out", type=Path)
args = parser.parse_args()
torch.use_deterministic_algorithms(True)
CONFIG = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 4,
    # The default of half a billion is 2 GB, which deterministic torch fills at every micro batch.
    "zero_optimization": {"stage": args.stage, "reduce_bucket_size": 10000},
    "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 0.02, "warmup_num_steps": 8}},
    "gradient_clipping": 1.0,
    "bf16": {"enabled": args.bf16},
}
DTYPE = torch.bfloat16 if args.bf16 else torch.float32


def loss(model, batch):
    return torch.nn.functional.mse_loss(model(batch[0].to(DTYPE)).squeeze(1).float(), batch[1])


with training(str(args.folder), recipe="deepspeed", launch=Launch(snapshot_every=3)) as run:
    torch.manual_seed(5)
    x = torch.randn(64, 8)
    y = x.sum(1)
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 33), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(33, 7), torch.nn.Linear(7, 1)
    )
    if args.plain:
        model = run.parallel(net)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = deepspeed.runtime.lr_schedules.WarmupLR(optimizer, warmup_max_lr=0.02, warmup_num_steps=8)
        trainer = run.trainer(model, optimizer, schedule, clip=1.0, accumulate=6 // run.world_size)
    else:
        model = run.parallel(net, deepspeed=CONFIG)
        trainer = run.trainer(model)
    start, losses = trainer.resume()["step"], []
    while trainer.steps < args.steps:
        rows = torch.arange(24).add(24 * trainer.steps).remainder(64)[run.rank :: run.world_size]
        losses.append(run.sum(trainer.step((x[rows], y[rows]), loss)) / run.world_size)
        trainer.keep()
    parameters = list(net.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=args.stage == 3 and not args.plain):
        bytes_ = b"".join(p.detach().float().numpy().tobytes() for p in parameters)
    if run.rank == 0 and args.out:
        digest = hashlib.sha256(bytes_).hexdigest()
        args.out.write_text(json.dumps({"start": start, "losses": losses, "digest": digest}))

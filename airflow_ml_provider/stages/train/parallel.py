"""A torch module as all ranks train it: replicated (DDP) or sharded (FSDP2), in less precision, with less memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Literal, Union, get_args

from airflow_ml_provider.exceptions import unknown_name

Precision = Literal["fp32", "bf16", "fp16"]
# Which submodules: a class, several, or a function that says so.
Policy = Union[type, tuple[type, ...], Callable[[Any], bool]]


def device(world_size: int) -> Any:
    """Return the device of this rank."""
    import torch

    on_gpu = torch.cuda.is_available() if world_size == 1 else torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")


def mesh(world_size: int) -> Any:
    """Return the DeviceMesh of one dimension, `ranks`, over all ranks."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    if world_size == 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device(world_size).type, (world_size,), mesh_dim_names=("ranks",))


def replicate(module: Any) -> Any:
    """Return a module with DDP.

    DDP arranges gradients anew after its first step, unless some might be unused. Three or more ranks then add them up
    in another order, and a resumed training would end in other last bits than one that was not interrupted. Two numbers
    have the same sum in either order.
    """
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(module, find_unused_parameters=distributed.get_world_size() > 2)


def shard(module: Any, policy: Policy, over: Any, precision: Precision) -> Any:
    """Shard the submodules that `policy` names, and the module itself, over a mesh; optimisers are made afterwards."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mixed = half if precision == "bf16" else MixedPrecisionPolicy()
    for part in chosen(module, policy):
        fully_shard(part, mesh=over, mp_policy=mixed)
    return fully_shard(module, mesh=over, mp_policy=mixed)


def recompute(module: Any, policy: Policy) -> None:
    """Have the submodules that `policy` names compute their activations again instead of keeping them."""
    from torch.distributed._composable import checkpoint

    for part in chosen(module, policy):
        checkpoint(part)


def chosen(module: Any, policy: Policy) -> list[Any]:
    """Return the submodules that a policy names, inner ones first."""
    named = policy if callable(policy) and not isinstance(policy, type) else lambda part: isinstance(part, policy)
    return [part for part in reversed(list(module.modules())) if part is not module and named(part)]


def check_precision(precision: str) -> None:
    """Raise `SpecError` unless it is a precision."""
    if precision not in get_args(Precision):
        raise unknown_name("precision", precision, get_args(Precision))


def autocast(where: Any, precision: Precision) -> Any:
    """Return the context in which torch computes in a precision."""
    import torch

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(where.type, dtype=kind, enabled=kind is not None)


@contextmanager
def accumulating(model: Any, more: bool) -> Iterator[None]:
    """Add up gradients on this rank alone while `more` micro batches follow; the last one adds them up over all."""
    if hasattr(model, "zero_optimization_stage"):
        yield  # DeepSpeed counts micro batches itself
    elif hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(not more)
        yield
    elif more and hasattr(model, "no_sync"):
        with model.no_sync():
            yield
    else:
        yield

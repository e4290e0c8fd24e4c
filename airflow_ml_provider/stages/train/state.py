"""What a training holds as JSON and tensors: taken apart for a snapshot, put together again after it. No pickle."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider.exceptions import MissingLibrary, invalid


def pack(value: Any, tensors: Tensors) -> Any:
    """Return `value` as JSON; copies of its tensors and arrays go to `tensors` and are named in their places."""
    if hasattr(value, "state_dict"):
        bare = value.module if type(value).__name__ == "DistributedDataParallel" else value
        return pack(bare.state_dict(), tensors)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [pack(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [pack(item, tensors) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: pack(item, tensors) for key, item in value.items()}
        return {"$pairs": [[pack(key, tensors), pack(item, tensors)] for key, item in value.items()]}
    return tensors.put(value)


def unpack(value: Any, tensors: Tensors) -> Any:
    """Return what `pack` was given; mappings come back as dicts."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tuple" in value:
        return tuple(unpack(item, tensors) for item in value["$tuple"])
    if "$pairs" in value:
        return {unpack(key, tensors): unpack(item, tensors) for key, item in value["$pairs"]}
    if "$tensor" in value:
        return tensors.get(value["$tensor"], value["as"])
    return {key: unpack(item, tensors) for key, item in value.items()}


def load_into(target: Any, found: Any) -> None:
    """Load a kept `state_dict` into a module, optimiser or anything else with `load_state_dict`.

    What FSDP2 has sharded is sharded again, over as many ranks as there are now.
    """
    bare = target.module if type(target).__name__ == "DistributedDataParallel" else target
    if hasattr(bare, "parameters"):
        found = {name: _like(value, found.get(name)) for name, value in bare.state_dict().items()}
    elif "param_groups" in found and hasattr(bare, "param_groups"):
        owners = [parameter for group in bare.param_groups for parameter in group["params"]]
        state = {i: {k: _like(owners[i], v) for k, v in kept.items()} for i, kept in found["state"].items()}
        found = {**found, "state": state}
    bare.load_state_dict(found)


def _like(owner: Any, value: Any) -> Any:
    """Return `value` sharded as `owner` is, if it is, and `value` has its shape (a count of steps has not)."""
    if not is_sharded(owner) or getattr(value, "shape", None) != owner.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    whole = value.to(owner.device)
    return distribute_tensor(whole, owner.device_mesh, owner.placements, src_data_rank=None)


def is_sharded(value: Any) -> bool:
    """Whether a value is a tensor of which each rank holds a part."""
    return hasattr(value, "full_tensor")


class Tensors:
    """Tensors of torch and arrays of numpy on their way to and from one safetensors file.

    Parameters:
        keep: no keeps nothing: of a rank that only helps to put sharded tensors together.
    """

    def __init__(self, found: Optional[dict[str, Any]] = None, *, keep: bool = True) -> None:
        self._found = found or {}
        self._keep = keep

    def put(self, value: Any) -> dict[str, str]:
        """Copy a value to this machine's memory; a collective call where it is sharded."""
        name = str(len(self._found))
        kind = type(value).__module__.partition(".")[0]
        if kind == "numpy" and hasattr(value, "dtype") and value.dtype.kind in "biuf":
            import numpy as np

            copied: Any = np.array(value, order="C")
        elif kind == "torch" and hasattr(value, "detach"):
            whole = value.full_tensor() if is_sharded(value) else value
            copied = _copy(whole) if self._keep else None
        else:
            raise invalid(
                "snapshot value", value, "a tensor, an array of numbers, JSON, or something with a state_dict"
            )
        if self._keep:
            self._found[name] = copied
        return {"$tensor": name, "as": kind}

    def get(self, name: str, kind: str) -> Any:
        """Return a value as it was put."""
        value = self._found[name]
        if kind == "torch" or not hasattr(value, "numpy"):
            return value
        array = value.numpy()
        return array if array.ndim else array[()]

    def write(self, path: Path) -> None:
        """Write all to a safetensors file."""
        need_safetensors()
        if any(hasattr(value, "detach") for value in self._found.values()):
            import torch
            from safetensors.torch import save_file

            save_file({n: v if hasattr(v, "detach") else torch.tensor(v) for n, v in self._found.items()}, path)
        else:
            from safetensors.numpy import save_file as save_arrays

            save_arrays(self._found, path)

    @classmethod
    def read(cls, path: Path) -> Tensors:
        """Return those of a safetensors file; of torch where torch is imported."""
        need_safetensors()
        if "torch" in sys.modules:
            from safetensors.torch import load_file

            return cls(load_file(path))
        from safetensors.numpy import load_file as load_arrays

        return cls(load_arrays(path))


def _copy(tensor: Any) -> Any:
    import torch

    copied = torch.empty(tensor.shape, dtype=tensor.dtype)
    return copied.copy_(tensor.detach())


def need_safetensors() -> None:
    """Raise `MissingLibrary` unless safetensors can be imported."""
    if find_spec("safetensors") is None:
        raise MissingLibrary(
            f"snapshots are kept as safetensors, which {sys.executable} lacks; "
            f"run: {sys.executable} -m pip install safetensors"
        )

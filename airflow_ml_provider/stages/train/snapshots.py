"""Snapshots of a training: tensors as safetensors, everything else as JSON, whole or not there at all.

`FOLDER/step=N/` holds `tensors.safetensors`, `state.json` and, with the digests of both, `snapshot.json`. The folder
is written aside and renamed, so a killed writer leaves no half of one; what was damaged later is found by its digests
and the one before it is taken.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import IntegrityError, MissingLibrary, invalid
from airflow_ml_provider.stages.train import randomness

log = logging.getLogger(__name__)

_PREFIX, _TENSORS, _STATE, _SEAL = "step=", "tensors.safetensors", "state.json", "snapshot.json"
_FORMAT = 1


class Snapshots:
    """The snapshots of one training.

    Parameters:
        folder: where they lie.
        recipe: what the training was asked; snapshots of another recipe are left alone.
        keep: how many are kept.
        rank: which of the processes this is; rank 0 writes.
        world_size: how many processes train together.
    """

    def __init__(self, folder: Path, recipe: str, *, keep: int = 2, rank: int = 0, world_size: int = 1) -> None:
        self.folder = folder
        self.recipe = codec.digest([recipe, world_size])
        self.keep = keep
        self.rank = rank
        self.world_size = world_size

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write one snapshot and remove those that are too many; a collective call when several ranks train.

        Raises:
            SpecError: the state holds something that is neither tensor nor JSON.
        """
        if step < 0 or "step" in state:
            raise invalid("snapshot", {"step": step, **state}, "a step of 0 or more, and no state called 'step'")
        generators = randomness.gathered(self.world_size)
        if self.rank == 0:
            self._write(step, state, generators)

    def load(self) -> Optional[tuple[int, dict[str, Any]]]:
        """Return step and state of the newest whole snapshot and set this rank's random numbers; none without one."""
        for folder in reversed(self._folders()):
            try:
                seal = self._check(folder)
            except (OSError, ValueError, KeyError, IntegrityError) as error:
                log.warning("snapshot %s is damaged, taking the one before: %s", folder, error)
                continue
            if seal["recipe"] != self.recipe:
                log.warning("snapshot %s is of another training (settings, data or number of ranks): ignored", folder)
                continue
            body = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            tensors = _Tensors.read(folder / _TENSORS)
            randomness.restore(unpack(body["randomness"], tensors)[self.rank])
            return int(seal["step"]), unpack(body["state"], tensors)
        return None

    def clear(self) -> None:
        """Remove all snapshots."""
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        found = [p for p in self.folder.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit()]
        return sorted(found, key=lambda p: int(p.name[len(_PREFIX) :]))

    def _write(self, step: int, state: Mapping[str, Any], generators: Any) -> None:
        for stale in self.folder.glob(f".{_PREFIX}*"):
            shutil.rmtree(stale)
        aside = self.folder / f".{_PREFIX}{step}"
        aside.mkdir(parents=True)
        tensors = _Tensors()
        body = {"state": pack(dict(state), tensors), "randomness": pack(generators, tensors)}
        tensors.write(aside / _TENSORS)
        (aside / _STATE).write_text(json.dumps(body, separators=(",", ":")), encoding="utf-8")
        files = {name: tables.file_digest(aside / name) for name in (_TENSORS, _STATE)}
        seal = {"format": _FORMAT, "step": step, "recipe": self.recipe, "files": files}
        text = json.dumps({**seal, "digest": codec.digest(seal)})
        (aside / _SEAL).write_text(text, encoding="utf-8")
        for name in (_TENSORS, _STATE, _SEAL):
            with open(aside / name, "rb") as handle:
                os.fsync(handle.fileno())
        for folder in self._folders():
            # Later ones were found damaged, or training would have gone on from there.
            if int(folder.name[len(_PREFIX) :]) >= step or not self._is_ours(folder):
                shutil.rmtree(folder)
        aside.rename(self.folder / f"{_PREFIX}{step}")
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old)

    def _is_ours(self, folder: Path) -> bool:
        try:
            return bool(json.loads((folder / _SEAL).read_text(encoding="utf-8"))["recipe"] == self.recipe)
        except (OSError, ValueError, KeyError):
            return False

    def _check(self, folder: Path) -> dict[str, Any]:
        seal: dict[str, Any] = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        stated = seal.pop("digest")
        if stated != codec.digest(seal) or seal["format"] != _FORMAT or f"{_PREFIX}{seal['step']}" != folder.name:
            raise IntegrityError(f"{_SEAL} is not what was written")
        for name, digest in seal["files"].items():
            if tables.file_digest(folder / name) != digest:
                raise IntegrityError(f"{name} is not what was written")
        return seal


def pack(value: Any, tensors: _Tensors) -> Any:
    """Return `value` as JSON; its tensors and arrays go to `tensors` and are named in their places."""
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


def unpack(value: Any, tensors: _Tensors) -> Any:
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


class _Tensors:
    """Tensors of torch and arrays of numpy on their way to and from one safetensors file."""

    def __init__(self, found: Optional[dict[str, Any]] = None) -> None:
        self._found = found or {}

    def put(self, value: Any) -> dict[str, str]:
        name = str(len(self._found))
        kind = type(value).__module__.partition(".")[0]
        if kind == "numpy" and hasattr(value, "dtype") and value.dtype.kind in "biuf":
            self._found[name] = value
        elif kind == "torch" and hasattr(value, "detach"):
            self._found[name] = value.detach().cpu().contiguous().clone()
        else:
            raise invalid(
                "snapshot value", value, "a tensor, an array of numbers, JSON, or something with a state_dict"
            )
        return {"$tensor": name, "as": kind}

    def get(self, name: str, kind: str) -> Any:
        value = self._found[name]
        if kind == "torch" or not hasattr(value, "numpy"):
            return value
        array = value.numpy()
        return array if array.ndim else array[()]

    def write(self, path: Path) -> None:
        _need_safetensors()
        if any(hasattr(value, "detach") for value in self._found.values()):
            import torch
            from safetensors.torch import save_file

            save_file({n: v if hasattr(v, "detach") else torch.tensor(v) for n, v in self._found.items()}, path)
        else:
            import numpy as np
            from safetensors.numpy import save_file as save_arrays

            save_arrays({n: np.array(v, order="C") for n, v in self._found.items()}, path)

    @classmethod
    def read(cls, path: Path) -> _Tensors:
        import sys

        _need_safetensors()
        if "torch" in sys.modules:
            from safetensors.torch import load_file

            return cls(load_file(path))
        from safetensors.numpy import load_file as load_arrays

        return cls(load_arrays(path))


def _need_safetensors() -> None:
    import sys
    from importlib.util import find_spec

    if find_spec("safetensors") is None:
        raise MissingLibrary(
            f"snapshots are kept as safetensors, which {sys.executable} lacks; "
            f"run: {sys.executable} -m pip install safetensors"
        )

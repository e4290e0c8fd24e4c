"""Snapshots of a training: tensors as safetensors, everything else as JSON, whole or not there at all.

`PLACE/step=N/` holds `tensors.safetensors`, `state.json` and, with the digests of both, `snapshot.json`. What was
damaged later is found by its digests, and the one before it is taken. A thread writes while the training goes on.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import IntegrityError, invalid
from airflow_ml_provider.stages.train import places, randomness
from airflow_ml_provider.stages.train.places import SEAL
from airflow_ml_provider.stages.train.state import Tensors, need_safetensors, pack, unpack

log = logging.getLogger(__name__)

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_FORMAT = 2


class Snapshots:
    """The snapshots of one training.

    Parameters:
        place: where they lie: a folder or any URI of fsspec.
        recipe: what the training was asked; snapshots of another recipe are left alone.
        keep: how many are kept.
        rank: which of the processes this is; rank 0 writes.
        world_size: how many processes train together; it may be another than when the snapshot was taken.
        seed: with step and rank it seeds a rank that the snapshot does not know.
    """

    def __init__(
        self, place: Union[str, Path], recipe: str, *, keep: int = 2, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        self.place = places.place(str(place))
        self.recipe = recipe
        self.keep = keep
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self._writer: Optional[threading.Thread] = None
        self._error: Optional[BaseException] = None
        self._own: set[int] = set()  # need not be read again, which costs a download where the place is remote

    def save(self, step: int, state: Mapping[str, Any], *, wait: bool = False) -> None:
        """Copy the state, and write it and remove those that are too many while the training goes on.

        A collective call when several ranks train. It waits for the snapshot before to be written.

        Parameters:
            wait: return when all is written, on every rank.

        Raises:
            SpecError: the state holds something that is neither tensor nor JSON.
            OSError: this snapshot, or the one before, could not be written.
        """
        if step < 0 or "step" in state:
            raise invalid("snapshot", {"step": step, **state}, "a step of 0 or more, and no state called 'step'")
        generators = randomness.gathered(self.world_size)
        tensors = Tensors(keep=self.rank == 0)
        packed = pack(dict(state), tensors)  # by all: what is sharded is put together by all
        if self.rank == 0:
            need_safetensors()
            self.finish()
            body = {"state": packed, "randomness": pack(generators, tensors)}
            self._writer = threading.Thread(target=self._run, args=(step, body, tensors), name="snapshot", daemon=True)
            self._writer.start()
        if wait:
            self.finish()
            if self.world_size > 1:
                from torch import distributed

                distributed.barrier()

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: it could not be written.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def load(self) -> Optional[tuple[int, dict[str, Any]]]:
        """Return step and state of the newest whole snapshot and set this rank's random numbers; none without one."""
        self.finish()
        for step in reversed(self.place.steps()):
            where = self.place.shown(step)
            with self.place.opened(step) as folder:
                try:
                    seal = _check(folder, step)
                except (OSError, ValueError, KeyError, IntegrityError) as error:
                    log.warning("snapshot %s is damaged, taking the one before: %s", where, error)
                    continue
                if seal["recipe"] != self.recipe:
                    log.warning("snapshot %s is of another training (settings or data): ignored", where)
                    continue
                body = json.loads((folder / _STATE).read_text(encoding="utf-8"))
                tensors = Tensors.read(folder / _TENSORS)
                self._restore(step, unpack(body["randomness"], tensors))
                return step, unpack(body["state"], tensors)
        return None

    def clear(self) -> None:
        """Remove all snapshots."""
        self.finish()
        if self.rank == 0:
            self.place.clear()

    def _restore(self, step: int, generators: Any) -> None:
        if len(generators) != self.world_size:
            log.info("the snapshot is of %d ranks, now there are %d", len(generators), self.world_size)
        if self.rank < len(generators):
            randomness.restore(generators[self.rank])
        else:
            randomness.seed(self.seed, self.rank, step)
            log.info("rank %d is new; its random numbers follow from seed, step and rank", self.rank)

    def _run(self, step: int, body: dict[str, Any], tensors: Tensors) -> None:
        try:
            self._write(step, body, tensors)
        except BaseException as error:  # noqa: BLE001 - the next call raises it
            self._error = error

    def _write(self, step: int, body: dict[str, Any], tensors: Tensors) -> None:
        def fill(folder: Path) -> None:
            tensors.write(folder / _TENSORS)
            (folder / _STATE).write_text(json.dumps(body, separators=(",", ":")), encoding="utf-8")
            files = {name: tables.file_digest(folder / name) for name in (_TENSORS, _STATE)}
            seal = {"format": _FORMAT, "step": step, "recipe": self.recipe, "files": files}
            (folder / SEAL).write_text(json.dumps({**seal, "digest": codec.digest(seal)}), encoding="utf-8")

        # Later ones were found damaged, or training would have gone on from there.
        useless = [other for other in self.place.steps() if other > step or not self._is_ours(other)]
        self.place.put(step, fill)
        self._own.add(step)
        for other in useless:
            if other != step:
                self.place.remove(other)
        for old in self.place.steps()[: -self.keep]:
            self.place.remove(old)

    def _is_ours(self, step: int) -> bool:
        if step in self._own:
            return True
        try:
            with self.place.opened(step) as folder:
                return bool(json.loads((folder / SEAL).read_text(encoding="utf-8"))["recipe"] == self.recipe)
        except (OSError, ValueError, KeyError):
            return False


def _check(folder: Path, step: int) -> dict[str, Any]:
    """Return the seal of a snapshot whose files are what was written."""
    seal: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    stated = seal.pop("digest")
    if stated != codec.digest(seal) or seal["format"] != _FORMAT or seal["step"] != step:
        raise IntegrityError(f"{SEAL} is not what was written")
    for name, digest in seal["files"].items():
        if tables.file_digest(folder / name) != digest:
            raise IntegrityError(f"{name} is not what was written")
    return seal

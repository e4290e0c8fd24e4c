"""The wanted state on disk: one file, replaced in one step, changed only by those who have seen its last generation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import Conflict, SpecError
from airflow_ml_provider.serving.spec import Wanted, check_change

WANTED = "wanted.json"


class Store:
    """The wanted state of one service in its folder.

    Raises:
        SpecError: the file holds no wanted state.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / WANTED
        self.wanted = Wanted()
        if self._path.exists():
            try:
                self.wanted = codec.decode(Wanted, json.loads(self._path.read_text(encoding="utf-8")))
            except ValueError as error:  # SpecError is one, too
                raise SpecError(f"{self._path} holds no wanted state: {error}; mend or remove it") from error

    def replace(self, new: Wanted) -> Wanted:
        """Keep `new` as the next generation and return it.

        Raises:
            Conflict: it was not made from the generation that is kept.
            SpecError: it cannot follow what is kept.
        """
        if new.generation != self.wanted.generation:
            raise Conflict(
                f"generation is {self.wanted.generation} by now, not {new.generation}; read it and decide anew"
            )
        check_change(self.wanted, new)
        new = replace(new, generation=new.generation + 1)
        tables.write_text(self._path, json.dumps(codec.encode(new), indent=1, allow_nan=False))
        self.wanted = new
        return new

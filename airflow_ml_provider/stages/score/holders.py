"""Who scores a window: by the journal, and by what was scored before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from airflow_ml_provider.exceptions import DataError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import Registry, journal
from airflow_ml_provider.stages.score import stream

log = logging.getLogger(__name__)


def who_scores(
    registry: Registry, names: Sequence[str], alias: str, interval: Interval, scored: Path, *, anew: bool = False
) -> tuple[list[ModelRef], dict[str, int]]:
    """Return the versions that rule a window, and by name the number of the journal's entry that says so (0: none).

    These are the holders of the alias when the window began. Promotions that were journalled after the window was
    first scored do not count, rollbacks do.

    Parameters:
        scored: the window's predictions; they need not be there.
        anew: as if they were not.
    """
    before = {} if anew else _ruled_by(scored).get(alias, {})
    held = {name: journal.held(registry.journal(name, alias), interval.start, before.get(name)) for name in names}
    found = [registry.held_by(name, entry) for name, entry in held.items() if entry]
    return found, {name: entry.seq if entry else 0 for name, entry in held.items()}


def _ruled_by(scored: Path) -> dict[str, dict[str, int]]:
    try:
        return stream.ruled_by(scored)
    except DataError as error:
        log.warning("what the window was scored with before is not known: %s", error)
        return {}

"""Which version answers a request, and which get a copy of it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

from airflow_ml_provider.serving.spec import Wanted
from airflow_ml_provider.stages.deploy.experiment import assign
from airflow_ml_provider.stages.deploy.service import Sticky

_SPAN = float(1 << 64)


@dataclass(frozen=True)
class Split:
    """Shares of the traffic, ready to be asked for every request.

    The stable version holds what the others leave, at the upper end: when one candidate's share grows, requests with a
    sticky key only ever move from the stable version to it, and back when it shrinks.

    Attributes:
        bounds: upper bound in percent and version, in order.
        stable: the version above the last bound.
        mirrors: version to the percent of which it gets copies.
        shares: version to its percent.
        sticky: how a key gets its version, where it is an experiment's.
    """

    bounds: tuple[tuple[float, str], ...]
    stable: str
    mirrors: tuple[tuple[str, float], ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    sticky: Optional[Sticky] = None

    @classmethod
    def of(cls, wanted: Wanted) -> Split:
        """Return the split of a wanted state."""
        bounds, reached = [], 0.0
        for name, version in sorted(wanted.versions.items()):
            if name != wanted.stable and version.percent:
                reached += version.percent
                bounds.append((reached, name))
        mirrors = [(name, version.mirror) for name, version in sorted(wanted.versions.items()) if version.mirror]
        shares = {name: version.percent for name, version in wanted.versions.items()}
        return cls(tuple(bounds), wanted.stable, tuple(mirrors), shares, wanted.sticky)

    def of_key(self, service: str, key: str) -> str:
        """Return the version of a key, always the same as long as the split stays."""
        if self.sticky:
            return assign(key, self.sticky.salt, self.shares)
        return self.choose(sticky_point(service, key))

    def choose(self, point: float) -> str:
        """Return the version at `point`, in [0, 100)."""
        for bound, name in self.bounds:
            if point < bound:
                return name
        return self.stable

    def copies(self, answered: str, draw: float) -> list[str]:
        """Return the versions that get a copy of what `answered` answers; `draw` is in [0, 100)."""
        return [name for name, percent in self.mirrors if name != answered and draw < percent]


def sticky_point(service: str, key: str) -> float:
    """Return the point in [0, 100) of a key, always the same; other services place their keys independently."""
    digest = hashlib.blake2b(f"{service}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _SPAN * 100

"""What a gateway is asked for: which versions of a model serve, and with what share of the traffic."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from airflow_ml_provider.exceptions import SpecError, invalid, unknown_name
from airflow_ml_provider.stages.deploy.service import Sticky
from airflow_ml_provider.tables import local_path

_SERVICE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SPLIT = ("percent", "mirror")  # what may change while a version serves

NanPolicy = Literal["accept", "reject"]


@dataclass(frozen=True)
class Version:
    """One version of a model and how it is served. All but `percent` and `mirror` stays as it is while it serves.

    Attributes:
        package: folder of the model package, as an absolute path or a `file://` URI.
        digest: digest of the package; another one is never served.
        percent: share of the users' requests.
        mirror: share of the requests answered by other versions of which this one gets a copy nobody waits for.
        python: interpreter with `airflow-ml-provider[serving]`'s libraries; empty takes the gateway's own.
        max_batch: rows that are scored in one call at most; 1 scores each request by itself.
        max_delay_ms: how long a request waits for others to be scored with; 0 only gathers those that arrive while the
            model is busy.
        nan: whether numbers may be missing (null, NaN) or infinite and texts missing; `reject` answers 400.
        threads: threads of one scoring call.
        max_body_mib: larger requests are answered 413.
    """

    package: str
    digest: str
    percent: float = 0.0
    mirror: float = 0.0
    python: str = ""
    max_batch: int = 64
    max_delay_ms: float = 0.0
    nan: NanPolicy = "accept"
    threads: int = 1
    max_body_mib: float = 16.0

    def __post_init__(self) -> None:
        if not local_path(self.package).is_absolute():
            raise invalid("package", self.package, "an absolute path or a file:// URI")
        if not _DIGEST.fullmatch(self.digest):
            raise invalid("digest", self.digest, "sha256: and 64 hexadecimal digits")
        for name in _SPLIT:
            if not 0 <= getattr(self, name) <= 100:
                raise invalid(name, getattr(self, name), "in [0, 100]")
        for name in ("max_batch", "threads"):
            if getattr(self, name) < 1:
                raise invalid(name, getattr(self, name), "at least 1")
        if not 0 <= self.max_delay_ms <= 1000:
            raise invalid("max_delay_ms", self.max_delay_ms, "in [0, 1000]")
        if not 0 < self.max_body_mib <= 1024:
            raise invalid("max_body_mib", self.max_body_mib, "in (0, 1024]")


@dataclass(frozen=True)
class Wanted:
    """The wanted state of a service.

    Attributes:
        versions: name of each version to how it is served; their percentages add up to 100.
        stable: the version that answers when another one cannot; empty only when there are no versions.
        rollout: whatever the one who rolls out wants to remember with it; the gateway keeps it and does not look at it.
        generation: the generation that this was made from; the gateway gives what it accepts the next one.
        timeout_s: a request that a version has not answered after so many seconds is answered 504.
        score_edges: increasing edges of the histogram of scores.
        log_percent: share of the answers that go into the prediction log, with their requests.
        tolerance: numbers that a copy's answer has instead of the user's are the same within it; see
            `serving.agreement.agree`.
        sticky: header with a key, and the salt by which keys get their versions; who got which is logged. Without it
            the header is `x-sticky-key`, and the service's name is the salt.
    """

    versions: Mapping[str, Version] = field(default_factory=dict)
    stable: str = ""
    rollout: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    timeout_s: float = 30.0
    score_edges: tuple[float, ...] = tuple(i / 20 for i in range(21))
    log_percent: float = 0.0
    tolerance: float = 0.01
    sticky: Optional[Sticky] = None

    def __post_init__(self) -> None:
        for name in self.versions:
            if not _VERSION.fullmatch(name):
                raise invalid("name of a version", name, "1 to 63 letters, digits, '.', '_', '-'")
        if self.versions or self.stable:
            self._check_split()
        if self.generation < 0:
            raise invalid("generation", self.generation, "0 or greater")
        if not 0 < self.timeout_s <= 3600:
            raise invalid("timeout_s", self.timeout_s, "in (0, 3600]")
        if not 0 <= self.log_percent <= 100:
            raise invalid("log_percent", self.log_percent, "in [0, 100]")
        if not 0 <= self.tolerance < 1:
            raise invalid("tolerance", self.tolerance, "in [0, 1)")
        edges = self.score_edges
        if not edges or not all(map(math.isfinite, edges)) or any(a >= b for a, b in zip(edges, edges[1:])):
            raise invalid("score_edges", edges, "at least one number, increasing")

    def _check_split(self) -> None:
        if self.stable not in self.versions:
            raise unknown_name("stable version", self.stable, self.versions)
        total = sum(version.percent for version in self.versions.values())
        if abs(total - 100) > 1e-6:
            raise invalid("percent of all versions", total, "100 in total", "give what is left to the stable version")


def check_change(old: Wanted, new: Wanted) -> None:
    """Check that `new` can follow `old`.

    Raises:
        SpecError: a version that goes on serving would become another one.
    """
    for name in old.versions.keys() & new.versions.keys():
        before, after = old.versions[name], new.versions[name]
        for key in (key for key in vars(before) if key not in _SPLIT):
            if getattr(before, key) != getattr(after, key):
                raise SpecError(
                    f"{key} of version {name!r} must stay {getattr(before, key)!r} while it serves, "
                    f"got {getattr(after, key)!r}; give what is served differently another name"
                )


def check_service(name: str) -> str:
    """Return the name of a service if it is one.

    Raises:
        SpecError: it is not.
    """
    if not _SERVICE.fullmatch(name):
        raise invalid("name of a service", name, "1 to 63 lower-case letters, digits and '-', beginning with a letter")
    return name


@dataclass(frozen=True)
class Status:
    """What has become of one version.

    Attributes:
        state: `loading`, `ready`, `waiting` (for its next start), `crash_loop` (likewise, after several starts in a
            row that did not last), `failed` (it can never work: not started again) or `draining`.
        ready: whether requests go to it.
        pid: its server process.
        restarts: how often it was started again.
        reason: why it is not ready, with the last lines that it printed.
        observed_generation: the last generation with which it has been ready.
        percent: wanted share of the requests.
        actual_percent: share of the users' requests that it answered since the generation began; none without any.
    """

    state: str
    ready: bool = False
    pid: Optional[int] = None
    restarts: int = 0
    reason: str = ""
    observed_generation: int = 0
    percent: float = 0.0
    actual_percent: Optional[float] = None


@dataclass(frozen=True)
class ServiceStatus:
    """What has become of the wanted state.

    Attributes:
        service: its name.
        generation: of the wanted state.
        pid: the gateway.
        ready: whether the stable version answers.
        versions: what has become of each version.
        rollout: that of the wanted state.
    """

    service: str
    generation: int
    pid: int
    ready: bool
    versions: Mapping[str, Status] = field(default_factory=dict)
    rollout: Mapping[str, Any] = field(default_factory=dict)

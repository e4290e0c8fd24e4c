"""May an alias move to a candidate? Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, Optional

from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry.journal import Holders

Outcome = Literal["move", "already", "refuse"]


@dataclass(frozen=True)
class Verdict:
    """Whether the alias moves, and why not.

    Attributes:
        outcome: `move` it; the candidate `already` is the champion; `refuse`.
        reason: one sentence with what was compared; empty for `move`.
    """

    outcome: Outcome
    reason: str = ""


def may_promote(
    candidate: ModelRef,
    holders: Holders,
    *,
    backfill: Literal["never", "newer"],
    info: RunInfo,
    rolled_back: Collection[str] = (),
    made_from: str = "",
) -> Verdict:
    """Return whether an alias may move to `candidate`, evidence aside.

    It moves only forward: the candidate's data must be newer than that of every holder, in any kind of run. A holder
    that the candidate was made from, smaller or faster, has the same data.

    Parameters:
        candidate: the version.
        holders: who holds the alias now. When alias and journal do not agree, a move to one of the holders completes
            what they lack.
        backfill: what backfilled and cleared runs may do: `never` move it, or as others when the data is `newer`.
        info: the run.
        rolled_back: digests that were rolled back from.
        made_from: digest of the model that the candidate is an optimised one of; empty for others.
    """
    if holders.agreed and holders.models and not holders.besides(candidate):
        version = holders.models[0].version
        return Verdict("already", f"already champion: version {version} is this very model")
    if candidate.digest in rolled_back:
        return Verdict(
            "refuse",
            f"{_name(candidate)} was rolled back from; bring it back with a rollback to it, or train another model",
        )
    old = "a backfilled" if info.reason == "backfill" else "a cleared" if info.cleared else ""
    if old and backfill == "never":
        return Verdict("refuse", f"{_name(candidate)} comes from {old} run, and those never promote by this policy")
    if candidate.trained_until is None:
        return Verdict("refuse", f"{_name(candidate)} does not say until when it was trained")
    for holder in holders.besides(candidate):
        if holder.trained_until is None:
            return Verdict("refuse", f"{_name(holder)} holds the alias and does not say until when it was trained")
        as_new = holder.digest == made_from and candidate.trained_until == holder.trained_until
        if candidate.trained_until <= holder.trained_until and not as_new:
            return Verdict(
                "refuse",
                f"{_name(candidate)} is not newer than the champion: trained until "
                f"{_time(candidate.trained_until)}, version {holder.version} until {_time(holder.trained_until)}",
            )
    return Verdict("move")


def judged_against_another(candidate: ModelRef, evidence: Mapping[str, Any], holders: Holders) -> str:
    """Return why the challenge in the evidence says nothing about this promotion; empty when it does, or there is none.

    The champion that the gate compared with must be one that the candidate would replace: another one may have been
    promoted, or given back, since.

    Parameters:
        candidate: the version.
        evidence: the record of the gate.
        holders: who holds the alias now.
    """
    replaced = holders.besides(candidate)
    champion = evidence.get("champion") or {}
    challenged = any(str(c.get("name")).startswith("challenge.") for c in evidence["criteria"])
    if not challenged or not replaced or champion.get("digest") in [holder.digest for holder in replaced]:
        return ""
    judged = f"version {champion.get('version')}" if champion else "nobody"
    now = " and ".join(f"version {holder.version}" for holder in replaced)
    return (
        f"{_name(candidate)} was judged against {judged}, but the alias is held by {now}; let the gate judge it again"
    )


def effective_from(candidate: ModelRef, info: RunInfo, now: datetime) -> datetime:
    """Return from which moment on data is scored by the candidate: the end of the run's interval, else now.

    Never before the end of what it was trained on, so that no row is scored by a model that has seen its outcome.
    """
    moment = info.interval.end if info.interval else now
    return max(moment, candidate.trained_until) if candidate.trained_until else moment


def _name(ref: ModelRef) -> str:
    return f"{ref.name} version {ref.version}"


def _time(moment: Optional[datetime]) -> str:
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC" if moment else "an unknown time"

"""Serve a version of a model, move traffic from one version to another, and stop serving."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import Refused, SpecError, StageCrashed, invalid
from airflow_ml_provider.operators._base import StageOperator
from airflow_ml_provider.operators._context import resolve_interval, run_info
from airflow_ml_provider.operators._serving import GatedServingOperator, ServingOperator, seconds, settle
from airflow_ml_provider.refs import ModelRef, ReportRef, as_ref
from airflow_ml_provider.stages import Result
from airflow_ml_provider.stages.deploy import place as places

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.stages.deploy.place import Place
    from airflow_ml_provider.stages.deploy.service import Observed, Server, Version
    from airflow_ml_provider.stages.deploy.state import RolloutState, Seen
    from airflow_ml_provider.stages.deploy.strategies import Policy


class DeployOperator(GatedServingOperator):
    """Serve a version of a model: create the service or change it, and wait until it truly answers.

    The task has succeeded when the place says that this very version is ready, and the service has answered a request.
    The same again changes nothing. A version that does not become ready gives way to the one before it; a new service
    is removed again. All traffic goes to the new version at once: `RolloutOperator` moves it step by step.

    The result's `model` is the model; its link `service` is the address, and `grpc` that of gRPC where it is asked for.

    Parameters:
        model: the model: the result of `promote`, `gate` or `register`, its `model`, or a ref.
        server: what serves it: a `Server(…)`, or its attributes as a mapping; none takes the defaults.
        rows: rows of the request that must be answered, column to values; none makes one row of zeros and empty texts
            by the model's manifest, where the worker can read it, and asks nothing where it cannot.
        existing: what becomes of a service that is there already: `replace` its version, unless another task is rolling
            it out; `interrupt` that rollout, too, as who rolls back in a hurry wants it; or `keep` it as it is, which a
            rollout needs to begin with.
        wait_s: the version must be ready within so many seconds.
    """

    template_fields: Sequence[str] = (
        *GatedServingOperator.template_fields,
        "model",
        "server",
        "rows",
        "existing",
        "wait_s",
    )

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        server: Server | Mapping[str, Any] | None = None,
        rows: Mapping[str, Sequence[Any]] | None = None,
        existing: str = "replace",
        wait_s: float | str = 1800.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if "{{" not in str(wait_s):
            seconds(wait_s, "wait_s")
        if "{{" not in str(existing):
            _check_existing(existing)
        self.model, self.server, self.rows, self.existing, self.wait_s = model, server, rows, existing, wait_s

    def begin(self, context: Context) -> Result:
        from airflow_ml_provider.stages.deploy.logic import is_of, is_over, rollout_of, stable_of
        from airflow_ml_provider.stages.deploy.service import Service
        from airflow_ml_provider.stages.deploy.spec import DeployResult

        assert self.info is not None
        _check_existing(self.existing)
        version, observed = self._version(), self._look(context)
        before, revision = None, None
        if observed is not None and self.existing == "keep" and not is_of(observed.wanted, self.info):
            model = observed.wanted.stable.model
            said = f"service {self.service!r} is there already"
            return DeployResult(reason=said, inputs=(model,), outputs=(model,), model=model)
        if observed is not None:
            self._check_free(observed, interrupt=self.existing == "interrupt")
            wanted, revision = observed.wanted, observed.revision
            before = wanted.stable if is_over(wanted) else stable_of(wanted)
        if observed is None or observed.wanted.stable != version or not is_over(observed.wanted):
            if refusal := self._refusal(version.model):
                return refusal
            self.log.info("service %s: version %s instead of %s", self.service, version.name, before and before.name)
            rollout = rollout_of(self.info, before, version)
            self.serving.put(Service(self.service, version, rollout=rollout), revision)
        return self._settled() or self._wait_for(seconds(self.wait_s, "wait_s"))

    def proceed(self, context: Context, state: Mapping[str, Any] | None) -> Result:
        return self._settled() or self._wait_for(seconds(self.wait_s, "wait_s"))

    def _settled(self) -> Result | None:
        """Return the result if the version is ready; none while it may become so."""
        from airflow_ml_provider.stages.deploy.requests import rows_for
        from airflow_ml_provider.stages.deploy.service import Service
        from airflow_ml_provider.stages.deploy.spec import DeployResult

        version, observed = self._version(), self.serving.look(self.service)
        if observed is None or observed.wanted.stable != version:
            raise StageCrashed(f"service {self.service!r} was deleted or changed while it got ready")
        state = observed.states[version.name]
        if state.phase == "failed":
            raise StageCrashed(f"version {version.name!r} of service {self.service!r} cannot serve: {state.why}")
        if state.phase == "waits":
            self.log.info("version %s is not ready yet: %s", version.name, state.why)
            return None
        if rows := rows_for(version.model, self.rows):
            self.log.info("version %s answers %s", *reversed(self.serving.predict(self.service, rows)))
        self.serving.put(Service(self.service, version), observed.revision)
        model = version.model
        return DeployResult(inputs=(model,), outputs=(model,), links=observed.links, model=model)

    def _version(self) -> Version:
        from airflow_ml_provider.stages.deploy.logic import version_of
        from airflow_ml_provider.stages.deploy.service import Server

        return version_of(as_ref(ModelRef, self.model, "model"), codec.decode(Server, self.server or {}, "server"))


class RolloutOperator(GatedServingOperator):
    """Move a service's traffic to another version of its model, step by step, and back at the first bad sign.

    The candidate is deployed beside the stable version; then the policy moves the traffic and checks at every step what
    both versions did. A candidate that does not pass is taken away, and the task is refused; one that passes becomes
    the stable version. Every step's numbers are in the evidence. While it lasts the task is deferred; a killed worker,
    triggerer or scheduler loses nothing, and a task that is killed, cleared or marked gives the traffic back.

    The result's `rollout` is the evidence, `model` the candidate; its metrics are `steps` and `requests`.

    Parameters:
        model: the candidate: the result of `gate` or `register`, its `model`, or a ref.
        evidence: folder for the evidence, a JSON file named by its digest.
        policy: how the traffic moves: a `RolloutPolicy(…)`, `ExperimentPolicy(…)` or `BanditPolicy(…)`, or the
            attributes of one as a mapping, whose `strategy` says of which; none takes the defaults of a canary.
        server: what serves the candidate: a `Server(…)`, or its attributes as a mapping; none is the stable version's.
        on_refusal: `fail` the task when the candidate is rolled back, or `skip` it.
    """

    template_fields: Sequence[str] = (*GatedServingOperator.template_fields, "model", "evidence", "policy", "server")

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        evidence: str,
        policy: Policy | Mapping[str, Any] | None = None,
        server: Server | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(policy, Mapping) and policy and "{{" not in str(policy):
            from airflow_ml_provider.stages.deploy import strategies

            strategies.decode(policy)
        self.model, self.evidence, self.policy, self.server = model, evidence, policy, server

    def begin(self, context: Context) -> Result:
        from airflow_ml_provider.stages.deploy.logic import is_over, stable_of
        from airflow_ml_provider.stages.deploy.spec import RolloutResult

        assert self.info is not None
        observed = self._look(context)
        if observed is None:
            raise SpecError(f"service {self.service!r} does not exist: deploy its first version with DeployOperator")
        self._check_free(observed)
        wanted = observed.wanted
        if wanted.rollout.get("identity") == self.info.identity and "state" in wanted.rollout:
            self.log.info("going on with the rollout that an earlier try began")
            return self.proceed(context, wanted.rollout["state"])
        stable = wanted.stable if is_over(wanted) else stable_of(wanted) or wanted.stable
        candidate = self._version(stable)
        if candidate.model.digest == stable.model.digest:
            said = f"version {stable.name!r} of service {self.service!r} is this model already"
            return RolloutResult(reason=said, inputs=(stable.model,), outputs=(stable.model,), model=stable.model)
        if refusal := self._refusal(candidate.model):
            return refusal
        return self.proceed(context, self._start(observed, stable, candidate))

    def _start(self, observed: Observed, stable: Version, candidate: Version) -> Mapping[str, Any]:
        """Deploy the candidate beside the stable version, without any traffic; return the rollout's first state."""
        from airflow_ml_provider.stages.deploy import rollout
        from airflow_ml_provider.stages.deploy.logic import rollout_of, sticky_of, tolerance_of
        from airflow_ml_provider.stages.deploy.service import Service
        from airflow_ml_provider.stages.deploy.state import Seen

        assert self.info is not None
        seen = Seen(health="pending", stable=self.serving.readings(self.service).get(stable.name, {}))
        policy = self._policy(seen)
        state = rollout.begin(policy, seen, time.time(), candidate=candidate.model.digest, stable=stable.model.digest)
        begun: Mapping[str, Any] = codec.encode(state)
        record = rollout_of(self.info, stable, candidate, state=begun, policy=codec.encode(policy))
        self.log.info("service %s: from version %s to %s", self.service, stable.name, candidate.name)
        wanted = Service(
            self.service, stable, candidate, rollout=record, sticky=sticky_of(policy, candidate),
            tolerance=tolerance_of(policy),
        )  # fmt: skip
        self.serving.put(wanted, observed.revision)
        return begun

    def _policy(self, seen: Seen) -> Policy:
        """Return the policy, if it can be fulfilled; how long an experiment takes is logged."""
        from airflow_ml_provider.stages.deploy import experiment, strategies
        from airflow_ml_provider.stages.deploy.logic import completed

        # As those who go on will read it, so that its digest is theirs.
        policy, place = strategies.decode(codec.encode(self.policy or {})), places.resolve(self.place)
        places.check(place, policy)
        if isinstance(policy, experiment.ExperimentPolicy):
            self.log.info("experiment %s: %s", policy.salt, experiment.prospect(policy, seen.counted(policy.metric)))
        return completed(policy, places.prediction_log(place, self.service))

    def proceed(self, context: Context, state: Mapping[str, Any] | None) -> Result:
        from airflow_ml_provider.stages.deploy import moves

        assert self.info is not None
        found = moves.look(self.serving, self.service, self.info.identity, state or {}, time.time())
        if found is None:
            raise Refused(f"service {self.service!r} was deleted or changed by somebody else during its rollout")
        observed, decision = found
        if decision.action != "wait":
            self.log.info("%s: %s", decision.action, decision.reason)
            moves.act(self.serving, observed, decision)
        if not decision.over:
            self._wait_for(state=codec.encode(decision.state))
        return self._concluded(observed, decision.state)

    def _concluded(self, observed: Observed, state: RolloutState) -> Result:
        from airflow_ml_provider.stages.deploy import evidence
        from airflow_ml_provider.stages.deploy.logic import candidate_of, stable_of
        from airflow_ml_provider.stages.deploy.spec import RolloutResult

        wanted, candidate = observed.wanted, candidate_of(observed.wanted)
        stable = stable_of(wanted)
        report = evidence.write(self.evidence, wanted, state)
        return RolloutResult(
            status="ok" if state.phase == "done" else "refused",
            reason=state.reason,
            inputs=(candidate.model,) if stable is None else (stable.model, candidate.model),
            outputs=(candidate.model, report),
            metrics={"steps": float(len(state.evidence)), "requests": float(evidence.requests(state))},
            links={**observed.links, "evidence": report.uri},
            rollout=report,
            model=candidate.model,
            verdict=evidence.verdict(state),
        )

    def _version(self, stable: Version) -> Version:
        from airflow_ml_provider.stages.deploy.logic import version_of
        from airflow_ml_provider.stages.deploy.service import Server

        server = stable.server if self.server is None else codec.decode(Server, self.server, "server")
        return version_of(as_ref(ModelRef, self.model, "model"), server)


class UndeployOperator(ServingOperator):
    """Stop serving: remove a service with all its versions. One that is not there is no failure.

    A service that another task is rolling out is refused.
    """

    ui_color = "#f2dede"

    def begin(self, context: Context) -> Result:
        observed = self._look(context)
        if observed is None:
            return Result(status="skipped", reason=f"service {self.service!r} does not exist")
        self._check_free(observed)
        self.serving.remove(self.service)
        return Result(inputs=(observed.wanted.stable.model,))


class RolloutOutcomeOperator(StageOperator):
    """Update the task's outlets if a rollout has ended in a certain way, else skip the task.

    Airflow updates no asset for a task that fails or is skipped, as `RolloutOperator` does when it rolls back. This one
    stands behind it, so that others can be started by what has become of a candidate. An event's extra has the digests
    of candidate and evidence. A rollout that was never begun, or was killed, has no outcome.

    With `service` and `place` it also settles what a worker that was killed in the last try of a rollout could not: it
    gives the traffic back to the stable version.

    Parameters:
        rollout: the result of `RolloutOperator`, its `output`.
        outcome: `done`, or `rolled_back`; the latter's trigger rule is `all_done` unless told otherwise.
        service: name of the service, as `RolloutOperator` has it; empty leaves it as it is.
        place: where it is, likewise.
    """

    template_fields: Sequence[str] = (*StageOperator.template_fields, "rollout", "outcome", "service", "place")
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        rollout: Mapping[str, Any] | None,
        outcome: str,
        service: str = "",
        place: Place | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if outcome == "rolled_back":
            kwargs.setdefault("trigger_rule", "all_done")
        super().__init__(**kwargs)
        if "{{" not in str(outcome):
            _check_outcome(outcome)
        if bool(service) != bool(place):
            raise invalid("service, place", (service, place), "both or neither")
        if place and "{{" not in str(place):
            places.resolve(place)
        self.rollout, self.outcome, self.service, self.place = rollout, outcome, service, place

    def work(self, context: Context) -> Any:
        _check_outcome(self.outcome)
        interval = resolve_interval(context, self.grain, self.interval)
        self.info = run_info(context, interval)
        return self._done(context, self._what_happened(context), interval)

    def _what_happened(self, context: Context) -> Result:
        found = self.rollout or {}
        if not found.get("rollout"):
            reasons = ("no rollout has come to an end", self._settle(context))
            return Result(status="skipped", reason="; ".join(filter(None, reasons)))
        report = as_ref(ReportRef, found["rollout"], "rollout")
        ended = "done" if report.passed else "rolled_back"
        if ended != self.outcome:
            return Result(status="skipped", reason=f"the rollout ended {ended}, not {self.outcome}")
        model = as_ref(ModelRef, found["model"], "model")
        return Result(reason=str(found.get("reason", "")), inputs=(report,), outputs=(model, report))

    def _settle(self, context: Context) -> str:
        """Return what was done about a rollout that was left; empty if there is none."""
        if not self.place:
            return ""
        from airflow_ml_provider.hooks._serving import serving

        found = serving(places.resolve(self.place))
        observed = found.look(self.service)
        return settle(found, observed, context) if observed else ""


def _check_outcome(value: str) -> None:
    if value not in ("done", "rolled_back"):
        raise invalid("outcome", value, "done or rolled_back")


def _check_existing(value: str) -> None:
    if value not in ("replace", "interrupt", "keep"):
        raise invalid("existing", value, "replace, interrupt or keep")

"""Decide by a policy whether a registered version may go on."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

# From here, since Airflow 3.1 has them elsewhere than 3.2.
from airflow.providers.common.compat.sdk import BaseBranchOperator, DownstreamTasksSkipped

from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.operators._base import StageOperator, summary
from airflow_ml_provider.operators.register import report
from airflow_ml_provider.refs import DatasetRef, ModelRef, ReportRef, as_ref
from airflow_ml_provider.stages.gate.spec import GateSpec

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.intervals import Interval
    from airflow_ml_provider.stages import Result

APPROVE = "Approve"


class GateOperator(StageOperator, BaseBranchOperator):
    """Judge a registered version by the policy in a file, and write the evidence whatever the decision is.

    The evidence is one JSON record, named by its digest, and a page; both are kept below `output` and beside the
    model's run in MLflow. `PromoteOperator` moves the alias on the strength of it. For an approval by people put
    Airflow's own `ApprovalOperator` before this task, pass its output as `approved_by` and ask for `approvals` in the
    policy.

    Parameters:
        model: the registered version: the register stage's result, its `model`, or a ref.
        evaluation: its evaluation report: the evaluate stage's result, its `report`, or a ref.
        policy: YAML or JSON file with the policy; see `GatePolicy`.
        output: root folder for evidence.
        test: the locked test set, for the challenge.
        label: column of the test set with 0 or 1.
        parity: the parity report: the register stage's result, its `parity`, or a ref.
        quality: root folders of the validate stage's reports.
        alias: alias of the champion that the model is compared with.
        load_test: the load test report: the load test stage's result, its `report`, or a ref; for a policy with `load`.
        approved_by: people who approved: names, or the result of one or several `ApprovalOperator`s.
        on_pass: task (or group) to go on with when the model passes, for `on_refusal="branch"`.
        on_refuse: task (or group) to go on with when it does not; none ends this branch.
        on_refusal: `fail` the task (no retries), `skip` it and what follows, or `branch` between `on_pass` and
            `on_refuse`.
    """

    template_fields: Sequence[str] = (
        *StageOperator.template_fields, "model", "evaluation", "policy", "output_root", "test", "label_column",
        "parity", "quality", "alias", "load_test", "approved_by",
    )  # fmt: skip
    refusals: ClassVar[tuple[str, ...]] = ("fail", "skip", "branch")
    uses_mlflow: ClassVar[bool] = True
    ui_color = "#f6ead8"

    def __init__(
        self,
        *,
        model: ModelRef | Mapping[str, Any],
        evaluation: ReportRef | Mapping[str, Any],
        policy: str,
        output: str,
        test: DatasetRef | Mapping[str, Any] | None = None,
        label: str = "label",
        parity: ReportRef | Mapping[str, Any] | None = None,
        quality: Sequence[str] | str = (),
        alias: str = "champion",
        load_test: ReportRef | Mapping[str, Any] | None = None,
        approved_by: Sequence[Any] | Mapping[str, Any] | str = (),
        on_pass: str | None = None,
        on_refuse: str | None = None,
        on_refusal: str = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(on_refusal=on_refusal, **kwargs)
        if on_refusal == "branch" and not on_pass:
            raise SpecError("on_refusal='branch' needs on_pass: the task to go on with when the model passes")
        if on_refusal != "branch" and (on_pass or on_refuse):
            raise invalid("on_refusal", on_refusal, "'branch' when on_pass or on_refuse is given")
        self.model = model
        self.evaluation = evaluation
        self.policy = policy
        self.output_root = output  # `output` and `label` are properties of every operator
        self.test = test
        self.label_column = label
        self.parity = parity
        self.quality = quality
        self.alias = alias
        self.load_test = load_test
        self.approved_by = approved_by
        self.on_pass = on_pass
        self.on_refuse = on_refuse

    def build_spec(self, interval: Interval, context: Context) -> GateSpec:
        return GateSpec(
            model=as_ref(ModelRef, self.model, "model"),
            evaluation=report(self.evaluation, "evaluation"),
            policy=self.policy,
            output=self.output_root,
            test=as_ref(DatasetRef, self.test, "test") if self.test else None,
            label=self.label_column,
            parity=as_ref(ReportRef, self.parity, "parity") if self.parity else None,
            quality=(self.quality,) if isinstance(self.quality, str) else tuple(self.quality or ()),
            alias=self.alias,
            load_test=report(self.load_test, "load_test") if self.load_test else None,
            approved_by=tuple(dict.fromkeys(people(self.approved_by))),
        )

    def conclude(self, context: Context, result: Result) -> Any:
        if self.on_refusal != "branch":
            return super().conclude(context, result)
        value = summary(result)
        for name, item in value.items():
            if isinstance(item, Mapping) and item.get("kind"):
                context["ti"].xcom_push(key=name, value=item)
        # Branching ends the task by an exception, so nothing is returned.
        context["ti"].xcom_push(key="return_value", value=value)
        followed = self._follow(self.on_pass if result.status == "ok" else self.on_refuse)
        self.do_branch(context, followed)
        # In mapped task groups that only leaves a note, which Airflow 3.2 and 3.3 look for at the wrong index (its
        # issue 67265): the others would run. Here they are skipped by name and index.
        if skipped := [(task, context["ti"].map_index) for task in self._others(followed)]:
            raise DownstreamTasksSkipped(tasks=skipped)  # type: ignore[no-untyped-call]
        return value

    def _others(self, followed: str | None) -> list[str]:
        """Return the tasks after this one that are not on the way that is followed."""
        dag = self.get_dag()
        if dag is None:
            return []
        group = dag.task_group_dict.get(followed) if followed else None
        heads = {root.task_id for root in group.roots} if group else {followed} if followed else set()
        way = heads.union(*(dag.get_task(head).get_flat_relative_ids(upstream=False) for head in heads))
        return sorted(self.downstream_task_ids - way)

    def _follow(self, name: str | None) -> str | None:
        """Return the full id of a task or group; one beside this task may be named without their common group."""
        dag, group = self.get_dag(), self.task_id.rpartition(".")[0]
        beside = f"{group}.{name}"
        if name and group and dag is not None and name not in dag.task_ids and name not in dag.task_group_dict:
            return beside
        return name


def people(value: Any) -> Iterable[str]:
    """Return the names of those who approved.

    Parameters:
        value: text that lists names, a list of names, or what Airflow's `ApprovalOperator` returns; nested as you
            like. Only text that is not an item of a list is divided at its commas: `Doe, Jane` in a list is one person.
    """
    if not value:
        return
    if isinstance(value, str):
        yield from _from_text(value, ",")
    elif isinstance(value, Mapping):
        if "responded_by_user" not in value and not value.get("name"):
            raise invalid("approved_by", dict(value), "names, or the result of an ApprovalOperator")
        if APPROVE in value.get("chosen_options", [APPROVE]):
            user = value.get("responded_by_user", value) or {}
            yield from filter(None, [str(user.get("name") or user.get("id") or "").strip()])
    elif isinstance(value, Iterable):
        for item in value:
            yield from _from_text(item) if isinstance(item, str) else people(item)
    else:
        raise invalid("approved_by", value, "names, or the result of an ApprovalOperator")


def _from_text(text: str, separator: str | None = None) -> Iterable[str]:
    text = text.strip()
    if text.startswith(("[", "{")):  # a list or an approval that a template has turned into text
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise invalid("approved_by", text, "names, or the result of an ApprovalOperator") from None
        yield from people(found)
    elif text and text != "None":
        yield from (name.strip() for name in (text.split(separator) if separator else [text]) if name.strip())

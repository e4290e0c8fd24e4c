"""Where models are served. A place is a small frozen value, as a runtime is; `hooks._serving` opens it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Optional, Union, cast

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError, invalid
from airflow_ml_provider.stages.deploy import elsewhere
from airflow_ml_provider.stages.deploy.elsewhere import Elsewhere
from airflow_ml_provider.stages.deploy.elsewhere import SageMaker as SageMaker
from airflow_ml_provider.stages.deploy.elsewhere import Seldon as Seldon
from airflow_ml_provider.stages.deploy.elsewhere import VertexAI as VertexAI

if TYPE_CHECKING:
    from airflow_ml_provider.stages.deploy.strategies import Policy


@dataclass(frozen=True)
class Local:
    """Serve on this machine: a gateway per service, and below it one server process per version.

    It is for development and for small use on one machine; whoever needs more takes `KServe`.

    Attributes:
        root: folder of the services' state.
        python: the Python with the server's libraries (`pip install 'airflow-ml-provider[serving]'`); empty takes the
            one that runs the task.
        port: port of the service on 127.0.0.1; 0 takes a free one when the service is first deployed.
        grpc_port: likewise for gRPC (`pip install 'airflow-ml-provider[grpc]'` into `python`); none serves REST alone.
    """

    root: str
    python: str = ""
    port: int = 0
    grpc_port: Optional[int] = None

    def __post_init__(self) -> None:
        if not self.root:
            raise invalid("root", self.root, "a folder for the state of the services")
        for name in ("port", "grpc_port"):
            if not 0 <= (getattr(self, name) or 0) <= 65535:
                raise invalid(name, getattr(self, name), "in [0, 65535]")


@dataclass(frozen=True)
class KServe:
    """Serve by KServe in a Kubernetes cluster.

    Attributes:
        conn_id: Airflow connection to the cluster.
        namespace: namespace; empty takes that of the connection.
        mode: `standard` (Deployments) or `serverless` (Knative); empty takes what the cluster does by default.
        address: where to send requests instead of the URL that KServe gives a service, such as that of an ingress that
            the worker reaches.
        prometheus_conn_id: Airflow connection (HTTP) to the Prometheus that scrapes the servers; rollouts need it.
        metrics: what tells there what a version did: `istio`, `istio_gateway`, `knative`, `knative_opencensus`,
            `mlserver`, `triton`, or a mapping of the attributes of `stages.deploy.metrics.Metrics` that differ from
            those of its `base`.
    """

    conn_id: str = "kubernetes_default"
    namespace: str = ""
    mode: Literal["", "standard", "serverless"] = ""
    address: str = ""
    prometheus_conn_id: str = ""
    metrics: Union[str, Mapping[str, str]] = "istio"

    def __post_init__(self) -> None:
        if self.mode not in ("", "standard", "serverless"):
            raise invalid("mode", self.mode, "standard, serverless or empty")
        from airflow_ml_provider.stages.deploy import metrics  # not above: every DAG file would load it

        metrics.resolve(self.metrics)


@dataclass(frozen=True)
class GitOps:
    """Serve by KServe, but change it only by commits to an environment repository that Argo CD or Flux follows.

    Attributes:
        repository: address of the repository, without credentials; empty takes the connection's host.
        conn_id: Airflow connection (`git`) with its credentials; empty needs none.
        branch: what the controller follows.
        path: folder of the services; each has a folder of its own in it.
        kserve: the cluster; its connection only needs to read.
        controller: whose report is waited for: `argocd` (an Application) or `flux` (a Kustomization); empty asks nobody
            and looks whether the cluster has what was committed.
        application: name of that object.
        application_namespace: where it is; empty takes `argocd` or `flux-system`.
        changes: begin of the names of branches that changes are pushed to, to be reviewed and merged, such as
            `changes/`; empty pushes to `branch` itself.
        push_options: for the server, such as GitLab's `merge_request.create`.
        author: who commits.
        copy: folder for the worker's copy of the repository; empty takes one below the temporary folder.
    """

    repository: str = ""
    conn_id: str = ""
    branch: str = "main"
    path: str = ""
    kserve: KServe = field(default_factory=KServe)
    controller: Literal["", "argocd", "flux"] = ""
    application: str = ""
    application_namespace: str = ""
    changes: str = ""
    push_options: tuple[str, ...] = ()
    author: str = "Airflow <airflow@localhost>"
    copy: str = ""

    def __post_init__(self) -> None:
        if not self.repository and not self.conn_id:
            raise invalid("repository", self.repository, "given, unless conn_id names a connection with it")
        if self.controller not in ("", "argocd", "flux"):
            raise invalid("controller", self.controller, "argocd, flux or empty")
        if bool(self.controller) != bool(self.application):
            raise invalid("application", self.application, "given with controller, and only then")
        if ".." in self.path.split("/"):
            raise invalid("path", self.path, "a folder in the repository")
        for name in ("branch", "changes"):
            if re.search(r"^[-/]|\.\.|[\s~^:?*\[\\]|@\{", value := getattr(self, name)) or (
                name == "branch" and not value
            ):
                raise invalid(name, value, "what a branch may be called in Git")
        if not re.fullmatch(r"[^<>\n]+ <[^<>\s]+>", self.author):
            raise invalid("author", self.author, "NAME <ADDRESS>")


Place = Union[Local, KServe, GitOps, Elsewhere]
KINDS: Mapping[str, type[Any]] = {"local": Local, "kserve": KServe, "gitops": GitOps, **elsewhere.KINDS}


def resolve(place: Any) -> Place:
    """Return the place that an operator's argument means: one, or a mapping such as `{"kserve": {"namespace": "ml"}}`.

    Raises:
        SpecError: it is neither.
    """
    if isinstance(place, tuple(KINDS.values())):
        return cast("Place", place)
    if isinstance(place, Mapping) and len(place) == 1 and (kind := next(iter(place))) in KINDS:
        found: Place = codec.decode(KINDS[kind], place[kind] or {}, kind)
        return found
    names = ", ".join(f"{one.__name__}(…)" for one in KINDS.values())
    allowed = f'{names}, or one of them as a mapping such as {{"kserve": {{"namespace": "ml"}}}}'
    raise invalid("place", place, allowed)


def encode(place: Place) -> dict[str, Any]:
    """Return a place as the mapping that `resolve` takes."""
    return {next(kind for kind, cls in KINDS.items() if isinstance(place, cls)): codec.encode(place)}


def check(place: Place, policy: Policy) -> None:
    """Refuse a policy that a place can never fulfil.

    Raises:
        SpecError: nothing counts there what it needs, or requests cannot be assigned as it asks for.
    """
    if policy.strategy in ("ab", "bandit"):
        _check_trial(place, policy)
    kserve = place.kserve if isinstance(place, GitOps) else place
    if isinstance(place, tuple(elsewhere.KINDS.values())):
        elsewhere.check(cast("Elsewhere", place), policy)
    elif isinstance(kserve, KServe):
        from airflow_ml_provider.stages.deploy import metrics

        metrics.check(metrics.resolve(kserve.metrics), policy)
    elif any(one.kind == "business" for one in policy.checks):
        raise SpecError(
            "the policy checks business, which a gateway on this machine does not count, so that the rollout would "
            "wait until its time is over: leave such checks out, or make it an experiment with outcomes"
        )


def prediction_log(place: Place, service: str) -> str:
    """Return the folder in which a place logs who got which version; empty where it does not."""
    return f"{place.root}/{service}/predictions" if isinstance(place, Local) else ""


def _check_trial(place: Place, policy: Any) -> None:
    """Refuse an experiment or a bandit whose metric nobody counts, or whose users cannot keep their version."""
    from airflow_ml_provider.stages.deploy.stats import SUCCESS

    if policy.key and not isinstance(place, Local):
        title = getattr(place, "title", "KServe")
        raise SpecError(
            f"key is {policy.key!r}, but {title} splits every request by itself, so that users would not keep their "
            "version; leave key empty and take a metric of requests, or serve with `local`"
        )
    if policy.outcomes is None and policy.metric != SUCCESS:
        raise SpecError(
            f"nothing counts {policy.metric!r}: give outcomes, a table with it, or take the metric {SUCCESS!r}, which "
            "servers count themselves"
        )
    if policy.strategy == "ab" and policy.key and policy.outcomes is None:
        raise SpecError(
            f"key is {policy.key!r}, but {SUCCESS!r} is counted once per request, and the requests of one user are not "
            "independent; leave key empty, or give outcomes, which are counted once per user"
        )

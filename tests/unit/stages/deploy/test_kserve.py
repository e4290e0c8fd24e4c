"""What is asked of KServe, and what is read from what it answers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import SpecError, Unavailable
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.deploy.kserve.abilities import Abilities, abilities
from airflow_ml_provider.stages.deploy.kserve.compare import same
from airflow_ml_provider.stages.deploy.kserve.manifest import deployment, manifest, record, recorded
from airflow_ml_provider.stages.deploy.kserve.predictor import predictor, rendered
from airflow_ml_provider.stages.deploy.kserve.states import Seen, observed
from airflow_ml_provider.stages.deploy.server import Component, Placement, RequestLog, Scaling
from airflow_ml_provider.stages.deploy.service import FORMATS, Server, Service, Version, VersionState

STANDARD, SERVERLESS = Abilities(), Abilities(shape="serverless")
OLD = Abilities(canaries=False, routes=False)


def version(name: str, **server: Any) -> Version:
    model = ModelRef("late", f"s3://models/late/{name}", f"sha256:{name}")
    return Version(name, model, Server(**server))


V1, V2, V3 = version("v1"), version("v2"), version("v3")


def service(stable: Version = V1, candidate: Version | None = None, percent: float = 0, **other: Any) -> Service:
    return Service("late", stable, candidate, percent, **other)


def marked(one: Version, where: Abilities = STANDARD) -> str:
    return rendered(predictor(one, where))


def env(made: dict[str, Any]) -> dict[str, str]:
    container = made["model"] if "model" in made else made["containers"][0]
    return {one["name"]: one["value"] for one in container["env"]}


class TestPredictor:
    @pytest.mark.parametrize(
        ("format", "runtime"),
        [
            ("onnx", "kserve-tritonserver"), ("triton", "kserve-tritonserver"), ("mlflow", "kserve-mlserver"),
            ("sklearn", "kserve-mlserver"), ("xgboost", "kserve-mlserver"), ("lightgbm", "kserve-mlserver"),
            ("pytorch", "kserve-torchserve"), ("huggingface", "kserve-huggingfaceserver"),
        ],
    )  # fmt: skip
    def test_formats(self, format: str, runtime: str) -> None:
        model = predictor(version("v1", format=format), STANDARD)["model"]
        assert model["modelFormat"] == {"name": format}
        assert model["runtime"] == runtime
        assert model["protocolVersion"] == "v2"
        assert model["storageUri"] == "s3://models/late/v1"

    def test_every_format_is_rendered(self) -> None:
        made = [predictor(version("v1", format=one, image="i"), STANDARD) for one in FORMATS]
        assert len({rendered(one) for one in made}) == len(FORMATS)

    def test_image_of_ones_own(self) -> None:
        made = predictor(version("v1", format="custom", image="shop/late:3", storage="pvc://models/a"), STANDARD)
        assert made["containers"][0]["name"] == "kserve-container"
        assert made["containers"][0]["image"] == "shop/late:3"
        assert env(made) == {"STORAGE_URI": "pvc://models/a", "PROTOCOL": "v2", "AIRFLOW_ML_VERSION": "v1"}

    def test_image_of_a_format(self) -> None:
        assert predictor(version("v1", image="triton:25"), STANDARD)["model"]["image"] == "triton:25"

    @pytest.mark.parametrize(
        ("server", "resources"),
        [
            ({}, {}),
            ({"cpu": 2}, {"cpu": "2"}),
            ({"cpu": 0.25, "memory_gib": 1.5}, {"cpu": "250m", "memory": "1536Mi"}),
            ({"memory_gib": 4, "gpus": 2}, {"memory": "4Gi", "nvidia.com/gpu": "2"}),
            ({"gpus": 1, "gpu_resource": "nvidia.com/mig-1g.10gb"}, {"nvidia.com/mig-1g.10gb": "1"}),
        ],
    )
    def test_resources(self, server: dict[str, Any], resources: dict[str, str]) -> None:
        made = predictor(version("v1", **server), STANDARD)["model"]["resources"]
        assert made == ({"requests": resources, "limits": resources} if resources else {})

    def test_everything_else(self) -> None:
        server = {"service_account": "reader", "timeout_s": 2.5, "env": {"A": "1"}, "replicas": (2, 6)}
        made = predictor(version("v1", **server, scaling=Scaling(metric="cpu", target=70)), STANDARD)
        assert (made["serviceAccountName"], made["timeout"], env(made)["A"]) == ("reader", 3, "1")
        scale = {key: made[key] for key in ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")}
        assert scale == {"minReplicas": 2, "maxReplicas": 6, "scaleMetric": "cpu", "scaleTarget": 70}

    def test_no_replica_is_for_knative_only(self) -> None:
        idle = version("v1", replicas=(0, 2))
        assert predictor(idle, SERVERLESS)["minReplicas"] == 0
        with pytest.raises(SpecError, match=r"KServe's mode Standard has one replica at least, got replicas=\(0, 2\)"):
            predictor(idle, STANDARD)

    def test_batches_of_mlserver(self) -> None:
        made = env(predictor(version("v1", format="sklearn", max_batch=16, max_delay_ms=5), STANDARD))
        assert made["MLSERVER_MODEL_MAX_BATCH_SIZE"] == "16"
        assert made["MLSERVER_MODEL_MAX_BATCH_TIME"] == "0.005"
        with pytest.raises(SpecError, match=r"max_batch must be 1 with format 'onnx' on KServe, got 16; its batcher"):
            predictor(version("v1", max_batch=16), STANDARD)

    def test_template_is_laid_over(self) -> None:
        template = {
            "nodeSelector": {"pool": "gpu"},
            "annotations": {"a": "b"},
            "model": {
                "runtime": "own",
                "env": [{"name": "AIRFLOW_ML_VERSION", "value": "x"}, {"name": "B", "value": "2"}],
            },
        }
        made = predictor(version("v1", template=template), STANDARD)
        assert made["nodeSelector"] == {"pool": "gpu"}
        assert made["annotations"]["a"] == "b"
        assert made["model"]["runtime"] == "own"
        assert made["model"]["storageUri"] == "s3://models/late/v1"
        assert env(made) == {"AIRFLOW_ML_VERSION": "x", "B": "2"}

    @pytest.mark.parametrize("key", ["name", "minReplicas", "canaryTrafficPercent"])
    def test_template_without_what_the_service_decides(self, key: str) -> None:
        with pytest.raises(SpecError, match=f"template must be without what the service decides itself, got .*{key}"):
            predictor(version("v1", template={key: 1}), STANDARD)

    def test_what_it_was_made_from(self) -> None:
        """More replicas are no other version; another model, name or variable is."""
        more = version("v1", replicas=(3, 9), scaling=Scaling(metric="cpu"))
        assert marked(more) == marked(V1)
        other = Version("v1", dataclasses.replace(V1.model, digest="sha256:other"), V1.server)
        assert len({marked(V1), marked(V2), marked(other), marked(version("v1", env={"A": "1"}))}) == 4


QUERY = Scaling(by="keda", metric="query", target=5, query="sum(waiting)", address="http://prometheus.monitoring:9090")


class TestScaling:
    @pytest.mark.parametrize("metric", ["concurrency", "rps"])
    def test_metrics_of_knative(self, metric: str) -> None:
        asked = version("v1", scaling=Scaling(metric=metric, target=9))
        made = predictor(asked, SERVERLESS)
        assert (made["scaleMetric"], made["scaleTarget"]) == (metric, 9)
        with pytest.raises(
            SpecError, match=r"scaling.metric must be one of cpu, memory, query in KServe's mode Standard"
        ):
            predictor(asked, STANDARD)

    @pytest.mark.parametrize("metric", ["cpu", "memory"])
    def test_knative_does_not_scale_by_resources(self, metric: str) -> None:
        with pytest.raises(SpecError, match="one of concurrency, rps in KServe's mode Knative"):
            predictor(version("v1", scaling=Scaling(metric=metric)), SERVERLESS)

    def test_keda(self) -> None:
        made = predictor(version("v1", replicas=(0, 3), scaling=QUERY), STANDARD)
        assert made["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
        assert (made["minReplicas"], made["maxReplicas"]) == (0, 3)
        assert "scaleMetric" not in made
        (metric,) = made["autoScaling"]["metrics"]
        assert metric["external"]["metric"]["query"] == "sum(waiting)"
        assert metric["external"]["target"] == {"type": "Value", "value": "5"}

    def test_keda_by_resources(self) -> None:
        made = predictor(version("v1", scaling=Scaling(by="keda", metric="cpu", target=80)), STANDARD)
        (metric,) = made["autoScaling"]["metrics"]
        assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}

    @pytest.mark.parametrize(
        ("scaling", "where", "message"),
        [
            (Scaling(by="hpa"), SERVERLESS, "scaling.by must be empty in KServe's mode Knative"),
            (Scaling(by="none", metric="cpu"), STANDARD, "scaling.metric must be empty with by='none'"),
            (Scaling(metric="cpu", target=400), STANDARD, r"scaling.target must be at most 100 \(percent\)"),
            (dataclasses.replace(QUERY, by="hpa"), STANDARD, "scaling.metric must be cpu or memory unless by='keda'"),
        ],
    )
    def test_what_kserve_cannot_do(self, scaling: Scaling, where: Abilities, message: str) -> None:
        with pytest.raises(SpecError, match=message):
            predictor(version("v1", scaling=scaling), where)

    def test_a_candidate_is_not_scaled(self) -> None:
        with pytest.raises(
            SpecError, match=r"scaling\.by of the candidate must be none or empty in KServe's mode Standard"
        ):
            manifest(service(V1, version("v2", scaling=QUERY), 20), STANDARD)
        fixed = version("v2", scaling=Scaling(by="none"))
        made = manifest(service(version("v1", scaling=QUERY), fixed, 20), STANDARD)["spec"]
        assert "autoScaling" in made["predictor"]
        assert "autoScaling" not in made["canary"][0]["predictor"]
        with pytest.raises(SpecError, match=r"replicas of the stable version must be at least .* beside a candidate"):
            manifest(service(version("v1", replicas=(0, 3), scaling=QUERY), fixed, 20), STANDARD)


class TestBeside:
    """What works with the server of a model."""

    HELPER = Component("shop/words:2", args=("--lower",), env={"A": "1"}, cpu=0.5)

    def test_transformer_is_part_of_a_version(self) -> None:
        made = predictor(version("v1", transformer=self.HELPER), STANDARD)
        (container,) = made["containers"]
        assert container["name"] == "transformer-container"
        assert container["image"] == "shop/words:2"
        assert container["args"][-1] == "--lower"
        assert "--predictor_host=localhost:8080" in container["args"]
        assert container["ports"] == [{"containerPort": 8085, "protocol": "TCP"}]
        assert container["resources"]["limits"] == {"cpu": "500m"}
        assert rendered(made) != marked(V1)

    def test_transformer_of_an_image_of_ones_own(self) -> None:
        made = predictor(version("v1", format="custom", image="late:1", transformer=self.HELPER), STANDARD)
        assert [one["name"] for one in made["containers"]] == ["kserve-container", "transformer-container"]

    def test_each_version_has_its_own_transformer(self) -> None:
        other = dataclasses.replace(self.HELPER, image="shop/words:3")
        two = service(version("v1", transformer=self.HELPER), version("v2", transformer=other), 20)
        made = manifest(two, STANDARD)["spec"]
        images = [one["predictor"]["containers"][0]["image"] for one in (made, *made["canary"])]
        assert images == ["shop/words:2", "shop/words:3"]
        assert "transformer" not in made
        with pytest.raises(SpecError, match="candidate 'v2' would get containers from 'v1'"):
            manifest(service(version("v1", transformer=self.HELPER), V2, 20), STANDARD)

    def test_explainer_is_that_of_the_stable_version(self) -> None:
        explained = version("v1", explainer=self.HELPER)
        made = manifest(service(explained), STANDARD)
        assert made["spec"]["explainer"]["containers"][0]["image"] == "shop/words:2"
        assert not same(manifest(service(), STANDARD), {**made, "spec": {**made["spec"]}})
        with pytest.raises(SpecError, match="candidate 'v2' cannot have an explainer beside it"):
            manifest(service(explained, V2), STANDARD)

    def test_request_log(self) -> None:
        made = predictor(version("v1", request_log=RequestLog("http://logs.ml", "request")), STANDARD)
        assert made["logger"] == {"url": "http://logs.ml", "mode": "request"}

    def test_placement(self) -> None:
        toleration = {"key": "gpu", "operator": "Exists"}
        affinity = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
        made = predictor(version("v1", placement=Placement({"pool": "gpu"}, (toleration,), affinity)), STANDARD)
        assert (made["nodeSelector"], made["tolerations"], made["affinity"]) == (
            {"pool": "gpu"},
            [toleration],
            affinity,
        )


class TestPlace:
    @pytest.mark.parametrize(
        ("asked", "default", "mode"),
        [
            ("", "Standard", "Standard"), ("", "RawDeployment", "Standard"), ("", "Serverless", "Knative"),
            ("Knative", "Standard", "Knative"), ("RawDeployment", "Knative", "Standard"), ("", None, "Standard"),
        ],
    )  # fmt: skip
    def test_mode(self, asked: str, default: str | None, mode: str) -> None:
        deploy = {"deploy": json.dumps({"defaultDeploymentMode": default})} if default else {}
        assert abilities(deploy, True, asked).mode == mode

    def test_old(self) -> None:
        assert abilities({}, False).mode == "RawDeployment"

    def test_routes(self) -> None:
        assert not abilities({}, True).routes
        assert abilities({"ingress": '{"enableGatewayApi": true}'}, True).routes

    def test_unknown(self) -> None:
        with pytest.raises(SpecError, match=r"deployment mode must be one of .*, got 'ModelMesh'"):
            abilities({}, True, "ModelMesh")


class TestManifest:
    @pytest.mark.parametrize("where", [STANDARD, SERVERLESS, OLD])
    def test_one_version(self, where: Abilities) -> None:
        made = manifest(service(), where)
        assert made["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == where.mode
        assert "canary" not in made["spec"]
        assert "canaryTrafficPercent" not in made["spec"]["predictor"]
        assert made["spec"]["predictor"].get("name") == ("v1" if where is STANDARD else None)

    def test_metadata_is_the_same_whatever_the_traffic(self) -> None:
        """It enters the template of the pods, so that a change would start them all again."""
        states = [
            service(),
            service(rollout={"step": 1}, candidate=V2),
            service(rollout={"step": 2}, candidate=V2, percent=50),
        ]
        assert len({json.dumps(manifest(one, STANDARD)["metadata"], sort_keys=True) for one in states}) == 1

    def test_canary(self) -> None:
        made = manifest(service(version("v1", replicas=(2, 5)), version("v2", replicas=(4, 9)), 20), STANDARD)["spec"]
        [canary] = made["canary"]
        assert canary["trafficPercent"] == 20
        assert canary["predictor"]["name"] == "v2"
        assert canary["predictor"]["minReplicas"] == 2  # not more than the stable one has
        assert not {"maxReplicas", "scaleTarget", "scaleMetric"} & set(canary["predictor"])

    def test_promoted_without_a_restart(self) -> None:
        before = manifest(service(V1, V2, 100), STANDARD)
        after = manifest(service(V2), STANDARD, before)
        old, new = before["spec"]["canary"][0]["predictor"], after["spec"]["predictor"]
        assert deployment("late", old) == deployment("late", new) == "late-v2-predictor"
        assert old["model"].pop("name") == "kserve-container"  # asked for by the definition; KServe calls all so
        scale = ("minReplicas", "maxReplicas")
        assert {k: v for k, v in old.items() if k not in scale} == {k: v for k, v in new.items() if k not in scale}

    def test_rolled_back(self) -> None:
        before = manifest(service(V1), STANDARD)
        again = manifest(service(V1), STANDARD, manifest(service(V1, V2, 20), STANDARD, before))
        assert again == before

    def test_replaced_in_its_place(self) -> None:
        """KServe would delete the Deployment of the old name before the new one has pods."""
        found = manifest(service(V2), STANDARD, manifest(service(V1), STANDARD))
        assert found["spec"]["predictor"]["name"] == "v1"
        assert rendered(found["spec"]["predictor"]) == marked(V2)
        third = manifest(service(V2, V3), STANDARD, found)
        assert [one["predictor"]["name"] for one in third["spec"]["canary"]] == ["v3"]
        again = manifest(service(V2, V1), STANDARD, found)
        assert [one["predictor"]["name"] for one in again["spec"]["canary"]] == ["v1-again"]
        assert manifest(service(V1), STANDARD, again)["spec"]["predictor"]["name"] == "v1-again"

    @pytest.mark.parametrize(
        ("stable", "candidate", "field"),
        [
            ({"service_account": "a"}, {}, "serviceAccountName"),
            ({"gpus": 1}, {}, "model.resources.requests"),
            ({"gpus": 1, "cpu": 1}, {"cpu": 1}, r"model.resources.requests.nvidia.com/gpu"),
            ({"image": "a"}, {}, "model.image"),
            ({"template": {"nodeSelector": {"a": "b"}}}, {}, "nodeSelector"),
            ({"template": {"nodeSelector": {"a": "b"}}}, {"template": {"nodeSelector": {"c": "d"}}}, "nodeSelector.a"),
            ({}, {"format": "custom", "image": "i", "cpu": 1, "memory_gib": 1}, "model"),
        ],
    )
    def test_what_a_canary_would_inherit(self, stable: Any, candidate: Any, field: str) -> None:
        with pytest.raises(SpecError, match=f"candidate 'v2' would get {field} from 'v1', since KServe lays"):
            manifest(service(version("v1", **stable), version("v2", **candidate)), STANDARD)

    def test_canary_with_more(self) -> None:
        more = version("v2", gpus=1, service_account="a", env={"A": "1"}, template={"nodeSelector": {"a": "b"}})
        assert manifest(service(V1, more), STANDARD)["spec"]["canary"][0]["predictor"]["nodeSelector"] == {"a": "b"}

    def test_what_kserve_cannot_do(self) -> None:
        with pytest.raises(SpecError, match="KServe cannot mirror traffic, got mirror=10; set mirror=0"):
            manifest(service(V1, V2, mirror=10), STANDARD)
        with pytest.raises(SpecError, match=r"percent must be a whole number on KServe, got 0\.5"):
            manifest(service(V1, V2, 0.5), SERVERLESS)
        with pytest.raises(SpecError, match=r"its InferenceService has no spec\.canary; upgrade to KServe 0\.20"):
            manifest(service(V1, V2), OLD)
        with pytest.raises(SpecError, match=r"it routes by Ingress; set ingress\.enableGatewayApi"):
            manifest(service(V1, V2, 1), Abilities(routes=False))
        assert manifest(service(V1, V2), Abilities(routes=False))["spec"]["canary"]

    def test_same_storage(self) -> None:
        both = {"storage": "s3://models/late"}
        with pytest.raises(SpecError, match="candidate 'v2' has the same storage as 'v1', got 's3://models/late'"):
            manifest(service(version("v1", **both), version("v2", **both)), STANDARD)

    def test_defaults_of_an_image_of_ones_own(self) -> None:
        own = {"format": "custom", "image": "i"}
        with pytest.raises(SpecError, match="version 'v1' must have cpu and memory_gib, got None and None"):
            manifest(service(version("v1", **own), version("v2", **own)), STANDARD)
        manifest(service(version("v1", **own)), STANDARD)

    def test_names_that_are_too_long(self) -> None:
        with pytest.raises(SpecError, match="are 5 characters too long together"):
            manifest(Service("a" * 40, version("v" * 12)), STANDARD)
        assert manifest(Service("a" * 40, version("v" * 7)), STANDARD)


def knative(found: dict[str, Any], rolled_out: str, ready: str, created: str = "", **traffic: int) -> dict[str, Any]:
    """Return an InferenceService with the status that KServe gives it."""
    told = [{"revisionName": name, "percent": percent} for name, percent in traffic.items()]
    status = {
        "latestRolledoutRevision": rolled_out, "latestReadyRevision": ready,
        "latestCreatedRevision": created or ready, "traffic": told,
    }  # fmt: skip
    return {**found, "status": {"url": "http://late", "components": {"predictor": status}, "conditions": REACHED}}


REACHED = [{"type": "IngressReady", "status": "True"}, {"type": "PredictorRouteReady", "status": "True"}]


def revision(name: str, one: Version, ready: str = "True", **told: str) -> dict[str, Any]:
    annotations = predictor(one, SERVERLESS)["annotations"]
    condition = {"type": "Ready", "status": ready, **told}
    return {"metadata": {"name": name, "annotations": annotations}, "status": {"conditions": [condition]}}


class TestServerless:
    """Revision r1 is of v1, r2 of v2."""

    revisions = (revision("r1", V1), revision("r2", V2))

    def test_candidate(self) -> None:
        found = knative(manifest(service(V1), SERVERLESS), "r1", "r1")
        made = manifest(service(V1, V2, 20), SERVERLESS, found, self.revisions)["spec"]["predictor"]
        assert (rendered(made), made["canaryTrafficPercent"]) == (marked(V2, SERVERLESS), 20)

    def test_promoted(self) -> None:
        found = knative(manifest(service(V2), SERVERLESS), "r2", "r2")  # at 100 %
        made = manifest(service(V2), SERVERLESS, found, self.revisions)["spec"]["predictor"]
        assert (rendered(made), "canaryTrafficPercent" in made) == (marked(V2, SERVERLESS), False)

    def test_rolled_back(self) -> None:
        """Without the field Knative would send everything to v2, the last ready one, until v1 is ready again."""
        found = knative(manifest(service(V2), SERVERLESS), rolled_out="r1", ready="r2")
        made = manifest(service(V1), SERVERLESS, found, self.revisions)["spec"]["predictor"]
        assert (rendered(made), made["canaryTrafficPercent"]) == (marked(V1, SERVERLESS), 0)
        found = knative(manifest(service(V2), SERVERLESS), rolled_out="r1", ready="r3")
        later = manifest(service(V1), SERVERLESS, found, [*self.revisions, revision("r3", V1)])
        assert "canaryTrafficPercent" not in later["spec"]["predictor"]

    def test_rolled_back_after_all_traffic(self) -> None:
        """Nothing would ever take the traffic from v2 if the field stayed."""
        found = knative(manifest(service(V2), SERVERLESS), rolled_out="r2", ready="r2")
        assert (
            "canaryTrafficPercent" not in manifest(service(V1), SERVERLESS, found, self.revisions)["spec"]["predictor"]
        )

    def test_no_candidate_before_the_stable_version_answers(self) -> None:
        with pytest.raises(SpecError, match="candidate 'v2' of the new service 'late' would get all requests"):
            manifest(service(V1, V2), SERVERLESS)
        found = knative(manifest(service(V1), SERVERLESS), "", "")
        with pytest.raises(Unavailable, match="version 'v1' of service 'late' does not answer all requests yet"):
            manifest(service(V1, V2), SERVERLESS, found, self.revisions)

    def test_states(self) -> None:
        found = knative(manifest(service(V1), SERVERLESS), "r1", "r1")
        asked = service(V1, V2, 20)
        body = manifest(asked, SERVERLESS, found, self.revisions)
        status = knative(body, "r1", "r2", r1=80, r2=20)
        state = observed(asked, "7", Seen(status, self.revisions), SERVERLESS)
        assert state.states == {"v1": VersionState("ready", percent=80), "v2": VersionState("ready", percent=20)}
        assert (state.address, state.revision) == ("http://late", "7")

    @pytest.mark.parametrize(
        ("two", "phase", "why"),
        [
            ([], "waits", "Knative has made no revision of 'v2' yet"),
            ([revision("r2", V2, "Unknown", reason="Deploying")], "waits", "Deploying"),
            ([revision("r2", V2, "False", reason="ContainerMissing", message="no manifest")], "failed",
             "ContainerMissing: no manifest"),
            ([revision("r2", V2, "False", reason="Unschedulable", message="0/1 nodes")], "waits",
             "Unschedulable: 0/1 nodes"),
        ],
    )  # fmt: skip
    def test_candidate_is_not_ready(self, two: list[Any], phase: str, why: str) -> None:
        asked = service(V1, V2, 20)
        body = manifest(asked, SERVERLESS, knative(manifest(service(V1), SERVERLESS), "r1", "r1"), self.revisions)
        status = knative(body, "r1", "r1", created="r2" if two else "r1", r1=100)
        state = observed(asked, "7", Seen(status, [revision("r1", V1), *two]), SERVERLESS).states
        assert state == {"v1": VersionState("ready", percent=100), "v2": VersionState(phase, why)}  # type: ignore[arg-type]

    def test_half_written(self) -> None:
        status = knative(manifest(service(V1), SERVERLESS), "r1", "r1", r1=100)
        state = observed(service(V1, V2, 20), "7", Seen(status, self.revisions), SERVERLESS).states
        assert state["v2"].phase == "waits"
        assert "put the service again" in state["v2"].why


def deployed(name: str, one: Version, where: Abilities = STANDARD, **status: Any) -> dict[str, Any]:
    """Return a Deployment as KServe makes it; by default its pods answer."""
    template = {"metadata": {"annotations": predictor(one, where)["annotations"]}}
    counts = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    return {
        "metadata": {"name": f"late-{name}-predictor" if name else "late-predictor", "generation": 1},
        "spec": {"replicas": 1, "template": template},
        "status": {**counts, **status},
    }


def pod(one: Version, *, init: bool = False, restarts: int = 0, **state: Any) -> dict[str, Any]:
    name = "storage-initializer" if init else "kserve-container"
    told = [{"name": name, "restartCount": restarts, "state": state}]
    return {
        "metadata": {"annotations": predictor(one, STANDARD)["annotations"]},
        "status": {"initContainerStatuses" if init else "containerStatuses": told},
    }


def standard(asked: Service, parts: list[Any], pods: list[Any] = [], **status: Any) -> dict[str, VersionState]:  # noqa: B006
    body = manifest(asked, STANDARD)
    found = {**body, "status": {"url": "http://late", "conditions": REACHED, **status}}
    return dict(observed(asked, "7", Seen(found, parts, pods), STANDARD).states)


def told(percent: int, ready: bool = True) -> list[dict[str, Any]]:
    return [{"name": "v2", "ready": ready, "trafficPercent": percent}]


class TestStandard:
    def test_ready(self) -> None:
        parts = [deployed("v1", V1), deployed("v2", V2)]
        states = standard(service(V1, V2, 20), parts, canaryStatuses=told(20))
        assert states == {"v1": VersionState("ready", percent=80), "v2": VersionState("ready", percent=20)}

    def test_canary_gets_nothing_before_it_is_ready(self) -> None:
        parts = [deployed("v1", V1), deployed("v2", V2, availableReplicas=0)]
        states = standard(service(V1, V2, 20), parts, canaryStatuses=told(20, ready=False))
        assert states["v1"] == VersionState("ready", percent=100)
        assert (states["v2"].phase, states["v2"].percent) == ("waits", 0)

    @pytest.mark.parametrize(
        ("part", "why"),
        [
            (deployed("v1", V2), "KServe has not changed the Deployment"),  # Ready is still True from the old pods
            (deployed("v1", V1, observedGeneration=0), "has not begun yet"),
            (deployed("v1", V1, replicas=2), "1 of 1 pods are ready, 1 old ones are left"),
            (deployed("v1", V1, availableReplicas=0), "0 of 1 pods are ready"),
            (deployed("other", V1), "KServe has made no Deployment 'late-v1-predictor' yet"),
            (deployed("v1", V1, availableReplicas=0, conditions=[
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}]),
             "FailedCreate: exceeded quota"),
        ],
    )  # fmt: skip
    def test_waits(self, part: dict[str, Any], why: str) -> None:
        ready = [{"type": "Ready", "status": "True"}, *REACHED]
        state = standard(service(), [part], conditions=ready)["v1"]
        assert state.phase == "waits"
        assert why in state.why

    def test_more_replicas_on_their_way(self) -> None:
        grows = deployed("v1", V1, replicas=4, updatedReplicas=4, availableReplicas=1)
        grows["spec"]["replicas"] = 4
        assert standard(service(), [grows])["v1"].phase == "ready"

    def test_late(self) -> None:
        late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "600 s"}
        states = standard(service(), [deployed("v1", V1, availableReplicas=0, conditions=[late])])
        assert states["v1"] == VersionState("failed", "ProgressDeadlineExceeded: 600 s", 100)

    @pytest.mark.parametrize(
        ("found", "phase", "why"),
        [
            (pod(V1, waiting={"reason": "ImagePullBackOff", "message": "no such image"}), "failed",
             "kserve-container: ImagePullBackOff: no such image"),
            (pod(V1, waiting={"reason": "ErrImagePull"}), "waits", "ErrImagePull"),
            (pod(V1, restarts=1, waiting={"reason": "CrashLoopBackOff"}), "waits", "CrashLoopBackOff"),
            (pod(V1, restarts=2, waiting={"reason": "CrashLoopBackOff"}), "failed", "CrashLoopBackOff"),
            (pod(V1, init=True, restarts=3, waiting={"reason": "CrashLoopBackOff"}), "failed",
             "storage-initializer: CrashLoopBackOff"),
            (pod(V1, terminated={"reason": "OOMKilled", "exitCode": 137}), "waits", "OOMKilled, exit code 137"),
            (pod(V1, waiting={"reason": "ContainerCreating"}), "waits", "0 of 1 pods are ready"),
            (pod(V2, restarts=9, waiting={"reason": "CrashLoopBackOff"}), "waits", "0 of 1 pods are ready"),
        ],
    )  # fmt: skip
    def test_pods(self, found: dict[str, Any], phase: str, why: str) -> None:
        state = standard(service(), [deployed("v1", V1, availableReplicas=0)], [found])["v1"]
        assert state.phase == phase
        assert why in state.why

    def test_no_place(self) -> None:
        found = pod(V1)
        message = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
        found["status"]["conditions"] = [message]
        state = standard(service(), [deployed("v1", V1, availableReplicas=0)], [found])["v1"]
        assert (state.phase, "Unschedulable: 0/3 nodes" in state.why) == ("waits", True)

    def test_not_reachable(self) -> None:
        conditions = [{"type": "IngressReady", "status": "False", "reason": "NoGateway"}]
        state = standard(service(), [deployed("v1", V1)], conditions=conditions)["v1"]
        assert state == VersionState("waits", "IngressReady is False: NoGateway", 100)
        assert standard(service(), [deployed("v1", V1)], conditions=[])["v1"].why == "IngressReady is Unknown"

    @pytest.mark.parametrize(
        ("since", "phase"), [("2026-01-01T00:00:02Z", "failed"), ("2026-01-01T00:00:01Z", "waits")]
    )
    def test_invalid(self, since: str, phase: str) -> None:
        """What the status says counts only if it was written after the specification."""
        asked = service()
        info = {"reason": "NoSupportingRuntime", "message": "No runtime found"}
        found = {
            **manifest(asked, STANDARD),
            "status": {"modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": info}},
        }
        fields = [
            {"time": "2026-01-01T00:00:01Z", "fieldsV1": {"f:metadata": {}, "f:spec": {}}},
            {"time": since, "fieldsV1": {"f:status": {}}},
        ]
        found["metadata"] = {**found["metadata"], "managedFields": fields}
        assert observed(asked, "7", Seen(found), STANDARD).states["v1"].phase == phase

    def test_warning(self) -> None:
        found = {**manifest(service(), STANDARD), "status": {}}
        state = observed(service(), "7", Seen(found, warning="InternalError: no such runtime"), STANDARD).states["v1"]
        assert "InternalError: no such runtime" in state.why

    def test_there_is_none(self) -> None:
        states = observed(service(V1, V2), "7", Seen(), STANDARD).states
        assert {one.phase for one in states.values()} == {"waits"}

    def test_others_wrote(self) -> None:
        found = {**manifest(service(V1, V2, 30), STANDARD), "status": {"conditions": REACHED}}
        parts = [deployed("v1", V1), deployed("v2", V2)]
        states = observed(service(V1, V2, 20), "7", Seen(found, parts), STANDARD).states
        assert "put the service again" in states["v1"].why

    def test_old_kserve(self) -> None:
        found = {**manifest(service(), OLD), "status": {"conditions": REACHED}}
        states = observed(service(), "7", Seen(found, [deployed("", V1, OLD)]), OLD).states
        assert states == {"v1": VersionState("ready", percent=100)}


class TestRecord:
    @pytest.mark.parametrize(
        "asked",
        [
            service(),
            service(V1, V2, 12.5, rollout={"step": 1, "since": "2026-01-01", "steps": [5, 20.5], "paused": None}),
            service(version("v1", template={"a": [{"b": 1}]}, env={"A": "ä"}, replicas=(0, 3)), V2, mirror=3),
            service(dataclasses.replace(V1, model=dataclasses.replace(V1.model, segment={"origin": "EWR"}))),
        ],
    )
    def test_is_read_back(self, asked: Service) -> None:
        made = json.loads(json.dumps(record(asked)))
        assert made["metadata"]["name"] == "late-airflow-ml"
        assert recorded(made["data"]) == asked


NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.dictionaries(st.text(), st.recursive(PLAIN, lambda one: st.lists(one, max_size=2), max_leaves=3), max_size=3)
SERVERS = st.builds(
    Server,
    format=st.sampled_from(FORMATS),
    image=st.just("late:1"),
    storage=st.just("") | st.text(min_size=1),
    cpu=st.none() | st.floats(0.01, 99),
    memory_gib=st.none() | st.floats(0.01, 99),
    gpus=st.integers(0, 8),
    replicas=st.integers(1, 4).map(lambda least: (least, least + 1)),
    scaling=st.builds(Scaling, metric=st.sampled_from(["", "cpu", "memory"])),
    placement=st.builds(Placement, node_selector=st.dictionaries(st.text(), st.text(), max_size=2)),
    transformer=st.none() | st.builds(Component, st.just("t:1"), env=st.dictionaries(st.text(), st.text(), max_size=2)),
    timeout_s=st.floats(0.01, 999),
    env=st.dictionaries(st.text(min_size=1), st.text(), max_size=2),
    template=st.dictionaries(st.sampled_from(["nodeSelector", "volumes", "labels"]), JSON, max_size=2),
)
VERSIONS = st.builds(
    Version,
    NAMES,
    st.builds(ModelRef, st.text(), st.text(), st.text(), metrics=st.just({}), segment=st.just({}), version=st.none()),
    SERVERS,
)
PAIRS = st.lists(VERSIONS, min_size=2, max_size=2, unique_by=lambda one: one.name)


class TestRoundTrip:
    """Whatever a service is, any worker finds it again as it was, and what is asked of KServe stays the same."""

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(PAIRS, st.integers(0, 100), JSON, st.booleans())
    def test_any(self, pair: list[Version], percent: int, rollout: dict[str, Any], alone: bool) -> None:
        stable, candidate = pair
        asked = service(stable, rollout=rollout) if alone else service(stable, candidate, percent, rollout=rollout)
        kept = recorded(json.loads(json.dumps(record(asked)))["data"])
        assert kept == asked
        for where in (STANDARD, SERVERLESS, OLD):
            try:
                made = manifest(asked, where, None)
            except SpecError:
                continue  # KServe cannot do it, and says so
            found = json.loads(json.dumps(made))
            assert same(manifest(kept, where, found), found)
            state = observed(kept, "7", Seen(found), where)
            assert state.wanted == asked
            assert set(state.states) == set(asked.versions)


class TestSame:
    made = manifest(service(version("v1", cpu=0.5, memory_gib=2), version("v2", cpu=0.5, memory_gib=2), 20), STANDARD)

    def found(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.made))

    def test_with_defaults_of_the_server(self) -> None:
        found = self.found()
        found["spec"]["predictor"]["automountServiceAccountToken"] = False
        found["spec"]["predictor"]["model"]["resources"]["requests"] = {"cpu": 0.5, "memory": "2048Mi"}
        found["metadata"]["annotations"]["modelFormat"] = "onnx"
        assert same(self.made, found)

    @pytest.mark.parametrize("change", ["traffic", "canary", "replicas", "target", "env", "version", "percent"])
    def test_changed(self, change: str) -> None:
        found = self.found()
        spec = found["spec"]
        {
            "traffic": lambda: spec["canary"][0].update(trafficPercent=30),
            "canary": lambda: spec.pop("canary"),
            "replicas": lambda: spec["predictor"].update(minReplicas=2),
            "target": lambda: spec["predictor"].update(scaleTarget=2),
            "env": lambda: spec["predictor"]["model"]["env"].append({"name": "A", "value": "1"}),
            "version": lambda: spec["canary"][0]["predictor"]["annotations"].update({"airflow-ml/rendered": "x"}),
            "percent": lambda: spec["predictor"].update(canaryTrafficPercent=0),
        }[change]()
        assert not same(self.made, found)

"""What stages left in a real cluster: shown, judged, removed, and nothing else."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")

from airflow.sdk.exceptions import AirflowFailException

from airflow_ml_provider.exceptions import Unavailable
from airflow_ml_provider.leftovers import reaper
from airflow_ml_provider.leftovers.cluster import ClusterPlace
from airflow_ml_provider.operators.reap import ReapOperator
from airflow_ml_provider.testing.context import context

pytestmark = [pytest.mark.filterwarnings("ignore::Warning"), pytest.mark.usefixtures("connected")]


def reap(states: dict[str, str | None] | None = None, **arguments):
    """Run the operator in an Airflow whose runs have these states; return the table by name."""
    ctx = context()
    states = {} if states is None else states

    def ask(dag_id, task_ids, run_ids):
        return {run: {task_ids[0]: states[run]} for run in run_ids if run in states}

    ctx["ti"].get_task_states = ask
    operator = ReapOperator(task_id="reap", **{"older_than_min": 0, **arguments})
    return {row["name"]: row for row in operator.execute(ctx)}


def verdicts(rows):
    return {name: row["verdict"] for name, row in rows.items()}


def names(cluster, kind="pods"):
    return {one["metadata"]["name"] for one in cluster.get(kind) if "airflow-ml/identity" in labels(one)}


def labels(item):
    return item["metadata"].get("labels", {})


TRAINJOB = {"runtimeRef": {"name": "none-such"}}


def knows_trainjobs(cluster):
    return "trainjobs.trainer.kubeflow.org" in cluster.kubectl("api-resources", "-o", "name").split()


def test_only_what_an_ended_task_left_is_removed(cluster, make, pod):
    ended = pod("ended", "ended")
    make("Secret", "ended-env", "ended", owner=ended, stringData={"PASSWORD": "s3cret"})
    make("Service", "ended-net", "ended", spec={"clusterIP": "None", "selector": {"a": "b"}})
    for run in ("retrying", "deferred", "deleted"):
        pod(run, run)
    pod("nameless", None)
    time.sleep(1.1)  # the cluster counts in seconds
    states = {"ended": "failed", "retrying": "up_for_retry", "deferred": "deferred"}
    expected = {
        "ended": "left over", "ended-env": "with Pod/ended", "ended-net": "left over", "deleted": "left over",
        "retrying": "in use", "deferred": "in use", "nameless": "unknown",
    }  # fmt: skip
    shown = reap(states)
    assert verdicts(shown) == expected
    assert "s3cret" not in json.dumps(shown)
    assert shown["ended"]["uid"] == ended["metadata"]["uid"]
    assert shown["deleted"]["state"] == "does not exist"
    assert len(names(cluster)) == 5, "showing removes nothing"
    done = reap(states, delete="true")
    assert {name: row["outcome"] for name, row in done.items() if row["outcome"]} == {
        "ended": "deleted", "ended-net": "deleted", "deleted": "deleted",
    }  # fmt: skip
    deadline = time.monotonic() + 60
    while len(left := names(cluster) | names(cluster, "secrets") | names(cluster, "services")) > 3:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert left == {"retrying", "deferred", "nameless"}


def test_a_pod_of_just_now_stays(cluster, pod):
    pod("fresh")
    assert verdicts(reap({"run": "failed"}, older_than_min=10, delete=True)) == {"fresh": "too young"}
    assert names(cluster) == {"fresh"}


def test_a_new_object_of_the_same_name_is_not_hit(cluster, pod):
    old = pod("same")
    (thing,) = ClusterPlace("kubernetes_default").look()
    cluster.kubectl("delete", "pod", "same", "--grace-period=0", "--force")
    new = pod("same")
    place = ClusterPlace("kubernetes_default")
    assert thing.uid == old["metadata"]["uid"]
    assert place.remove(thing) == "kept: another one has its name by now"
    assert [one["metadata"]["uid"] for one in cluster.get("pods")] == [new["metadata"]["uid"]]
    assert place.remove(replace(thing, name="never-was")) == "was gone already"


def test_what_is_going_is_left_alone(cluster, pod):
    pod("leaving")
    cluster.kubectl("patch", "pod", "leaving", "-p", '{"metadata": {"finalizers": ["test.invalid/hold"]}}')
    cluster.kubectl("delete", "pod", "leaving", "--wait=false", "--grace-period=0")
    try:
        assert verdicts(reap(delete=True)) == {"leaving": "going"}
    finally:
        cluster.kubectl("patch", "pod", "leaving", "-p", '{"metadata": {"finalizers": null}}')


def test_more_than_one_page(make, monkeypatch):
    monkeypatch.setattr("airflow_ml_provider.leftovers.cluster._PAGE", 2)
    for number in range(5):
        make("Secret", f"s{number}")
    time.sleep(1.1)
    assert verdicts(reap()) == {f"s{number}": "left over" for number in range(5)}


def test_jobs_of_operators_are_found_where_the_cluster_knows_them(cluster, make):
    if not knows_trainjobs(cluster):
        pytest.skip("this cluster knows no TrainJob")
    job = make("TrainJob", "train", "ended", apiVersion="trainer.kubeflow.org/v1alpha1", spec=TRAINJOB)
    time.sleep(1.1)
    rows = reap({"ended": "failed"}, delete=True)
    assert (rows["train"]["kind"], rows["train"]["uid"]) == ("TrainJob", job["metadata"]["uid"])
    assert rows["train"]["outcome"] == "deleted"
    assert not cluster.get("trainjobs.trainer.kubeflow.org")


def test_the_role_in_the_documentation_is_enough(cluster, make, pod, limited, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LIMITED", limited)
    pod("ended"), make("Secret", "secret"), make("Service", "net", spec={"clusterIP": "None", "selector": {"a": "b"}})
    jobs = knows_trainjobs(cluster)
    if jobs:
        make("TrainJob", "job", apiVersion="trainer.kubeflow.org/v1alpha1", spec=TRAINJOB)
    time.sleep(1.1)
    done = reap({"run": "success"}, kubernetes_conn_id="limited", delete=True)
    assert {row["outcome"] for row in done.values()} == {"deleted"}
    assert len(done) == 3 + jobs


def test_without_the_right_to_list_secrets_the_rest_is_seen(cluster, make, pod, limited, monkeypatch, caplog):
    monkeypatch.setenv("AIRFLOW_CONN_LIMITED", limited)
    remove = '[{"op": "remove", "path": "/rules/1"}]'
    cluster.kubectl("patch", "role", "airflow-ml-reaper", "--type=json", "-p", remove)
    pod("ended"), make("Secret", "secret")
    time.sleep(1.1)
    assert verdicts(reap({"run": "success"}, kubernetes_conn_id="limited")) == {"ended": "left over"}
    assert "may not list secrets" in caplog.text


def test_what_may_not_be_removed_fails_the_task_after_the_rest(cluster, make, pod, limited, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LIMITED", limited)
    read = '[{"op": "replace", "path": "/rules/0/verbs", "value": ["list"]}]'
    cluster.kubectl("patch", "role", "airflow-ml-reaper", "--type=json", "-p", read)
    pod("ended"), make("Secret", "secret")
    time.sleep(1.1)
    with pytest.raises(Unavailable, match=r"1 of 2 left-overs stay.*may not do this in the cluster \(403 Forbidden"):
        reap({"run": "success"}, kubernetes_conn_id="limited", delete=True)
    assert names(cluster) == {"ended"}
    assert not names(cluster, "secrets")


def test_pods_that_may_not_be_listed_end_the_task(limited, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LIMITED", limited)
    with pytest.raises(AirflowFailException, match=r"connection 'limited' may not do this in the cluster \(403"):
        reap(kubernetes_conn_id="limited", namespace="kube-system")


def test_a_cluster_that_is_away_is_worth_another_try(away, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", away)
    with pytest.raises(Unavailable, match="the cluster of connection 'away' does not answer"):
        reap(kubernetes_conn_id="away")


def test_arguments_that_make_no_sense():
    for arguments in ({"older_than_min": -1}, {"older_than_min": "soon"}, {"delete": "perhaps"}):
        with pytest.raises(AirflowFailException, match=r"older_than|delete"):
            reap(**arguments)
    with pytest.raises(AirflowFailException, match="connection 'absent'"):
        reap(kubernetes_conn_id="absent")


def test_a_name_lets_what_is_unknown_go(cluster, pod):
    pod("nameless", None), pod("other", None)
    time.sleep(1.1)
    where = reaper.places("kubernetes_default", None, None)
    (one,) = reaper.survey(where, lambda *_: {}, 0, {"nameless"})
    assert (one.verdict, one.found.name) == ("left over", "nameless")
    assert [removal.outcome for removal in reaper.remove([one], where)] == ["deleted"]

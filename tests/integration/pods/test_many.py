"""Many deferred tasks watched by one triggerer, which has one event loop."""

from __future__ import annotations

import asyncio
import json
import time
import uuid

import pytest

pytest.importorskip("airflow.providers.cncf.kubernetes")

from airflow_ml_provider.operators._manifest import IDENTITY
from airflow_ml_provider.triggers.pods import PodsTrigger

pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # the Kubernetes provider's own
MANY = 50


def pod(name: str) -> dict:
    container = {"name": "base", "image": "localhost/pause:1"}
    meta = {"name": name, "labels": {IDENTITY: name}}
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


async def blocked(until: asyncio.Event) -> float:
    """Return the longest time for which nothing else could run in this loop (seconds)."""
    longest = 0.0
    while not until.is_set():
        began = time.monotonic()
        await asyncio.sleep(0.05)
        longest = max(longest, time.monotonic() - began - 0.05)
    return longest


def test_fifty_tasks_are_watched_by_one_triggerer(task, wait):
    here = task()
    names = [f"ml-many-{uuid.uuid4().hex[:8]}" for _ in range(MANY)]
    everything = {"apiVersion": "v1", "kind": "List", "items": list(map(pod, names))}
    here.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(everything))
    wait(lambda: sum(one["status"]["phase"] == "Running" for one in here.pods()) == MANY, 180, "not all pods run")
    uids = {one["metadata"]["name"]: one["metadata"]["uid"] for one in here.pods()}
    namespace = here.pods()[0]["metadata"]["namespace"]
    triggers = [PodsTrigger(namespace, name, [uids[name]], "kubernetes_default") for name in names]

    async def watch() -> tuple[list[dict], float]:
        done = asyncio.Event()
        first = [asyncio.ensure_future(anext(trigger.run())) for trigger in triggers]
        watching = asyncio.ensure_future(blocked(done))
        await asyncio.sleep(8)  # every one has looked a few times
        assert not any(one.done() for one in first)
        await asyncio.to_thread(here.cluster.kubectl, "delete", "pods", "-l", IDENTITY, "--grace-period=0", "--force")
        events = await asyncio.wait_for(asyncio.gather(*first), 60)
        done.set()
        return [event.payload for event in events], await watching

    events, longest = asyncio.run(watch())
    assert [event["status"] for event in events] == ["changed"] * MANY
    print(f"the loop was blocked for {longest:.3f} s at most")  # noqa: T201

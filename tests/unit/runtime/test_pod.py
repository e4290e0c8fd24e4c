from __future__ import annotations

import pytest

from airflow_ml_provider import codec
from airflow_ml_provider.exceptions import SpecError
from airflow_ml_provider.runtime import InProcess, Pod, resolve


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": ""}, "image must be the name of an image"),
        ({"cpu": 0}, "cpu must be greater than 0"),
        ({"start_s": -1}, "start_s must be greater than 0"),
        ({"gpus": -1}, "gpus must be at least 0"),
        ({"volumes": {"data": "claim"}}, "begins with /"),
        ({"controller": "ray"}, "controller must be trainjob, .* or empty, got 'ray'"),
        ({"controller": "trainjob:My Runtime"}, "controller must be"),
        ({"controller": "rayjob:latest"}, "controller must be"),
        ({"controller": "trainjob", "gang": "volcano"}, "gang must be kueue:QUEUE or empty with controller 'trainjob'"),
        ({"controller": "rayjob", "replacements": 1}, "replacements must be left at 3 with controller 'rayjob'"),
        ({"replacements": -1}, "replacements must be at least 0"),
        ({"gang": "kueue"}, "gang must be kueue:QUEUE"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(SpecError, match=message):
        Pod(**{"image": "i", **settings})


def test_quantities():
    assert Pod("i").resources == {}
    pod = Pod("i", cpu=0.25, memory_gib=1.5, gpus=2, gpu_resource="nvidia.com/mig-1g.10gb")
    assert pod.resources == {"cpu": "250m", "memory": "1536Mi", "nvidia.com/mig-1g.10gb": "2"}


def test_a_mapping_is_a_pod_as_in_a_configuration_file():
    pod = Pod("i", gpus=1, volumes={"/data": "claim"}, pod_template={"spec": {"tolerations": []}})
    assert resolve(pod) is pod
    assert resolve(codec.encode(pod)) == pod
    with pytest.raises(SpecError, match="did you mean 'image'"):
        resolve({"imag": "i"})
    assert resolve("") == InProcess()


@pytest.mark.parametrize(
    "controller", ["trainjob", "trainjob:torch-2.9", "trainjob:TrainingRuntime/mine", "rayjob", "rayjob:2.52.0"]
)
def test_controllers(controller):
    assert resolve({"image": "i", "controller": controller, "gang": "kueue:ml"}).controller == controller

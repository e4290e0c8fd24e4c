"""ExecuTorch programs: XNNPACK computes what it can, the portable kernels the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider.stages.edge import export_inputs as inputs
from airflow_ml_provider.stages.edge import export_torch
from airflow_ml_provider.stages.edge.export_inputs import Runnable
from airflow_ml_provider.stages.edge.spec import EdgeExportSpec

LIBRARIES = ("executorch", "torch", "torchao", "numpy")
_DELEGATE = "XnnpackBackend"


def convert(spec: EdgeExportSpec, parent: Path, file: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    """Write `file`; its method `signature` gives the signature as bytes. Return which operators it needs."""
    import torch
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    partitioners = []
    if Runtime.get().backend_registry.is_available(_DELEGATE):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        partitioners.append(XnnpackPartitioner())
    told = torch.tensor(list(inputs.text(signature).encode()), dtype=torch.uint8)
    made = to_edge_transform_and_lower(
        export_torch.program(parent, spec.network, spec.batch_size),
        partitioner=partitioners,
        constant_methods={inputs.SIGNATURE: told},
    ).to_executorch()
    file.write_bytes(made.buffer)
    plan = next(one for one in made.executorch_program.execution_plan if one.name == "forward")
    return {
        "delegates": sorted({delegate.id for delegate in plan.delegates}),
        "delegated_parts": len(plan.delegates),
        "operators": sorted(f"{one.name}.{one.overload}".rstrip(".") for one in plan.operators),
    }


def load(file: Path) -> Runnable:
    """Return the file opened by ExecuTorch's runtime."""
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file)
    told = program.load_method(inputs.SIGNATURE).execute([])[0]
    forward = program.load_method("forward")

    def call(feeds: Mapping[str, Any]) -> Any:
        return forward.execute([torch.from_numpy(feeds[inputs.COLUMNS])])[0].numpy().copy()

    return Runnable(json.loads(bytes(told.tolist())), call)

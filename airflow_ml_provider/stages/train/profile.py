"""What some steps of a training spend their time on: a Chrome trace of each rank, the share of communication in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

# The first step makes what is kept, gradients and optimiser state; the last one before the record is torch's warm-up.
WARM_UP = 3
SUFFIX = ".pt.trace.json"  # by which TensorBoard finds a trace
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


class Profile:
    """Records some steps of one rank, once, by torch.profiler.

    Parameters:
        path: file for the Chrome trace; Perfetto, TensorBoard and Holistic Trace Analysis read it.
        steps: how many are recorded, after `WARM_UP` of them that are not.
        on_gpu: whether the kernels of a GPU are recorded, too.
    """

    def __init__(self, path: Path, steps: int, *, on_gpu: bool = False) -> None:
        self.done = False
        self._path, self._steps, self._on_gpu = path, steps, on_gpu
        self._profiler: Any = None
        self._seen = 0

    def step(self) -> Optional[float]:
        """Count a step that has ended; return its `communication_share` with the last one that is recorded."""
        if self.done:
            return None
        self._seen += 1
        if self._profiler is None:
            self._profiler = self._begun()
            return None
        self._profiler.step()
        if self._seen < WARM_UP + self._steps:
            return None
        self.close()
        self.done = True
        return communication_share(json.loads(self._path.read_text(encoding="utf-8"))["traceEvents"])

    def close(self) -> None:
        """Stop recording; what is not complete is not kept."""
        if self._profiler is not None:
            self._profiler.on_trace_ready = None
            self._profiler.stop()
            self._profiler = None

    def _begun(self) -> Any:
        from torch.profiler import ProfilerActivity, profile, schedule

        profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])],
            schedule=schedule(wait=WARM_UP - 2, warmup=1, active=self._steps, repeat=1),
            on_trace_ready=self._write,
        )
        profiler.start()
        return profiler

    def _write(self, profiler: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f".{self._path.name}")
        profiler.export_chrome_trace(str(aside))
        aside.rename(self._path)


def communication_share(events: Iterable[Mapping[str, Any]]) -> float:
    """Return the share of time that communication takes, in [0, 1], from the events of torch.profiler's Chrome trace.

    Where a GPU has worked: the time of all NCCL kernels over that of all its kernels, copies and fills, each a sum of
    durations; kernels that run side by side count both. Elsewhere: the time within the recorded steps in which at least
    one collective of gloo is under way, over the time of the steps, each from the end of the step before. Either counts
    the wait for slower ranks as communication, also where something is computed meanwhile.

    >>> step = {"ph": "X", "name": "ProfilerStep#4", "ts": 0.0, "dur": 10.0}
    >>> communication_share([step, {"ph": "X", "name": "gloo:all_reduce", "ts": 6.0, "dur": 3.0}])
    0.3
    """
    whole = [event for event in events if event.get("ph") == "X"]
    if device := [event for event in whole if event.get("cat") in _DEVICE]:
        total = sum(event["dur"] for event in device)
        return float(sum(event["dur"] for event in device if event["name"].startswith("nccl")) / total)
    steps = [_span(event) for event in whole if event["name"].startswith("ProfilerStep#")]
    collectives = _merged(_span(event) for event in whole if event["name"].startswith("gloo:"))
    shared = sum(max(0.0, min(end, last) - max(start, first)) for start, end in collectives for first, last in steps)
    return float(shared / sum(end - start for start, end in steps))


def _span(event: Mapping[str, Any]) -> tuple[float, float]:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of spans as spans that do not touch."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found

"""Time of one training step on the chaotic RNN on a CUDA device, by backend.

    python benchmarks/gpu.py [--small] [--check] [--out docs/benchmarks.md]

The reference is plain PyTorch without distribution objects, forward and reverse captured in one CUDA graph. Proppo
takes part where it is installed. Times are on the wall, with a synchronization before each reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import by_backend
import models
import peers
import timing
import torch
from step_time import Case

from propc.runtime.backends import BACKENDS

REFERENCE = "captured rp"
CAPTURED_TARGET = 1.5  # cudagraphs tp over the reference
PROPPO_TARGET = 0.1  # cudagraphs tp over Proppo's
FULL = (Case(1000, 2, 10, 51, {}), Case(1000, 2, 100, 21, {}), Case(1000, 500, 10, 21, {}))
SMALL = (Case(1000, 2, 100, 5, {}),)
BOUNDED = 100  # the horizon that the targets are for

Ratios = Mapping[str, timing.Ratio]


def captured(given: models.Problem) -> Callable[[], object]:
    """A plain step as one CUDA graph, on tensors of its own; on another device the step as it is."""
    own = models.problem(*given.x0.shape, given.horizon, device=given.x0.device)
    step = models.step(models.direct_rp, own)
    if own.x0.device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # before capturing, as torch asks
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def usable(device: torch.device) -> list[str]:
    """The backends that run on a device."""
    wanted = ["eager", "inductor", *(["cudagraphs"] if device.type == "cuda" else [])]
    return [name for name in wanted if name in BACKENDS]


def measure(case: Case, device: torch.device) -> Ratios:
    """All candidates on one case, over the reference."""
    given = models.problem(case.batch, case.dim, case.horizon, device=device)
    steps = {REFERENCE: captured(given), **by_backend.all_steps(given, usable(device)), **peers.proppo(given)}
    clock = timing.Clock.named("wall", device)
    return timing.ratios(timing.interleave(steps, rounds=case.rounds, warmup=3, clock=clock), REFERENCE)


def bounds(results: Sequence[tuple[Case, Ratios]]) -> list[timing.Bound]:
    """What `cudagraphs` should reach, where it and Proppo are there."""
    found = []
    for case, ratios in results:
        if case.horizon != BOUNDED or "cudagraphs tp" not in ratios:
            continue
        ours = ratios["cudagraphs tp"].median
        found.append(timing.Bound(f"{case}: time of cudagraphs tp / {REFERENCE}", ours, CAPTURED_TARGET))
        if peer := ratios.get("Proppo tp[beta]"):
            found.append(timing.Bound(f"{case}: time of cudagraphs tp / Proppo's", ours / peer.median, PROPPO_TARGET))
    return found


def main() -> int:
    """The command line."""
    arguments = timing.options("Step time on the chaotic RNN on a CUDA device, by backend.").parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/gpu.py needs a CUDA device, and torch "
            f"{torch.__version__} sees none. On CPU run benchmarks/by_backend.py."
        )
    device = torch.device("cuda")
    print(torch.cuda.get_device_name(device))
    torch.manual_seed(0)
    results = [(case, measure(case, device)) for case in (SMALL if arguments.small else FULL)]
    table = timing.ratio_table(f"step time / {REFERENCE}", {str(case): ratios for case, ratios in results})
    timing.show([table], arguments.out, "gpu")
    return timing.check(bounds(results), strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())

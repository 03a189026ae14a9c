"""Which operation of a segment `torch.vmap` cannot run, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.errors import EstimatorError, message
from propc.fx.operations import CustomFunction, name_of
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.segment import Segment
from propc.runtime.checks.out_of_memory import is_shortage
from propc.util.torch_rng import same_random

Run = Callable[..., Sequence[Any]]


def explained(graph: PropagationGraph, segment: Segment, run: Run, vmap: Callable[[Run], Run]) -> Run:
    """A segment's code in plates, which names the operation where vmap fails.

    Args:
        run: the code in plates.
        vmap: what took it there.
    """
    assert segment.stage is not None
    module, reads = segment.stage.module, [graph.plates_of(ref) for ref in segment.inputs]

    def call(*values: Tensor) -> Sequence[Any]:
        try:
            return run(*values)
        except Exception as error:
            if is_shortage(error):
                raise
            step = _culprit(module, reads, vmap, values)
            if step is None:
                raise
            raise _refused(graph, segment, step, error) from error

    return call


class _Walker(torch.fx.Interpreter):
    """Runs operations one by one and remembers the last."""

    last: torch.fx.Node | None = None

    def run_node(self, n: torch.fx.Node) -> Any:
        self.last = n
        return super().run_node(n)


def _culprit(
    module: torch.fx.GraphModule,
    reads: Sequence[tuple[str, ...]],
    vmap: Callable[[Run], Run],
    values: Sequence[Tensor],
) -> torch.fx.Node | None:
    """The operation that fails in plates; None if it fails on a single element too."""
    walker = _Walker(module)
    with same_random():
        try:
            module.forward(*(value[(0,) * len(plates)].clone() for value, plates in zip(values, reads)))
        except Exception:
            return None
        try:
            vmap(walker.run)(*(value.clone() for value in values))
        except Exception:
            return walker.last
    return None


def _refused(graph: PropagationGraph, segment: Segment, step: torch.fx.Node, error: Exception) -> EstimatorError:
    names = ", ".join(map(repr, segment.plates))
    owners = [site.name for site in graph.sites if {site.plate, site.alternatives} & {*segment.plates}]
    ways = f"use one sample, or another estimator, at {', '.join(map(repr, owners))}"
    target = step.target
    called = target if isinstance(target, str) else name_of(target)
    if isinstance(target, CustomFunction):
        fix = f"Give {called} a vmap rule (generate_vmap_rule = True, with setup_context), or {ways}."
    elif step.meta.get("writes"):
        fix = f"Write x = x + y in place of x += y, and torch.stack in place of assignments to elements, or {ways}."
    else:
        fix = f"Write it with other operations, in propc.opaque if no gradient has to pass it, or {ways}."
    reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
    return EstimatorError(
        message(
            f"it stands in the plate of {names}, where every operation runs on all elements at once, and torch.vmap "
            f"cannot run this one ({reason})",
            fix,
            at=f"operation {called!r}",
            where=step.meta.get("where"),
        )
    )

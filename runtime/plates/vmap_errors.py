"""Which operation of a segment `torch.vmap` cannot run, and what to do about it."""

from __future__ import annotations

import torch.fx

from propc.errors import EstimatorError, message
from propc.fx.operations import CustomFunction, name_of
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.segment import Segment
from propc.runtime.checks.out_of_memory import is_shortage


def refuse(graph: PropagationGraph, segment: Segment, step: torch.fx.Node, error: Exception) -> None:
    """Say which operation of a segment cannot run on values in plates, and what to do.

    Raises:
        EstimatorError: always, but where torch's own error is of a lack of memory.
    """
    if not is_shortage(error):
        raise _refused(graph, segment, step, error) from error


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

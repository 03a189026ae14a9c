"""Running a traced program on values, step by step, for a look at it: not as a call runs it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.fx

from propc.distributions.sampling import draw_detached
from propc.fx.program import mark_of
from propc.fx.run_step import run_step


def step_value(node: torch.fx.Node, values: Mapping[torch.fx.Node, Any], *, boxes: bool = False) -> Any:
    """What a step gives: a site draws, another mark hands on what it reads, an operation runs in its own region.

    Args:
        boxes: run black boxes too.

    Raises:
        LookupError: a black box, which may not run twice.
    """
    mark = mark_of(node)
    if mark is None or (boxes and mark.kind == "opaque"):
        region = node.meta.get("context")
        with nullcontext() if region is None else region.entered():
            return run_step(node, values)
    if mark.kind == "opaque":
        raise LookupError(mark.name)
    args = [values[each] for each in node.args if isinstance(each, torch.fx.Node)]
    if mark.spec is None:
        return args[0] if args else None
    draw = draw_detached(mark.spec.builder()(args))
    wants = torch.is_grad_enabled() and draw.is_floating_point()  # the program may take a gradient inside
    return draw.requires_grad_().clone() if wants else draw


def last_uses(graph: torch.fx.Graph, kept: Container[torch.fx.Node] = ()) -> dict[torch.fx.Node, list[torch.fx.Node]]:
    """What is read for the last time by each step, but for what is kept."""
    last = {read: node for node in graph.nodes for read in node.all_input_nodes if read not in kept}
    found: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for read, node in last.items():
        found.setdefault(node, []).append(read)
    return found

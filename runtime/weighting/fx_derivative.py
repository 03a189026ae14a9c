"""Derivatives of a piece of a program as flat code, which reads what the program has made anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from propc.fx.program import type_of
from propc.util.torch_private import TO_COPY

Node = torch.fx.Node


def flat(
    run: Callable[..., tuple[Tensor, ...]], nodes: Sequence[Node], examples: Sequence[Tensor], share: bool = True
) -> tuple[torch.fx.GraphModule, tuple[Node, ...]]:
    """Code of a function, and which nodes it reads.

    Args:
        run: from values of `nodes`, and of `examples`, to results; behind them it returns the values of `nodes`, those
            of steps as it has made them itself.
        nodes: tensors of a program.
        examples: what else it gets.
        share: whether values of steps may be read in place of being made again.

    Returns:
        code from the values of the nodes that it reads, and of `examples`, to the results.
    """
    with torch.no_grad():
        module = make_fx(run, tracing_mode="fake")(*map(example, nodes), *examples)
    graph, count = module.graph, len(nodes)
    given = [node for node in graph.nodes if node.op == "placeholder"]
    output = graph.output_node()
    results: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    output.args = (tuple(results[:-count]),)
    for own, known in zip(results[-count:], given):
        if share and isinstance(own, Node) and own.op != "placeholder":
            own.replace_all_uses_with(known)
    graph.eliminate_dead_code()
    _simplify(graph)
    reads = tuple(node for node, known in zip(nodes, given) if known.users)
    for known in given[:count]:
        if not known.users:
            graph.erase_node(known)
    module.recompile()
    return module, reads


def _simplify(graph: torch.fx.Graph) -> None:
    """Remove copies, expansions and products with one that change nothing."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target in (aten.alias.default, TO_COPY, aten.expand.default, aten.detach.default):
            source = node.args[0]
        elif node.target is aten.mul.Tensor and any(_is_one(n) for n in node.args):
            source = node.args[1] if _is_one(node.args[0]) else node.args[0]
        else:
            continue
        if _same_kind(source, node):
            node.replace_all_uses_with(source)
    graph.eliminate_dead_code()


def _is_one(node: Any) -> bool:
    return isinstance(node, Node) and node.target is torch.ops.aten.ones_like.default


def _same_kind(a: Any, b: Node) -> bool:
    if not isinstance(a, Node):
        return False
    x, y = a.meta.get("val"), b.meta["val"]
    return isinstance(x, Tensor) and x.shape == y.shape and x.dtype == y.dtype and x.device == y.device


def example(node: Node) -> Tensor:
    """A tensor of a node's type."""
    kind = type_of(node)
    assert kind is not None
    return torch.empty(kind.shape, dtype=kind.dtype, device=kind.device)

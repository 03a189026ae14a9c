"""A kind of node, to copy: its record, its lowering, and a pass that puts such nodes into a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.ir import Node, Ref
from propc.runtime.lowering import Lowering, lowers


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp(Node):
    """A value held between two bounds. What is not said here is as of any node: see `propc.ir.Node`."""

    low: float
    high: float

    @property
    def called(self) -> str:  # in the text, in the picture, in errors and in profiles
        return "clamp"

    def text(self, graph: Any) -> str:  # what stands in its line of the text form
        return f"clamp({self.inputs[0]}) between {self.low:g} and {self.high:g}"


@lowers(Clamp)
class ClampLowering(Lowering):
    """How it runs: a function of what the node reads, which gives what it makes."""

    def step(self, planner: Any, node: Clamp) -> Any:
        return planner.step(node, clamped(node.low, node.high))


def clamped(low: float, high: float) -> Callable[[Tensor], tuple[Tensor]]:
    """The step's function; autograd takes care of its reverse."""
    return lambda value: (value.clamp(low, high),)


@dataclass(frozen=True)
class ClampValue(propc.passes.Pass):
    """Hold a value between two bounds: everything behind it reads the clamped one."""

    after: ClassVar[str] = "split-costs"
    at: str = "x"
    low: float = -1.0
    high: float = 1.0

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        """The new graph."""
        source, before = Ref(self.at), graph[self.at]
        name = f"{self.at}.clamp"
        made = Clamp(
            name=name, inputs=(source,), outputs=before.outputs, where=before.where, low=self.low, high=self.high
        )
        nodes: dict[str, Node] = {}
        for key, node in graph.nodes.items():
            nodes[key] = node.reading(lambda ref: Ref(name) if ref == source else ref)
            if key == self.at:
                nodes[name] = made
        return replace(graph, nodes=nodes)


def program(theta: Tensor) -> Tensor:
    """The square of a draw."""
    return propc.sample(Normal(theta.expand(1000), 1.0), "x").square()


def check() -> None:
    """What a test of the kind looks like."""
    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(program, estimator="rp", passes=[ClampValue()])
    graph = compiled.graph(theta).verify()
    assert "clamp(%x) between -1 and 1" in str(graph)
    assert "clamp" in graph.to_dot()

    torch.manual_seed(0)
    value = compiled(theta)
    torch.manual_seed(0)
    x = theta.detach() + torch.randn(1000)
    assert torch.allclose(value, x.clamp(-1, 1).square())
    value.mean().backward()
    assert torch.allclose(theta.grad, torch.where(x.abs() < 1, 2 * x, 0).mean())  # type: ignore[arg-type]

    fast = propc.compile(program, estimator="rp", passes=[ClampValue()], backend="inductor")
    for _ in range(2):  # compiled from the second call on; a kind from outside runs as it is, and the report says so
        torch.manual_seed(0)
        assert torch.allclose(fast(theta), value)
    assert "x.clamp" in str(fast.explain(theta))


if __name__ == "__main__":
    check()

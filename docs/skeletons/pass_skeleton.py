"""A pass, to copy: rename it, say what it requires and ensures, change `apply` and the check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Normal

import propc


@propc.passes.register("my-pass")  # its printed name, also for passes=["my-pass"]
@dataclass(frozen=True)
class MyPass(propc.passes.Pass):
    """Ask for one estimator at all sites whose names begin with a prefix.

    Requires: nothing.
    Ensures:  the request is set at these sites, and nowhere else.
    """

    after: ClassVar[str] = "find-influence"  # the pass behind which it runs
    prefix: str = "x"  # options are fields with defaults
    estimator: str = "lr"

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        """The new graph."""
        chosen = [site for site in graph.sites if site.name.startswith(self.prefix)]
        return graph.with_nodes(*(replace(site, requested=self.estimator) for site in chosen))


def program(theta: Tensor) -> Tensor:
    """Two sites, one of which the pass must leave alone."""
    x = propc.sample(Normal(theta.expand(10), 1.0), "x")
    y = propc.sample(Normal(x * theta, 1.0), "y")
    return y.square()


def check() -> None:
    """What a test of the pass looks like."""
    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(program, estimator="rp", passes=[MyPass()])
    assert [site.estimator for site in compiled.graph(theta).sites] == ["lr", "rp"]

    untouched = propc.compile(program, estimator="rp", passes=[MyPass(prefix="z")])
    assert str(untouched.graph(theta)) == str(propc.compile(program, estimator="rp").graph(theta))

    compiled(theta).mean().backward()
    assert theta.grad is not None


if __name__ == "__main__":
    check()

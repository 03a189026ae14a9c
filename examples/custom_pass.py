"""Custom passes: one that chooses estimators, one that inserts a node, one that draws.

A pass takes a propagation graph and returns a new one. The compiler runs a user's passes behind
the built-in pass that their `after` names, and verifies the graph after every pass.

The model is a chaotic recurrent network of 30 steps, whose pathwise gradient (rp) is useless.

Run it: `python examples/custom_pass.py`, options: `--help`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from report import parser, show
from rich.table import Table
from torch import Tensor
from torch.distributions import Normal

import propc


@propc.passes.register("lr-far-from-end")
@dataclass(frozen=True)
class LrFarFromEnd(propc.passes.Pass):
    """Force the likelihood ratio on every site more than `steps` steps from the end."""

    steps: int = 5

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        """Request "lr" at all sites but the last few, before estimators are assigned."""
        for site in graph.sites[: -self.steps or None]:
            graph = graph.with_estimator(site.name, "lr")
        return graph


class Clip(torch.autograd.Function):
    """The identity, whose backward clips the cotangent to [-1/batch, 1/batch]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return x as it is."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        """Clip, for a loss that is the mean over the batch."""
        limit = 1 / len(cotangent)
        return cotangent.clamp(-limit, limit)


def clip(x: Tensor) -> Tensor:
    """`Clip` as a function."""
    return Clip.apply(x)


@propc.passes.register("clip-cotangents")
@dataclass(frozen=True)
class ClipCotangents(propc.passes.Pass):
    """Insert a clipping node behind every site: less variance, but a biased gradient."""

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        """Let everything that read a site's sample read the clipping node instead."""
        for site in graph.sites:
            graph = graph.insert_after(site.name, clip, label=f"{site.name}.clipped")
        return graph


@propc.passes.register("draw")
@dataclass(frozen=True)
class Draw(propc.passes.Pass):
    """Write the graph as it is after assign-propagators in DOT; change nothing."""

    after: ClassVar[str] = "assign-propagators"
    path: Path = Path("graph.dot")

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        """Write the file and return the graph."""
        self.path.write_text(graph.to_dot())
        return graph


def rollout(beta: Tensor, x0: Tensor, W: Tensor, horizon: int) -> Tensor:
    """The loss after `horizon` steps, one value per row of the batch."""
    x = x0
    for t in range(horizon):
        x = propc.sample(Normal(torch.sigmoid(beta * (x @ W)), 0.001), name=f"x{t}")
    return 0.5 * (1 - x).square().sum(-1)


def gradients(passes: Sequence[propc.passes.Pass], horizon: int, repeats: int) -> Tensor:
    """Estimates of the gradient in beta under rp and these passes, shape [repeats]."""
    compiled = propc.compile(rollout, estimator="rp", passes=passes)
    beta = torch.tensor(3.5, dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([0.35, 0.55], dtype=torch.float64).expand(1000, 2)
    W = torch.tensor([[-5.0, -25.0], [5.0, 25.0]], dtype=torch.float64)
    losses = (compiled(beta, x0, W, horizon=horizon).mean() for _ in range(repeats))
    return torch.stack([torch.autograd.grad(loss, beta)[0] for loss in losses])


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the gradient under each pass, and draw the graphs."""
    args = parser("custom_pass", __doc__).parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    horizon, repeats = (8, 10) if args.smoke else (30, 100)
    torch.manual_seed(0)

    table = Table("passes", "gradient in beta", "± s.e.", title=f"rp and custom passes, {horizon} steps")
    choices = {"none": [], "lr-far-from-end": [LrFarFromEnd(steps=5)], "clip-cotangents": [ClipCotangents()]}
    for name, passes in choices.items():
        draws = gradients([*passes, Draw(path=args.out / f"{name}.dot")], horizon, repeats)
        table.add_row(name, f"{draws.mean():.3g}", f"{draws.std() / repeats**0.5:.1g}")
    show(table, args.out)
    print(f"The table and a drawing of each graph are in {args.out}")


if __name__ == "__main__":
    main()

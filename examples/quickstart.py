"""Quickstart: a program with random choices, its gradient, and its propagation graph.

Run it: `python examples/quickstart.py`, options: `--help`.
"""

from collections.abc import Sequence

import torch
from report import parser, write_graph
from torch import Tensor
from torch.distributions import Normal

import propc


@propc.compile(estimator="tp")  # total propagation; try "rp" or "lr"
def rollout(beta: Tensor, x0: Tensor, W: Tensor, horizon: int = 10) -> Tensor:
    """A noisy recurrent network of two neurons that should end at (1, 1)."""
    x = x0
    for t in range(horizon):
        x = propc.sample(Normal(torch.sigmoid(beta * (x @ W)), 0.001), name=f"x{t}")
    return 0.5 * (1 - x).square().sum(-1)  # shape [batch]: one cost per sample


def main(argv: Sequence[str] | None = None) -> None:
    """Estimate one gradient and show the graph behind it."""
    options = parser("quickstart", __doc__).parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    batch, horizon = (10, 3) if options.smoke else (1000, 10)

    torch.manual_seed(0)
    beta = torch.tensor(2.0, requires_grad=True)
    x0 = torch.tensor([0.35, 0.55]).expand(batch, 2)
    W = torch.tensor([[-5.0, -25.0], [5.0, 25.0]])

    loss = rollout(beta, x0, W, horizon=horizon)  # the values of the cost, shape [batch]
    loss.mean().backward()  # the gradient is the estimator's
    print(f"loss {loss.mean():.4f}, estimated gradient in beta {beta.grad:+.4f}\n")

    graph = rollout.graph(beta, x0, W, horizon=3)  # three steps are easier to read than ten
    print(graph)
    write_graph(graph, options.out)
    print(f"\nThe graph is in {options.out}, as text and for Graphviz")


if __name__ == "__main__":
    main()

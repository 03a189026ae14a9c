"""Draw the pictures of the documentation anew: `python docs/make_images.py` (needs Graphviz)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal

import propc

IMAGES = Path(__file__).parent / "images"


@propc.compile(estimator="tp")
def rollout(beta: Tensor, x0: Tensor, W: Tensor, horizon: int = 10) -> Tensor:
    """The README's example."""
    x = x0
    for t in range(horizon):
        x = propc.sample(Normal(torch.sigmoid(beta * (x @ W)), 0.001), name=f"x{t}")
    return 0.5 * (1 - x).square().sum(-1)


def rollout_graph() -> propc.PropagationGraph:
    """Its propagation graph over three steps."""
    beta = torch.tensor(2.0, requires_grad=True)
    return rollout.graph(beta, torch.zeros(1000, 2), torch.zeros(2, 2), horizon=3)


def main(folder: Path = IMAGES) -> None:
    """Write every picture."""
    folder.mkdir(parents=True, exist_ok=True)
    print(rollout_graph().render(str(folder / "rollout.svg")))


if __name__ == "__main__":
    main()

"""Run in an empty environment after installing the wheel: `python -I tests/packaging/smoke.py`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch.distributions import Normal

import propc
import propc.passes
import propc.runtime

SITE_PACKAGES = Path(propc.__file__).parents[1]


@propc.compile(estimator="tp")
def chaotic_rnn(beta, x0, W, horizon=10):
    """The chaotic recurrent network of the README."""
    x = x0
    for t in range(horizon):
        x = propc.sample(Normal(torch.sigmoid(beta * (x @ W)), 0.001), name=f"x{t}")
    return 0.5 * (1 - x).square().sum(-1)


def check_installed() -> None:
    """The folders are mapped, and nothing named plainly passes or runtime is installed."""
    assert SITE_PACKAGES.name == "site-packages", f"propc comes from {SITE_PACKAGES}, not from a wheel"
    assert (SITE_PACKAGES / "propc" / "py.typed").is_file()
    for name in ("passes", "runtime", "tests", "examples", "benchmarks"):
        assert not (SITE_PACKAGES / name).exists(), f"{name} is installed at top level"


def check_gradient() -> None:
    """The compiled example returns its costs, its gradient and its graph."""
    torch.manual_seed(0)
    beta = torch.tensor(1.5, requires_grad=True)
    x0, W = torch.rand(100, 2), torch.randn(2, 2)
    loss = chaotic_rnn(beta, x0, W, horizon=10)
    loss.mean().backward()
    assert loss.shape == (100,)
    assert beta.grad is not None
    assert math.isfinite(beta.grad)
    print(chaotic_rnn.graph(beta, x0, W, horizon=10))
    print(f"loss {loss.mean():.4f}, gradient {beta.grad:+.4f}")


if __name__ == "__main__":
    check_installed()
    check_gradient()

"""An estimator, to copy: rename it, state its contract, change the rule and the check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.estimators import LikelihoodRatio, Pathwise, SiteView
from propc.propagators import SitePropagator


@propc.register_estimator("my-estimator")
@dataclass(frozen=True)
class MyEstimator(propc.Estimator):
    """`rp` at sites of at least `width` dimensions, `lr` elsewhere.

    Approximates: ∇_φ E f(x)
    With:         the estimator chosen at each site
    Requires:     what that one requires
    Unbiased:     yes
    """

    name: ClassVar[str] = "my-estimator"
    width: int = 2  # options are fields with defaults; argue for them in the docstring

    def __post_init__(self) -> None:
        if self.width < 0:
            raise propc.PropcValueError(f"option width={self.width!r} must not be negative.")

    def propagator(self, site: SiteView) -> tuple[SitePropagator, str]:
        """The rule at this site and why; refuses where it cannot work."""
        if site.batch is None:
            raise site.error("a cost is a scalar", "Return the cost with shape [batch].")
        wide = len(site.shape) > 1 and site.shape[-1] >= self.width
        rule, _ = (Pathwise() if wide else LikelihoodRatio()).propagator(site)
        return rule, f"{site.shape[-1]} wide" if wide else "narrow"


@propc.compile(estimator="my-estimator")
def program(theta: Tensor) -> Tensor:
    """A wide site and a narrow one."""
    z = propc.sample(Bernoulli(logits=theta.expand(100)), "z")
    x = propc.sample(Normal(theta.expand(100, 3), 1.0), "x")
    return x.square().sum(-1) * z


def check() -> None:
    """What it chooses, what it refuses, and that a gradient arrives."""
    theta = torch.tensor(0.5, requires_grad=True)
    rows = program.explain(theta).rows
    assert [row["why"] for row in rows] == ["narrow", "3 wide"]

    refused = ""
    try:
        propc.compile(lambda t: program(t).mean(), estimator="my-estimator")(theta)
    except propc.EstimatorError as error:
        refused = str(error)
    assert "a cost is a scalar" in refused

    program(theta).mean().backward()
    assert theta.grad is not None


if __name__ == "__main__":
    check()

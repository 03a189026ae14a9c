"""A site's propagator, to copy: rename it, change `draw`, say where it works, and check it against a closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.estimators import LeaveOneOut, SiteView, require_batch
from propc.propagators import Baseline, Draw, SiteContext, SitePropagator, row_log_prob
from propc.runtime.autograd.tokens import token


@dataclass(frozen=True)
class MyPropagator(SitePropagator):
    """Draws without gradient; the message at the token goes through `log_prob` to φ."""

    name: ClassVar[str] = "my-site"
    passes_path: ClassVar[bool] = False  # True if a cotangent on the sample goes on to φ
    baseline: Baseline = field(default_factory=LeaveOneOut)

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """One for each token; () for a propagator that needs no costs."""
        return (self.baseline,)

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        """The sample, and a token through which the costs' messages reach φ."""
        dist = site.build(phi)
        with torch.no_grad():
            value = dist.sample()
        return Draw(value, (token(row_log_prob(dist, value)),))


@propc.register_estimator("my-site")
@dataclass(frozen=True)
class MyEstimator(propc.Estimator):
    """How the propagator comes to its sites. Unbiased."""

    name: ClassVar[str] = "my-site"

    def propagator(self, site: SiteView) -> tuple[SitePropagator, str]:
        """The rule at this site and why; refuses where it cannot work."""
        require_batch(self.name, LeaveOneOut(), site)
        return MyPropagator(), "asked for"


@propc.compile(estimator="my-site")
def program(theta: Tensor) -> Tensor:
    """E[x²] = θ² + 1, with gradient 2θ."""
    x = propc.sample(Normal(theta.expand(200_000), 1.0), "x")
    return x.square()


def check() -> None:
    """Per-sample gradients against the closed form, in standard errors."""
    theta = torch.full((200_000,), 0.7, requires_grad=True)  # one θ a row gives per-sample gradients
    (draws,) = torch.autograd.grad(program(theta).sum(), theta)
    error = draws.std() / len(draws) ** 0.5
    assert (draws.mean() - 1.4).abs() < 5 * error
    assert (draws.mean() - 1.5).abs() > 5 * error  # the check can tell a biased estimate


if __name__ == "__main__":
    check()

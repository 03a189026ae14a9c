"""An estimator with a plate of its own, to copy: ARM for Bernoulli sites, from two draws by opposite random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent

import propc
from propc.estimators import NoBaseline, SiteView
from propc.ir import Plate, PlateKind
from propc.propagators import Baseline, Draw, SitePropagator, token


@dataclass(frozen=True)
class MyArm(SitePropagator):
    """b = 1[u < σ(α)] and b̃ = 1[1 − u < σ(α)] give ½ (f(b) − f(b̃)) (1 − 2u): Yin & Zhou (2019), arXiv:1807.11143."""

    name: ClassVar[str] = "my-arm"

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """Any other would cancel in the difference."""
        return (NoBaseline(),)

    def plate(self, site: Any, batched: bool) -> Plate:
        """Two draws; the program behind the site runs on both, and its costs are their means."""
        return Plate(site.name, 2, PlateKind.ANTITHETIC)

    def draw(self, site: Any, phi: Any, tangents: Any) -> Draw:
        """`sample_shape` is (2,) here: it stands in front of the draw, and of the token."""
        if site.sample_shape != (2,):
            raise site.error("ARM needs its plate, which a part of another propagator does not get", "Use 'lr' here.")
        dist = site.build(phi)
        logits = dist.base_dist.logits if isinstance(dist, Independent) else dist.logits
        with torch.no_grad():
            p, u = torch.sigmoid(logits), torch.rand_like(logits)
            value = torch.stack([u < p, 1 - u < p]).to(logits.dtype)
        score = (1 - 2 * u) * logits
        pair = torch.stack([score, -score])  # what arrives is ½ f at each of the two
        return Draw(value, (token(pair.flatten(site.lead).sum(site.lead) if pair.dim() > site.lead else pair),))


@propc.register_estimator("my-arm")
@dataclass(frozen=True)
class MyArmEstimator(propc.Estimator):
    """ARM at Bernoulli sites. Unbiased."""

    name: ClassVar[str] = "my-arm"

    def propagator(self, site: SiteView) -> tuple[SitePropagator, str]:
        """The rule at this site and why; refuses where it cannot work."""
        if site.spec.innermost.type is not Bernoulli:
            raise site.error(f"my-arm needs a Bernoulli; got {site.spec}", "Use 'lr' here.")
        return MyArm(), "asked for"


@propc.compile(estimator="my-arm")
def program(theta: Tensor) -> Tensor:
    """A cost that hears of all elements of a row, through a second site."""
    x = propc.sample(Independent(Bernoulli(logits=theta), 1), "x")
    y = propc.sample(Bernoulli(logits=x.sum(-1) - 1), "y")
    return (x.prod(-1) + y).exp()


def check() -> None:
    """Per-sample gradients against the exact one, in standard errors."""
    theta = torch.tensor([0.4, -0.3, 0.8]).expand(100_000, 3).clone().requires_grad_()
    (exact,) = torch.autograd.grad(program.with_estimator("enumerate")(theta).sum(), theta)
    (draws,) = torch.autograd.grad(program(theta).sum(), theta)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact[0]).abs() < 5 * error).all()
    assert ((draws.mean(0) - 1.2 * exact[0]).abs() > 5 * error).any()  # the check can tell a biased estimate


if __name__ == "__main__":
    check()

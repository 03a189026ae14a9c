"""Multi-sample bounds: the gradient of E log 1/K Σ w_k against enumeration of all K-tuples of draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from laws_and_estimators import lr, vimco
from oracles import enumerate_outcomes, expect, gradient, hessian
from programs import neighbour, vector
from stats import assert_less_variance, assert_rejected, check, gradient_draws, hessian_draws
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal

import propc
from propc.propagators import LikelihoodRatioRule
from propc.propagators.baselines import LeaveOneOut
from propc.propagators.sites.samples import Samples

pytestmark = pytest.mark.statistical
sample = propc.sample
Choose = Callable[[Distribution], Tensor]
ROWS = 100_000


def log_mean_exp(values: Sequence[Tensor]) -> Tensor:
    return torch.logsumexp(torch.stack(list(values)), 0) - math.log(len(values))


@dataclass(frozen=True)
class Bound:
    """A program that returns a bound's negative, and the same by enumeration."""

    program: Callable[..., Tensor]
    params: tuple[Tensor, ...]
    expectation: Callable[..., Tensor]

    @property
    def exact(self) -> Tensor:
        return gradient(self.expectation, *self.params)

    def draws(self, estimator: Any, rows: int = ROWS) -> Tensor:
        return gradient_draws(propc.compile(self.program, estimator=estimator), *self.params, rows=rows)

    def check(self, estimator: Any) -> None:
        """Unbiased in every parameter, with the right value."""
        compiled = propc.compile(self.program, estimator=estimator)
        draws = gradient_draws(compiled, *self.params, rows=ROWS)
        check(draws, self.exact, twin=1.1)
        parts = draws.split([p.numel() for p in self.params], -1)
        for lost in range(len(parts)):
            assert_rejected(torch.cat([part * (i != lost) for i, part in enumerate(parts)], -1), self.exact)
        with torch.no_grad():
            costs = compiled(*self.params, batch=ROWS)[:, None]
        check(costs, self.expectation(*self.params).reshape(1), twin=costs + 0.05)


# Two latent bits: log p(x, z) depends on w, log q(z) on φ.

PHI, W = vector(0.4, -0.9), vector(0.8, -1.3)


def log_joint(z: Tensor, w: Tensor) -> Tensor:
    prior = Bernoulli(logits=torch.full_like(w, -0.8)).log_prob(z).sum(-1)
    return prior + torch.cos(1.5 * (z * w).sum(-1)) + z.prod(-1) * w[..., 0]


def log_weight(phi: Tensor, w: Tensor, batch: int) -> Tensor:
    q = Bernoulli(logits=phi.expand(batch, 2))
    z = sample(q, "z")
    return log_joint(z, w.expand(batch, 2)) - q.log_prob(z).sum(-1)


def two_bits(phi: Tensor, w: Tensor, batch: int) -> Tensor:
    return -propc.bound(log_weight(phi, w, batch))


def without_bound(phi: Tensor, w: Tensor, batch: int) -> Tensor:
    return -log_weight(phi, w, batch)


def by_tuples(one: Callable[..., Tensor], samples: int) -> Callable[..., Tensor]:
    """−E log-mean-exp of `one(choose, *params)` over independent samples."""
    return lambda *params: enumerate_outcomes(
        lambda choose: -log_mean_exp([one(choose, *params) for _ in range(samples)])
    )


def one_of_two_bits(choose: Choose, phi: Tensor, w: Tensor) -> Tensor:
    laws = [Bernoulli(logits=logit) for logit in phi]
    z = torch.stack([choose(law) for law in laws])
    return log_joint(z, w) - Bernoulli(logits=phi).log_prob(z).sum(-1)


def bits(samples: int) -> Bound:
    return Bound(two_bits, (PHI, W), by_tuples(one_of_two_bits, samples))


SCORES = {
    "vimco": vimco,
    "arithmetic": lambda k: vimco(k, mean="arithmetic"),
    "lr": lr,
    "none": lambda k: lr(k, baseline=None),
    "moving_average": lambda k: lr(k, baseline="moving_average"),
    "callable": lambda k: lr(k, baseline=neighbour),
    "chunked": lambda k: vimco(k, chunk=2),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("samples", [2, 3])
def test_every_baseline(name: str, samples: int) -> None:
    bits(samples).check(SCORES[name](samples))


def test_one_sample_is_the_evidence_lower_bound() -> None:
    """And its gradient."""
    bits(1).check("lr")
    marked, plain = (
        gradient_draws(propc.compile(f, estimator="lr"), PHI, W, rows=1000) for f in (two_bits, without_bound)
    )
    torch.testing.assert_close(marked, plain)


# -- twins that are wrong -----------------------------------------------------------------


class Own(LeaveOneOut):
    """The mean of the log weights, its own among them."""

    def center_bound(self, bound: Tensor, log_weights: Tensor, state: nn.Module | None) -> Tensor:
        return bound - log_weights.mean(0, keepdim=True).expand_as(log_weights)


class OfTheSample(LeaveOneOut):
    """Each sample's own log weight in the bound's place, as if the cost were a mean."""

    def center_bound(self, bound: Tensor, log_weights: Tensor, state: nn.Module | None) -> Tensor:
        return (log_weights - (log_weights.sum(0) - log_weights) / (len(log_weights) - 1)) / len(log_weights)


@pytest.mark.parametrize("baseline", [Own(), OfTheSample()])
def test_a_wrong_message_is_rejected(baseline: LeaveOneOut) -> None:
    assert_rejected(bits(3).draws(LikelihoodRatioRule(baseline, Samples(3))), bits(3).exact)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_mean_of_the_log_weights_is_rejected(samples: int) -> None:
    """What a program without `propc.bound` would have."""
    draws = gradient_draws(propc.compile(without_bound, estimator=lr(samples)), PHI, W, rows=ROWS)
    assert_rejected(draws, bits(samples).exact)


# -- variance -----------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [3, 5, 10])
def test_vimco_varies_less(samples: int) -> None:
    geometric, others, none = (
        bits(2).draws(estimator)[:, :2] for estimator in (vimco(samples), lr(samples), lr(samples, baseline=None))
    )
    assert_less_variance(geometric, others)
    assert_less_variance(others, none, times=2)


# -- several sites ------------------------------------------------------------------------


def two_bits_in_a_row(phi: Tensor, w: Tensor, batch: int) -> Tensor:
    """The second bit is drawn from the first."""
    p, v = phi.expand(batch, 3), w.expand(batch, 2)
    first = Bernoulli(logits=p[..., 0])
    a = sample(first, "a")
    second = Bernoulli(logits=p[..., 1] + p[..., 2] * a)
    b = sample(second, "b")
    return -propc.bound(of_bits(a, b, v) - first.log_prob(a) - second.log_prob(b))


def of_bits(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return torch.sin(2 * a + w[..., 0]) * (1 + b) - w[..., 1].square() * b + a * b


IN_A_ROW = (vector(0.3, -0.6, 1.2), vector(0.7, 0.9))


def expected_in_a_row(first: int, second: int) -> Callable[..., Tensor]:
    """K draws of the first bit, and for each of them as many of the second."""

    def model(choose: Choose, phi: Tensor, w: Tensor) -> Tensor:
        weights = []
        for _ in range(first):
            law = Bernoulli(logits=phi[0])
            a = choose(law)
            for _ in range(second):
                behind = Bernoulli(logits=phi[1] + phi[2] * a)
                b = choose(behind)
                weights.append(of_bits(a, b, w) - law.log_prob(a) - behind.log_prob(b))
        return -log_mean_exp(weights)

    return lambda phi, w: enumerate_outcomes(lambda choose: model(choose, phi, w))


@pytest.mark.parametrize(
    "estimators",
    [
        {"a": vimco(2), "b": vimco(2)},  # one plate: two trajectories
        {"a": vimco(2), "b": "lr"},
        {"a": lr(2), "b": vimco(2)},
        {"a": vimco(2), "b": lr(2, baseline=None)},
    ],
    ids=str,
)
def test_trajectories(estimators: dict[str, Any]) -> None:
    Bound(two_bits_in_a_row, IN_A_ROW, expected_in_a_row(2, 1)).check(estimators)


@pytest.mark.parametrize(("a", "b"), [(vimco(2), vimco(3)), (lr(2), lr(3)), ("lr", vimco(3))])
def test_plates_inside_plates(a: Any, b: Any) -> None:
    """The bound is over all draws of both."""
    Bound(two_bits_in_a_row, IN_A_ROW, expected_in_a_row(1 if a == "lr" else 2, 3)).check({"a": a, "b": b})


@pytest.mark.parametrize(("a", "b"), [("enumerate", vimco(2)), ("enumerate", "lr"), (vimco(2), "enumerate")])
def test_enumerated_sites_have_weights(a: Any, b: Any) -> None:
    def model(choose: Choose, phi: Tensor, w: Tensor) -> Tensor:
        first = Bernoulli(logits=phi[0])
        count = 1 if isinstance(a, str) else 2
        total = []
        for value in [vector(0.0)[0], vector(1.0)[0]] if a == "enumerate" else [None] * count:
            z = choose(first) if value is None else value
            weigh = first.log_prob(z).detach() * 0 - math.log(count) if value is None else first.log_prob(z)
            behind = Bernoulli(logits=phi[1] + phi[2] * z)
            several = 2 if not isinstance(b, str) else 1
            for other in [None] * several if b != "enumerate" else [vector(0.0)[0], vector(1.0)[0]]:
                y = choose(behind) if other is None else other
                more = -math.log(several) if other is None else behind.log_prob(y)
                total.append(weigh + more + of_bits(z, y, w) - first.log_prob(z) - behind.log_prob(y))
        return -torch.logsumexp(torch.stack(total), 0)

    problem = Bound(
        two_bits_in_a_row, IN_A_ROW, lambda phi, w: enumerate_outcomes(lambda choose: model(choose, phi, w))
    )
    problem.check({"a": a, "b": b})


def test_everything_enumerated_is_the_evidence() -> None:
    phi, w = (p.clone().requires_grad_() for p in IN_A_ROW)
    loss = propc.compile(two_bits_in_a_row, estimator="enumerate")(phi, w, batch=2)
    pairs = [(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    exact = -torch.logsumexp(torch.stack([of_bits(*vector(*pair), w) for pair in pairs]), 0)
    torch.testing.assert_close(loss, exact.expand(2))
    found, wanted = (torch.autograd.grad(v, (phi, w), allow_unused=True, retain_graph=True) for v in (loss[0], exact))
    torch.testing.assert_close(found[0], torch.zeros(3))  # whatever the proposal
    torch.testing.assert_close(found[1], wanted[1])


def with_normal(phi: Tensor, w: Tensor, batch: int) -> Tensor:
    """A bit that shifts a Normal."""
    p, v = phi.expand(batch, 2), w.expand(batch, 2)
    law = Bernoulli(logits=p[..., 0])
    z = sample(law, "z")
    x = sample(Normal(p[..., 1] + z, 0.7), "x")
    return -propc.bound(of_normal(z, x, v) - law.log_prob(z))


def of_normal(z: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return torch.sin(w[..., 0] * x) + z * w[..., 1] - 0.2 * x.square()


def with_normal_expectation(phi: Tensor, w: Tensor) -> Tensor:
    """Two samples, each a bit and a Normal."""
    law = Bernoulli(logits=phi[0])
    total = torch.zeros((), dtype=torch.float64)
    for z in torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 2):
        laws = [Normal(phi[1] + bit, 0.7) for bit in z]
        inner = expect(
            laws[0],
            lambda x: expect(
                laws[1],  # noqa: B023
                lambda y: log_mean_exp(
                    [
                        torch.broadcast_tensors(of_normal(bit, v, w) - law.log_prob(bit), x + y)[0]
                        for bit, v in zip(z, (x, y))  # noqa: B023
                    ]
                ),
            ),
        )
        total = total - law.log_prob(z).sum().exp() * inner
    return total


@pytest.mark.parametrize("x", [propc.estimator("rp", samples=2), "rp", lr(2), "lr"], ids=str)
def test_behind_a_score_site(x: Any) -> None:
    """Pathwise, the bound's own derivative; by score, its messages."""
    Bound(with_normal, (vector(0.3, 0.5), vector(1.3, 0.8)), with_normal_expectation).check({"z": vimco(2), "x": x})


@pytest.mark.parametrize("x", [propc.estimator("rp", samples=2), vimco(2)], ids=str)
def test_alternatives_before_the_samples(x: Any) -> None:
    """One bit, on which the whole bound of two Normals behind it is compared."""

    def expectation(phi: Tensor, w: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for z, p in zip(vector(0, 1), (torch.sigmoid(-phi[0]), torch.sigmoid(phi[0]))):
            behind = Normal(phi[1] + z, 0.7)

            def pair(x: Tensor, y: Tensor) -> Tensor:
                law = Bernoulli(logits=phi[0])
                weights = torch.broadcast_tensors(of_normal(z, x, w), of_normal(z, y, w))  # noqa: B023
                return log_mean_exp(weights) - law.log_prob(z)  # noqa: B023

            inner = expect(behind, lambda x: expect(behind, lambda y: pair(x, y)))  # noqa: B023
            total = total - p * inner
        return total

    Bound(with_normal, (vector(0.3, 0.5), vector(1.3, 0.8)), expectation).check({"z": "local", "x": x})


def test_alternatives_of_the_evidence_lower_bound() -> None:
    bits(1).check("local")


def test_pathwise_alone() -> None:
    """One Normal, two draws."""

    def program(phi: Tensor, w: Tensor, batch: int) -> Tensor:
        p, v = phi.expand(batch, 2), w.expand(batch, 1)
        law = Normal(p[..., 0], p[..., 1])
        x = sample(law, "x")
        return -propc.bound(torch.cos(v[..., 0] * x) - law.log_prob(x))

    def expectation(phi: Tensor, w: Tensor) -> Tensor:
        law = Normal(phi[0], phi[1])

        def weight(x: Tensor) -> Tensor:
            return torch.cos(w[0] * x) - law.log_prob(x)

        def pair(x: Tensor, y: Tensor) -> Tensor:
            return -log_mean_exp(torch.broadcast_tensors(weight(x), weight(y)))

        return expect(law, lambda x: expect(law, lambda y: pair(x, y)))

    problem = Bound(program, (vector(0.4, 0.8), vector(1.7)), expectation)
    for estimator in (propc.estimator("rp", samples=2), lr(2), vimco(2)):
        problem.check(estimator)
    single = problem.draws("rp")
    assert_rejected(single, problem.exact)


def test_beside_another_cost() -> None:
    """The other cost is a mean, and hears nothing of the bound."""

    def program(phi: Tensor, w: Tensor, batch: int) -> Tensor:
        p, v = phi.expand(batch, 2), w.expand(batch, 2)
        q = Bernoulli(logits=p)
        z = sample(q, "z")
        bound = propc.bound(log_joint(z, v) - q.log_prob(z).sum(-1), "iwae")
        return propc.cost((z.sum(-1) - v[..., 0]).square(), "penalty") - 2 * bound

    def expectation(phi: Tensor, w: Tensor) -> Tensor:
        def penalty(choose: Choose) -> Tensor:
            return (torch.stack([choose(Bernoulli(logits=logit)) for logit in phi]).sum() - w[0]).square()

        return 2 * by_tuples(one_of_two_bits, 2)(phi, w) + enumerate_outcomes(penalty)

    for estimator in (vimco(2), lr(2, baseline=None)):
        Bound(program, (PHI, W), expectation).check(estimator)


def test_a_site_without_the_batch() -> None:
    """One latent vector for all rows; each row has a bound."""
    data = vector(0.5, -1.0, 0.2)

    def program(phi: Tensor, w: Tensor) -> Tensor:
        q = Bernoulli(logits=phi)
        z = sample(q, "z")
        return -propc.bound(log_joint(z, w + data[:, None]) - q.log_prob(z).sum(-1))

    def expectation(phi: Tensor, w: Tensor) -> Tensor:
        return torch.stack([by_tuples(one_of_two_bits, 2)(phi, w + shift) for shift in data]).mean()

    compiled = propc.compile(program, estimator=vimco(2))
    draws = []
    for _ in range(10_000):
        phi, w = PHI.clone().requires_grad_(), W.clone().requires_grad_()
        draws.append(torch.cat(torch.autograd.grad(compiled(phi, w).mean(), (phi, w))))
    check(torch.stack(draws), gradient(expectation, PHI, W), twin=1.2)


# -- second derivatives -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vimco", "lr", "none"])
def test_second_derivatives(name: str) -> None:
    """In encoder and decoder at once."""

    def joined(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, 4)
        return two_bits(p[..., :2], p[..., 2:], batch)

    theta = torch.cat([PHI, W])
    exact = hessian(lambda p: by_tuples(one_of_two_bits, 3)(p[:2], p[2:]), theta)
    draws = hessian_draws(propc.compile(joined, estimator=SCORES[name](3)), theta, rows=400_000)
    check(draws, exact, twin=1.25)


# -- numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [vimco(4), lr(4), lr(4, baseline=None)])
def test_extreme_weights(estimator: Any) -> None:
    """Log weights of thousands, and weights of zero."""

    def program(theta: Tensor, batch: int) -> Tensor:
        z = sample(Bernoulli(logits=theta.expand(batch, 2)), "z")
        low = torch.where(z.sum(-1) == 2, -torch.inf, -4000.0 * z[..., 0])
        return -propc.bound(low + 3000 + theta.expand(batch, 2)[..., 1] * z[..., 1])

    theta = vector(-1.0, -0.5).requires_grad_()
    torch.manual_seed(3)
    loss = propc.compile(program, estimator=estimator)(theta, batch=50)
    assert loss.max() < -2900
    (found,) = torch.autograd.grad(loss.sum(), theta)
    assert torch.isfinite(found).all()

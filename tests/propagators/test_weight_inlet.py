"""A token of the user's weights of costs: what arrives at it, wherever site and costs stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import propc
from propc.estimators import NoBaseline
from propc.propagators import WEIGHT, Baseline, Draw, SitePropagator, row_log_prob, token
from propc.types import Plate

pytestmark = pytest.mark.usefixtures("plain")

B = 6


@dataclass(frozen=True)
class WeightToLoc(SitePropagator):
    """The gradient in the location is the sum of the weights, plus `share` of that of the likelihood ratio."""

    name: ClassVar[str] = "weight-to-loc"
    traceable: ClassVar[bool] = True  # type: ignore[assignment]
    by_element: ClassVar[bool] = True
    samples: int = 1

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        return (WEIGHT,)

    def plate(self, site: Any, batched: bool) -> Plate | None:
        return Plate(site.name, self.samples) if self.samples > 1 else None

    def draw(self, site: Any, phi: Any, tangents: Any) -> Draw:
        dist = site.build(phi)
        with torch.no_grad():
            value = dist.sample(site.sample_shape)
        loc = dist.mean.expand(value.shape)
        rows = loc.flatten(site.lead).sum(site.lead) if loc.dim() > site.lead else loc
        return Draw(value, (token(rows),))


@dataclass(frozen=True)
class Both(WeightToLoc):
    """The likelihood ratio, and the weights to the location."""

    name: ClassVar[str] = "both"

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        return NoBaseline(), WEIGHT

    def draw(self, site: Any, phi: Any, tangents: Any) -> Draw:
        drawn = super().draw(site, phi, tangents)
        return Draw(drawn.value, (token(row_log_prob(site.build(phi), drawn.value, site.lead)), *drawn.tokens))


backends = pytest.mark.parametrize("backend", ["eager", "inductor"])


def arrived(
    program: Callable[..., Any], backend: str, rule: SitePropagator, loss: Callable[[Any], Tensor], *shape: int
) -> Tensor:
    theta = torch.zeros(B, *shape, requires_grad=True)
    estimator = {"x*": rule, "*": propc.estimator("lr", baseline=None)}
    compiled = propc.compile(program, estimator=estimator, backend=backend)
    for _ in range(3):
        (found,) = torch.autograd.grad(loss(compiled(theta)), theta)
    return found


W = torch.linspace(0.5, 2, B, dtype=torch.float64)


def sample(theta: Tensor, name: str) -> Tensor:
    return propc.sample(Normal(theta, 1.0), name)


@backends
def test_weights_of_several_costs_add_up(backend: str) -> None:
    def program(theta: Tensor) -> Any:
        x = sample(theta, "x")
        return x.square(), x.exp()

    found = arrived(program, backend, WeightToLoc(), lambda c: (W * c[0]).sum() + 3 * c[1].sum())
    torch.testing.assert_close(found, W + 3)


@backends
def test_terms_of_a_sum_are_costs_each(backend: str) -> None:
    def program(theta: Tensor) -> Tensor:
        x0 = sample(theta, "x0")
        x1 = sample(x0.detach() + theta, "x1")
        return x0.square() + x1.square() + theta  # the last one reaches no site

    found = arrived(program, backend, WeightToLoc(), lambda c: (W * c).sum())
    torch.testing.assert_close(found, 2 * W + W + W)


@backends
def test_beside_the_message(backend: str) -> None:
    def program(theta: Tensor) -> Any:
        x = propc.sample(Independent(Normal(theta, 1.0), 1), "x")
        return x.square().sum(-1), x.detach()

    theta = torch.zeros(B, 2, requires_grad=True)
    compiled = propc.compile(program, estimator={"x": Both()}, backend=backend)
    for _ in range(3):
        cost, x = compiled(theta)
        (found,) = torch.autograd.grad((W * cost).sum(), theta)
    torch.testing.assert_close(found, W[:, None] * (cost.detach()[:, None] * x + 1))


@backends
def test_in_a_plate_of_another_site(backend: str) -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Normal(torch.zeros(B), 1.0), "z", estimator=propc.estimator("lr", samples=4))
        return sample(theta, "x") * z

    torch.testing.assert_close(arrived(program, backend, WeightToLoc(), lambda c: (W * c).sum()), W)


@backends
def test_in_a_plate_of_its_own(backend: str) -> None:
    found = arrived(lambda theta: sample(theta, "x").square(), backend, WeightToLoc(5), lambda c: (W * c).sum())
    torch.testing.assert_close(found, W)


@backends
def test_outside_of_a_plate_behind_it(backend: str) -> None:
    def program(theta: Tensor) -> Tensor:
        x = sample(theta, "x")
        return propc.sample(Normal(x, 1.0), "z", estimator=propc.estimator("lr", samples=4)) + 1

    torch.testing.assert_close(arrived(program, backend, WeightToLoc(), lambda c: (W * c).sum()), W)


@backends
def test_of_a_bound(backend: str) -> None:
    """A bound is one cost, in which all samples have part: each hears its weight."""
    found = arrived(lambda theta: propc.bound(sample(theta, "x")), backend, WeightToLoc(5), lambda c: (W * c).sum())
    torch.testing.assert_close(found, 5 * W)
    found = arrived(lambda theta: propc.bound(sample(theta, "x")), backend, Both(1), lambda c: (W * c).sum())
    assert found.shape == W.shape


@backends
def test_in_a_plate_of_the_data(backend: str) -> None:
    def program(theta: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            x = sample(theta, "x")
            return propc.cost(x.square(), "c").sum(-1)

    found = arrived(program, backend, WeightToLoc(), lambda c: (W * c).sum(), 3)
    torch.testing.assert_close(found, W[:, None].expand(B, 3))


@backends
def test_in_a_scan(backend: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.scan(lambda x: sample(theta + 0 * x, "x"), torch.zeros(B), 20).square()

    graph = propc.compile(program, estimator={"x*": WeightToLoc()}).graph(torch.zeros(B, requires_grad=True))
    assert "scan" in str(graph)
    torch.testing.assert_close(arrived(program, backend, WeightToLoc(), lambda c: (W * c).sum()), 20 * W)
    assert arrived(program, backend, Both(), lambda c: (W * c).sum()).isfinite().all()


def test_second_derivatives_leave_weights_alone() -> None:
    """L·exp(τ) + ω: the derivative of the gradient is that of the costs' part."""

    def program(theta: Tensor) -> Tensor:
        return sample(theta.square(), "x").square()

    theta = torch.full((B,), 0.7, requires_grad=True)
    second = []
    for rule in (Both(), propc.estimator("lr", baseline=None)):
        torch.manual_seed(0)
        costs = propc.compile(program, estimator={"x": rule})(theta)
        (first,) = torch.autograd.grad((W * costs).sum(), theta, create_graph=True)
        second.append(torch.autograd.grad(first.sum(), theta)[0])
    torch.testing.assert_close(second[0] - second[1], 2 * W)  # of ω = θ², the weight apart
    alone = propc.compile(program, estimator={"x": WeightToLoc()})(theta)
    (first,) = torch.autograd.grad((W * alone).sum(), theta, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(first.sum(), theta)[0], 2 * W)


def test_among_messages_of_other_nodes() -> None:
    """Where nodes are visited one by one, the cost's own step sends the weight."""
    told = propc.Field("told")

    class Tells(propc.Propagator):
        sends = (propc.messages.GRAD, told)

        def backward(self, node: propc.NodeView, message: propc.Message) -> Any:
            return message.replace(told=1.0)

    def program(theta: Tensor) -> Tensor:
        x = sample(propc.node(theta, "a", propagator="scale"), "x")
        return propc.node(x, "b", propagator=Tells()).square()

    compiled = propc.compile(program, estimator={"x": WeightToLoc()})
    theta = torch.zeros(B, requires_grad=True)
    assert compiled.graph(theta).general
    (found,) = torch.autograd.grad((W * compiled(theta)).sum(), theta)
    torch.testing.assert_close(found, W)


def test_its_route_says_so() -> None:
    graph = propc.compile(lambda t: sample(t, "x").square(), estimator={"x": Both()}).graph(
        torch.zeros(B, requires_grad=True)
    )
    assert "cost  -> x/1  [score: weight]" in str(graph)
    assert graph.to_dot()


def test_what_is_refused() -> None:
    theta = torch.zeros(B, requires_grad=True)
    inside = propc.propagators.Sequence(inner=WeightToLoc())
    with pytest.raises(propc.EstimatorError, match=r"site 'x' .*takes the weights of costs, which do not travel"):
        propc.compile(lambda t: sample(t, "x").square(), estimator={"x": inside})(theta)

    lossy = propc.passes.Attach({"c": "loss"})
    with pytest.raises(propc.EstimatorError, match=r"site 'x' .*cost 'c' has a propagator"):
        propc.compile(
            lambda t: propc.cost(sample(t, "x").square(), "c"), estimator={"x": WeightToLoc()}, passes=[lossy]
        )(theta)

    def shaped(theta: Tensor) -> Tensor:
        x = propc.sample(Independent(Normal(theta[:, None].expand(B, 2), 1.0), 1), "x")
        y = propc.sample(Independent(Normal(x, 1.0), 1), "y")
        return y.square().sum(-1)

    refit = propc.passes.GaussianShaping(at="y")

    with pytest.raises(propc.EstimatorError, match="sends shaped messages in their place"):
        propc.compile(shaped, estimator={"x": WeightToLoc(), "y": "lr"}, passes=[refit])(theta)
    with pytest.raises(propc.PropcValueError, match="WEIGHT is no baseline"):
        propc.estimator("lr", baseline=WEIGHT)

"""A compiled program draws the numbers of the plain one, under every distribution."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from side_by_side import B, param, same
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ComposeTransform,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    HalfNormal,
    Independent,
    Kumaraswamy,
    Laplace,
    LogisticNormal,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    Pareto,
    Poisson,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    SigmoidTransform,
    StudentT,
    TanhTransform,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
    Wishart,
    constraints,
)

import propc

LAWS: dict[str, Callable[[Tensor], Distribution]] = {
    "normal": lambda a: Normal(a, a.exp()),
    "normal-number": lambda a: Normal(a, 0.5),
    "independent": lambda a: Independent(Normal(a[:, None].expand(-1, 3), 1.0), 1),
    "log-normal": lambda a: LogNormal(a, 0.5),
    "gamma": lambda a: Gamma(a, 2 * a),
    "beta": lambda a: Beta(a, 2 * a),
    "dirichlet": lambda a: Dirichlet(a[:, None] * torch.arange(1.0, 4.0)),
    "student": lambda a: StudentT(3 + a, a, 1.0),
    "chi2": lambda a: Chi2(a),
    "exponential": lambda a: Exponential(a),
    "laplace": lambda a: Laplace(a, 1.0),
    "cauchy": lambda a: Cauchy(a, 1.0),
    "gumbel": lambda a: Gumbel(a, 1.0),
    "half-normal": lambda a: HalfNormal(a),
    "uniform": lambda a: Uniform(-a, a),
    "weibull": lambda a: Weibull(a, 1.5),
    "pareto": lambda a: Pareto(a, 3.0),
    "kumaraswamy": lambda a: Kumaraswamy(a, 2.0),
    "logistic-normal": lambda a: LogisticNormal(a[:, None].expand(-1, 2), torch.ones(2)),
    "mvn": lambda a: MultivariateNormal(a[:, None].expand(-1, 2), torch.eye(2) * 2),
    "mvn-tril": lambda a: MultivariateNormal(torch.zeros(2), scale_tril=a[:, None, None] * torch.eye(2)),
    "mvn-checked": lambda a: MultivariateNormal(a[:, None].expand(-1, 2), torch.eye(2) * 2, validate_args=True),
    "mvn-precision": lambda a: MultivariateNormal(a[:, None].expand(-1, 2), precision_matrix=torch.eye(2)),
    "low-rank": lambda a: LowRankMultivariateNormal(torch.zeros(3), a[:, None, None].expand(-1, 3, 1), torch.ones(3)),
    "relaxed-bernoulli": lambda a: RelaxedBernoulli(torch.tensor(0.5), logits=a),
    "relaxed-one-hot": lambda a: RelaxedOneHotCategorical(torch.tensor(0.5), logits=a[:, None] * torch.ones(3)),
    "straight-through": lambda a: OneHotCategoricalStraightThrough(logits=a[:, None] * torch.arange(3.0)),
    "transformed": lambda a: TransformedDistribution(
        Normal(a, 1.0), [AffineTransform(a, 2.0), SigmoidTransform(), ComposeTransform([TanhTransform()])]
    ),
    "nested": lambda a: Independent(
        TransformedDistribution(Independent(Normal(a[:, None].expand(-1, 2), 1.0), 1), AffineTransform(0.0, 3.0)), 0
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_compiled_pathwise_is_plain_autograd_bit_for_bit(law: str) -> None:
    def program(a: Tensor) -> Tensor:
        x = propc.sample(LAWS[law](a), "x")
        return x.reshape(B, -1).square().sum(1) * a

    # A transform that learns is passed apart from what stands before it: its two gradients are summed in another order.
    same(program, param(B), exact=law != "transformed")


SCORED: dict[str, Callable[[Tensor], Distribution]] = {
    "bernoulli-logits": lambda a: Bernoulli(logits=a),
    "bernoulli-probs": lambda a: Bernoulli(probs=torch.sigmoid(a)),
    "categorical-logits": lambda a: Categorical(logits=a[:, None] * torch.arange(3.0)),
    "categorical-probs": lambda a: Categorical(probs=torch.softmax(a[:, None] * torch.arange(3.0), -1)),
    "one-hot": lambda a: OneHotCategorical(logits=a[:, None] * torch.arange(3.0)),
    "independent-bernoulli": lambda a: Independent(Bernoulli(logits=a[:, None].expand(-1, 4)), 1),
    "poisson": lambda a: Poisson(a),
    "geometric": lambda a: Geometric(torch.sigmoid(a)),
    "binomial": lambda a: Binomial(5, logits=a),
    "negative-binomial": lambda a: NegativeBinomial(5.0, logits=a),
    "multinomial": lambda a: Multinomial(4, logits=a[:, None] * torch.arange(3.0)),
    "von-mises": lambda a: VonMises(a, 2.0),
    "mixture": lambda a: MixtureSameFamily(
        Categorical(logits=a[:, None] * torch.arange(2.0)), Normal(a[:, None] + torch.arange(2.0), 1.0)
    ),
    "mixture-mvn": lambda a: MixtureSameFamily(
        Categorical(logits=a[:, None] * torch.arange(2.0)),
        MultivariateNormal(a[:, None, None] + torch.arange(2.0)[:, None].expand(2, 3), torch.eye(3)),
    ),
}


def _score(law: Callable[[Tensor], Distribution], a: Tensor) -> tuple[Tensor, Tensor]:
    """Hand-written REINFORCE without a baseline, from the current seed."""
    dist = law(a)
    with torch.no_grad():
        x = dist.rsample() if dist.has_rsample else dist.sample()
    cost = x.to(a.dtype).reshape(B, -1).square().sum(1)
    logp = dist.log_prob(x)
    return cost, torch.autograd.grad((cost * logp.reshape(B, -1).sum(1)).sum(), a)[0]


NO_SCORE = "straight-through", "uniform", "pareto"  # a support that moves has a part of the gradient


@pytest.mark.parametrize("law", [*SCORED, *(name for name in LAWS if name not in NO_SCORE)])
def test_compiled_score_is_the_hand_written_one(law: str) -> None:
    make = SCORED.get(law) or LAWS[law]

    @propc.compile(estimator=propc.estimator("lr", baseline=None))
    def program(a: Tensor) -> Tensor:
        x = propc.sample(make(a), "x")
        return x.to(a.dtype).reshape(B, -1).square().sum(1)

    a = param(B)
    torch.manual_seed(2)
    cost, grad = _score(make, a)
    torch.manual_seed(2)
    mine = program(a)
    assert torch.equal(cost, mine)
    assert torch.allclose(torch.autograd.grad(mine.sum(), a)[0], grad, rtol=1e-10)


class Box:
    """Holds what is put into it."""


class Shifted(Distribution):
    """A user's law with state in a list and in an object of its own."""

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, validate_args: bool | None = None) -> None:
        self.loc = loc
        self.parts = [loc * 2, {"deep": (loc * 3,)}]
        self.box = Box()
        self.box.inner = Box()
        self.box.inner.things = [loc.exp()]
        super().__init__(loc.shape, validate_args=validate_args)

    def _law(self) -> Normal:
        return Normal(self.loc + self.parts[0] + self.parts[1]["deep"][0], self.box.inner.things[0])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._law().rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._law().log_prob(value)


@pytest.mark.parametrize("validate", [True, None])
def test_user_written_distributions(validate: bool | None) -> None:
    same(lambda a: propc.sample(Shifted(a, validate), "x").square(), param(B))
    a = param(B)
    torch.manual_seed(2)
    _, grad = _score(Shifted, a)
    torch.manual_seed(2)
    mine = propc.compile(
        lambda a: propc.sample(Shifted(a, validate), "x").square(), estimator=propc.estimator("lr", baseline=None)
    )(a)
    assert torch.allclose(torch.autograd.grad(mine.sum(), a)[0], grad, rtol=1e-10)


class Coupling(torch.distributions.Transform):
    """A flow step with a network inside."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def _call(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a, b + self.net(a)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        a, b = y.chunk(2, -1)
        return torch.cat([a, b - self.net(a)], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


def test_a_normalizing_flow_with_a_network_inside() -> None:
    net = nn.Linear(1, 1)

    def program(a: Tensor) -> Tensor:
        law = TransformedDistribution(Independent(Normal(a[:, None].expand(-1, 2), 1.0), 1), [Coupling(net)])
        z = propc.sample(law, "z")
        return z.square().sum(-1) + law.log_prob(z)

    same(program, param(B), wrt=tuple(net.parameters()))
    compiled = propc.compile(lambda a: program(a), estimator=propc.estimator("lr", baseline=None))
    compiled(param(B)).sum().backward()
    assert net.weight.grad is not None


def test_unmarked_draws_are_drawn_anew_and_as_in_the_plain_program() -> None:
    drop = nn.Dropout(0.5)
    generator = torch.Generator().manual_seed(1)

    def program(a: Tensor) -> Tensor:
        noise = torch.randn(B) + torch.rand_like(a) + torch.empty(B).uniform_() + torch.randint(3, (B,))
        torch.rand(2)  # unused, but it moves the stream
        x = propc.sample(Normal(a, 1.0), "x")
        y = Normal(a, 1.0).rsample() + Normal(a, 1.0).sample() + Bernoulli(torch.sigmoid(a)).sample()
        z = Gamma(a, 1.0).rsample() + Beta(a, 1.0).rsample() + torch.normal(a, 1.0) + torch.bernoulli(a / 2)
        return noise + y + z + drop(x) + F.dropout(x, 0.2) + torch.randperm(B) + F.gumbel_softmax(a[None])[0]

    compiled = same(program, param(B))
    a = param(B)
    assert not torch.equal(compiled(a), compiled(a))
    own = propc.compile(lambda a: a + torch.randn(B, generator=generator))
    assert not torch.equal(own(a), own(a))


def test_tracing_draws_nothing() -> None:
    @propc.opaque(gradient=None)
    def noisy(t: Tensor) -> Tensor:
        return t + torch.randn(B) + random.random() + float(np.random.rand())

    def program(a: Tensor) -> Tensor:
        x = propc.sample(Gamma(a, 1.0), "x") + torch.randn(B) + F.dropout(a) + Normal(a, 1.0).sample()
        return x + noisy(x)

    compiled = propc.compile(program, estimator="lr")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    compiled.graph(param(B))
    compiled.graphs(param(B))
    compiled.explain(param(B))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


def test_the_first_call_draws_what_later_calls_draw() -> None:
    for estimator in ("rp", "lr", "tp"):
        compiled = propc.compile(lambda a: propc.sample(Normal(a, 1.0), "x").square(), estimator=estimator)
        a, grads = param(B), []
        for _ in range(3):
            torch.manual_seed(5)
            cost = compiled(a)
            grads.append((cost, torch.autograd.grad(cost.sum(), a)[0], torch.get_rng_state()))
        for again in grads[1:]:
            assert all(torch.equal(x, y) for x, y in zip(grads[0], again))


@pytest.mark.slow
def test_compiling_a_long_loop_does_not_grow_with_its_square() -> None:
    def program(x: Tensor, steps: int) -> Tensor:
        for t in range(steps):
            x = propc.sample(Normal(torch.tanh(x), 0.1), f"x{t}")
        return x.square()

    def seconds(steps: int) -> float:
        start = time.process_time()
        compiled(param(B), steps).sum().backward()
        return time.process_time() - start

    compiled = propc.compile(program, estimator="tp")
    seconds(10)
    assert seconds(1000) < 8 * seconds(250)  # 4 where it grows evenly, 16 with the square


@pytest.mark.filterwarnings("ignore:Singular sample")
def test_a_law_that_asks_whether_any_parameter_is_wrong() -> None:
    def program(a: Tensor) -> Tensor:
        x = propc.sample(Wishart(torch.tensor(5.0), scale_tril=torch.eye(2) * a[:, None, None]), "x")
        return x.diagonal(dim1=1, dim2=2).sum(1)

    same(program, param(B))


def test_other_threads_may_draw() -> None:
    compiled = propc.compile(lambda a: propc.sample(Normal(a, 1.0), "x").square(), estimator="lr")
    errors: list[BaseException] = []

    def step(rows: int) -> None:
        try:
            for extra in range(5):
                compiled(param(rows + 10 * extra)).sum().backward()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=step, args=(rows,)) for rows in (3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors

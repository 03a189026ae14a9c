"""Values at run time that no estimate can be made of: the error names the site or the cost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mistakes import B, normal, refused, run
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Dirichlet,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform
from zoo import leaf

import propc

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


LAWS: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "scale": (lambda t: Normal(torch.zeros(B), t), ("'scale'", "-0.6", "softplus")),
    "nan": (lambda t: Normal(t * torch.nan, 1.0), ("'loc'", "nan")),
    "number": (lambda t: Normal(t, -1.0), ("'scale'", "-1")),
    "probs": (lambda t: Bernoulli(probs=t + 2), ("'probs'", "1.4")),
    "categorical": (lambda t: Categorical(probs=torch.stack([t, t.square()], 1)), ("'probs'",)),
    "logits": (lambda t: Categorical(logits=torch.stack([t, t * torch.nan], 1)), ("'logits'", "nan")),
    "concentration": (lambda t: Dirichlet(torch.stack([t, t], 1)), ("'concentration'",)),
    "independent": (lambda t: Independent(Normal(t[:, None], t[:, None]), 1), ("scale'",)),
    "transformed": (lambda t: TransformedDistribution(Normal(t.exp(), t), AffineTransform(0.0, 1.0)), ("scale'",)),
    "tril": (lambda t: MultivariateNormal(torch.zeros(2), scale_tril=t[:, None, None] * torch.eye(2)), ("tril'",)),
}


@pytest.mark.parametrize("estimator", ["lr", "infer"])
@pytest.mark.parametrize("law", LAWS)
def test_invalid_parameters_name_the_site(law: str, estimator: str) -> None:
    make, words = LAWS[law]

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(make(theta.expand(B)), "z")
        return x.double().reshape(B, -1).sum(1)

    compiled = propc.compile(program, estimator=estimator)
    for _ in range(2):
        refused(
            propc.NonFiniteError,
            lambda: compiled(leaf(-0.6)),
            "site 'z'",
            "must satisfy",
            *words,
            program=program,
            at="sample",
        )
    state = copy.deepcopy(compiled.state_dict())
    if law in ("scale", "concentration", "independent", "transformed", "tril"):
        compiled(leaf(0.6)).sum().backward()
    assert list(state) == list(compiled.state_dict())


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
@pytest.mark.parametrize(("factor", "word"), [(torch.nan, "NaN"), (torch.inf, "infinite")])
def test_costs_that_are_not_finite(estimator: str, factor: float, word: str) -> None:
    def program(theta: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = normal(theta, "z")
        return {"good": x, "bad": propc.cost(x.square() * scale, "bad")}

    compiled = propc.compile(program, estimator=estimator)
    compiled(leaf(), torch.tensor(1.0))
    refused(
        propc.NonFiniteError,
        lambda: compiled(leaf(), torch.tensor(factor)),
        "cost 'bad'",
        f"6 of 6 values are {word}",
        "validate=False",
        program=program,
        at="propc.cost",
    )
    theta = leaf()
    compiled(theta, torch.tensor(1.0))["bad"].sum().backward()
    assert torch.isfinite(theta.grad)
    loose = propc.compile(program, estimator=estimator, validate=False)
    assert not torch.isfinite(loose(leaf(), torch.tensor(factor))["bad"]).any()


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_a_part_without_a_site_that_is_not_finite(estimator: str) -> None:
    """It is no part of the cost that sites hear of."""

    def program(theta: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"loss": normal(theta, "z").square() + theta / scale}

    compiled = propc.compile(program, estimator=estimator)
    compiled(leaf(), torch.tensor(1.0))
    words = "returned value ['loss']", "6 of 6 values are infinite", "validate=False"
    refused(propc.NonFiniteError, lambda: compiled(leaf(), torch.tensor(0.0)), *words, program=program, at="def")
    large = torch.tensor(1e-38)  # so that the sum overflows, which no value does
    assert torch.isfinite(compiled(leaf(2.0), large)["loss"]).all()


def test_a_gradient_into_what_is_no_cost() -> None:
    def program(theta: Tensor) -> dict[str, Tensor]:
        x = normal(theta, "z")
        return {"loss": x, "table": torch.stack([x * theta, x], 1)}

    out = propc.compile(program, estimator="lr")(leaf())
    refused(
        propc.PropcValueError,
        lambda: out["table"].sum().backward(),
        "['table']",
        "'z'",
        "estimator='rp'",
        program=program,
        at="def program",
    )
    theta = leaf()
    propc.compile(program, estimator="rp")(theta)["table"].sum().backward()
    assert theta.grad is not None


@pytest.mark.parametrize("estimator", ["rp", "infer"])
def test_bounds_that_are_parameters_are_checked(estimator: str) -> None:
    """low < high of a Uniform, at every call."""
    from torch.distributions import Uniform

    compiled = propc.compile(
        lambda low, high: propc.sample(Uniform(low, high), "u").square().sum(-1), estimator=estimator
    )
    low = torch.zeros(4, 2, requires_grad=True)
    assert compiled(low, low.detach() + 1).shape == (4,)
    with pytest.raises(propc.NonFiniteError, match=r"site 'u' .*must satisfy"):
        compiled(low, low.detach() - 1)
    assert compiled(low, low.detach() + 2).isfinite().all()


def test_a_scalar_cost_beside_one_for_each_sample() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        z = propc.sample(Bernoulli(logits=theta.expand(B)), "z")
        return z * theta, z.sum()

    refused(
        propc.EstimatorError,
        run(program, estimator="lr"),
        "site 'z'",
        "cost 'cost1' is a scalar",
        program=program,
        at="sample",
    )


@pytest.mark.parametrize("target", [None, "theta"])
@pytest.mark.parametrize("weights", ["same", "crossfit", "past"])
def test_a_derivative_that_is_not_finite_leaves_the_other_part(weights: str, target: str | None) -> None:
    """Total propagation gives such a part no weight, at the site and at a target; what is left is the other part."""

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(20), 1.0), "x")
        return (x * 0).abs().sqrt() + x.square()

    found = []
    for estimator in (
        propc.estimator("tp", weights=weights, target=target, baseline=None),
        propc.estimator("lr", baseline=None),
    ):
        theta = leaf()
        torch.manual_seed(0)
        propc.compile(program, estimator=estimator)(theta).sum().backward()
        found.append(theta.grad)
    assert torch.allclose(*found)

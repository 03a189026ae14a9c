"""Multi-sample bounds in the graph: where they are reduced, where messages begin, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws_and_estimators import lr, vimco
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.errors import EstimatorError, PropcTypeError, PropcValueError
from propc.ir import BATCH, LOG_MEAN_EXP, Cost, Reduce
from propc.propagators.baselines import Baseline, GeometricMean, LeaveOneOut, MovingAverage, NoBaseline

B = 5
THETA = torch.tensor([0.3, -0.4], dtype=torch.float64)


def param() -> Tensor:
    return THETA.clone().requires_grad_()


def log_weight(theta: Tensor) -> Tensor:
    q = Bernoulli(logits=theta.expand(B, 2))
    z = propc.sample(q, "z")
    return (z * theta.square()).sum(-1) - q.log_prob(z).sum(-1)


def bounded(theta: Tensor) -> Tensor:
    return -propc.bound(log_weight(theta), "iwae")


def two_sites(theta: Tensor) -> Tensor:
    z = propc.sample(Bernoulli(logits=theta.expand(B, 2)), "z")
    x = propc.sample(Normal(z * theta, 0.5), "x")
    return -propc.bound(x.square().sum(-1) * theta[0])


# -- the graph ----------------------------------------------------------------------------


def test_a_bound_is_reduced_at_once() -> None:
    graph = propc.compile(two_sites, estimator={"z": vimco(3), "x": lr(4)}).graph(param())
    (cost,), (reduce,) = graph.of(Cost), graph.of(Reduce)
    assert (cost.how, cost.plates) == (LOG_MEAN_EXP, ("x", "z"))
    assert (reduce.name, reduce.over, reduce.plates) == ("bound0/log-mean-exp", ("x", "z"), ())
    assert "log-mean-exp(%bound0) over x, z" in str(graph)
    assert "bound(%bound0.in)" in str(graph)
    assert {(route.source, route.over) for route in graph.routes} == {(reduce.name, ("x",)), (reduce.name, ("z",))}
    assert "log-mean-exp over x, z" in graph.to_dot()


def test_one_sample_leaves_nothing_to_reduce() -> None:
    graph = propc.compile(bounded, estimator="lr").graph(param())
    assert not graph.of(Reduce)
    assert [route.source for route in graph.routes] == ["iwae"]


def test_sites_in_other_plates_have_routes_of_their_own() -> None:
    """A site without a plate takes its baseline along the batch."""
    graph = propc.compile(two_sites, estimator={"z": lr(), "x": lr(4)}).graph(param())
    assert {route.targets[0].site: route.over for route in graph.routes} == {"z": (BATCH,), "x": ("x",)}
    shared = propc.compile(two_sites, estimator=vimco(4)).graph(param())
    (route,) = shared.routes
    assert [str(token) for token in route.targets] == ["z", "x"]
    assert isinstance(route.baseline, GeometricMean)


# -- values -------------------------------------------------------------------------------


def test_the_value() -> None:
    """log 1/K Σ w_k, K times the same draws."""
    torch.manual_seed(0)
    value = propc.compile(bounded, estimator=vimco(3))(param())
    torch.manual_seed(0)
    law = Bernoulli(logits=THETA.expand(B, 2))
    z = law.sample((3,))
    weights = (z * THETA.square()).sum(-1) - law.log_prob(z).sum(-1)
    torch.testing.assert_close(value.detach(), math.log(3) - torch.logsumexp(weights, 0))


def test_without_gradients_the_value_is_the_same() -> None:
    for estimator in (vimco(4), lr(4), "enumerate"):
        compiled = propc.compile(bounded, estimator=estimator)
        values = []
        for theta in (THETA, param()):
            torch.manual_seed(0)
            values.append(compiled(theta).detach())
        torch.testing.assert_close(*values)


def test_the_gradient_by_hand() -> None:
    """Of four rows with one seed: the bound's own gradient, and each sample's score times its message."""
    theta = param()
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(propc.compile(bounded, estimator=vimco(3))(theta).sum(), theta)
    torch.manual_seed(0)
    law = Bernoulli(logits=theta.expand(B, 2))
    z = law.sample((3,))
    score = law.log_prob(z).sum(-1)
    weights = (z * theta.square()).sum(-1) - score
    bound = torch.logsumexp(weights, 0) - math.log(3)
    surrogate = bound.sum()
    for k in range(3):
        others = [j for j in range(3) if j != k]
        stand_in = weights[others].mean(0, keepdim=True)
        without = torch.logsumexp(torch.cat([weights[others], stand_in]), 0) - math.log(3)
        surrogate = surrogate + ((bound - without).detach() * score[k]).sum()
    torch.testing.assert_close(found, -torch.autograd.grad(surrogate, theta)[0])


def test_chunks_give_the_same() -> None:
    found = []
    for chunk in (None, 1, 3):
        theta = param()
        torch.manual_seed(0)
        loss = propc.compile(bounded, estimator=vimco(4, chunk=chunk))(theta)
        found.append(torch.autograd.grad(loss.mean(), theta)[0])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_the_bound_itself_can_be_returned_too() -> None:
    def program(theta: Tensor) -> dict[str, Tensor]:
        bound = propc.bound(log_weight(theta))
        return {"loss": 3 - 2 * bound, "bound": bound}

    theta = param()
    returned = propc.compile(program, estimator=vimco())(theta)
    torch.testing.assert_close(returned["loss"], 3 - 2 * returned["bound"])
    torch.autograd.grad(returned["loss"].mean(), theta)


def test_propagate_gives_the_same_gradient() -> None:
    for estimators in (vimco(3), {"z": vimco(3), "x": propc.estimator("rp", samples=2)}, {"z": lr(), "x": lr(3)}):
        compiled, theta = propc.compile(two_sites, estimator=estimators), param()
        torch.manual_seed(0)
        (wanted,) = torch.autograd.grad(compiled(theta).mean(), theta)
        torch.manual_seed(0)
        found = compiled.propagate("backward", None, theta).messages["theta"].grad
        torch.testing.assert_close(found, wanted)


def test_outside_a_compiled_function() -> None:
    value = torch.randn(3)
    assert propc.bound(value) is value


@pytest.mark.parametrize(
    ("budget", "batch", "chosen"),
    [(1, B, LeaveOneOut), (1, 1, NoBaseline), (4, B, GeometricMean), (4, 1, GeometricMean)],
)
def test_infer_keeps_to_samples(budget: int, batch: int, chosen: type[Baseline]) -> None:
    """Enumerating a site of four configurations would return another bound."""

    def program(theta: Tensor) -> Tensor:
        return propc.bound(propc.sample(Bernoulli(logits=theta.expand(batch, 2)), "z").sum(-1))

    graph = propc.compile(program, estimator=propc.estimator("infer", budget=budget)).graph(param())
    assert [type(route.baseline) for route in graph.routes] == [chosen]
    assert [plate.size for plate in graph.plates] == ([] if budget == 1 else [budget])


# -- baselines ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_baselines_leave_each_sample_out(count: int) -> None:
    """They do not move with its weight; all others move them."""
    weights = torch.randn(count, 4)
    bound = torch.logsumexp(weights, 0) - math.log(count)
    for baseline in (LeaveOneOut(), GeometricMean()):
        before = bound - baseline.center_bound(bound, weights, None)
        for k in range(count):
            changed = weights.clone()
            changed[k] += 1.3
            after = bound - baseline.center_bound(bound, changed, None)
            torch.testing.assert_close(after[k], before[k])
            others = [j for j in range(count) if j != k]
            assert (after[others] != before[others]).all()


def test_baselines_that_do_not_look_at_samples() -> None:
    weights, bound = torch.randn(3, 4), torch.randn(4)
    assert torch.equal(NoBaseline().center_bound(bound, weights, None), bound.expand(3, 4))
    average = MovingAverage()
    state = average.state()
    average.center(torch.full((4,), 2.0), state)
    torch.testing.assert_close(average.center_bound(bound, weights, state), (bound - 2).expand(3, 4))


# -- what is refused ----------------------------------------------------------------------


def refused(program: Callable[..., Any], estimator: Any, kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as caught:
        propc.compile(program, estimator=estimator)(param())
    for word in (*words, "test_bounds.py:"):
        assert word in str(caught.value), str(caught.value)


def test_vimco_without_a_bound() -> None:
    refused(log_weight, vimco(), EstimatorError, "site 'z'", "needs a multi-sample bound", "'rloo'")


def test_vimco_of_one_sample() -> None:
    with pytest.raises(PropcValueError, match="'vimco' has samples=1"):
        propc.estimator("vimco", samples=1)


@pytest.mark.parametrize("options", [{"samples": 0}, {"mean": "harmonic"}, {"noise": "both"}, {"chunk": 0}])
def test_bad_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(PropcValueError, match=name):
        propc.estimator("vimco", **options)


@pytest.mark.parametrize(
    "inside",
    [
        lambda bound: bound.exp(),
        lambda bound: {"loss": -bound, "shown": bound.detach()},
        lambda bound: propc.cost(-bound, "loss"),
        lambda bound: -bound.mean(),
        lambda bound: bound * bound,
    ],
)
def test_what_is_computed_from_a_bound(inside: Callable[[Tensor], Any]) -> None:
    """It would be computed from one log weight."""
    refused(
        lambda theta: inside(propc.bound(log_weight(theta), "iwae")),
        vimco(),
        PropcValueError,
        "bound 'iwae'",
        "no sum or multiple",
        "outside",
    )


def test_antithetic_samples_are_not_independent() -> None:
    refused(bounded, "disarm", EstimatorError, "bound 'iwae'", "plate of site 'z', 2 antithetic draws by 'disarm'")


def test_common_noise_between_samples() -> None:
    """A score site whose draws share random numbers: together they are not drawn from the product of its laws."""
    for x in ("lr", lr(2)):
        common = {"z": vimco(3, noise="common"), "x": x}
        refused(two_sites, common, EstimatorError, "site 'x'", "same random numbers in the samples of 'z'", "noise=")
    propc.compile(two_sites, estimator={"z": vimco(3, noise="common"), "x": "rp"})(param())


def test_alternatives_of_one_sample() -> None:
    def program(theta: Tensor) -> Tensor:
        shift = propc.sample(Bernoulli(logits=theta.expand(B, 2)), "a")
        return propc.bound((propc.sample(Bernoulli(logits=theta + shift), "z") * theta).sum(-1))

    refused(
        program, {"a": vimco(3), "z": "local"}, EstimatorError, "site 'z'", "'local' compares the costs", "is a bound"
    )


def test_total_propagation_inside() -> None:
    refused(two_sites, {"z": vimco(3), "x": "tp"}, EstimatorError, "site 'x'", "'tp' weighs rows apart", "'vimco'")


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (
            lambda theta: theta.expand(B, 2),
            PropcValueError,
            r"bound 'b'.*a bound is floating point, of shape \[batch\]",
        ),
        (lambda theta: theta.expand(B, 2).sum(-1) > 0, PropcValueError, "Convert it"),
        (lambda theta: 3.0, PropcTypeError, "a bound must be a tensor; got float 3.0"),
    ],
)
def test_no_log_weight(value: Callable[[Tensor], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        propc.compile(lambda theta: -propc.bound(value(theta), "b"))(param())

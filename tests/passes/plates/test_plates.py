"""Plates: which nodes carry which, where they end, what merges, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws_and_estimators import lr
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal

import propc
from propc.errors import EstimatorError, GraphError, PropcValueError
from propc.ir import BATCH, Cost, Plate, PlateKind, Reduce, Segment
from propc.passes import IntroducePlates, MergePlates

BATCH_SIZE = 6
THETA = torch.tensor([0.3, -0.4], dtype=torch.float64)


def two_sites(theta: Tensor, batch: int = BATCH_SIZE) -> Tensor:
    z = propc.sample(Bernoulli(logits=theta.expand(batch, 2)), "z")
    x = propc.sample(Normal(z * theta, 0.5), "x")
    return x.square().sum(-1) + theta.sum()


def param() -> Tensor:
    return THETA.clone().requires_grad_()


def graph_of(estimator: Any, program: Any = two_sites, **options: Any) -> propc.PropagationGraph:
    return propc.compile(program, estimator=estimator, **options).graph(param())


# -- introducing and merging --------------------------------------------------------------


def test_a_site_with_several_samples_introduces_a_plate() -> None:
    graph = graph_of({"z": lr(5), "x": "lr"})
    assert graph.plates == (Plate("z", 5),)
    carried = {node.name: node.plates for node in graph if node.plates}
    assert carried == {"z": ("z",), "x.in": ("z",), "x": ("z",), "cost.in": ("z",), "cost": ("z",)}
    (reduce,) = graph.of(Reduce)
    assert (reduce.name, reduce.over, reduce.plates, reduce.how) == ("cost/z", ("z",), (), "mean")


def test_equal_numbers_of_samples_share_a_plate() -> None:
    """K joint trajectories, not K^2."""
    graph = graph_of(lr(5))
    assert graph.plates == (Plate("z", 5),)
    assert [site.plate for site in graph.sites] == ["z", "z"]
    assert {route.over for route in graph.routes} == {("z",)}


@pytest.mark.parametrize("other", [lr(3), lr(5, noise="common"), lr(5, chunk=2)])
def test_different_plates_stay_apart(other: Any) -> None:
    graph = graph_of({"z": lr(5), "x": other})
    assert [plate.name for plate in graph.plates] == ["z", "x"]
    assert graph["x"].plates == graph["cost"].plates == ("x", "z")  # the last introduced outermost
    assert [(r.name, r.plates) for r in graph.of(Reduce)] == [("cost/x", ("z",)), ("cost/x/z", ())] or [
        (r.name, r.plates) for r in graph.of(Reduce)
    ] == [("cost/x", ("z",)), ("cost/z", ())]


def test_messages_begin_behind_the_plates_of_later_sites() -> None:
    """What a later plate weighs may depend on the draw, so the baseline is taken after its mean."""
    graph = graph_of({"z": lr(5), "x": lr(3)})
    routes = {route.targets[0].site: (route.source, route.over) for route in graph.routes}
    assert routes == {"x": ("cost", ("x",)), "z": ("cost/x", ("z",))}


def test_along_the_batch_where_a_site_has_no_plate_of_its_own() -> None:
    graph = graph_of({"z": "enumerate", "x": "lr"})
    assert [route.over for route in graph.routes] == [(BATCH,)]
    assert graph.plate("z") == Plate("z", 4, "configurations", weighted=True)
    assert len(graph["z"].outputs) == 2
    assert graph["z"].outputs[1].shape == (BATCH_SIZE,)


def test_what_does_not_depend_on_the_site_is_not_in_its_plate() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        z = propc.sample(Bernoulli(logits=theta.expand(BATCH_SIZE, 2)), "z")
        return (z * theta).sum(-1), theta.exp().sum().expand(BATCH_SIZE)

    graph = graph_of(lr(3), program)
    assert [(cost.name, cost.plates) for cost in graph.of(Cost)] == [("cost0", ("z",)), ("cost1", ())]
    for segment in graph.of(Segment):
        for ref in segment.made:
            influenced = bool(graph.influence.values[ref].any) and "output" not in segment.name
            assert bool(graph.plates_of(ref)) == influenced, ref


def test_one_sample_makes_no_plate() -> None:
    graph = graph_of(lr(1))
    assert graph.plates == ()
    assert IntroducePlates().apply(graph) is graph
    assert MergePlates().apply(graph) is graph


def test_chunks() -> None:
    assert graph_of(lr(5), chunk=2).plates == (Plate("z", 5, chunk=2),)
    assert graph_of(lr(5, chunk=3), chunk=2).plates == (Plate("z", 5, chunk=3),)


# -- values -------------------------------------------------------------------------------


def test_the_mean_of_the_samples_is_returned() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        z = propc.sample(Bernoulli(logits=theta.expand(BATCH_SIZE, 2)), "z")
        return z.sum(-1), z

    torch.manual_seed(0)
    cost, mean = propc.compile(program, estimator=lr(4))(param())
    torch.manual_seed(0)
    draws = Bernoulli(logits=THETA.expand(BATCH_SIZE, 2)).sample((4,))
    torch.testing.assert_close(cost.detach(), draws.sum(-1).mean(0))
    torch.testing.assert_close(mean.detach(), draws.mean(0))


def test_of_classes_the_first_draw_is_returned() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        z = propc.sample(Categorical(logits=theta.expand(BATCH_SIZE, 2)), "z")
        return theta[z], z

    torch.manual_seed(0)
    _, first = propc.compile(program, estimator=lr(4))(param())
    torch.manual_seed(0)
    assert torch.equal(first, Categorical(logits=THETA.expand(BATCH_SIZE, 2)).sample((4,))[0])
    with pytest.raises(GraphError, match=r"returned value \[1\] has no mean over the 2 configurations of site 'z'"):
        propc.compile(program, estimator="enumerate")(param())


def test_without_gradients_the_value_is_the_same() -> None:
    for estimator in (lr(4), "enumerate"):
        compiled = propc.compile(
            lambda theta: propc.sample(Bernoulli(logits=theta.expand(3, 2)), "z").sum(-1), estimator=estimator
        )
        values = []
        for theta in (THETA, param()):
            torch.manual_seed(0)
            values.append(compiled(theta).detach())
        torch.testing.assert_close(*values)


def test_enumerated_values_are_expectations() -> None:
    theta = param()
    value = propc.compile(two_sites, estimator={"z": "enumerate", "x": "rp"})(theta, batch=200_000).mean()
    p = theta.sigmoid()
    exact = (p * theta.square()).sum() + 2 * 0.25 + theta.sum()
    assert abs(value - exact) < 0.01


def test_a_scalar_cost_needs_no_batch_inside_a_plate() -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta), "z")
        return (z * theta.exp()).sum().square()

    theta = param()
    exact = propc.compile(program, estimator="enumerate")
    (wanted,) = torch.autograd.grad(exact(theta), theta)
    by_hand = THETA.clone().requires_grad_()
    total = sum(
        Bernoulli(logits=by_hand).log_prob(z).sum().exp() * (z * by_hand.exp()).sum().square()
        for z in torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 2)
    )
    assert isinstance(total, Tensor)
    torch.testing.assert_close(wanted, torch.autograd.grad(total, by_hand)[0])
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(propc.compile(program, estimator=lr(50_000))(theta), theta)
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)


def test_a_site_without_the_batch() -> None:
    """One draw for all rows: its messages are the sum over them."""

    def program(theta: Tensor, data: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta), "z")
        return (data - (z * theta).sum()).square()

    data = torch.linspace(-1, 1, 5, dtype=torch.float64)
    theta = param()
    (wanted,) = torch.autograd.grad(propc.compile(program, estimator="enumerate")(theta, data).sum(), theta)
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(propc.compile(program, estimator=lr(100_000))(theta, data).sum(), theta)
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_distributions_in_plates(estimator: str) -> None:
    """Events, shared covariances and nested distributions draw with the plates in front of their batch shape."""

    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(BATCH_SIZE, 2)), "z", estimator="enumerate")
        near = propc.sample(MultivariateNormal(z * theta, torch.eye(2, dtype=theta.dtype)), "x", estimator=estimator)
        wide = propc.sample(Independent(Normal(z + near, 0.1), 1), "y", estimator=estimator)
        return wide.square().sum(-1)

    theta = param()
    loss = propc.compile(program)(theta)
    assert loss.shape == (BATCH_SIZE,)
    (gradient,) = torch.autograd.grad(loss.mean(), theta)
    assert gradient.shape == (2,)
    assert torch.isfinite(gradient).all()


def test_a_new_plate_inside_older_ones() -> None:
    """The second site of a pair draws behind a plate that is newer than the pair."""

    def program(theta: Tensor) -> Tensor:
        p = theta.expand(BATCH_SIZE, 2)
        first = propc.sample(Bernoulli(logits=p), "a", estimator="disarm")
        middle = propc.sample(Bernoulli(logits=p), "x", estimator=lr(3))
        return (first - propc.sample(Bernoulli(logits=p - middle), "b", estimator="disarm")).square().sum(-1)

    theta = param()
    graph = propc.compile(program).graph(theta)
    assert graph["b"].plates == ("x", "a")
    torch.autograd.grad(propc.compile(program)(theta).mean(), theta)


# -- bad input ----------------------------------------------------------------------------


def refused(estimator: Any, words: str, program: Any = two_sites, kind: type[Exception] = EstimatorError) -> None:
    with pytest.raises(kind, match=words) as caught:
        propc.compile(program, estimator=estimator)(param())
    assert "test_plates.py" in str(caught.value) or kind is PropcValueError


def test_too_many_configurations() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta[0].expand(BATCH_SIZE, 20)), "z").sum(-1)

    refused("enumerate", r"site 'z' .*1,048,576 configurations.*2 values in 20 places.*budget is 10,000", program)


def test_nothing_to_enumerate() -> None:
    refused({"x": "enumerate"}, r"site 'x' .*Normal\(loc, scale\) cannot")


@pytest.mark.parametrize("estimator", ["lr", "rloo"])
def test_one_sample_and_a_leave_one_out_baseline(estimator: str) -> None:
    if estimator == "rloo":
        with pytest.raises(PropcValueError, match="'rloo' has samples=1"):
            propc.estimator("rloo", samples=1)
        return
    refused("lr", "leave-one-out baseline and a batch of 1", lambda theta: two_sites(theta, batch=1))


@pytest.mark.parametrize(
    "options", [{"samples": 0}, {"samples": 2.5}, {"samples": True}, {"noise": "shared"}, {"chunk": 0}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(PropcValueError, match=name):
        propc.estimator("lr", **options)


def test_bad_chunk() -> None:
    with pytest.raises(PropcValueError, match="chunk=0 must be a positive integer"):
        propc.compile(two_sites, chunk=0)


def test_a_target_inside_a_plate_is_refused() -> None:
    refused({"z": lr(3), "x": propc.estimator("tp", target="theta")}, r"site 'x' .*weighting target.*plate")


def test_a_propagator_of_ones_own_inside_a_plate_is_refused() -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(BATCH_SIZE, 2)), "z")
        return propc.node(z * theta, "h", propagator=propc.propagator("clip", limit=1.0)).sum(-1)

    refused(lr(3), r"node 'h' .*propagator of its own.*plate of 'z'", program)


def test_a_gaussian_refitted_inside_a_plate_is_refused() -> None:
    refused({"z": lr(3), "x": "gs"}, r"refits a Gaussian.*plate of 'z'")


def test_plates_that_multiply_to_very_many_elements_are_a_warning() -> None:
    def program(theta: Tensor) -> Tensor:
        total: Any = 0.0
        for i in range(3):
            z = propc.sample(Categorical(logits=theta[0].expand(2, 60)), f"z{i}")
            total = total + z.to(theta.dtype) if i == 0 else total * z
        return total

    with pytest.warns(propc.PropcWarning, match=r"runs on 216,000 elements.*z0\[60\] × z1\[60\] × z2\[60\]"):
        propc.compile(program, estimator="enumerate").graph(param())


def test_kinds_are_an_enumeration_and_read_as_words() -> None:
    plate = Plate("z", 4, "configurations")  # type: ignore[arg-type]
    assert plate.kind is PlateKind.CONFIGURATIONS
    assert plate == Plate("z", 4, PlateKind.CONFIGURATIONS)
    assert f"{plate.kind} {PlateKind.ANTITHETIC!s}" == "configurations antithetic draws"
    with pytest.raises(propc.PropcValueError, match=r"unknown kind 'sample' of a plate.*'samples'"):
        Plate("z", 4, "sample")  # type: ignore[arg-type]

"""`propc.plate`: where it stands, who hears of what, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal

import propc
from propc.errors import EstimatorError, GraphError, PropcTypeError, PropcValueError
from propc.ir import BATCH, DATA, Plate

B, N = 4, 3


def theta(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, N).expand(*shape, N).clone().requires_grad_()


def program(logits: Tensor) -> Tensor:
    g = propc.sample(Normal(logits.sum() + torch.zeros(B, 1), 1.0), "g")
    with propc.plate("data", dim=1):
        z = propc.sample(Bernoulli(logits=logits.expand(B, N) + g), "z")
        loss = propc.cost((z - 0.3).square() * g, "loss")
    return loss.sum(1) - z.prod(1)


def routes(compiled: Any, *args: Tensor) -> dict[tuple[str, str], tuple[str, ...]]:
    graph = compiled.graph(*args)
    return {(route.source, token.site): route.along for route in graph.routes for token in route.targets}


# -- the graph ----------------------------------------------------------------------------


def test_elements_hear_of_their_own_costs() -> None:
    compiled = propc.compile(program, estimator="lr")
    graph = compiled.graph(theta())
    assert graph.plates == (Plate("data", N, DATA),)
    assert {node.name: node.dims for node in graph if node.dims} == {"z": (BATCH, "data"), "loss": (BATCH, "data")}
    assert graph.lead(graph["z"]) == (BATCH, "data")
    assert routes(compiled, theta()) == {
        ("loss", "g"): (),
        ("loss", "z"): ("data",),
        ("cost.1", "g"): (),
        ("cost.1", "z"): (),
    }


def test_through_a_site_outside_all_hear_of_all() -> None:
    @propc.compile(estimator="lr")
    def mediated(logits: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            z = propc.sample(Bernoulli(logits=logits.expand(B, N)), "z")
        h = propc.sample(Normal(z.sum(1, keepdim=True), logits.exp()[:1]), "h")
        with propc.plate("data", dim=1):
            x = propc.sample(Normal(h + z * logits, 1.0), "x")
            loss = propc.cost(x * z, "loss")
        return loss.sum(1)

    assert routes(mediated, theta()) == {("loss", "z"): (), ("loss", "h"): (), ("loss", "x"): ("data",)}


def test_with_samples_there_are_two_kinds_of_plates() -> None:
    graph = propc.compile(program, estimator=propc.estimator("lr", samples=5)).graph(theta())
    assert graph.plates == (Plate("data", N, DATA), Plate("g", 5))
    assert graph.lead(graph["z"]) == graph.lead(graph["loss"]) == ("g", BATCH, "data")
    assert graph.lead(graph["loss/g"]) == (BATCH, "data")


def test_of_rules_that_know_no_elements_all_hear_of_all() -> None:
    for estimator in ("tp", "local", "disarm", "enumerate"):
        compiled = propc.compile(program, estimator={"z": estimator if estimator != "tp" else "local", "g": "lr"})
        graph = compiled.graph(theta())
        assert graph["z"].dims == (BATCH, "data")
        assert "data" not in graph.lead(graph["z"])
        assert all(not route.along for route in graph.routes)
        compiled(theta()).mean().backward()


def test_the_text_says_who_stands_where() -> None:
    text = str(propc.compile(program, estimator="lr").graph(theta()))
    assert "data  3 independent elements of the data" in text
    assert re.search(r"%z +float64\[4, 3\] in data +site Bernoulli", text)
    assert "loss    -> z  [score: cost by data, LeaveOneOut]" in text
    assert "in data" in propc.compile(program, estimator="lr").graph(theta()).to_dot()


def test_the_program_is_what_it_was() -> None:
    """Values are those of the plain program, with the same random numbers."""
    values = []
    for run in (program, propc.compile(program, estimator="lr")):
        torch.manual_seed(0)
        values.append(run(theta()).detach())
    torch.testing.assert_close(*values)


def test_under_rp_nothing_changes() -> None:
    """No token, no gate; the gradient is plain PyTorch's."""

    def smooth(loc: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            x = propc.sample(Normal(loc.expand(B, N), 1.0), "x")
            loss = propc.cost(x.square(), "loss")
        return loss.mean(1)

    gradients = []
    for run in (smooth, propc.compile(smooth, estimator="rp")):
        torch.manual_seed(0)
        loc = theta()
        gradients.append(torch.autograd.grad(run(loc).sum(), loc)[0])
    torch.testing.assert_close(*gradients)


# -- the gradient -------------------------------------------------------------------------


def test_the_message_of_an_element() -> None:
    """By hand: (cost of the element − its mean over the other rows) · ∇ log p of the element."""

    @propc.compile(estimator="lr")
    def simple(logits: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            z = propc.sample(Bernoulli(logits=logits.expand(B, N)), "z")
            loss = propc.cost((z + 1) * torch.arange(N) ** 2, "loss")
        return loss.sum(1)

    logits = theta()
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(simple(logits).mean(), logits)
    torch.manual_seed(0)
    z = Bernoulli(logits=logits.detach().expand(B, N)).sample()
    cost = (z + 1) * torch.arange(N) ** 2
    others = (cost.sum(0) - cost) / (B - 1)
    torch.testing.assert_close(found, ((cost - others) * (z - logits.detach().sigmoid())).mean(0))


@pytest.mark.parametrize(
    "ways",
    [
        lambda loss: loss.sum(1),
        lambda loss: loss.sum(-1) * 2 - 1,
        lambda loss: loss.mean(1, keepdim=True).squeeze(1) / 3,
        lambda loss: -(loss * torch.arange(N)).sum(1),
        lambda loss: (loss + loss.detach().new_ones(N)).flatten(1).sum(1),
        lambda loss: loss.sum(),
        lambda loss: loss,
    ],
)
def test_ways_to_add_up(ways: Callable[[Tensor], Tensor]) -> None:
    @propc.compile(estimator="lr")
    def simple(logits: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            z = propc.sample(Bernoulli(logits=logits.expand(B, N)), "z")
            loss = propc.cost(z.cos(), "loss")
        return ways(loss)

    assert routes(simple, theta()) == {("loss", "z"): ("data",)}
    logits = theta()
    assert torch.autograd.grad(simple(logits).sum(), logits)[0].abs().sum() > 0


def test_messages_and_autograd_agree() -> None:
    """`propagate` gives what `backward` does."""
    compiled = propc.compile(program, estimator="lr")
    logits = theta()
    torch.manual_seed(0)
    (wanted,) = torch.autograd.grad(compiled(logits).mean(), logits)
    torch.manual_seed(0)
    found = compiled.propagate("backward", None, logits).messages["logits"].grad
    torch.testing.assert_close(found, wanted)


def test_a_propagator_elsewhere() -> None:
    """Where messages are more than cotangents, elements hear of all costs."""

    class Noted(propc.Propagator):
        def backward(self, node: Any, message: Any) -> Any:
            return message

    @propc.compile(estimator="lr")
    def noted(logits: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            z = propc.sample(Bernoulli(logits=propc.node(logits, "h", propagator=Noted()).expand(B, N)), "z")
            loss = propc.cost(z.cos(), "loss")
        return loss.sum(1) + propc.cost(z.prod(1), "rest", propagator="loss")

    logits = theta()
    assert all(not along for along in routes(noted, logits).values())
    noted(logits).mean().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_outside_a_compiled_function_a_plate_does_nothing() -> None:
    with propc.plate("data", dim=7) as data:
        assert propc.sample(Normal(0.0, 1.0)).shape == ()
    assert repr(data) == "propc.plate('data', dim=7)"


def test_costs_without_sites() -> None:
    """A cost in a plate that depends on no site needs no way to what is returned."""

    @propc.compile(estimator="lr")
    def simple(logits: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            z = propc.sample(Bernoulli(logits=logits.expand(B, N)), "z")
            prior = propc.cost(logits.exp().expand(B, N), "prior")
            loss = propc.cost(z.cos(), "loss")
        return loss.sum(1) + prior.square().sum(1)

    logits = theta()
    simple(logits).mean().backward()


# -- bad input ----------------------------------------------------------------------------


def refused(run: Callable[[Tensor], Tensor], words: str, kind: type[Exception] = PropcValueError, **how: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        propc.compile(run, **{"estimator": "lr", **how})(theta())
    assert "test_plate.py:" in str(caught.value)


def inside(logits: Tensor, name: str = "z", shape: tuple[int, ...] = (B, N), **plate: Any) -> Tensor:
    with propc.plate("data", **{"dim": 1, **plate}):
        return propc.sample(Bernoulli(logits=torch.zeros(shape) + logits.sum()), name)


@pytest.mark.parametrize(("name", "dim"), [("", 1), (3, 1), ("data", "1"), ("data", True), ("data", None)])
def test_what_is_no_plate(name: Any, dim: Any) -> None:
    with pytest.raises(PropcTypeError, match="plate"):
        propc.plate(name, dim)


def test_the_name_of_the_batch() -> None:
    with pytest.raises(PropcValueError, match="cannot be named 'batch'"):
        propc.plate(BATCH, 1)


def test_two_sizes() -> None:
    def run(logits: Tensor) -> Tensor:
        return inside(logits).sum(1) + inside(logits, "y", (B, 2)).sum(1)

    refused(
        run, r"site 'y' .*'data' has two sizes: 3 elements at site 'z' \(test_plate.py:.*and 2 elements at site 'y'"
    )


def test_two_places() -> None:
    def run(logits: Tensor) -> Tensor:
        return inside(logits).sum(1) + inside(logits, "y", (N,), dim=-1).sum()

    refused(run, r"site 'y' .*'data' has two places: 3 elements at site 'z'.*3 elements in the batch at site 'y'")


def test_no_such_dimension() -> None:
    refused(lambda logits: inside(logits, shape=(B,)), r"site 'z' .*'data' is dimension 1, and its shape is \[4\]")
    refused(lambda logits: inside(logits, dim=-3).sum(1), r"'data' is dimension -3, and its shape is \[4, 3\]")


def test_a_cost_without_elements() -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            return propc.cost(z.sum(1), "loss")

    refused(run, r"cost 'loss' .*'data' is dimension 1, and its shape is \[4\].*move it out")


def test_a_cost_with_more_dimensions() -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            return propc.cost(z[..., None], "loss").sum((1, 2))

    refused(run, r"cost 'loss' .*of shape \[batch, data\]; got .*Sum it over everything but the batch and data")


def test_a_gap() -> None:
    refused(
        lambda logits: inside(logits, shape=(B, 2, N), dim=2).sum((1, 2)),
        r"'data' is dimension 2 of \[4, 2, 3\], and dimension 1 is in no plate.*right behind the batch",
    )


def test_one_dimension_for_two() -> None:
    def run(logits: Tensor) -> Tensor:
        with propc.plate("other", dim=-1):
            return inside(logits).sum(1)

    refused(run, r"plates 'other' and 'data' are the same dimension of \[4, 3\]")


def test_another_order() -> None:
    def run(logits: Tensor) -> Tensor:
        with propc.plate("other", dim=1):
            first = inside(logits, shape=(B, N, N), dim=2)
        with propc.plate("other", dim=2):
            return (first + inside(logits, "y", (B, N, N), dim=1)).sum((1, 2))

    refused(run, r"site 'y' .*'other' stands behind 'data', and in front of it elsewhere")


def test_open_twice() -> None:
    def run(logits: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            return inside(logits).sum(1)

    refused(run, "plate 'data' is open already")


def test_a_plate_is_closed_after_an_error() -> None:
    def run(logits: Tensor) -> Tensor:
        try:
            with propc.plate("data", dim=5):
                propc.sample(Normal(logits, 1.0), "bad")
        except PropcValueError:
            pass
        return inside(logits).sum(1)

    propc.compile(run, estimator="lr")(theta())


def test_what_is_not_the_batch() -> None:
    def run(logits: Tensor) -> Tensor:
        return inside(logits, shape=(B + 1, N)).sum() + torch.zeros(B)

    words = r"site 'z' .*dimension 0, of length 5, is not the batch: the costs have 4 rows"
    refused(run, words, EstimatorError, estimator=propc.estimator("rloo"))


def test_a_cost_that_is_not_added() -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            loss = propc.cost(z, "loss")
        return loss.sum(1).square()

    refused(run, r"cost 'loss' .*for each element of 'data', and is no addend.*loss.sum\(1\)")


def test_a_cost_with_a_propagator() -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            return propc.cost(z, "loss", propagator="loss").sum(1)

    refused(run, r"cost 'loss' .*propagator 'loss', and stands in plate 'data'")


def test_the_name_of_a_plate_of_samples() -> None:
    def run(logits: Tensor) -> Tensor:
        with propc.plate("z", dim=1):
            return propc.cost(propc.sample(Bernoulli(logits=logits.expand(B, N)), "z")).sum(1)

    refused(run, r"site 'z' .*propc.plate is called 'z' too.*Rename", EstimatorError, estimator=propc.estimator("rloo"))


@pytest.mark.parametrize(
    "mix",
    [lambda z: z.cumsum(1), lambda z: z - z.mean(1, keepdim=True), lambda z: z.flip(1), lambda z: z @ torch.ones(N, N)],
)
@pytest.mark.parametrize("samples", [1, 3])
def test_mixing_on_the_way_to_a_cost(mix: Callable[[Tensor], Tensor], samples: int) -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            return propc.cost(mix(z), "loss").sum(1)

    how = propc.estimator("lr", samples=samples)
    refused(run, r"cost 'loss' .*mixes elements of plate 'data'.*out of it", GraphError, estimator=how)
    propc.compile(run, estimator="lr", validate=False)(theta())


def test_mixing_on_the_way_to_a_site() -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            x = propc.sample(Normal(z.cumsum(1), 1.0), "x")
            return propc.cost(x, "loss").sum(1)

    refused(run, r"site 'x' .*mixes elements of plate 'data'", GraphError)
    refused(run, r"site 'x' .*mixes elements of plate 'data'", GraphError, estimator={"z": "lr", "x": "rp"})


def test_what_all_elements_share_may_not_depend_on_one() -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            x = propc.sample(Normal(torch.zeros(B, N), 1 + z.sum(1, keepdim=True)), "x")
            return propc.cost(x, "loss").sum(1)

    refused(run, r"site 'x' .*mixes elements of plate 'data'", GraphError)


def test_mixing_in_a_black_box() -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            return propc.cost(propc.opaque(lambda z: z.cumsum(1))(z), "loss").sum(1)

    refused(run, r"cost 'loss' .*mixes elements of plate 'data'", GraphError)


def test_mixing_outside_is_free() -> None:
    """On the way to a cost or a site outside, elements may mix."""

    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            c = propc.sample(Categorical(logits=z[..., None] * logits), "c")
            loss = propc.cost(c.to(z.dtype), "loss")
        return loss.sum(1) + z.cumsum(1).prod(1)

    propc.compile(run, estimator="lr")(theta()).mean().backward()


def test_a_bound_in_a_plate() -> None:
    def run(logits: Tensor) -> Tensor:
        z = inside(logits)
        with propc.plate("data", dim=1):
            return propc.bound(z, "bound").sum(1)

    refused(run, r"bound 'bound' .*is a bound, and stands in plate 'data'.*outside", estimator="vimco")


def test_a_bound_outside_of_a_plate() -> None:
    """Every element hears of the whole bound."""

    def run(plate: bool) -> Tensor:
        @propc.compile(estimator=propc.estimator("vimco", samples=4))
        def bounded(logits: Tensor) -> Tensor:
            with propc.plate("data", dim=1) if plate else nullcontext():
                z = propc.sample(Bernoulli(logits=logits.expand(B, N)), "z")
            return propc.bound(-z.sum(1).square())

        logits = theta()
        torch.manual_seed(0)
        return torch.autograd.grad(bounded(logits).mean(), logits)[0]

    torch.testing.assert_close(run(True), run(False))

"""Programs of many kinds on both backends: what the user may write, return, pass and get wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from agreement import assert_agree, assert_same, pair, reports, step, total
from laws_and_estimators import B, costs_on_the_way, integers, noise, point, rows, theta
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.errors import NonFiniteError

pytestmark = [pytest.mark.filterwarnings("ignore::propc.PropcWarning"), pytest.mark.usefixtures("plain")]


def aliases(theta: Tensor, x: Tensor) -> Any:
    z = propc.sample(Normal(theta * x, 1.0), "z")
    return z.square().sum(-1), x, x.t(), x[:, 0], z.argmax(-1), z.detach() > 0, theta.detach()[None, None]


def written(theta: Tensor, x: Tensor) -> Tensor:
    """Writes in place, into what it made."""
    h = x * theta
    h[:, 0] = 1.0
    h.mul_(2)
    z = propc.sample(Normal(h, 1.0), "z")
    out = z.clone()
    out[:, 1:] += h[:, 1:]
    return out.sin().sum(-1)


def constants(theta: Tensor, x: Tensor) -> Tensor:
    """A site with constant parameters, one with no tensors before it, and one that nothing uses."""
    u = propc.sample(Normal(torch.zeros(B, 3), 1.0), "u")
    propc.sample(Normal(theta, 1.0), "unused")
    z = propc.sample(Normal(u * theta, 1.0), "z")
    return z.sin().sum(-1)


def regions(theta: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        still = x * theta
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = torch.mm(x.float(), torch.ones(3, 3, dtype=torch.float32) * theta.float())
    z = propc.sample(Normal(still + h.to(theta.dtype), 1.0), "z")
    with torch.no_grad():
        weight = z.exp()
    return (weight * z * theta).sum(-1)


def mixed_dtypes(theta: Tensor, x: Tensor) -> Tensor:
    z = propc.sample(Normal((x * theta).float(), torch.ones((), dtype=torch.float32)), "z")
    y = propc.sample(Normal(z.double() * theta, 0.5), "y")
    return propc.cost(z.square().sum(-1), "single").double() + propc.cost(y.cos().sum(-1), "double")


def reused(theta: Tensor, x: Tensor) -> Tensor:
    """φ of a site are used again later, and a sample by several stages."""
    loc, scale = x * theta, (x * theta).exp()
    z = propc.sample(Normal(loc, scale), "z")
    y = propc.sample(Normal(loc + z, scale), "y")
    w = propc.sample(Normal(z * y, scale), "w")
    return propc.cost((z - loc).square().sum(-1), "a") + propc.cost((w * y * z + scale).sin().sum(-1), "b")


def simulate(z: Tensor) -> Tensor:
    return torch.as_tensor(np.square(z.detach().numpy()))


def boxes(theta: Tensor, x: Tensor) -> Tensor:
    z = propc.sample(Normal(theta * x, 1.0), "z")
    seen = propc.opaque(simulate)(z)
    y = propc.sample(Normal(theta * seen, 1.0), "y")
    return propc.cost(propc.opaque(simulate)(y).sum(-1), "box") + y.sin().sum(-1)


def nodes(theta: Tensor, x: Tensor) -> Tensor:
    h = propc.node(theta * x, "h", propagator=propc.propagators.Clip(0.1))
    z = propc.sample(Normal(propc.node(h, "idle"), 1.0), "z")
    y = propc.sample(Normal(propc.node(z * h, "scaled", propagator=propc.propagators.Scale(2.0)), 1.0), "y")
    return y.sin().sum(-1)


SCALE = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def closure(theta: Tensor, x: Tensor) -> Tensor:
    z = propc.sample(Normal(theta * x * SCALE, SCALE), "z")
    return (z * SCALE).sin().sum(-1)


PROGRAMS = {f.__name__: f for f in (aliases, written, constants, regions, integers, mixed_dtypes, reused, closure)}


@pytest.mark.parametrize("estimator", ["lr", "tp", "infer", "rp"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, estimator: str) -> None:
    chosen: Any = {"k": "lr", "*": estimator} if name == "integers" else estimator
    loss = (lambda returned: returned[0].sum()) if name == "aliases" else total
    tolerance = 1e-5 if name == "mixed_dtypes" else None
    (report,) = assert_agree(PROGRAMS[name], (theta(), rows(B)), chosen, loss=loss, tolerance=tolerance)
    assert report.stages


@pytest.mark.parametrize("estimator", ["lr", {"z": "rp", "y": "lr"}, {"z": "tp", "y": "lr"}, {"z": "rp", "y": "st"}])
def test_unmarked_draws(estimator: Any) -> None:
    (report,) = assert_agree(noise, (theta(), rows(B)), estimator)
    assert report.stages


@pytest.mark.parametrize("estimator", ["lr", "infer"])
def test_black_boxes_run_apart(estimator: str) -> None:
    (report,) = assert_agree(boxes, (theta(), rows(B)), estimator)
    assert [why for _, why in report.apart].count("a black box") == 2
    assert report.stages


@pytest.mark.parametrize("estimator", ["lr", "tp", "rp"])
def test_propagators_of_nodes_run_apart(estimator: str) -> None:
    (report,) = assert_agree(nodes, (theta(), rows(B)), estimator)
    assert {name for name, why in report.apart if why.startswith("a propagator")} == {"h", "scaled"}
    assert "not compiled: h, scaled: a propagator that is called at every step" in str(report)
    assert report.stages


@pytest.mark.parametrize(
    "change",
    [lambda x: x.t().contiguous().t(), lambda x: torch.cat([x, x], 1)[:, 1:4], lambda x: x[:1].expand(B, 3)],
    ids=["transposed", "sliced", "expanded"],
)
def test_any_strides(change: Any) -> None:
    for estimator in ("tp", "lr"):
        assert_agree(costs_on_the_way, (theta(), change(rows(B))), estimator)


def test_strides_that_change() -> None:
    eager, inductor = pair(costs_on_the_way, "tp")
    for seed, x in enumerate((rows(B), rows(B), rows(B).t().contiguous().t(), rows(B)[:1].expand(B, 3), rows(B))):
        assert_same(step(inductor, (theta(), x), seed), step(eager, (theta(), x), seed))


def test_parameters_whose_strides_change() -> None:
    for start in (rows(3).requires_grad_(), rows(3)):
        held = [start]

        def program(x: Tensor) -> Tensor:
            z = propc.sample(Normal(x @ held[0], 1.0), "z")  # noqa: B023
            return z.sin().sum(-1)

        eager, inductor = pair(program, "tp")
        for seed in range(4):
            if seed == 2:
                held[0] = start.detach().t().contiguous().t().requires_grad_(start.requires_grad)
            x = rows(B).requires_grad_()
            assert_same(step(inductor, (x,), seed), step(eager, (x,), seed))


def observed(theta: Tensor, x: Tensor) -> Any:
    z = propc.sample(Normal(theta * x, 1.0), "z")
    return propc.cost(z.sin().sum(-1), "cost"), z


def test_a_gradient_into_what_is_no_cost_is_refused() -> None:
    _, inductor = pair(observed, "lr")
    for _ in range(3):
        with pytest.raises(propc.PropcValueError, match="which is no cost"):
            inductor(theta(), rows(B))[1].sum().backward()
    assert_agree(observed, (theta(), rows(B)), "rp")
    assert_agree(observed, (theta(), rows(B)), "lr", loss=lambda returned: returned[0].sum())


def scaled(theta: Tensor, x: Tensor) -> Tensor:
    z = propc.sample(Normal(theta * x, theta[0]), "z")
    y = propc.sample(Normal(z, theta[1]), "y")
    return (z.sin() + y * theta[2].log()).sum(-1)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_invalid_values_at_a_later_call(estimator: str) -> None:
    """Parameters out of their support, and costs that are not finite, raise what they raise on eager."""
    eager, inductor = pair(scaled, estimator)
    good = point(0.5, 0.3, 0.8)
    for seed in range(2):
        assert_same(step(inductor, (good, rows(B)), seed), step(eager, (good, rows(B)), seed))
    for bad in (point(-0.5, 0.3, 0.8), point(0.5, -0.3, 0.8), point(0.5, 0.3, -1.0), point(torch.nan, 0.3, 1.0)):
        said = []
        for compiled in (eager, inductor):
            torch.manual_seed(7)
            with pytest.raises(NonFiniteError) as caught:
                compiled(bad, rows(B))
            said.append(str(caught.value))
        assert said[0] == said[1]
    for seed in range(2):
        assert_same(step(inductor, (good, rows(B)), seed), step(eager, (good, rows(B)), seed))


def test_invalid_values_without_validation() -> None:
    eager, inductor = pair(scaled, "rp", validate=False)
    for seed in range(3):
        bad = point(-0.5, 0.3, 0.8)
        torch.manual_seed(seed)
        want = eager(bad, rows(B))
        torch.manual_seed(seed)
        torch.testing.assert_close(inductor(bad, rows(B)), want, equal_nan=True)


class Halved(propc.propagators.LikelihoodRatioRule):
    """A user's own rule."""

    name = "halved"

    def draw(self, site: Any, phi: Any, tangents: Any) -> Any:
        drawn = super().draw(site, phi, tangents)
        return propc.propagators.Draw(drawn.value / 2, drawn.tokens)


class Traceable(Halved):
    name = "halved-traceable"
    traceable = True


@pytest.mark.parametrize(("rule", "runs_apart"), [(Halved, True), (Traceable, False)])
def test_rules_of_the_users(rule: type, runs_apart: bool) -> None:
    @propc.register_estimator(rule.name)
    class Choice(propc.Estimator):
        name = rule.name

        def propagator(self, site: Any) -> Any:
            return rule(), "a test"

    (report,) = assert_agree(costs_on_the_way, (theta(), rows(B)), Choice())
    assert ("a propagator that is not known to be traceable" in str(report)) == runs_apart


def test_messages_run_as_on_eager() -> None:
    class Tell(propc.Propagator):
        sends = (propc.Field("size", "sum"),)

        def backward(self, node: Any, message: Any) -> Any:
            return message.replace(size=message.grad.norm())

    def program(theta: Tensor, x: Tensor) -> Tensor:
        h = propc.node(theta * x, "h", propagator=Tell())
        return propc.sample(Normal(h, 1.0), "z").sin().sum(-1)

    assert_agree(program, (theta(), rows(B)), "lr")
    compiled = propc.compile(program, estimator="lr", backend="inductor")
    step(compiled, (theta(), rows(B)), 0)
    assert all(not report.stages for report in reports(compiled))

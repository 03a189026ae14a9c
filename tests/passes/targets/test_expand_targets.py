"""Tangents towards a weighting target, against a loop of `torch.autograd.grad` over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import zoo
from stats import assert_unbiased
from surrogate import Plain, seeded
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

import propc
from propc.ir import Expand, Parameter
from propc.ir.graph import leaf_named
from propc.passes import ExpandTargets
from propc.propagators import InverseVariance

BATCH, DIM = 3, 2
Tangents = dict[str, tuple[list[Tensor], list[Tensor | None]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Tangents:
    """φ and tangents that each site gets at the latest call; all that is small has exact ones."""
    monkeypatch.setattr("propc.compiler.options.ExpandTargets", lambda: ExpandTargets(few=64))
    found: Tangents = {}
    draw = InverseVariance.draw

    def spy(rule: Any, site: Any, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Any:
        found[site.name] = [p.detach() for p in phi], list(tangents)
        return draw(rule, site, phi, tangents)

    monkeypatch.setattr(InverseVariance, "draw", spy)
    return found


def per_sample_loop(phi: Tensor, targets: Sequence[Tensor], per_sample: bool) -> Tensor:
    """Derivative of every element of φ [batch, ...] in the target of its sample: [P, batch, ...]."""
    rows = []
    for b, row in enumerate(phi):
        columns = []
        for element in row.flatten():
            grads = torch.autograd.grad(element, targets, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, targets)]
            columns.append(torch.cat([(p[b] if per_sample else p).flatten() for p in parts]))
        rows.append(torch.stack(columns, -1).reshape(-1, *row.shape))
    return torch.stack(rows, 1)


# Programs f(theta, w, sample) of chains with states [BATCH, DIM]; each returns costs and the targets by name.


def start() -> Tensor:
    return torch.linspace(-1.0, 1.0, BATCH * DIM).reshape(BATCH, DIM)


def target_at_every_step(theta: Tensor, w: Tensor, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
    x = zoo.chain(lambda x: Normal(torch.tanh(theta * (x @ w)), 0.3), start(), 3, sample=sample)
    return x.square().sum(-1), {}


def target_twice(theta: Tensor, w: Tensor, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
    def law(x: Tensor) -> Normal:
        return Normal(torch.sin(theta * x) + theta, torch.exp(theta * x))

    return zoo.chain(law, start(), 2, sample=sample).square().sum(-1), {}


def several_segments(theta: Tensor, w: Tensor, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Between the target and φ lie other sites, named values and costs."""
    x = start()
    h = torch.tanh(theta * x)
    y = sample(Normal(h, 0.5), "y")
    g = propc.node(h * h + theta, "g")
    c = propc.cost((g * y).sum(-1), "c")
    k = torch.cos(g @ w)
    b = sample(Bernoulli(logits=h), "b")
    z = sample(Normal(k * y + b * theta, torch.exp(g)), "z")
    return c + z.square().sum(-1), {}


def cost_as_feature(theta: Tensor, w: Tensor, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A cost that depends on the target is a part of φ."""
    y = sample(Normal(start() * theta, 0.5), "y")
    c = propc.cost((theta * y).square().sum(-1), "c")
    z = sample(Normal(c[:, None] * torch.ones(DIM), 1.0), "z")
    return c + z.square().sum(-1), {}


def families(theta: Tensor, w: Tensor, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
    x = sample(Independent(Normal(theta * start(), torch.exp(theta * start())), 1), "x")
    scale = (torch.eye(DIM) + 0.1 * w.tril()).expand(BATCH, DIM, DIM) * torch.exp(theta)
    y = sample(MultivariateNormal(theta * x, scale_tril=scale), "y")
    return y.square().sum(-1), {}


def behind_a_node(theta: Tensor, w: Tensor, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The target is a named value; one φ is another named value of it."""
    h = propc.node(torch.tanh(theta * start()), "h")
    loc = propc.node(h.sum(-1, keepdim=True) * h, "loc")
    x = sample(Normal(loc, torch.exp(h)), "x")
    return x.square().sum(-1), {"h": h}


def node_is_phi(theta: Tensor, w: Tensor, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
    h = propc.node(torch.tanh(theta * start()), "h")
    x = sample(Normal(h, 0.4), "x")
    return x.square().sum(-1), {"h": h}


def parameter_is_phi(theta: Tensor, w: Tensor, sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The same parameter is the location of every sample, and the scale of another site."""
    x = sample(Normal(theta.expand(BATCH, DIM), 0.4), "x")
    y = sample(Normal(x, theta.expand(BATCH, DIM)), "y")
    return y.square().sum(-1), {}


CASES = [
    (target_at_every_step, "theta"),
    (target_at_every_step, "w"),
    (target_twice, "theta"),
    (several_segments, "theta"),
    (cost_as_feature, "theta"),
    (families, "theta"),
    (behind_a_node, "h"),
    (behind_a_node, "theta"),
    (node_is_phi, "h"),
    (parameter_is_phi, "theta"),
]


@pytest.mark.parametrize(("program", "target"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_tangents(program: Callable[..., Any], target: str, seen: Tangents) -> None:
    theta, w = torch.tensor(0.7, requires_grad=True), torch.randn(DIM, DIM, requires_grad=True)
    compiled = propc.compile(
        lambda theta, w: program(theta, w, propc.sample)[0],
        estimator=lambda site: "lr" if site.name == "b" else propc.estimator("tp", target=target),
    )
    seeded(compiled, theta, w)
    plain = Plain()
    _, nodes = seeded(program, theta, w, plain)
    leaf = nodes.get(target, {"theta": theta, "w": w}.get(target))
    assert leaf is not None
    assert seen
    for name, (phi, tangents) in seen.items():
        expected = phi_of(plain.dists[name], compiled.graph(theta, w)[name].spec.fields)  # type: ignore[attr-defined]
        for value, tangent, reference in zip(phi, tangents, expected):
            torch.testing.assert_close(value, reference.detach(), rtol=1e-14, atol=0)
            loop = per_sample_loop(reference.expand(BATCH, *value.shape[1:]), [leaf], target in nodes) \
                if reference.requires_grad else torch.zeros(())  # fmt: skip
            if tangent is None:
                assert not loop.any()
            else:
                torch.testing.assert_close(tangent, loop, rtol=1e-12, atol=1e-14)


def phi_of(dist: Any, fields: Sequence[str]) -> list[Tensor]:
    """The tensors that a distribution holds, by attribute paths."""
    found = []
    for path in fields:
        value = dist
        for part in path.split("."):
            value = getattr(value, part)
        found.append(value)
    return found


class Policy(nn.Module):
    """Several parameters under one module path, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIM, 3), nn.Tanh(), nn.Linear(3, DIM))
        self.net[2].bias.requires_grad_(False)
        self.other = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, sample: Any = propc.sample) -> Tensor:
        for t in range(2):
            x = sample(Normal(self.net(x) * self.other, 0.3), f"x{t}")
        return x.square().sum(-1)


@pytest.mark.parametrize("target", ["net", "net.0", "net.0.weight"])
def test_tangents_at_a_module(target: str, seen: Tangents) -> None:
    model, x = Policy(), start()
    compiled = propc.compile(model, estimator=propc.estimator("tp", target=target))
    seeded(compiled, x)
    plain = Plain()
    seeded(model, x, plain)
    graph = compiled.graph(x)
    wanted = [model.get_parameter(n.path) for n in leaf_named(graph, target)]  # type: ignore[attr-defined]
    expected = [n for n, p in model.named_parameters() if f"{n}.".startswith(f"{target}.") and p.requires_grad]
    assert {id(p) for p in wanted} == {id(model.get_parameter(n)) for n in expected}
    for name, (_, tangents) in seen.items():
        loop = per_sample_loop(plain.dists[name].loc, wanted, False)
        torch.testing.assert_close(tangents[0], loop, rtol=1e-12, atol=1e-14)
        assert tangents[1] is None


def test_phi_without_rows(seen: Tangents) -> None:
    """One φ is common to all samples: the target is its shift, and a cotangent is its own per-sample gradient."""

    def program(theta: Tensor) -> Tensor:
        noise = Independent(Normal(torch.zeros(BATCH + 4, DIM), 1.0), 1)
        x = propc.sample(TransformedDistribution(noise, [AffineTransform(theta, torch.ones(DIM), event_dim=1)]), "x")
        return x.pow(3).sum(-1)

    theta = torch.randn(DIM, requires_grad=True)
    gradients = []
    for options in ({"target": "theta"}, {}):
        compiled = propc.compile(program, estimator=propc.estimator("tp", **options))
        gradients.append(torch.autograd.grad(seeded(compiled, theta).mean(), theta))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_shared_gradient_is_their_sum(seen: Tangents) -> None:
    """Cotangent times tangents, summed over samples, is what autograd gives at the target."""
    theta = torch.tensor(0.7, requires_grad=True)
    plain, w, g = Plain(), torch.randn(DIM, DIM), torch.randn(BATCH, DIM)
    compiled = propc.compile(lambda theta: target_at_every_step(theta, w, propc.sample)[0],
                             estimator=propc.estimator("tp", target="theta"))  # fmt: skip
    seeded(compiled, theta)
    seeded(target_at_every_step, theta, w, plain)
    (expected,) = torch.autograd.grad(plain.dists["x2"].loc, theta, g)
    tangent = seen["x2"][1][0]
    assert tangent is not None
    torch.testing.assert_close((g * tangent[0]).sum(), expected)


def sketched(theta: Tensor, sample: Any = propc.sample) -> Tensor:
    """A target of 6 elements; the pass is told to sketch above 4."""
    x = sample(Normal(torch.tanh(start() @ theta), 0.3), "x0")
    x = sample(Normal(torch.tanh(x @ theta), 0.3), "x1")
    return x.square().sum(-1)


@pytest.mark.slow
def test_sketch(seen: Tangents, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random signs: every direction is one, drawn anew at each call, and E[(g·Jv)²] = ‖Jᵀg‖²."""
    monkeypatch.setattr("propc.compiler.options.ExpandTargets", lambda: ExpandTargets(exact_up_to=3, sketches=4))
    monkeypatch.setattr("propc.passes.targets.expand_targets.find_uses", lambda *args: None)
    theta = torch.randn(DIM, DIM, requires_grad=True)
    compiled = propc.compile(sketched, estimator=propc.estimator("tp", target="theta"))
    (expand, *_) = compiled.graph(theta).of(Expand)
    assert (expand.exact, expand.directions) == (False, 4)
    g = torch.randn(BATCH, DIM)
    squares, signs = [], []
    plain = Plain()
    seeded(sketched, theta, plain)
    jacobian = per_sample_loop(plain.dists["x0"].loc, [theta], False)
    for _ in range(3000):
        compiled(theta)
        tangent = seen["x0"][1][0]
        assert tangent is not None
        squares.append((g * tangent).sum(-1).square().mean(0))
        signs.append(torch.linalg.lstsq(jacobian.flatten(1).T, tangent.flatten(1).T).solution)
    assert_unbiased(torch.stack(squares), (g * jacobian).sum(-1).square().sum(0))
    found = torch.stack(signs)
    torch.testing.assert_close(found.abs(), torch.ones_like(found))
    assert_unbiased(found.mean(2), torch.zeros(DIM * DIM))


def test_equal_steps_share_their_code() -> None:
    theta, w = torch.tensor(0.7, requires_grad=True), torch.randn(DIM, DIM)

    def program(theta: Tensor, w: Tensor, horizon: int) -> Tensor:
        x = start()
        for t in range(horizon):
            x = propc.sample(Normal(torch.tanh(theta * (x @ w)), 0.3), f"x{t}")
        return x.square().sum(-1)

    compiled = propc.compile(program, estimator=propc.estimator("tp", target="theta"))
    expands = compiled.graph(theta, w, 7).of(Expand)
    assert len(expands) == 7
    assert len({id(e.code) for e in expands}) == 1
    assert [e.target for e in expands] == ["theta"] * 7


def test_a_target_that_does_not_reach_the_site() -> None:
    def program(theta: Tensor, other: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        return propc.sample(Normal(other * x, 1.0), "y")

    compiled = propc.compile(program, estimator=propc.estimator("tp", target="theta"))
    one, two = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    with pytest.raises(propc.PropcError, match=r"site 'y' \(test_expand_targets.*'theta' does not reach it"):
        compiled(one, two)


def test_a_target_that_is_written_into_something_else() -> None:
    def program(theta: Tensor) -> Tensor:
        total = torch.zeros(BATCH)
        total.view(-1).add_(theta.sin())
        return propc.sample(Normal(total, 1.0), "x")

    compiled = propc.compile(program, estimator=propc.estimator("tp", target="theta"))
    with pytest.raises(propc.EstimatorError, match=r"site 'x'.*'add_' \(test_expand_targets.py:\d+\) writes .*'theta'"):
        compiled(torch.tensor(1.0, requires_grad=True))


def test_a_misspelt_target() -> None:
    compiled = propc.compile(lambda theta: families(theta, torch.eye(DIM), propc.sample)[0],
                             estimator=propc.estimator("tp", target="thta"))  # fmt: skip
    with pytest.raises(
        propc.PropcError, match=r"site 'x' \(test_expand_targets.*'thta'.*Did you mean 'theta'"
    ) as caught:
        compiled(torch.tensor(1.0, requires_grad=True))
    assert str(caught.value).endswith("Known: 'theta'.")  # and not the constants of the program


def test_a_constant_is_no_target() -> None:
    """It is printed as its value, which nobody means as a name."""

    def program(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta * torch.full((BATCH,), 2.0), 1.0), "x")

    theta = torch.tensor(1.0, requires_grad=True)
    graph = propc.compile(program).graph(theta)
    assert {n.path for n in graph.of(Parameter)} == {"2", "1"}
    assert leaf_named(graph, "2") == ()
    compiled = propc.compile(program, estimator=propc.estimator("tp", target="2"))
    with pytest.raises(propc.PropcError, match=r"site 'x'.*'2' is no argument.*Known: 'theta'\."):
        compiled(theta)

"""Variances at a weighting target by one reverse traversal, against loops of `torch.autograd.grad` over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stats import check
from surrogate import Plain, seeded
from torch import Tensor, nn
from torch.distributions import Gamma, Independent, Normal

import propc
from propc.ir import Expand, Site
from propc.passes import ExpandTargets
from propc.propagators import Draw, InverseVariance
from propc.runtime.weighting.mix import _measure, at_target
from propc.runtime.weighting.per_sample_jvp import random_signs
from propc.runtime.weighting.per_sample_norms import Norms

BATCH, DIM = 7, 3


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Tensor], int, Tensor]]:
    """Cotangents, number of groups and variances wherever a traversal takes some, the last site first."""
    found: list[tuple[list[Tensor], int, Tensor]] = []
    variances = Norms.variances

    def spy(norms: Norms, cotangents: Sequence[Tensor], made: Sequence[Tensor], groups: int) -> Tensor:
        result = variances(norms, cotangents, made, groups)
        found.append(([each.clone() for each in cotangents], groups, result.clone()))
        return result

    monkeypatch.setattr(Norms, "variances", spy)
    return found


def per_sample(phi: Sequence[Tensor], cotangents: Sequence[Tensor], targets: Sequence[Tensor], own: bool) -> Tensor:
    """Gradients of single samples, [parts, batch, P]; `own` says that a target has a row for each sample."""
    found = []
    for part in range(len(cotangents[0])):
        for row in range(len(phi[0])):
            ends, grads = [p[row] for p in phi], [c[part, row] for c in cotangents]
            each = torch.autograd.grad(ends, targets, grads, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(t) if g is None else g for g, t in zip(each, targets)]
            found.append(torch.cat([(p[row] if own else p).flatten() for p in parts]))
    return torch.stack(found).unflatten(0, (len(cotangents[0]), -1))


def deviations(grads: Tensor, groups: int) -> Tensor:
    """[parts, groups]."""
    rows = grads.shape[1] // groups
    grads = grads[:, : rows * groups].unflatten(1, (groups, rows))
    return (grads - grads.mean(2, keepdim=True)).square().sum((2, 3))


class Layers(nn.Module):
    """A network between states, and whatever else a test needs, under one name."""

    def __init__(self, step: Callable[..., Any], width: int = 4, **parameters: Tensor) -> None:
        super().__init__()
        self.step = step
        self.net = nn.Module()
        self.net.first, self.net.last = nn.Linear(DIM, width), nn.Linear(width, 2 * DIM, bias=False)
        for name, value in parameters.items():
            self.net.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor, sample: Any = propc.sample) -> Tensor:
        for t in range(2):
            x = sample(self.step(self.net, x), f"x{t}")
        return (x.square() + x.sin()).flatten(1).sum(-1)


def mlp(net: Any, x: Tensor) -> Any:
    return Normal(net.last(torch.tanh(net.first(x)))[:, :DIM], 0.3)


def both_phi(net: Any, x: Tensor) -> Any:
    """loc and scale come from one network."""
    loc, scale = net.last(torch.relu(net.first(x))).chunk(2, -1)
    return Independent(Normal(x + 0.1 * loc, F.softplus(scale)), 1)


def by_product(net: Any, x: Tensor) -> Any:
    """Matrices and biases without layers, one of them transposed, one by two functions."""
    h = torch.addmm(net.first.bias, x, net.first.weight.t())
    return Normal((h.tanh() @ net.last.weight.T)[..., :DIM], 0.5)


def matrix(net: Any, x: Tensor) -> Any:
    return Normal(torch.matmul(torch.sin(x @ net.w + net.b), net.v), 0.5)


def twice(net: Any, x: Tensor) -> Any:
    """One layer is used twice in a step, with what is between."""
    h = net.first(x)
    return Normal(h[:, :DIM] + net.first(torch.tanh(h[:, 1:4]))[:, :DIM], 0.5)


def tied(net: Any, x: Tensor) -> Any:
    """The same matrix there and back."""
    return Normal(F.linear(torch.tanh(F.linear(x, net.w)), net.w.mT), 0.4)


def spread(net: Any, x: Tensor) -> Any:
    """Parameters that multiply, add, or are functions of others; a scale without a row for each sample."""
    scale = F.softplus(net.rho).expand(len(x), DIM)
    return Normal(torch.tanh(net.gain * x) * net.log.exp() + net.b - net.gain.sum(), scale)


def between(net: Any, x: Tensor) -> Any:
    """Dimensions between batch and features: few long rows, and many short ones."""
    many = x[:, :, None] * torch.linspace(-1, 1, 12)  # [batch, 3, 12]
    h = torch.tanh(F.linear(many, net.long))  # [batch, 3, 2]
    k = torch.cos(F.linear(h[..., None], net.short, net.b))  # [batch, 3, 2, 2]
    return Normal(k.sum((2, 3)), 0.5)


def images(net: Any, x: Tensor) -> Any:
    """Convolutions with strides, padding and dilation, one of them twice."""
    h = x[:, :, None, None] * torch.linspace(-1, 1, 20).view(4, 5).cos()  # [batch, 3, 4, 5]
    h = torch.tanh(F.conv2d(h, net.one, net.b, stride=(2, 1), padding=1))
    h = F.conv2d(F.conv2d(h, net.two, padding=(0, 1)).relu(), net.two, dilation=(1, 2), padding=1)
    return Normal(h.flatten(2).mean(2)[:, :DIM], 0.5)


def other_family(net: Any, x: Tensor) -> Any:
    a, b = F.softplus(net.last(torch.tanh(net.first(x)))).chunk(2, -1)
    return Gamma(a + 0.5, b + 0.5)


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mlp": (mlp, {}),
    "wide": (mlp, {"width": 40}),  # more products than pairs of rows
    "both": (both_phi, {}),
    "by product": (by_product, {}),
    "matrix": (matrix, {"w": (DIM, 5), "b": (5,), "v": (5, DIM)}),
    "twice": (twice, {}),
    "twice, wide": (twice, {"width": 40}),
    "tied": (tied, {"w": (5, DIM)}),
    "spread": (spread, {"rho": (DIM,), "gain": (DIM,), "log": (), "b": (1, DIM)}),
    "between": (between, {"long": (2, 12), "short": (2, 1), "b": (2,)}),
    "images": (images, {"one": (4, DIM, 3, 2), "b": (4,), "two": (4, 4, 2, 2)}),
    "gamma": (other_family, {}),
}


def model(case: str) -> Layers:
    step, options = CASES[case]
    shapes = {name: torch.randn(shape) for name, shape in options.items() if name != "width"}
    return Layers(step, options.get("width", 4), **shapes)


@pytest.mark.parametrize("how", ["same", "crossfit", "past"])
@pytest.mark.parametrize("case", CASES)
def test_variances(case: str, how: str, taken: list[Any]) -> None:
    """Exact for all parameters of a module, at every site and for both parts."""
    net, x = model(case), torch.rand(BATCH, DIM) + 0.5
    compiled = propc.compile(net, estimator=propc.estimator("tp", target="net", weights=how))
    expands = compiled.graph(x).of(Expand)
    assert [(e.norms, e.directions) for e in expands] == [(True, 0)] * 2
    seeded(compiled, x)[0].sum().backward()
    plain = Plain()
    seeded(net, x, plain)
    targets = [p for name, p in net.named_parameters() if name.startswith("net.")]
    assert len(taken) == (4 if how == "past" else 2)  # the first batch has no past, and takes crossfit
    for i, (cotangents, groups, result) in enumerate(taken):
        dist = plain.dists["x0" if i >= len(taken) // 2 else "x1"]
        phi = values_of(dist)[-len(cotangents) :] if case == "spread" else values_of(dist)[: len(cotangents)]
        expected = deviations(per_sample(phi, cotangents, targets, own=False), groups)
        assert groups == (1 if how == "same" or (how == "past" and i % 2 == 0) else 2)
        torch.testing.assert_close(result[:, :, 0, 0], expected, rtol=1e-9, atol=0)


def values_of(dist: Any) -> list[Tensor]:
    """φ, in the order of a site."""
    dist = dist.base_dist if isinstance(dist, Independent) else dist
    return [getattr(dist, name) for name in ("loc", "scale", "concentration", "rate") if name in vars(dist)]


def as_tangents(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, every target has a tangent for each element."""
    monkeypatch.setattr("propc.compiler.options.ExpandTargets", lambda: ExpandTargets(few=10**6, exact_up_to=10**6))


def kinds(compiled: Any, *args: Any) -> set[tuple[bool, int, bool]]:
    return {(expand.norms, expand.directions, expand.exact) for expand in compiled.graph(*args).of(Expand)}


@pytest.mark.parametrize("options", [{}, {"k_interval": 2}, {"weights": "past"}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of weights from tangents, call after call; also by messages."""
    net, x = model(case), torch.rand(BATCH, DIM) + 0.5
    made = []
    for _ in range(2):
        compiled = propc.compile(net, estimator=propc.estimator("tp", target="net", **options))
        torch.manual_seed(0)
        losses = [compiled(x).mean() for _ in range(3)]
        made.append([torch.autograd.grad(loss, list(net.net.parameters()), allow_unused=True) for loss in losses])
        as_tangents(monkeypatch)
    assert [x0.norms for x0 in compiled.graph(x).of(Expand)] == [False] * 2
    for ours, theirs in zip(*made):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("width", [2, 40])
def test_at_a_node(width: int, taken: list[Any]) -> None:
    """Every sample has a row of its own of the target, of any length."""
    net, x = model("mlp"), torch.randn(BATCH, DIM)
    net.net.first, net.net.last = nn.Linear(DIM, width), nn.Linear(width, DIM)

    def program(x: Tensor, sample: Any = propc.sample) -> tuple[Tensor, Tensor]:
        h = propc.node(net.net.first(x).tanh(), "h")
        x0 = sample(Normal(net.net.last(h) * h.sum(-1, keepdim=True), 0.5), "x0")
        return x0.square().sum(-1), h

    compiled = propc.compile(lambda x: program(x)[0], estimator=propc.estimator("tp", target="h"))
    seeded(compiled, x).sum().backward()
    plain = Plain()
    _, h = seeded(program, x, plain)
    ((cotangents, groups, result),) = taken
    expected = deviations(per_sample(values_of(plain.dists["x0"])[:1], cotangents, [h], own=True), groups)
    torch.testing.assert_close(result[:, :, 0, 0], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("batch", [3, 4, 6])
def test_a_batch_as_long_as_another_dimension(batch: int, taken: list[Any]) -> None:
    """Rows are told from the rest, though DIM is 3, the width 4, and two times DIM 6."""
    net, x = model("both"), torch.randn(batch, DIM)
    compiled = propc.compile(net, estimator=propc.estimator("tp", target="net", weights="same"))
    assert kinds(compiled, x) == {(True, 0, True)}
    seeded(compiled, x)[0].sum().backward()
    plain = Plain()
    seeded(net, x, plain)
    for name, (cotangents, groups, result) in zip(("x1", "x0"), taken):
        phi = values_of(plain.dists[name])
        expected = deviations(per_sample(phi, cotangents, list(net.net.parameters()), own=False), groups)
        torch.testing.assert_close(result[:, :, 0, 0], expected, rtol=1e-9, atol=0)


def written_out(net: Any, x: Tensor) -> Any:
    return Normal(net.last(net.first(x).view(DIM, 4).tanh())[:, :DIM], 0.5)


def rows_merged(net: Any, x: Tensor) -> Any:
    h = net.first(x[:, None].expand(-1, 2, -1).reshape(2 * len(x), DIM))
    return Normal(net.last(h.tanh()).unflatten(0, (-1, 2)).sum(1)[:, :DIM], 0.5)


def written(hidden: Tensor) -> Tensor:
    hidden.view(-1).tanh_()
    return hidden


def writes(net: Any, x: Tensor) -> Any:
    return Normal(net.last(written(net.first(x)))[:, :DIM], 0.5)


@pytest.mark.parametrize(("step", "batch"), [(written_out, DIM), (rows_merged, BATCH), (writes, BATCH)])
def test_where_rows_or_values_cannot_be_followed(step: Callable[..., Any], batch: int) -> None:
    """Tangents, one for each of up to 64 elements."""
    compiled = propc.compile(Layers(step), estimator=propc.estimator("tp", target="net"))
    x = torch.randn(batch, DIM)
    assert kinds(compiled, x) == {(False, 4 * DIM + 4 + 8 * DIM, True)}
    compiled(x).mean().backward()


def test_random_numbers_on_the_way() -> None:
    """They would be drawn anew for the variance."""

    def dropped(net: Any, x: Tensor) -> Any:
        return Normal(net.last(F.dropout(net.first(x), 0.5))[:, :DIM], 0.5)

    compiled = propc.compile(Layers(dropped), estimator=propc.estimator("tp", target="net"))
    words = r"site 'x0' \(test_per_sample_norms.*'dropout'.*random numbers.*target 'net'.*Leave out target="
    with pytest.raises(propc.PropcError, match=words):
        compiled(torch.randn(BATCH, DIM))


def half_known(net: Any, x: Tensor) -> Any:
    """A matrix that is used in a way that is not known, between layers; a bias after it."""
    h = torch.tanh(torch.einsum("bi,io->bo", net.first(x).sin(), net.w) + net.b)
    return Normal(h, 0.5)


@pytest.mark.slow
@pytest.mark.statistical
def test_sketches_are_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known and unknown uses: norms of the first plus squared projections of the rest, over 10,000 draws of signs."""
    net, x = Layers(half_known, w=torch.randn(4, DIM), b=torch.randn(DIM)), torch.randn(BATCH, DIM)
    compiled = propc.compile(net, estimator=propc.estimator("tp", target="net"), validate=False)
    assert kinds(compiled, x) == {(True, 2, False)}
    cotangents = torch.randn(2, BATCH, DIM)
    found: list[Tensor] = []

    def spy(rule: Any, site: Any, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        if site.name == "x0":
            place = at_target(rule.norms, (0,), (tangents[0], *tangents[len(phi) :]))
            with torch.no_grad():
                found.extend(_measure(rule._mixing(site), [cotangents], place).take(2))
        return Draw(phi[0].detach(), (phi[0].new_zeros(BATCH),))

    monkeypatch.setattr(InverseVariance, "draw", spy)
    with torch.no_grad():
        for _ in range(10_000):
            compiled(x)
    draws = torch.stack(found).flatten(1)
    parameters = [p for name, p in net.net.named_parameters() if not name.startswith("last")]
    exact = deviations(per_sample([half_known(net.net, x).loc], [cotangents], parameters, False), 2)
    check(draws, exact.flatten(), twin=1.05)


def test_nothing_is_computed_again() -> None:
    """The traversal reads what the forward pass has made, and multiplies cotangents with it."""
    compiled = propc.compile(model("mlp"), estimator=propc.estimator("tp", target="net"))
    site = compiled.graph(torch.randn(BATCH, DIM))["x0"]
    assert isinstance(site, Site)
    assert isinstance(site.rule, InverseVariance)
    assert site.rule.norms is not None
    steps = [node.target for node in site.rule.norms.code.graph.nodes if node.op == "call_function"]
    products = [step for step in steps if step in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)]
    assert len(products) == 1  # to the hidden layer; none back to x, none of the layers themselves
    assert torch.ops.aten.tanh.default not in steps


def test_explained() -> None:
    compiled = propc.compile(model("mlp"), estimator=propc.estimator("tp", target="net"))
    x = torch.randn(BATCH, DIM)
    assert {row["why"] for row in compiled.explain(x).rows} == {"asked for; weights from exact per-sample norms of net"}
    assert "{exact per-sample norms of net}" in str(compiled.graph(x))
    assert "by tp with %x1.expand" in str(compiled.graph(x))
    half = propc.compile(
        Layers(half_known, w=torch.randn(4, DIM), b=torch.randn(DIM)), estimator=propc.estimator("tp", target="net")
    )
    assert "{per-sample norms and 2 random directions of net}" in str(half.graph(x))


@pytest.mark.statistical
def test_signs_are_fair_and_independent() -> None:
    """Their means are 0, and so are those of products of neighbours and of signs a byte or a word apart."""
    draws = torch.cat([random_signs((1000, 130), torch.empty(())) for _ in range(10)])
    assert set(draws.unique().tolist()) == {-1.0, 1.0}
    assert draws.dtype == torch.float64
    for distance in (1, 8, 64):
        check((draws[:, :-distance] * draws[:, distance:]), torch.zeros(130 - distance), twin=draws[:, distance:].abs())
    check(draws, torch.zeros(130), twin=draws + 0.1)

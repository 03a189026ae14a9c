"""Selections behind paths: which jump, which are continuous, and what follows."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Normal, Uniform

import propc
from propc.errors import PropcWarning

Cost = Callable[[Tensor], Tensor]
JUMP, MEET = True, False


def _written(x: Tensor, value: float) -> Tensor:
    y = x.clone()
    y[x > 0.5] = value
    return y


def _halves(x: Tensor) -> Tensor:
    small = (x.abs() < 1).to(x.dtype)
    return small * x.square() / 2 + (1 - small) * (x.abs() - 0.5)


def _network(x: Tensor) -> Tensor:
    """A sorting network on three numbers, weighted by their ranks."""
    a, b, c = x, x.sin(), 1 - x
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    b, c = torch.minimum(b, c), torch.maximum(b, c)
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    return a + 2 * b + 3 * c


def _swapped(x: Tensor) -> Tensor:
    """The same by where."""
    y = 1 - x
    first = x < y
    return torch.where(first, x, y) + 2 * torch.where(first, y, x)


def _three(x: Tensor) -> Tensor:
    return torch.stack([x, 1 - x, 0.3 + 0.1 * x], -1)


def _bounced(x: Tensor) -> Tensor:
    v = -1 - 0.1 * x.sin()
    return torch.where(x < 0.5, -0.9 * v, v).square() + torch.where(x < 0.5, -0.9 * v, v)


def _table(x: Tensor) -> Tensor:
    values = torch.tensor([0.0, 1.0, 4.0], dtype=x.dtype)
    return values[(x > 0.2).long() + (x > 0.8).long()]


def _interpolated(x: Tensor) -> Tensor:
    """A table between whose entries values are interpolated."""
    values = torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0], dtype=x.dtype)
    at = x.clamp(-1.9, 1.9) + 2
    low = at.floor().long()
    return torch.lerp(values[low], values[low + 1], at - low)


TABLE: dict[str, tuple[bool, Cost]] = {
    # the branches meet
    "relu": (MEET, torch.relu),
    "leaky relu": (MEET, lambda x: F.leaky_relu(x, 0.1)),
    "abs": (MEET, torch.abs),
    "clamp": (MEET, lambda x: x.clamp(0, 1)),
    "huber loss": (MEET, lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none")),
    "smooth l1": (MEET, lambda x: F.smooth_l1_loss(x, torch.ones_like(x), reduction="none")),
    "maximum": (MEET, lambda x: torch.maximum(x, x.square())),
    "minimum": (MEET, lambda x: torch.minimum(x, 1 - x)),
    "softshrink": (MEET, lambda x: F.softshrink(x, 0.5)),
    "hardtanh": (MEET, F.hardtanh),
    "relu by where": (MEET, lambda x: torch.where(x > 0, x, 0)),
    "relu by a product": (MEET, lambda x: x * (x > 0)),
    "relu by a product of numbers": (MEET, lambda x: x * (x > 0).to(x.dtype)),
    "leaky relu by where": (MEET, lambda x: torch.where(x < 0, 0.01 * x, x)),
    "abs by where": (MEET, lambda x: torch.where(x < 0, -x, x)),
    "abs by sign": (MEET, lambda x: x * x.sign()),
    "relu by heaviside": (MEET, lambda x: x * torch.heaviside(x, torch.zeros_like(x))),
    "clamp by where": (MEET, lambda x: torch.where(x < 0.5, 0.5, torch.where(x > 1, 1.0, x))),
    "clamp by masked_fill": (MEET, lambda x: x.masked_fill(x < 0.5, 0.5)),
    "clamp by a write": (MEET, lambda x: _written(x, 0.5)),
    "huber by where": (MEET, lambda x: torch.where(x.abs() < 1, x.square() / 2, x.abs() - 0.5)),
    "huber by masks": (MEET, _halves),
    "huber by two masks": (MEET, lambda x: (x.abs() < 1) * x.square() / 2 + (x.abs() >= 1) * (x.abs() - 0.5)),
    "two costs of one mask": (MEET, lambda x: (x > 1) * (x - 1) ** 2 + (x <= 1) * (1 - x)),
    "curved": (MEET, lambda x: torch.where(x > 0.5, (x - 0.5).exp(), 1 + (x - 0.5).sin())),
    "curved, with another quantity": (MEET, lambda x: torch.where(x > 0.5, x * x.cos(), 0.5 * x.cos())),
    "branches that touch": (MEET, lambda x: torch.where(x > 0.5, (x - 0.5) ** 2, (0.5 - x) ** 3)),
    "square root": (MEET, lambda x: torch.where(x > 0.5, (x - 0.5).clamp_min(1e-12).sqrt(), 0)),
    "softplus by where": (MEET, lambda x: torch.where(x > 20, x, x.exp().log1p())),
    "steep but continuous": (MEET, lambda x: torch.where(x > 0.5, (50 * (x - 0.5)).tanh(), x - 0.5)),
    "and": (MEET, lambda x: torch.where((x > 0) & (x < 1), x * (1 - x), 0)),
    "or": (MEET, lambda x: torch.where((x < 0) | (x > 1), x * (x - 1), 0)),
    "triangle wave by where": (MEET, lambda x: torch.where(x % 1 < 0.5, x % 1, 1 - x % 1)),
    "remainder, squared off": (MEET, lambda x: (x % 1) * (1 - x % 1)),
    "floor interpolated": (MEET, lambda x: x.floor() + (x - x.floor())),
    "table interpolated": (MEET, _interpolated),
    "sorting network": (MEET, _network),
    "sorting by where": (MEET, _swapped),
    "sort": (MEET, lambda x: _three(x).sort(-1).values @ torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)),
    "sort by indices": (MEET, lambda x: _three(x).gather(-1, _three(x).argsort(-1)).square().cumsum(-1)[..., 1]),
    "maximum by argmax": (MEET, lambda x: _three(x).gather(-1, _three(x).argmax(-1, keepdim=True))[:, 0]),
    "maximum by one_hot": (MEET, lambda x: (F.one_hot(_three(x).argmax(-1), 3) * _three(x)).sum(-1)),
    "sum of topk": (MEET, lambda x: _three(x).topk(2, -1).values.sum(-1)),
    "sum of topk by indices": (MEET, lambda x: _three(x).gather(-1, _three(x).topk(2, -1).indices).sum(-1)),
    "median": (MEET, lambda x: _three(x).median(-1).values),
    "constant on both sides": (MEET, lambda x: torch.where(x > 0.5, torch.ones_like(x), torch.ones_like(x)) * x),
    "jumps that cancel": (MEET, lambda x: (x > 0.5).to(x.dtype) + (x <= 0.5).to(x.dtype) + x),
    "a sign that squares away": (MEET, lambda x: torch.where(x > 0.5, 2 + x, -2 - x).square()),
    "a guard that is never needed": (MEET, lambda x: torch.where(x > 1e6, 0.0, x)),
    "a condition that no draw reaches": (MEET, lambda x: torch.where(torch.arange(len(x)) % 2 == 0, x, -x)),
    # they do not
    "where": (JUMP, lambda x: torch.where(x > 1, x**2 + 2, x**2)),
    "where, small": (JUMP, lambda x: torch.where(x > 0.5, x + 0.05, x)),
    "where, with another quantity": (JUMP, lambda x: torch.where(x > 0.5, x.cos(), -x.cos())),
    "product with a comparison": (JUMP, lambda x: x * (x > 0.5)),
    "sum with a comparison": (JUMP, lambda x: x + (x > 0.5)),
    "float of a comparison": (JUMP, lambda x: x + (x > 0.5).float()),
    "to of a comparison": (JUMP, lambda x: x + (x > 0.5).to(x.dtype)),
    "double of a comparison": (JUMP, lambda x: x + (x > 0.5).double()),
    "type_as of a comparison": (JUMP, lambda x: x + (x > 0.5).type_as(x)),
    "gt": (JUMP, lambda x: x * x.gt(0.5).to(x.dtype)),
    "masked_fill": (JUMP, lambda x: x.masked_fill(x < 0.5, 0)),
    "masked write": (JUMP, lambda x: _written(x, 2.0)),
    "index by a comparison": (JUMP, lambda x: x + _table(x)),
    "bouncing": (JUMP, _bounced),
    "remainder": (JUMP, lambda x: x % 1),
    "torch.remainder": (JUMP, lambda x: torch.remainder(x, 0.7)),
    "fmod": (JUMP, lambda x: torch.fmod(x, 0.5)),
    "frac": (JUMP, torch.frac),
    "floor": (JUMP, lambda x: x + x.floor()),
    "ceil": (JUMP, lambda x: x + x.ceil()),
    "round": (JUMP, lambda x: x + (2 * x).round()),
    "trunc": (JUMP, lambda x: x * (2 * x).trunc()),
    "division, rounded": (JUMP, lambda x: x + torch.div(x, 0.5, rounding_mode="floor")),
    "floor division": (JUMP, lambda x: x + x // 0.5),
    "sign": (JUMP, lambda x: x + x.sign()),
    "heaviside": (JUMP, lambda x: x.square() + torch.heaviside(x - 0.5, torch.zeros_like(x))),
    "threshold": (JUMP, lambda x: F.threshold(x, 0.5, 0.0)),
    "hardshrink": (JUMP, lambda x: F.hardshrink(x, 0.5)),
    "argmax": (JUMP, lambda x: x + _three(x).argmax(-1)),
    "one_hot of argmax": (JUMP, lambda x: x + F.one_hot(_three(x).argmax(-1), 3)[:, 1]),
    "gather by argmax": (JUMP, lambda x: _three(2 * x).gather(-1, _three(x).argmax(-1, keepdim=True))[:, 0] * x),
    "ranks": (JUMP, lambda x: x * _three(x).argsort(-1)[:, 0]),
    "another, sorted by x": (JUMP, lambda x: _three(2 * x).gather(-1, _three(x).argsort(-1))[:, 0]),
    "indices of topk": (JUMP, lambda x: x * _three(x).topk(1, -1).indices[:, 0]),
    "indices of max": (JUMP, lambda x: x + _three(x).max(-1).indices),
    "bucketize": (JUMP, lambda x: x * torch.bucketize(x, torch.tensor([0.0, 0.5, 1.0], dtype=x.dtype))),
    "searchsorted": (JUMP, lambda x: x + torch.searchsorted(torch.tensor([0.0, 0.7], dtype=x.dtype), x)),
    "cast to integers": (JUMP, lambda x: x + (4 * x).long()),
    "and, jumping": (JUMP, lambda x: torch.where((x > 0) & (x < 1), x, 2.0)),
    "or, jumping": (JUMP, lambda x: torch.where((x < 0) | (x > 1), x.exp(), 0)),
    "not": (JUMP, lambda x: torch.where(~(x > 0.5), x, x + 1)),
    "one condition in another": (JUMP, lambda x: torch.where(x > 0, torch.where(x > 0.7, 3.0, x), 0)),
    "only one of two": (JUMP, lambda x: torch.where(x > 0, x, 0) + torch.where(x > 0, 1.0, 0)),
    "in an exponent": (JUMP, lambda x: (x * (1 + (x > 0.5))).exp()),
    "detached condition": (JUMP, lambda x: torch.where(x.detach() > 0.5, x, -x)),
    "of a function of x": (JUMP, lambda x: torch.where((x.sin() * 2 - 1).tanh() > 0, x, x - 1)),
    "in few elements of a sum": (
        JUMP,
        lambda x: (torch.where(x[:, None] > torch.linspace(0, 1, 30, dtype=x.dtype), 0.1, 0) + x[:, None]).sum(-1),
    ),
}


def law(batch: int, dtype: torch.dtype) -> Normal:
    return Normal(torch.full((batch,), 0.5, dtype=dtype, requires_grad=True), 0.6)


def chosen(cost: Cost, batch: int, dtype: torch.dtype = torch.float64) -> tuple[str, bool, list[str]]:
    """The estimator of a site before a cost, whether a jump is known behind it, and the warnings."""

    def program(loc: Tensor) -> Tensor:
        return cost(propc.sample(Normal(loc, 0.6), "x"))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        graph = propc.compile(program).graph(law(batch, dtype).loc)
    (site,) = graph.sites
    return site.estimator, bool(site.jumps), [str(w.message) for w in said]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("batch", [16, 64, 1000])
@pytest.mark.parametrize("name", TABLE)
def test_table(name: str, batch: int, dtype: torch.dtype) -> None:
    """No false alarm, and no miss where margins come near."""
    jumps, cost = TABLE[name]
    estimator, found, said = chosen(cost, batch, dtype)
    assert estimator == "lr" if jumps else not found  # lr too where a term of the cost has no path at all
    assert not said


# -- what follows from a jump ----------------------------------------------------------------


def called(compiled: Callable[..., Tensor], loc: Tensor, times: int) -> None:
    for _ in range(times):
        compiled(loc)


def stepped(loc: Tensor) -> Tensor:
    x = propc.sample(Normal(loc, 0.3), "x")
    return torch.where(x > 1, x**2 + 2, x**2)


def test_infer_takes_a_score_at_a_jump() -> None:
    """E of x² + 2·1[x > 1]: its derivative is 2 loc + 2 φ((1 - loc)/.3)/.3; along the path it is 2 loc."""
    loc = torch.full((200_000,), 0.8, requires_grad=True)
    compiled = propc.compile(stepped)
    compiled(loc).mean().backward()
    assert loc.grad is not None
    assert abs(float(loc.grad.sum()) - 3.730) < 5 * 0.006
    (row,) = compiled.explain(loc).rows
    assert row["estimator"] == "lr"
    assert row["jumps"].startswith("2 at test_continuity.py:")
    assert row["why"] == f"a jump {row['jumps']}"


@pytest.mark.parametrize("estimator", ["rp", "tp"])
def test_a_pathwise_estimator_warns_of_a_jump(estimator: str) -> None:
    """Once, with site, line, size and the way out."""
    compiled = propc.compile(stepped, estimator=estimator)
    loc = torch.full((64,), 0.8, requires_grad=True)
    with pytest.warns(PropcWarning, match=r"site 'x'.*'gt', test_continuity.py:\d+.*jumps by 2;.*Use 'lr'") as said:
        called(compiled, loc, 5)
    assert len(said) == 1
    assert "jumps" in compiled.explain(loc).headers


@pytest.mark.parametrize("estimator", ["gumbel_softmax", "gumbel_rao", "st"])
def test_a_relaxed_estimator_warns_of_a_jump(estimator: str) -> None:
    def program(logits: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=logits), "z")
        return torch.where(z > 0.5, z + 1, z)

    with pytest.warns(PropcWarning, match=r"site 'z'.*jumps by 1"):
        propc.compile(program, estimator=estimator).graph(torch.zeros(64, requires_grad=True))


def test_the_score_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = propc.compile(stepped, estimator="lr")
        explained = compiled.explain(torch.full((64,), 0.8, requires_grad=True))
    assert "jumps" not in explained.headers  # nothing hangs on it, so nobody has looked


def test_no_column_where_nothing_jumps() -> None:
    compiled = propc.compile(lambda loc: torch.relu(propc.sample(Normal(loc, 1.0), "x")))
    assert "jumps" not in compiled.explain(torch.zeros(64, requires_grad=True)).headers


def test_margins_that_come_near_in_a_later_call() -> None:
    """All far away in the first call; then they come near, and a call soon sees it."""
    compiled = propc.compile(stepped)
    far, near = (torch.full((64,), value, requires_grad=True) for value in (-4.0, 0.8))
    compiled(far)
    assert compiled.graph(far).sites[0].estimator == "rp"
    for _ in range(3):
        compiled(near)
    assert compiled.graph(near).sites[0].estimator == "lr"
    assert compiled.graph(near[:16].detach().requires_grad_()).sites[0].estimator == "lr"  # other shapes know of it


def test_a_later_jump_is_a_warning_under_rp() -> None:
    compiled = propc.compile(stepped, estimator="rp")
    compiled(torch.full((64,), -4.0, requires_grad=True))
    near = torch.full((64,), 0.8, requires_grad=True)
    with pytest.warns(PropcWarning, match="jumps by 2"):
        called(compiled, near, 3)


def test_looking_draws_no_random_numbers_of_the_program() -> None:
    """A program whose branches meet gives the numbers that it would give if nobody had looked."""
    loc = torch.zeros(64, requires_grad=True)
    compiled = propc.compile(lambda loc: torch.where((x := propc.sample(Normal(loc, 1.0), "x")) > 0, x, 0))
    torch.manual_seed(3)
    found = [compiled(loc) for _ in range(4)]
    torch.manual_seed(3)
    drawn = [torch.relu(Normal(loc, 1.0).rsample()) for _ in range(4)]
    for a, b in zip(found, drawn):
        torch.testing.assert_close(a, b)


def test_sites_before_a_site_that_scores_keep_their_path() -> None:
    """x reaches the jump only through y, which hears of it by its score."""

    def program(loc: Tensor) -> Tensor:
        x = propc.sample(Normal(loc, 1.0), "x")
        y = propc.sample(Normal(x, 1.0), "y")
        return torch.where(y > 0, y + 1, 0)

    loc = torch.zeros(64, requires_grad=True)
    assert [site.estimator for site in propc.compile(program).graph(loc).sites] == ["rp", "lr"]
    with pytest.warns(PropcWarning, match="site 'y'"):
        forced = propc.compile(program, estimator={"y": "rp"}).graph(loc)
    assert [site.estimator for site in forced.sites] == ["lr", "plain"]  # along y's path x's own would meet the jump


def test_a_jump_in_what_parameterizes_a_site() -> None:
    def program(loc: Tensor) -> Tensor:
        x = propc.sample(Normal(loc, 1.0), "x")
        return propc.sample(Normal(torch.where(x > 0, 1.0, -x), 1.0), "y").square()

    sites = propc.compile(program).graph(torch.zeros(64, requires_grad=True)).sites
    assert [site.estimator for site in sites] == ["lr", "plain"]  # no parameter reaches y along a path


def test_ends_that_move_keep_their_path() -> None:
    """No score sees them; there is a warning."""

    def program(high: Tensor) -> Tensor:
        x = propc.sample(Uniform(torch.zeros_like(high), high), "x")
        return torch.where(x > 0.5, x + 1, x)

    with pytest.warns(PropcWarning, match="site 'x'.*jumps by 1"):
        graph = propc.compile(program).graph(torch.ones(64, requires_grad=True))
    assert graph.sites[0].estimator == "rp"


def test_draws_without_rows() -> None:
    """One draw for all rows, and a scalar cost of many draws."""

    def shared(w: Tensor, data: Tensor) -> Tensor:
        z = data @ propc.sample(Normal(w, 1.0), "w")
        return torch.where(z > 0, z + 1, z)

    def mean(loc: Tensor) -> Tensor:
        x = propc.sample(Normal(loc, 1.0), "x")
        return torch.where(x > 0, x + 1, x).mean()

    def meeting(loc: Tensor) -> Tensor:
        x = propc.sample(Normal(loc, 1.0), "x")
        return torch.where(x > 0, 2 * x, x).mean()

    with pytest.warns(PropcWarning, match="jumps by"):
        propc.compile(shared, estimator="rp").graph(torch.zeros(3, requires_grad=True), torch.randn(100, 3))
    loc = torch.zeros(500, requires_grad=True)
    with pytest.warns(PropcWarning, match="jumps by"):
        propc.compile(mean, estimator="rp").graph(loc)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        propc.compile(meeting, estimator="rp").graph(loc)


def ball(theta: Tensor) -> Tensor:
    """Sixty steps of a ball that bounces, pushed by noisy actions of a linear policy."""
    x, v = torch.ones(len(theta)), torch.zeros(len(theta))
    for t in range(60):
        a = propc.sample(Normal(theta[:, 0] + theta[:, 1] * x + theta[:, 2] * v, 0.3), f"a{t}")
        v = v + 0.05 * (a - 1)
        x = x + 0.05 * v
        v = torch.where(x < 0, -0.9 * v, v)
    return x.square() + 0.1 * v.square()


def test_a_bouncing_ball() -> None:
    """All actions before a bounce that comes near take the score, from the first call on."""
    theta = torch.zeros(1000, 3, requires_grad=True)
    sites = propc.compile(ball).graph(theta).sites
    assert {site.estimator for site in sites[:30]} == {"lr"}
    assert all(site.estimator == "lr" or site.name in ("a58", "a59") for site in sites)

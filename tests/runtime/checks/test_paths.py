"""Paths that autograd claims and that are none are found with values, whatever the operation is called."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stats import assert_rejected, check, gradient_draws
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution, constraints
from torch.distributions.transforms import Transform

import propc
from propc.runtime.checks.paths import _TRUSTED, _cuts

Op = Callable[[Tensor], Any]
LOC, SCALE = 0.4, 1.0


def into(view: Callable[[Tensor], Tensor], write: Callable[[Tensor], Any]) -> Op:
    """A write into a part of a copy."""

    def op(a: Tensor) -> Tensor:
        copy = 1 * a
        write(view(copy))
        return copy

    return op


# What cuts the path, with the mean of what it gives at x.
CUTS: dict[str, tuple[Op, Op]] = {
    "round": (torch.round, torch.round),
    "round_": (lambda a: (1 * a).round_(), torch.round),
    "special.round": (torch.special.round, torch.round),
    "round to a digit": (lambda a: a.round(decimals=1), lambda a: a.round(decimals=1)),
    "into a view": (into(lambda a: a[:], Tensor.round_), torch.round),
    "floor_": (lambda a: (1 * a).floor_(), torch.floor),
    "ceil_": (lambda a: (1 * a).ceil_(), torch.ceil),
    "trunc_": (lambda a: (1 * a).trunc_(), torch.trunc),
    "fix": (torch.fix, torch.trunc),
    "sign_": (lambda a: (1 * a).sign_(), torch.sign),
    "sgn_": (lambda a: (1 * a).sgn_(), torch.sign),
    "div": (lambda a: torch.div(a, 0.5, rounding_mode="floor"), lambda a: (2 * a).floor()),
    "div_": (lambda a: (1 * a).div_(0.5, rounding_mode="trunc"), lambda a: (2 * a).trunc()),
    "floor_divide_": (lambda a: (1 * a).floor_divide_(0.5), lambda a: (2 * a).floor()),
    "operator": (lambda a: operator.floordiv(a, 0.5), lambda a: (2 * a).floor()),
    "copysign": (lambda a: torch.copysign(torch.ones_like(a), a), torch.sign),
    "heaviside": (lambda a: torch.heaviside(a, torch.ones_like(a)), lambda a: (a >= 0).double()),
    "normal": (lambda a: torch.normal(a, 1.0) ** 2, lambda a: a**2 + 1),
    "normal's scale": (lambda a: torch.normal(0.0, (a / 4).exp()) ** 2, lambda a: (a / 2).exp()),
    "bernoulli": (lambda a: torch.bernoulli(a.sigmoid()), torch.sigmoid),
    "bernoulli_": (lambda a: torch.empty_like(a).bernoulli_(a.sigmoid()), torch.sigmoid),
    "poisson": (lambda a: torch.poisson(a.exp()), torch.exp),
    "binomial": (lambda a: torch.binomial(torch.full_like(a, 4.0), a.sigmoid()), lambda a: 4 * a.sigmoid()),
}
KEEPS: dict[str, Op] = {
    "relu6": F.relu6,
    "narrow clamp": lambda a: F.hardtanh(a, -0.01, 0.01),
    "far relu": lambda a: F.relu(a - 50),
    "far elu_": lambda a: F.elu_(a - 50) + a,
    "hardsigmoid": F.hardsigmoid,
    "softshrink": F.softshrink,
    "dropout": lambda a: F.dropout(a, 0.5) ** 2,
    "rrelu": lambda a: F.rrelu(a, training=True),
    "saturated": lambda a: (a + 90).sigmoid(),
    "erfinv": lambda a: a.sigmoid().erfinv(),
    "masked_fill": lambda a: a.masked_fill(a < 0, 0.0),
    "assigned": into(lambda a: a[1:], lambda part: part.mul_(2)),
    "nan_to_num": torch.nan_to_num,
    "sorted": lambda a: a.sort(0)[0],
    "lgamma": lambda a: a.exp().lgamma(),
    "i0": torch.special.i0,
    "frac": torch.frac,
    "spectrum": lambda a: torch.fft.fft(a).abs(),
}


def exact(mean: Op) -> Tensor:
    """The derivative of E mean(x) in the mean of x, by its score over a grid; jumps fall between its points."""
    x = torch.linspace(LOC - 9 * SCALE, LOC + 9 * SCALE, 2_000_001, dtype=torch.float64)
    weights = Normal(torch.tensor(LOC, dtype=torch.float64), SCALE).log_prob(x).exp()
    return torch.trapezoid(weights * (x - LOC) / SCALE**2 * mean(x), x).float()[None]


def program(op: Op) -> Callable[..., Tensor]:
    def run(loc: Tensor, batch: int) -> Tensor:
        return op(propc.sample(Normal(loc.expand(batch), SCALE), "x"))

    return run


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_is_found(name: str) -> None:
    op, mean = CUTS[name]

    def rows(loc: Tensor, batch: int) -> Tensor:
        return op(propc.sample(Normal(loc[:, 0], SCALE), "x"))

    # Whether rows mix is another check's question: two of these use as many random numbers as their values say.
    compiled = propc.compile(rows, validate=name not in ("poisson", "binomial"))
    found, right = gradient_draws(compiled, torch.tensor([LOC]), rows=100_000), exact(mean)
    check(found, right, twin=1.2)
    assert_rejected(torch.zeros_like(found) + 1e-9 * found, right)  # what the path that autograd claims would give


@pytest.mark.parametrize("estimator", ["rp", "tp", "gr"])
@pytest.mark.parametrize("name", ["round_", "div", "into a view", "normal"])
def test_estimators_along_paths_refuse_it(name: str, estimator: str) -> None:
    compiled = propc.compile(program(CUTS[name][0]), estimator=estimator)
    with pytest.raises(propc.PropcError, match=r"'x.*test_paths.py"):
        compiled(torch.tensor(LOC, requires_grad=True), 16)


@pytest.mark.filterwarnings("ignore:.*jumps by:propc.PropcWarning")  # frac does, and has a path between its jumps
@pytest.mark.parametrize("rows", [1, 16, 1000])
@pytest.mark.parametrize("name", KEEPS)
def test_no_false_alarm(name: str, rows: int) -> None:
    compiled = propc.compile(program(KEEPS[name]), estimator="rp", validate=False)
    assert compiled(torch.tensor(LOC, requires_grad=True), rows).requires_grad


def test_no_random_number_is_used_up() -> None:
    def run(op: Op) -> Tensor:
        torch.manual_seed(3)
        propc.compile(program(op), estimator="lr")(torch.tensor(LOC, requires_grad=True), 16)
        return torch.rand(3)

    assert torch.equal(run(torch.special.round), run(torch.sin))


def test_a_black_box_is_not_run_for_it() -> None:
    calls = []
    box = propc.opaque(lambda x: (calls.append(1), x)[1])
    compiled = propc.compile(program(lambda a: torch.special.round(a) + box(a)), estimator="lr", validate=False)
    compiled(torch.tensor(LOC, requires_grad=True), 16)
    assert len(calls) == 2  # while tracing, on zeros, and when the program runs


class Drawn(Normal):
    """A law that says that it has a path, and draws without gradient."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return super().rsample(torch.Size(sample_shape))


class HalfDrawn(Normal):
    """One whose path leads to one of its parameters alone."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale.detach() * torch.randn(self._extended_shape(torch.Size(sample_shape)))


class Rounded(Transform):
    """A transform of a user's that cuts."""

    domain = codomain = constraints.real
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x + 2 * (x.detach() - x)

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("law", [Drawn, HalfDrawn])
def test_a_law_whose_draw_has_no_path(law: type[Normal]) -> None:
    def run(theta: Tensor, batch: int) -> Tensor:
        return propc.sample(law(theta[..., 0], theta[..., 1].exp()), "x").square()

    theta = torch.tensor([0.3, -0.2])
    right = torch.tensor([2 * 0.3, 2 * torch.tensor(-0.4).exp()])
    check(gradient_draws(propc.compile(run), theta, rows=200_000), right, twin=1.2)
    with pytest.raises(propc.PropcError, match=r"'x' .*does not lead back to its parameters"):
        propc.compile(run, estimator="rp")(theta.expand(8, 2).clone().requires_grad_(), 8)


def test_a_transform_of_a_users_is_looked_at_and_trusted_where_it_has_a_slope() -> None:
    def run(loc: Tensor, batch: int) -> Tensor:
        return propc.sample(TransformedDistribution(Normal(loc.expand(batch), 1.0), [Rounded()]), "x")

    assert propc.compile(run, estimator="rp")(torch.tensor(LOC, requires_grad=True), 8).requires_grad


def _arguments(name: str) -> tuple[Sequence[Any], int]:
    """Arguments of a trusted operation, and which of them is moved."""
    x, square = torch.randn(4, 4).double().abs() + 0.1, torch.randn(4, 4).double()
    special: dict[str, Sequence[Any]] = {
        "addbmm": (x, square[None], square[None]),
        "addcdiv": (x, square, square),
        "addcmul": (x, square, square),
        "addmm": (x, square, square),
        "addmv": (x[0], square, square[0]),
        "baddbmm": (x[None], square[None], square[None]),
        "bmm": (x[None], square[None]),
        "cat": ([x, square],),
        "clamp": (x, 0.0, 1e9),
        "conv1d": (x[None], torch.randn(1, 4, 1).double()),
        "conv2d": (x[None, None], torch.randn(1, 1, 2, 2).double()),
        "cumsum": (x, 0),
        "einsum": ("ij,jk", x, square),
        "expand": (x, 4, 4),
        "gather": (x, 0, torch.zeros(4, 4, dtype=torch.int64)),
        "getitem": (x, 0),
        "index_select": (x, 0, torch.tensor([0, 1])),
        "lerp": (x, square, 0.3),
        "linear": (x, square),
        "log_softmax": (x, 0),
        "logsumexp": (x, 0),
        "movedim": (x, 0, 1),
        "permute": (x, (1, 0)),
        "reshape": (x, (16,)),
        "select": (x, 0, 1),
        "softmax": (x, 0),
        "stack": ([x, square],),
        "sum": (x,),
        "tensordot": (x, square),
        "to": (x, torch.float32),
        "transpose": (x, 0, 1),
        "unsqueeze": (x, 0),
        "view": (x, 16),
        "where": (x > -1, x, square),
    }
    pairs = "add atan2 div matmul maximum minimum mul pow rsub sub truediv".split()
    given = special.get(name, (x, square.abs()) if name in pairs else (x,))
    return given, {"einsum": 1, "where": 1}.get(name, 0)


@pytest.mark.parametrize("name", sorted(_TRUSTED - {"after", "detach"}))
def test_what_is_trusted_was_tested(name: str) -> None:
    """Each has a slope: the very test that others are put to finds none of them cut."""
    given, place = _arguments(name)
    homes = (torch, F, Tensor, operator)
    fn = next(getattr(home, name) for home in homes if hasattr(home, name))

    def call(moved: Tensor) -> list[Tensor]:
        arguments: list[Any] = list(given)
        arguments[place] = [moved, *given[place][1:]] if isinstance(given[place], list) else moved
        found = fn(*arguments)
        return list(found) if isinstance(found, (tuple, list)) else [found]

    value = given[place][0] if isinstance(given[place], list) else given[place]
    leaf = value.clone().requires_grad_()
    out = [each for each in call(leaf) if each.is_floating_point()]
    (slope,) = torch.autograd.grad([each.sum() if name != "softmax" else (each**2).sum() for each in out], leaf)
    assert bool((slope != 0).any())
    assert not _cuts(call, value)
    assert _cuts(lambda moved: [torch.special.round(8 * each) for each in call(moved)], value)  # and it can fail

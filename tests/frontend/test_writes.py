"""Writes into draws, parameters of sites and the program's own tensors, under every way of running a program again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

import propc

BATCH = 16
Body = Callable[[Tensor, Tensor], Tensor]


def scaled(x: Tensor, th: Tensor) -> Tensor:
    x *= 2
    return x.square()


def one_column(x: Tensor, th: Tensor) -> Tensor:
    y = torch.stack([x, th * torch.ones(BATCH)], 1)
    y[:, 0] = 3 * y[:, 0] + th
    return y.square().sum(1)


def augmented_part(x: Tensor, th: Tensor) -> Tensor:
    y = torch.zeros(BATCH, 3)
    y[:, 1:] += x[:, None] * th
    y[..., -1] *= 2
    return y.square().sum(1)


def view_read_later(x: Tensor, th: Tensor) -> Tensor:
    y = x[:, None].repeat(1, 2)
    first = y[:, 0]
    y.mul_(th.clone())
    first.add_(1)
    return y.square().sum(1) + first


def masked(x: Tensor, th: Tensor) -> Tensor:
    y = x + th
    y[x > 0.5] = 0.25
    return y.square()


def masked_rows(x: Tensor, th: Tensor) -> Tensor:
    y = torch.stack([x + th, x - th], 1)
    y[x > 0.5] = 0.25
    return y.square().sum(1)


def shifted(x: Tensor, th: Tensor) -> Tensor:
    y = torch.stack([x, x * th, x - th], 1)
    y[:, 1:] = y[:, :-1].clone()
    return (y * torch.arange(3.0)).sum(1)


def buffers(x: Tensor, th: Tensor) -> Tensor:
    y = torch.empty(BATCH, 2)
    y[:, 0].copy_(x)
    y[:, 1].fill_(2.0)
    return (y * th).square().sum(1)


def zeroed(x: Tensor, th: Tensor) -> Tensor:
    y = x * th
    z = y * 2
    y.zero_()
    return y + z


def activation(x: Tensor, th: Tensor) -> Tensor:
    y = F.relu(x - th, inplace=True)
    return F.leaky_relu(y + x * th, inplace=True)


def through_a_view(x: Tensor, th: Tensor) -> Tensor:
    y = (x * th).clone()
    y.view(BATCH, 1)[:, 0] = x * 3
    return y.square()


def into_the_cost(x: Tensor, th: Tensor) -> Tensor:
    cost = (x - th).square()
    cost += 1
    return cost


BODIES = (
    scaled,
    one_column,
    augmented_part,
    view_read_later,
    masked,
    masked_rows,
    shifted,
    buffers,
    zeroed,
    activation,
    into_the_cost,
)


def law(name: str, phi: Tensor) -> Distribution:
    return Normal(phi, 1.0) if name == "Normal" else Bernoulli(logits=phi)


def run(body: Body, name: str, estimator: str, whole: bool, **options: object) -> tuple[Tensor, Tensor]:
    """Costs and gradient, where the program writes into what it draws, and where it writes into a copy."""

    def program(th: Tensor) -> Tensor:
        x = propc.sample(law(name, th.expand(BATCH)), "x")
        return body(x if whole else x.clone(), th)

    th = torch.tensor(0.4, requires_grad=True)
    torch.manual_seed(1)
    costs = propc.compile(program, estimator=estimator, **options)(th)  # type: ignore[call-overload]
    return costs.detach(), torch.autograd.grad(costs.mean(), th)[0]


def plain(body: Body) -> tuple[Tensor, Tensor]:
    """The pathwise gradient by torch alone, from the same noise."""
    th = torch.tensor(0.4, requires_grad=True)
    torch.manual_seed(1)
    costs = body(Normal(th.expand(BATCH), 1.0).rsample().clone(), th)
    return costs.detach(), torch.autograd.grad(costs.mean(), th)[0]


@pytest.mark.filterwarnings("ignore:.*jump")
@pytest.mark.parametrize("body", [*BODIES, through_a_view], ids=lambda body: body.__name__)
def test_along_the_path_it_is_what_torch_gives(body: Body) -> None:
    torch.testing.assert_close(run(body, "Normal", "rp", whole=True), plain(body))


@pytest.mark.filterwarnings("ignore:.*jump")
@pytest.mark.parametrize("estimator", ["lr", "tp", "gr", "mvd"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_a_draw_that_is_written_into(body: Body, estimator: str) -> None:
    """A score is of the draw that was made: a copy by the user's own hand changes nothing."""
    if estimator == "gr" and body in (masked, masked_rows):
        pytest.skip("a jump, which 'gr' refuses or warns of")
    torch.testing.assert_close(run(body, "Normal", estimator, True), run(body, "Normal", estimator, False))


@pytest.mark.parametrize("estimator", ["lr", "rloo", "enumerate", "local", "disarm"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_a_discrete_draw_that_is_written_into(body: Body, estimator: str) -> None:
    torch.testing.assert_close(run(body, "Bernoulli", estimator, True), run(body, "Bernoulli", estimator, False))


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_enumeration_is_exact(body: Body) -> None:
    """Against the two values of the draw, by hand."""
    th = torch.tensor(0.4, requires_grad=True)
    p = th.sigmoid()
    costs = [body(torch.full((BATCH,), value, requires_grad=True).clone(), th) for value in (0.0, 1.0)]
    exact = torch.autograd.grad(((1 - p) * costs[0] + p * costs[1]).mean(), th)[0]
    torch.testing.assert_close(run(body, "Bernoulli", "enumerate", True)[1], exact)


@pytest.mark.parametrize("options", [{"backend": "inductor"}, {"passes": [propc.passes.Checkpoint()]}, {"chunk": 4}])
@pytest.mark.parametrize("body", [one_column, augmented_part, masked], ids=lambda body: body.__name__)
def test_other_ways_of_running_it(body: Body, options: dict[str, object]) -> None:
    torch.testing.assert_close(run(body, "Normal", "lr", True, **options), run(body, "Normal", "lr", True))


@pytest.mark.parametrize("estimator", ["lr", "rloo", "tp", "enumerate", "local", "disarm"])
def test_parameters_written_into_behind_the_site(estimator: str) -> None:
    name = "Normal" if estimator == "tp" else "Bernoulli"

    def program(th: Tensor, copied: bool) -> Tensor:
        phi = th.expand(BATCH).clone()
        x = propc.sample(law(name, phi.clone() if copied else phi), "x")
        phi += 5
        if estimator != "local":
            phi.view(BATCH, 1)[0] = 0.0
        return (x - 0.3).square() * phi

    def gradient(copied: bool) -> Tensor:
        th = torch.tensor(0.4, requires_grad=True)
        torch.manual_seed(2)
        cost = propc.compile(program, estimator=estimator, validate=False)(th, copied)
        return torch.autograd.grad(cost.mean(), th)[0]

    torch.testing.assert_close(gradient(False), gradient(True))


def test_a_write_under_no_grad_is_torchs() -> None:
    """There torch changes the value and leaves the history: the gradient is as though nothing had been written."""

    def body(x: Tensor, th: Tensor) -> Tensor:
        y = x * th
        with torch.no_grad():
            y[0] = 7.0
        return y.square()

    torch.testing.assert_close(run(body, "Normal", "rp", whole=True), plain(body))


def test_a_tensor_of_the_callers_is_written_into() -> None:
    """Buffers, arguments and what a module holds are not the program's own."""

    def program(th: Tensor, seen: Tensor) -> Tensor:
        x = propc.sample(Normal(th.expand(BATCH), 1.0), "x")
        seen[0] += 1
        return x.square()

    seen, compiled = torch.zeros(3), propc.compile(program, estimator="lr")
    for _ in range(3):
        compiled(torch.tensor(0.4, requires_grad=True), seen)
    assert seen.tolist() == [3, 0, 0]

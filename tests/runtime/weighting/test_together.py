"""Sites that draw together: the samples and gradients of sites that draw one by one."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from surrogate import seeded
from torch import Tensor
from torch.distributions import Independent, Normal

import propc
from propc.errors import EstimatorError
from propc.runtime.weighting import normal_rows
from propc.runtime.weighting.mix_on_cpu import known_variances, mix_known, mix_two
from propc.runtime.weighting.normal_rows import Together

Program = Callable[..., Any]


def chain(theta: Tensor, x: Tensor, steps: int = 5) -> Tensor:
    for t in range(steps):
        x = propc.sample(Normal(torch.tanh(theta[0] * x + theta[1]), 0.3), f"x{t}")
    return torch.cos(x).reshape(len(x), -1).sum(1)


def branches(theta: Tensor, x: Tensor) -> Tensor:
    """Two sites side by side, one behind both, and a parameter of its own for each."""
    a = propc.sample(Normal(theta[0] * x, 0.3), "a")
    b = propc.sample(Normal(theta[1] * x, 0.3), "b")
    c = propc.sample(Normal(torch.sin(a) + b.square(), 0.3), "c")
    return (c * a).reshape(len(x), -1).sum(1)


def weighted(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two costs that both hear of all sites."""
    for t in range(4):
        x = propc.sample(Independent(Normal(torch.tanh(theta[0] * x + theta[1]), 0.3), 1), f"x{t}")
    return torch.cos(x).sum(1), x.square().sum(1)


def interrupted(theta: Tensor, x: Tensor) -> Tensor:
    """Two rows of sites in one join, with another draw between them."""
    for t in range(6):
        x = propc.sample(Normal(torch.tanh(theta[0] * x + theta[1]), 0.3), f"x{t}")
        x = x + 0.1 * torch.randn_like(x) if t == 2 else x
    return torch.cos(x).reshape(len(x), -1).sum(1)


PROGRAMS: dict[str, Program] = {
    "chain": chain,
    "branches": branches,
    "two costs": weighted,
    "interrupted": interrupted,
}
ESTIMATORS = ["tp", propc.estimator("tp", weights="same"), propc.estimator("tp", folds=4, baseline=None)]
SHAPES = [(8, 2), (12, 3), (16,), (8, 2, 3), (8, 40)]


def start(shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-1.0, 1.0, torch.Size(shape).numel(), dtype=dtype).reshape(*shape)


def both(program: Program, estimator: Any) -> tuple[Any, Any]:
    """The program as it is compiled, and with sites that draw one by one."""
    apart = propc.compile(program, estimator=estimator, passes=[lambda p: p.without("draw-together")])
    return propc.compile(program, estimator=estimator), apart


def total(returned: Any) -> Tensor:
    costs = returned if isinstance(returned, tuple) else (returned,)
    return sum((2.0 - i) * cost.mean() for i, cost in enumerate(costs))  # type: ignore[return-value]


def found(compiled: Any, x: Tensor, order: int, calls: int = 3) -> list[Tensor]:
    """Values, gradients and the state of the generator after some calls."""
    theta = torch.tensor([0.7, 0.2], dtype=x.dtype, requires_grad=True)
    out: list[Tensor] = []
    torch.manual_seed(5)
    for _ in range(calls):
        cost = total(compiled(theta, x))
        (grad,) = torch.autograd.grad(cost, theta, create_graph=order == 2)
        out += [cost.detach(), grad.detach()]
        if order == 2:
            out += torch.autograd.grad(grad.square().sum(), theta)
    return [*out, torch.get_rng_state()]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("small", [True, False], ids=["noise kept", "drawn again"])
def test_the_same_numbers(
    small: bool, name: str, estimator: Any, shape: tuple[int, ...], order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "two costs" and len(shape) != 2:
        shape = (8, 5)
    monkeypatch.setattr(normal_rows, "STATE", 2**40 if small else -1)
    here, apart = both(PROGRAMS[name], estimator)
    theta = torch.ones(2, requires_grad=True)
    assert here.graph(theta, start(shape)).schedule.together
    for one, other in zip(found(here, start(shape), order), found(apart, start(shape), order)):
        torch.testing.assert_close(one, other)


def test_a_join_with_other_sites() -> None:
    """What draws alone reads the same message, through the join."""
    estimator = {"x1": propc.estimator("lr", baseline=None), "*": propc.estimator("tp", baseline=None)}
    here, apart = both(chain, estimator)
    graph = here.graph(torch.ones(2, requires_grad=True), start((8, 2)))
    assert graph.schedule.together == (("x2", "x3", "x4"),)
    assert [len(join.members) for join in graph.joins] == [5]
    for one, other in zip(found(here, start((8, 2)), 2), found(apart, start((8, 2)), 2)):
        torch.testing.assert_close(one, other)


def test_samples_are_the_same_bit_for_bit() -> None:
    here, apart = both(chain, "tp")
    theta = torch.tensor([0.7, 0.2], requires_grad=True)
    for dtype in (torch.float32, torch.float64):
        for shape in SHAPES:
            x = start(shape, dtype)
            values = [seeded(each, theta.detach().to(dtype).requires_grad_(), x, seed=3) for each in (here, apart)]
            assert torch.equal(*values)


@pytest.mark.parametrize("small", [True, False])
def test_a_second_reverse_pass(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first has used up is drawn again."""
    monkeypatch.setattr(normal_rows, "STATE", 2**40 if small else -1)
    theta = torch.tensor([0.7, 0.2], requires_grad=True)
    cost = propc.compile(chain, estimator="tp")(theta, start((8, 4)))
    grads = [torch.autograd.grad(cost.mean(), theta, retain_graph=True)[0] for _ in range(3)]
    grads += [torch.autograd.grad(cost.mean(), theta, create_graph=True)[0]]
    grads += [torch.autograd.grad(cost.mean(), theta, retain_graph=True)[0]]
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])
    twice = torch.autograd.grad([cost.mean(), cost.square().mean()], theta, retain_graph=True)[0]
    apart = [torch.autograd.grad(c, theta, retain_graph=True)[0] for c in (cost.mean(), cost.square().mean())]
    assert not torch.allclose(twice, apart[0])


def test_a_part_of_the_graph() -> None:
    """The gradient in what one branch alone reads: the other's gate is met on the way of the token."""
    theta = [torch.tensor(0.7, requires_grad=True), torch.tensor(0.2, requires_grad=True)]

    def program(first: Tensor, second: Tensor, x: Tensor) -> Tensor:
        a = propc.sample(Normal(first * x, 0.3), "a")
        b = propc.sample(Normal(second * x, 0.3), "b")
        return (torch.sin(a) + b.square()).sum(1)

    for i in range(2):
        grads = []
        for compiled in both(program, "tp"):
            cost = seeded(compiled, *theta, start((8, 4)), seed=2)
            grads += torch.autograd.grad(cost.mean(), theta[i])
        torch.testing.assert_close(*grads)
        assert grads[0] != 0


def test_many_cotangents_at_once() -> None:
    """Under vmap, as `is_grads_batched` has it, numbers cannot be looked at."""
    theta = torch.tensor([0.7, 0.2], requires_grad=True)
    directions = torch.eye(8)
    grads = []
    for compiled in both(chain, "tp"):
        cost = seeded(compiled, theta, start((8, 4)), seed=2)
        grads += torch.autograd.grad(cost, theta, directions, is_grads_batched=True)
    torch.testing.assert_close(*grads)


NOT_FINITE: dict[str, Callable[[Tensor], Tensor]] = {  # their value is zero
    "infinite": lambda x: (x - x.detach()).sqrt(),
    "undefined": lambda x: (x - x.detach()).square().sqrt(),
}


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_cotangents_that_are_not_finite(bad: str) -> None:
    """They are left out where the weights have seen them, as where sites draw one by one."""

    def program(theta: Tensor, x: Tensor) -> Tensor:
        x = propc.sample(Normal(theta[0] * x, 0.3), "a")
        x = propc.sample(Normal(theta[1] * x, 0.3), "b")
        return torch.where(x > 0, x, x + NOT_FINITE[bad](x)).sum(1)

    grads = []
    for compiled in both(program, "tp"):
        theta = torch.tensor([0.7, 0.2], requires_grad=True)
        seeded(compiled, theta, start((8, 4)), seed=1).mean().backward()
        grads.append(theta.grad)
    assert grads[0] is not None
    assert grads[0].isfinite().all()
    torch.testing.assert_close(*grads)


def test_a_scale_written_into_before_the_reverse_pass() -> None:
    def program(theta: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
        for t in range(3):
            x = propc.sample(Normal(theta * x, sigma), f"x{t}")
        return x.sum(1)

    theta, sigma = torch.tensor(0.7, requires_grad=True), torch.full((8, 2), 0.3)
    compiled = propc.compile(program, estimator="tp")
    assert compiled.graph(theta, sigma, start((8, 2))).schedule.together
    cost = compiled(theta, sigma, start((8, 2)))
    sigma.mul_(2.0)
    with pytest.raises(EstimatorError, match=r"site 'x2' .*its scale was written into"):
        cost.mean().backward()
    compiled(theta, sigma, start((8, 2))).mean().backward()  # nothing is poisoned


def test_without_gradients() -> None:
    compiled, _ = both(chain, "tp")
    theta = torch.tensor([0.7, 0.2], requires_grad=True)
    plain = seeded(compiled, theta, start((8, 4)), seed=4)
    with torch.no_grad():
        assert torch.equal(seeded(compiled, theta, start((8, 4)), seed=4), plain)
    with torch.inference_mode():
        assert torch.equal(seeded(compiled, theta, start((8, 4)), seed=4), plain)


def test_threads() -> None:
    """Each thread has its own numbers to blend by."""
    compiled = propc.compile(chain, estimator="tp")
    theta = torch.tensor([0.7, 0.2], requires_grad=True)
    compiled(theta, start((8, 4))).mean().backward()
    costs = [compiled(theta, start((8, 4))) for _ in range(24)]
    expected = [torch.autograd.grad(cost.mean(), theta, retain_graph=True)[0] for cost in costs]
    grads: list[Any] = [None] * len(costs)

    def work(first: int) -> None:
        for i in range(first, len(costs), 4):
            grads[i] = torch.autograd.grad(costs[i].mean(), theta)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(grads, expected)


def held_by(it: Together | None) -> tuple[Any, ...]:
    assert it is not None
    return len(it._noise), len(it._scores), it._sent, it._kept


def test_nothing_is_held_behind_a_reverse_pass() -> None:
    """Also while the cost is there; and without the garbage collector, as there are no cycles."""
    made: list[weakref.ref[Together]] = []
    held = Together.__init__

    def remember(self: Together, *args: Any) -> None:
        held(self, *args)
        made.append(weakref.ref(self))

    Together.__init__ = remember  # type: ignore[method-assign]
    try:
        theta = torch.tensor([0.7, 0.2], requires_grad=True)
        compiled = propc.compile(chain, estimator="tp")
        compiled(theta, start((64, 40))).mean().backward()
        gc.collect()
        made.clear()
        gc.disable()
        cost = compiled(theta, start((64, 40)))
        cost.mean().backward()
        assert [held_by(ref()) for ref in made] == [(0, 0, None, None)] * 2
        del cost
        assert [ref() for ref in made] == [None, None]
    finally:
        gc.enable()
        Together.__init__ = held  # type: ignore[method-assign]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("coordinates", [1, 3, 40])
def test_mixing_with_known_variances(coordinates: int, groups: int) -> None:
    path, score = torch.randn(8, coordinates) + 1, 3 * torch.randn(8, coordinates)
    (expected,) = mix_two([(path, score)], groups) or [None]
    rows = score.clone().view(groups, 8 // groups, coordinates)
    (variances,) = known_variances(rows, groups)
    assert variances is not None
    assert mix_known(path.view(rows.shape), rows, variances)
    torch.testing.assert_close(rows.view(8, coordinates), expected)


def test_variances_that_are_no_numbers() -> None:
    rows = torch.randn(4, 3, 2)
    rows[1, 0, 0] = torch.inf
    assert known_variances(rows, 2) == [None, None]
    good, bad = torch.randn(2, 3, 2), torch.full((2, 3, 2), torch.nan)
    kept = good.clone()
    assert not mix_known(bad, good, [1.0, 1.0])
    assert torch.equal(good, kept)

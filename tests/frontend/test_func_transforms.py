"""`torch.vmap` and `torch.func.grad` inside a program: as in the plain program, under every estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from surrogate import Plain, gradients, surrogate
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal

import propc

B = 5
NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
STACKED = {k: torch.stack([p, p.cos()]).detach().requires_grad_() for k, p in NET.named_parameters()}


def energy(x: Tensor) -> Tensor:
    return NET(x).sum() + x.pow(4).sum()


def _mapped_over_models(x: Tensor) -> Tensor:
    one = torch.vmap(lambda p, v: torch.func.functional_call(NET, p, (v,)), in_dims=(0, None))
    return one(STACKED, x).prod(0).squeeze(-1)


def _tree(x: Tensor) -> Tensor:
    found = torch.vmap(lambda v, w: {"a": v * w, "b": (v.sum(), [w.sum()])}, in_dims=(0, None))(x, torch.ones(3))
    return found["a"].sum(1) * found["b"][0] * found["b"][1][0]


PROGRAMS: dict[str, Callable[[Tensor], Tensor]] = {
    "vmap": lambda x: torch.vmap(lambda row: row.square().sum() * row[0])(x),
    "keywords": lambda x: torch.vmap(lambda row, scale: (row * scale).prod(), in_dims=(0, None))(x, x.new_tensor(2.0)),
    "module": lambda x: torch.vmap(NET)(x).squeeze(-1) * torch.vmap(energy)(x),
    "closure": lambda x: torch.func.vmap(lambda i: (x * i).sin().sum(1))(torch.arange(3.0)).sum(0),
    "models": _mapped_over_models,
    "tree": _tree,
    "grad": lambda x: (torch.func.grad(energy)(x) * x).sum(1),
    "grad and value": lambda x: torch.func.grad_and_value(energy)(x)[0].sin().sum(1),
    "with more": lambda x: torch.func.grad(lambda v: (v.pow(3).sum(), v.exp()), has_aux=True)(x)[1].sum(1),
    "grad of each row": lambda x: torch.vmap(torch.func.grad(energy))(x).square().sum(1),
    "Hessian of each row": lambda x: (
        torch.vmap(torch.func.jacrev(torch.func.jacrev(energy)))(x).diagonal(dim1=1, dim2=2).sum(1)
    ),
    "Jacobian of each row": lambda x: torch.vmap(torch.func.jacrev(torch.sin))(x).sum((1, 2)),
    "noise": lambda x: torch.vmap(lambda v: (v * torch.randn_like(v)).sum(), randomness="different")(x),
    "made inside": lambda x: torch.vmap(lambda v: (v @ torch.eye(3) + torch.zeros(3)).sum())(x),
}
PARAMETERS = [*NET.parameters(), *STACKED.values()]


@pytest.mark.parametrize("case", PROGRAMS)
def test_pathwise_is_plain_autograd(case: str) -> None:
    def program(a: Tensor) -> Tensor:
        return PROGRAMS[case](propc.sample(Normal(a, 0.5), "x"))

    compiled = propc.compile(program, estimator="rp")
    for step in range(3):
        a = torch.linspace(0.1 + step, 1.0, 3 * B).reshape(B, 3).requires_grad_()
        found = []
        for fn in (program, compiled):
            torch.manual_seed(step)
            cost = fn(a)
            found.append((cost, *gradients(cost.sum(), [a, *PARAMETERS])))
        for x, y in zip(*found, strict=True):
            assert torch.allclose(x, y, rtol=1e-12, atol=1e-14)
    assert compiled.compiler.traces == 1


@pytest.mark.parametrize("case", [case for case in PROGRAMS if case not in ("noise", "with more")])
def test_scores_are_the_surrogate(case: str) -> None:
    def program(a: Tensor, sample: Any = propc.sample) -> Tensor:
        return torch.cos(PROGRAMS[case](sample(Independent(Normal(a, 0.5), 1), "x")))

    a = torch.linspace(0.1, 1.0, 3 * B).reshape(B, 3).requires_grad_()
    torch.manual_seed(1)
    plain = Plain()
    cost = program(a, plain)
    wanted = gradients(surrogate([(cost, ["x"])], plain.scores).sum(), [a, *PARAMETERS])
    torch.manual_seed(1)
    mine = propc.compile(program, estimator="lr")(a)
    assert torch.allclose(mine, cost)
    for x, y in zip(gradients(mine.sum(), [a, *PARAMETERS]), wanted, strict=True):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ["vmap", "closure", "module", "grad of each row", "models"])
def test_in_plates(case: str) -> None:
    """An enumeration of a coin is the expectation written out."""

    def program(a: Tensor) -> Tensor:
        return PROGRAMS[case](propc.sample(Bernoulli(logits=a), "b")[:, None] + torch.arange(3.0))

    a = torch.linspace(-1.0, 1.0, B).requires_grad_()
    p = torch.sigmoid(a)
    low, high = (PROGRAMS[case](torch.full((B, 1), v) + torch.arange(3.0)) for v in (0.0, 1.0))
    wanted = (1 - p) * low + p * high
    mine = propc.compile(program, estimator="enumerate")(a)
    assert torch.allclose(mine, wanted)
    for x, y in zip(*(gradients(v.sum(), [a, *PARAMETERS]) for v in (mine, wanted)), strict=True):
        assert torch.allclose(x, y)


def test_a_parameter_replaced_between_calls() -> None:
    layer = nn.Linear(3, 1)

    @propc.compile(estimator="rp")
    def program(a: Tensor) -> Tensor:
        return torch.vmap(lambda v: layer(v).sum())(propc.sample(Normal(a, 0.1), "x"))

    a = torch.ones(B, 3)
    for weight in (layer.weight, nn.Parameter(torch.zeros(1, 3))):
        layer.weight = weight
        torch.manual_seed(0)
        cost = program(a)
        torch.manual_seed(0)
        assert torch.equal(cost, layer(Normal(a, 0.1).rsample()).squeeze(-1))
        assert torch.autograd.grad(cost.sum(), weight)[0].abs().sum() > 0
    assert program.compiler.traces == 1


def test_what_torch_cannot_do_without_values() -> None:
    @propc.compile(estimator="rp")
    def program(a: Tensor) -> Tensor:
        x = propc.sample(Normal(a, 0.1), "x")
        return torch.vmap(torch.func.hessian(energy))(x).sum((1, 2))

    with pytest.raises(propc.TraceError, match=r"test_func_transforms\.py.*jacrev\(jacrev\(f\)\)"):
        program(torch.ones(B, 3))


def test_torch_is_left_as_it_was() -> None:
    from torch._functorch import apis, eager_transforms

    before = apis.vmap_impl, eager_transforms.grad_impl, eager_transforms.grad_and_value_impl
    propc.compile(lambda a: torch.vmap(torch.sin)(propc.sample(Normal(a, 1.0), "x")))(torch.zeros(B))
    assert before == (apis.vmap_impl, eager_transforms.grad_impl, eager_transforms.grad_and_value_impl)

"""Operations in a program: it runs compiled as it runs plain, and keeps nothing."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from side_by_side import B, param, same
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Gamma, Normal, kl_divergence

import propc


def test_in_place_operations_by_keyword() -> None:
    @propc.compile
    def program(theta: torch.Tensor) -> torch.Tensor:
        return theta * torch.nn.init.ones_(tensor=torch.empty(3))

    assert program(torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]


def test_in_place_operations() -> None:
    def program(a: Tensor) -> Tensor:
        x = a * 1
        before = x.sum()
        x += 1
        x[0] = 0
        x[1:3] *= 2
        total = x.sum()
        x.clamp_(min=0.1).mul_(2)
        buf = torch.zeros(4, B)
        buf[0] = x
        rows = buf[1:3]
        buf[1].copy_(x * 2)
        read = buf.sum(0)
        rows[0].add_(1)
        late = rows.sum(0) * 10
        y = propc.sample(Normal(read, 1.0), "y")
        buf[3] = y
        buf[3, 0] += y[1]
        out = torch.zeros(B)
        torch.add(a.detach(), 1, out=out)
        return buf.sum(0) + before + total + read + late + out

    same(program, param(B))


def test_a_buffer_filled_over_sites() -> None:
    def program(a: Tensor) -> Tensor:
        trajectory = torch.zeros(4, B)
        for t in range(4):
            a = propc.sample(Normal(a, 0.1), f"x{t}")
            trajectory[t] = a
        return trajectory.square().sum(0)

    same(program, param(B))


def test_writing_into_an_argument_is_seen_outside() -> None:
    def program(memory: Tensor, a: Tensor) -> Tensor:
        memory[0] = a.detach()
        memory += 1
        return memory.sum(0) + a

    memory, other, a = torch.zeros(3, B), torch.zeros(3, B), param(B)
    program(memory, a)
    propc.compile(program)(other, a)
    assert torch.equal(memory, other)


def test_no_grad_detach_and_grad_modes() -> None:
    @torch.no_grad()
    def target(x: Tensor) -> Tensor:
        return x * 3

    def program(a: Tensor) -> Tensor:
        with torch.no_grad():
            b = a * 2
            with torch.enable_grad():
                c = a * 5
        x = propc.sample(Normal(a, 0.5), "x")
        torch.set_grad_enabled(False)
        d = a * 7
        torch.set_grad_enabled(True)
        with torch.inference_mode():
            assert not (x * 2).requires_grad
        assert [t.requires_grad for t in (b, d)] == [False, False]
        assert c.requires_grad
        return x * b + c + target(x) * x + x * x.detach() * a + d + a.data

    same(program, param(B))


@pytest.mark.parametrize("estimator", ["rp", "lr", "infer"])
def test_a_site_in_a_no_grad_region_hands_no_gradient_on(estimator: str) -> None:
    def program(a: Tensor) -> Tensor:
        with torch.no_grad():
            x = propc.sample(Normal(a, 1.0), "x")
        return x * a

    a = param(B)
    x = propc.compile(program, estimator=estimator)(a)
    (grad,) = torch.autograd.grad(x.sum(), a)
    assert torch.allclose(grad, (x / a).detach())


def test_autocast_regions() -> None:
    layer = nn.Linear(4, 4, dtype=torch.float32)

    def program(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = layer(x)
            with torch.autocast("cpu", enabled=False):
                full = layer(x)
        assert h.dtype == torch.bfloat16
        assert full.dtype == torch.float32
        z = propc.sample(Normal(h.float(), 1.0), "z")
        return (z + full + layer(z)).sum(-1)

    x = torch.ones(B, 4, dtype=torch.float32)
    same(program, x, wrt=tuple(layer.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(program, x, wrt=tuple(layer.parameters()))


class Clipped(torch.autograd.Function):
    """Identity whose gradient is twice the sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float = 2.0) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.factor * grad.sign(), None


class Paired(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, y: Tensor, k: float = 1.0) -> tuple[Tensor, Tensor]:
        return x * k, y + 1

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> Any:
        return 10 * a, 20 * b, None


clipped = Clipped.apply  # the usual alias


def test_custom_autograd_functions_keep_their_backward() -> None:
    def program(a: Tensor) -> Tensor:
        x = propc.sample(Normal(Clipped.apply(a), 1.0), "x")
        u, v = Paired.apply(clipped(x * x, 5.0), a)
        return u + v * x

    before = torch.autograd.Function.apply
    same(program, param(B))
    assert torch.autograd.Function.apply == before


def test_grad_inside() -> None:
    net = nn.Sequential(nn.Linear(B, 4), nn.Tanh(), nn.Linear(4, 1))

    def program(a: Tensor) -> Tensor:
        x = propc.sample(Normal(a, 1.0), "x")
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return slope.square() + x

    same(program, param(B), wrt=tuple(net.parameters()))


def test_indexing_iteration_unpacking_and_named_tuples() -> None:
    def program(a: Tensor, index: Tensor) -> Tensor:
        x, y = propc.sample(Normal(a, 1.0), "x")
        rows = [row * 2 for row in a]
        top = a.max(0)
        order = torch.sort(a, dim=1)
        parts = a.split(1)
        last, *_ = reversed(a)
        turned = torch.stack(list(a)).sum(0) + last + next(iter(a)) + a.T.mT.sum(0)
        return (
            x
            + y
            + rows[0]
            + top.values
            + top.indices
            + order[0][0]
            + parts[1][0]
            + a[0, index]
            + a[..., :][None][0, 0]
            + turned
        )

    same(program, param(2, B), torch.arange(B))


def test_hooks_on_traced_tensors_run() -> None:
    seen = []

    def program(a: Tensor) -> Tensor:
        h = a * 2
        h.register_hook(lambda grad: seen.append(1))
        return propc.sample(Normal(h, 1.0), "x")

    same(program, param(B))
    assert len(seen) == 2


def test_log_prob_entropy_and_kl_written_by_the_user() -> None:
    def program(a: Tensor) -> Tensor:
        q, p = Normal(a, a.exp()), Normal(0.0, 1.0)
        z = propc.sample(q, "z")
        c = Categorical(logits=a.unsqueeze(-1) * torch.arange(3.0))
        return (
            q.log_prob(z)
            - p.log_prob(z)
            + q.entropy()
            + kl_divergence(q, p)
            + c.entropy()
            + c.probs[:, 1]
            + Bernoulli(logits=a).entropy()
            + Gamma(a, 1.0).entropy()
            + p.cdf(z)
        )

    same(program, param(B))


def test_a_distribution_can_be_used_after_its_site() -> None:
    def program(a: Tensor) -> Tensor:
        law = Categorical(logits=a.unsqueeze(-1) * torch.arange(3.0))
        c = propc.sample(law, "c")
        coin = Bernoulli(probs=torch.sigmoid(a))
        b = propc.sample(coin, "b")
        again = propc.sample(coin, "again")
        return law.probs[:, 0] + law.log_prob(c) + coin.logits * b + coin.entropy() + again

    compiled = propc.compile(program, estimator="lr")
    compiled(param(B)).sum().backward()


def test_a_trace_keeps_no_tensor_alive() -> None:
    compiled = propc.compile(lambda a: propc.sample(Normal(a, 1.0), "x"))
    a = param(B)
    compiled(a)
    alive = weakref.ref(a)
    del a
    assert alive() is None


def test_least_squares() -> None:
    def program(x: Tensor) -> Tensor:
        return torch.linalg.lstsq(torch.diag_embed(x), x[:, :, None].cos()).solution.sum((1, 2))

    a, compiled = param(B, 3), propc.compile(program)
    costs = program(a), compiled(a)
    assert torch.allclose(*costs)
    assert torch.allclose(*(torch.autograd.grad(cost.sum(), a)[0] for cost in costs))


LOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "ctc": lambda x: F.ctc_loss(
        x[None].expand(4, B, 3).log_softmax(-1),
        torch.ones(B, 2, dtype=torch.long),
        torch.full((B,), 4),
        torch.full((B,), 2),
        reduction="none",
    ),
    "covariance": lambda x: torch.cov(x[0].expand(2, 3).cumsum(1)).sum() + x[:, 0],
    "inverse short-time Fourier": lambda x: (
        torch.istft(torch.stft(x.repeat(1, 8), 8, return_complex=True, window=torch.ones(8)), 8, window=torch.ones(8))
        .square()
        .sum(1)
    ),
    "negative log-likelihood": lambda x: F.gaussian_nll_loss(x, x * 2, torch.ones(B, 3), reduction="none").sum(1),
    "sparse": lambda x: torch.sparse.mm(torch.eye(3).to_sparse(), x.T).square().sum(0),
}


@pytest.mark.parametrize("case", LOOKS)
def test_operations_that_look_at_values_and_those_without_strides(case: str) -> None:
    def program(a: Tensor) -> Tensor:
        return LOOKS[case](propc.sample(Normal(a, 1.0), "x"))

    same(program, param(B, 3))


def test_a_function_for_torch_compile_inside() -> None:
    scaled = torch.compile(lambda x: torch.tanh(x) * 2, backend="eager")

    def program(a: Tensor) -> Tensor:
        return propc.sample(Normal(scaled(a), 1.0), "x").square()

    same(program, param(B))


def test_numbers_of_numpy_in_operations() -> None:
    @propc.compile(estimator="lr")
    def program(theta: torch.Tensor) -> torch.Tensor:
        x = propc.sample(Normal(theta.expand(4), 1.0), "x")
        return (np.float64(2) * x * np.sqrt(2.0)).clamp(min=np.float32(-1)).reshape(np.prod(x.shape)) * torch.tensor(
            np.float64(1)
        )

    theta = torch.tensor(0.3, requires_grad=True)
    torch.manual_seed(1)
    found = program(theta)
    torch.manual_seed(1)
    x = Normal(theta.detach().expand(4), 1.0).sample()
    assert torch.allclose(found, (2 * 2.0**0.5 * x).clamp(min=-1))


def test_sets_that_change_are_seen() -> None:
    chosen = {"a"}

    @propc.compile(estimator="rp")
    def program(theta: torch.Tensor, also: set[str]) -> torch.Tensor:
        return theta * ("b" in chosen) + theta * len(also)

    theta, also = torch.tensor(2.0, requires_grad=True), {1}
    assert program(theta, also) == 2
    chosen.remove("a")
    chosen.add("b")  # as many as before
    assert program(theta, also) == 4
    also.add(2)
    assert program(theta, also) == 6
    traces = program.compiler.traces
    assert program(theta, also) == 6
    assert program.compiler.traces == traces


def test_shapes_without_values() -> None:
    program = propc.compile(lambda theta: propc.sample(Normal(theta.expand(4), 1.0), "x").square(), estimator="lr")
    loss = program(torch.zeros((), device="meta", requires_grad=True))
    loss.sum().backward()
    assert loss.is_meta
    assert loss.shape == (4,)


@functools.lru_cache
def halves(size: int) -> torch.Tensor:
    return torch.full((size,), 0.5)


class Cached(torch.nn.Module):
    @functools.lru_cache  # noqa: B019
    def thirds(self, size: int) -> torch.Tensor:
        return torch.ones(size) / 3

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        return theta * self.thirds(4) * halves(4)


def test_a_cache_keeps_no_traced_tensor() -> None:
    model = propc.compile(Cached())
    theta = torch.tensor(6.0, requires_grad=True)
    for _ in range(2):
        assert torch.equal(model(theta), torch.ones(4))
        assert torch.equal(halves(4) + model.thirds(4), torch.full((4,), 0.5 + 1 / 3))
        assert torch.equal(propc.compile(lambda t: t * halves(4))(theta), torch.full((4,), 3.0))
    real = halves(4)
    propc.compile(lambda t: t * halves(4))(theta)
    assert halves(4) is real

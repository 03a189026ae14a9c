"""The same programs on every device and in both precisions; on CUDA a step waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal, OneHotCategorical

import propc

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float64]
EVERY = [
    "rp",
    "lr",
    "tp",
    "infer",
    "combine",
    propc.estimator("lr", baseline="moving_average"),
    propc.estimator("lr", baseline=None),
    propc.estimator("tp", target="beta"),
    propc.estimator("tp", weights="past"),
    propc.estimator("tp", weights="same", per_coordinate=True),
    propc.estimator("tp", k_interval=2),
]


def chaotic_rnn(beta: Tensor, x: Tensor, W: Tensor) -> Tensor:
    x = zoo.chain(zoo.chaotic_rnn(beta, W, 0.1), x, 4)
    return 0.5 * (1 - x).square().sum(-1)


def discrete(logits: Tensor) -> Tensor:
    z = propc.sample(Categorical(logits=logits), "z")
    b = propc.sample(Independent(Bernoulli(logits=logits[:, :2] + z[:, None]), 1), "b")
    x = propc.sample(MultivariateNormal(logits[:, :2], torch.eye(2).to(logits)), "x")
    return (b - x).square().sum(-1) + z


@contextmanager
def without_waiting(device: str) -> Iterator[None]:
    """On CUDA, anything that synchronizes with the host is an error."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", EVERY, ids=str)
def test_a_rollout(estimator: Any, dtype: torch.dtype, device: str) -> None:
    """Values, gradients and state stay on the device and in the precision of the inputs."""
    beta = torch.tensor(2.0, dtype=dtype, device=device, requires_grad=True)
    x0 = torch.rand(16, 2, dtype=dtype, device=device)
    W = torch.tensor([[-5.0, -25.0], [5.0, 25.0]], dtype=dtype, device=device)
    compiled = propc.compile(chaotic_rnn, estimator=estimator)
    compiled(beta, x0, W).mean().backward()
    with without_waiting(device):
        cost = compiled(beta, x0, W)
        cost.mean().backward()
    assert cost.shape == (16,)
    assert cost.dtype == dtype
    assert cost.device.type == device
    assert beta.grad is not None
    assert beta.grad.isfinite()
    assert beta.grad.dtype == dtype
    assert all(buffer.device.type == device for buffer in compiled.estimator_state.buffers())


@pytest.mark.parametrize("device", DEVICES)
def test_discrete_and_multivariate(device: str) -> None:
    logits = torch.randn(12, 3, device=device, requires_grad=True)
    compiled = propc.compile(discrete, estimator={"x": "tp", "*": "lr"})
    compiled(logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


RELAXED = [
    propc.estimator("gumbel_softmax", temperature=lambda calls: max(0.5, 0.9**calls)),
    "st",
    propc.estimator("st_gumbel", temperature=0.5),
    "gumbel_rao",
    "reinmax",
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", RELAXED, ids=lambda choice: getattr(choice, "name", choice))
def test_relaxed_and_straight_through(estimator: Any, dtype: torch.dtype, device: str) -> None:
    def program(logits: Tensor) -> Tensor:
        b = propc.sample(Independent(Bernoulli(logits=logits), 1), "b")
        d = propc.sample(OneHotCategorical(logits=logits), "d")
        return (b * d).square().sum(-1)

    logits = torch.randn(12, 3, dtype=dtype, device=device, requires_grad=True)
    compiled = propc.compile(program, estimator=estimator)
    compiled(logits).mean().backward()
    with without_waiting(device):
        cost = compiled(logits)
        cost.mean().backward()
    assert cost.dtype == dtype
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "estimator", ["arm", "disarm", "lr", propc.estimator("vimco", samples=3), "enumerate"], ids=str
)
def test_pairs_and_bounds(estimator: Any, dtype: torch.dtype, device: str) -> None:
    def program(logits: Tensor) -> Tensor:
        b = propc.sample(Independent(Bernoulli(logits=logits), 1), "b")
        d = propc.sample(OneHotCategorical(logits=logits), "d")
        value = (b * d).square().sum(-1) * logits[:, 0]
        return value if estimator in ("arm", "disarm") else -propc.bound(value)

    logits = torch.randn(12, 3, dtype=dtype, device=device, requires_grad=True)
    compiled = propc.compile(program, estimator=estimator)
    compiled(logits).mean().backward()
    with without_waiting(device):
        cost = compiled(logits)
        cost.mean().backward()
    assert cost.dtype == dtype
    assert cost.device.type == device
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


SEVERAL = [
    propc.estimator("lr", samples=3),
    propc.estimator("lr", samples=3, noise="common"),
    propc.estimator("rloo", samples=4, chunk=2),
    "enumerate",
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", SEVERAL, ids=range(len(SEVERAL)))
def test_plates(estimator: Any, dtype: torch.dtype, device: str) -> None:
    """Modules, black boxes and plates of the data inside plates."""
    network = nn.LSTM(3, 2, batch_first=True).to(device=device, dtype=dtype)

    def program(logits: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            b = propc.sample(Bernoulli(logits=logits), "b")
            boxed = propc.opaque(torch.square)(b + 1)
            loss = propc.cost((boxed - 0.3).square() * logits, "loss")
        x = propc.sample(Normal(network(b[:, None])[0][:, 0], 1.0), "x", estimator="rp")
        return loss.sum(1) + x.square().sum(-1)

    logits = torch.randn(12, 3, dtype=dtype, device=device, requires_grad=True)
    compiled = propc.compile(program, estimator={"b": estimator})
    compiled(logits).mean().backward()
    with without_waiting(device):
        cost = compiled(logits)
        cost.mean().backward()
    assert cost.dtype == dtype
    assert cost.device.type == device
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_module_moves(device: str) -> None:
    """After `.to()` the same compiled module runs on the other device, under a graph of its own."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return propc.sample(Normal(self.net(x), 1.0), "z").square().sum(-1)

    model = propc.compile(Model(), estimator="tp")
    model(torch.randn(8, 3)).mean().backward()
    for dtype in DTYPES:
        model.to(device=device, dtype=dtype)
        model.zero_grad()
        model(torch.randn(8, 3, device=device, dtype=dtype)).mean().backward()
        grads = [p.grad for p in model.parameters()]
        assert all(g is not None and g.dtype == dtype and g.device.type == device for g in grads)


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_call_finds_bad_costs(device: str) -> None:
    compiled = propc.compile(lambda t: propc.sample(Normal(t, 1.0), "z").log().sum(-1), estimator="rp")
    with pytest.raises(propc.NonFiniteError, match="cost"):
        compiled(torch.full((8, 2), -3.0, device=device, requires_grad=True))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["inductor", "cudagraphs", "auto"])
@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", propc.estimator("tp", target="beta")], ids=str)
def test_backends_agree_on_a_gpu(estimator: Any, backend: str) -> None:
    """The same noise gives the same numbers, call after call, with parameters that an optimizer moves."""

    def train(backend: str) -> list[Tensor]:
        beta = torch.tensor(2.0, dtype=torch.float64, device="cuda", requires_grad=True)
        x0 = torch.linspace(0, 1, 32, dtype=torch.float64, device="cuda").view(16, 2)
        W = torch.tensor([[-5.0, -25.0], [5.0, 25.0]], dtype=torch.float64, device="cuda")
        compiled = propc.compile(chaotic_rnn, estimator=estimator, backend=backend)
        optimizer = torch.optim.SGD([beta], 0.1)
        torch.manual_seed(0)
        seen = []
        for step in range(5):
            optimizer.zero_grad()
            cost = compiled(beta, x0 + step, W)
            cost.mean().backward()
            optimizer.step()
            seen += [cost.detach().clone(), beta.detach().clone()]
        return seen

    torch.testing.assert_close(train(backend), train("eager"), rtol=1e-8, atol=1e-10)


@pytest.mark.gpu
def test_captured_calls_that_overlap() -> None:
    """Two forward passes before their reverse passes, and a second reverse pass."""
    beta = torch.tensor(2.0, device="cuda", requires_grad=True)
    x0, W = torch.rand(16, 2, device="cuda"), torch.rand(2, 2, device="cuda")

    def grads(backend: str) -> list[Tensor]:
        compiled = propc.compile(chaotic_rnn, estimator="tp", backend=backend)
        compiled(beta, x0, W)
        torch.manual_seed(0)
        a, b = compiled(beta, x0, W), compiled(beta, x0, W)
        first = torch.autograd.grad((a - 2 * b).mean(), beta, retain_graph=True)
        return [*first, *torch.autograd.grad(a.mean(), beta)]

    torch.testing.assert_close(grads("cudagraphs"), grads("eager"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", propc.estimator("tp", weights="past")], ids=str)
def test_blocks_run_again_from_the_same_random_numbers(estimator: Any, dtype: torch.dtype, device: str) -> None:
    beta = torch.tensor(2.0, dtype=dtype, device=device, requires_grad=True)
    x0 = torch.rand(16, 2, dtype=dtype, device=device)
    W = torch.tensor([[-0.5, -2.5], [0.5, 2.5]], dtype=dtype, device=device)
    found = []
    for passes in ((), (propc.passes.Checkpoint(at="x*.in"),)):
        compiled = propc.compile(chaotic_rnn, estimator=estimator, passes=passes)
        torch.manual_seed(1)
        compiled(beta, x0, W).mean().backward()
        with without_waiting(device):
            cost = compiled(beta, x0, W)
            (gradient,) = torch.autograd.grad(cost.mean(), beta)
        found.append((cost.detach(), gradient, torch.randn(3, device=device)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][2], found[1][2])
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("device", DEVICES)
def test_out_of_memory(device: str) -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(4)), "z")
        return (z * theta)[:, None, None].expand(4, 2**24, 2**20).exp().mean((-1, -2))

    theta = torch.tensor(0.4, device=device, requires_grad=True)
    words = r"'cost.in'.*more were asked for.*'z' \(3\).*Use chunk="
    with pytest.raises(propc.OutOfMemoryError, match=words) as caught:
        propc.compile(program, estimator=propc.estimator("lr", samples=3))(theta)
    assert isinstance(caught.value, torch.OutOfMemoryError)
    after = propc.compile(chaotic_rnn, estimator="lr")(theta, torch.rand(4, 2).to(device), torch.eye(2).to(device))
    assert after.isfinite().all()

"""Programs under `Checkpoint`: the same numbers and gradients as without, done once what is done once, less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from memory import peak_bytes
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical
from zoo import leaf

import propc
from propc.errors import EstimatorError, NonFiniteError
from propc.passes import Checkpoint

BATCH = 8
SMALLEST, FEW = Checkpoint(at="*"), Checkpoint(blocks=3)


def parameter_in_scale(theta: Tensor) -> Tensor:
    def law(x: Tensor) -> Normal:
        return Normal(torch.sin(2 * theta * x), 0.3 + 0.1 * theta.square())

    return zoo.chain(law, theta.expand(BATCH, 2), steps=5).square().sum(-1) * theta


def rewards(theta: Tensor) -> Tensor:
    law = zoo.autoregression(theta, 0.3, link=lambda x: torch.sin(2 * x))
    return zoo.rewards(law, lambda x: x.square().sum(-1), theta.expand(BATCH, 2), steps=5, discount=0.9)


def mixed(theta: Tensor) -> Tensor:
    """Discrete and continuous, unmarked draws, a named value, regions, a black box, a write inside a segment."""
    z = propc.sample(Bernoulli(logits=theta.expand(BATCH, 3)), "z")
    start = torch.rand(BATCH, 1)
    start += 1
    noisy = torch.dropout(torch.tanh(z * theta), 0.5, True) + start
    x = propc.sample(Normal(propc.node(noisy, "named"), 1.0), "x")
    with torch.no_grad():
        scale = x.exp().mean(-1)
    with torch.autocast("cpu", torch.bfloat16):
        product = (x @ (theta * torch.ones(3, 3))).double()
    boxed = propc.opaque(lambda v: v.sum(-1) * torch.rand(()))(product)
    y = propc.sample(Normal(product.sum(-1) * scale, 0.5), "y")
    return (y - boxed).square() + theta * x.sum(-1)


def run(compiled: Any, wrt: Tensor, calls: int = 2) -> list[Tensor]:
    """Values, gradients, later draws and the estimator's state of some calls."""
    torch.manual_seed(1)
    found: list[Tensor] = []
    for _ in range(calls):
        cost = compiled(wrt)
        found += [cost.detach(), *torch.autograd.grad(cost.mean(), wrt)]
    return [*found, torch.randn(3), *(b.clone() for b in compiled.estimator_state.buffers())]


def agree(program: Any, estimator: Any, wrt: Tensor, how: Checkpoint, **options: Any) -> None:
    plain = propc.compile(program, estimator=estimator, **options)
    blocked = propc.compile(program, estimator=estimator, passes=[how], **options)
    assert blocked.graph(wrt).schedule.blocks
    expected, found = run(plain, wrt), run(blocked, wrt)
    assert torch.equal(expected[0], found[0])
    assert len(expected) == len(found)
    for one, two in zip(expected, found):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


EVERY = [
    "rp",
    "lr",
    "tp",
    "combine",
    "gs",
    "gs-tp",
    propc.estimator("tp", target="theta"),
    propc.estimator("tp", weights="same"),
    propc.estimator("tp", weights="past"),
    propc.estimator("tp", weights="past", target="theta"),
    propc.estimator("tp", k_interval=2),
    propc.estimator("lr", baseline="moving_average"),
    propc.estimator("lr", baseline=lambda costs: costs.mean() * torch.rand(())),
    propc.estimator("lr", samples=3),
]


@pytest.mark.parametrize("how", [SMALLEST, FEW], ids=["smallest", "few"])
@pytest.mark.parametrize("program", [parameter_in_scale, rewards])
@pytest.mark.parametrize("estimator", EVERY, ids=range(len(EVERY)))
def test_chains(estimator: Any, program: Any, how: Checkpoint) -> None:
    agree(program, estimator, leaf(0.7), how)


@pytest.mark.filterwarnings("ignore::propc.PropcWarning")  # the black box lets no gradient through
@pytest.mark.parametrize("how", [SMALLEST, FEW], ids=["smallest", "few"])
@pytest.mark.parametrize(
    "estimator",
    [
        {"z": "lr", "*": "tp"},
        {"z": "enumerate", "*": "rp"},
        {"z": propc.estimator("lr", samples=4, noise="common"), "*": "lr"},
        {"z": propc.estimator("rloo", samples=4, chunk=2), "*": "rp"},
        {"z": propc.estimator("gumbel_softmax", temperature=lambda calls: 0.5**calls + 0.1), "*": "rp"},
        {"z": propc.estimator("st_gumbel", temperature=lambda calls: 0.5**calls + 0.1), "*": "rp"},
        {"z": "disarm", "*": "lr"},
    ],
    ids=["lr", "enumerate", "common", "chunk", "gumbel_softmax", "st_gumbel", "disarm"],
)
def test_all_that_a_program_may_have(estimator: Any, how: Checkpoint) -> None:
    agree(mixed, estimator, leaf(0.7), how)


@pytest.mark.parametrize("noise", ["common", "independent"])
def test_alternatives(noise: str) -> None:
    """Their copies draw from the random numbers of the originals; two calls may be under way at once."""

    def program(logits: Tensor) -> Tensor:
        z = propc.sample(
            Categorical(logits=logits.expand(BATCH, 3)), "z", estimator=propc.estimator("local", noise=noise)
        )
        x = propc.sample(Normal(z.double().sin(), 1.0), "x", estimator="lr")
        y = propc.sample(Normal(x.sin(), 1.0), "y", estimator="lr")
        return (y * logits[0] + z).square()

    agree(program, "lr", leaf([0.1, 0.2, 0.3]), SMALLEST)
    overlapping(program, leaf([0.1, 0.2, 0.3]))


def overlapping(program: Any, wrt: Tensor, estimator: Any = "lr") -> None:
    """Two calls, then both reverse passes."""
    found = []
    for passes in ((), (SMALLEST,)):
        compiled = propc.compile(program, estimator=estimator, passes=passes)
        torch.manual_seed(2)
        costs = [compiled(wrt).mean() for _ in range(3)]
        found.append([g for cost in costs for g in torch.autograd.grad(cost, wrt)])
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("estimator", ["tp", propc.estimator("tp", k_interval=2)], ids=["1", "2"])
def test_calls_that_overlap(estimator: Any) -> None:
    overlapping(parameter_in_scale, leaf(0.7), estimator)


def test_bounds() -> None:
    def program(logits: Tensor) -> Tensor:
        b = propc.sample(Independent(Bernoulli(logits=logits.expand(BATCH, 3)), 1), "b")
        d = propc.sample(OneHotCategorical(logits=logits.expand(BATCH, 3)), "d")
        return -propc.bound((b * d).square().sum(-1) * logits[0])

    agree(program, propc.estimator("vimco", samples=3), leaf([0.1, 0.2, 0.3]), SMALLEST)


def test_plates_of_the_data() -> None:
    def program(theta: Tensor) -> Tensor:
        with propc.plate("data", dim=1):
            z = propc.sample(Bernoulli(logits=theta.expand(BATCH, 4)), "z")
            loss = propc.cost((z - 0.3).square() * theta, "loss")
        x = propc.sample(Normal(z.sum(1) * theta, 1.0), "x")
        return loss.sum(1) + x.square()

    agree(program, "lr", leaf(0.7), SMALLEST)


def test_black_boxes_are_called_once() -> None:
    calls: list[int] = []

    def box(x: Tensor) -> Tensor:
        calls.append(1)
        return x.square() + torch.rand(())

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = propc.sample(Normal(propc.opaque(box)(x) * theta, 1.0), "y")
        return propc.opaque(box)(y) + torch.randn(BATCH)

    compiled = propc.compile(program, estimator="lr", passes=[SMALLEST], validate=False)
    compiled.graph(leaf(0.7))
    calls.clear()
    compiled(leaf(0.7)).sum().backward()
    assert len(calls) == 2
    agree(program, "lr", leaf(0.7), SMALLEST)


def test_a_baseline_of_the_user_is_called_once() -> None:
    calls: list[int] = []

    def baseline(costs: Tensor) -> Tensor:
        calls.append(1)
        return costs.mean()

    estimator = propc.estimator("lr", baseline=baseline)
    compiled = propc.compile(rewards, estimator=estimator, passes=[SMALLEST], validate=False)
    compiled(leaf(0.7)).sum().backward()
    assert len(calls) == 5


def test_a_module() -> None:
    """Gradients accumulate in parameters; statistics of batch normalization move once."""

    def made(passes: Any) -> nn.Module:
        torch.manual_seed(0)

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

            def forward(self, x: Tensor) -> Tensor:
                h = propc.sample(Normal(self.norm(self.first(x)), 0.1), "h")
                for t in range(3):
                    h = propc.sample(Normal(torch.tanh(h + self.first.bias), 0.1), f"h{t}")
                return self.last(h).squeeze(-1).square()

        return propc.compile(Model(), estimator="rp", passes=passes)

    found = []
    for passes in ((), (SMALLEST,)):
        model = made(passes)
        for _ in range(3):
            model(torch.randn(BATCH, 3)).mean().backward()
        model.eval()
        with torch.no_grad():
            evaluated = model(torch.randn(BATCH, 3))
        found.append([*(p.grad for p in model.parameters()), *model.state_dict().values(), evaluated])
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("how", [SMALLEST, FEW], ids=["smallest", "few"])
@pytest.mark.parametrize("estimator", ["rp", "lr", "gs", {"x1": "rp", "*": "lr"}], ids=["rp", "lr", "gs", "both"])
@pytest.mark.parametrize("program", [parameter_in_scale, rewards])
def test_second_derivatives(program: Any, estimator: Any, how: Checkpoint) -> None:
    theta, found = leaf(0.7), []
    for passes in ((), (how,)):
        compiled = propc.compile(program, estimator=estimator, passes=passes)
        torch.manual_seed(3)
        (first,) = torch.autograd.grad(compiled(theta).mean(), theta, create_graph=True)
        found.append((first, *torch.autograd.grad(first, theta)))
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


def test_second_derivatives_of_tp_are_refused() -> None:
    """Its weights are no linear function of what arrives, and a block meets what arrives in parts."""
    theta = leaf(0.7)
    cost = propc.compile(parameter_in_scale, estimator="tp", passes=[FEW])(theta).mean()
    with pytest.raises(EstimatorError, match=r"site 'x\d' .*second derivatives.*Leave out propc.passes.Checkpoint"):
        torch.autograd.grad(cost, theta, create_graph=True)
    torch.autograd.grad(cost, theta)


def test_a_second_backward() -> None:
    theta = leaf(0.7)
    cost = propc.compile(parameter_in_scale, estimator="tp", passes=[FEW])(theta).mean()
    cost.backward(retain_graph=True)
    first, theta.grad = theta.grad, None
    cost.backward()
    assert torch.equal(first, theta.grad)
    with pytest.raises(RuntimeError, match="second time"):
        cost.backward()


def test_some_of_the_gradients() -> None:
    def program(a: Tensor, b: Tensor) -> Tensor:
        x = propc.sample(Normal((a * b).expand(BATCH), 1.0), "x")
        y = propc.sample(Normal(x.sin() * a, b.exp()), "y")
        return (y * a).square()

    a, b, found = leaf(0.7), leaf(0.3), []
    for passes in ((), (SMALLEST,)):
        compiled = propc.compile(program, estimator="tp", passes=passes)
        for wanted in ((a,), (b,), (b, a)):
            torch.manual_seed(4)
            found.append(torch.autograd.grad(compiled(a, b).mean(), wanted))
    for one, two in zip(found[:3], found[3:]):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_signal_to_noise() -> None:
    found = []
    for passes in ((), (FEW,)):
        torch.manual_seed(5)
        compiled = propc.compile(rewards, estimator="lr", passes=passes)
        found.append(str(propc.signal_to_noise(compiled, leaf(0.7), repeats=20)))
    assert found[0] == found[1]


@pytest.mark.slow
def test_compiled_stages() -> None:
    """A compiled run ends where a block does: same numbers, less memory."""
    theta, found, held = leaf(0.7), [], []
    for passes in ((), (Checkpoint(blocks=4),)):
        compiled = propc.compile(large, estimator="rp", passes=passes, backend="inductor", validate=False)
        for _ in range(2):
            torch.manual_seed(6)
            (gradient,) = torch.autograd.grad(compiled(theta, 16).mean(), theta)
        found.append(gradient)
        held.append(peak_bytes(lambda: compiled(theta, 16).mean().backward(), torch.device("cpu")))  # noqa: B023
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
    assert held[1] < 0.6 * held[0]


# -- checks -----------------------------------------------------------------------------------


def test_checks_of_the_first_call() -> None:
    def mixes(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = propc.sample(Normal(x - x.mean(), 1.0), "y")
        return y.square()

    compiled = propc.compile(mixes, estimator="lr", passes=[SMALLEST])
    with pytest.raises(propc.GraphError, match=r"'y'.*mixes samples of the batch"):
        compiled(leaf(0.7))


@pytest.mark.parametrize("calls", [1, 2])
def test_costs_that_are_not_finite(calls: int) -> None:
    def program(x: Tensor) -> Tensor:
        a = propc.sample(Normal(x.expand(BATCH), 0.01), "a")
        return propc.sample(Normal(a.log(), 1.0), "b").square()

    compiled = propc.compile(program, estimator="rp", passes=[SMALLEST])
    for _ in range(calls - 1):
        compiled(leaf(2.0))
    with pytest.raises(NonFiniteError, match="site 'b'"):
        compiled(leaf(-2.0))


def test_an_error_in_a_block_names_its_node() -> None:
    def program(x: Tensor, table: Tensor, index: Tensor) -> Tensor:
        a = propc.sample(Normal(x.expand(BATCH), 0.01), "a")
        b = propc.sample(Normal(a.sin(), 0.01), "b")
        return propc.sample(Normal((b + table[index]).sin(), 0.01), "c")

    compiled = propc.compile(program, estimator="rp", passes=[SMALLEST])
    with pytest.raises(IndexError) as caught:
        compiled(leaf(0.7), torch.ones(3), torch.tensor([7]))
    notes = getattr(caught.value, "__notes__", ["while running segment 'c.in'"])
    assert len(notes) == 1
    assert "while running segment 'c.in'" in notes[0]


# -- memory -----------------------------------------------------------------------------------


def large(theta: Tensor, horizon: int) -> Tensor:
    law = zoo.autoregression(theta, 0.1, link=lambda x: torch.tanh(x).sin())
    return zoo.chain(law, theta.expand(200, 20), horizon).square().sum(-1)


def step(horizon: int, estimator: Any, passes: Any) -> Callable[[], object]:
    theta = leaf(0.7)
    compiled = propc.compile(large, estimator=estimator, passes=passes, validate=False)
    return lambda: compiled(theta, horizon).mean().backward()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rp", "tp"])
def test_memory_grows_with_the_root_of_the_horizon(estimator: str) -> None:
    cpu = torch.device("cpu")
    plain = [peak_bytes(step(h, estimator, ()), cpu) for h in (30, 120)]
    blocked = [peak_bytes(step(h, estimator, [Checkpoint()]), cpu) for h in (30, 120)]
    assert plain[1] / plain[0] > 3.7
    assert blocked[1] / blocked[0] < 2.3
    assert plain[1] / blocked[1] > 5


@pytest.mark.slow
def test_memory_keeps_to_a_budget() -> None:
    cpu = torch.device("cpu")
    free, least = (peak_bytes(step(60, "rp", passes), cpu) for passes in ((), [Checkpoint()]))
    budget = (free + least) / 2
    held = peak_bytes(step(60, "rp", [Checkpoint(budget=budget)]), cpu)
    assert least < held <= 1.1 * budget

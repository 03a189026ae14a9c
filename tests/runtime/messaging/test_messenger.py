"""Programs run by messages give what autograd gives: the same values and gradients from the same seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from programs import BASELINES, CONTINUOUS, DISCRETE, FAMILIES, OBJECTIVES, RECURRENT, one_site
from surrogate import seeded
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal

import propc
from propc import EstimatorError, Field, Message, MessageError, NonFiniteError
from propc.propagators import NodeView

BATCH = 6
tp = propc.estimator


def rewards(theta: Tensor, batch: int) -> Tensor:
    state, total = torch.linspace(0.0, 1.0, batch), torch.zeros(batch)
    for t in range(3):
        action = propc.sample(Bernoulli(logits=theta[0] * state + 0.1), f"a{t}")
        state = propc.sample(Normal(state + action - theta[1], 0.1), f"s{t}")
        total = total + propc.cost(-state.square(), f"r{t}")
    return total


def wide(theta: Tensor, batch: int) -> Tensor:
    """Several families, events of dimension 1, a site that is read twice, a fixed path and a constant."""
    h = propc.node(torch.tanh(theta).expand(batch, 2), "h")
    z = propc.sample(Independent(Normal(h, 0.5), 1), "z")
    m = propc.sample(MultivariateNormal(z + theta, torch.eye(2)), "m")
    return propc.cost((m * z).sum(-1), "one") + 2 * propc.cost(torch.cos(z).sum(-1) * theta[0], "two") + 3.0


def choice(theta: Tensor, batch: int) -> Tensor:
    k = propc.sample(Categorical(logits=theta.expand(batch, -1)), "k")
    y = propc.sample(Normal(theta[k], 1.0), "y")
    seen = propc.opaque(lambda t: t.sin())(y)
    return propc.cost(seen * k, "blind") + y.square()


def two_costs(theta: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    x, y = zoo.linear_gaussian(theta[0], theta[1], batch)
    return torch.sin(x), y.square() * theta[0]


def scalar(theta: Tensor, batch: int) -> Tensor:
    return (zoo.unit_normal(theta[0], batch) * theta[1]).sin().mean()


THETA = torch.tensor([0.3, -0.7], dtype=torch.float64)
CASES: dict[str, tuple[Callable[..., Any], Tensor, Any]] = {
    **{
        f"{f}-{e}": (one_site(f, "cos").program, one_site(f, "cos").theta, e) for f in FAMILIES for e in ("infer", "lr")
    },
    **{
        f"{f}-{e}": (one_site(f, o).program, one_site(f, o).theta, e)
        for f in CONTINUOUS
        for e in ("rp", "tp")
        for o in ["exp"]
    },
    **{f"lr-{b}": (rewards, THETA, tp("lr", baseline=BASELINES[b])) for b in BASELINES},
    **{f"recurrent-{e}": (RECURRENT.program, RECURRENT.theta, e) for e in ("rp", "lr", "tp", "infer")},
    "past": (RECURRENT.program, RECURRENT.theta, tp("tp", weights="past")),
    "same": (RECURRENT.program, RECURRENT.theta, tp("tp", weights="same", per_coordinate=True)),
    "k-interval": (RECURRENT.program, RECURRENT.theta, tp("tp", k_interval=2)),
    "target": (RECURRENT.program, RECURRENT.theta, tp("tp", target="theta")),
    "target-node": (RECURRENT.program, RECURRENT.theta, {"x0": tp("tp", target="shift0"), "*": "rp"}),
    "combine": (RECURRENT.program, RECURRENT.theta, tp("combine", estimators=("lr", "rp", tp("lr", baseline=None)))),
    "mixed": (RECURRENT.program, RECURRENT.theta, {"x0": "lr", "x1": "rp", "x2": "tp"}),
    "by-name": (RECURRENT.program, RECURRENT.theta, propc.propagator("tp", weights="past")),
    "rewards": (rewards, THETA, {"a*": "lr", "s*": "tp"}),
    "rewards-rp": (rewards, THETA, {"a*": "lr", "s*": "rp"}),
    **{f"wide-{e}": (wide, THETA, e) for e in ("rp", "lr", "tp", "infer")},
    "choice": (choice, THETA, {"k": "lr", "y": "lr"}),
    **{f"two-{e}": (two_costs, THETA, e) for e in ("rp", "lr", "tp")},
    "scalar": (scalar, THETA, "rp"),
}


def by_autograd(compiled: Any, theta: Tensor, seed: int) -> tuple[list[Tensor], Tensor]:
    leaf = theta.clone().requires_grad_()
    found = seeded(lambda: compiled(leaf, batch=BATCH), seed=seed)
    costs = list(found) if isinstance(found, tuple) else [found]
    total = torch.stack([cost.mean() for cost in costs]).sum()
    (grad,) = torch.autograd.grad(total, leaf)
    return [c.detach() for c in costs], grad


def by_messages(compiled: Any, theta: Tensor, seed: int) -> tuple[list[Tensor], Tensor]:
    leaf = theta.clone().requires_grad_()
    found = seeded(lambda: compiled.propagate("backward", None, leaf, batch=BATCH), seed=seed)
    assert leaf.grad is None
    value = found.value
    assert set(found.messages) == {"theta"}
    return list(value) if isinstance(value, tuple) else [value], found.messages["theta"].grad


@pytest.mark.parametrize("case", CASES)
def test_as_autograd(case: str) -> None:
    """Values bit for bit, at each of several calls, so that what estimators keep is the same too."""
    program, theta, estimator = CASES[case]
    one, other = (propc.compile(program, estimator=estimator) for _ in range(2))
    largest = 0.0
    for seed in (1, 2, 1):
        values, grad = by_autograd(one, theta, seed)
        found, sent = by_messages(other, theta, seed)
        assert all(torch.equal(a, b) for a, b in zip(values, found))
        assert not any(v.requires_grad for v in found)
        assert sent.dtype == torch.float64
        torch.testing.assert_close(sent, grad, rtol=1e-13, atol=1e-15)
        largest = max(largest, grad.abs().max().item())
    assert largest > 0
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_the_seeds_make_a_difference() -> None:
    program, theta, estimator = CASES["mixed"]
    compiled = propc.compile(program, estimator=estimator)
    (_, first), (_, second) = by_messages(compiled, theta, 1), by_messages(compiled, theta, 2)
    assert not torch.allclose(first, second)


def test_both_ways_through_one_compiled_object() -> None:
    program, theta, estimator = CASES["rewards"]
    compiled = propc.compile(program, estimator=estimator)
    grads = [f(compiled, theta, 1)[1] for f in (by_autograd, by_messages, by_autograd, by_messages)]
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-13, atol=1e-15)


class Talk(propc.Propagator):
    """Changes nothing, and sends a word that autograd cannot carry."""

    sends = (Field("word", "list"),)

    def backward(self, node: NodeView, message: Message) -> Message:
        node.memory.words = message.get("word", ())
        return message.only("grad").replace(word=node.name)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", {"x0": "lr", "x1": "rp", "x2": "tp"}], ids=str)
@pytest.mark.parametrize("costs", [False, True], ids=["nodes", "costs"])
def test_backward_of_a_program_with_messages(estimator: Any, costs: bool) -> None:
    """`backward()` visits node by node where a propagator needs it, and gives the same."""

    def program(theta: Tensor, talk: Any = None, loss: Any = None) -> Tensor:
        x, total = torch.full((BATCH,), 0.4), torch.zeros(BATCH)
        for t in range(3):
            mean = propc.node(torch.sin(theta[0] * x) + theta[1], f"mean{t}", propagator=talk)
            x = propc.sample(Normal(mean, 0.5), f"x{t}")
            total = total + (t + 1) * propc.cost(torch.cos(x) * theta[0], f"c{t}", propagator=loss)
        return total

    plain = propc.compile(lambda theta: program(theta), estimator=estimator)
    talking = propc.compile(lambda theta: program(theta, Talk(), "loss" if costs else None), estimator=estimator)
    leaf = THETA.clone().requires_grad_()
    graph = talking.graph(leaf)
    assert graph.general
    assert not plain.graph(leaf).general
    assert graph.schedule.engine_calls == 0
    # `loss` sends weighted costs, of which baselines are taken: with weights that differ, another unbiased estimate
    for weights in (torch.ones(BATCH), torch.full((BATCH,), -0.3) if costs else torch.linspace(-1.0, 2.0, BATCH)):
        want, have = (seeded(lambda c=c: c(leaf)) for c in (plain, talking))
        assert torch.equal(want, have)
        (a,), (b,) = (torch.autograd.grad((y * weights).sum(), leaf, retain_graph=True) for y in (want, have))
        (c,) = torch.autograd.grad((have * weights).sum(), leaf)  # a second time
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-14)
        assert torch.equal(b, c)
    torch.testing.assert_close(
        seeded(lambda: talking.propagate("backward", None, leaf)).messages["theta"].grad,
        torch.autograd.grad(seeded(lambda: plain(leaf)).mean(), leaf)[0],
        rtol=1e-12,
        atol=1e-14,
    )


def talking(theta: Tensor, scale: Any = None) -> Tensor:
    h = propc.node(theta.expand(BATCH), "h", propagator=Talk())
    x = propc.sample(Normal(h, 1.0), "x")
    return propc.node(x.square(), "y", propagator=Talk())


def test_what_nodes_hear() -> None:
    theta = torch.tensor(0.3, requires_grad=True)
    found = propc.compile(talking, estimator="rp").propagate("backward", None, theta)
    assert found["y"].memory.words == ()
    assert found["h"].memory.words == ("y",)
    assert found.messages["h"].word == ("h",)
    assert repr(found["h"]) == "<node 'h'>"


def test_leaves_of_a_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(3, 2), nn.Linear(2, 1)
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
            self.register_buffer("shift", torch.ones(2))

        def forward(self, x: Tensor, talk: Any = None) -> Tensor:
            h = propc.node(self.encode(x) * self.frozen + self.shift, "h", propagator=talk)
            z = propc.sample(Independent(Normal(h, 1.0), 1), "z")
            return self.decode(z).squeeze(-1).square()

    torch.manual_seed(3)
    model, x = Model(), torch.randn(BATCH, 3)
    expected = None
    for talk in (None, Talk()):
        compiled = propc.compile(copy.deepcopy(model), estimator="tp")
        seeded(lambda c=compiled, t=talk: c(x, t)).mean().backward()
        grads = {name: p.grad for name, p in compiled.named_parameters() if p.requires_grad}
        assert compiled.frozen.grad is None
        found = seeded(lambda c=compiled, t=talk: c.propagate("backward", None, x, t)).messages
        assert {name for name in found if "grad" in found[name]} == set(grads)
        expected = grads if expected is None else expected
        for name, grad in grads.items():
            torch.testing.assert_close(found[name].grad, grad, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(grad, expected[name], rtol=1e-12, atol=1e-14)


def test_initial_cotangents() -> None:
    leaf = THETA.clone().requires_grad_()
    compiled = propc.compile(two_costs, estimator="lr")
    weights = torch.linspace(0.0, 1.0, BATCH)
    first, second = seeded(lambda: compiled(leaf, batch=BATCH))
    both, only = (torch.autograd.grad(c, leaf, weights, retain_graph=True)[0] for c in (first + second, second))

    def sent(message: Any) -> Tensor:
        return seeded(lambda: compiled.propagate("backward", message, leaf, batch=BATCH)).messages["theta"].grad

    torch.testing.assert_close(sent(Message(grad=weights)), both)
    torch.testing.assert_close(sent({"cost1": Message(grad=weights)}), only)
    torch.testing.assert_close(
        sent({"cost1": Message(grad=2.0)}), torch.autograd.grad(second, leaf, 2 * torch.ones(BATCH))[0]
    )
    with pytest.raises(MessageError, match=r"'grad' as \[2\]; the value has shape \[6\]"):
        sent({"cost1": Message(grad=torch.ones(2))})
    with pytest.raises(propc.PropcValueError, match=r"no node 'cost2' takes messages.*Did you mean 'cost1'"):
        sent({"cost2": Message(grad=1.0)})


def test_forward_only() -> None:
    compiled = propc.compile(talking, estimator="rp")
    theta = torch.tensor(0.3, requires_grad=True)
    found = seeded(lambda: compiled.propagate("forward", Message(word="hello"), theta))
    assert found.messages["y"].word == ("hello",)  # handed on by both
    assert torch.equal(found.value, seeded(lambda: compiled(theta)))


def test_values_that_are_no_costs_are_guarded() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        h = propc.node(theta.expand(BATCH, 2), "h", propagator=Talk())
        z = propc.sample(Independent(Normal(h, 1.0), 1), "z")
        return propc.node(z * h, "zh", propagator=Talk()), z.sum(-1)

    compiled = propc.compile(program, estimator="lr")
    theta = torch.tensor(0.3, requires_grad=True)
    value, cost = compiled(theta)
    with pytest.raises(propc.PropcValueError, match=r"returned value \[0\], which is no cost.*'z'"):
        value.sum().backward()
    value, cost = compiled(theta)
    cost.sum().backward()
    assert theta.grad is not None
    found = compiled.propagate("backward", Message(grad=1.0), theta)  # to the costs alone
    assert found.messages["theta"].grad.isfinite()


def test_a_cost_that_is_nan() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(propc.node(theta.expand(BATCH), "h", propagator=Talk()), 1.0), "x")
        return propc.cost(torch.log(-x.abs()), "logs")

    theta = torch.tensor(0.3, requires_grad=True)
    compiled = propc.compile(program, estimator="lr")
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"cost 'logs'.*test_messenger.py"):
            compiled(theta)
        with pytest.raises(NonFiniteError, match=r"cost 'logs'.*test_messenger.py"):
            compiled.propagate("backward", None, theta)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_after_a_failure_all_is_as_before(direction: str) -> None:
    broken: list[bool] = []

    class Fragile(Talk):
        keeps = (Field("count"),)

        def forward(self, node: NodeView, message: Message) -> Any:
            if broken and direction == "forward":
                raise RuntimeError("no")
            node.memory.count = message.get("count", 0)
            return [Message(count=node.memory.count + 1).to(propc.SELF)]

        def backward(self, node: NodeView, message: Message) -> Message:
            if broken and direction == "backward":
                raise RuntimeError("no")
            return super().backward(node, message)

    def program(theta: Tensor) -> Tensor:
        h = propc.node(theta.expand(BATCH), "h", propagator=Fragile())
        return propc.sample(Normal(h, 1.0), "x").square()

    compiled = propc.compile(program, estimator="tp")
    theta = torch.tensor(0.3, requires_grad=True)
    first = seeded(lambda: compiled.propagate("backward", None, theta))
    broken.append(True)
    with pytest.raises(RuntimeError, match=r"no") as caught:
        compiled.propagate("backward", None, theta)
    notes = "".join(getattr(caught.value, "__notes__", []))  # from Python 3.11 on
    assert "while visiting node 'h', test_messenger.py" in notes or not hasattr(caught.value, "add_note")
    with pytest.raises(RuntimeError, match=r"no"):
        compiled(theta).mean().backward()
    broken.clear()
    again = seeded(lambda: compiled.propagate("backward", None, theta))
    assert torch.equal(first.messages["theta"].grad, again.messages["theta"].grad)
    assert again["h"].memory.count == (1 if direction == "forward" else 3)  # calls whose forward pass went well


def test_second_derivatives_are_refused() -> None:
    theta = torch.tensor(0.3, requires_grad=True)
    cost = propc.compile(talking, estimator="rp")(theta).mean()
    with pytest.raises(EstimatorError, match=r"'talking' has propagators.*first derivatives only.*create_graph=True"):
        torch.autograd.grad(cost, theta, create_graph=True)


def test_without_gradients() -> None:
    compiled = propc.compile(talking, estimator="rp")
    theta = torch.tensor(0.3, requires_grad=True)
    with torch.no_grad():
        value = seeded(lambda: compiled(theta))
    assert not value.requires_grad
    assert torch.equal(value, seeded(lambda: compiled(theta)).detach())


def test_what_is_kept_is_saved_and_copied() -> None:
    class Count(Talk):
        keeps = (Field("count"),)

        def forward(self, node: NodeView, message: Message) -> Any:
            node.memory.count = message.get("count", torch.zeros(()))
            return [Message(count=node.memory.count + 1).to(propc.SELF)]

    def program(theta: Tensor) -> Tensor:
        return propc.sample(Normal(propc.node(theta.expand(BATCH), "h", propagator=Count()), 1.0), "x").square()

    theta = torch.tensor(0.3, requires_grad=True)
    compiled = propc.compile(program, estimator="rp")
    for _ in range(2):
        compiled(theta).mean().backward()
    other, copied = propc.compile(program, estimator="rp"), copy.deepcopy(compiled)
    other.load_state_dict(compiled.state_dict())
    for each in (compiled, other, copied):
        assert each.propagate("forward", None, theta)["h"].memory.count == 2.0


def test_objectives_and_laws_are_covered() -> None:
    """The cases above run every family."""
    assert {name.split("-")[0] for name in CASES} >= set(FAMILIES) == set(CONTINUOUS) | set(DISCRETE)
    assert set(OBJECTIVES) >= {"cos", "exp"}


def test_a_discrete_site_by_messages() -> None:
    """Its value is an integer; what arrives there as cost is not."""

    class Score(propc.Propagator):
        sends = (*propc.Propagator.sends, Field("word"))

        def forward(self, node: NodeView, message: Message) -> None:
            node.value = node.distribution.sample()
            node.memory.score = node.distribution.log_prob(node.value)

        def backward(self, node: NodeView, message: Message) -> Message:
            return node.pull(node.memory.score, message.cost)

    def program(theta: Tensor, batch: int) -> Tensor:
        k = propc.sample(Categorical(logits=theta.expand(batch, -1)), "k")
        return torch.cos(k.to(theta.dtype))

    _, want = by_autograd(propc.compile(program, estimator=propc.estimator("lr", baseline=None)), THETA, 1)
    for found in (by_autograd, by_messages):
        torch.testing.assert_close(found(propc.compile(program, estimator=Score()), THETA, 1)[1], want)

"""What a program keeps in its objects is there after every call, as in the plain program."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn.utils import parametrizations, prune

import propc

B = 5


def draw(x: Tensor) -> Tensor:
    return propc.sample(Normal(x, 0.5), "x").square().sum(-1)


class Layered(nn.Module):
    """A layer whose weight is computed at every call, by a hook or a parametrization."""

    def __init__(self, wrap: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        wrap(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        return draw(self.layer(x))


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "spectral norm by a hook": nn.utils.spectral_norm,
    "spectral norm": parametrizations.spectral_norm,
    "weight norm by a hook": nn.utils.weight_norm,
    "weight norm": parametrizations.weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", WRAPPED)
def test_layers_that_compute_their_weight(how: str, training: bool) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Layered(WRAPPED[how]).train(training))
    plain, model = models
    compiled, x = propc.compile(model, estimator="rp"), torch.randn(B, 3)
    for step in range(3):
        for each in (plain, compiled):
            torch.manual_seed(step)
            each(x).sum().backward()
            with torch.no_grad():
                for p in each.parameters():
                    p -= 0.1 * p.grad
            each.zero_grad()
        for (name, a), b in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        assert torch.equal(plain.layer.weight, model.layer.weight)


class Keeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.layer = nn.Linear(3, 3)
        self.state: Tensor | None = None
        self.table: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1  # bound anew, not written into
        self.state = torch.tanh(self.layer(x if self.state is None else x + self.state.detach()))
        self.law = Normal(self.state, self.calls)
        self.table["parts"] = (self.state * 2, [self.calls, "text"])
        self.draw = propc.sample(self.law, "x")
        return self.draw.square().sum(-1)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_attributes_and_entries_are_renewed(estimator: str) -> None:
    torch.manual_seed(0)
    plain, x = Keeper(), torch.randn(B, 3)
    model = copy.deepcopy(plain)
    compiled = propc.compile(model, estimator=estimator)
    for step in range(4):
        costs = []
        for each in (plain, compiled):
            torch.manual_seed(step)
            costs.append(each(x))
        assert torch.equal(*costs)
        for name in ("state", "draw", "calls"):
            assert type(getattr(compiled, name)) is Tensor
            assert torch.equal(getattr(plain, name), getattr(compiled, name))
        assert isinstance(compiled.law, Distribution)
        assert torch.equal(plain.law.loc, compiled.law.loc)
        assert torch.equal(plain.table["parts"][0], compiled.table["parts"][0])
        assert compiled.table["parts"][1][1] == "text"
        (a,), (b,) = (torch.autograd.grad(m.state.sum(), m.layer.weight, retain_graph=True) for m in (plain, compiled))
        assert torch.equal(a, b)
    assert compiled.calls == 4
    assert compiled._compiler().traces == 2  # without a state, and with one


def test_looking_at_the_graph_keeps_nothing() -> None:
    model = Keeper()
    graph = propc.compile(model, estimator="lr").graph(torch.randn(B, 3))
    assert "kept.state" in graph.output.paths
    assert model.state is None
    assert model.calls == 0
    assert model.table == {}
    assert not hasattr(model, "law")


def test_variables_of_an_enclosing_function() -> None:
    last, memo = None, {}

    def table(n: int) -> Tensor:
        if n not in memo:
            memo[n] = torch.arange(float(n))
        return memo[n]

    @propc.compile(estimator="rp")
    def program(x: Tensor) -> Tensor:
        nonlocal last
        last = propc.sample(Normal(x * table(3), 1.0), "x")
        return last.sum(-1)

    for _ in range(3):
        cost = program(torch.ones(B, 3))
        assert torch.equal(last.sum(-1), cost)
        assert torch.equal(memo[3], torch.arange(3.0))
    assert program.compiler.traces == 2


def test_a_kept_draw_has_no_gradient_of_its_own_under_scores() -> None:
    compiled = propc.compile(Keeper(), estimator="tp")
    compiled(torch.randn(B, 3))
    with pytest.raises(propc.PropcError, match=r"kept\.draw"):
        compiled.draw.sum().backward()


def test_one_tensor_in_two_places_becomes_two() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return draw(self.b(self.a(x)))

    plain, x = Tied(), torch.randn(B, 3)
    compiled = propc.compile(plain, estimator="rp")
    for weight in (None, nn.Parameter(torch.eye(3)), plain.a.weight):
        plain.b.weight = plain.b.weight if weight is None else weight
        found = []
        for each in (plain, compiled):
            torch.manual_seed(1)
            cost = each(x)
            found.append((cost, *torch.autograd.grad(cost.sum(), list(plain.parameters()))))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Initialized(nn.Module):
    """Centres on the first batch that it sees, as ActNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(3))
        self.ready = False
        self.hint: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.loc.copy_(x.mean(0))
            self.ready = True
        x = x if self.hint is None else x + self.hint
        self.hint = None
        return draw(x - self.loc)


def test_flags_are_turned_at_the_call_and_not_when_it_is_traced() -> None:
    plain, model = Initialized(), Initialized()
    compiled = propc.compile(model, estimator="lr")
    compiled.graph(torch.zeros(B, 3))
    assert not model.ready
    for step in range(6):
        x = torch.full((B, 3), float(step + 1))
        if step in (2, 4):
            plain.hint = model.hint = compiled.hint = torch.ones(3)
        costs = []
        for each in (plain, compiled):
            torch.manual_seed(step)
            costs.append(each(x))
        assert torch.equal(*costs)
        assert compiled.ready
        assert compiled.hint is None
    assert torch.equal(compiled.loc, torch.ones(3))
    assert compiled._compiler().traces == 3


def test_a_number_that_a_program_counts_up_is_warned_of() -> None:
    class Annealed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = 0

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            return draw(x * 0.9**self.step)

    compiled = propc.compile(Annealed(), estimator="rp")
    with pytest.warns(propc.errors.PropcWarning, match=r"'step' to 1 when it is traced.*buffer") as caught:
        compiled(torch.ones(B, 3))
    assert len(caught) == 1
    assert caught[0].filename == __file__

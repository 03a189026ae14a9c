"""What a user may write in a program: it runs compiled as it runs plain, and draws the same numbers."""

from __future__ import annotations

import functools
import random
import threading
import time
import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ComposeTransform,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    HalfNormal,
    Independent,
    Kumaraswamy,
    Laplace,
    LogisticNormal,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    Pareto,
    Poisson,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    SigmoidTransform,
    StudentT,
    TanhTransform,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
    Wishart,
    constraints,
    kl_divergence,
)

import propc

B = 5
Pair = namedtuple("Pair", "mean spread")


def param(*shape: int, start: float = 0.3) -> Tensor:
    return (torch.linspace(start, start + 0.5, int(np.prod(shape))).reshape(shape)).requires_grad_()


def same(plain: Callable[..., Any], *args: Any, estimator: Any = "rp", wrt: Any = (), **kwargs: Any) -> Any:
    """Run plain and compiled from the same seed: equal values, equal gradients, equal random state after it."""
    compiled = propc.compile(plain, estimator=estimator)
    outcomes = []
    for fn in (plain, compiled):
        torch.manual_seed(11)
        value = fn(*args, **kwargs)
        leaves = [t for t in [*args, *kwargs.values(), *wrt] if isinstance(t, Tensor) and t.requires_grad]
        total = sum(
            t.sum() for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor) and t.requires_grad
        )
        grads = torch.autograd.grad(total, leaves, allow_unused=True) if leaves else ()
        outcomes.append((value, grads, torch.get_rng_state()))
    (value, grads, state), (value2, grads2, state2) = outcomes
    assert torch.utils._pytree.tree_structure(value) == torch.utils._pytree.tree_structure(value2)
    for a, b in zip(torch.utils._pytree.tree_leaves(value), torch.utils._pytree.tree_leaves(value2)):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    for a, b in zip(grads, grads2):
        assert (a is None and b is None) or torch.equal(a, b)
    assert torch.equal(state, state2)
    return compiled


# -- arguments and results ------------------------------------------------------------------


def test_pytrees_in_and_out() -> None:
    def program(batch: dict[str, Tensor], pair: Pair, parts: tuple[Tensor, list[Tensor]]) -> dict[str, Any]:
        x = propc.sample(Normal(batch["x"] * pair.mean, pair.spread), "x")
        y = x + parts[0] + parts[1][0]
        return {"loss": y.square(), "aux": (x.detach(), [3, None, "text"]), "pair": Pair(y.detach(), 2)}

    out = propc.compile(program)(
        {"x": torch.ones(B)}, Pair(param(B), torch.tensor(0.5)), (torch.zeros(B), [torch.ones(B)])
    )
    assert out["loss"].shape == (B,)
    assert out["aux"][1] == [3, None, "text"]
    assert isinstance(out["pair"], Pair)
    assert out["pair"].spread == 2


def test_keyword_default_and_variadic_arguments() -> None:
    def program(a: Tensor, /, b: float = 2.0, *more: Tensor, scale: Tensor | None = None, **rest: Tensor) -> Tensor:
        x = propc.sample(Normal(a * b, 1.0), "x")
        for t in (*more, *rest.values()):
            x = x + t
        return x if scale is None else x * scale

    same(program, param(B))
    same(program, param(B), 3.0)
    same(program, param(B), 3.0, torch.ones(B), torch.ones(B))
    compiled = same(program, param(B), b=1.0, scale=torch.full((B,), 2.0), shift=param(B))
    graph = compiled.graph(param(B), 1.0, torch.ones(B), shift=torch.ones(B))
    assert {n.name for n in graph} >= {"input.a", "input.more[0]", "input.shift"}


def test_a_wrong_call_is_the_type_error_of_the_plain_function() -> None:
    @propc.compile
    def program(a: Tensor) -> Tensor:
        return a

    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        program()
    with pytest.raises(TypeError, match="program"):
        program(torch.ones(1), c=3)


def test_a_result_without_tensors_and_arguments_returned() -> None:
    def program(a: Tensor, n: int) -> Any:
        return a, n, {"none": None}

    same(program, param(B), 3)
    same(lambda a: None, torch.ones(B))


def test_returned_constants_are_the_callers_own() -> None:
    @propc.compile
    def program(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return a.square(), torch.zeros(B), torch.ones(B, 1).view(B)

    _, zeros, ones = program(param(B))
    zeros.add_(7.0)
    ones.add_(7.0)
    _, zeros, ones = program(param(B))
    assert zeros.eq(0).all()
    assert ones.eq(1).all()


def test_returned_distributions() -> None:
    @propc.compile(estimator="lr")
    def program(a: Tensor) -> dict[str, Any]:
        q = Normal(a, 1.0)
        return {"loss": propc.sample(q, "z").square(), "q": Independent(q, 1)}

    a = param(B)
    out = program(a)
    assert isinstance(out["q"], Independent)
    assert not isinstance(out["q"].base_dist.loc, torch._subclasses.FakeTensor)
    assert [c.name for c in program.graph(a).costs] == ["loss"]
    (out["loss"].sum() + out["q"].entropy()).backward()
    assert a.grad is not None


def test_a_black_box_outside_a_compiled_function() -> None:
    """No gradient goes through it there either; what is no tensor is handed through."""
    a = param(B)

    def box(x: Tensor) -> dict[str, Any]:
        return {"same": x, "pair": (x.exp(), 3), "grad": torch.is_grad_enabled()}

    found = propc.opaque(box)(a)
    assert not found["same"].requires_grad
    assert not found["pair"][0].requires_grad
    assert (found["pair"][1], found["grad"]) == (3, False)
    assert a.requires_grad
    assert torch.equal(found["pair"][0], a.detach().exp())
    (a * found["same"]).sum().backward()
    assert a.grad is not None
    assert torch.equal(a.grad, found["same"])


def test_black_boxes_with_several_results() -> None:
    def box(x: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        return x.detach() * scale, x.sum().reshape(1), x.long()

    @propc.compile(estimator="lr")
    def program(a: Tensor) -> Tensor:
        x = propc.sample(Normal(a, 1.0), "x")
        y, _, z = propc.opaque(box)(x, 2.0)
        (w,) = propc.opaque(lambda t: [t + 1])(y)
        return y * 10 + z + w - 1

    a = param(B)
    torch.manual_seed(0)
    x = Normal(a, 1.0).rsample()
    torch.manual_seed(0)
    assert torch.allclose(program(a), x * 22 + x.long())


class Game:
    """An environment whose attributes are bound anew at every step."""

    def __init__(self) -> None:
        self.state, self.steps = torch.zeros(B), 0

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        self.state, self.steps = state + action, self.steps + 1
        return self.state

    marked = propc.opaque(step)


def test_what_a_black_box_holds_compiles_no_new_graph() -> None:
    @propc.compile(estimator="lr")
    def play(logits: Tensor, step: Any) -> Tensor:
        return step(torch.zeros(B), propc.sample(Bernoulli(logits=logits), "action"))

    game, others = Game(), Game()
    for step in (propc.opaque(game.step), game.marked):
        before = play.compiler.traces
        for _ in range(3):
            game.state, game.steps = torch.ones(B), game.steps + 10  # as a reset does
            play(param(B), step)
        assert play.compiler.traces == before + 1
        assert game.steps > 30
    for number, step in enumerate((propc.opaque(others.step), others.marked), 3):  # another box
        play(param(B), step)
        assert play.compiler.traces == number
    assert others.steps > 0


def test_static_arguments_and_control_flow_on_them() -> None:
    calls = []

    @propc.compile(estimator="rp")
    def program(x: Tensor, steps: int = 2, kind: str = "tanh", act: Any = None, flag: bool = True) -> Tensor:
        calls.append((steps, kind))
        for t in range(steps):
            x = propc.sample(Normal(x, 0.1), f"x{t}")
        if x.shape[0] > 3 and x.dim() == 1 and len(x) > 3 and x.dtype.is_floating_point and x.size(0) > 3:
            x = torch.tanh(x) if kind == "tanh" else torch.sin(x)
        x = act(x) if act is not None else x
        return x if flag else -x

    x = param(B)
    program(x)
    program(x)
    assert calls == [(2, "tanh")]
    program(x, 3)
    program(x, 3, "sin")
    program(x, 3, kind="sin")
    assert len(calls) == 4  # a keyword is another structure than a position
    program(x, act=torch.exp)
    program(x, act=torch.exp)
    program(x, flag=False)
    assert len(calls) == 6
    program(x[:2].detach())
    assert len(calls) == 7


def test_one_true_and_one_point_zero_are_different_static_values() -> None:
    seen = []

    @propc.compile
    def program(x: Tensor, k: Any) -> Tensor:
        seen.append(k)
        return x * k

    ints = torch.arange(3)
    assert program(ints, 1).dtype == torch.int64
    assert program(ints, 1.0).dtype == torch.float64
    program(ints, True)
    assert [type(k) for k in seen] == [int, float, bool]


# -- the cache ------------------------------------------------------------------------------


def test_a_new_shape_dtype_requires_grad_or_grad_mode_is_traced_anew() -> None:
    traces = []

    @propc.compile
    def program(x: Tensor) -> Tensor:
        traces.append((tuple(x.shape), x.dtype, x.requires_grad, torch.is_grad_enabled()))
        return propc.sample(Normal(x, 1.0), "x")

    for x in (param(B), param(B), param(4), param(B).float().detach(), torch.ones(B), torch.ones(B)):
        program(x)
    assert len(traces) == 4
    with torch.no_grad():
        program(param(B))
        program(param(B))
        assert not program(param(B)).requires_grad
    assert len(traces) == 5
    with torch.inference_mode():
        assert program(torch.ones(B)).is_inference()
    assert program(param(B)).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program(param(B))
    with torch.autocast("cpu", dtype=torch.float16):
        program(param(B))
    assert len(traces) == 8
    torch.set_default_dtype(torch.float32)
    program(param(B).double().detach())
    torch.set_default_dtype(torch.float64)
    assert len(traces) == 9


def test_frozen_and_unfrozen_in_turn_keep_their_graphs() -> None:
    layer = nn.Linear(2, 1)
    traces = []

    @propc.compile
    def program(x: Tensor) -> Tensor:
        traces.append(1)
        return propc.sample(Normal(layer(x).squeeze(-1), 1.0), "x")

    for _ in range(3):
        for wants in (True, False):
            layer.requires_grad_(wants)
            assert program(torch.ones(B, 2)).requires_grad == wants
    assert len(traces) == 2


def test_many_traces_are_warned_of_once() -> None:
    @propc.compile
    def program(x: Tensor, k: float) -> Tensor:
        return x * k

    def call_often() -> None:
        for k in range(20):
            program(torch.ones(2), float(k))

    with pytest.warns(propc.PropcWarning, match="traced 16 times") as caught:
        call_often()
    assert len(caught) == 1
    assert caught[0].filename == __file__


# -- what a program holds --------------------------------------------------------------------

GLOBAL = torch.tensor(2.0)
FACTOR = 1.0


def _global_program(x: Tensor) -> Tensor:
    return propc.sample(Normal(x * GLOBAL, 0.1), "x") * FACTOR


def test_rebinding_a_global_tensor_or_number_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = same(_global_program, param(B))
    torch.manual_seed(0)
    first = compiled(param(B))
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    torch.manual_seed(0)
    assert torch.allclose(compiled(param(B)), 3 * first)
    monkeypatch.setitem(globals(), "GLOBAL", torch.tensor(100.0))
    assert compiled(param(B)).mean() > 50


def test_rebinding_a_closed_over_tensor_or_number_is_seen() -> None:
    weight, scale, flag = torch.tensor(1.0, requires_grad=True), 1.0, "plus"

    def helper(x: Tensor) -> Tensor:
        return x * scale

    @propc.compile
    def program(x: Tensor) -> Tensor:
        y = helper(x * weight)
        return y if flag == "plus" else -y

    assert program(torch.ones(1)).item() == 1
    weight = torch.tensor(5.0, requires_grad=True)
    y = program(torch.ones(1))
    assert y.item() == 5
    y.sum().backward()
    assert weight.grad == 1
    scale = 2.0
    assert program(torch.ones(1)).item() == 10
    flag = "minus"
    assert program(torch.ones(1)).item() == -10


class Settings:
    def __init__(self) -> None:
        self.rate, self.weights, self.journal = 1.0, [torch.ones(1), {"w": torch.ones(1)}], [1.0]


def test_state_in_lists_dictionaries_and_objects_is_seen() -> None:
    settings, table, traces = Settings(), {"k": 1.0, "t": torch.ones(1)}, []

    @propc.compile
    def program(x: Tensor) -> Tensor:
        traces.append(1)
        return x * settings.rate * settings.weights[0] * settings.weights[1]["w"] * table["k"] * table["t"]

    assert program(torch.ones(1)).item() == 1
    settings.weights[0] = torch.full((1,), 2.0)
    settings.weights[1]["w"] = torch.full((1,), 2.0)
    table["t"] = torch.full((1,), 2.0)
    assert program(torch.ones(1)).item() == 8
    assert len(traces) == 1
    table["k"], settings.rate = 2.0, 2.0
    assert program(torch.ones(1)).item() == 32
    assert len(traces) == 2
    settings.journal.append(2.0)  # no code of the program mentions it
    program(torch.ones(1))
    assert len(traces) == 2


def test_the_graph_names_held_tensors_as_the_user_does() -> None:
    layer, weights = nn.Linear(2, 2), [torch.ones(2), torch.ones(2)]

    def program(x: Tensor) -> Tensor:
        return propc.sample(Normal(layer(x) * weights[1] + GLOBAL, 1.0), "x").sum(-1)

    names = {n.name for n in propc.compile(program).graph(torch.ones(B, 2))}
    assert names >= {"held.layer.weight", "held.layer.bias", "held.weights[1]", "held.GLOBAL"}


def test_a_distribution_held_by_the_program() -> None:
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2), validate_args=True)
    base = Categorical(logits=torch.zeros(3))
    loc = torch.zeros(B, requires_grad=True)
    outer = Normal(loc, 1.0)

    def program(x: Tensor) -> Tensor:
        z = propc.sample(MultivariateNormal(x, torch.eye(2)), "z")
        c = propc.sample(base.expand([B]), "c")
        y = propc.sample(outer, "y")
        return kl_divergence(MultivariateNormal(x, torch.eye(2)), prior) + prior.log_prob(z) * base.probs[c] + y

    before = set(vars(prior)), set(vars(base))
    propc.compile(program, estimator={"c": "lr", "*": "rp"}).graph(param(B, 2))
    assert (set(vars(prior)), set(vars(base))) == before  # no traced tensor stays in a lazy property
    same(program, param(B, 2), estimator={"c": "lr", "*": "rp"})


class Holder:
    """A plain object whose method is compiled."""

    def __init__(self, scale: float) -> None:
        self.scale, self.w = scale, torch.tensor(scale, requires_grad=True)

    def loss(self, x: Tensor) -> Tensor:
        return self.scale * self.w * self._inner(x)

    def _inner(self, x: Tensor) -> Tensor:
        return propc.sample(Normal(x, 1.0), "x") + self.offset

    offset = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.loss(x)


@pytest.mark.parametrize(
    "pick", [lambda h: h.loss, lambda h: h, lambda h: lambda x: h.loss(x), lambda h: functools.partial(Holder.loss, h)]
)
def test_attributes_of_an_object_are_seen(pick: Callable[[Holder], Any]) -> None:
    holder = Holder(1.0)
    compiled = propc.compile(pick(holder))
    torch.manual_seed(0)
    first = compiled(torch.ones(B))
    for change, factor in (
        (lambda: setattr(holder, "scale", 2.0), 2.0),
        (lambda: setattr(holder, "w", torch.tensor(3.0, requires_grad=True)), 6.0),
    ):
        change()
        torch.manual_seed(0)
        y = compiled(torch.ones(B))
        assert torch.allclose(y, factor * first)
    y.sum().backward()
    assert holder.w.grad is not None
    holder.offset = 100.0
    assert compiled(torch.ones(B)).min() > 500


# -- modules -----------------------------------------------------------------------------------


class Zoo(nn.Module):
    """Many kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.attend = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        h, _ = self.gru(self.norm(h))
        h = h + self.attend(h, h, h)[0]
        h = self.drop(self.encoder(h))
        loc, scale = self.head(h.mean(1)).unbind(-1)
        return propc.sample(Normal(loc, F.softplus(scale)), "z").square()


@pytest.mark.parametrize("training", [True, False])
def test_layers(training: bool) -> None:
    model = Zoo().train(training)
    tokens = torch.randint(7, (B, 6))
    compiled = propc.compile(model, estimator="rp")
    outcomes = []
    for call in (model, compiled):
        torch.manual_seed(3)
        loss = call(tokens)
        outcomes.append((loss, torch.autograd.grad(loss.sum(), list(model.parameters())), torch.get_rng_state()))
    (a, da, s), (b, db, t) = outcomes
    assert torch.equal(a, b)
    assert all(torch.allclose(g, h, rtol=1e-12, atol=1e-14) for g, h in zip(da, db))
    assert torch.equal(s, t)


def test_train_and_eval_are_different_programs() -> None:
    drop = nn.Dropout(0.5)

    @propc.compile
    def program(x: Tensor) -> Tensor:
        return drop(x)

    x = torch.ones(1000)
    assert 0.3 < program(x).eq(0).double().mean() < 0.7
    drop.eval()
    assert program(x).eq(1).all()
    drop.train()
    assert program(x).eq(0).any()
    drop.p = 0.9
    assert program(x).eq(0).double().mean() > 0.8


class Swap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act: nn.Module = nn.ReLU()
        self.mask = torch.ones(3)  # neither parameter nor buffer
        self.sizes = [1.0, 2.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.mask * self.sizes[0]


def test_replaced_layers_hooks_tensors_and_lists_are_seen() -> None:
    model = Swap()
    compiled = propc.compile(model)
    x = torch.tensor([-1.0, 0.5, 2.0])
    assert torch.equal(compiled(x), torch.relu(x))
    compiled.act = nn.Tanh()
    assert torch.equal(compiled(x), torch.tanh(x))
    compiled.mask = torch.zeros(3)
    assert compiled(x).eq(0).all()
    compiled.mask = torch.ones(3)
    compiled.sizes[0] = 3.0
    assert torch.equal(compiled(x), torch.tanh(x) * 3)
    compiled.act.register_forward_hook(lambda module, args, out: out + 1)
    assert torch.equal(compiled(x), (torch.tanh(x) + 1) * 3)


def test_buffers_written_in_place() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean())
            return propc.sample(Normal(x + self.mean, 1.0), "x")

    model = Counter()
    compiled = propc.compile(model, estimator="rp")
    plain = Counter()
    for _ in range(3):
        torch.manual_seed(0)
        a = compiled(torch.ones(B))
        torch.manual_seed(0)
        b = plain(torch.ones(B))
        assert torch.equal(a, b)
    assert model.calls == 3
    assert torch.equal(model.mean, plain.mean)


# -- operations --------------------------------------------------------------------------------


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


# -- random numbers ------------------------------------------------------------------------------

LAWS: dict[str, Callable[[Tensor], Distribution]] = {
    "normal": lambda a: Normal(a, a.exp()),
    "normal-number": lambda a: Normal(a, 0.5),
    "independent": lambda a: Independent(Normal(a[:, None].expand(-1, 3), 1.0), 1),
    "log-normal": lambda a: LogNormal(a, 0.5),
    "gamma": lambda a: Gamma(a, 2 * a),
    "beta": lambda a: Beta(a, 2 * a),
    "dirichlet": lambda a: Dirichlet(a[:, None] * torch.arange(1.0, 4.0)),
    "student": lambda a: StudentT(3 + a, a, 1.0),
    "chi2": lambda a: Chi2(a),
    "exponential": lambda a: Exponential(a),
    "laplace": lambda a: Laplace(a, 1.0),
    "cauchy": lambda a: Cauchy(a, 1.0),
    "gumbel": lambda a: Gumbel(a, 1.0),
    "half-normal": lambda a: HalfNormal(a),
    "uniform": lambda a: Uniform(-a, a),
    "weibull": lambda a: Weibull(a, 1.5),
    "pareto": lambda a: Pareto(a, 3.0),
    "kumaraswamy": lambda a: Kumaraswamy(a, 2.0),
    "logistic-normal": lambda a: LogisticNormal(a[:, None].expand(-1, 2), torch.ones(2)),
    "mvn": lambda a: MultivariateNormal(a[:, None].expand(-1, 2), torch.eye(2) * 2),
    "mvn-tril": lambda a: MultivariateNormal(torch.zeros(2), scale_tril=a[:, None, None] * torch.eye(2)),
    "mvn-checked": lambda a: MultivariateNormal(a[:, None].expand(-1, 2), torch.eye(2) * 2, validate_args=True),
    "mvn-precision": lambda a: MultivariateNormal(a[:, None].expand(-1, 2), precision_matrix=torch.eye(2)),
    "low-rank": lambda a: LowRankMultivariateNormal(torch.zeros(3), a[:, None, None].expand(-1, 3, 1), torch.ones(3)),
    "relaxed-bernoulli": lambda a: RelaxedBernoulli(torch.tensor(0.5), logits=a),
    "relaxed-one-hot": lambda a: RelaxedOneHotCategorical(torch.tensor(0.5), logits=a[:, None] * torch.ones(3)),
    "straight-through": lambda a: OneHotCategoricalStraightThrough(logits=a[:, None] * torch.arange(3.0)),
    "transformed": lambda a: TransformedDistribution(
        Normal(a, 1.0), [AffineTransform(a, 2.0), SigmoidTransform(), ComposeTransform([TanhTransform()])]
    ),
    "nested": lambda a: Independent(
        TransformedDistribution(Independent(Normal(a[:, None].expand(-1, 2), 1.0), 1), AffineTransform(0.0, 3.0)), 0
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_compiled_pathwise_is_plain_autograd_bit_for_bit(law: str) -> None:
    def program(a: Tensor) -> Tensor:
        x = propc.sample(LAWS[law](a), "x")
        return x.reshape(B, -1).square().sum(1) * a

    same(program, param(B))


SCORED: dict[str, Callable[[Tensor], Distribution]] = {
    "bernoulli-logits": lambda a: Bernoulli(logits=a),
    "bernoulli-probs": lambda a: Bernoulli(probs=torch.sigmoid(a)),
    "categorical-logits": lambda a: Categorical(logits=a[:, None] * torch.arange(3.0)),
    "categorical-probs": lambda a: Categorical(probs=torch.softmax(a[:, None] * torch.arange(3.0), -1)),
    "one-hot": lambda a: OneHotCategorical(logits=a[:, None] * torch.arange(3.0)),
    "independent-bernoulli": lambda a: Independent(Bernoulli(logits=a[:, None].expand(-1, 4)), 1),
    "poisson": lambda a: Poisson(a),
    "geometric": lambda a: Geometric(torch.sigmoid(a)),
    "binomial": lambda a: Binomial(5, logits=a),
    "negative-binomial": lambda a: NegativeBinomial(5.0, logits=a),
    "multinomial": lambda a: Multinomial(4, logits=a[:, None] * torch.arange(3.0)),
    "von-mises": lambda a: VonMises(a, 2.0),
    "mixture": lambda a: MixtureSameFamily(
        Categorical(logits=a[:, None] * torch.arange(2.0)), Normal(a[:, None] + torch.arange(2.0), 1.0)
    ),
    "mixture-mvn": lambda a: MixtureSameFamily(
        Categorical(logits=a[:, None] * torch.arange(2.0)),
        MultivariateNormal(a[:, None, None] + torch.arange(2.0)[:, None].expand(2, 3), torch.eye(3)),
    ),
}


def _score(law: Callable[[Tensor], Distribution], a: Tensor) -> tuple[Tensor, Tensor]:
    """Hand-written REINFORCE without a baseline, from the current seed."""
    dist = law(a)
    with torch.no_grad():
        x = dist.rsample() if dist.has_rsample else dist.sample()
    cost = x.to(a.dtype).reshape(B, -1).square().sum(1)
    logp = dist.log_prob(x)
    return cost, torch.autograd.grad((cost * logp.reshape(B, -1).sum(1)).sum(), a)[0]


NO_SCORE = "straight-through", "uniform", "pareto"  # a support that moves has a part of the gradient


@pytest.mark.parametrize("law", [*SCORED, *(name for name in LAWS if name not in NO_SCORE)])
def test_compiled_score_is_the_hand_written_one(law: str) -> None:
    make = SCORED.get(law) or LAWS[law]

    @propc.compile(estimator=propc.estimator("lr", baseline=None))
    def program(a: Tensor) -> Tensor:
        x = propc.sample(make(a), "x")
        return x.to(a.dtype).reshape(B, -1).square().sum(1)

    a = param(B)
    torch.manual_seed(2)
    cost, grad = _score(make, a)
    torch.manual_seed(2)
    mine = program(a)
    assert torch.equal(cost, mine)
    assert torch.allclose(torch.autograd.grad(mine.sum(), a)[0], grad, rtol=1e-10)


class Shifted(Distribution):
    """A user's law with state in a list and in an object of its own."""

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, validate_args: bool | None = None) -> None:
        self.loc = loc
        self.parts = [loc * 2, {"deep": (loc * 3,)}]
        self.box = Holder.__new__(Holder)
        self.box.inner = Holder.__new__(Holder)
        self.box.inner.things = [loc.exp()]
        super().__init__(loc.shape, validate_args=validate_args)

    def _law(self) -> Normal:
        return Normal(self.loc + self.parts[0] + self.parts[1]["deep"][0], self.box.inner.things[0])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._law().rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._law().log_prob(value)


@pytest.mark.parametrize("validate", [True, None])
def test_user_written_distributions(validate: bool | None) -> None:
    same(lambda a: propc.sample(Shifted(a, validate), "x").square(), param(B))
    a = param(B)
    torch.manual_seed(2)
    _, grad = _score(Shifted, a)
    torch.manual_seed(2)
    mine = propc.compile(
        lambda a: propc.sample(Shifted(a, validate), "x").square(), estimator=propc.estimator("lr", baseline=None)
    )(a)
    assert torch.allclose(torch.autograd.grad(mine.sum(), a)[0], grad, rtol=1e-10)


class Coupling(torch.distributions.Transform):
    """A flow step with a network inside."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def _call(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a, b + self.net(a)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        a, b = y.chunk(2, -1)
        return torch.cat([a, b - self.net(a)], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


def test_a_normalizing_flow_with_a_network_inside() -> None:
    net = nn.Linear(1, 1)

    def program(a: Tensor) -> Tensor:
        law = TransformedDistribution(Independent(Normal(a[:, None].expand(-1, 2), 1.0), 1), [Coupling(net)])
        z = propc.sample(law, "z")
        return z.square().sum(-1) + law.log_prob(z)

    same(program, param(B), wrt=tuple(net.parameters()))
    compiled = propc.compile(lambda a: program(a), estimator=propc.estimator("lr", baseline=None))
    compiled(param(B)).sum().backward()
    assert net.weight.grad is not None


def test_unmarked_draws_are_drawn_anew_and_as_in_the_plain_program() -> None:
    drop = nn.Dropout(0.5)
    generator = torch.Generator().manual_seed(1)

    def program(a: Tensor) -> Tensor:
        noise = torch.randn(B) + torch.rand_like(a) + torch.empty(B).uniform_() + torch.randint(3, (B,))
        torch.rand(2)  # unused, but it moves the stream
        x = propc.sample(Normal(a, 1.0), "x")
        y = Normal(a, 1.0).rsample() + Normal(a, 1.0).sample() + Bernoulli(torch.sigmoid(a)).sample()
        z = Gamma(a, 1.0).rsample() + Beta(a, 1.0).rsample() + torch.normal(a, 1.0) + torch.bernoulli(a / 2)
        return noise + y + z + drop(x) + F.dropout(x, 0.2) + torch.randperm(B) + F.gumbel_softmax(a[None])[0]

    compiled = same(program, param(B))
    a = param(B)
    assert not torch.equal(compiled(a), compiled(a))
    own = propc.compile(lambda a: a + torch.randn(B, generator=generator))
    assert not torch.equal(own(a), own(a))


def test_tracing_draws_nothing() -> None:
    def program(a: Tensor) -> Tensor:
        x = propc.sample(Gamma(a, 1.0), "x") + torch.randn(B) + F.dropout(a) + Normal(a, 1.0).sample()
        return x + propc.opaque(lambda t: t + torch.randn(B) + random.random() + float(np.random.rand()))(x)

    compiled = propc.compile(program, estimator="lr")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    compiled.graph(param(B))
    compiled.graphs(param(B))
    compiled.explain(param(B))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


def test_the_first_call_draws_what_later_calls_draw() -> None:
    for estimator in ("rp", "lr", "tp"):
        compiled = propc.compile(lambda a: propc.sample(Normal(a, 1.0), "x").square(), estimator=estimator)
        a, grads = param(B), []
        for _ in range(3):
            torch.manual_seed(5)
            cost = compiled(a)
            grads.append((cost, torch.autograd.grad(cost.sum(), a)[0], torch.get_rng_state()))
        for again in grads[1:]:
            assert all(torch.equal(x, y) for x, y in zip(grads[0], again))


def test_a_long_loop_compiles_in_seconds() -> None:
    def program(x: Tensor, steps: int) -> Tensor:
        for t in range(steps):
            x = propc.sample(Normal(torch.tanh(x), 0.1), f"x{t}")
        return x.square()

    compiled = propc.compile(program, estimator="tp")
    compiled.graph(param(B), 10)
    start = time.process_time()
    compiled(param(B), 1000).sum().backward()
    assert time.process_time() - start < 10


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


@pytest.mark.filterwarnings("ignore:Singular sample")
def test_a_law_that_asks_whether_any_parameter_is_wrong() -> None:
    def program(a: Tensor) -> Tensor:
        x = propc.sample(Wishart(torch.tensor(5.0), scale_tril=torch.eye(2) * a[:, None, None]), "x")
        return x.diagonal(dim1=1, dim2=2).sum(1)

    same(program, param(B))


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


def test_without_values_on_the_meta_device() -> None:
    compiled = propc.compile(Zoo(), estimator="tp").to("meta")
    cost = compiled(torch.zeros(B, 6, dtype=torch.long, device="meta"))
    cost.sum().backward()
    assert cost.shape == (B,)
    assert compiled.embed.weight.grad.shape == (7, 8)


def test_a_function_for_torch_compile_inside() -> None:
    scaled = torch.compile(lambda x: torch.tanh(x) * 2, backend="eager")

    def program(a: Tensor) -> Tensor:
        return propc.sample(Normal(scaled(a), 1.0), "x").square()

    same(program, param(B))


def test_other_threads_may_draw() -> None:
    compiled = propc.compile(lambda a: propc.sample(Normal(a, 1.0), "x").square(), estimator="lr")
    errors: list[BaseException] = []

    def step(rows: int) -> None:
        try:
            for extra in range(5):
                compiled(param(rows + 10 * extra)).sum().backward()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=step, args=(rows,)) for rows in (3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


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

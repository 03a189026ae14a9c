"""What goes into a program and comes out of it: trees of tensors, constants, distributions, black boxes."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from side_by_side import B, param, same
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

import propc

Pair = namedtuple("Pair", "mean spread")


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

"""Mistakes in a program: the error says where, what and what to do, and everything works afterwards."""

from __future__ import annotations

import random
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mistakes import B, line_of, normal, refused, run
from torch import Tensor, nn
from torch.distributions import Normal, RelaxedOneHotCategorical, VonMises
from zoo import leaf

import propc

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


CONTROL: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "if": (lambda x: x if (x > 0).all() else -x, "condition"),
    "while": (lambda x: [x for _ in iter(lambda: bool(x.sum() > 0), False)], "condition"),
    "and": (lambda x: x.sum() > 0 and x, "condition"),
    "max": (lambda x: max(x[0], x[1]), "condition"),
    "float": (lambda x: x * float(x[0]), "float()"),
    "int": (lambda x: x * int(x[0]), "int()"),
    "item": (lambda x: x * x.sum().item(), ".item()"),
    "range": (lambda x: [x for _ in range(x[0].long())], "range()"),
    "index": (lambda x: [1, 2][x[0].long()], "index"),
    "mask": (lambda x: x[x > 0], "mask"),
    "nonzero": (lambda x: x.nonzero(), "nonzero"),
    "tensor": (lambda x: torch.tensor([x[0], x[1]]), "torch.stack"),
    "numpy function": (lambda x: np.sin(x.detach()), "NumPy"),
    "numpy": (lambda x: x.detach().numpy(), "'.numpy()'"),
    "tolist": (lambda x: x.tolist(), ".item()"),
    "complex": (lambda x: x * complex(x[0]).real, "complex()"),
    "format": (lambda x: f"{x[0]:.2f}", "format"),
    "slice": (lambda x: x[: x[0].long()], "a bound of a slice"),
    "one element": (lambda x: torch.ones(3)[x[0].long()], "table[index[None]][0]"),
    "new_tensor": (lambda x: x.new_tensor([x[0]]), "torch.stack"),
    "a number of torch": (lambda x: torch.full((B,), x[0]), "fill_value"),
}


@pytest.mark.parametrize("case", CONTROL)
def test_control_flow_on_a_traced_value(case: str) -> None:
    body, word = CONTROL[case]

    def program(theta: Tensor) -> Any:
        return body(normal(theta, "site"))

    error = refused(propc.TraceError, run(program), word, "known when the compiled function runs", "se ")
    assert line_of(error) in str(error)
    if "NumPy" not in str(error) and "fill_value" not in str(error):
        assert "'site'" in str(error)


def test_transforms_that_a_trace_cannot_see() -> None:
    def inside(theta: Tensor) -> Tensor:
        return torch.vmap(lambda row: propc.sample(Normal(row, 1.0), "x"))(theta.expand(B))

    refused(propc.TraceError, run(inside), "vmap")

    def tangent(theta: Tensor) -> Tensor:
        x = normal(theta)
        return torch.func.jvp(torch.sin, (x,), (x,))[1]

    refused(propc.TraceError, run(tangent), "torch.func", program=tangent, at="jvp")


def test_an_unmarked_draw_by_rejection() -> None:
    def program(theta: Tensor) -> Tensor:
        return normal(theta) + VonMises(theta, 1.0).sample()

    refused(propc.TraceError, run(program), "Mark the draw", program=program, at="VonMises")


def test_a_lazy_layer_without_a_shape() -> None:
    layer = nn.LazyLinear(3)

    def program(theta: Tensor) -> Tensor:
        return normal(layer(theta * torch.ones(B, 3)).sum())

    refused(propc.TraceError, run(program), "layer.weight", "lazy", "plain module once")


def test_one_temperature_under_weights_for_each_sample() -> None:
    temperature = torch.tensor(0.5, requires_grad=True)

    @propc.compile(estimator="tp")
    def program(theta: Tensor) -> Tensor:
        law = RelaxedOneHotCategorical(temperature, logits=theta * torch.ones(B, 3))
        return propc.sample(law, "x")[:, 0]

    refused(propc.PropcError, lambda: program(leaf()), "temperature", "'rp'")


def test_backward_inside() -> None:
    def program(theta: Tensor) -> Tensor:
        x = normal(theta)
        x.sum().backward()
        return x

    refused(propc.TraceError, run(program), "'backward'", "outside", program=program, at="backward")


@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: float(np.random.rand())])
def test_numbers_that_would_freeze(draw: Callable[[], float]) -> None:
    states = random.getstate(), np.random.get_state()[1].copy()

    def program(theta: Tensor) -> Tensor:
        return normal(theta) * draw()

    refused(propc.TraceError, run(program), "random", "freeze", "propc.sample", program=program, at="def program")
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()


@pytest.mark.parametrize("make", [random.Random, np.random.default_rng, np.random.RandomState])
def test_numbers_of_a_generator_that_the_program_holds(make: Callable[[int], Any]) -> None:
    source, first = make(0), make(0)
    draw = {"Generator": "random", "Random": "random", "RandomState": "rand"}[type(source).__name__]

    def program(theta: Tensor) -> Tensor:
        return normal(theta) * getattr(source, draw)()

    words = "the generator 'source'", "freeze", "propc.opaque"
    refused(propc.TraceError, run(program), *words, program=program, at="def program")
    assert getattr(source, draw)() == getattr(first, draw)()


def test_seeding_inside() -> None:
    state = torch.get_rng_state()

    def program(theta: Tensor) -> Tensor:
        torch.manual_seed(1)
        return normal(theta)

    refused(propc.TraceError, run(program), "torch.manual_seed", "outside", program=program, at="def program")
    assert torch.equal(state, torch.get_rng_state())


class Keeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []
        self.layer = self.weight = None
        self.recent: deque[Tensor] = deque()
        self.bag: set[Tensor] = set()

    def forward(self, theta: Tensor, how: str) -> Tensor:
        x = normal(theta)
        if how == "history":
            self.history.append(x)
        elif how == "layer":
            self.layer = nn.Linear(B, B)
            x = self.layer(x)
        elif how == "table":
            self.table["x"] = x
        elif how == "recent":
            self.recent.append(x)
        elif how == "bag":
            self.bag.add(x)
        elif how == "late":
            self.late = lambda: x
        else:
            self.weight = nn.Parameter(torch.zeros(B))
            x = x * self.weight
        return x


@pytest.mark.parametrize("how", ["history", "recent", "bag", "late", "layer", "weight"])
def test_keeping_a_traced_tensor(how: str) -> None:
    model = propc.compile(Keeper(), estimator="lr")
    error = refused(propc.TraceError, lambda: model(leaf(), how), "keeps a traced tensor", how, "Return it")
    assert "copy_" in str(error)
    assert "before the first call" in str(error)
    assert model.history == []
    assert model.layer is model.weight is None
    assert not model.recent
    assert not model.bag
    assert not hasattr(model, "late")


@pytest.mark.parametrize(
    "hide",
    [lambda x: {x}, lambda x: lambda: x, lambda x: (v for v in [x]), lambda x: iter([x]), lambda x: [x.sum(), {x}]],
    ids=["set", "closure", "generator", "iterator", "in a list"],
)
def test_returning_a_traced_tensor_where_it_cannot_be_renewed(hide: Callable[[Tensor], Any]) -> None:
    def program(theta: Tensor) -> Any:
        return hide(normal(theta))

    refused(propc.TraceError, run(program, estimator="rp"), "returns a", "attributes", program=program, at="def")
    assert run(lambda theta: deque([normal(theta)]))()[0].shape == (B,)


def test_an_exception_in_the_users_model() -> None:
    broken = True

    @propc.compile(estimator="lr")
    def program(theta: Tensor) -> Tensor:
        x = normal(theta)
        with torch.no_grad():
            return x if not broken else x / {}["missing"]

    random_state, before = torch.get_rng_state(), torch.distributions.Distribution._validate_args
    with pytest.raises(KeyError, match="missing") as caught:
        program(leaf())
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].filename == __file__
    assert "missing" in frames[-1].line
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert torch.is_grad_enabled()
    assert torch.distributions.Distribution._validate_args == before
    assert torch.equal(random_state, torch.get_rng_state())
    broken = False
    program(leaf()).shape  # noqa: B018


def test_an_exception_while_running_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    def program(theta: Tensor) -> Tensor:
        x = normal(theta)
        return torch.linalg.cholesky(-torch.eye(2) * x[:, None, None].square()).sum((1, 2))

    with pytest.raises(torch.linalg.LinAlgError) as caught:
        run(program)()
    notes = getattr(caught.value, "__notes__", ["test_bad_input.py"])
    assert any("test_bad_input.py" in note for note in notes)

    def wrong(theta: Tensor) -> Tensor:
        return normal(theta) @ torch.ones(3)

    with pytest.raises(RuntimeError):
        run(wrong)()
    assert "Traceback" not in "".join(capfd.readouterr())  # torch would log its own


def test_black_boxes() -> None:
    def number(theta: Tensor) -> Tensor:
        return theta * propc.opaque(lambda x: float(x.sum()))(normal(theta))

    refused(propc.PropcTypeError, run(number), "black box", "float", "torch.as_tensor", program=number, at="opaque")

    def fails(x: Tensor) -> Tensor:
        raise ZeroDivisionError("in the box")

    with pytest.raises(ZeroDivisionError, match="in the box"):
        run(lambda theta: propc.opaque(fails)(normal(theta)))()


@pytest.mark.parametrize("later", [lambda x: x[:2], lambda x: x.float(), lambda x: (x, x), lambda x: None])
def test_a_black_box_that_gives_something_else_than_on_zeros(later: Callable[[Tensor], Any]) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.opaque(lambda x: later(x) if x.any() else x)(normal(theta))

    words = "black box", "on zeros", "shapes and dtypes"
    refused(propc.GraphError, run(program), *words, program=program, at="opaque")
    refused(propc.GraphError, run(program, validate=False), *words)


def test_a_black_box_must_be_a_function() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.opaque("square")(normal(theta))

    refused(propc.PropcTypeError, run(program), "takes a function", "'square'", program=program, at="opaque")

"""Mistakes: the error says where, what and what to do, and everything works afterwards."""

from __future__ import annotations

import copy
import inspect
import random
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import _SingleLevelFunction
from torch.distributions import (
    Bernoulli,
    Categorical,
    Dirichlet,
    Independent,
    MultivariateNormal,
    Normal,
    RelaxedOneHotCategorical,
    TransformedDistribution,
    VonMises,
)
from torch.distributions.transforms import AffineTransform

import propc
from propc.ir import Route, Token

B = 6


def leaf(value: float = 0.4) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def normal(theta: Tensor, name: str = "x") -> Tensor:
    return propc.sample(Normal(theta.expand(B), 1.0), name)


@pytest.fixture(autouse=True)
def nothing_is_lost() -> Iterator[None]:
    """After every test torch is as it was, and an ordinary program compiles and has a gradient."""
    apply = torch.autograd.Function.apply
    yield
    assert torch.autograd.Function.apply == apply
    assert "apply" not in vars(_SingleLevelFunction)
    assert propc.frontend.active_tracer() is None
    theta = leaf()
    propc.compile(lambda theta: normal(theta).square(), estimator="lr")(theta).sum().backward()
    assert theta.grad is not None


def line_of(error: BaseException) -> str:
    """`file:line` of the last line of this file in the traceback, where the user's mistake is."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
    return f"test_bad_input.py:{lines[-1]}"


def line_with(program: Callable[..., Any], text: str) -> str:
    """`file:line` of the line of a program that contains a text."""
    lines, start = inspect.getsourcelines(program)
    return f"test_bad_input.py:{start + next(i for i, line in enumerate(lines) if text in line)}"


def refused(
    kind: type[Exception],
    call: Callable[[], Any],
    *words: str,
    program: Callable[..., Any] | None = None,
    at: str = "",
) -> Exception:
    """Check that a call is refused with these words, and with the line of `program` that contains `at`."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    for word in (*words, *((line_with(program, at),) if program is not None else ())):
        assert word in text, text
    assert isinstance(caught.value, propc.PropcError)
    assert "FakeTensor" not in text
    return caught.value


def run(program: Callable[..., Any], *args: Any, estimator: Any = "lr", **options: Any) -> Callable[[], Any]:
    return lambda: propc.compile(program, estimator=estimator, **options)(leaf(), *args)


# -- tracing ----------------------------------------------------------------------------------

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


# -- marks ------------------------------------------------------------------------------------


def test_what_can_be_marked() -> None:
    def no_law(theta: Tensor) -> Tensor:
        return propc.sample(theta, "z")

    refused(propc.PropcTypeError, run(no_law), "'z'", "got a tensor", "Normal(loc, scale)", program=no_law, at="sample")
    refused(TypeError, lambda: propc.sample(3.0, "z"), "'z'", "float 3.0")
    refused(TypeError, lambda: propc.sample(Normal, "z"), "the class Normal")

    def no_tensor(theta: Tensor) -> Tensor:
        return propc.cost(3.0, "loss")

    refused(propc.PropcTypeError, run(no_tensor), "cost 'loss'", "float 3.0", program=no_tensor, at="propc.cost")
    refused(TypeError, lambda: propc.cost([1.0], "loss"), "list")
    refused(TypeError, run(lambda theta: propc.node(3.0, "n")), "node 'n'")

    def table(theta: Tensor) -> Tensor:
        return propc.cost(normal(theta)[:, None], "loss").sum(1)

    refused(propc.PropcValueError, run(table), "cost 'loss'", "float64[6, 1]", "Sum", program=table, at="propc.cost")

    def integer(theta: Tensor) -> Tensor:
        return propc.cost(normal(theta).long(), "loss")

    refused(propc.PropcValueError, run(integer), "cost 'loss'", "int64[6]", ".float()", program=integer, at="cost")


def test_a_complex_cost_and_a_list() -> None:
    def imaginary(theta: Tensor) -> Tensor:
        return propc.cost(normal(theta) * 1j, "loss")

    refused(propc.PropcValueError, run(imaginary), "cost 'loss'", ".real or .abs()", program=imaginary, at="cost")
    refused(propc.PropcTypeError, run(lambda theta: propc.cost([normal(theta)], "loss")), "list [a tensor]")


@pytest.mark.parametrize(("choice", "kind"), [("los", propc.PropcValueError), (3, propc.PropcTypeError)])
def test_a_propagator_that_is_none_names_its_node(choice: Any, kind: type[Exception]) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.cost(propc.node(normal(theta), "n", propagator=choice), "loss")

    def at_the_cost(theta: Tensor) -> Tensor:
        return propc.cost(normal(theta), "loss", propagator=choice)

    refused(kind, run(program), "node 'n'", "'loss'" if choice == "los" else "Known", program=program, at="propc.node")
    refused(kind, run(at_the_cost), "cost 'loss'", program=at_the_cost, at="propc.cost")


@pytest.mark.parametrize("estimator", ["local", "mvd", "enumerate", "disarm", "rloo", "st"])
def test_an_empty_batch(estimator: str) -> None:
    theta = leaf()
    program = propc.compile(lambda t: propc.sample(Bernoulli(logits=t.expand(0)), "b").square(), estimator=estimator)
    loss = program(theta)
    loss.sum().backward()
    assert loss.shape == (0,)
    assert theta.grad == 0


def test_a_table_that_is_enumerated() -> None:
    """What is returned is no cost; the site has no batch then, and all its values are taken."""
    theta = leaf()
    program = propc.compile(
        lambda t: propc.sample(Bernoulli(logits=t.expand(3)), "b")[:, None] * torch.ones(2), estimator="enumerate"
    )
    table = program(theta)
    (found,) = torch.autograd.grad(table.sum(), theta)
    (wanted,) = torch.autograd.grad(6 * theta.sigmoid(), theta)
    assert torch.allclose(table, theta.sigmoid().expand(3, 2))
    assert torch.allclose(found, wanted)


def test_names() -> None:
    def twice(theta: Tensor) -> Tensor:
        x = normal(theta, "z")
        return x + propc.sample(Normal(x, 1.0), "z")

    refused(propc.PropcValueError, run(twice), "site 'z'", "already taken", "f'x{t}'", program=twice, at="return")
    refused(propc.PropcTypeError, run(lambda theta: normal(theta, 3)), "non-empty string", "3")
    refused(propc.PropcTypeError, run(lambda theta: normal(theta, "")), "non-empty string")


class Hiding(Normal):
    """A user's law that keeps its tensor out of sight."""

    def __init__(self, loc: Tensor) -> None:
        super().__init__(torch.zeros(B), 1.0)
        self.shift = {"by": lambda x: x + loc}

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.shift["by"](super().rsample())


def test_a_tensor_hidden_in_a_distribution() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Hiding(theta), "z")

    refused(
        propc.PropcTypeError,
        run(program),
        "site 'z'",
        "closes over a traced tensor",
        "attribute",
        program=program,
        at="sample",
    )


# -- estimators ---------------------------------------------------------------------------------


def test_estimators_that_cannot_work_at_a_site() -> None:
    def coin(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta.expand(B)), "coin")

    for estimator in ("rp", "tp", propc.Combine(("rp", "lr"))):
        refused(
            propc.EstimatorError,
            run(coin, estimator=estimator),
            "site 'coin'",
            "Bernoulli",
            "rsample",
            "estimator='lr'",
            program=coin,
            at="sample",
        )

    def compared(theta: Tensor) -> Tensor:
        x = normal(theta, "z")
        return (x > 0).double()

    refused(
        propc.EstimatorError,
        run(compared, estimator="rp"),
        "site 'z'",
        "differentiable path",
        "'lr'",
        program=normal,
        at="sample",
    )

    def boxed(theta: Tensor) -> Tensor:
        return propc.opaque(torch.square)(normal(theta, "z"))

    refused(propc.EstimatorError, run(boxed, estimator="rp"), "site 'z'", "black box")
    assert run(boxed)().shape == (B,)


@pytest.mark.parametrize("estimator", ["lr", "tp"])
def test_a_scalar_cost_where_one_for_each_sample_is_needed(estimator: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return normal(theta, "z").mean()

    refused(propc.EstimatorError, run(program, estimator=estimator), "site 'z'", "scalar", "[batch]")
    assert run(program, estimator="rp")().shape == ()

    def table(theta: Tensor) -> Tensor:
        return normal(theta, "z")[:, None].expand(B, 2)

    refused(ValueError, run(table, estimator=estimator), "site 'z'", "float64[6, 2]")


norm = nn.BatchNorm1d(2, dtype=torch.float64)
MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "batch mean": lambda x: x - x.mean(),
    "softmax": lambda x: x.softmax(0),
    "sort": lambda x: x.sort(0).values,
    "flip": lambda x: x.flip(0),
    "cumsum": lambda x: x.cumsum(0),
    "roll": lambda x: x.roll(1, 0),
    "pairwise": lambda x: (x[:, None] - x[None]).square().sum(1),
    "batch norm": lambda x: norm(torch.stack([x, x], 1)).sum(1),
}


@pytest.mark.parametrize("estimator", ["lr", "tp"])
@pytest.mark.parametrize("mix", MIXING)
def test_an_operation_that_mixes_samples(mix: str, estimator: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.cost(MIXING[mix](normal(theta, "z")), "loss")

    compiled = propc.compile(program, estimator=estimator)
    for _ in range(2):  # at every call, not only at the first
        refused(
            propc.GraphError,
            lambda: compiled(leaf()),
            "cost 'loss'",
            "mixes samples",
            "estimator='rp'",
            program=program,
            at="propc.cost",
        )
    assert run(program, estimator="rp")().shape == (B,)


def test_mixing_on_the_way_to_a_site() -> None:
    def program(theta: Tensor) -> Tensor:
        x = normal(theta, "first")
        return propc.sample(Normal(x.mean().expand(B), 1.0), "second")

    refused(propc.GraphError, run(program), "site 'second'", "mixes samples", program=program, at="second")


def test_rows_that_do_not_mix() -> None:
    norm_eval = nn.BatchNorm1d(2).eval()

    def program(theta: Tensor) -> Tensor:
        x = normal(theta)
        y = norm_eval(torch.stack([x, x.sin()], 1)).sum(1)
        return y + x.cumsum(-1 if x.dim() > 1 else 0) * 0 + torch.randn(B) * x

    assert run(program, estimator="rp")().shape == (B,)
    assert run(lambda theta: norm_eval(torch.stack([normal(theta)] * 2, 1)).sum(1))().shape == (B,)


def test_a_batch_of_one_has_no_leave_one_out_mean() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(1), 1.0), "z")

    for estimator in ("lr", "tp"):
        refused(
            propc.EstimatorError,
            run(program, estimator=estimator),
            "site 'z'",
            "batch of 1",
            "baseline=None",
            program=program,
            at="sample",
        )
    assert run(program, estimator=propc.estimator("lr", baseline=None))().shape == (1,)
    assert run(program, estimator="infer")().shape == (1,)


def test_a_site_without_the_batch() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta, 1.0), "z")
        return x * torch.ones(B)

    refused(propc.EstimatorError, run(program), "site 'z'", "6 samples", "Expand", program=program, at="sample")


def test_costs_of_different_lengths() -> None:
    def program(theta: Tensor) -> dict[str, Tensor]:
        x = normal(theta)
        return {"a": x, "b": x[:3]}

    refused(propc.GraphError, run(program), "'a'", "'b'", "3", "6")


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (lambda: propc.compile(normal, estimator="lrr"), ("'lrr'", "Did you mean 'lr'?", "'infer'")),
        (lambda: propc.compile(normal, estimator={"x": "tpp"}), ("'tpp'", "Did you mean 'tp'?")),
        (lambda: propc.compile(normal).with_estimator("lrr"), ("Did you mean 'lr'?",)),
        (lambda: propc.estimator("tp", targt="theta"), ("'targt'", "Did you mean 'target'?")),
        (lambda: propc.estimator("tp", weights="pas"), ("weights='pas'", "Did you mean 'past'?")),
        (lambda: propc.estimator("tp", k_interval=0), ("k_interval=0",)),
        (lambda: propc.estimator("lr", baseline="lo"), ("'lo'", "Did you mean 'loo'?")),
        (lambda: propc.estimator("combine", estimators=("rp",)), ("two",)),
        (lambda: propc.compile(normal, passes=["prun"]), ("'prun'", "Did you mean 'prune'?")),
        (lambda: propc.compile(normal, backend="eagr"), ("'eagr'", "Did you mean 'eager'?")),
    ],
)
def test_misspelt_choices(choose: Callable[[], Any], words: tuple[str, ...]) -> None:
    refused(propc.PropcValueError, choose, *words)


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (lambda: propc.compile(3), ("function", "got 3")),
        (lambda: propc.compile(dict), ("nn.Module",)),
        (lambda: propc.compile(normal, estimator=3), ("got 3", "'lr'")),
        (lambda: propc.compile(normal, passes=[3]), ("got 3",)),
        (lambda: propc.compile(normal, passes="prune"), ("'prune'", "passes=['prune']")),
        (lambda: propc.estimator("lr", baseline=3), ("got 3",)),
    ],
)
def test_choices_of_the_wrong_kind(choose: Callable[[], Any], words: tuple[str, ...]) -> None:
    refused(propc.PropcTypeError, choose, *words)


def test_misspelt_estimators_at_a_site() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(B), 1.0), "z", estimator="lrr")

    refused(propc.PropcValueError, run(program), "site 'z'", "Did you mean 'lr'?", program=program, at="sample")
    refused(
        propc.PropcValueError,
        run(normal, estimator=lambda site: "lrr"),
        "site 'x'",
        "Did you mean 'lr'?",
        program=normal,
        at="sample",
    )


def test_a_pattern_that_matches_no_site() -> None:
    refused(propc.PropcValueError, run(normal, estimator={"latent*": "lr"}), "'latent*'", "'x'")

    def branch(theta: Tensor, deep: bool) -> Tensor:
        x = normal(theta, "shallow")
        return propc.sample(Normal(x, 1.0), "deep") if deep else x

    refused(
        propc.PropcValueError,
        run(branch, False, estimator={"deep": "lr"}),
        "'deep'",
        "branch that was not taken",
        "'shallow'",
    )
    assert run(branch, True, estimator={"deep": "lr"})().shape == (B,)


def test_targets() -> None:
    def program(theta: Tensor, other: Tensor) -> Tensor:
        return normal(theta, "z") + other

    def with_target(name: str) -> Callable[[], Any]:
        return run(program, torch.ones(B, requires_grad=True), estimator=propc.estimator("tp", target=name))

    refused(propc.PropcValueError, with_target("thet"), "'thet'", "Did you mean 'theta'?")
    refused(
        propc.EstimatorError,
        with_target("other"),
        "site 'z'",
        "'other'",
        "Choose another target",
        program=normal,
        at="sample",
    )


# -- graphs -------------------------------------------------------------------------------------


def test_a_graph_whose_routes_have_no_end() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        x = normal(theta, "first")
        return x, normal(theta, "second")

    graph = propc.compile(program, estimator="lr").graph(leaf())
    (route, *_) = graph.routes
    for changed, word in (
        (replace(route, targets=()), "has no end"),
        (replace(route, targets=(Token("nowhere"),)), "'nowhere'"),
        (replace(route, targets=(Token("second"),)), "influence"),
        (replace(route, targets=route.targets * 2), "twice"),
        (Route("theta", route.targets, route.baseline), "'theta'"),
    ):
        refused(propc.GraphError, replace(graph, routes=(changed,)).verify, word)


def test_a_broken_pass_is_named() -> None:
    class Broken(propc.passes.Pass):
        name = "broken"

        def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
            return graph.without("output")

    error = refused(propc.GraphError, run(normal, passes=[Broken()]), "no output")
    assert any("'broken'" in note for note in getattr(error, "__notes__", ["'broken'"]))


# -- values at run time -----------------------------------------------------------------------------

LAWS: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "scale": (lambda t: Normal(torch.zeros(B), t), ("'scale'", "-0.6", "softplus")),
    "nan": (lambda t: Normal(t * torch.nan, 1.0), ("'loc'", "nan")),
    "number": (lambda t: Normal(t, -1.0), ("'scale'", "-1")),
    "probs": (lambda t: Bernoulli(probs=t + 2), ("'probs'", "1.4")),
    "categorical": (lambda t: Categorical(probs=torch.stack([t, t.square()], 1)), ("'probs'",)),
    "logits": (lambda t: Categorical(logits=torch.stack([t, t * torch.nan], 1)), ("'logits'", "nan")),
    "concentration": (lambda t: Dirichlet(torch.stack([t, t], 1)), ("'concentration'",)),
    "independent": (lambda t: Independent(Normal(t[:, None], t[:, None]), 1), ("scale'",)),
    "transformed": (lambda t: TransformedDistribution(Normal(t.exp(), t), AffineTransform(0.0, 1.0)), ("scale'",)),
    "tril": (lambda t: MultivariateNormal(torch.zeros(2), scale_tril=t[:, None, None] * torch.eye(2)), ("tril'",)),
}


@pytest.mark.parametrize("estimator", ["lr", "infer"])
@pytest.mark.parametrize("law", LAWS)
def test_invalid_parameters_name_the_site(law: str, estimator: str) -> None:
    make, words = LAWS[law]

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(make(theta.expand(B)), "z")
        return x.double().reshape(B, -1).sum(1)

    compiled = propc.compile(program, estimator=estimator)
    for _ in range(2):
        refused(
            propc.NonFiniteError,
            lambda: compiled(leaf(-0.6)),
            "site 'z'",
            "must satisfy",
            *words,
            program=program,
            at="sample",
        )
    state = copy.deepcopy(compiled.state_dict())
    if law in ("scale", "concentration", "independent", "transformed", "tril"):
        compiled(leaf(0.6)).sum().backward()
    assert list(state) == list(compiled.state_dict())


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
@pytest.mark.parametrize(("factor", "word"), [(torch.nan, "NaN"), (torch.inf, "infinite")])
def test_costs_that_are_not_finite(estimator: str, factor: float, word: str) -> None:
    def program(theta: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = normal(theta, "z")
        return {"good": x, "bad": propc.cost(x.square() * scale, "bad")}

    compiled = propc.compile(program, estimator=estimator)
    compiled(leaf(), torch.tensor(1.0))
    refused(
        propc.NonFiniteError,
        lambda: compiled(leaf(), torch.tensor(factor)),
        "cost 'bad'",
        f"6 of 6 values are {word}",
        "validate=False",
        program=program,
        at="propc.cost",
    )
    theta = leaf()
    compiled(theta, torch.tensor(1.0))["bad"].sum().backward()
    assert torch.isfinite(theta.grad)
    loose = propc.compile(program, estimator=estimator, validate=False)
    assert not torch.isfinite(loose(leaf(), torch.tensor(factor))["bad"]).any()


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_a_part_without_a_site_that_is_not_finite(estimator: str) -> None:
    """It is no part of the cost that sites hear of."""

    def program(theta: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"loss": normal(theta, "z").square() + theta / scale}

    compiled = propc.compile(program, estimator=estimator)
    compiled(leaf(), torch.tensor(1.0))
    words = "returned value ['loss']", "6 of 6 values are infinite", "validate=False"
    refused(propc.NonFiniteError, lambda: compiled(leaf(), torch.tensor(0.0)), *words, program=program, at="def")
    large = torch.tensor(1e-38)  # so that the sum overflows, which no value does
    assert torch.isfinite(compiled(leaf(2.0), large)["loss"]).all()


def test_a_gradient_into_what_is_no_cost() -> None:
    def program(theta: Tensor) -> dict[str, Tensor]:
        x = normal(theta, "z")
        return {"loss": x, "table": torch.stack([x * theta, x], 1)}

    out = propc.compile(program, estimator="lr")(leaf())
    refused(
        propc.PropcValueError,
        lambda: out["table"].sum().backward(),
        "['table']",
        "'z'",
        "estimator='rp'",
        program=program,
        at="def program",
    )
    theta = leaf()
    propc.compile(program, estimator="rp")(theta)["table"].sum().backward()
    assert theta.grad is not None


@pytest.mark.parametrize("estimator", ["rp", "infer"])
def test_bounds_that_are_parameters_are_checked(estimator: str) -> None:
    """low < high of a Uniform, at every call."""
    from torch.distributions import Uniform

    compiled = propc.compile(
        lambda low, high: propc.sample(Uniform(low, high), "u").square().sum(-1), estimator=estimator
    )
    low = torch.zeros(4, 2, requires_grad=True)
    assert compiled(low, low.detach() + 1).shape == (4,)
    with pytest.raises(propc.NonFiniteError, match=r"site 'u' .*must satisfy"):
        compiled(low, low.detach() - 1)
    assert compiled(low, low.detach() + 2).isfinite().all()


def test_a_scalar_cost_beside_one_for_each_sample() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        z = propc.sample(Bernoulli(logits=theta.expand(B)), "z")
        return z * theta, z.sum()

    refused(
        propc.EstimatorError,
        run(program, estimator="lr"),
        "site 'z'",
        "cost 'cost1' is a scalar",
        program=program,
        at="sample",
    )


# -- out of memory ----------------------------------------------------------------------------

TOO_MANY = 2**50  # bytes, beyond any address space


def wide(x: Tensor) -> Tensor:
    """[B] → [B], by way of petabytes."""
    return x[:, None, None].expand(B, 2**25, 2**25).exp().mean((-1, -2))


def out_of_memory(call: Callable[[], Any], *words: str, **place: Any) -> None:
    error = refused(propc.OutOfMemoryError, call, "out of memory", "more were asked for", *words, **place)
    assert isinstance(error, torch.OutOfMemoryError)
    assert isinstance(error, MemoryError)
    assert "allocate" in str(error.__cause__)


def test_too_many_samples() -> None:
    def program(theta: Tensor) -> Tensor:
        x = normal(theta, "x")
        return (propc.sample(Normal(x, 1.0), "y") * theta).square()

    estimator = {"y": propc.estimator("lr", samples=TOO_MANY), "x": "rp"}
    words = "site 'y'", f"float64[{B}]", f"'y' ({TOO_MANY})", "fewer samples="
    out_of_memory(run(program, estimator=estimator), *words, program=program, at='"y"')


@pytest.mark.parametrize("chunk", [None, 2])
def test_too_much_in_a_plate(chunk: int | None) -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(B)), "z")
        return wide(z * theta)

    way = "Use chunk= in propc.compile" if chunk is None else "Use a smaller chunk= in propc.compile"
    words = "segment 'cost.in'", "the plates of 'z' (3)", f"{way}, so that segments hold fewer of the 3 samples"
    call = run(program, estimator=propc.estimator("lr", samples=3), chunk=chunk)
    out_of_memory(call, *words, program=wide, at="exp")
    if chunk is None:
        call = run(program, estimator="enumerate")
        out_of_memory(call, "the plates of 'z' (2)", "2 configurations at once", "'lr' at site 'z'")


def test_a_large_batch() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(300), 1.0), "x")
        return x[:, None, None].expand(300, 2**25, 2**25).exp().mean((-1, -2))

    out_of_memory(run(program), "segment 'cost.in'", "Use passes=[propc.passes.ChunkBatch()]", "or a smaller batch")
    chunks = [propc.passes.ChunkBatch(rows=50)]
    out_of_memory(run(program, passes=chunks), "segment 'cost.in'", "Use fewer rows= in passes=[propc.passes.Chunk")


def long(theta: Tensor, where: int = 5) -> Tensor:
    x = theta.expand(B)
    for t in range(12):
        x = propc.sample(Normal((wide if t == where else torch.sin)(x * theta), 1.0), f"x{t}")
    return x.square()


def test_a_long_horizon() -> None:
    words = "segment 'x5.in'", f"float64[{B}]", "passes=[propc.passes.Checkpoint()]", "10 steps", "a smaller batch"
    out_of_memory(run(long, estimator="tp"), *words, program=wide, at="exp")
    blocks = [propc.passes.Checkpoint(blocks=3)]
    out_of_memory(run(long, estimator="tp", passes=blocks), "segment 'x5.in'", "Use more blocks= in passes=[propc.")


class TooMuchBack(torch.autograd.Function):
    """Runs out of memory in the reverse pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.zeros(TOO_MANY).sum()


def test_out_of_memory_in_the_reverse_pass_of_a_block() -> None:
    def program(theta: Tensor) -> Tensor:
        x = theta.expand(B)
        for t in range(6):
            x = propc.sample(Normal((TooMuchBack.apply if t < 4 else torch.sin)(x * theta), 1.0), f"x{t}")
        return x.square()

    cost = run(program, estimator="rp", passes=[propc.passes.Checkpoint(blocks=3)])()
    out_of_memory(lambda: cost.sum().backward(), "segment 'x", "in the reverse pass of 'x2.in' to 'x4', where this is")


def test_out_of_memory_in_messages() -> None:
    class Much(propc.Propagator):
        sends = (propc.Field("extra"),)

        def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
            torch.zeros(TOO_MANY)
            return message

    def program(theta: Tensor) -> Tensor:
        return propc.node(theta.expand(B) * 2, "a", propagator=Much()).sin()

    out_of_memory(lambda: run(program, estimator="rp")().sum().backward(), "node 'a'", "in the reverse pass:")


def test_out_of_memory_in_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propc.runtime.checks.replay.check_independence", lambda *_: torch.zeros(TOO_MANY))
    words = "in the checks of the first call", "validate=False"
    refused(propc.OutOfMemoryError, run(lambda theta: normal(theta).square()), *words)
    assert run(lambda theta: normal(theta).square(), validate=False)().shape == (B,)


def test_other_errors_are_left_as_they_are() -> None:
    def program(theta: Tensor, table: Tensor, index: Tensor) -> Tensor:
        return normal(theta) * table[index]

    with pytest.raises(IndexError):
        run(program, torch.ones(3), torch.tensor([7] * B))()


@pytest.mark.parametrize("target", [None, "theta"])
@pytest.mark.parametrize("weights", ["same", "crossfit", "past"])
def test_a_derivative_that_is_not_finite_leaves_the_other_part(weights: str, target: str | None) -> None:
    """Total propagation gives such a part no weight, at the site and at a target; what is left is the other part."""

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(20), 1.0), "x")
        return (x * 0).abs().sqrt() + x.square()

    found = []
    for estimator in (
        propc.estimator("tp", weights=weights, target=target, baseline=None),
        propc.estimator("lr", baseline=None),
    ):
        theta = leaf()
        torch.manual_seed(0)
        propc.compile(program, estimator=estimator)(theta).sum().backward()
        found.append(theta.grad)
    assert torch.allclose(*found)

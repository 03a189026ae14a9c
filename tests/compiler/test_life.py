"""Compiled objects in a larger program: inside and around `torch.compile`, in threads, under transforms, in tables."""

from __future__ import annotations

import threading
import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from zoo import leaf

import propc

B = 6


def squares(theta: Tensor) -> Tensor:
    return propc.sample(Normal(theta.expand(B), 1.0), "x").square()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return propc.sample(Normal(self.linear(x), 1.0), "z").sum(-1)


# -- torch.compile ----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_torch_compile_made_is_a_part_of_the_program() -> None:
    sine, linear, own = torch.compile(torch.sin), torch.compile(nn.Linear(1, 1), backend="eager"), nn.Linear(1, 1)
    own.compile(backend="eager")

    @propc.compile(estimator="lr")
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(B), 1.0), "x")
        return sine(x) + linear(x[:, None]).sum(1) + own(x[:, None]).sum(1)

    theta = leaf()
    text = str(program.graph(theta))
    assert "sin" in text
    assert "linear" in text
    program(theta).mean().backward()
    assert theta.grad is not None
    assert linear.weight.grad is not None
    assert torch.equal(sine(torch.ones(1)), torch.ones(1).sin())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dynamo about itself
def test_torch_compile_leaves_a_compiled_function_as_it_is() -> None:
    compiled = propc.compile(squares, estimator="lr")

    def step(theta: Tensor) -> Tensor:
        return compiled(theta * 2).mean() * 3

    gradients = []
    for run in (step, torch.compile(step, backend="eager")):
        theta = leaf()
        torch.manual_seed(2)
        run(theta).backward()
        gradients.append(theta.grad)
    assert torch.equal(*gradients)
    module = propc.compile(Noisy(), estimator="lr")
    module.compile(backend="eager")
    module(torch.ones(3, 2)).sum().backward()
    assert module.linear.weight.grad is not None


# -- children of modules ----------------------------------------------------------------------


def test_a_module_that_runs_its_children() -> None:
    averaged = propc.estimator("lr", baseline="moving_average")
    model = propc.compile(nn.Sequential(nn.Linear(2, 2), Noisy()), estimator=averaged)
    for _ in range(2):
        model(torch.ones(3, 2)).sum().backward()
    assert model._compiler().traces == 1
    assert any("MovingAverage" in name for name in model.state_dict())
    inner = propc.compile(nn.Sequential(nn.Linear(2, 2), Noisy()), estimator=averaged)
    outer = propc.compile(nn.Sequential(inner, nn.Flatten(0)), estimator=averaged)
    assert outer(torch.ones(3, 2)).shape == (3,)


# -- transforms -------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [False, True])
def test_transforms_around_a_compiled_function(warm: bool) -> None:
    compiled = propc.compile(squares, estimator="lr")
    if warm:
        compiled(torch.tensor(0.4))
        compiled(leaf())
    for call in (
        lambda: torch.func.grad(lambda t: compiled(t).sum())(torch.tensor(0.4)),
        lambda: torch.func.vmap(compiled, randomness="different")(torch.ones(3)),
        lambda: torch.func.jvp(compiled, (torch.tensor(0.4),), (torch.tensor(1.0),)),
        lambda: torch.func.vmap(compiled.graph)(torch.ones(3)),
    ):
        with pytest.raises(propc.PropcTypeError, match=r"'squares'.*torch\.func.*backward"):
            call()
    compiled(leaf()).sum().backward()


# -- threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    ["lr", propc.estimator("tp", weights="past"), propc.estimator("lr", baseline="moving_average")],
    ids=str,
)
def test_threads_that_call_one_compiled_function(estimator: Any) -> None:
    compiled, errors, done = propc.compile(squares, estimator=estimator), [], []

    def work() -> None:
        try:
            for _ in range(20):
                theta = leaf()
                compiled(theta).sum().backward()
                done.append(theta.grad)
        except Exception:
            errors.append(traceback.format_exc())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert len(done) == 80
    assert compiled.compiler.traces == 1


def test_a_thread_that_draws_while_another_traces() -> None:
    draws = propc.compile(squares, estimator="rp")
    draws(leaf())

    def program(theta: Tensor) -> Tensor:
        other = threading.Thread(target=lambda: draws(leaf()))
        other.start()
        other.join()
        return propc.sample(Bernoulli(logits=theta.expand(B)), "b")

    assert propc.compile(program, estimator="lr").graph(leaf()).sites  # and no word about seeds


# -- tables -----------------------------------------------------------------------------------


class Named(propc.Estimator):
    def propagator(self, site: Any) -> Any:
        raise NotImplementedError


class Passed(propc.passes.Pass):
    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        return graph


class LikelihoodRatio(propc.Propagator):
    """Has the name of propc's own class."""


REGISTERS = [
    (propc.register_estimator, Named, "propc.register_estimator"),
    (propc.register_propagator, LikelihoodRatio, "propc.register_propagator"),
    (propc.passes.register, Passed, "propc.passes.register"),
]


@pytest.mark.parametrize(("register", "cls", "written"), REGISTERS, ids=[each[2] for each in REGISTERS])
def test_what_cannot_be_registered(register: Any, cls: type, written: str) -> None:
    for name in (3, "", None, cls):
        with pytest.raises(propc.PropcTypeError, match=f"@{written}"):
            register(name)
    for thing in (3, dict, "text"):
        with pytest.raises(propc.PropcTypeError, match="is to be the name of"):
            register("good-name")(thing)
    with pytest.raises(propc.PropcValueError, match="unknown"):
        propc.compile(squares, estimator="good-name", passes=())
    register(f"named-{cls.__name__}")(cls)
    with pytest.raises(propc.PropcValueError, match=f"known as 'named-{cls.__name__}' already"):
        register("other-name")(cls)


def test_a_class_of_the_same_name_takes_no_name_away() -> None:
    with pytest.raises(propc.PropcValueError, match="'lr' is taken"):
        propc.register_propagator("lr")(LikelihoodRatio)


# -- options ----------------------------------------------------------------------------------


async def later(theta: Tensor) -> Tensor:
    return theta


def yielding(theta: Tensor) -> Any:
    yield theta


def test_what_cannot_be_compiled() -> None:
    for fn, words in ((later, "'async'"), (yielding, "'yield'"), (torch.sin, "lambda x"), (len, "lambda x")):
        with pytest.raises(propc.PropcTypeError, match=words):
            propc.compile(fn)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"passes": None}, "Write passes=\\[\\]"),
        ({"passes": propc.passes.Checkpoint()}, "takes a list of passes"),
        ({"passes": propc.passes.Checkpoint}, "takes a list of passes"),
        ({"validate": "no"}, "validate='no' must be True or False"),
        ({"estimator": {3: "lr"}}, "patterns of site names .*got 3"),
        ({"estimator": "LR"}, "Did you mean 'lr'"),
        ({"estimator": {"X": "lr"}}, "Did you mean 'x'"),
    ],
    ids=str,
)
def test_options_of_compile(options: dict[str, Any], words: str) -> None:
    with pytest.raises(propc.PropcError, match=words):
        propc.compile(squares, **options)(leaf())


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": "x"}, {"decay": -0.1}, {"target": 3}], ids=str)
def test_options_of_weighting(options: dict[str, Any]) -> None:
    with pytest.raises(propc.PropcError, match=f"option {next(iter(options))}="):
        propc.estimator("tp", **options)


# -- estimators and baselines of the user's ----------------------------------------------------


class Gives(propc.Estimator):
    name = "gives"
    what: Any = None

    def propagator(self, site: Any) -> Any:
        return type(self).what


@pytest.mark.parametrize("what", [None, (3, "asked for"), propc.propagators.PathwiseRule(), "rp"], ids=str)
def test_an_estimator_that_gives_no_rule(what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gives, "what", what)
    with pytest.raises(propc.PropcTypeError, match=r"site 'x' \(test_life\.py:\d+\): the estimator 'gives' \(Gives\)"):
        propc.compile(squares, estimator=Gives())(leaf())


class Wrong(propc.propagators.baselines.Baseline):
    def center(self, cost: Tensor, state: nn.Module | None) -> Any:
        return None


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        (lambda cost: None, "must give a tensor or a number; got None"),
        (lambda cost: "text", "must give a tensor or a number; got 'text'"),
        (Wrong(), r"cost 'cost' \(test_life\.py:\d+\): Wrong.center must give .* got NoneType"),
    ],
    ids=["none", "text", "class"],
)
def test_a_baseline_that_gives_none(baseline: Any, words: str) -> None:
    with pytest.raises(propc.PropcError, match=words):
        propc.compile(squares, estimator=propc.estimator("lr", baseline=baseline))(leaf())


def test_a_baseline_that_writes_into_the_costs() -> None:
    losses = []
    for baseline in (lambda cost: cost.zero_(), None):
        torch.manual_seed(3)
        losses.append(propc.compile(squares, estimator=propc.estimator("lr", baseline=baseline))(leaf()))
    assert torch.equal(*losses)


def test_the_decay_of_a_moving_average() -> None:
    for decay in (1.0, -0.1, "x"):
        with pytest.raises(propc.PropcValueError, match="option decay="):
            propc.propagators.baselines.MovingAverage(decay=decay)


def test_a_propagator_class_at_a_site() -> None:
    class Path(propc.Propagator):
        def backward(self, node: Any, message: propc.Message) -> propc.Message:
            return propc.Message(loc=message.grad)

    found = []
    for rule in (Path, Path()):
        torch.manual_seed(1)
        theta = leaf()
        propc.compile(lambda t, r=rule: propc.sample(Normal(t.expand(B), 1.0), "x", estimator=r).square())(
            theta
        ).sum().backward()
        found.append(theta.grad)
    assert torch.equal(*found)


def test_explain_with_something_else_than_ratios() -> None:
    with pytest.raises(propc.PropcValueError, match="'much' steps"):
        propc.compile(squares, estimator="lr").explain(leaf(), snr="much")

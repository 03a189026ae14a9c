"""A user's own estimators, baselines and passes: the names they get, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.distributions import Exponential, Poisson
from zoo import leaf

import propc
from propc.estimators import SiteView
from propc.estimators.estimator import _TABLE
from propc.propagators import Baseline, PathwiseRule

B = 8


def squares(theta: Tensor) -> Tensor:
    return zoo.unit_normal(theta, B).square()


def lr(baseline: Any) -> propc.CompiledFunction[..., Tensor]:
    return propc.compile(squares, estimator=propc.estimator("lr", baseline=baseline))


class MyRule(propc.Estimator):
    keeps_name = True

    def propagator(self, site: SiteView) -> Any:
        return PathwiseRule(), "asked for"


class Half(Baseline):
    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        return cost - 0.5


class Last(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))


class LastMean(Baseline):
    """The mean of the last batch."""

    def state(self) -> nn.Module:
        return Last()

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        assert isinstance(state, Last)
        before = state.mean.clone()
        if state.training:
            state.mean.copy_(cost.mean())
        return cost - before


class Total(Baseline):
    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        return cost.sum()


class Nothing(Baseline):
    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        return None  # type: ignore[return-value]


@pytest.fixture
def registered() -> Iterator[None]:
    known = dict(_TABLE)
    yield
    _TABLE.clear()
    _TABLE.update(known)


@pytest.mark.usefixtures("registered")
def test_names_come_from_the_class_or_the_table() -> None:
    site = propc.compile(squares, estimator=MyRule()).graph(leaf(0.5)).sites[0]
    assert site.estimator == MyRule.name == "my-rule"

    @propc.register_estimator("fancy")
    @dataclass(frozen=True)
    class Other(MyRule):
        pass

    assert propc.compile(squares, estimator="fancy").graph(leaf(0.5)).sites[0].estimator == "fancy"

    @dataclass(frozen=True)
    class LookOn(propc.passes.Pass):
        def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
            return graph

    assert "look-on" in dict(propc.compile(squares, passes=[LookOn]).graphs(leaf(0.5)))


@pytest.mark.parametrize("made", [PathwiseRule(), (PathwiseRule(),), ("rp", "asked for"), None])
def test_an_estimator_gives_a_propagator_and_the_reason(made: Any) -> None:
    class Wrong(propc.Estimator):
        def propagator(self, site: SiteView) -> Any:
            return made

    with pytest.raises(propc.PropcTypeError, match=r"site 'x' .*Wrong\) gives .*and the reason"):
        propc.compile(squares, estimator=Wrong())(leaf(0.5))


def test_classes_stand_for_objects() -> None:
    torch.manual_seed(0)
    by_class = torch.autograd.grad(lr(Half)(start := leaf(0.5)).sum(), start)
    torch.manual_seed(0)
    by_object = torch.autograd.grad(lr(Half())(start).sum(), start)
    torch.testing.assert_close(by_class, by_object)
    assert propc.compile(squares, estimator=PathwiseRule).graph(leaf(0.5)).sites[0].estimator == "rp"


def test_a_baseline_with_a_state_is_stateful() -> None:
    compiled = lr(LastMean())
    cost = compiled(leaf(0.5))
    (mean,) = compiled.state_dict().values()
    torch.testing.assert_close(mean, cost.mean().detach().to(mean.dtype))


@pytest.mark.parametrize(("baseline", "got"), [(Total, r"\(\)"), (Nothing, "NoneType")])
def test_a_baseline_of_another_shape(baseline: type[Baseline], got: str) -> None:
    with pytest.raises(propc.PropcValueError, match=rf"{baseline.__name__}.center must give .*\(8,\); got {got}"):
        lr(baseline)(leaf(0.5))


@pytest.mark.parametrize(
    ("name", "here"), [("REINFORCE", "lr"), ("score function", "lr"), ("reparam", "rp"), ("straight-through", "st")]
)
def test_names_of_other_libraries(name: str, here: str) -> None:
    with pytest.raises(propc.PropcValueError, match=f"unknown estimator '{name}'. That is '{here}' here"):
        propc.estimator(name)


def test_options_that_cannot_be() -> None:
    for make in (
        lambda: propc.estimator("tp", decay=1.0),
        lambda: propc.estimators.MovingAverage(decay=2.0),
    ):
        with pytest.raises(propc.PropcValueError, match=r"decay=.* must be a number from 0 to below 1"):
            make()
    with pytest.raises(propc.PropcValueError, match="two estimators or more; got 'rp'"):
        propc.estimator("combine", estimators="rp")


def test_advice_fits_the_site() -> None:
    """No `rp` where there is no `rsample`."""

    def two(theta: Tensor, law: Any) -> Tensor:
        return propc.sample(law(theta.exp().expand(B)), "x")

    for law, advice in ((Poisson, "use 'lr' here"), (Exponential, "use 'lr' or 'rp' here")):
        with pytest.raises(propc.EstimatorError, match=advice):
            propc.compile(two, estimator="enumerate")(leaf(0.5), law)
    with pytest.raises(propc.PropcValueError, match=r"everything but the batch\.(\n|$)"):
        propc.compile(lambda t: propc.sample(Poisson(t.exp().expand(B, 2)), "x"), estimator="lr")(leaf(0.5))

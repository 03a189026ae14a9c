"""Which sites draw together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma, Normal

import propc
from propc.errors import GraphError
from propc.passes import Checkpoint, DrawTogether

Together = tuple[tuple[str, ...], ...]
Between = Callable[[Tensor], Tensor]


def plain(x: Tensor) -> Tensor:
    return x


def chain(between: Between = plain, steps: int = 6, batch: int = 8, scale: Any = 0.1) -> Callable[[Tensor], Tensor]:
    """A chain of sites with something between the third and the fourth."""

    def program(theta: Tensor) -> Tensor:
        x = torch.zeros(batch, 2)
        for t in range(steps):
            x = propc.sample(Normal(torch.tanh(theta * x + 0.1), scale), f"x{t}")
            x = between(x) if t == 2 else x
        return torch.cos(x).sum(1)

    return program


def together(program: Callable[..., Any], estimator: Any = "tp", *more: Any, **options: Any) -> Together:
    theta = torch.tensor(0.5, requires_grad=True)
    return propc.compile(program, estimator=estimator, **options).graph(theta, *more).schedule.together


HALVES = ("x0", "x1", "x2"), ("x3", "x4", "x5")


@pytest.mark.parametrize(
    "estimator", ["tp", propc.estimator("tp", weights="same"), propc.estimator("tp", folds=4), {"*": "tp"}], ids=str
)
def test_a_chain_draws_in_two_parts(estimator: Any) -> None:
    assert together(chain(), estimator) == HALVES


@pytest.mark.parametrize(("steps", "sizes"), [(1, []), (2, [2]), (3, [3]), (4, [2, 2]), (5, [3, 2]), (11, [6, 5])])
def test_the_last_half_is_apart(steps: int, sizes: list[int]) -> None:
    assert [len(part) for part in together(chain(steps=steps))] == sizes


def test_parts_are_no_larger_than_a_cache() -> None:
    assert [len(part) for part in together(chain(steps=60, batch=8192))] == [12, 16, 16, 16]


ONE_BY_ONE: dict[str, tuple[Callable[..., Any], Any]] = {
    "rp": (chain(), "rp"),
    "lr": (chain(), "lr"),
    "past": (chain(), propc.estimator("tp", weights="past")),
    "rehearsed": (chain(), propc.estimator("tp", weights="rehearsed")),
    "by coordinate": (chain(), propc.estimator("tp", per_coordinate=True)),
    "at a target": (chain(), propc.estimator("tp", target="theta")),
    "shared weights": (chain(), propc.estimator("tp", k_interval=2)),
    "rows left over": (chain(batch=9), "tp"),
    "too few rows": (chain(batch=2), "tp"),
    "large": (chain(batch=2**14), "tp"),
}


@pytest.mark.parametrize("case", ONE_BY_ONE)
def test_sites_that_draw_one_by_one(case: str) -> None:
    assert together(*ONE_BY_ONE[case]) == ()


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn(8, 2)


def boxed(x: Tensor) -> Tensor:
    return x + propc.opaque(lambda: torch.rand(8, 2))()


def dropped(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.5)


def gamma(x: Tensor) -> Tensor:
    return x * propc.sample(Gamma(torch.ones(8, 2), 2.0), "g")


@pytest.mark.parametrize("between", [noisy, boxed, dropped, gamma])
def test_what_may_draw_between_them_keeps_them_apart(between: Between) -> None:
    assert together(chain(between, steps=9)) == (("x0", "x1", "x2"), ("x3", "x4", "x5"), ("x6", "x7", "x8"))


@pytest.mark.parametrize("between", [lambda x: propc.node(x, "n"), torch.sin, nn.Dropout(0.5).eval()])
def test_what_draws_nothing_does_not(between: Between) -> None:
    assert together(chain(between, steps=4)) == (("x0", "x1"), ("x2", "x3"))


def test_sites_of_other_kinds() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(8, 2), 0.1), "a")
        y = propc.sample(Normal(x * theta, 0.1), "b")
        z = propc.sample(Normal((y * theta).sum(1), 0.1), "c")
        w = propc.sample(Normal(z * theta, 0.2), "d")
        return w.square() + propc.sample(Normal(w * theta, 0.2), "e").square()

    assert together(program) == (("a", "b"),)  # c has another shape, d another scale, e other messages


@pytest.mark.parametrize("how", [lambda s: s, lambda s: s.expand(2), lambda s: s.expand(8, 2)])
def test_one_scale_by_another_name(how: Callable[[Tensor], Tensor]) -> None:
    """The same tensor is the scale of all sites, though each has it expanded for itself."""

    def program(theta: Tensor, sigma: Tensor) -> Tensor:
        return chain(scale=how(sigma))(theta)

    assert together(program, "tp", torch.tensor(0.1)) == HALVES
    assert together(program, "tp", torch.tensor(0.1, requires_grad=True)) == ()


def test_a_scale_that_is_written_into() -> None:
    def program(theta: Tensor, sigma: Tensor) -> Tensor:
        x = torch.zeros(8, 2)
        for t in range(4):
            x = propc.sample(Normal(theta * x, sigma), f"x{t}")
            sigma.mul_(0.5)
        return x.sum(1)

    assert together(program, "tp", torch.full((8, 2), 0.1)) == ()


def test_costs_on_the_way() -> None:
    """Where a cost is sent to some of the sites alone, these hear of other messages."""

    def program(theta: Tensor) -> Tensor:
        x, total = torch.zeros(8, 2), torch.zeros(8)
        for t in range(4):
            x = propc.sample(Normal(torch.tanh(theta * x), 0.1), f"x{t}")
            total = total + x.square().sum(1)
        return total

    assert together(program) == ()


def test_backends_and_passes_that_run_steps_otherwise() -> None:
    assert together(chain(), backend="inductor") == ()
    assert together(chain(), passes=[Checkpoint(blocks=2)]) == ()
    assert together(chain(), passes=[lambda pipeline: pipeline.without("draw-together")]) == ()


def test_the_text() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    text = str(propc.compile(chain(), estimator="tp").graph(theta))
    assert "  together  x0..x2; x3..x5  [noise drawn at once]" in text


def test_a_graph_that_names_others() -> None:
    graph = propc.compile(chain(), estimator="tp").graph(torch.tensor(0.5, requires_grad=True))
    for wrong in ((("x0", "x0"),), (("x1", "x0"),), (("x0", "cost"),), (("x0", "x9"),)):
        with pytest.raises(GraphError, match="draw together"):
            replace(graph, schedule=replace(graph.schedule, together=wrong)).verify()
    assert DrawTogether()(graph).schedule == graph.schedule

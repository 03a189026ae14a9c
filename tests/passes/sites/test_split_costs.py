"""A returned sum is taken apart where that is right, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from surrogate import Plain, gradients, seeded, surrogate
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import propc
from propc.ir import Cost

pytestmark = pytest.mark.filterwarnings("ignore:.*the site reaches no cost")

BATCH = 5
SITES = ("x0", "x1", "x2")
DISCOUNTS = torch.tensor([1.0, 0.9, 0.81], dtype=torch.float64)
Terms = Callable[[], list[tuple[Tensor, tuple[str, ...]]]]
Program = Callable[[Tensor, Any], tuple[Tensor, Terms]]


def steps(theta: Tensor, sample: Any) -> list[Tensor]:
    """Rewards r0, r1, r2 of a chain of three sites; the parameter is in every reward, too."""
    x, rewards = torch.full((BATCH,), 0.3), []
    for name in SITES:
        x = sample(Normal(torch.sin(theta * x), 0.5), name)
        rewards.append(torch.cos(2 * x + theta))
    return rewards


def before(*rewards: Tensor) -> list[tuple[Tensor, tuple[str, ...]]]:
    """Terms r0, r1, ... each with the sites before it."""
    return [(r, SITES[: i + 1]) for i, r in enumerate(rewards)]


class Case(NamedTuple):
    """How rewards become the returned cost, and the terms that it must be split into."""

    combine: Callable[[list[Tensor], Tensor], Tensor]
    terms: Callable[[list[Tensor], Tensor], list[tuple[Tensor, tuple[str, ...]]]]
    costs: int


def weighted(*factors: float) -> Callable[[list[Tensor], Tensor], list[tuple[Tensor, tuple[str, ...]]]]:
    return lambda r, theta: before(*(f * x for f, x in zip(factors, r)))


def whole(combine: Callable[[list[Tensor], Tensor], Tensor], costs: int = 1) -> Case:
    """Every site receives everything."""
    return Case(combine, lambda r, theta: [(combine([x.clone() for x in r], theta), SITES)], costs)


def in_place(rewards: list[Tensor], theta: Tensor) -> Tensor:
    total = torch.zeros(BATCH)
    for r in rewards:
        total += r
    return total


def in_place_methods(rewards: list[Tensor], theta: Tensor) -> Tensor:
    total = rewards[0].clone()
    total.add_(rewards[1]).sub_(rewards[2])
    total *= 0.5
    return total


def in_place_alias(rewards: list[Tensor], theta: Tensor) -> Tensor:
    total = kept = rewards[0] + rewards[1]
    total += rewards[2]
    return kept


def in_place_on_first(rewards: list[Tensor], theta: Tensor) -> Tensor:
    total = rewards[0]
    total += rewards[1]
    total += rewards[2]
    return total


def in_place_on_view(rewards: list[Tensor], theta: Tensor) -> Tensor:
    table = torch.stack(rewards)
    total = table[0]
    total += rewards[1]
    return total + table[0] + rewards[2]


def in_place_viewed(rewards: list[Tensor], theta: Tensor) -> Tensor:
    total = rewards[0] + rewards[1]
    view = total.view(-1)
    total += rewards[2]
    return total + view


def in_place_overwritten(rewards: list[Tensor], theta: Tensor) -> Tensor:
    total = rewards[0] + rewards[1] + rewards[2]
    total[0] = 2.0
    return total


CASES = {
    "sum": Case(lambda r, th: r[0] + r[1] + r[2], weighted(1, 1, 1), 3),
    "nested": Case(lambda r, th: r[0] + (r[1] + r[2]), weighted(1, 1, 1), 3),
    "difference": Case(lambda r, th: r[0] - r[1] - r[2], weighted(1, -1, -1), 3),
    "negated": Case(lambda r, th: -(r[0] - (r[1] - r[2])), weighted(-1, 1, -1), 3),
    "functions": Case(lambda r, th: torch.sub(torch.add(r[0], r[1]), r[2]), weighted(1, 1, -1), 3),
    "constants": Case(lambda r, th: 1 - r[0] + 2 + r[1] - r[2] - 0.5, lambda r, th: before(2.5 - r[0], r[1], -r[2]), 3),
    "python sum": Case(lambda r, th: sum(r), weighted(1, 1, 1), 3),
    "in place": Case(in_place, weighted(1, 1, 1), 3),
    "in-place methods": Case(in_place_methods, weighted(0.5, 0.5, -0.5), 3),
    "discounts": Case(lambda r, th: sum(0.9**t * x for t, x in enumerate(r)), weighted(1, 0.9, 0.81), 3),
    "horner": Case(lambda r, th: r[0] + 0.9 * (r[1] + 0.9 * r[2]), weighted(1, 0.9, 0.81), 3),
    "scaled": Case(lambda r, th: (0.5 * (r[0] + r[1]) + r[2]) / 3, weighted(0.5 / 3, 0.5 / 3, 1 / 3), 3),
    "stack sum": Case(lambda r, th: torch.stack(r).sum(0), weighted(1, 1, 1), 3),
    "stack mean": Case(lambda r, th: torch.stack(r, 1).mean(1), weighted(1 / 3, 1 / 3, 1 / 3), 3),
    "stack last": Case(lambda r, th: torch.stack(r, dim=-1).sum(dim=-1), weighted(1, 1, 1), 3),
    "stack list of dims": Case(lambda r, th: torch.stack(r, -1).sum([1]), weighted(1, 1, 1), 3),
    "stack discounts": Case(lambda r, th: (torch.stack(r, 1) * DISCOUNTS).sum(1), weighted(1, 0.9, 0.81), 3),
    "stack scaled twice": Case(
        lambda r, th: (2 * torch.stack(r) / DISCOUNTS[:, None]).sum(0) / 4,
        weighted(0.5, 0.5 / 0.9, 0.5 / 0.81),
        3,
    ),
    "stack, twice the same": Case(
        lambda r, th: torch.stack([r[1], r[2], r[1]]).sum(0),
        lambda r, th: [(2 * r[1], SITES[:2]), (r[2], SITES)],
        2,
    ),
    "parameter as factor": Case(
        lambda r, th: th * (r[0] + r[1]) + r[2] / th, lambda r, th: before(th * r[0], th * r[1], r[2] / th), 3
    ),
    "parameter as term": Case(
        lambda r, th: r[0] + th.square() + r[1], lambda r, th: before(r[0] + th.square(), r[1]), 2
    ),
    "row factors": Case(
        lambda r, th: th * torch.arange(1.0, BATCH + 1) * r[0] - r[2] * torch.arange(1.0, BATCH + 1) * th,
        lambda r, th: [(th * torch.arange(1.0, BATCH + 1) * s * r[i], SITES[: i + 1]) for i, s in ((0, 1), (2, -1))],
        2,
    ),
    "term twice": Case(lambda r, th: r[0] + r[1] + r[1], weighted(1, 2), 2),
    "named": Case(
        lambda r, th: propc.cost(r[0], "first") + 2 * propc.cost(r[1], "second") - r[2], weighted(1, 2, -1), 3
    ),
    "named sum": Case(
        lambda r, th: propc.cost(r[0] + r[1], "both") + r[2],
        lambda r, th: [(r[0] + r[1], SITES[:2]), (r[2], SITES)],
        2,
    ),
    "named, not added": Case(
        lambda r, th: propc.cost(r[0], "first").exp() + r[1], lambda r, th: before(r[0].exp(), r[1]), 2
    ),
    "nonlinear": Case(
        lambda r, th: (r[0] + r[1]).square() + r[2],
        lambda r, th: [((r[0] + r[1]).square(), SITES[:2]), (r[2], SITES)],
        2,
    ),
    "sum beside its square": Case(
        lambda r, th: (s := r[0] + r[1]) + s.square(),
        lambda r, th: [(r[0] + r[1], SITES[:2]), ((r[0] + r[1]).square(), SITES[:2])],
        2,
    ),
    "product": whole(lambda r, th: (r[0] + r[1]) * r[2]),
    "quotient": whole(lambda r, th: r[2] / (3 + (r[0] + r[1]).square())),
    "divisor": Case(lambda r, th: th / (3 + r[0]) + r[1], lambda r, th: before(th / (3 + r[0]), r[1]), 2),
    "square as a product": Case(lambda r, th: r[0] * r[0] + r[1], lambda r, th: before(r[0] ** 2, r[1]), 2),
    "square by keyword": Case(
        lambda r, th: torch.mul(r[0], other=r[0]) + r[1], lambda r, th: before(r[0] ** 2, r[1]), 2
    ),
    "division by keyword": Case(
        lambda r, th: torch.div(input=r[0], other=2.0) + torch.div(input=th, other=3 + r[1]),
        lambda r, th: before(r[0] / 2, th / (3 + r[1])),
        2,
    ),
    "rounded division": Case(
        lambda r, th: torch.div(10 * (r[0] + r[1]), 3.0, rounding_mode="floor") + r[2],
        lambda r, th: [(torch.floor(10 * (r[0] + r[1]) / 3.0), SITES[:2]), (r[2], SITES)],
        2,
    ),
    "alpha": whole(lambda r, th: torch.add(r[1], r[2], alpha=2)),
    "alpha of sub": whole(lambda r, th: torch.sub(r[2], r[0], alpha=0.5)),
    "stack used elsewhere": Case(
        lambda r, th: (s := torch.stack(r)).sum(0) + s[1:].prod(0),
        lambda r, th: [(r[0] + r[1] + r[2], SITES), (r[1] * r[2], SITES)],
        2,
    ),
    "stack squared": whole(lambda r, th: (torch.stack(r) * torch.stack(r)).sum(0)),
    "in place, two names": Case(in_place_alias, weighted(1, 1, 1), 3),
    "in place, first term": Case(in_place_on_first, weighted(1, 1, 1), 3),
    "in place on a view": whole(in_place_on_view, 3),
    "in place, viewed before": whole(in_place_viewed, 2),
    "in place, overwritten": whole(in_place_overwritten),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_gradient(case: Case) -> None:
    def program(theta: Tensor, sample: Any) -> tuple[Tensor, Terms]:
        rewards = steps(theta, sample)
        return case.combine([r.clone() for r in rewards], theta), lambda: case.terms(rewards, theta)

    def given(theta: Tensor) -> Tensor:
        return case.combine(steps(theta, propc.sample), theta)

    graph = compare(program, given)
    assert len(graph.costs) == case.costs


def compare(program: Program, given: Callable[[Tensor], Tensor]) -> propc.PropagationGraph:
    """The value is the plain function's, the gradient the brute-force surrogate's."""
    theta = torch.tensor(0.7, requires_grad=True)
    weights = torch.rand(BATCH)
    compiled = propc.compile(given, estimator="lr")
    value = seeded(compiled, theta)
    plain = Plain()
    expected, terms = seeded(program, theta, plain)
    assert torch.equal(value, expected)
    found = gradients(weights @ value, [theta])
    torch.testing.assert_close(found, gradients(weights @ surrogate(terms(), plain.scores), [theta]))
    graph = compiled.graph(theta)
    assert {n.name for n in graph.of(Cost)} == {route.source for route in graph.routes}
    return graph


# Programs in which a cost comes back into the chain.


def reward_as_feature(theta: Tensor, sample: Any) -> tuple[Tensor, Terms]:
    x0 = sample(Normal(theta.expand(BATCH), 0.5), "x0")
    r0 = torch.cos(x0) * theta
    x1 = sample(Normal(r0, 0.7), "x1")
    r1 = (x1 - r0).square()
    return r0 + r1, lambda: before(r0, r1)


def total_as_feature(theta: Tensor, sample: Any) -> tuple[Tensor, Terms]:
    x0 = sample(Normal(theta.expand(BATCH), 0.5), "x0")
    x1 = sample(Normal(theta * x0, 0.5), "x1")
    r0, r1 = torch.cos(x0), torch.sin(x1)
    total = r0 + r1
    x2 = sample(Normal(theta * total, 0.5), "x2")
    r2 = x2.square()
    return total + r2, lambda: [(total, SITES[:2]), (r2, SITES)]


def total_in_place_as_feature(theta: Tensor, sample: Any) -> tuple[Tensor, Terms]:
    """The first reward is the running total's memory, so the second site sees it changed."""
    x0 = sample(Normal(theta.expand(BATCH), 0.5), "x0")
    x1 = sample(Normal(theta * x0, 0.5), "x1")
    r0 = torch.cos(x0)
    total = r0
    total += torch.sin(x1)
    x2 = sample(Normal(theta * r0, 0.5), "x2")
    r2 = x2.square()
    return total + r2, lambda: [(torch.cos(x0) + torch.sin(x1), SITES[:2]), (r2, SITES)]


def term_written_later(theta: Tensor, sample: Any) -> tuple[Tensor, Terms]:
    """The running total is read between two writes, which are values: two terms."""
    x0 = sample(Normal(theta.expand(BATCH), 0.5), "x0")
    total = torch.zeros(BATCH)
    total += torch.cos(x0)
    x1 = sample(Normal(theta + total, 0.5), "x1")
    total += x1.square()
    return total, lambda: [(torch.cos(x0), SITES[:1]), (x1.square(), SITES[:2])]


def kl_and_reward(theta: Tensor, sample: Any) -> tuple[Tensor, Terms]:
    """A KL that no site influences, and one after a site."""
    first = Normal(theta.expand(BATCH), 0.5)
    kl0 = kl_divergence(first, Normal(0.0, 1.0))
    x0 = sample(first, "x0")
    second = Normal(theta * x0, 0.7)
    kl1 = kl_divergence(second, Normal(0.0, 1.0))
    x1 = sample(second, "x1")
    r1 = torch.cos(x1)
    return kl0 + kl1 + r1, lambda: [(kl0, ()), (kl1, SITES[:1]), (r1, SITES[:2])]


FEEDBACK = [reward_as_feature, total_as_feature, total_in_place_as_feature, term_written_later, kl_and_reward]


@pytest.mark.parametrize("program", FEEDBACK, ids=lambda p: p.__name__)
def test_cost_that_is_used_again(program: Program) -> None:
    compare(program, lambda theta: program(theta, propc.sample)[0])


def test_only_kl() -> None:
    """Costs that no site influences are ordinary gradients."""

    def given(theta: Tensor) -> Tensor:
        return kl_divergence(Normal(theta.expand(BATCH), 0.5), Normal(0.0, 1.0)) + theta.square()

    theta = torch.tensor(0.7, requires_grad=True)
    compiled = propc.compile(given, estimator="lr")
    assert torch.equal(compiled(theta), given(theta))
    assert gradients(compiled(theta).sum(), [theta]) == gradients(given(theta).sum(), [theta])
    assert compiled.graph(theta).routes == ()


def test_several_returned_values_share_terms() -> None:
    """Each returned sum can be weighted on its own; one of them is a part of another."""

    def program(theta: Tensor, sample: Any) -> dict[str, Tensor]:
        r0, r1, r2 = steps(theta, sample)
        total = r0 + r1
        return {"a": total, "b": total + r2, "c": r2 - r1}

    theta = torch.tensor(0.7, requires_grad=True)
    value = seeded(propc.compile(lambda th: program(th, propc.sample), estimator="lr"), theta)
    plain = Plain()
    r0, r1, r2 = seeded(steps, theta, plain)
    torch.testing.assert_close(value, seeded(program, theta, Plain()), rtol=0, atol=0)
    loss = 2 * value["a"] + 3 * value["b"] - value["c"]
    terms = [(5 * r0, SITES[:1]), (6 * r1, SITES[:2]), (2 * r2, SITES)]
    torch.testing.assert_close(gradients(loss.sum(), [theta]), gradients(surrogate(terms, plain.scores).sum(), [theta]))


def test_names() -> None:
    def given(theta: Tensor) -> Tensor:
        r0, r1, r2 = steps(theta, propc.sample)
        return r0 + propc.cost(r1, "mine") + r2

    graph = propc.compile(given, estimator="lr").graph(torch.tensor(0.7, requires_grad=True))
    assert [c.name for c in graph.costs] == ["cost.0", "cost.1", "mine"]  # in program order
    assert [t.site for r in graph.routes for t in r.targets if r.source == "mine"] == ["x0", "x1"]

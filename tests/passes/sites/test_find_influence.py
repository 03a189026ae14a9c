"""Influence, routes and gradients of random programs, against path enumeration and plain torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stats import check
from surrogate import Plain, gradients, seeded, surrogate
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc

BATCH = 4
SMOOTH = {"leaf", "normal", "bernoulli", "mix", "product", "node"}  # steps that autograd follows
JUMPS = {"compare", "round", "opaque"}
SITES = {"normal", "bernoulli"}
ARGUMENTS = {"normal": 1, "bernoulli": 1, "mix": 2, "product": 2, "node": 1, "detach": 1, "compare": 1,
             "round": 1, "opaque": 1, "cost": 2}  # fmt: skip


class Op(NamedTuple):
    """A step on earlier values; `flag`: wants a gradient (leaf), asks for lr (site)."""

    kind: str
    args: tuple[int, ...] = ()
    flag: bool = False


@st.composite
def programs(draw: Any) -> tuple[Op, ...]:
    """Two or three leaves, some of which want gradients, then up to nine steps and a cost."""
    leaves = [Op("leaf", (), draw(st.booleans())) for _ in range(draw(st.integers(1, 2)))]
    ops = [Op("leaf", (), True), *leaves]
    kinds = st.sampled_from(["normal", "normal", "normal", "bernoulli", "mix", *ARGUMENTS])
    for kind in [*draw(st.lists(kinds, min_size=2, max_size=9)), "cost"]:
        values = st.sampled_from([i for i, op in enumerate(ops) if op.kind != "cost"])
        ops.append(Op(kind, tuple(draw(values) for _ in range(ARGUMENTS[kind])), draw(st.booleans())))
    return tuple(ops)


def run(ops: Sequence[Op], leaves: Sequence[Tensor], sample: Any) -> dict[int, Tensor]:
    """The value of every step."""
    given, values = iter(leaves), {}
    for i, (kind, args, flag) in enumerate(ops):
        a, b = [values[j] for j in (*args, *args)][:2] or (None, None)
        if kind == "leaf":
            values[i] = next(given).expand(BATCH)
        elif kind == "normal":
            values[i] = sample(Normal(torch.sin(a), 0.5 + a.square()), f"s{i}", estimator="lr" if flag else None)
        elif kind == "bernoulli":
            values[i] = sample(Bernoulli(logits=a), f"s{i}", estimator="lr" if flag else None)
        elif kind == "mix":
            values[i] = torch.tanh(a - 0.5 * b)
        elif kind == "product":
            values[i] = a * torch.cos(b)
        elif kind == "node":
            values[i] = propc.node(1.5 * a, f"n{i}")
        elif kind == "detach":
            values[i] = a.detach()
        elif kind == "compare":
            values[i] = (a > 0.2).to(a.dtype)
        elif kind == "round":
            values[i] = torch.round(3 * a)
        elif kind == "opaque":
            values[i] = propc.opaque(torch.exp)(a).detach()
        else:
            values[i] = propc.cost((a - 2 * b).square(), f"c{i}")
    return values


class Oracle:
    """Everything by listing every path, as tuples of steps."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.sites = [i for i, op in enumerate(ops) if op.kind in SITES]
        self.costs = [
            i for i, op in enumerate(ops) if op.kind == "cost" and any(self.reaches(s, i) for s in self.sites)
        ]
        self.wanted = [i for i, op in enumerate(ops) if op.kind == "leaf" and op.flag]

    def paths(self, source: int, target: int) -> Iterator[tuple[int, ...]]:
        """Every path; it ends at `target` once for each time the last step reads it."""
        if source == target:
            yield (target,)
            return
        for arg in set(self.ops[target].args):
            for path in self.paths(source, arg):
                yield (*path, target)

    def follows(self, path: Sequence[int]) -> bool:
        """Whether autograd follows all steps after the first."""
        return all(self.ops[i].kind in SMOOTH | {"cost"} for i in path[1:])

    def reaches(self, source: int, target: int) -> bool:
        return any(True for _ in self.paths(source, target))

    def smooth(self, source: int, target: int) -> bool:
        return any(self.follows(p) for p in self.paths(source, target))

    def rough(self, source: int, target: int) -> bool:
        return any(self.ops[i].kind in JUMPS for p in self.paths(source, target) for i in p[1:])

    def direct(self, source: int, site: int, avoiding: Sequence[int]) -> bool:
        """Whether a differentiable path leads from `source` to φ of `site`, past none of `avoiding`."""
        paths = () if source == site else self.paths(source, site)
        return any(self.follows(p) and not set(p[1:-1]) & set(avoiding) for p in paths)

    @property
    def pathwise(self) -> list[int]:
        """Sites where `infer` takes `rp`: reparameterizable, with a differentiable path to every cost."""
        able = [s for s in self.sites if self.ops[s].kind == "normal" and not self.ops[s].flag]
        return [s for s in able if all(self.smooth(s, c) for c in self.costs if self.reaches(s, c))]

    @property
    def routes(self) -> set[tuple[str, str]]:
        """(cost, site): the site scores, the cost is behind it, and its φ hands gradients to a parameter."""
        scoring = [s for s in self.sites if s not in self.pathwise]
        live = [s for s in scoring if any(self.direct(leaf, s, scoring) for leaf in self.wanted)]
        return {(f"c{c}", f"s{s}") for s in live for c in self.costs if self.reaches(s, c)}


def compiled(ops: Sequence[Op], estimator: Any = "infer") -> Any:
    def program(leaves: list[Tensor]) -> Tensor:
        values = run(ops, leaves, propc.sample)
        return sum(values[i] for i, op in enumerate(ops) if op.kind == "cost")

    return propc.compile(program, estimator=estimator)


def leaves_of(ops: Sequence[Op]) -> list[Tensor]:
    flags = [op.flag for op in ops if op.kind == "leaf"]
    return [torch.tensor(0.3 + 0.4 * i, requires_grad=flag) for i, flag in enumerate(flags)]


def names(indices: Sequence[int]) -> set[str]:
    return {f"s{i}" for i in indices}


@pytest.mark.slow
@given(programs())
@settings(max_examples=150)
def test_influence_and_routes(ops: tuple[Op, ...]) -> None:
    oracle = Oracle(ops)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = compiled(ops).graph(leaves_of(ops))
    influence = graph.influence
    if oracle.costs:  # beside them stand the named costs that no site influences
        influenced = {c.name for c in graph.costs if influence.values[c.inputs[0]].any}
        assert influenced == {f"c{c}" for c in oracle.costs if oracle.sites}
    for cost in oracle.costs if oracle.sites else ():
        reach = influence.values[graph[f"c{cost}"].inputs[0]]
        for mask, relation in (
            (reach.any, oracle.reaches),
            (reach.smooth, oracle.smooth),
            (reach.rough, oracle.rough),
        ):
            assert set(influence.named(mask)) == names([s for s in oracle.sites if relation(s, cost)])
    for site in oracle.sites:
        phi = influence.phi[f"s{site}"]
        assert set(influence.named(phi.parents)) == names(
            [s for s in oracle.sites if oracle.direct(s, site, oracle.sites)]
        )
        assert bool(phi.leaves) == any(oracle.direct(leaf, site, oracle.sites) for leaf in oracle.wanted)
        assert bool(phi.ancestors) == any(oracle.reaches(leaf, site) for leaf in oracle.wanted)
    routes = [(r.source, t.site) for r in graph.routes for t in r.targets]
    assert len(routes) == len(set(routes))
    assert set(routes) == oracle.routes
    unread = names([s for s in oracle.sites if not any(oracle.reaches(s, c) for c in oracle.costs)])
    words = "\n".join(str(c.message) for c in caught)
    assert {s for s in names(oracle.sites) if f"site {s!r}" in words and "reaches no cost" in words} >= unread


@pytest.mark.slow
@given(programs())
@settings(max_examples=150)
@pytest.mark.filterwarnings("ignore::propc.errors.PropcWarning")
def test_gradient(ops: tuple[Op, ...]) -> None:
    """Value and gradient are those of the surrogate with the same draws."""
    oracle = Oracle(ops)
    leaves, weights = leaves_of(ops), torch.rand(BATCH)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    value = seeded(compiled(ops), leaves)
    plain = Plain(pathwise=names(oracle.pathwise))
    values = seeded(run, ops, leaves, plain)
    costs = [i for i, op in enumerate(ops) if op.kind == "cost"]
    torch.testing.assert_close(value, sum(values[c] for c in costs), rtol=1e-14, atol=0)
    terms = [(values[c], names([s for s in oracle.sites if oracle.reaches(s, c)])) for c in costs]
    expected = gradients(weights @ surrogate(terms, plain.scores), wanted)
    torch.testing.assert_close(gradients(weights @ value, wanted), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@given(programs())
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore::propc.errors.PropcWarning")
def test_rp_is_refused_where_no_path_leads(ops: tuple[Op, ...]) -> None:
    """`rp` at every Normal: refused exactly where the path enumeration finds a cost out of reach."""
    ops = tuple(op._replace(kind="normal", flag=False) if op.kind in SITES else op for op in ops)
    oracle = Oracle(ops)
    trained = [s for s in oracle.sites if any(oracle.reaches(leaf, s) for leaf in oracle.wanted)]
    blocked = [s for s in trained if s not in oracle.pathwise]
    if not blocked:
        compiled(ops, "rp").graph(leaves_of(ops))
        return
    with pytest.raises(propc.PropcError, match=rf"site 's{blocked[0]}'.*differentiable path to every cost"):
        compiled(ops, "rp").graph(leaves_of(ops))


def test_a_diamond_is_reached_once() -> None:
    """Two paths and a direct one from the same site: one message."""

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = propc.sample(Normal(theta * x, 1.0), "y")
        z = propc.sample(Normal(theta - x, 1.0), "z")
        return x * y * z

    graph = propc.compile(program, estimator="lr").graph(torch.tensor(0.5, requires_grad=True))
    (route,) = graph.routes
    assert [t.site for t in route.targets] == ["x", "y", "z"]


# -- gradients that end at a black box ------------------------------------------------------


def _sine(v: Tensor) -> Tensor:
    return v.sin()


box = propc.opaque(_sine)


def _spread(theta: Tensor) -> Tensor:
    return theta * torch.ones(8)


def _in_a_loop(theta: Tensor) -> Tensor:
    x = _spread(theta)
    for _ in range(3):
        x = x + box(x)
    return x


def _before_a_site(theta: Tensor) -> Tensor:
    return propc.sample(Normal(box(_spread(theta)), 1.0), "x") + theta


def _chosen_by_a_box(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(_spread(theta), 1.0), "x")
    return torch.where(box(_spread(theta)) > 0, x, 2 * x)


def _without_gradient(theta: Tensor) -> Tensor:
    with torch.no_grad():
        x = box(_spread(theta))
    return x + theta


@pytest.mark.parametrize(
    "program",
    [
        lambda theta: box(_spread(theta)) ** 2 + 0 * theta,
        lambda theta: box(box(_spread(theta))) + theta,
        _in_a_loop,
        _before_a_site,
    ],
    ids=["beside a path", "two boxes", "in a loop", "before a site"],
)
def test_a_gradient_that_ends_at_a_black_box_is_warned_of(program: Any) -> None:
    theta = torch.tensor(0.3, requires_grad=True)
    with pytest.warns(propc.PropcWarning, match=r"test_find_influence.*that of 'theta' ends there") as said:
        propc.compile(program)(theta)
    assert len([each for each in said if "black box" in str(each.message)]) == 1


@pytest.mark.parametrize(
    "program",
    [
        lambda theta: propc.opaque(_sine, gradient=None)(_spread(theta)) + theta,
        lambda theta: box(_spread(theta).detach()) + theta,
        lambda theta: box(propc.sample(Bernoulli(logits=_spread(theta)), "b")),
        lambda theta: box(propc.sample(Normal(_spread(theta), 1.0), "x")),
        lambda theta: theta * (box(_spread(theta)) > 0),
        lambda theta: theta + box(_spread(theta)).detach(),
        _chosen_by_a_box,
        _without_gradient,
    ],
    ids=["said", "detached", "a score", "infer", "a mask", "detached after", "a choice", "no_grad"],
)
def test_no_warning_where_nothing_is_lost(program: Any, recwarn: pytest.WarningsRecorder) -> None:
    propc.compile(program)(torch.tensor(0.3, requires_grad=True))
    assert not [str(each.message) for each in recwarn]


def test_nothing_is_lost_without_gradients(recwarn: pytest.WarningsRecorder) -> None:
    program = propc.compile(lambda theta: box(_spread(theta)))
    program(torch.tensor(0.3))
    with torch.no_grad():
        program(torch.tensor(0.3, requires_grad=True))
    assert not list(recwarn)


def test_a_site_before_the_box_gives_the_gradient_of_the_smoothed_box() -> None:
    """E sin(θ + σ e) = exp(-σ²/2) sin θ: the advice, followed."""
    theta = torch.full((200_000,), 0.3, dtype=torch.float64, requires_grad=True)

    @propc.compile(estimator="lr")
    def smoothed(theta: Tensor) -> Tensor:
        return box(propc.sample(Normal(theta, 0.5), "x"))

    (draws,) = torch.autograd.grad(smoothed(theta).sum(), theta)
    exact = torch.tensor(0.3, dtype=torch.float64).cos() * torch.tensor(-0.125, dtype=torch.float64).exp()
    check(draws[:, None], exact[None], twin=1.1)


def test_another_gradient_is_refused() -> None:
    with pytest.raises(propc.PropcError, match=r"gradient must be None or left out; got 'smooth'"):
        propc.opaque(_sine, gradient="smooth")  # type: ignore[call-overload]

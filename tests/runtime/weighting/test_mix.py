"""Inverse-variance weights against a plain formula, and the closed form against the general path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
import zoo
from surrogate import gradients, seeded
from torch import Tensor
from torch.distributions import Gamma, Independent, Normal

import propc
from propc.errors import ErrorAt, PropcValueError
from propc.estimators import LeaveOneOut
from propc.propagators import InverseVariance
from propc.runtime.weighting import mix as mixing
from propc.runtime.weighting.mix import Target, mix
from propc.runtime.weighting.mix_compiled import tracing
from propc.runtime.weighting.mixing import Mixing
from propc.runtime.weighting.moving_variance import PastVariances, remembered
from propc.runtime.weighting.weighting import Weighting

Parts = list[Tensor]  # for each φ: [parts, batch, ...]


@pytest.fixture(params=["quick", "careful"], autouse=True)
def _how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds of the few operations for two parts, and without them, as on a GPU."""
    if request.param == "careful":
        monkeypatch.setattr(mixing, "mix_two", lambda *args: None)


class Site:
    """What `mix` needs to know of a site, with its memory."""

    def __init__(self, weighting: Weighting, donor: str | None = None, weights: dict[str, list[Tensor]] | None = None):
        self.weights = {} if weights is None else weights
        self.state = PastVariances() if weighting.weights == "past" else None
        self.mixing = Mixing(weighting, "x", cast(ErrorAt, None), self.weights, donor=donor, state=self.state)

    def mix(self, grads: Parts, tangents: Sequence[Tensor | None] | None = None) -> Parts:
        at = None if tangents is None else Target(tangents, range(len(grads)))
        return mix(self.mixing, [tuple(g) for g in grads], at, past=remembered(self.state))


# The plain formula.


def variances(grads: Parts, rows: slice, tangents: Sequence[Tensor | None] | None) -> Tensor:
    """[parts]: squared deviations from the mean over rows, summed over rows, coordinates and φ."""
    if tangents is not None:
        pairs = [(g, t) for g, t in zip(grads, tangents) if t is not None]
        flat = [(g.reshape(*g.shape[:2], -1), t.reshape(*t.shape[:2], -1)) for g, t in pairs]
        grads = [torch.stack([torch.einsum("cbi,pbi->cbp", g, t) for g, t in flat]).sum(0)]
    total = torch.zeros(len(grads[0]))
    for grad in grads:
        picked = grad[:, rows].flatten(2) if grad.dim() > 2 else grad[:, rows, None]
        total += (picked - picked.mean(1, keepdim=True)).square().sum((1, 2))
    return total


def weighted(grads: Parts, v: Tensor, rows: slice) -> Parts:
    """Σ_c g_c / V_c over Σ_c 1 / V_c."""
    k = (1 / v) / (1 / v).sum()
    return [torch.einsum("c,cb...->b...", k, g[:, rows]) for g in grads]


def formula(how: str, grads: Parts, tangents: Sequence[Tensor | None] | None = None) -> Parts:
    everything, half = slice(None), grads[0].shape[1] // 2
    if how == "same":
        return weighted(grads, variances(grads, everything, tangents), everything)
    first, second, rest = slice(0, half), slice(half, 2 * half), slice(half, None)
    low = weighted(grads, variances(grads, second, tangents), first)
    high = weighted(grads, variances(grads, first, tangents), rest)
    return [torch.cat(pair) for pair in zip(low, high)]


def of_the_next(folds: int, grads: Parts) -> Parts:
    """Each group of rows takes the weights of the next, the last those of the first; rows left over join the last."""
    size, batch = grads[0].shape[1] // folds, grads[0].shape[1]
    groups = [slice(size * i, size * (i + 1)) for i in range(folds)]
    mixed = []
    for i in range(folds):
        rows = groups[i] if i < folds - 1 else slice(size * i, batch)
        mixed.append(weighted(grads, variances(grads, groups[(i + 1) % folds], None), rows))
    return [torch.cat(pieces) for pieces in zip(*mixed)]


def by_coordinate(how: str, grads: Parts) -> Parts:
    """The formula at each coordinate of each φ alone."""
    found = []
    for grad in grads:
        flat = grad.reshape(*grad.shape[:2], -1)
        columns = [formula(how, [flat[:, :, i]])[0] for i in range(flat.shape[2])]
        found.append(torch.stack(columns, -1).reshape(grad.shape[1:]))
    return found


def random_grads(parts: int, batch: int, shapes: Sequence[tuple[int, ...]]) -> Parts:
    scale = torch.arange(1.0, parts + 1)
    return [torch.randn(parts, batch, *s) * scale.reshape(-1, 1, *(1,) * len(s)) + 3 for s in shapes]


SHAPES = [[()], [(3,)], [(2, 3)], [(), ()], [(3,), (3,)], [(2,), (2, 2)]]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize(("parts", "batch"), [(2, 8), (2, 7), (3, 6), (4, 9), (2, 4), (3, 5)])
@pytest.mark.parametrize("how", ["same", "crossfit"])
def test_weights(how: str, parts: int, batch: int, shapes: list[tuple[int, ...]]) -> None:
    grads = random_grads(parts, batch, shapes)
    torch.testing.assert_close(Site(Weighting(weights=how)).mix(grads), formula(how, grads))
    each = Site(Weighting(weights=how, per_coordinate=True)).mix(grads)
    torch.testing.assert_close(each, by_coordinate(how, grads))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize(("parts", "batch", "folds"), [(2, 12, 3), (2, 13, 4), (3, 10, 5), (2, 7, 2)])
def test_folds(folds: int, parts: int, batch: int, shapes: list[tuple[int, ...]]) -> None:
    grads = random_grads(parts, batch, shapes)
    expected = of_the_next(folds, grads)
    torch.testing.assert_close(Site(Weighting(folds=folds)).mix(grads), expected)
    if parts == 2 and not batch % folds:
        with tracing():
            torch.testing.assert_close(Site(Weighting(folds=folds)).mix(grads), expected)


def test_a_batch_too_small_for_its_folds_is_weighed_alike() -> None:
    grads = random_grads(2, 7, [(2,)])
    torch.testing.assert_close(Site(Weighting(folds=4)).mix(grads)[0], grads[0].mean(0))


@pytest.mark.parametrize("folds", [1, 0, 2.5])
def test_folds_are_two_or_more(folds: Any) -> None:
    with pytest.raises(PropcValueError, match="folds"):
        Weighting(folds=folds)


@pytest.mark.parametrize("batch", [8, 11])
def test_the_baseline_stays_inside_its_group(batch: int) -> None:
    """Rows of other groups do not move what is sent for a row."""
    cost = torch.randn(batch)
    centered = LeaveOneOut(4).center(cost, None)
    for i in range(4):
        rows = slice(2 * i, 2 * (i + 1) if i < 3 else batch)
        torch.testing.assert_close(centered[rows], LeaveOneOut().center(cost[rows], None))


@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize("shapes", [[()], [(3,)], [(2, 3), ()]], ids=str)
@pytest.mark.parametrize("how", ["same", "crossfit"])
def test_weights_at_a_target(how: str, shapes: list[tuple[int, ...]], directions: int) -> None:
    grads = random_grads(2, 7, shapes)
    tangents: list[Tensor | None] = [torch.randn(directions, 7, *s) for s in shapes]
    site = Site(Weighting(target="theta", weights=how))
    torch.testing.assert_close(site.mix(grads, tangents), formula(how, grads, tangents))
    if len(shapes) > 1:  # one φ does not depend on the target
        tangents[1] = None
        torch.testing.assert_close(site.mix(grads, tangents), formula(how, grads, tangents))


@pytest.mark.parametrize("per_coordinate", [False, True])
def test_past(per_coordinate: bool) -> None:
    """The first batch takes crossfit weights; each later one the moving variance of those before it."""
    site = Site(Weighting(weights="past", per_coordinate=per_coordinate, decay=0.8))
    batches = [[g.squeeze(-1) if per_coordinate else g for g in random_grads(2, 6, [(1,)])] for _ in range(4)]
    torch.testing.assert_close(site.mix(batches[0]), formula("crossfit", batches[0]))
    moving = variances(batches[0], slice(None), None)
    for grads in batches[1:]:
        torch.testing.assert_close(site.mix(grads), weighted(grads, moving, slice(None)))
        moving = 0.8 * moving + 0.2 * variances(grads, slice(None), None)


def test_past_survives_saving() -> None:
    site, other = Site(Weighting(weights="past")), Site(Weighting(weights="past"))
    first, second = (random_grads(2, 6, [(2,)]) for _ in range(2))
    site.mix(first)
    other.state.load_state_dict(site.state.state_dict())
    torch.testing.assert_close(other.mix(second), site.mix(second))


@pytest.mark.parametrize("passes", [(), (propc.passes.Checkpoint(blocks=2),)], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("weights", ["same", "crossfit", "past"])
def test_a_second_reverse_pass_has_the_same_weights(weights: str, passes: Any) -> None:
    """Those of earlier batches too, though the first pass has joined this batch to them."""

    @propc.compile(estimator=propc.estimator("tp", weights=weights), passes=passes)
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(6), 0.5), "x")
        y = propc.sample(Gamma(x.exp() * theta, 1.0), "y")
        return propc.sample(Normal(y.sin(), theta.exp()), "z").square()

    theta = torch.tensor(0.7, requires_grad=True)
    torch.manual_seed(0)
    for _ in range(3):
        loss = program(theta).mean()
        one, two = (torch.autograd.grad(loss, theta, retain_graph=True) for _ in range(2))
        assert torch.equal(*one, *two)


def test_past_with_another_batch_size() -> None:
    """A last, smaller batch: moving moments of sums over unequal batches stay in proportion."""
    site = Site(Weighting(weights="past"))
    big, small = random_grads(2, 8, [(2,)]), random_grads(2, 5, [(2,)])
    site.mix(big)
    torch.testing.assert_close(site.mix(small), weighted(small, variances(big, slice(None), None), slice(None)))


@pytest.mark.parametrize(("how", "batch"), [("crossfit", 3), ("crossfit", 1), ("past", 3), ("past", 1), ("same", 1)])
def test_too_few_samples(how: str, batch: int) -> None:
    grads = random_grads(2, batch, [(2,)])
    torch.testing.assert_close(Site(Weighting(weights=how)).mix(grads), [grads[0].mean(0)])


def test_reuse() -> None:
    """A site with a donor takes the weights that the donor computed in this call."""
    site = Site(Weighting(weights="same", k_interval=2))
    late, early = random_grads(2, 6, [(2,)]), random_grads(2, 6, [(2,)])
    site.mix(late)
    follower = Site(Weighting(weights="same", k_interval=2), donor="x", weights=site.weights)
    torch.testing.assert_close(follower.mix(early), weighted(early, variances(late, slice(None), None), slice(None)))


# Values at the edges.

HOWS = pytest.mark.parametrize("how", ["same", "crossfit", "past"])
EACH = pytest.mark.parametrize("per_coordinate", [False, True])


@HOWS
@EACH
def test_no_variance(how: str, per_coordinate: bool) -> None:
    """0/0 is one half; a part without variance takes all from one that has some."""
    grads = [torch.stack([torch.full((8, 2), 1.0), torch.full((8, 2), 4.0)])]
    torch.testing.assert_close(
        Site(Weighting(per_coordinate=per_coordinate, weights=how)).mix(grads), [torch.full((8, 2), 2.5)]
    )
    grads[0][1] = torch.randn(8, 2)
    torch.testing.assert_close(Site(Weighting(per_coordinate=per_coordinate, weights=how)).mix(grads), [grads[0][0]])


BAD = pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
PART = pytest.mark.parametrize("part", [0, 1])


@HOWS
@BAD
@PART
@pytest.mark.parametrize("row", [0, 3, 4, 7])
def test_the_finite_part_wins(how: str, bad: float, part: int, row: int) -> None:
    """A part that is not finite anywhere has weight zero everywhere, also with weights from the past."""
    grads, site = random_grads(2, 8, [(2,)]), Site(Weighting(weights=how))
    site.mix(grads)
    grads[0][part, row, 1] = bad
    for _ in range(2):
        torch.testing.assert_close(site.mix(grads), [grads[0][1 - part]])


@BAD
@PART
def test_what_the_weights_have_not_seen_is_not_hidden(bad: float, part: int) -> None:
    """Crossfit takes no variance of the last row of an odd batch or of three rows; a target sees not every φ."""
    odd = random_grads(2, 9, [(2,)])
    odd[0][part, 8, 1] = bad
    assert not Site(Weighting()).mix(odd)[0][8, 1].isfinite()
    few = random_grads(2, 3, [(2,)])
    few[0][part, 1, 1] = bad
    assert not Site(Weighting()).mix(few)[0][1, 1].isfinite()
    two = random_grads(2, 8, [(2,), (2,)])
    two[1][part, 3, 1] = bad
    assert not Site(Weighting(target="theta")).mix(two, [torch.randn(1, 8, 2), None])[1][3, 1].isfinite()


@pytest.mark.parametrize("how", ["same", "crossfit"])
def test_the_finite_part_wins_of_three(how: str) -> None:
    grads = random_grads(3, 8, [(2,)])
    grads[0][0, 2] = torch.inf
    grads[0][1, 6] = torch.nan
    torch.testing.assert_close(Site(Weighting(weights=how)).mix(grads)[0], grads[0][2])


@HOWS
def test_nothing_finite_is_not_hidden(how: str) -> None:
    grads = random_grads(2, 8, [(2,)])
    grads[0][:, 5] = torch.nan
    assert Site(Weighting(weights=how)).mix(grads)[0].isnan().any()


@HOWS
@EACH
def test_past_recovers(how: str, per_coordinate: bool) -> None:
    """One batch with an infinite cotangent does not poison those after it."""
    site = Site(Weighting(per_coordinate=per_coordinate, weights=how, decay=0.5))
    grads = random_grads(2, 8, [(2,)])
    broken = [g.clone() for g in grads]
    broken[0][0, 0, 0] = torch.inf
    for batch in (grads, broken, grads, grads):
        assert site.mix(batch)[0].isfinite().all()
    for _ in range(3000):
        found = site.mix(grads)
    torch.testing.assert_close(
        found, Site(Weighting(per_coordinate=per_coordinate, weights="same")).mix(grads) if how == "past" else found
    )


@HOWS
@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e150), (torch.float64, 1e-150), (torch.float32, 1e17),
                                             (torch.float32, 1e-18)])  # fmt: skip
def test_extreme_values(how: str, dtype: torch.dtype, size: float) -> None:
    """Weights do not depend on the scale of the gradient, as far as its square can be held or beyond."""
    grads = [g.to(dtype) for g in random_grads(2, 8, [(3,)])]
    (expected,) = Site(Weighting(weights=how)).mix(grads)
    (found,) = Site(Weighting(weights=how)).mix([g * size for g in grads])
    assert found.dtype == dtype
    torch.testing.assert_close(found / size, expected)


# The closed form at a Normal, and the general path.


def flat(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(torch.sin(theta[0]) * torch.ones(7), torch.exp(theta[1]) * torch.ones(7)), "x")
    return torch.cos(x) * x


def changing_scale(theta: Tensor) -> Tensor:
    law = zoo.recurrent_unit(theta, scale=lambda x: torch.exp(theta[1] * x))
    return torch.cos(zoo.chain(law, torch.linspace(-1.0, 1.0, 14).reshape(7, 2), steps=3)).sum(1)


def independent(theta: Tensor) -> Tensor:
    x = propc.sample(Independent(Normal(theta.expand(7, 2), (theta + 1).square().expand(7, 2)), 1), "x")
    y = propc.sample(Independent(Normal(x[:, None] * theta, 0.3 + x[:, :, None].square().expand(7, 2, 2)), 2), "y")
    return y.square().sum((1, 2))


def rewards(theta: Tensor) -> Tensor:
    """A cost at every step: each site has a message of its own, and all share one scale."""
    start = torch.linspace(-1.0, 1.0, 16).reshape(8, 2)
    return zoo.rewards(zoo.recurrent_unit(theta, 0.3), lambda x: torch.cos(x).sum(1), start, steps=4)


def constant_scale(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(theta.expand(7, 2), 0.4), "x")
    return torch.cos(propc.sample(Normal(theta * x, torch.tensor([0.2, 0.3])), "y")).sum(1)


def only_scale(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(torch.zeros(7, 2), torch.exp(theta).expand(7, 2)), "x")
    return torch.cos(x).sum(1)


def shared_rows(theta: Tensor) -> Tensor:
    """φ of another shape than the draw: rows that the constructor broadcasts."""
    x = propc.sample(Normal(theta.expand(7, 2), torch.exp(theta[:1])), "x")
    return propc.sample(Normal(x + theta, torch.exp(x[:, :1])), "y").square().sum(1)


PROGRAMS = [flat, changing_scale, rewards, independent, constant_scale, only_scale, shared_rows]
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "same": {"weights": "same"},
    "past": {"weights": "past"},
    "coordinate": {"per_coordinate": True},
    "target": {"target": "theta"},
    "interval": {"k_interval": 2},
    "no-baseline": {"baseline": None},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_closed_form(program: Callable[..., Tensor], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of two calls agree with those of the path through `rsample` and `log_prob`."""
    theta = torch.tensor([0.4, -0.3], requires_grad=True)

    def run() -> list[Any]:
        compiled = propc.compile(program, estimator=propc.estimator("tp", **options))
        values = [seeded(compiled, theta, seed=seed) for seed in (1, 2)]
        weights = torch.linspace(0.1, 1.0, len(values[0]))
        return [values[0], *gradients(weights @ values[0], [theta]), *gradients(values[1].sum(), [theta])]

    closed = run()
    with monkeypatch.context() as patch:
        patch.setattr(InverseVariance, "draw", InverseVariance._draw_any)
        general = run()
    torch.testing.assert_close(closed, general, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_a_mixture_lies_between_its_parts(program: Callable[..., Tensor]) -> None:
    """One parameter and one site: the mixture of the two gradients, and nothing else."""
    theta = torch.tensor([0.4, -0.3], requires_grad=True)
    graph = propc.compile(program, estimator="tp").graph(theta)
    if len(graph.sites) > 1:
        return
    same = propc.estimator("tp", weights="same")
    rp, lr, tp = (
        gradients(seeded(propc.compile(program, estimator=e), theta).sum(), [theta])[0] for e in ("rp", "lr", same)
    )
    k = (tp - rp) / (lr - rp)
    used = (lr - rp) != 0
    assert ((k[used] >= 0) & (k[used] <= 1)).all()
    torch.testing.assert_close(k[used], k[used][:1].expand(int(used.sum())))

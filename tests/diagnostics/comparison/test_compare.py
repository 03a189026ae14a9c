"""Estimators beside each other: figures that are right, and nothing of the user's changed."""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, Poisson

import propc
from propc.diagnostics.comparison.power import limit
from propc.diagnostics.comparison.running_moments import Moments
from propc.diagnostics.comparison.steps import WARMUP, Candidate, Originals, Situation, interleave, mean_cost
from propc.errors import EstimatorError, PropcTypeError, PropcValueError

ROWS = 100


class Louder(propc.propagators.Baseline):
    """Not a baseline at all: it makes messages a fifth larger."""

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        return 1.2 * (cost - cost.mean())


@propc.register_estimator("a-fifth-too-much")
@dataclass(frozen=True)
class AFifthTooMuch(propc.Estimator):
    """A biased twin of `lr`."""

    name: ClassVar[str] = "a-fifth-too-much"
    keeps_name: ClassVar[bool] = True

    def propagator(self, site: Any) -> tuple[propc.Propagator, str]:
        return propc.propagators.LikelihoodRatioRule(Louder()), "asked for"


def square(theta: Tensor) -> Tensor:
    """E = Σ (θ² + 1), gradient 2θ; of one rp step the variance is 4/ROWS a coordinate."""
    return propc.sample(Normal(theta.expand(ROWS, 2), 1.0), "x").square().sum(-1)


def coin(theta: Tensor) -> Tensor:
    return (propc.sample(Bernoulli(logits=theta.expand(ROWS)), "z") - 0.3).square()


def steps(theta: Tensor) -> Tensor:
    """The pathwise gradient knows nothing of the jump."""
    x = propc.sample(Normal(theta.expand(ROWS), 1.0), "x")
    return x.square() * (1.0 + (x > 0.5))


def point(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], requires_grad=True)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return propc.sample(Normal(self.layer(x), 1.0), "z").square().sum(-1)


# -- figures ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.statistical
def test_bias_is_found_and_only_where_it_is() -> None:
    theta = point(0.3, -0.4)
    found = propc.compare(
        square, theta, estimators=["rp", "lr", "tp", "a-fifth-too-much"], repeats=400, reference=2 * theta.detach()
    )
    assert [row["significant"] for row in found.rows] == [False, False, False, True]
    for row in found.rows[:3]:
        assert row["bias"] < 4 * row["stderr"]
    assert torch.allclose(found["a-fifth-too-much"]["mean"], 2.4 * theta.detach(), atol=0.15)
    assert found["a-fifth-too-much"]["worst"] in ("theta[0]", "theta[1]")


@pytest.mark.slow
@pytest.mark.statistical
def test_a_long_run_finds_it_too() -> None:
    found = propc.compare(square, point(0.6, -0.8), estimators=["rp", "a-fifth-too-much"], repeats=400)
    assert found.reference == "4000 steps of rp"
    assert [row["significant"] for row in found.rows] == [False, True]
    assert torch.allclose(found.gradient, torch.tensor([1.2, -1.6]), atol=0.02)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore::propc.PropcWarning")
def test_the_reference_of_a_jump_is_not_pathwise() -> None:
    theta = point(0.2)
    found = propc.compare(steps, theta, estimators=["rp", "lr"], repeats=400)
    assert found.reference == "4000 steps of lr"
    assert [row["significant"] for row in found.rows] == [True, False]
    x = torch.linspace(0.5, 12.0, 200_001)
    tail = x.square() * (x - 0.2) * Normal(0.2, 1.0).log_prob(x).exp()
    assert abs(found.gradient - (0.4 + torch.trapezoid(tail, x))) < 0.03


@pytest.mark.statistical
def test_figures() -> None:
    repeats, theta = 1000, point(0.3, -0.4)
    row = propc.compare(square, theta, estimators=["rp"], repeats=repeats, reference=2 * theta.detach())["rp"]
    exact = 8 / ROWS
    assert abs(row["variance"] - exact) < 5 * exact / repeats**0.5  # a sum of two: its own deviation is exact/√n
    off = row["mean"] - 2 * theta.detach()
    assert row["bias"] == pytest.approx(float(off.norm()))
    assert row["stderr"] == pytest.approx((row["variance"] / repeats) ** 0.5)
    assert row["efficiency"] == pytest.approx(1 / (row["variance"] * row["time"]))
    assert 0 < row["time"] < 1


@pytest.mark.slow
@pytest.mark.statistical
def test_chance_seldom_calls_a_correct_estimator_biased() -> None:
    """200 comparisons of 2 coordinates at the level of 1 in 100: more than 8 would be a wonder (p = 1e-4)."""
    theta = point(0.3, -0.4)
    compiled = propc.compile(square)
    alarms = [
        propc.compare(compiled, theta, estimators=["rp"], repeats=12, reference=2 * theta.detach(), seed=seed)["rp"]
        for seed in range(200)
    ]
    assert sum(row["significant"] for row in alarms) <= 8
    assert max(row["bias_se"] for row in alarms) > 2.5


def test_limit_is_students() -> None:
    """Quantiles from tables of Student's t."""
    assert limit(1, 10) == pytest.approx(3.2498, abs=2e-3)
    assert limit(1, 30) == pytest.approx(2.7564, abs=1e-4)
    assert limit(10, 30) == pytest.approx(3.6594, abs=1e-3)
    assert limit(1, 10**6) == pytest.approx(2.5758, abs=1e-4)


def test_a_gradient_that_does_not_vary() -> None:
    def linear(theta: Tensor) -> Tensor:
        return 3 * propc.sample(Normal(theta.expand(ROWS), 1.0), "x") + theta.sin()

    theta = point(0.2)
    exact = 3 + theta.detach().cos()
    found = propc.compare(linear, theta, estimators=["rp"], repeats=10, reference=exact)["rp"]
    assert found["variance"] < 1e-25
    assert found["significant"] is False
    found = propc.compare(linear, theta, estimators=["rp"], repeats=10, reference=exact + 1e-6)["rp"]
    assert found["significant"] is True


def two_coins(theta: Tensor) -> Tensor:
    """The second depends on the first; the third has no parameter before it."""
    z = propc.sample(Bernoulli(logits=theta.expand(20, 2)), "z")
    w = propc.sample(Bernoulli(probs=0.3 + 0.4 * z[:, 0] * z[:, 1]), "w")
    fair = propc.sample(Bernoulli(probs=torch.full((20,), 0.5)), "fair")
    return (z - 0.499).square().sum(-1) + w * theta.sum() + fair * z[:, 0]


def enumerated(theta: Tensor) -> Tensor:
    """The expected cost of a row, added up by hand."""
    p, total = torch.sigmoid(theta), theta.new_zeros(())
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        chance = (p[0] if a else 1 - p[0]) * (p[1] if b else 1 - p[1])
        total = total + chance * ((a - 0.499) ** 2 + (b - 0.499) ** 2 + (0.3 + 0.4 * a * b) * theta.sum() + 0.5 * a)
    return total


@pytest.mark.slow
@pytest.mark.statistical
def test_the_exact_reference() -> None:
    theta = point(0.3, -0.2)
    estimators = ["lr", "rloo", "enumerate", "a-fifth-too-much"]
    found = propc.compare(two_coins, theta, estimators=estimators, repeats=600)
    assert found.reference == "exact, by enumeration"
    assert torch.allclose(found.gradient, torch.autograd.grad(enumerated(theta), theta)[0])
    assert [row["significant"] for row in found.rows] == [False, False, False, True]
    assert found["enumerate"]["variance"] < found["rloo"]["variance"] / 5
    asked = propc.compare(two_coins, theta, estimators=["lr"], repeats=2, reference="enumerate")
    assert asked.reference == "exact, by enumeration"


def test_sites_that_ask_for_an_estimator_do_not_bias_the_reference() -> None:
    def asks(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(ROWS)), "z", estimator="a-fifth-too-much")
        return (z - 0.3).square()

    theta = point(0.2)
    found = propc.compare(asks, theta, estimators=["lr"], repeats=300)
    p = theta.detach().sigmoid()
    assert torch.allclose(found.gradient, p * (1 - p) * (0.49 - 0.09))
    assert found["lr"]["significant"]  # the site has what it asks for


def test_what_is_too_large_is_not_enumerated() -> None:
    """2^24 configurations of a chain, each site of which has but two."""

    def many_bits(theta: Tensor) -> Tensor:
        return zoo.chain(lambda z: Bernoulli(logits=theta * (2 * z - 1)), theta.expand(4), 24, name="z")

    assert propc.compare(many_bits, point(0.2), estimators=["lr"], repeats=3).reference.startswith("30 steps of ")


def test_scalar_costs_that_are_discrete() -> None:
    def scalar(theta: Tensor) -> Tensor:
        z = propc.sample(Poisson(theta.exp()), "z")
        return (z - 1).square().clamp(max=9)

    assert propc.compare(scalar, point(0.2), estimators=["rloo"], repeats=5).reference == "50 steps of rloo"


def test_nothing_random_is_exact() -> None:
    found = propc.compare(lambda theta: theta.square(), point(0.2), estimators=["rp"], repeats=3)
    assert found.reference == "exact, there is no random choice"
    row = found["rp"]
    assert (row["variance"], row["efficiency"], row["bias"]) == (0.0, float("inf"), 0.0)


def test_other_random_numbers_are_not_exact() -> None:
    def noisy(theta: Tensor) -> Tensor:
        return (theta + torch.randn(ROWS)).square()

    assert propc.compare(noisy, point(0.2), estimators=["rp"], repeats=30).reference == "300 steps of the program"


def test_an_estimator_as_reference() -> None:
    found = propc.compare(
        coin, point(0.2), estimators=["lr"], repeats=5, reference=propc.estimator("lr", baseline=None)
    )
    assert found.reference == "50 steps of lr(baseline=None)"


def test_references_by_name_and_in_order() -> None:
    def shifted(a: Tensor, b: Tensor) -> Tensor:
        return propc.sample(Normal(a.expand(ROWS), 1.0), "x") * b.sum()

    a, b = point(1.0), point(2.0, 3.0)
    call: dict[str, Any] = {"estimators": ["rp"], "repeats": 5}
    named = propc.compare(shifted, a, b, reference={"b": torch.ones(2), "a": 5.0}, **call)
    assert set(named.gradient) == {"a", "b"}
    assert torch.equal(named.gradient["b"], torch.ones(2))
    assert torch.equal(propc.compare(shifted, a, b, reference=[5.0, torch.ones(2)], **call).gradient["a"], point(5.0))
    for wrong, words in [
        (5.0, "gives 1 gradients; wanted are those of 'a', 'b'"),
        ({"a": 5.0}, "gives 1 gradients"),
        ({"a": 5.0, "c": 1.0}, "wanted are those of 'a', 'b'"),
        ([5.0, torch.ones(3)], r"gives shape \[3\] for 'b', whose shape is \[2\]"),
    ]:
        with pytest.raises(PropcValueError, match=words):
            propc.compare(shifted, a, b, reference=wrong, **call)


# -- what is compared ---------------------------------------------------------------------------


class Holder:
    def __init__(self) -> None:
        self.theta = point(0.3)

    @propc.compile
    def loss(self, rows: int) -> Tensor:
        return propc.sample(Normal(self.theta.expand(rows), 1.0), "x").square()


@propc.compile
class CompiledModel(Model):
    pass


def closing() -> Any:
    hidden = point(0.3)
    return lambda: propc.sample(Normal(hidden.expand(ROWS), 1.0), "x").square()


@pytest.mark.parametrize(
    ("make", "wrt"),
    [
        (lambda: (square, point(0.1, 0.2)), ["theta"]),
        (lambda: (propc.compile(square, estimator="lr"), point(0.1, 0.2)), ["theta"]),
        (lambda: (closing(),), ["hidden"]),
        (lambda: (Holder().loss, ROWS), ["theta"]),
        (lambda: (Model(), torch.ones(ROWS, 3)), ["layer.weight", "layer.bias"]),
        (lambda: (propc.compile(Model()), torch.ones(ROWS, 3)), ["layer.weight", "layer.bias"]),
        (lambda: (CompiledModel(), torch.ones(ROWS, 3)), ["layer.weight", "layer.bias"]),
        (lambda: (Model(), torch.ones(ROWS, 3, requires_grad=True)), ["x", "layer.weight", "layer.bias"]),
    ],
)
def test_programs_and_all_their_leaves(make: Any, wrt: list[str]) -> None:
    found = propc.compare(*make(), estimators=["rp", "lr"], repeats=30)
    assert sorted(found.wrt) == sorted(wrt)
    assert [row["error"] for row in found.rows] == ["", ""]
    assert not any(row["significant"] for row in found.rows)


def test_a_part_of_the_leaves() -> None:
    def nested(params: dict[str, Tensor], scale: Tensor) -> Tensor:
        return propc.sample(Normal(params["loc"].expand(ROWS), params["scale"]), "x") * scale

    params, scale = {"loc": point(0.3), "scale": point(1.0)}, point(2.0)

    def names(wrt: Any) -> tuple[str, ...]:
        return propc.compare(nested, params, scale, estimators=["rp"], repeats=2, wrt=wrt).wrt

    assert names(None) == ("params['loc']", "params['scale']", "scale")
    assert names("params") == ("params['loc']", "params['scale']")
    assert names("params['loc']") == names(params["loc"]) == ("params['loc']",)
    assert names(["scale", params["loc"]]) == ("scale", "params['loc']")
    assert names(["scale", scale]) == ("scale",)


def test_of_a_module() -> None:
    model, x = Model(), torch.ones(ROWS, 3)
    assert propc.compare(model, x, estimators=["rp"], repeats=2, wrt="layer").wrt == ("layer.weight", "layer.bias")
    found = propc.compare(model, x, estimators=["rp"], repeats=2, wrt=model.layer.bias)
    assert found.wrt == ("layer.bias",)
    assert found["rp"]["mean"].shape == (2,)
    (row,) = propc.compare(model, x, estimators=["rp"], repeats=2).rows
    assert {name: mean.shape for name, mean in row["mean"].items()} == {"layer.weight": (2, 3), "layer.bias": (2,)}


def test_in_what_an_argument_was_computed_from() -> None:
    raw = point(0.3, 0.1)
    found = propc.compare(square, raw.exp(), estimators=["rp"], wrt=raw, repeats=200, reference=2 * (2 * raw).exp())
    assert found.wrt == ("wrt",)
    assert not found["rp"]["significant"]
    assert propc.compare(square, raw.exp(), estimators=["rp"], repeats=2).wrt == ("theta",)


def test_no_gradient_is_zero() -> None:
    other = point(1.0, 2.0)
    (row,) = propc.compare(square, point(0.1, 0.2), estimators=["rp"], wrt=other, repeats=3, reference=torch.zeros(2))
    assert torch.equal(row["mean"], torch.zeros(2))
    assert row["significant"] is False


def test_an_argument_and_a_held_tensor_of_one_name() -> None:
    x = point(0.3)

    def outer() -> Any:
        kept = x
        return lambda x: propc.sample(Normal((kept * x).expand(ROWS), 1.0), "s")

    assert len(propc.compare(outer(), point(2.0), estimators=["rp"], repeats=2).wrt) == 2


@pytest.mark.parametrize(
    ("shape", "gradient"),
    [
        (lambda cost: cost, 2.0),
        (lambda cost: cost.mean(), 2.0),
        (lambda cost: {"a": cost, "b": 3 * cost}, 8.0),
        (lambda cost: (cost, cost.mean(), cost.unsqueeze(-1).expand(-1, 2).detach(), "text"), 4.0),
    ],
)
def test_costs(shape: Any, gradient: float) -> None:
    def program(theta: Tensor) -> Any:
        return shape(2 * propc.sample(Normal(theta.expand(ROWS), 1.0), "x"))

    (row,) = propc.compare(program, point(0.4), estimators=["rp"], repeats=3)
    assert float(row["mean"]) == pytest.approx(gradient)


def test_labels() -> None:
    def by_family(site: Any) -> str:
        return "rp"

    estimators = ["rp", "rp", propc.estimator("tp", weights="past"), {"x*": "lr"}, by_family, propc.LikelihoodRatio]
    found = propc.compare(square, point(0.1, 0.2), estimators=estimators, repeats=2)
    labels = ["rp", "rp (2)", "tp(weights='past')", "x*: lr", "by_family", "lr"]
    assert [row["estimator"] for row in found] == labels
    assert len(found) == 6
    found = propc.compare(square, point(0.1, 0.2), estimators={"mine": {"x": "lr"}, "rp": "rp"}, repeats=2)
    assert [row["estimator"] for row in found.rows] == ["mine", "rp"]


# -- nothing of the user's is changed -----------------------------------------------------------


def test_random_states_and_gradients() -> None:
    theta = point(0.1, 0.2)
    theta.grad = torch.ones(2)

    @propc.opaque
    def box(x: Tensor) -> Tensor:
        return x + random.random() + numpy.random.rand()

    def states() -> Any:
        return torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()

    before = states()
    propc.compare(lambda theta: box(square(theta)), theta, estimators=["lr"], repeats=3)
    propc.signal_to_noise(square, theta, repeats=3)
    assert states() == before
    assert torch.equal(theta.grad, torch.ones(2))
    assert theta.requires_grad


def test_the_state_of_estimators() -> None:
    compiled = propc.compile(square, estimator=propc.estimator("lr", baseline="moving_average"))
    theta = point(0.1, 0.2)
    compiled(theta)
    before = {name: value.clone() for name, value in compiled.state_dict().items()}
    propc.compare(compiled, theta, estimators=["lr", propc.estimator("lr", baseline="moving_average")], repeats=3)
    propc.signal_to_noise(compiled, theta, repeats=3)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in compiled.state_dict().items())


class Normalized(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.unsqueeze(-1) * torch.arange(1.0, 4.0))[..., 0]
        return propc.sample(Normal(self.layer(normed), 1.0), "z").square().sum(-1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_buffers_and_the_training_mode(norm: Any, training: bool) -> None:
    model, x = Normalized(norm(3, track_running_stats=True)).train(training), torch.randn(ROWS, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = propc.compare(model, x, estimators=["rp"], repeats=3)
    assert found["rp"]["error"] == ""
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training is training
    assert type(model) is Normalized


def test_arguments_that_are_written_into() -> None:
    def shifted(theta: Tensor, x: Tensor) -> Tensor:
        x.add_(1.0)
        return propc.sample(Normal(theta.expand(ROWS), 1.0), "s") * x

    x = torch.zeros(ROWS)
    found = propc.compare(shifted, point(0.3), x, estimators=["rp"], repeats=3)
    assert float(found["rp"]["mean"]) == pytest.approx(1.0)
    assert torch.equal(x, torch.zeros(ROWS))


def test_tensors_are_put_back() -> None:
    written, kept = torch.ones(3), torch.ones(2)
    originals = Originals([written, kept])
    for _ in range(2):
        written.add_(1)
        originals.put_back()
        assert torch.equal(written, torch.ones(3))


def test_in_a_region_without_gradients() -> None:
    with torch.no_grad():
        (row,) = propc.compare(square, point(0.1, 0.2), estimators=["rp"], repeats=3)
    assert row["variance"] > 0


# -- seeds --------------------------------------------------------------------------------------


def test_the_seed_alone_decides() -> None:
    theta = point(0.1, 0.2)

    def mean(estimators: list[str], seed: int = 0) -> Tensor:
        found: Tensor = propc.compare(square, theta, estimators=estimators, repeats=5, seed=seed, reference="rp")["lr"][
            "mean"
        ]
        return found

    one = mean(["lr"])
    torch.manual_seed(7)
    assert torch.equal(mean(["rp", "lr", "tp"]), one)
    assert not torch.equal(mean(["lr"], seed=1), one)


def test_estimators_take_turns() -> None:
    order: list[str] = []
    theta = point(0.1)

    def program(name: str) -> Any:
        return lambda: (order.append(name), theta.square())[1]

    situation = Situation((), {}, {"theta": theta}, (), False, Originals(()))
    candidates = [Candidate(name, program(name)) for name in "abc"]
    with situation.undisturbed():
        interleave(candidates, situation, range(WARMUP + 4))
    counted = "".join(order[3 * WARMUP :])
    assert [sorted(counted[i : i + 3]) for i in range(0, 12, 3)] == [list("abc")] * 4
    assert {counted[i] for i in range(0, 12, 3)} == set("abc")
    assert all(len(candidate.seconds) == candidate.moments[0].count == 4 for candidate in candidates)


# -- what does not work -------------------------------------------------------------------------


def test_an_estimator_that_cannot_work_has_a_row() -> None:
    found = propc.compare(coin, point(0.2), estimators=["rp", "lr"], repeats=3)
    row = found["rp"]
    assert "at site 'z'" in row["error"]
    assert "test_compare.py" in row["error"]
    assert row["mean"] is None
    assert found["lr"]["error"] == ""
    assert f"rp: {row['error']}" in str(found)


def test_one_that_fails_on_the_way_has_a_row_too() -> None:
    @propc.opaque
    def fails(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 12:
            raise RuntimeError("the simulator broke")
        return x.square()

    calls: list[int] = []

    def program(theta: Tensor) -> Tensor:
        return fails(propc.sample(Normal(theta.expand(ROWS), 1.0), "x"))

    with pytest.raises(EstimatorError, match=r"none of the estimators .*\n  lr: RuntimeError: the simulator broke"):
        propc.compare(program, point(0.2), estimators=["lr"], repeats=100)


def test_none_works() -> None:
    with pytest.raises(EstimatorError, match=r"(?s)none of the estimators works.*rp: at site 'z'.*gr: at site 'z'"):
        propc.compare(coin, point(0.2), estimators=["rp", "gr"], repeats=3)
    with pytest.raises(EstimatorError, match="missing a required argument"):
        propc.compare(coin, estimators=["lr"], repeats=3)
    with pytest.raises(EstimatorError, match="returns no cost"):
        propc.compare(lambda theta: theta.expand(2, 2) + 0, point(0.2), estimators=["rp"], repeats=3)


def test_gradients_that_are_not_finite() -> None:
    def edge(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(ROWS), 1.0), "x")
        return (x - x.detach()).abs().sqrt() + x

    found = propc.compare(edge, point(0.2), estimators=["rp", "lr"], repeats=3, reference=1.0)
    assert found["rp"]["error"] == "the gradient was not finite in 3 of 3 steps"
    assert found["rp"]["significant"] is None
    assert found["lr"]["significant"] is not None
    str(found)
    found.plot()


def test_no_reference() -> None:
    class Drawn(Distribution):
        """Nothing is known of it."""

        arg_constraints: ClassVar[dict[str, Any]] = {}

        def __init__(self, loc: Tensor) -> None:
            self.loc = loc
            super().__init__(loc.shape)

        def sample(self, sample_shape: Any = ()) -> Tensor:
            return self.loc.detach() + torch.randn(self._extended_shape(sample_shape))

    def unknown(theta: Tensor) -> Tensor:
        return propc.sample(Drawn(theta.expand(ROWS)), "x") * theta

    @propc.register_estimator("knows-nothing")
    @dataclass(frozen=True)
    class KnowsNothing(propc.Estimator):
        def propagator(self, site: Any) -> tuple[propc.Propagator, str]:
            return propc.propagators.Plain(), "asked for"

    found = propc.compare(unknown, point(0.2), estimators=["knows-nothing"], repeats=3)
    assert (found.reference, found.gradient) == ("", None)
    assert "none, no unbiased estimator works here" in str(found)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"estimators": ["rq"]}, PropcValueError, "unknown estimator 'rq'. Did you mean 'rp'"),
        ({"estimators": "rp"}, PropcTypeError, "estimators= takes several; got 'rp'. Give a list"),
        ({"estimators": 3}, PropcTypeError, "estimators= takes several"),
        ({"estimators": []}, PropcValueError, "estimators= is empty"),
        ({"repeats": 1}, PropcValueError, "repeats=1. A variance needs two"),
        ({"repeats": 2.5}, PropcValueError, "repeats=2.5"),
        ({"wrt": "thet"}, PropcValueError, "wrt='thet' is no tensor of this call. Did you mean 'theta'"),
        ({"wrt": "x"}, PropcValueError, "wrt='x' wants no gradient"),
        ({"wrt": torch.zeros(2)}, PropcValueError, "a tensor that wants no gradient"),
        ({"wrt": 3}, PropcTypeError, "wrt= takes nothing, a name, a tensor, or a list of these; got int"),
        ({"reference": "lo"}, PropcValueError, "unknown estimator 'lo'"),
        ({"reference": torch.zeros(3)}, PropcValueError, "gives shape"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], words: str) -> None:
    def program(theta: Tensor, x: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(ROWS), 1.0), "s") * x

    arguments: dict[str, Any] = {"estimators": ["rp"], "repeats": 2, "wrt": "theta", **change}
    with pytest.raises(error, match=words):
        propc.compare(program, point(0.2), torch.ones(ROWS), **arguments)


def test_bad_programs() -> None:
    with pytest.raises(PropcTypeError, match="a function or a module; got the class Model"):
        propc.compare(Model, torch.ones(2, 3), estimators=["rp"])
    with pytest.raises(PropcTypeError, match=r"takes a function or an nn\.Module; got 3"):
        propc.compare(3, estimators=["rp"])
    with pytest.raises(PropcValueError, match="this call reads none"):
        propc.compare(coin, torch.tensor(0.2), estimators=["lr"])


# -- showing ------------------------------------------------------------------------------------


AGREED = "300 steps of lr agree, and would have shown a difference of 6.1%"


def shown() -> propc.Comparison:
    """A comparison with figures that are not measured."""
    row = {"mean": torch.tensor(0.48), "bias": 0.02, "stderr": 0.012, "bias_se": 1.7, "worst": "theta", "error": ""}
    row |= {"missed": 0.06, "missed_share": 0.12}
    rows = [
        {"estimator": "rp", **row, "significant": False, "variance": 1.23e-4, "time": 2.5e-4, "efficiency": 3.25e7},
        {"estimator": "lr", **row, "significant": True, "variance": 2.0, "time": 4.5e-4, "efficiency": 1.1e3},
        {"estimator": "arm", **dict.fromkeys(row), "significant": None, "variance": None, "time": None},
    ]
    rows[2] |= {"efficiency": None, "error": "at site 'x': no rule for Normal."}
    return propc.Comparison("model", ("theta",), 100, "exact, by enumeration", torch.tensor(0.5), 2.8, 1, rows, AGREED)


def test_golden(golden: Any) -> None:
    golden("comparison.txt", str(shown()))


def test_several_coordinates_and_many_names() -> None:
    found = propc.compare(square, point(0.3, 0.4), estimators=["rp"], repeats=20)
    assert "theta, 20 repeats" in str(found)
    assert "the length is shown" in str(found)
    many = [point(0.1) for _ in range(7)]
    found = propc.compare(
        lambda many: propc.sample(Normal(sum(many).expand(ROWS), 1.0), "x"), many, estimators=["rp"], repeats=2
    )
    assert "many[0], many[1], many[2], many[3], 3 more" in str(found)


def test_notebooks() -> None:
    text = shown()._repr_html_()
    assert "<table>" in text
    assert "x&#x27;: no rule" in text


def test_lookup() -> None:
    assert shown()["lr"]["significant"] is True
    with pytest.raises(PropcValueError, match=r"no estimator 'lrr' was compared\. Did you mean 'lr'"):
        shown()["lrr"]


def test_plot(tmp_path: Any) -> None:
    figure = shown().plot()
    assert [axis.get_title() for axis in figure.axes][:2] == ["bias, in standard errors", "variance"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["rp", "lr"]
    assert [bar.get_width() for bar in figure.axes[1].patches] == [1.23e-4, 2.0]
    assert [text.get_text() for text in figure.axes[2].texts] == ["0.25", "0.45"]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    figure.savefig(tmp_path / "plot.png")


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PropcValueError, match=r"plot\(\) needs matplotlib, which is not installed. Run 'pip install"):
        shown().plot()


# -- parts --------------------------------------------------------------------------------------


def test_moments() -> None:
    values = torch.randn(50, 3) + 1e6
    moments = Moments.like(values[0])
    for value in values:
        moments.add(value)
    assert torch.allclose(moments.mean, values.mean(0), rtol=1e-14)
    assert torch.allclose(moments.variance, values.var(0), rtol=1e-9)


def test_moments_of_what_is_no_plain_tensor() -> None:
    moments = Moments.like(torch.zeros(3).to_sparse(), count=2)
    moments.add(torch.tensor([0.0, 3.0, 0.0]).to_sparse())
    moments.add(None)
    assert torch.allclose(moments.mean, torch.tensor([0.0, 0.75, 0.0]))
    assert torch.allclose(moments.variance, torch.tensor([0.0, 2.25, 0.0]))
    values = torch.randn(20, 2, dtype=torch.complex128)
    pairs = Moments.like(values[0])
    for value in values:
        pairs.add(value)
    assert torch.allclose(torch.view_as_complex(pairs.mean), values.mean(0))
    assert torch.allclose(pairs.variance.sum(-1), values.var(0))


def test_complex_parameters() -> None:
    def program(w: Tensor) -> Tensor:
        return propc.sample(Normal(w.abs().square().expand(ROWS), 1.0), "x").sin()

    w = torch.tensor([1 + 2j], requires_grad=True)
    found = propc.compare(program, w, estimators=["rp", "lr"], repeats=50)
    assert found.gradient.is_complex()
    assert found.gradient.shape == found["rp"]["mean"].shape == (1,)
    assert not found["rp"]["significant"]
    str(found)


def test_mean_cost_of_mixed_types() -> None:
    assert float(mean_cost({"a": torch.ones(3, dtype=torch.float32), "b": torch.tensor(2.0)})) == 3.0


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    theta = torch.tensor([0.3, -0.4], device="cuda", requires_grad=True)
    before, here = torch.cuda.get_rng_state(), torch.get_rng_state()
    found = propc.compare(square, theta, estimators=["rp", "lr", "a-fifth-too-much"], repeats=400)
    assert [row["significant"] for row in found.rows] == [False, False, True]
    assert set(propc.signal_to_noise(square, theta, repeats=5)) == {"x"}
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), here)


@pytest.mark.filterwarnings("ignore:.*comparison, rounding:propc.PropcWarning")
def test_a_jump_in_a_factor_is_seen() -> None:
    """The reference does not take the pathwise gradient where a truth is multiplied."""

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(500), 1.0), "x")
        return x.sin() * (x > 0.5)

    rows = propc.compare(program, torch.tensor(0.4, requires_grad=True), estimators=["rp", "lr"], repeats=60).rows
    assert [row["significant"] for row in rows] == [True, False]

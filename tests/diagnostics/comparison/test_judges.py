"""References: what two unlike unbiased estimators agree on, and nothing where they do not."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Exponential, Independent, Normal, Uniform

import propc
from propc.diagnostics.comparison.distance import between
from propc.diagnostics.comparison.judges import at_work, first_opinions, second_opinions
from propc.diagnostics.comparison.reference import Reference, pooled
from propc.diagnostics.comparison.steps import Candidate, Originals, Situation

ROWS = 200


class Shifted(Distribution):
    """Draws that are right along a path, with a log_prob whose score is half as large as it ought to be."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + torch.randn(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.loc).square() / 4


def leap(loc: Tensor) -> Tensor:
    """E f(x), x ~ N(loc, .3²), with a jump of 2 at 1: the gradient is 2 loc + 2 p(1)."""
    x = propc.sample(Normal(loc.expand(ROWS), 0.3), "x")
    return torch.where(x > 1, x.square() + 2, x.square())


def two_laws(width: int) -> Any:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Independent(Bernoulli(logits=theta.expand(ROWS, width)), 1), "z")
        return propc.sample(Normal(z.mean(-1) * theta, 1.0), "x").square()

    return program


def judged(program: Any, theta: Tensor) -> tuple[Candidate, list[Candidate], Situation]:
    """The first opinion with the most to say, the second ones, and the call."""
    compiled = propc.compile(program)
    situation = Situation((theta,), {}, {"theta": theta}, (), False, Originals(()))
    first = first_opinions(compiled, situation)[0]
    return first, list(second_opinions(compiled, situation, first)), situation


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore::propc.PropcWarning")
def test_at_a_jump_the_score_is_not_called_biased() -> None:
    loc = torch.tensor(0.8, requires_grad=True)
    found = propc.compare(leap, loc, estimators=["rp", "lr", "mvd"])
    exact = 1.6 + 2 * float(Normal(0.8, 0.3).log_prob(torch.tensor(1.0)).exp())
    for name in ("lr", "mvd"):
        assert not found[name]["significant"]
        assert abs(float(found[name]["mean"]) - exact) < 5 * (found[name]["variance"] / found.repeats) ** 0.5
    if found.reference:  # by judges that know of the jump
        assert found["rp"]["significant"]
        assert "rp" not in found.reference + found.agreement
    else:
        assert found.agreement.startswith("'rp' and 'lr' disagree by ")


@pytest.mark.statistical
def test_two_that_disagree_are_named_and_nobody_is_biased() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Independent(Shifted(theta.expand(ROWS, 2)), 1), "x").square().sum(-1)

    theta = torch.tensor([1.0, 0.0], requires_grad=True)
    found = propc.compare(program, theta, estimators=["rp", "lr", propc.estimator("lr", baseline=lambda c: -c)])
    assert (found.reference, found.gradient) == ("", None)
    assert [row["significant"] for row in found.rows] == [None, None, None]
    assert all(math.isnan(row[key]) for row in found.rows for key in ("bias", "bias_se", "missed", "missed_share"))
    text = str(found)
    assert "reference: none; 'rp' and 'lr' disagree by " in text
    assert " standard errors at theta[0], so nobody is called biased" in text
    found.plot()
    given = propc.compare(program, theta, estimators=["rp", "lr"], reference=2 * theta.detach())
    assert [row["significant"] for row in given.rows] == [False, True]
    assert given.agreement == ""


def test_who_confirms_whom() -> None:
    theta = torch.tensor(0.4, requires_grad=True)
    first, others, _ = judged(two_laws(15), theta)
    assert (first.label, [other.label for other in others]) == ("lr and rp", ["lr and mvd", "lr and lr(baseline=None)"])
    _, others, situation = judged(two_laws(20), theta)
    assert [at_work(other, situation) for other in others] == [
        {"z": "lr(baseline=None)", "x": "lr"}  # alternatives are too many
    ]

    def coins(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta.expand(ROWS)), "z") + theta

    first, others, _ = judged(coins, theta)
    assert (first.label, others[0].label) == ("enumerate", "lr")

    def waits(theta: Tensor) -> Tensor:
        return torch.round(propc.sample(Exponential(theta.expand(ROWS)), "x"))

    first, others, _ = judged(waits, theta)
    assert (first.label, [other.label for other in others]) == ("lr", ["mvd", "lr(baseline=None)"])


@pytest.mark.statistical
def test_an_agreement_says_how_well() -> None:
    theta = torch.tensor([0.3, 0.8], requires_grad=True)
    found = propc.compare(
        lambda theta: propc.sample(Normal(theta.expand(ROWS, 2), 1.0), "x").square().sum(-1), theta, estimators=["rp"]
    )
    assert found.reference == "1000 steps of rp"
    assert found.agreement.startswith("300 steps of lr agree, and would have shown a difference of ")
    assert f"reference: {found.reference}; {found.agreement}" in str(found)
    assert torch.allclose(found.gradient, torch.tensor([0.6, 1.6]), atol=0.03)


def test_the_reference_is_exact_where_it_can_be() -> None:
    def coins(theta: Tensor) -> Tensor:
        return (propc.sample(Bernoulli(logits=theta.expand(ROWS)), "z") - 0.3).square() * theta

    theta = torch.tensor(0.4, requires_grad=True)
    found = propc.compare(coins, theta, estimators=["lr"], repeats=30)
    p = theta.sigmoid()
    (exact,) = torch.autograd.grad((p * 0.49 + (1 - p) * 0.09) * theta, theta)
    assert abs(float(found.gradient - exact)) < 1e-12
    assert found.agreement.startswith("90 steps of lr agree")


def test_one_judge_alone_says_so() -> None:
    def ends_move(theta: Tensor) -> Tensor:
        return propc.sample(Uniform(0.0, theta.expand(ROWS)), "x")  # no score, no measure

    found = propc.compare(ends_move, torch.tensor(1.5, requires_grad=True), estimators=["rp"], repeats=5)
    assert found.reference == "50 steps of rp"
    assert found.agreement == "no second unbiased estimator works here to confirm it"


def test_what_is_not_random_needs_no_second() -> None:
    theta = torch.tensor(0.4, requires_grad=True)
    for program in (lambda theta: theta.square(), lambda theta: (theta + torch.randn(ROWS)).square()):
        assert propc.compare(program, theta, estimators=["rp"], repeats=5).agreement == ""


def test_pooled_by_inverse_variance() -> None:
    def of(mean: list[float], error: list[float]) -> Reference:
        return Reference("it", (torch.tensor(mean),), (torch.tensor(error),))

    both = pooled(of([1.0, 2.0], [0.01, 0.02]), of([2.0, 4.0], [0.03, 0.06]))
    assert torch.allclose(both.mean[0], torch.tensor([1.25, 2.5]))
    assert torch.allclose(both.error[0], torch.tensor([0.0075, 0.015]))
    exact = pooled(of([1.0, 2.0], [0.0, 0.0]), of([2.0, 4.0], [0.03, 0.06]))
    assert torch.equal(exact.mean[0], torch.tensor([1.0, 2.0]))
    assert not exact.error[0].any()


def test_distances() -> None:
    theta = torch.zeros(2, 2)
    mine = Reference("", (torch.tensor([[1.0, 2.0], [3.0, 4.5]]),), (torch.full((2, 2), 0.005),))
    other = Reference("", (torch.tensor([[1.0, 2.0], [3.0, 4.0]]),), (torch.full((2, 2), 0.005),))
    apart = between({"theta": theta, "none": torch.zeros(0)}, mine, other)
    assert apart.length == pytest.approx(0.5)
    assert apart.chance == pytest.approx(0.2)
    assert apart.worst == pytest.approx(5.0)
    assert apart.place == "theta[1, 1]"
    assert apart.share(2.0) == pytest.approx(0.05)  # two standard errors of 0.1, over 4

"""The gate of a resample node against the formulas of docs/estimators.md, written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.errors import EstimatorError
from propc.ir import Resample, Source, TensorType
from propc.passes import GaussianShaping
from propc.runtime.autograd.gaussian_refit import refit

B, D = 50, 3
THETA = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
MIX = torch.tensor([[0.9, 0.2, 0.0], [-0.3, 1.1, 0.4], [0.1, 0.0, 0.7]], dtype=torch.float64)


def cost_of(x: Tensor) -> Tensor:
    return torch.cos(x).sum(-1) + x.prod(-1) + (x @ MIX.to(x)).square().sum(-1)


def parameter(dtype: torch.dtype = torch.float64) -> Tensor:
    return THETA.to(dtype).clone().requires_grad_()


# ---- by hand --------------------------------------------------------------------------


def moments(x: Tensor, shrinkage: float = 0.0, jitter: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and covariance as the estimator takes them."""
    covariance = torch.cov(x.T).reshape(x.shape[1], x.shape[1])
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / x.shape[1] * eye
    return x.mean(0), shrunk + jitter * eye


class ByHand:
    """One node: detached leaves μ and Σ, draws, and what the sites before it receive."""

    def __init__(self, x: Tensor, shrinkage: float = 0.0) -> None:
        self.x, self.shrinkage = x, shrinkage
        mean = x.detach().mean(0)
        covariance = torch.cov(x.detach().T).reshape(x.shape[1], x.shape[1])
        self.mean, self.covariance = mean.requires_grad_(), covariance.requires_grad_()
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        scale = self.covariance.trace() / x.shape[1]
        shrunk = (1 - shrinkage) * self.covariance + shrinkage * scale * eye + 1e-6 * eye
        self.draws = self.mean + torch.randn_like(x) @ torch.linalg.cholesky(shrunk).T

    def gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        of_mean, of_covariance = torch.autograd.grad(loss, (self.mean, self.covariance), retain_graph=True)
        return of_mean, of_covariance

    def score_part(self, loss: Tensor, log_prob: Tensor) -> Tensor:
        """The surrogate whose gradient is Σ_i g_i/B ∇ log p_i."""
        of_mean, of_covariance = self.gradients(loss)
        x = self.x.detach()
        deviation = x - x.mean(0)
        biased = deviation.T @ deviation / len(x)
        outer = torch.einsum("ia,ib->iab", deviation, deviation) - biased
        shaped = deviation @ of_mean + torch.einsum("ab,iab->i", of_covariance, outer)
        return (shaped / len(x) * log_prob).sum()

    def path_part(self, loss: Tensor) -> Tensor:
        """The surrogate whose gradient goes through μ and Σ of x."""
        of_mean, of_covariance = self.gradients(loss)
        x = self.x
        return (of_mean * x.mean(0)).sum() + (of_covariance * torch.cov(x.T).reshape(of_covariance.shape)).sum()


def normal(loc: Tensor, scale: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A reparameterized draw, and log p of a fixed value."""
    x = loc + scale * torch.randn_like(loc)
    return x, lambda value: Normal(loc, scale).log_prob(value.detach()).sum(-1)


def gradient(fn: Callable[..., Any], *args: Any, weights: Tensor | None = None, **options: Any) -> Tensor:
    theta = parameter()
    compiled = propc.compile(fn, **options)
    torch.manual_seed(3)
    costs = compiled(theta, *args)
    loss = costs.mean() if weights is None else (weights * costs).sum()
    return torch.autograd.grad(loss, theta)[0]


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# ---- one node -------------------------------------------------------------------------


def one(theta: Tensor) -> Tensor:
    return cost_of(propc.sample(Normal(torch.sin(theta).expand(B, D), 0.8), "x"))


@pytest.mark.parametrize("shrinkage", [None, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_shaped_gradient(shrinkage: float | None, weighted: bool) -> None:
    weights = torch.rand(B) if weighted else torch.full((B,), 1 / B)
    found = gradient(one, weights=weights, estimator=propc.estimator("gs", shrinkage=shrinkage))
    theta = parameter()
    torch.manual_seed(3)
    x, log_prob = normal(torch.sin(theta).expand(B, D), 0.8)
    node = ByHand(x, shrinkage or 0.0)
    loss = (weights * cost_of(node.draws)).sum()
    (expected,) = torch.autograd.grad(node.score_part(loss, log_prob(x)), theta)
    assert_close(found, expected)
    assert found.abs().min() > 1e-3


@pytest.mark.parametrize("shrinkage", [None, 0.3])
def test_pathwise_gradient_is_that_of_autograd(shrinkage: float | None) -> None:
    found = gradient(one, estimator=propc.estimator("gr", shrinkage=shrinkage))
    theta = parameter()
    torch.manual_seed(3)
    x, _ = normal(torch.sin(theta).expand(B, D), 0.8)
    mean, covariance = moments(x, shrinkage or 0.0)
    draws = mean + torch.randn_like(x) @ torch.linalg.cholesky(covariance).T
    (expected,) = torch.autograd.grad(cost_of(draws).mean(), theta)
    assert_close(found, expected)


def test_the_value_is_the_cost_of_the_draws() -> None:
    torch.manual_seed(3)
    costs = propc.compile(one, estimator="gs")(parameter())
    torch.manual_seed(3)
    x, _ = normal(torch.sin(THETA).expand(B, D), 0.8)
    assert_close(costs.detach(), cost_of(ByHand(x).draws).detach())


def test_shaped_messages_have_mean_zero() -> None:
    x = torch.randn(B, D)
    token = torch.zeros(B, requires_grad=True)
    (draws,) = refit(node(x), [x], [token], True)
    (message,) = torch.autograd.grad(cost_of(draws).mean(), token)
    assert abs(message.sum()) < 1e-12
    assert message.abs().max() > 1e-3


def node(*values: Tensor, **options: Any) -> Resample:
    types = tuple(TensorType(tuple(v.shape), v.dtype, v.device) for v in values)
    return Resample(name="x.resample", outputs=types, where=Source("model.py", 7), **options)


# ---- several sites and nodes ----------------------------------------------------------


def pair(theta: Tensor) -> Tensor:
    z = propc.sample(Normal(theta.expand(B, D), 0.5), "z")
    x = propc.sample(Normal(torch.sin(z @ MIX) + theta, 0.8), "x")
    return cost_of(x)


def pair_by_hand(z_by: str, x_by: str) -> Tensor:
    theta = parameter()
    torch.manual_seed(3)
    z, log_z = normal(theta.expand(B, D), 0.5)
    if z_by == "score":
        z = z.detach()
    loc = torch.sin(z @ MIX) + theta
    x, log_x = normal(loc, 0.8)
    if x_by == "score":
        x = x.detach()
    fitted = ByHand(x)
    loss = cost_of(fitted.draws).mean()
    parts = []
    if x_by == "path":
        parts.append(fitted.path_part(loss))
    else:
        parts.append(fitted.score_part(loss, log_x(x)))
    if z_by == "score":
        parts.append(fitted.score_part(loss, log_z(z)))
    return torch.autograd.grad(sum(parts), theta)[0]


SITES = [("gs", "gs"), ("gr", "gs"), ("gs", "gr"), ("gr", "gr")]


@pytest.mark.parametrize(("first", "second"), SITES)
def test_a_chain_of_score_and_pathwise_sites(first: str, second: str) -> None:
    kinds = {"gs": "score", "gr": "path"}
    found = gradient(pair, estimator={"z": first, "x": second})
    assert_close(found, pair_by_hand(kinds[first], kinds[second]))


def test_a_site_that_does_not_take_part_may_be_pathwise() -> None:
    shaping = GaussianShaping(at="x", sites="x")
    assert_close(gradient(pair, estimator={"z": "rp", "x": "lr"}, passes=[shaping]), pair_by_hand("path", "score"))


def test_several_nodes_in_a_row() -> None:
    found = gradient(pair, estimator="lr", passes=[GaussianShaping(at="[zx]")])
    theta = parameter()
    torch.manual_seed(3)
    z, log_z = normal(theta.expand(B, D), 0.5)
    first = ByHand(z.detach())
    x, log_x = normal(torch.sin(first.draws @ MIX) + theta, 0.8)
    second = ByHand(x.detach())
    behind = second.score_part(cost_of(second.draws).mean(), log_x(x))
    (direct,) = torch.autograd.grad(behind, theta, retain_graph=True)
    (before,) = torch.autograd.grad(first.score_part(behind, log_z(z)), theta)
    assert_close(found, direct + before)
    assert before.abs().min() > 1e-4


def states(theta: Tensor) -> Tensor:
    """A dictionary of states, one of them a matrix a row."""
    state = {
        "position": propc.sample(Normal(theta.expand(B, D), 0.5), "position"),
        "table": propc.sample(Normal(theta[:2].sin().expand(B, 2, 2), 0.7), "table"),
    }
    return cost_of(state["position"]) * state["table"].square().sum((1, 2))


def test_states_are_fitted_jointly() -> None:
    found = gradient(states, estimator="lr", passes=[GaussianShaping(at=["position", "table"])])
    theta = parameter()
    torch.manual_seed(3)
    position, log_p = normal(theta.expand(B, D), 0.5)
    table, log_t = normal(theta[:2].sin().expand(B, 2, 2), 0.7)
    joint = ByHand(torch.cat([position, table.flatten(1)], 1).detach())
    drawn = joint.draws
    loss = (cost_of(drawn[:, :D]) * drawn[:, D:].square().sum(1)).mean()
    log_prob = log_p(position) + log_t(table).sum(-1)
    assert_close(found, torch.autograd.grad(joint.score_part(loss, log_prob), theta)[0])
    assert_close(gradient(states, estimator="gs"), found)


def bypass(theta: Tensor) -> Tensor:
    """One cost sees z through the node and round it."""
    z = propc.sample(Normal(theta.expand(B, D), 0.5), "z")
    y = propc.node(z @ MIX, "y")
    return cost_of(y) + 2 * torch.cos(z).sum(-1) * cost_of(y)


def test_a_way_round_the_node_sends_the_cost_itself() -> None:
    lr = propc.estimator("lr", baseline=None)
    found = gradient(bypass, estimator=lr, passes=[GaussianShaping(at="y")])
    theta = parameter()
    torch.manual_seed(3)
    z, log_z = normal(theta.expand(B, D), 0.5)
    z = z.detach()
    fitted = ByHand(z @ MIX)
    costs = torch.stack([cost_of(fitted.draws), 2 * torch.cos(z).sum(-1) * cost_of(fitted.draws)])
    seen = costs[1].detach() / B  # the first term does not depend on z but through the node
    surrogate = fitted.score_part(costs.sum(0).mean(), log_z(z)) + (seen * log_z(z)).sum()
    assert_close(found, torch.autograd.grad(surrogate, theta)[0])


def direct(theta: Tensor) -> Tensor:
    """The parameter also reaches the node, and the cost, without a site."""
    x = propc.sample(Normal(theta.expand(B, D), 0.5), "x")
    y = propc.node(x * theta.exp(), "y")
    return cost_of(y) + theta.square().sum()


def test_paths_of_parameters_go_through_the_moments() -> None:
    found = gradient(direct, estimator="lr", passes=[GaussianShaping(at="y")])
    theta = parameter()
    torch.manual_seed(3)
    x, log_x = normal(theta.expand(B, D), 0.5)
    fitted = ByHand(x.detach() * theta.exp())
    loss = cost_of(fitted.draws).mean()
    surrogate = fitted.score_part(loss, log_x(x)) + fitted.path_part(loss) + theta.square().sum()
    assert_close(found, torch.autograd.grad(surrogate, theta)[0])


@pytest.mark.parametrize("estimator", ["gs", "gr", {"z": "gr", "x": "gs"}])
def test_by_messages_the_same(estimator: Any) -> None:
    """A propagator at the cost makes the reverse pass visit nodes one by one, the resample node among them."""

    def program(theta: Tensor, rule: str | None) -> Tensor:
        z = propc.sample(Normal(theta.expand(B, D), 0.5), "z")
        x = propc.sample(Normal(torch.sin(z @ MIX) + theta, 0.8), "x")
        return propc.cost(cost_of(x), "c", propagator=rule)

    assert propc.compile(program, estimator=estimator).graph(parameter(), "loss").general
    found = gradient(program, "loss", estimator=estimator)
    assert_close(found, gradient(program, None, estimator=estimator))
    assert found.abs().min() > 1e-3


# ---- precision, derivatives, bad input ------------------------------------------------


@pytest.mark.parametrize("estimator", ["gs", "gs-tp", "gr"])
def test_float32(estimator: str) -> None:
    """In half the digits the same gradient, from the same noise."""
    found = []
    for dtype in (torch.float32, torch.float64):
        theta = parameter(dtype)
        x = torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
        noise = torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        tokens = [torch.zeros(B, dtype=dtype, requires_grad=True)] if estimator != "gr" else []
        value = x + theta
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda _, noise=noise: noise)
            (draws,) = refit(node(value), [value], tokens, True)
        assert draws.dtype == dtype
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(cost_of(draws).sum(), [theta, *tokens])]))
    torch.testing.assert_close(found[0].double(), found[1], rtol=2e-3, atol=2e-3)
    compiled = propc.compile(one, estimator=estimator)
    (gradient,) = torch.autograd.grad(compiled(leaf := parameter(torch.float32)).mean(), leaf)
    assert gradient.dtype == torch.float32
    assert torch.isfinite(gradient).all()


def test_half_precision_and_autocast() -> None:
    """Moments are taken in float32 at least."""
    x = torch.randn(B, D, dtype=torch.bfloat16, requires_grad=True)
    token = torch.zeros(B, requires_grad=True)
    (draws,) = refit(node(x), [x], [token], True)
    assert draws.dtype == torch.bfloat16
    grads = torch.autograd.grad(draws.float().square().sum(), (x, token))
    assert grads[0].dtype == torch.bfloat16
    assert all(torch.isfinite(g).all() for g in grads)
    torch.manual_seed(1)
    single = torch.randn(B, D, dtype=torch.float32)
    found = []
    for enabled in (True, False):
        torch.manual_seed(2)
        with torch.autocast("cpu", enabled=enabled):
            found.append(refit(node(single), [single], [], True)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("shrinkage", [0.0, 0.4])
def test_pathwise_derivatives_of_every_order(shrinkage: float) -> None:
    def draws(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return refit(node(x, shrinkage=shrinkage), [x], [], True)[0]

    x = torch.randn(6, 2, requires_grad=True)
    assert torch.autograd.gradcheck(draws, x)
    assert torch.autograd.gradgradcheck(draws, x)


def test_a_graph_of_the_backward_pass_changes_no_gradient() -> None:
    """With create_graph=True moments are computed anew, under weights; first derivatives stay what they are."""
    x, token = torch.randn(B, D, requires_grad=True), torch.zeros(B, requires_grad=True)
    (draws,) = refit(node(x, shrinkage=0.2), [x], [token, torch.zeros(B)], True)
    loss = cost_of(draws).mean()
    plain = torch.autograd.grad(loss, (x, token), retain_graph=True)
    again = torch.autograd.grad(loss, (x, token), create_graph=True)
    for a, b in zip(plain, again):
        assert b.requires_grad
        assert_close(a, b.detach())


def constant(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(theta.expand(B, D), 0.5), "x")
    return cost_of(propc.node(x * torch.tensor([1.0, 1.0, 0.0]), "y"))


def test_a_covariance_that_is_not_positive_definite() -> None:
    compiled = propc.compile(constant, estimator="lr", passes=[GaussianShaping(at="y", jitter=0.0)])
    words = r"node 'y.resample' \(test_gaussian_refit.py:\d+\): the covariance of its 50 rows is not positive definite"
    with pytest.raises(EstimatorError, match=words):
        compiled(parameter())


@pytest.mark.parametrize("option", [{}, {"jitter": 0.0, "shrinkage": 0.1}])
def test_jitter_or_shrinkage_makes_it_so(option: dict[str, Any]) -> None:
    assert torch.isfinite(gradient(constant, estimator="lr", passes=[GaussianShaping(at="y", **option)])).all()


def test_a_covariance_that_is_not_finite() -> None:
    x = torch.randn(B, D)
    x[3, 1] = torch.nan
    with pytest.raises(EstimatorError, match="is not finite"):
        refit(node(x), [x], [], True)


def test_without_a_check_draws_are_nan() -> None:
    """As on a GPU after the first call: nothing is silently wrong, and nothing waits for the device."""
    x = torch.randn(B, D)
    x[:, 2] = 0.0
    good, bad = (refit(node(x, jitter=jitter), [x], [], False)[0] for jitter in (1e-6, 0.0))
    assert torch.isfinite(good).all()
    assert bad.isnan().all()


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    x = torch.randn(B, D, device="cuda", requires_grad=True)
    token = torch.zeros(B, device="cuda", requires_grad=True)
    torch.manual_seed(0)
    (draws,) = refit(node(x), [x], [token], False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        grads = torch.autograd.grad(cost_of(draws).mean(), (x, token))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(g).all() for g in grads)

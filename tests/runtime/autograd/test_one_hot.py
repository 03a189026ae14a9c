"""One-hot sites in closed form, and the draws of classes, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical

import propc
from propc.distributions.sampling import draw_detached
from propc.runtime.autograd.one_hot import score

LOGITS = torch.tensor(
    [[[0.3, -0.5, 0.8], [-0.2, 0.6, 0.1]], [[0.0, 1.2, -0.7], [0.4, 0.4, -2.0]]], dtype=torch.float64
)  # [batch, 2, 3]
MESSAGE = torch.tensor([0.7, -1.3], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_the_score_is_that_of_log_prob(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    logits = LOGITS.to(dtype).requires_grad_()
    law = OneHotCategorical(logits=logits)
    value = law.sample(shape)
    message = MESSAGE.to(dtype).expand(*shape, 2)
    token = score(len(shape) + 1, value, law.logits)
    assert not token.any()
    assert token.shape == message.shape
    (ours,) = grad(token, logits, message, retain_graph=True)
    (plain,) = grad(law.log_prob(value).sum(-1), logits, message)
    torch.testing.assert_close(ours, plain)


def test_a_class_that_cannot_come_up_has_a_score_of_zero() -> None:
    logits = LOGITS.clone()
    logits[..., 1] = -torch.inf
    logits.requires_grad_()
    value = OneHotCategorical(logits=logits.detach()).sample()
    (found,) = grad(score(1, value, logits), logits, MESSAGE)
    torch.testing.assert_close(found, MESSAGE[:, None, None] * value)


def test_the_gate_can_be_differentiated_twice() -> None:
    value = OneHotCategorical(logits=LOGITS).sample()

    def sent(message: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return grad(score(1, value, logits.log_softmax(-1)), logits, message, create_graph=True)[0]

    inputs = MESSAGE.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    assert gradcheck(sent, inputs)
    assert gradgradcheck(sent, inputs)


LAWS = {
    "one-hot": OneHotCategorical(logits=LOGITS),
    "one-hot-probs": OneHotCategorical(probs=LOGITS.softmax(-1)),
    "class": Categorical(logits=LOGITS),
    "class-probs": Categorical(probs=LOGITS.softmax(-1)),
    "independent": Independent(OneHotCategorical(logits=LOGITS), 1),
    "expanded": Categorical(logits=LOGITS).expand((4, 2, 2)),
    "bernoulli": Bernoulli(logits=LOGITS),
}


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("law", LAWS)
def test_a_seed_gives_the_draws_of_sample(law: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    found = draw_detached(LAWS[law], shape)
    torch.manual_seed(1)
    expected = LAWS[law].sample(torch.Size(shape))
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype


def test_nan_among_the_logits_is_an_error() -> None:
    logits = torch.tensor([[0.1, torch.nan]]).expand(3, 2).requires_grad_()

    def program(logits: torch.Tensor) -> torch.Tensor:
        return propc.sample(OneHotCategorical(logits=logits), "z").sum(-1)

    with pytest.raises((propc.PropcError, RuntimeError), match=r"nan|NaN"):
        propc.compile(program, estimator="lr")(logits)

"""Black boxes in plates: called once with the plates in the batch, or for each element; what is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.errors import GraphError, PropcValueError
from propc.ir import Opaque

BATCH, SAMPLES = 4, 3
DATA = torch.linspace(-1, 1, BATCH, dtype=torch.float64)
THETA = torch.tensor([0.3, -0.4], dtype=torch.float64)


class Counted:
    """A function that notes the shapes it is called with."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.shapes = function, []

    def __call__(self, *args: Any) -> Any:
        self.shapes.append([tuple(a.shape) for a in args])
        return self.function(*args)


def simulate(x: Tensor, data: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return (x.floor() * scale).sum(-1) + data, x.square()


def program(box: Callable[..., Any], estimator: Any = None, **options: Any) -> Any:
    @propc.compile(estimator=estimator or propc.estimator("lr", samples=SAMPLES), **options)
    def simulated(theta: Tensor, data: Tensor, scale: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH, 2), 1.0), "x")
        first, second = box(x, data, scale)
        return first + second.sum(-1) + theta.sum()

    return simulated


def call(compiled: Any) -> tuple[Tensor, Tensor]:
    theta, scale = THETA.clone().requires_grad_(), torch.ones(2)
    torch.manual_seed(0)
    cost = compiled(theta, DATA, scale)
    return cost, torch.autograd.grad(cost.mean(), theta)[0]


# -- the two ways -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        propc.estimator("lr", samples=SAMPLES),
        propc.estimator("lr", samples=SAMPLES, baseline=None),
        propc.estimator("rloo", samples=SAMPLES, chunk=2),
    ],
)
def test_both_ways_give_the_same(estimator: Any) -> None:
    found = [call(program(propc.opaque(simulate, plates=how), estimator)) for how in ("batch", "loop")]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(call(program(propc.opaque(simulate), estimator)), found[0])


def test_called_once_with_the_plates_in_the_batch() -> None:
    """Data are repeated alike; what has no batch is passed as it is."""
    box = Counted(simulate)
    compiled = program(propc.opaque(box), validate=False)
    call(compiled)
    assert box.shapes == [[(BATCH, 2), (BATCH,), (2,)], [(SAMPLES * BATCH, 2), (SAMPLES * BATCH,), (2,)]]  # once traced


def test_called_for_each_element() -> None:
    box = Counted(simulate)
    call(program(propc.opaque(box, plates="loop"), validate=False))
    assert box.shapes == [[(BATCH, 2), (BATCH,), (2,)]] * (1 + SAMPLES)


def test_chunks_bound_the_rows_of_a_call() -> None:
    box = Counted(simulate)
    call(program(propc.opaque(box), propc.estimator("lr", samples=5), validate=False, chunk=2))
    assert [shapes[0][0] for shapes in box.shapes] == [BATCH, 2 * BATCH, 2 * BATCH, BATCH]


def test_several_plates() -> None:
    """Two plates at once, and an argument that is in one of them alone."""

    def make(how: str) -> Any:
        box = propc.opaque(lambda z, x: (z.floor() + x).sin(), plates=how)

        @propc.compile(estimator={"z": "enumerate", "x": propc.estimator("lr", samples=SAMPLES)})
        def inside(theta: Tensor, data: Tensor, scale: Tensor) -> Tensor:
            z = propc.sample(Bernoulli(logits=theta[0].expand(BATCH)), "z")
            x = propc.sample(Normal(z * theta[1], 1.0), "x")
            return box(z, x) + data * scale[0]

        return inside

    torch.testing.assert_close(call(make("batch")), call(make("loop")))


def test_as_a_decorator_with_an_option() -> None:
    @propc.opaque(plates="loop")
    def box(x: Tensor) -> Tensor:
        return x.sin()

    assert torch.equal(box(DATA), DATA.sin())
    assert box.__name__ == "box"


def test_without_a_batch_in_front_each_element_is_called() -> None:
    """The mean over the batch is one number for each element: it can only be looped."""

    @propc.compile(estimator=propc.estimator("lr", samples=200))
    def shared(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta), "z")
        return propc.opaque(lambda z: z.sum().square())(z)

    theta = THETA.clone().requires_grad_()
    graph = shared.graph(theta)
    (box,) = graph.of(Opaque)
    assert not graph.folds(box)
    assert torch.isfinite(torch.autograd.grad(shared(theta), theta)[0]).all()


def test_common_noise_is_common_in_the_box() -> None:
    """Noise that is drawn in a box: the same in each element of the plate, where the user wants that."""
    noise = propc.opaque(lambda x: x.detach() * 0 + torch.rand(x.shape))

    def spread(how: str) -> Tensor:
        @propc.compile(estimator=propc.estimator("lr", samples=SAMPLES, noise=how, baseline=None))
        def noisy(theta: Tensor) -> tuple[Tensor, Tensor]:
            drawn = noise(propc.sample(Normal(theta.expand(BATCH, 2), 1.0), "x")).sum(-1)
            return drawn, drawn.square()

        mean, square = noisy(THETA.clone().requires_grad_())
        return (square - mean.square()).detach()

    torch.testing.assert_close(spread("common"), torch.zeros(BATCH))
    assert (spread("independent") > 1e-6).all()


def test_the_text_says_how() -> None:
    theta, scale = THETA.clone().requires_grad_(), torch.ones(2)
    for how, words in (("batch", "plates in the batch"), ("loop", "once for each element")):
        graph = program(propc.opaque(simulate, plates=how)).graph(theta, DATA, scale)
        assert f"opaque(%x, %input.data, %input.scale), {words}" in str(graph)
        assert f"black box, {words}" in graph.to_dot()


# -- bad input ----------------------------------------------------------------------------


def test_an_unknown_way() -> None:
    with pytest.raises(PropcValueError, match=r"plates='batched'.*batch"):
        propc.opaque(simulate, plates="batched")


def refused(box: Callable[..., Any], words: str) -> None:
    with pytest.raises(GraphError, match=words) as caught:
        call(program(box))
    assert "test_black_boxes.py" in str(caught.value)


def test_the_batch_is_missing() -> None:
    @propc.opaque(plates="batch")
    def box(x: Tensor, data: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(), x

    refused(box, r'black box \'box0\' .*marked plates=\'batch\', and not all.*plates="loop"')


def test_a_result_of_another_length() -> None:
    def box(x: Tensor, data: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return x[:BATCH, 0], x

    refused(propc.opaque(box), r"black box 'box0' .*called with 12 rows, and gave a result of shape \[4\].*\"loop\"")
    assert torch.isfinite(call(program(propc.opaque(box, plates="loop")))[1]).all()


def test_a_box_that_mixes_elements() -> None:
    """The mean over all rows is another one when they are K times as many."""

    def box(x: Tensor, data: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 0] + torch.linspace(0, 1, len(x)), x

    refused(propc.opaque(box), r"'box0' .*other values for the same rows when.*all 12 rows.*than with 4.*\"loop\"")
    assert torch.isfinite(call(program(propc.opaque(box, plates="loop")))[1]).all()


@pytest.mark.parametrize("samples", [1, SAMPLES])
def test_a_box_that_mixes_rows(samples: int) -> None:
    def box(x: Tensor, data: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return (x - x.mean(0))[:, 0], x

    estimator = propc.estimator("lr", samples=samples)
    with pytest.raises(GraphError, match=r"cost 'cost.*black box 'box0'.*mixes samples of the batch"):
        call(program(propc.opaque(box, plates="loop"), estimator))
    call(program(propc.opaque(box, plates="loop"), estimator, validate=False))


def test_what_cannot_be_repeated_is_not_checked() -> None:
    """A box with random numbers of its own, or a memory."""
    count = []

    def box(x: Tensor, data: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        count.append(1)
        return x[:, 0] + len(count) * (x - x.mean(0))[:, 0], x + torch.rand(())

    for samples in (1, SAMPLES):
        call(program(propc.opaque(box), propc.estimator("lr", samples=samples)))


def test_checks_leave_random_numbers_as_they_were() -> None:
    """The second call of one that is checked, and of one that is not, draw the same."""
    found = []
    for validate in (True, False):
        compiled = program(propc.opaque(simulate), validate=validate)
        call(compiled)
        found.append(compiled(THETA, DATA, torch.ones(2)))
    torch.testing.assert_close(*found)

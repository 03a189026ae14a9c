"""The weights of inverse variance: a plain formula, the definition, and the two ways that stand in for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from propc.errors import ErrorAt
from propc.runtime.weighting import mix as mixing
from propc.runtime.weighting import mix_compiled, mix_on_cpu
from propc.runtime.weighting.mixing import Mixing
from propc.runtime.weighting.weighting import Weighting
from propc.runtime.weighting.weights import inverse_variance_weights, of_next_group

NO_ERROR = cast(ErrorAt, None)
DTYPES = (torch.float32, torch.float64)
NAN, INF = math.nan, math.inf
EDGES = st.sampled_from([0.0, -1e-12, 1e-30, 1.0, 2.0, 3e38, INF, NAN])
VARIANCES = st.one_of(EDGES, st.floats(1e-6, 1e6))
Pairs = list[tuple[float, float]]  # for each group the variances of the two parts


def plain(variances: Sequence[float]) -> list[float]:
    """1/V over the sum of all, by hand."""
    if not any(map(math.isfinite, variances)):
        return [NAN for _ in variances]
    exact = [v for v in variances if math.isfinite(v) and v <= 0]
    if exact:
        return [float(math.isfinite(v) and v <= 0) / len(exact) for v in variances]
    inverse = [1 / v if math.isfinite(v) else 0.0 for v in variances]
    return [each / sum(inverse) for each in inverse]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "variances",
    [
        (1.0, 3.0),
        (0.5, 1.0, 2.0),
        (4.0, 4.0),
        (0.0, 0.0),
        (0.0, 1.0),
        (0.0, -1e-30, 2.0),
        (INF, 1.0),
        (NAN, 1.0, 2.0),
        (INF, NAN),
        (1e-30, 1e30),
        (3e38, 3e38),
    ],
    ids=str,
)
def test_the_definition(variances: tuple[float, ...], dtype: torch.dtype) -> None:
    given = torch.tensor(variances, dtype=dtype)
    expected = torch.tensor(plain(variances), dtype=dtype)
    torch.testing.assert_close(inverse_variance_weights(given, given), expected, equal_nan=True)


def test_what_is_weighed_is_finite_too() -> None:
    """Weights from other samples leave out a part that is infinite here."""
    past, now = torch.tensor([1.0, 3.0]), torch.tensor([INF, 1.0])
    torch.testing.assert_close(inverse_variance_weights(past, now), torch.tensor([0.0, 1.0]))


def test_each_group_takes_the_weights_of_the_next() -> None:
    variances = torch.tensor([[1.0, 2.0, 3.0], [1.0, 4.0, 9.0]])
    torch.testing.assert_close(of_next_group(variances), torch.tensor([[2.0, 3.0, 1.0], [4.0, 9.0, 1.0]]))


def defined(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """The weight of the second part in each group."""
    variances = torch.tensor(pairs, dtype=dtype).T
    return inverse_variance_weights(of_next_group(variances), variances)[1]


@pytest.mark.parametrize("dtype", DTYPES)
@given(pairs=st.lists(st.tuples(VARIANCES, VARIANCES), min_size=1, max_size=4))
@example(pairs=[(3e38, 3e38)])
@example(pairs=[(1.0, 2.0), (INF, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_by_numbers_and_compiled(pairs: Pairs, dtype: torch.dtype) -> None:
    expected, groups = defined(pairs, dtype), len(pairs)
    compiled = mix_compiled._weights(torch.tensor(pairs, dtype=dtype).T)
    torch.testing.assert_close(compiled, expected, equal_nan=True)
    found = mix_on_cpu._weights_of([pair[part] for part in (0, 1) for pair in pairs], groups, dtype)
    if found is None:  # left to the definition
        assert not all(math.isfinite(v) for pair in pairs for v in pair)
    else:
        torch.testing.assert_close(torch.tensor([*found[1:], found[0]], dtype=dtype), expected)


def _spread(dtype: torch.dtype) -> Tensor:
    return torch.randn(12, 3, dtype=dtype)


PARTS = {
    "ordinary": lambda x, y: (x, 3 * y),
    "two of one variance": lambda x, y: (x, x),
    "no variance": lambda x, y: (torch.ones_like(x), 4 * torch.ones_like(y)),
    "one without": lambda x, y: (torch.ones_like(x), y),
    "infinite in a row": lambda x, y: (x.index_fill(0, torch.tensor([1]), INF), y),
    "undefined in a row": lambda x, y: (x, y.index_fill(0, torch.tensor([7]), NAN)),
    "beside zero": lambda x, y: (x + 3, y - 6),
    "small": lambda x, y: (1e-10 * x, 1e-9 * y),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("case", PARTS)
@pytest.mark.parametrize("count", [1, 2])
def test_mixtures(case: str, groups: int, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it: cotangents of two parts on one φ or two, by either way and by the definition."""
    grads = [PARTS[case](_spread(dtype), _spread(dtype)) for _ in range(count)]
    how = Weighting(weights="same") if groups == 1 else Weighting(folds=groups)
    compiled, by_numbers = mix_compiled.mix_traced(grads, groups), mix_on_cpu.mix_two(grads, groups)
    monkeypatch.setattr(mixing, "mix_two", lambda *_: None)
    expected = mixing.mix(Mixing(how, "x", NO_ERROR, {}), grads)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)  # variances are differences, which cancel
    close(compiled, expected)
    assert (by_numbers is None) == (case in ("infinite in a row", "undefined in a row"))
    if by_numbers is not None:
        close(by_numbers, expected)

"""Every rule for values in plates, against the operation on one element after the other."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from plated import SIZES, SPREADS, gradients, looped, same, segment_of, value_of, vmapping, without_rule

from propc.errors import EstimatorError
from propc.runtime.batching.table import RULES
from propc.runtime.plates.segments import lifted

_scaled = F.scaled_dot_product_attention


def check(fn, shapes, dtypes, reads, seed=0, must=None):
    """The code in plates against the loop, in values and gradients.

    Args:
        must: (name of an operation, whether it has a rule that holds; None if either will do).
    """
    if not any(reads):
        return
    plain = [value_of(shape, dtype, seed) for shape, dtype in zip(shapes, dtypes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segment, graph = segment_of(fn, plain, reads)
        run = lifted(graph, segment, reads)
        name, holds = must or ("", None)
        if holds is not None:
            assert holds == (name not in without_rule(run)), "no rule held" if holds else "a rule held"
        lead = [tuple(SIZES[name] for name in plates) for plates in reads]
        values = [value_of((*k, *s), d, seed + i) for i, (k, s, d) in enumerate(zip(lead, shapes, dtypes))]
        for _ in range(1 if must is None else 2):  # the first call is recorded
            try:
                found = run(*values)
            except EstimatorError:
                assert without_rule(run) & NO_VMAP
                return
            expected = looped(segment, reads, values)
            same(found, expected)
            same(gradients(found, values), gradients(expected, values))


TWO = set(
    "add and atan2 bitwise_and bitwise_or bitwise_xor copysign div divide eq float_power floor_divide floordiv fmax "
    "fmin fmod ge greater greater_equal gt heaviside hypot ldexp le less less_equal logaddexp logaddexp2 logical_and "
    "logical_or logical_xor lt maximum minimum mod mul multiply ne not_equal or pow radd remainder rmul rsub "
    "special_xlog1py special_xlogy sub subtract true_divide truediv xlogy xor rpow rtruediv rdiv rfloordiv rmod".split()
)
THREE = {
    "addcdiv": torch.addcdiv,
    "addcmul": torch.addcmul,
    "lerp": torch.lerp,
    "where": lambda a, b, c: torch.where(a > 0.5, b, c),
    "clamp": lambda a, b, c: torch.clamp(a, b - 0.5, c),
    "clip": lambda a, b, c: torch.clip(a, b - 0.5, c),
}
FLOORS = {  # they have no derivative
    "floor_divide": lambda a, b: torch.floor_divide(a.detach(), b.detach()),
    "floordiv": lambda a, b: a.detach() // b.detach(),
    "heaviside": lambda a, b: torch.heaviside(a.detach() - 0.5, b.detach()),
    "rfloordiv": lambda a, b: b.detach().__rfloordiv__(a.detach()),
}
ONE = {
    "clamp_max": lambda x: x.clamp_max(0.5),
    "clamp_min": lambda x: x.clamp_min(0.5),
    "mvlgamma": lambda x: torch.mvlgamma(x + 3, 2),
    "polygamma": lambda x: torch.polygamma(1, x),
}
LIMITED = ("clamp", "clip", "where")  # have rules for some shapes and plates alone
NO_VMAP = {  # torch.vmap cannot run these, or not with all arguments
    *"contiguous gru huber_loss lstm lstm_cell mse_loss rnn_relu rnn_tanh smooth_l1_loss".split()
}
WHOLE = set("and bitwise_and bitwise_not bitwise_or bitwise_xor invert or xor".split())


def called(name):
    """The operation of a name."""
    short = name.removeprefix("special_")
    places = [torch.special] if short != name else [torch, torch.Tensor, F, torch._C._nn]
    for place in places:
        if hasattr(place, short):
            return getattr(place, short)
    return lambda value, *more: getattr(value, f"__{name}__")(*more)


@dataclass(frozen=True)
class Case:
    """Calls of operations that have a rule, on arguments of some shapes; `held` where the rule holds."""

    fn: object
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...] = ()
    held: bool = True
    reads: tuple[tuple[str, ...], ...] = ()  # by default all arguments in one plate

    def kinds(self):
        return self.dtypes or (torch.float64,) * len(self.shapes)


ROW, MATRIX, CUBE = (4,), (3, 4), (2, 3, 4)
KEPT = ("float double half bfloat16 int long short bool clone contiguous detach data real").split()
ALONG = (
    "argmax argmin argsort cumprod cumsum logcumsumexp logsumexp nansum prod softmax log_softmax count_nonzero".split()
)
WHOLES = "all any amax amin mean std sum var".split()


def _lstm(batch_first):
    def run(x, h, c, *weights):
        return torch.cat(
            [part.flatten() for part in torch.lstm(x, (h, c), weights, True, 1, 0.0, True, False, batch_first)]
        )

    return run


def _gru(x, h, *weights):
    return torch.gru(x, h, weights, True, 1, 0.0, True, False, False)[0]


def _rnn(name, x, h, *weights):
    return getattr(torch, name)(x, h, weights, True, 1, 0.0, True, False, False)[0]


def _attend(query, key, *weights):
    inside, outside = weights
    none = (None, None, False, 0.5)
    found = F.multi_head_attention_forward(query, key, key, 4, 2, inside, None, *none, outside, None, training=False)
    return torch.cat([part.flatten() for part in found])


def _attend_to_self(query, *weights):
    return _attend(query, query, *weights)


def _lstm_cell(x, h, c, *weights):
    return torch.cat(torch.lstm_cell(x, (h, c), *weights))


def cases():
    """(name of the operation, case)."""
    yield from (
        (name, Case(lambda x, n=name: getattr(x, n)() if callable(getattr(x, n)) else getattr(x, n), (MATRIX,)))
        for name in KEPT
    )
    yield from ((name, Case(lambda x, n=name, d=d: getattr(x, n)(d), (CUBE,))) for name in ALONG for d in (0, 1, -1))
    yield from (
        (name, Case(lambda x, n=name, d=d: getattr(x, n)(dim=d), (CUBE,))) for name in WHOLES for d in (0, (0, 2), -1)
    )
    yield from ((name, Case(lambda x, n=name: getattr(x, n)(), (CUBE,))) for name in WHOLES)
    yield from (
        (name, Case(lambda x, n=name: getattr(x, n)(1, keepdim=True), (CUBE,))) for name in ("sum", "prod", "mean")
    )
    yield from ((name, Case(lambda x, n=name: getattr(x, n)(), ((),), held=False)) for name in ("sum", "std", "all"))
    yield from ((name, Case(lambda x, n=name: getattr(x, n)(False), (ROW,), held=False)) for name in ("std", "var"))
    yield "softmax", Case(lambda x: F.softmax(x, dim=0), (MATRIX,))
    yield "softmin", Case(lambda x: F.softmin(x, dim=0), (MATRIX,))
    yield "log_softmax", Case(lambda x: F.log_softmax(x, 1), (MATRIX,))
    yield "argmax", Case(lambda x: x.argmax(), (MATRIX,), held=False)
    yield "imag", Case(lambda x: torch.complex(x, x).imag, (MATRIX,))
    yield from ((name, Case(lambda x, n=name: getattr(x, n)(1), (MATRIX,))) for name in ("tril", "triu"))
    yield "mT", Case(lambda x: x.mT, (CUBE,))
    yield "to", Case(lambda x: x.to(torch.float32), (MATRIX,))
    yield "to", Case(lambda x, y: x.to(y), (MATRIX, ROW), (torch.int64, torch.float64), held=False)
    yield "type", Case(lambda x: x.type(torch.float32), (MATRIX,))
    yield "contiguous", Case(lambda x: x.contiguous(memory_format=torch.channels_last), ((2, 3, 2, 2),), held=False)
    yield "masked_fill", Case(lambda x, m: x.masked_fill(m, 2.0), (CUBE, ROW), (torch.float64, torch.bool))
    yield (
        "masked_fill",
        Case(lambda x, m, v: x.masked_fill(m, v), (CUBE, ROW, ()), (torch.float64, torch.bool, torch.float64), False),
    )
    yield "norm", Case(lambda x: x.norm(2, 1), (CUBE,))
    yield "norm", Case(lambda x: x.norm(), (CUBE,), held=False)
    yield "roll", Case(lambda x: x.roll(1, 0), (CUBE,))
    yield "roll", Case(lambda x: torch.roll(x, (1, 2), (0, 1)), (CUBE,))
    yield "roll", Case(lambda x: x.roll(1), (CUBE,), held=False)
    yield "flip", Case(lambda x: x.flip(0, 1), (CUBE,))
    yield "flip", Case(lambda x: torch.flip(x, (0, 2)), (CUBE,))
    yield "flip", Case(lambda x: torch.flip(x, dims=(0, 2)), (CUBE,), held=False)
    yield "narrow", Case(lambda x: x.narrow(1, 1, 2), (CUBE,))
    yield "select", Case(lambda x: x.select(0, 1), (CUBE,))
    yield "chunk", Case(lambda x: torch.cat([part * i for i, part in enumerate(x.chunk(2))]), (MATRIX,))
    yield "split", Case(lambda x: x.split(2)[0], (MATRIX,))
    yield "split", Case(lambda x: torch.split(x, [1, 3], 1)[1], (MATRIX,))
    yield "unbind", Case(lambda x: sum(x.unbind()), (MATRIX,))
    yield "unbind", Case(lambda x: sum(x.unbind(1)), (MATRIX,))
    yield "sort", Case(lambda x: x.sort(0).values, (MATRIX,))
    yield "sort", Case(lambda x: x.sort(descending=True)[1], (MATRIX,))
    yield "cummax", Case(lambda x: x.cummax(0).values, (MATRIX,))
    yield "cummin", Case(lambda x: x.cummin(0)[0], (MATRIX,))
    yield "topk", Case(lambda x: x.topk(2).values, (MATRIX,))
    yield "topk", Case(lambda x: x.topk(2, 0)[0], (MATRIX,))
    yield "max", Case(lambda x: x.max(0).values, (MATRIX,))
    yield "max", Case(torch.max, (MATRIX, ROW))
    yield "max", Case(torch.max, (MATRIX,), held=False)
    yield "min", Case(lambda x: x.min(-1, keepdim=True)[0], (MATRIX,))
    yield "normalize", Case(lambda x: F.normalize(x), (MATRIX,))
    yield "normalize", Case(lambda x: F.normalize(x, 1.0, 0), (MATRIX,))
    yield "glu", Case(lambda x: F.glu(x), (MATRIX,))
    yield "unsqueeze", Case(lambda x: x.unsqueeze(0) + x.unsqueeze(1), (ROW,))
    yield "unsqueeze", Case(lambda x: x.unsqueeze(-1), (MATRIX,))
    yield "unsqueeze", Case(lambda x: x.unsqueeze(0), ((),))
    yield "squeeze", Case(lambda x: x.squeeze(), ((1, 3, 1),))
    yield "squeeze", Case(lambda x: x.squeeze(0), ((1, 3, 1),))
    yield "squeeze", Case(lambda x: x.squeeze((0, 2)), ((1, 3, 1),))
    yield "flatten", Case(lambda x: x.flatten(1), (CUBE,))
    yield "ravel", Case(lambda x: x.ravel(), (CUBE,))
    yield "reshape", Case(lambda x: x.T.reshape(2, 6), (MATRIX,))
    yield "reshape", Case(lambda x: x.reshape(-1), ((),))
    yield "reshape_as", Case(lambda x, y: x.reshape_as(y), (MATRIX, (2, 6)))
    yield "unflatten", Case(lambda x: x.unflatten(0, (3, 1)), (MATRIX,))
    yield "view", Case(lambda x: x.view(2, -1), (MATRIX,))
    yield "view", Case(lambda x: x.detach().view(torch.int64), (MATRIX,), held=False)
    yield "view_as", Case(lambda x, y: x.view_as(y), (MATRIX, (2, 6)))
    yield "expand", Case(lambda x: x.expand(3, 4), (ROW,))
    yield "expand", Case(lambda x: x.expand(-1, 4, -1), ((3, 1, 2),))
    yield "expand_as", Case(lambda x, y: x.expand_as(y), (ROW, MATRIX))
    yield "broadcast_to", Case(lambda x: torch.broadcast_to(x, (2, 3, 4)), (MATRIX,))
    yield "repeat", Case(lambda x: x.repeat(2, 1), (MATRIX,))
    yield "repeat", Case(lambda x: x.repeat((2, 3)), (MATRIX,))
    yield "repeat", Case(lambda x: x.repeat(2, 1, 1), (MATRIX,), held=False)
    yield "repeat", Case(lambda x: x.repeat(repeats=(2, 1)), (MATRIX,), held=False)
    yield "reshape", Case(lambda x: torch.reshape(input=x, shape=(2, 6)), (MATRIX,), held=False)
    yield "cat", Case(lambda x: torch.cat(tensors=[x, x]), (MATRIX,), held=False)
    yield "getitem", Case(lambda x: x[:, [0, 1], np.int64(1)], (CUBE,), held=False)
    yield from (
        (name, Case(lambda x, n=name: getattr(x, n)(0, -1), (CUBE,))) for name in ("transpose", "swapaxes", "swapdims")
    )
    yield "T", Case(lambda x: x.T, (MATRIX,))
    yield "t", Case(lambda x: x.t(), (MATRIX,))
    yield "t", Case(lambda x: x.t(), (ROW,), held=False)
    yield "permute", Case(lambda x: x.permute(2, 0, 1), (CUBE,))
    yield "permute", Case(lambda x: torch.permute(x, (-1, 0, 1)), (CUBE,))
    yield from (
        (name, Case(lambda x, y, n=name: getattr(torch, n)([x, y], 1), (MATRIX, MATRIX)))
        for name in ("cat", "concat", "concatenate")
    )
    yield "cat", Case(lambda x, y: torch.cat([x, y]), (MATRIX, MATRIX))
    yield "cat", Case(lambda x, y: torch.cat((x, y), dim=-1), (MATRIX, MATRIX), (torch.float32, torch.float64))
    yield "stack", Case(lambda x, y: torch.stack([x, y]), (MATRIX, MATRIX))
    yield "stack", Case(lambda x, y: torch.stack([x, y], 2), (MATRIX, MATRIX))
    yield "stack", Case(lambda x, y: torch.stack([x, y]), ((), ()))
    yield "stack", Case(lambda x, y: torch.stack([x, y]), ((), ()), (torch.float32, torch.float64), False)
    for index in (0, (slice(None), 1), (..., 0), (None, 1), (slice(0, 2), None, -1), ([0, 2],), (..., [1, 1])):
        yield "getitem", Case(lambda x, i=index: x[i], (MATRIX,))
    for index in (([0, 1], 2), ([0, 1], [1, 0]), (True, 0)):
        yield "getitem", Case(lambda x, i=index: x[i], (MATRIX,), held=False)
    whole = torch.float64, torch.int64
    yield "getitem", Case(lambda x, i: x[i], (MATRIX, ROW), whole, reads=((), ("a",)))
    yield "getitem", Case(lambda x, i: x[:, i], (MATRIX, ROW), whole, reads=(("a",), ()))
    yield "getitem", Case(lambda x, i: x[:, i], (MATRIX, ROW), whole, held=False)
    yield "gather", Case(lambda x, i: x.gather(0, i), (MATRIX, (2, 4)), whole)
    yield "gather", Case(lambda x, i: x.gather(1, i), (MATRIX, MATRIX), whole)
    yield "embedding", Case(lambda i, w: F.embedding(i, w), (ROW, MATRIX), whole[::-1], reads=(("a",), ()))
    yield "embedding", Case(lambda i, w: F.embedding(i, w), (ROW, MATRIX), whole[::-1], held=False)
    yield "one_hot", Case(lambda i: F.one_hot(i, 3), (MATRIX,), (torch.int64,))
    first = (("a",), (), ())
    yield "linear", Case(F.linear, (MATRIX, (2, 4), (2,)), reads=first)
    yield "linear", Case(F.linear, (ROW, (2, 4)), reads=first[:2])
    yield "linear", Case(F.linear, (MATRIX, (2, 4)), held=False)
    yield "layer_norm", Case(lambda x, w: F.layer_norm(x, (4,), w), (MATRIX, ROW), reads=first[:2])
    yield "rms_norm", Case(lambda x, w: F.rms_norm(x, (4,), w), (MATRIX, ROW), reads=first[:2])
    for one, two in ((MATRIX, (4, 2)), (CUBE, (4, 2)), ((3, 4), (2, 4, 3)), ((2, 1, 2, 3), (2, 3, 2))):
        yield "matmul", Case(torch.matmul, (one, two))
    for one, two in ((ROW, (4, 2)), (MATRIX, ROW), (ROW, ROW)):
        yield "matmul", Case(torch.matmul, (one, two), reads=(("a",), ()))
    yield "matmul", Case(torch.matmul, (ROW, (2, 4, 2)), reads=((), ("a",)))
    yield "matmul", Case(torch.matmul, (MATRIX, ROW), held=False)
    yield "matmul", Case(torch.matmul, (ROW, ROW), held=False)
    yield "rmatmul", Case(lambda x, y: y.__rmatmul__(x), (MATRIX, (4, 2)))
    yield "mm", Case(torch.mm, (MATRIX, (4, 2)))
    yield "bmm", Case(torch.bmm, (CUBE, (2, 4, 3)))
    yield "einsum", Case(lambda x, y: torch.einsum("ij,jk->ik", x, y), (MATRIX, (4, 2)))
    yield "einsum", Case(lambda x, y: torch.einsum("i j, j -> i", [x, y]), (MATRIX, ROW))
    yield "einsum", Case(lambda x, y: torch.einsum("ij,jk", x, y), (MATRIX, (4, 2)), held=False)
    for loss in (
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
    ):
        yield loss, Case(lambda x, y, n=loss: getattr(F, n)(x, y, reduction="none"), (MATRIX, MATRIX))
        yield loss, Case(getattr(F, loss), (MATRIX, MATRIX), held=False)
    of_input, of_state, bias = (12, 3), (12, 3), (12,)
    weights = of_input, of_state, bias, bias
    inside = ("a",), ("a",), ("a",), *((),) * 4
    yield "lstm", Case(_lstm(batch_first=False), ((4, 2, 3), (1, 2, 3), (1, 2, 3), *weights), reads=inside)
    yield "lstm", Case(_lstm(batch_first=True), ((2, 4, 3), (1, 2, 3), (1, 2, 3), *weights), reads=inside)
    yield "lstm", Case(_lstm(batch_first=True), ((2, 4, 3), (1, 2, 3), (1, 2, 3), *weights), held=False)
    smaller = (9, 3), (9, 3), (9,), (9,)
    yield "gru", Case(_gru, ((4, 2, 3), (1, 2, 3), *smaller), reads=inside[1:])
    smallest = (3, 3), (3, 3), (3,), (3,)
    for name in ("rnn_relu", "rnn_tanh"):
        yield name, Case(partial(_rnn, name), ((4, 2, 3), (1, 2, 3), *smallest), reads=inside[1:])
    yield "lstm_cell", Case(_lstm_cell, ((2, 3), (2, 3), (2, 3), *weights), reads=inside)
    yield "lstm_cell", Case(_lstm_cell, ((2, 3), (2, 3), (2, 3), *weights), held=False)
    for name in ("dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d"):
        shape = (2, 3, *(2,) * (int(name[-2]) if name.endswith("d") and name[-2].isdigit() else 0))
        yield name, Case(lambda x, n=name: getattr(F, n)(x, 0.5, training=False), (shape,))
        yield name, Case(lambda x, n=name: getattr(F, n)(x, training=False, p=0.5), (shape,))
    inside = ("a",), ("a",), (), ()
    yield "multi_head_attention_forward", Case(_attend, ((3, 2, 4), (3, 2, 4), (12, 4), (4, 4)), reads=inside)
    yield "multi_head_attention_forward", Case(_attend_to_self, ((3, 2, 4), (12, 4), (4, 4)), reads=inside[1:])
    yield "scaled_dot_product_attention", Case(lambda q, k: _scaled(q, k, k), ((2, 3, 4), (2, 3, 4)))
    yield "scaled_dot_product_attention", Case(lambda q, k: _scaled(q, k, k), ((2, 2, 3, 4), (2, 2, 3, 4)))
    yield "scaled_dot_product_attention", Case(lambda q: _scaled(q, q, q, is_causal=True), ((2, 2, 3, 4),))
    for d in (1, 2, 3):
        image = (2, 2, *(4,) * d)
        yield f"conv{d}d", Case(getattr(F, f"conv{d}d"), (image, (2, 2, *(3,) * d), (2,)), reads=first)
        yield f"conv{d}d", Case(getattr(F, f"conv{d}d"), (image[1:], (2, 2, *(3,) * d)), reads=first[:2], held=False)
        yield (
            f"conv_transpose{d}d",
            Case(getattr(F, f"conv_transpose{d}d"), (image, (2, 2, *(3,) * d)), reads=first[:2]),
        )
        for pool in (f"max_pool{d}d", f"avg_pool{d}d", f"adaptive_avg_pool{d}d", f"adaptive_max_pool{d}d"):
            yield pool, Case(lambda x, n=pool: getattr(F, n)(x, 2), (image,))


CASES = list(cases())


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_case(index):
    name, case = CASES[index]
    count = len(case.shapes)
    must = name, case.held if name in RULES else None
    check(case.fn, case.shapes, case.kinds(), case.reads or [("a",)] * count, must=must)
    for reads in itertools.islice(itertools.product(SPREADS, repeat=count), 1, 64, 3 if count > 2 else 1):
        check(case.fn, case.shapes, case.kinds(), reads)


BY_ELEMENT = sorted(set(RULES) - {name for name, _ in CASES})
broadcast = st.lists(st.sampled_from([1, 2, 3]), max_size=3).flatmap(
    lambda full: st.tuples(
        st.just(full),
        st.lists(
            st.tuples(st.integers(0, len(full)), st.lists(st.booleans(), min_size=3, max_size=3)),
            min_size=3,
            max_size=3,
        ),
    )
)


def shapes_within(full, cuts):
    """Shapes that broadcast to one: the first some dimensions of it missing, and some of length 1."""
    found = []
    for missing, narrow in cuts:
        found.append(tuple(1 if thin else size for size, thin in zip(full[missing:], narrow)))
    return found


def by_element(name, shapes, reads, seed=0, must=None):
    count = 3 if name in THREE else 2 if name in TWO else 1
    fn = {**ONE, **FLOORS, **THREE}.get(name) or called(name)
    dtypes = [torch.bool if name in WHOLE else torch.float64] * count
    check(fn, shapes[:count], dtypes, reads[:count], seed, must and (name, True))


@pytest.mark.parametrize("name", BY_ELEMENT)
def test_by_element(name):
    by_element(name, [(2, 3)] * 3, [("a",)] * 3, must=True)
    by_element(name, [(2, 3), (3,), ()], [(), ("b", "a"), ("a",)], must=None if name in LIMITED else True)
    by_element(name, [(), (1, 3), (3,)], [("b",), ("a",), ()], must=None if name in LIMITED else True)


@pytest.mark.slow
@given(
    st.sampled_from(BY_ELEMENT),
    broadcast,
    st.lists(st.sampled_from(SPREADS), min_size=3, max_size=3),
    st.integers(0, 9),
)
@settings(max_examples=200)
def test_by_element_in_any_shape(name, shapes, reads, seed):
    by_element(name, shapes_within(*shapes), reads, seed)


STEPS = [  # from [3, 4] to the same
    lambda x, y: x + y[0],
    lambda x, y: torch.tanh(x) * 2 - 1,
    lambda x, y: x @ y.T @ y,
    lambda x, y: (x.T @ x).softmax(0)[:3],
    lambda x, y: torch.cat([x[:, 2:], y[:, :2]], 1),
    lambda x, y: x - x.mean(0),
    lambda x, y: torch.stack([x, y]).amax(0),
    lambda x, y: x.flatten().view(4, 3).transpose(0, 1),
    lambda x, y: torch.where(x > y, x, y.sin()),
    lambda x, y: x.sort(1).values.cumsum(0).sigmoid(),
    lambda x, y: x.expand(2, 3, 4).sum(0).clamp(-1, 1),
]


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(range(len(STEPS))), min_size=1, max_size=5),
    st.tuples(st.sampled_from(SPREADS), st.sampled_from(SPREADS)).filter(any),
)
@settings(max_examples=60)
def test_whole_segments_equal_vmap(steps, reads):
    def fn(x, y):
        for i in steps:
            x = STEPS[i](x, y)
        return x, y * 2

    plain = [value_of((3, 4), torch.float64, i) for i in range(2)]
    segment, graph = segment_of(fn, plain, reads)
    values = [value_of((*(SIZES[n] for n in plates), 3, 4), torch.float64, i) for i, plates in enumerate(reads)]
    run = lifted(graph, segment, reads)
    for _ in range(2):
        found, expected = run(*values), vmapping(segment, reads)(*values)
        same(found, expected)
        same(gradients(found, values), gradients(expected, values))

"""How single operations act on values with plates in front of their own dimensions: a table by operation name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from propc.runtime.batching.rule import MISSING, BatchedOperation, Node, Rule, rank, rules_into

RULES: dict[str, Rule] = {}
rule = rules_into(RULES)


@rule(
    "abs absolute acos acosh add addcdiv addcmul and angle asin asinh atan atan2 atanh bitwise_and bitwise_not "
    "bitwise_or bitwise_xor ceil celu copysign cos cosh deg2rad digamma div divide elu eq erf erfc erfinv exp exp2 "
    "expm1 float_power floor floor_divide floordiv fmax fmin fmod frac ge gelu greater greater_equal gt hardsigmoid "
    "hardswish hardtanh heaviside hypot i0 invert isfinite isinf isnan ldexp le leaky_relu lerp less less_equal "
    "lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor "
    "logit lt maximum minimum mish mod mul multiply mvlgamma nan_to_num ne neg negative not_equal or polygamma pos "
    "positive pow rad2deg radd rdiv reciprocal relu relu6 remainder rfloordiv rmod rmul round rpow rsqrt rsub "
    "rtruediv selu sgn sigmoid sign silu sin sinc sinh softplus softsign special_digamma special_entr special_erf "
    "special_erfc special_erfinv special_exp2 special_expit special_expm1 special_gammaln special_i0 special_i0e "
    "special_i1 special_i1e special_log1p special_log_ndtr special_logit special_ndtr special_ndtri special_sinc "
    "special_xlog1py special_xlogy sqrt square sub subtract tan tanh tanhshrink true_divide truediv trunc where xlogy "
    "xor"
)
def by_element(step: BatchedOperation) -> Node | None:
    """Plates stand in front of all dimensions of the result."""
    width = len(step.shape)
    if step.promotes or any(rank(n) > width for n in step.tensors):
        return None

    return step.mapped(lambda value: _widened(step, value, width)).written()


def _widened(step: BatchedOperation, value: Node, width: int) -> Node:
    """A value with dimensions of length 1 between its plates and its own, up to a rank."""
    made = value
    for _ in range(width - rank(value) if value.meta["lead"] else 0):
        made = step.method("unsqueeze", made, value.meta["lead"])
    return made


@rule("bfloat16 bool clone contiguous data detach double float half imag int long mT real short to tril triu type")
def _alone(step: BatchedOperation) -> Node | None:
    """Acts on each element, or on the last two dimensions, of one tensor."""
    return step.written() if step.single and "memory_format" not in step.kwargs else None


@rule("clamp clamp_max clamp_min clip")
def _clamped(step: BatchedOperation) -> Node | None:
    """Bounds that are tensors must have the shape of what they bound, for the sake of torch's backward."""
    alike = len({(n.meta["type"], n.meta["plates"]) for n in step.tensors}) == 1
    return step.written() if alike else None


@rule("masked_fill")
def _filled(step: BatchedOperation) -> Node | None:
    """The number may be a tensor of no dimensions, not one in plates."""
    return None if isinstance(step.args[-1], Node) or step.kwargs else by_element(step)


@rule("binary_cross_entropy binary_cross_entropy_with_logits huber_loss l1_loss mse_loss smooth_l1_loss")
def _loss(step: BatchedOperation) -> Node | None:
    """Losses of each element; they want both arguments in one shape."""
    pair = step.args[:2]
    fits = step.tensors == [*pair] and len({n.meta["type"].shape for n in step.tensors}) == 1
    if step.kwargs.get("reduction") != "none" or not fits or step.promotes:
        return None
    spread = [step.spread(value) for value in pair]
    return None if None in spread else step.written((*spread, *step.args[2:]))


def _along(position: int, default: Any = MISSING, grows: int = 0) -> Rule:
    """Acts along a dimension, or several, counted from the end.

    Args:
        position: of the argument `dim`.
        default: its value where it is not given.
        grows: how many dimensions more the result has.
    """

    def found(step: BatchedOperation) -> Node | None:
        given = step.argument("dim", position)
        dims = default if given is MISSING else given
        width = (rank(step.args[0]) if step.single else 0) + grows
        if not step.single or not width or "axis" in step.kwargs:
            return None
        if dims is _ALL or (dims is None and default is _ALL):
            return step.replaced("dim", position, tuple(range(-width, 0)))
        if isinstance(dims, int) and not isinstance(dims, bool):
            return step.replaced("dim", position, _behind(dims, width))
        if isinstance(dims, (tuple, list)) and dims:
            return step.replaced("dim", position, [_behind(dim, width) for dim in dims])
        return None

    return found


def _behind(dim: int, width: int) -> int:
    return dim if dim < 0 else dim - width


_ALL = object()
rule("all amax amin any mean std sum var")(_along(1, _ALL))
rule("argmax argmin count_nonzero cummax cummin cumprod cumsum logcumsumexp log_softmax logsumexp nansum prod softmax")(
    _along(1)
)
rule("narrow select softmin")(_along(1))
rule("norm roll")(_along(2))
rule("chunk split")(_along(2, 0))
rule("unbind")(_along(1, 0))
rule("argsort sort glu")(_along(1, -1))
rule("topk")(_along(2, -1))
rule("normalize")(_along(2, 1))
rule("unsqueeze")(_along(1, grows=1))


@rule("squeeze")
def _squeezed(step: BatchedOperation) -> Node | None:
    return _shaped(step) if len(step.args) == 1 and not step.kwargs else _along(1)(step)


@rule("flip")
def _flipped(step: BatchedOperation) -> Node | None:
    dims = step.args[1] if len(step.args) == 2 and isinstance(step.args[1], (tuple, list)) else step.args[1:]
    width = rank(step.args[0])
    return step.method("flip", step.args[0], [_behind(dim, width) for dim in dims]) if width and dims else None


@rule("max min")
def _extreme(step: BatchedOperation) -> Node | None:
    """Of two tensors, or along a dimension."""
    return _along(1)(step) if step.single else by_element(step) if step.kind is not None else None


@rule("flatten ravel reshape reshape_as unflatten view view_as")
def _shaped(step: BatchedOperation) -> Node | None:
    """The result's shape is known."""
    value, *sizes = step.args
    if value.meta["plates"] != step.plates or any(isinstance(size, torch.dtype) for size in sizes):
        return None
    return step.call(_reshaped, value, step.lead, step.shape)


@rule("broadcast_to expand expand_as")
def _grown(step: BatchedOperation) -> Node | None:
    """The result's shape is known."""
    value = step.spread(step.args[0])
    return None if value is None else step.call(_expanded, value, step.lead, step.shape)


@rule("repeat")
def _repeated(step: BatchedOperation) -> Node | None:
    value, *sizes = step.args
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        (sizes,) = sizes
    fits = step.single and sizes and len(sizes) == rank(value)
    return step.method("repeat", value, *(1,) * step.lead, *sizes) if fits else None


@rule("swapaxes swapdims transpose")
def _swapped(step: BatchedOperation) -> Node | None:
    value, *dims = step.args
    width = rank(value)
    if len(dims) != 2 or not width:
        return None
    return step.written((value, *(_behind(dim, width) for dim in dims)))


@rule("T t")
def _turned(step: BatchedOperation) -> Node | None:
    return step.method("transpose", step.args[0], -2, -1) if rank(step.args[0]) == 2 else None


@rule("permute")
def _permuted(step: BatchedOperation) -> Node | None:
    value, *dims = step.args
    order = dims[0] if dims and isinstance(dims[0], (tuple, list)) else dims
    width, lead = rank(value), step.lead
    if len(order) != width:
        return None
    return step.method("permute", value, *range(lead), *(lead + dim % width for dim in order))


@rule("cat concat concatenate")
def _joined(step: BatchedOperation) -> Node | None:
    return _together(step, 0)


@rule("stack")
def _stacked(step: BatchedOperation) -> Node | None:
    return _together(step, 1)


def _together(step: BatchedOperation, grows: int) -> Node | None:
    """Tensors in one; all must have the plates."""
    dim = step.argument("dim", 1)
    parts = step.args[0] if step.args else ()
    ranks = {rank(part) for part in parts}
    if step.promotes or len(ranks) != 1 or not ranks.pop() + grows or "axis" in step.kwargs:
        return None
    spread = [step.spread(part) for part in parts]
    if None in spread:
        return None
    return step.written((spread,), dim=_behind(0 if dim is MISSING else dim, len(step.shape)))


@rule("getitem")
def _indexed(step: BatchedOperation) -> Node | None:
    """Plates are taken whole. One index may be a tensor; two would move dimensions."""
    value, index = step.args
    if value.meta["type"] is None:  # a tuple
        return step.written()
    items = index if isinstance(index, tuple) else (index,)
    far = [item for item in items if isinstance(item, (Node, list))]
    if not value.meta["lead"]:
        return step.written() if far == [*items] == [index] and _counts(index) else None
    if not all(isinstance(item, (int, slice, list, type(None), type(...), Node)) for item in items):
        return None  # such as a number of NumPy
    hidden = step.tensors != [value, *(item for item in far if isinstance(item, Node))]  # in a slice
    if hidden or any(isinstance(item, bool) for item in items):
        return None
    if far and (len(far) > 1 or not _counts(far[0]) or any(isinstance(item, int) for item in items)):
        return None
    if any(isinstance(item, Node) and item.meta["lead"] for item in far):
        return None
    return step.written((value, (slice(None),) * step.lead + items))


def _counts(index: Any) -> bool:
    """Whether an index counts, in place of choosing by truth."""
    if isinstance(index, list):
        return all(isinstance(i, int) and not isinstance(i, bool) for i in index)
    whole: bool = index.meta["type"].dtype in (torch.int64, torch.int32)
    return whole


@rule("gather")
def _gathered(step: BatchedOperation) -> Node | None:
    if len(step.args) != 3 or step.kwargs:
        return None
    value, dim, index = step.args
    if not rank(value) or rank(value) != rank(index):
        return None
    spread = step.spread(value), step.spread(index)
    return None if None in spread else step.written((spread[0], _behind(dim, rank(value)), spread[1]))


@rule("embedding")
def _embedded(step: BatchedOperation) -> Node | None:
    """Indices in plates, into one table."""
    limited = step.argument("max_norm", 3) not in (None, MISSING)
    counted = step.argument("scale_grad_by_freq", 5) not in (False, MISSING)
    return None if limited or counted or len(step.args) < 2 or step.args[1].meta["lead"] else step.written()


@rule("one_hot")
def _one_hot(step: BatchedOperation) -> Node | None:
    count = step.argument("num_classes", 1)
    return step.written() if step.single and isinstance(count, int) and count > 0 else None


@rule("linear layer_norm rms_norm")
def _trailing(step: BatchedOperation) -> Node | None:
    """Acts on trailing dimensions of its first argument, with weights that are in no plate."""
    return step.written() if step.first_leads and rank(step.args[0]) else None


def _only_first(step: BatchedOperation) -> bool:
    return [n for n in step.tensors if n.meta["lead"]] == [step.args[0]]


@rule("bmm matmul mm rmatmul")
def _multiplied(step: BatchedOperation) -> Node | None:
    """Matrices stand last; vectors in plates beside other tensors in plates would be taken for matrices."""
    if len(step.args) != 2 or step.kwargs:
        return None
    first, second = reversed(step.args) if step.name == "__rmatmul__" else step.args
    ranks, leads = (rank(first), rank(second)), (first.meta["lead"], second.meta["lead"])
    if min(ranks) >= 2:
        return step.call(torch.matmul, *(_widened(step, n, max(ranks)) for n in (first, second)))
    by_vector = ranks[1] == 1 and not leads[1] and ranks[0]
    vectors = ranks[0] == 1 and not leads[1] and ranks[1] <= 2
    of_vector = ranks[0] == 1 and not leads[0] and ranks[1] >= 2
    return step.call(torch.matmul, first, second) if by_vector or vectors or of_vector else None


@rule("einsum")
def _einsum(step: BatchedOperation) -> Node | None:
    """``ij,jk->ik`` with ``...`` in front of the operands in plates, and of the result."""
    equation, *operands = step.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = [*operands[0]]
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    given, result = equation.replace(" ", "").split("->")
    parts = [("..." if n.meta["lead"] else "") + part for n, part in zip(operands, given.split(","))]
    return step.written((f"{','.join(parts)}->...{result}", *operands))


# -- functions that the new code calls --------------------------------------------------


def _reshaped(value: Tensor, lead: int, shape: tuple[int, ...]) -> Tensor:
    return value.reshape(value.shape[:lead] + shape)


def _expanded(value: Tensor, lead: int, shape: tuple[int, ...]) -> Tensor:
    missing = len(shape) + lead - value.dim()
    if missing:
        value = value.reshape(value.shape[:lead] + (1,) * missing + value.shape[lead:])
    return value.expand(value.shape[:lead] + shape)

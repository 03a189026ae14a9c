"""Which operations keep the elements of a dimension apart, by their structure: a table of rules.

A rule is given a torch.fx node and the places of a dimension in what it reads, and says where the dimension is in
what it gives. It speaks only where that is so for all values: what it cannot prove is `UNPROVEN`, which is not to say
that elements mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.fx

from propc.fx.operations import Property, operation_name
from propc.fx.program import type_of
from propc.util.torch_private import arguments_of, pytree

NOWHERE = -1  # the place of a dimension in a value that all its elements share
UNPROVEN = -2  # the place in one of which the structure says nothing
Places = Mapping[torch.fx.Node, int]
Rule = Callable[[torch.fx.Node, Places], int]

# Elementwise, and none of torch's operations that are tagged so: names of functions, and what draws by element.
_ELEMENTWISE = frozenset(
    "relu relu6 softplus gelu silu elu selu celu leaky_relu hardtanh hardsigmoid hardswish mish logsigmoid softsign "
    "tanhshrink softshrink hardshrink threshold float double half bfloat16 long int bool to type clone detach "
    "contiguous cpu cuda add sub mul div truediv floordiv floor_divide mod remainder fmod pow rsub rpow radd rmul "
    "rtruediv neg pos abs invert and or xor eq ne lt le gt ge where masked_fill clamp clip clamp_min clamp_max maximum "
    "minimum square lerp addcmul addcdiv nan_to_num zeros_like ones_like full_like rand_like randn_like poisson "
    "bernoulli binomial normal rrelu dropout alpha_dropout xlogy logit digamma polygamma".split()
)
_LOSSES = frozenset(  # elementwise where nothing is summed
    "mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits "
    "poisson_nll_loss soft_margin_loss".split()
)
_RESHAPES = frozenset("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as ravel".split())
_REDUCES = {  # places of the dimension, or dimensions, among the arguments
    **dict.fromkeys("sum mean prod amax amin max min logsumexp argmax argmin all any count_nonzero".split(), 1),
    **dict.fromkeys("var std median nansum nanmean".split(), 1),
    **dict.fromkeys("norm vector_norm linalg_vector_norm".split(), 2),
}
_ALONG = {  # the same, of what keeps the shape, or all of it but the length there
    **dict.fromkeys("softmax log_softmax softmin cumsum cumprod logcumsumexp cummax cummin sort argsort".split(), 1),
    **dict.fromkeys("flip split chunk tensor_split unbind glu".split(), 1),
    **dict.fromkeys("normalize topk".split(), 2),
}
_DEFAULTS = {"sort": -1, "argsort": -1, "topk": -1, "glu": -1, "unbind": 0, "normalize": 1}
_LATER = {"split": 2, "chunk": 2, "tensor_split": 2}  # behind the sizes
_LAST = {"conv1d": 3, "conv2d": 4, "conv3d": 5, "max_pool1d": 3, "max_pool2d": 4, "avg_pool1d": 3, "avg_pool2d": 4}
_LAST |= {"conv_transpose1d": 3, "conv_transpose2d": 4, "adaptive_avg_pool2d": 4, "adaptive_avg_pool1d": 3}
_FULL = slice(None)


def place_in(node: torch.fx.Node, places: Places) -> int:
    """Where the dimension is in what a node gives, from its places in what it reads."""
    given = {places.get(source, UNPROVEN) for source in node.all_input_nodes}
    if given <= {NOWHERE}:
        return NOWHERE
    if UNPROVEN in given or node.meta.get("writes") or not _is_torch(node.target):
        return UNPROVEN
    rule, kind = _rule(operation_name(node)), type_of(node)
    try:
        place = rule(node, places)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):  # arguments that the rule does not know
        return UNPROVEN
    if kind is None or place < 0:
        return place
    return place if place < len(kind.shape) and _sizes(node, places) <= {kind.shape[place]} else UNPROVEN


def _is_torch(target: Any) -> bool:
    """Whether a target is an operation of torch's own, or of the language, and not a user's of the same name."""
    home = getattr(target, "__module__", None) or ""
    return isinstance(target, (str, Property)) or home.partition(".")[0] in (
        "",
        "torch",
        "operator",
        "_operator",
        "builtins",
    )


@lru_cache(maxsize=4096)
def _rule(name: str) -> Rule:
    if name in _RULES:
        return _RULES[name]
    for names, rule in _KINDS:
        if name in names:
            return rule
    return _elementwise if _is_tagged(name) else lambda node, places: UNPROVEN


def _is_tagged(name: str) -> bool:
    """Whether all forms of one of torch's operations are marked elementwise by torch."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or not hasattr(packet, "overloads"):
        return False
    forms = [getattr(packet, form) for form in packet.overloads() if "out" not in form]
    tensors = [form for form in forms if any("Tensor" in str(a.type) for a in arguments_of(form))]
    return bool(tensors) and all(torch.Tag.pointwise in form.tags for form in tensors)


# -- what rules ask ---------------------------------------------------------------------------------


def _shape(node: Any) -> tuple[int, ...]:
    kind = type_of(node)
    if kind is None:
        raise TypeError("no single tensor")
    return kind.shape


def _sizes(node: torch.fx.Node, places: Places) -> set[int]:
    """How long the dimension is in what a node reads; of several results at once nothing is known."""
    kinds = ((type_of(each), places[each]) for each in node.all_input_nodes if places[each] != NOWHERE)
    return {kind.shape[place] for kind, place in kinds if kind is not None}


def _rank(node: Any) -> int:
    return len(_shape(node))


def _argument(node: torch.fx.Node, place: int, *names: str, default: Any = None) -> Any:
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def _tensor(value: Any) -> torch.fx.Node:
    if not isinstance(value, torch.fx.Node):
        raise TypeError("no tensor")
    return value


def _source(node: torch.fx.Node) -> Any:
    return _argument(node, 0, "input", "self")


def _only(node: torch.fx.Node, places: Places) -> int:
    """The place in the first argument, where nothing else knows the dimension."""
    others = (places[each] for each in node.all_input_nodes if each is not _source(node))
    return UNPROVEN if any(place != NOWHERE for place in others) else places[_source(node)]


def _dims(given: Any, rank: int) -> set[int]:
    """Dimensions, counted from the front."""
    listed = given if isinstance(given, (tuple, list)) else (given,)
    if not listed or any(type(dim) is not int for dim in listed):
        raise TypeError("not a dimension")
    return {dim % rank for dim in listed}


def _agreed(found: Iterable[int]) -> int:
    """One place, where all that know the dimension have it there."""
    known = {place for place in found if place != NOWHERE}
    return known.pop() if len(known) == 1 else UNPROVEN


# -- rules ------------------------------------------------------------------------------------------


def _elementwise(node: torch.fx.Node, places: Places) -> int:
    """Dimensions of operands are aligned from the right."""
    rank = _rank(node)
    return _agreed(
        places[each] if places[each] == NOWHERE else places[each] - _rank(each) + rank for each in node.all_input_nodes
    )


def _loss(node: torch.fx.Node, places: Places) -> int:
    return _elementwise(node, places) if node.kwargs.get("reduction") == "none" else UNPROVEN


def _reshape(node: torch.fx.Node, places: Places) -> int:
    """A dimension stays where as many elements lie before it, and it is as long."""
    place, before, after = places[_source(node)], _shape(_source(node)), _shape(node)
    if place == NOWHERE or not math.prod(before):
        return UNPROVEN
    lead = math.prod(before[:place])
    found = (i for i, size in enumerate(after) if size == before[place] and math.prod(after[:i]) == lead)
    return next(found, UNPROVEN)


def _reduce(node: torch.fx.Node, places: Places) -> int:
    name, rank, place = operation_name(node), _rank(_source(node)), places[_source(node)]
    given = _argument(node, _REDUCES[name], "dim", "axis")
    if isinstance(given, torch.fx.Node):  # the larger of two tensors
        return _elementwise(node, places)
    dims, place = _dims(given, rank), _only(node, places)
    if place == UNPROVEN or place in dims:
        return UNPROVEN
    kept = bool(_argument(node, _REDUCES[name] + 1, "keepdim", default=False)) or node.kwargs.get("keepdim")
    if type_of(node) is not None:
        kept = _rank(node) == rank
    return place if kept else place - sum(dim < place for dim in dims)


def _along(node: torch.fx.Node, places: Places) -> int:
    """Elements are apart along all dimensions but one."""
    name, rank, place = operation_name(node), _rank(_source(node)), _only(node, places)
    at = _LATER.get(name, _ALONG[name])
    default = _DEFAULTS.get(name, 0 if name in _LATER else None)
    given = _argument(node, at, "dim", "axis", "dims", default=default)
    dims = _dims(node.args[1:] if name == "flip" and isinstance(given, int) else given, rank)
    if place in dims:
        return UNPROVEN
    return place - (min(dims) < place) if name == "unbind" and place != UNPROVEN else place


def _layer_norm(node: torch.fx.Node, places: Places) -> int:
    place = _only(node, places)
    return place if place < _rank(_source(node)) - len(_argument(node, 1, "normalized_shape")) else UNPROVEN


def _linear(node: torch.fx.Node, places: Places) -> int:
    place = _only(node, places)
    return place if place < _rank(_source(node)) - 1 else UNPROVEN


def _batched(node: torch.fx.Node, places: Places) -> int:
    """Layers that take the batch in front, and channels behind it."""
    return 0 if _only(node, places) == 0 and _rank(_source(node)) == _LAST[operation_name(node)] else UNPROVEN


def _cell(node: torch.fx.Node, places: Places) -> int:
    """A step of a recurrent layer: the batch in front of its input and its state, none in weights."""
    state = node.args[1] if isinstance(node.args[1], (tuple, list)) else (node.args[1],)
    carried = [_tensor(each) for each in (node.args[0], *state)]
    weights = (places[each] for each in node.all_input_nodes if each not in carried)
    batched = all(places[each] in (0, NOWHERE) and _rank(each) == 2 for each in carried)
    return 0 if batched and all(place == NOWHERE for place in weights) else UNPROVEN


def _group_norm(node: torch.fx.Node, places: Places) -> int:
    return 0 if _only(node, places) == 0 and _rank(_source(node)) > 1 else UNPROVEN


def _matmul(node: torch.fx.Node, places: Places) -> int:
    one, two = _tensor(node.args[0]), _tensor(node.args[1])
    (a, b), rank = (_rank(one), _rank(two)), _rank(node)
    found = []
    if places[one] != NOWHERE:
        place = places[one]
        if place == a - 1:
            return UNPROVEN  # it is summed over
        found.append(place if b == 1 else place - a + rank)
    if places[two] != NOWHERE:
        place = places[two]
        if b == 1 or place == b - 2 or (places[one] != NOWHERE and place == b - 1):
            return UNPROVEN
        found.append(place if a == 1 and place < b - 2 else place - b + rank)
    return _agreed(found)


def _einsum(node: torch.fx.Node, places: Places) -> int:
    """One letter for the dimension, in all that knows it and in the result."""
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    left, arrow, right = str(equation).replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or len(terms) != len(operands):
        return UNPROVEN
    letters = {term[places[each]] for term, each in zip(terms, operands) if places[each] != NOWHERE}  # type: ignore[index]
    alone = all(term.count(letter) < 2 for term in (*terms, right) for letter in letters)
    return right.find(letters.pop()) if len(letters) == 1 and alone and letters <= set(right) else UNPROVEN


def _expand(node: torch.fx.Node, places: Places) -> int:
    place = places[_source(node)]
    return UNPROVEN if place == NOWHERE else place - _rank(_source(node)) + _rank(node)


def _permuted(node: torch.fx.Node, order: Sequence[int], places: Places) -> int:
    return [dim % len(order) for dim in order].index(places[_source(node)])


def _transpose(node: torch.fx.Node, places: Places) -> int:
    order = list(range(_rank(_source(node))))
    one, two = _argument(node, 1, "dim0", "axis0"), _argument(node, 2, "dim1", "axis1")
    order[one], order[two] = order[two], order[one]
    return _permuted(node, order, places)


def _permute(node: torch.fx.Node, places: Places) -> int:
    given: Any = node.args[1:] if len(node.args) > 2 else _argument(node, 1, "dims")
    return _permuted(node, (given,) if isinstance(given, int) else given, places)


def _turned(node: torch.fx.Node, places: Places) -> int:
    """``.t()``, ``.T`` and ``.mT``."""
    rank = _rank(_source(node))
    if rank != 2 and operation_name(node) != "mT":
        return UNPROVEN
    return _permuted(node, [*range(rank - 2), rank - 1, rank - 2], places)


def _movedim(node: torch.fx.Node, places: Places) -> int:
    rank = _rank(_source(node))
    start, end = (tuple(_ordered(_argument(node, i, name), rank)) for i, name in ((1, "source"), (2, "destination")))
    if len(start) != 1 or len(end) != 1:
        return UNPROVEN
    order = [dim for dim in range(rank) if dim != start[0]]
    order.insert(end[0], start[0])
    return _permuted(node, order, places)


def _ordered(given: Any, rank: int) -> Sequence[int]:
    return [dim % rank for dim in (given if isinstance(given, (tuple, list)) else (given,))]


def _stack(node: torch.fx.Node, places: Places) -> int:
    place, dim = _agreed(places[each] for each in _parts(node)), _argument(node, 1, "dim", "axis", default=0)
    return UNPROVEN if place == UNPROVEN else place + (dim % _rank(node) <= place)


def _cat(node: torch.fx.Node, places: Places) -> int:
    place, dim = _agreed(places[each] for each in _parts(node)), _argument(node, 1, "dim", "axis", default=0)
    return UNPROVEN if dim % _rank(node) == place else place


def _parts(node: torch.fx.Node) -> Sequence[torch.fx.Node]:
    found: Any = _argument(node, 0, "tensors")
    return found if isinstance(found, (tuple, list)) else ()


def _getitem(node: torch.fx.Node, places: Places) -> int:
    source, index = node.args
    assert isinstance(source, torch.fx.Node)
    if type_of(source) is None:
        return places[source]  # one of several results
    items = index if isinstance(index, tuple) else (index,)
    if places[source] == NOWHERE:
        return _looked_up(node, items, places)
    if any(isinstance(item, torch.fx.Node) for item in pytree.tree_leaves(items)):
        return UNPROVEN
    return _sliced(items, _rank(source), places[source])


def _looked_up(node: torch.fx.Node, items: Sequence[Any], places: Places) -> int:
    """A table that all share, at indices of which each row has its own."""
    nodes = [item for item in items if isinstance(item, torch.fx.Node)]
    whole = all((kind := type_of(item)) is not None and not kind.dtype.is_floating_point for item in nodes)
    truths = any((kind := type_of(item)) is not None and kind.dtype == torch.bool for item in nodes)
    if len(nodes) != len(items) or not whole or truths:
        return UNPROVEN
    rank = max(map(_rank, nodes))
    return _agreed(places[item] if places[item] == NOWHERE else places[item] - _rank(item) + rank for item in nodes)


def _sliced(items: Sequence[Any], rank: int, place: int) -> int:
    used = sum(item is not None and item is not Ellipsis for item in items)
    spread = [_FULL] * (rank - used)
    whole = [each for item in items for each in (spread if item is Ellipsis else [item])]
    if Ellipsis not in items:
        whole += spread
    source = made = 0
    for item in whole:
        if item is None:
            made += 1
            continue
        if not isinstance(item, (int, slice)) or isinstance(item, bool):
            return UNPROVEN
        if source == place:
            return made if item == _FULL else UNPROVEN
        source, made = source + 1, made + isinstance(item, slice)
    return UNPROVEN


def _select(node: torch.fx.Node, places: Places) -> int:
    """One element along a dimension."""
    (dim,), place = _dims(_argument(node, 1, "dim"), _rank(_source(node))), _only(node, places)
    return UNPROVEN if dim == place else place - (dim < place)


def _narrow(node: torch.fx.Node, places: Places) -> int:
    """Some elements along a dimension."""
    place = _only(node, places)
    return UNPROVEN if place in _dims(_argument(node, 1, "dim"), _rank(_source(node))) else place


def _gather(node: torch.fx.Node, places: Places) -> int:
    place = _agreed(places[each] for each in node.all_input_nodes)
    return UNPROVEN if place in _dims(_argument(node, 1, "dim"), _rank(node)) else place


def _embedding(node: torch.fx.Node, places: Places) -> int:
    return _only(node, places)


def _cross_entropy(node: torch.fx.Node, places: Places) -> int:
    rowed = all(places[each] in (0, NOWHERE) for each in node.all_input_nodes)
    return 0 if rowed and node.kwargs.get("reduction") == "none" and _rank(_source(node)) > 1 else UNPROVEN


_RULES: dict[str, Rule] = {
    "layer_norm": _layer_norm,
    "linear": _linear,
    "gru_cell": _cell,
    "lstm_cell": _cell,
    "rnn_tanh_cell": _cell,
    "rnn_relu_cell": _cell,
    "group_norm": _group_norm,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "einsum": _einsum,
    "expand": _expand,
    "broadcast_to": _expand,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "permute": _permute,
    "t": _turned,
    "T": _turned,
    "mT": _turned,
    "movedim": _movedim,
    "moveaxis": _movedim,
    "stack": _stack,
    "cat": _cat,
    "concat": _cat,
    "concatenate": _cat,
    "getitem": _getitem,
    "select": _select,
    "narrow": _narrow,
    "index_select": _narrow,
    "gather": _gather,
    "embedding": _embedding,
    "one_hot": _embedding,
    "cross_entropy": _cross_entropy,
    "nll_loss": _cross_entropy,
}
_KINDS: tuple[tuple[Iterable[str], Rule], ...] = (
    (_ELEMENTWISE, _elementwise),
    (_LOSSES, _loss),
    (_RESHAPES, _reshape),
    (_REDUCES, _reduce),
    (_ALONG, _along),
    (_LAST, _batched),
)

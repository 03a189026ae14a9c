"""Layers that know their batch get the plates folded into it, where `torch.vmap` fails, or takes much longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from propc.runtime.batching.rule import BatchedOperation, Node, Rule, rank, rules_into

RULES: dict[str, Rule] = {}
rule = rules_into(RULES)


@rule(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "conv_transpose3d max_pool1d max_pool2d max_pool3d"
)
def _by_row(step: BatchedOperation) -> Node | None:
    """Acts on each row of a batch: the plates are folded into it.

    Kept: autocast does not reach convolutions under vmap; and 1.0 (64 images) to 1.3 times (3) as fast as recorded.
    """
    value = step.args[0] if step.args else None
    dims = int(step.name[-2])
    if value is None or not step.first_leads or rank(value) != dims + 2 or step.kind is None:
        return None
    rows = step.method("flatten", value, 0, step.lead)
    return step.call(_unfolded, step.written((rows, *step.args[1:])), value, step.lead)


@rule("gru lstm rnn_relu rnn_tanh")
def _recurred(step: BatchedOperation) -> Node | None:
    """Recurrent networks: the plates of input and state are folded into the batch. Kept: vmap has no rule for them."""
    if len(step.args) != 9 or not isinstance(step.args[2], (list, tuple)) or (step.args[5] and step.args[6]):
        return None  # packed sequences, dropout
    value, state, *more = step.args
    many = isinstance(state, (list, tuple))
    spread = [step.spread(part) for part in (value, *(state if many else [state]))]
    weights = [part for part in step.args[2] if part.meta["lead"]]
    if None in spread or weights or rank(value) != 3:
        return None
    return step.call(_recurrent, step.node.target, step.lead, spread[0], spread[1:] if many else spread[1], *more)


@rule("lstm_cell")
def _cell(step: BatchedOperation) -> Node | None:
    """One step of a recurrent network on rows of the batch. Kept: vmap has no rule for it."""
    if len(step.args) < 2 or step.kwargs:
        return None
    value, state, *weights = step.args
    spread = [step.spread(part) for part in (value, *state)]
    if None in spread or any(isinstance(n, Node) and n.meta["lead"] for n in weights) or rank(value) != 2:
        return None
    return step.call(_celled, step.node.target, step.lead, spread[0], spread[1:], *weights)


@rule("multi_head_attention_forward")
def _attended(step: BatchedOperation) -> Node | None:
    """Attention of several heads, without masks of each row: the plates of its arguments are folded into the batch.

    Kept: vmap takes attention apart, element by element, with a warning.
    """
    if len(step.args) < 3:
        return None
    query, key, value, *more = step.args
    spread = {part: step.spread(part) for part in (query, key, value)}  # who attends to himself is seen as such
    inside = [part for part in step.tensors if part not in spread and part.meta["lead"]]
    masks = step.kwargs.get("key_padding_mask"), step.kwargs.get("static_k"), step.kwargs.get("static_v")
    mask = step.kwargs.get("attn_mask")
    wide = masks != (None,) * 3 or (mask is not None and rank(mask) != 2)
    if None in spread.values() or inside or wide or rank(query) != 3:
        return None
    three = spread[query], spread[key], spread[value]
    return step.call(_attention, step.node.target, step.lead, *three, *more, **step.kwargs)


@rule("scaled_dot_product_attention")
def _scaled(step: BatchedOperation) -> Node | None:
    """Attention on rows of the batch; a mask is the same for all rows. Kept: 1.3 to 2.7 times as fast as recorded."""
    if len(step.args) < 3:
        return None
    query, key, value, *more = step.args
    mask = more[0] if more else step.kwargs.get("attn_mask")
    spread = [step.spread(part) for part in (query, key, value)]
    if None in spread or rank(query) < 3 or (mask is not None and (mask.meta["lead"] or rank(mask) != 2)):
        return None
    rows = [step.method("flatten", part, 0, step.lead) for part in spread if part is not None]
    return step.call(_unfolded, step.written((*rows, *more)), spread[0], step.lead)


# -- functions that the new code calls --------------------------------------------------


def _unfolded(rows: Tensor, like: Tensor, lead: int) -> Tensor:
    return rows.reshape(like.shape[: lead + 1] + rows.shape[1:])


def _fold(value: Tensor, lead: int, dim: int) -> Tensor:
    """Plates in front move to a dimension, and become one with it."""
    return value.movedim(tuple(range(lead)), tuple(range(dim, dim + lead))).flatten(dim, dim + lead)


def _unfold(value: Tensor, sizes: torch.Size, dim: int) -> Tensor:
    lead = len(sizes)
    apart: Tensor = value.unflatten(dim, (*sizes, -1))
    return apart.movedim(tuple(range(dim, dim + lead)), tuple(range(lead)))


def _attention(
    run: Callable[..., Any], lead: int, query: Tensor, key: Tensor, value: Tensor, *more: Any, **options: Any
) -> tuple[Tensor | None, ...]:
    sizes, folded = query.shape[:lead], {part: _fold(part, lead, 1) for part in (query, key, value)}
    found, weights = run(folded[query], folded[key], folded[value], *more, **options)
    return _unfold(found, sizes, 1), None if weights is None else _unfold(weights, sizes, 0)


def _recurrent(run: Callable[..., Any], lead: int, value: Tensor, state: Any, *more: Any) -> tuple[Tensor, ...]:
    sizes, row = value.shape[:lead], 0 if more[-1] else 1  # batch_first
    several = isinstance(state, (list, tuple))
    states = [_fold(part, lead, 1) for part in state] if several else _fold(state, lead, 1)
    found, *last = run(_fold(value, lead, row), states, *more)
    return _unfold(found, sizes, row), *(_unfold(part, sizes, 1) for part in last)


def _celled(run: Callable[..., Any], lead: int, value: Tensor, state: Any, *weights: Any) -> tuple[Tensor, ...]:
    rows = value.shape[: lead + 1]
    found = run(value.flatten(0, lead), [part.flatten(0, lead) for part in state], *weights)
    return tuple(part.unflatten(0, rows) for part in found)

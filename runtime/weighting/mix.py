"""The gate that mixes several cotangents on φ into one, by inverse variance.

Throughout, a batch is seen as [groups, rows]: one group, or several for crossfit, where each
takes the weights that the next one gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.runtime.weighting.mix_compiled import mix_traced, traced
from propc.runtime.weighting.mix_on_cpu import mix_two, quick_variances, rehearse_two
from propc.runtime.weighting.mixing import Mixing
from propc.runtime.weighting.moving_variance import PastVariances, fitting, remembered
from propc.runtime.weighting.per_sample_norms import Norms, variance
from propc.runtime.weighting.weighting import REHEARSED, Weighting
from propc.runtime.weighting.weights import inverse_variance_weights, of_next_group


@dataclass(frozen=True)
class Target:
    """What the forward pass gives to take variances at a weighting target.

    Attributes:
        tangents: for each φ that takes a cotangent its tangents [P, batch, ...] towards the target, or None.
        live: which φ these are.
        made: what the reverse traversal of `Norms` reads.
    """

    tangents: Sequence[Tensor | None]
    live: Sequence[int]
    made: Sequence[Tensor] = ()


def at_target(norms: Norms | None, live: Sequence[int], saved: Sequence[Any]) -> Target | None:
    """What a gate has saved for the target: tangents of the φ that take a cotangent, and what `Norms` reads."""
    known = norms is not None or any(tangent is not None for tangent in saved[: len(live)])
    return Target(saved[: len(live)], live, saved[len(live) :]) if known else None


def mix(
    mixing: Mixing,
    grads: Sequence[tuple[Tensor, ...]],
    target: Target | None = None,
    past: Sequence[Tensor] = (),
    memo: Any = None,
) -> list[Tensor]:
    """Combine the parts' cotangents.

    Args:
        mixing: how.
        grads: for each φ the cotangents of the parts, each [batch, ...].
        target: where the variances are taken; None is here.
        past: what `remembered` gave in the forward pass.
        memo: what stays from a rehearsal of the reverse pass to the pass itself, and takes attributes.

    Returns:
        one cotangent for each φ, [batch, ...].
    """
    how = mixing.how
    if how.quick and mixing.donor is None and len(grads[0]) == 2:
        if traced():
            batch = grads[0][0].shape[0]
            even = target is None and not batch % how.groups and not _too_few(how, batch)
            mixed = mix_traced(grads, how.groups) if even else None
        else:
            mixed = mix_two(grads, how.groups, None if target is None else partial(_quickly, mixing, target))
        if mixed is not None:
            return mixed
    if how.weights == REHEARSED:
        return _rehearsed(mixing, grads, target, memo)
    with torch.no_grad():
        weights = mixing.weights.get(mixing.donor) if mixing.donor is not None else None
        seen = weights is None and how.target is None and not _too_few(how, grads[0][0].shape[0])
        if weights is None:
            weights = _weights(mixing, _measure(mixing, [torch.stack(parts) for parts in grads], target), past)
            if how.k_interval > 1:
                mixing.weights[mixing.site] = weights
    return [_combine(weights[min(i, len(weights) - 1)], parts, seen) for i, parts in enumerate(grads)]


def _combine(weights: Tensor, parts: Sequence[Tensor], seen: bool) -> Tensor:
    """Σ_c w_c g_c; `weights` is [parts, groups, 1, coordinates or 1].

    A part with an infinite or undefined cotangent has weight zero if the weights have `seen` it, or if it has come to
    the weighting target, and is then left out; otherwise it shows in the result.
    """
    shape, groups = parts[0].shape, weights.shape[1]
    if shape[0] % groups:
        weights, groups, seen = _by_row(weights, shape[0]), 1, False
    if seen:
        parts = [torch.nan_to_num(part, 0.0, 0.0, 0.0) for part in parts]
    rows = [part.reshape(groups, shape[0] // groups, -1) for part in parts]
    if not seen:
        rows = [row.masked_fill(weight == 0, 0.0) for row, weight in zip(rows, weights)]
    if len(rows) == 2:
        return torch.lerp(rows[1], rows[0], weights[0]).reshape(shape)
    return (torch.stack(rows) * weights).sum(0).reshape(shape)


def _by_row(weights: Tensor, batch: int) -> Tensor:
    """[parts, groups, 1, ...] → [parts, 1, batch, ...] where rows are left over; these join the last group."""
    each = weights.split(1, 1)
    size = batch // len(each)
    sizes = *[size] * (len(each) - 1), batch - size * (len(each) - 1)
    return torch.cat([one.expand(-1, -1, rows, -1) for one, rows in zip(each, sizes)], 2)


def _measure(mixing: Mixing, grads: Sequence[Tensor], target: Target | None) -> WeightMeasure:
    """How variances are taken of cotangents [parts, batch, ...], one tensor for each φ."""
    if target is None:
        return WeightMeasure(grads, partial(_variances, grads, per_coordinate=mixing.how.per_coordinate))
    seen = _at_target(grads, target.tangents)
    norms = mixing.norms
    if norms is None:
        assert seen is not None
        return WeightMeasure(grads, partial(_variances, [seen], per_coordinate=False))

    def take(groups: int) -> list[Tensor]:
        found = norms.variances([grads[target.live.index(port)] for port in norms.ports], target.made, groups)
        return [found if seen is None else found.add_(variance(seen, groups), alpha=1 / norms.sketches)]

    return WeightMeasure(grads, take)


def _quickly(mixing: Mixing, target: Target, grads: Sequence[Tensor]) -> list[float] | None:
    """Variances at a target as numbers, on the CPU; None if they are not to be looked at.

    Args:
        grads: for each φ [parts, batch, ...].
    """
    groups = mixing.how.groups
    with torch.no_grad():
        if mixing.norms is None:
            seen = _at_target(grads, target.tangents)
            assert seen is not None
            return quick_variances(seen.reshape(2 * groups, seen.shape[1] // groups, -1))
        try:
            numbers: list[float] = _measure(mixing, grads, target).take(groups)[0].flatten().tolist()
        except RuntimeError:  # under vmap, or on fake tensors
            return None
    return numbers


@dataclass(frozen=True)
class WeightMeasure:
    """Variances of the parts in groups of rows, [parts, groups, 1, coordinates or 1]: one tensor, or one for each φ."""

    grads: Sequence[Tensor]
    take: Callable[[int], list[Tensor]]


def _weights(mixing: Mixing, measure: WeightMeasure, past: Sequence[Tensor]) -> list[Tensor]:
    """Weights [parts, groups, 1, coordinates or 1]: one tensor for all φ, or one for each φ."""
    how, (parts, batch) = mixing.how, measure.grads[0].shape[:2]
    if _too_few(how, batch):
        return [measure.grads[0].new_full((parts, 1, 1, 1), 1.0 / parts)]
    now = measure.take(how.groups)
    known = _with_past(mixing, now, measure, past) if how.weights == "past" else now
    return [inverse_variance_weights(of_next_group(v), n) for v, n in zip(known, now)]


@torch.no_grad()
def _rehearsed(mixing: Mixing, grads: Sequence[tuple[Tensor, ...]], target: Target | None, memo: Any) -> list[Tensor]:
    """What `mix` gives with weights from a rehearsal: there those of each group, which are noted for the next one;
    afterwards those that were noted.

    Raises:
        EstimatorError: there was no rehearsal.
    """
    how, running = mixing.how, mixing.rehearsal is not None and mixing.rehearsal.running
    if not running and not hasattr(memo, "numbers"):
        raise mixing.error(
            f"weights={REHEARSED!r} need one reverse pass of autograd that runs twice, which there was not",
            "Use weights='crossfit' or 'past' in graphs with messages of their own, under propc.passes.Checkpoint and "
            "in plates with chunk=.",
        )
    if running:
        memo.numbers = None
    if len(grads[0]) == 2 and not how.per_coordinate:
        mixed = rehearse_two(
            grads, how.groups, running, memo, None if target is None else partial(_quickly, mixing, target)
        )
        if mixed is not None:
            return mixed
    weights, seen = _noted(how, _measure(mixing, [torch.stack(parts) for parts in grads], target), running, memo)
    return [_combine(weights[min(i, len(weights) - 1)], parts, seen) for i, parts in enumerate(grads)]


def _noted(how: Weighting, measure: WeightMeasure, running: bool, memo: Any) -> tuple[list[Tensor], bool]:
    """The weights of a rehearsal, or from it, and whether they have seen what they weigh."""
    if not running:
        return memo.noted, False
    parts, batch = measure.grads[0].shape[:2]
    if _too_few(how, batch):
        memo.noted = [measure.grads[0].new_full((parts, 1, 1, 1), 1.0 / parts)]
        return memo.noted, False
    now = measure.take(how.groups)
    memo.noted = [inverse_variance_weights(of_next_group(each), each) for each in now]
    return [inverse_variance_weights(each, each) for each in now], how.target is None


def _too_few(how: Weighting, batch: int) -> bool:
    """Whether a batch, or a group of it, is too small to take a variance; then all weights are equal."""
    return batch < 2 * how.groups


def _variances(grads: Sequence[Tensor], groups: int, per_coordinate: bool) -> list[Tensor]:
    """Summed squared deviations: one tensor for each φ per coordinate, else one for all."""
    found = [variance(g, groups, per_coordinate) for g in grads]
    return found if per_coordinate or len(found) == 1 else [torch.stack(found).sum(0)]


def _at_target(grads: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor | None:
    """Per-sample gradients along the directions of the tangents, [parts, batch, P]; None where there are none."""
    found: Tensor | None = None
    for grad, tangent in zip(grads, tangents):
        if tangent is not None:
            lead = (1,) * (grad.dim() - tangent.dim())  # where φ is common to all rows
            tangent = tangent.reshape(len(tangent), *lead, *tangent.shape[1:]) if lead else tangent
            product = grad.unsqueeze(1) * tangent  # [parts, P, batch, ...]
            product = product.flatten(3).sum(3) if product.dim() > 3 else product
            found = product if found is None else found + product
    return None if found is None else found.transpose(1, 2)


def _with_past(mixing: Mixing, now: list[Tensor], measure: WeightMeasure, past: Sequence[Tensor]) -> list[Tensor]:
    """Variances of the earlier batches; at the first call, which has none, those of crossfit."""
    assert isinstance(mixing.state, PastVariances)
    mixing.state.join(now, mixing.how.decay)
    known = fitting(past, now)
    if known is not None:
        return known
    if measure.grads[0].shape[1] < 4:  # in two groups of one row nothing varies
        return [torch.ones_like(v) for v in now]
    return measure.take(2)


class Mix(Function):
    """Copies of φ, one for each part; backward mixes the cotangents that come back at them.

    First derivatives only: the noise inside `rsample` is not known as a function of the sample,
    without which a second derivative of the mixture would be biased.
    """

    @staticmethod
    def forward(
        ctx: Any, mixing: Mixing, parts: int, live: Sequence[int], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        phi, at_target = tensors[: len(live)], tensors[len(live) :]
        ctx.mixing, ctx.live, ctx.given = mixing, live, len(at_target)
        ctx.past = remembered(mixing.state)
        ctx.save_for_backward(*at_target)
        return tuple(p.view_as(p) for _ in range(parts) for p in phi if p is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise ctx.mixing.error(
                "inverse-variance weighting gives first derivatives only, but at a Normal",
                "For second derivatives (create_graph=True) use 'rp' or 'lr' here.",
            )
        count = len(ctx.live)
        target = at_target(ctx.mixing.norms, ctx.live, ctx.saved_tensors)
        mixed = mix(ctx.mixing, [grads[j::count] for j in range(count)], target, ctx.past, ctx)
        return (None, None, None, *mixed, *([None] * ctx.given))

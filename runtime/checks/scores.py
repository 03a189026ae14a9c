"""Checks of scores at the first call: log-probabilities of another shape, edges of parameters, draws that are rounded.

A score ∇ log p of the law's own draws has a mean of zero. It has not where the draws are rounded, as those of small
concentrations are, or where `log_prob` is not that of what `sample` draws. The look takes some thousand draws; what it
suspects, it draws again, many more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge
from torch.distributions import constraints

from propc.distributions.measures import measures_of
from propc.distributions.probabilities import log_prob
from propc.distributions.score import drawn, layers, row_score
from propc.distributions.spec import Relative
from propc.distributions.support import parameters
from propc.errors import EstimatorError
from propc.ir.nodes.site import Site
from propc.propagators import SiteContext
from propc.util.torch_rng import same_random

GROUPS, DRAWS = 8, 256  # of a first look: groups of draws, whose mean scores are compared, and draws of each
MORE_GROUPS, MORE_DRAWS = 64, 1024  # of a second look, where the first is suspicious
# What a group draws at most, in a first look and in a second, if not a batch alone.
NUMBERS, MORE_NUMBERS = 2**11, 2**17
FEW, REPEATED = 16, 0.5  # among 16 draws of a Normal half are equal where the numbers lie a third of its scale apart
SUSPICIOUS, FAR = 4.0, 7.0  # standard errors from zero, in a first look and in a second
AT_AN_END = 0.005  # share of draws there that is suspicious: Beta(0.5, 0.5) has 0.0003 in float32, Beta(0.2, 0.2) 0.04
NEARLY_CONSTANT = 0.98  # |mean| / root mean square: draws that would balance the rest are rare, as at a weight of 1e-9


def check_shape(site: Site, context: SiteContext, phi: Sequence[Tensor]) -> None:
    """Check that a law has one log-probability for each element of its batch shape.

    Raises:
        EstimatorError: names the site, the shape found and the one that belongs there.
    """
    if context.normal is not None:
        return
    with same_random(), torch.no_grad():
        dist = context.build([p.detach() for p in phi])
        (base, _), trail = layers(dist), drawn(dist)
        found = tuple(log_prob(base, trail[0]).shape)
    wanted = tuple(trail[0].shape[: trail[0].dim() - len(base.event_shape)])
    if found != wanted:
        raise site.error(
            f"log_prob of {site.spec} gives the shape {list(found)} in place of {list(wanted)}, one number for each "
            "element of the batch shape: with such a score the gradient would be wrong",
            "Let it give that shape; a parameter that all elements share, such as a temperature, is to be a single "
            "number, and not a column.",
            EstimatorError,
        )


def check_edges(site: Site, phi: Sequence[Tensor]) -> None:
    """Check that no parameter of a discrete law lies on an edge of its space, where no draw tells what is beside it.

    Raises:
        EstimatorError: names the site and the parameter.
    """
    if not is_discrete(site.spec.innermost.type):
        return
    for index, constraint in site.spec.checks:
        value = phi[index]
        if not value.requires_grad or isinstance(constraint, Relative):
            continue
        edge = _on_edge(constraint, value.detach())
        if edge is not None and bool(edge.any()) and _moves(value, edge):
            at = value.detach()[edge].flatten()[0].item()
            raise site.error(
                f"parameter {site.spec.fields[index]!r} of {site.spec} is {at:g} in {int(edge.sum())} of "
                f"{edge.numel()} elements: what has no probability is never drawn, and {site.estimator!r} does not "
                "see that its probability grows",
                _instead_of_edge(site),
                EstimatorError,
            )


def _instead_of_edge(site: Site) -> str:
    kind: Any = site.spec.innermost.type
    names = [name for name in parameters(site.spec) if name in measures_of(kind)]
    listed = kind.has_enumerate_support and "total_count" not in vars(kind).get("arg_constraints", {})
    use = "Use 'local' or 'enumerate' here, or give" if listed else "Use 'mvd' here, or keep" if names else ""
    if listed:
        return f"{use} the law by logits, which have no such edge."
    return f"{use or 'Keep'} it a little inside, such as by clamping it 1e-6 away."


def is_discrete(kind: Any) -> bool:
    """Whether draws of a class of distributions are discrete, as far as it says."""
    try:
        return bool(kind.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False


def _on_edge(constraint: Any, value: Tensor) -> Tensor | None:
    """Where a value lies on a bound that belongs to its space; None where there is no such bound."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    if constraint is constraints.simplex:
        return value == 0
    bounds = [getattr(constraint, name, None) for name in ("lower_bound", "upper_bound")]
    if constraint.is_discrete:
        return None
    closed = [b for b in bounds if b is not None and bool(constraint.check(value.new_tensor(float(b))).all())]
    return torch.stack([value == bound for bound in closed]).any(0) if closed else None


def _moves(value: Tensor, where: Tensor) -> bool:
    """Whether these elements have a derivative in what they were computed from.

    They have none behind a sigmoid or softmax that is as good as 0 or 1. What has a backward of propc's is not passed.
    """
    if value.grad_fn is None:
        return True
    ends = list(_ends_of_history(value.grad_fn))
    grads = torch.autograd.grad(value, ends, where.to(value.dtype), retain_graph=True, allow_unused=True)
    return any(bool((grad != 0).any()) for grad in grads if grad is not None)


def _ends_of_history(node: Any) -> Iterator[Any]:
    todo, seen = [(node, 0)], set()
    while todo:
        each, output = todo.pop()
        if each is None or (each, output) in seen:
            continue
        seen.add((each, output))
        if hasattr(each, "variable") or isinstance(each, BackwardCFunction):
            yield GradientEdge(each, output)
        else:
            todo.extend(each.next_functions)


def check_mean(site: Site, context: SiteContext, phi: Sequence[Tensor]) -> None:
    """Check that the score of a continuous law's own draws is finite, and zero in the mean.

    Raises:
        EstimatorError: names the site, what was found, and what works there.
    """
    live = [i for i, p in enumerate(phi) if p.requires_grad and p.dtype in (torch.float32, torch.float64)]
    if not live or is_discrete(site.spec.innermost.type):
        return
    if _holds_what_it_computed(site, live):
        return
    if context.normal is not None and not _coarse(*(phi[i].detach() for i in context.normal)):
        return
    phi = [p.detach() for p in phi]
    with same_random():
        found = _asked(context, phi, live, GROUPS, DRAWS)
        if found is None or not found.suspicious:
            return
        found = _asked(context, phi, live, MORE_GROUPS, MORE_DRAWS)
        if found is None or not found.wrong:
            return
        raise _rounded(site, context, phi, live, found)


def _holds_what_it_computed(site: Site, live: Sequence[int]) -> bool:
    """Whether a law keeps beside its parameters what it has computed from them.

    Its log-probability goes by both then, as that of LowRankMultivariateNormal does: only the two together have a score
    whose mean is zero.
    """
    kind: Any = site.spec.innermost.type
    known = vars(kind).get("arg_constraints", {})
    held = {index: name for name, index in parameters(site.spec).items()}
    own = [held[i] for i in live if i in held]
    return any(name.startswith("_") or (isinstance(known, dict) and known and name not in known) for name in own)


def _coarse(loc: Tensor, scale: Tensor) -> bool:
    """Whether the draws of a Normal are a few numbers alone."""
    return bool((loc.abs() * torch.finfo(loc.dtype).eps > 0.05 * scale).any())


@dataclass(frozen=True)
class Found:
    """What a look at a law's own draws has found.

    Attributes:
        far: how many standard errors the mean score is from zero, in the worst coordinate; infinite where it is no
            number.
        index: of φ where that is.
        at_end: the share of draws on an end of the support.
        repeated: the share of draws that equal another one of few.
    """

    far: float
    index: int
    at_end: float
    repeated: float

    @property
    def suspicious(self) -> bool:
        """Whether a second look is worth its time."""
        return self.far > SUSPICIOUS or self.at_end > AT_AN_END or self.wrong

    @property
    def wrong(self) -> bool:
        """Whether a gradient by this score would be."""
        return self.far > FAR or self.repeated > REPEATED


def _asked(context: SiteContext, phi: Sequence[Tensor], live: Sequence[int], groups: int, draws: int) -> Found | None:
    """What a look finds; None where the law has something against it, as one of the user's that draws one by one."""
    try:
        return _look(context, phi, live, groups, draws)
    except Exception:  # a user's law may do anything; it has drawn as it is used, or is about to
        return None


def _look(context: SiteContext, phi: Sequence[Tensor], live: Sequence[int], groups: int, draws: int) -> Found | None:
    """Mean scores of groups of draws; None where the law cannot be asked."""
    numbers = max(1, math.prod(context.spec.sample_shape), *(p.numel() for p in phi))
    draws = max(1, min(draws, (NUMBERS if groups == GROUPS else MORE_NUMBERS) // numbers))
    sums: list[list[Tensor]] = [[] for _ in live]
    ends, repeated = [], []
    for _ in range(groups if draws > 1 else 1):
        leaves = [p.clone().requires_grad_(i in live) for i, p in enumerate(phi)]
        with torch.enable_grad():
            dist = context.build(leaves)
            with torch.no_grad():
                trail = drawn(dist, (draws,))
            score = row_score(dist, trail, 0)
            if not score.requires_grad:
                return None
            grads = torch.autograd.grad(score, [leaves[i] for i in live], allow_unused=True)
        base = layers(dist)[0]
        ends.append(_at_end(base, trail[0]))
        repeated.append(_repeated(base, trail[0]))
        for kept, grad in zip(sums, grads):
            if grad is not None:
                kept.append(grad)
    far = [(_far(torch.stack(kept), draws, context, i), i) for i, kept in zip(live, sums) if kept]
    worst, index = max(far, default=(0.0, 0))
    return Found(worst, index, sum(ends) / len(ends), sum(repeated) / len(repeated))


def _far(sums: Tensor, draws: int, context: SiteContext, index: int) -> float:
    """How far the mean of sums over some draws [groups, *φ] is from zero, in standard errors.

    The rows of the batch are one coordinate.
    """
    if not bool(torch.isfinite(sums).all()):
        return float("inf")
    sums = sums.double()
    if (index, constraints.simplex) in context.spec.checks:  # only along the simplex is the mean zero
        sums = sums - sums.mean(-1, keepdim=True)
    rows = context.spec.batched(index, sums.shape[1:]) and sums.dim() > 1
    samples = sums.flatten(0, 1) if rows else sums
    if len(samples) < GROUPS:
        return 0.0
    mean, variance = samples.mean(0) / draws, samples.var(0) / draws  # of a single draw
    error = variance.div(draws * len(samples)).sqrt()
    known = mean.abs() < NEARLY_CONSTANT * (variance + mean.square()).sqrt()
    return torch.where(known, mean.abs() / error.clamp(min=torch.finfo(error.dtype).tiny), 0.0).max().item()


def _at_end(dist: Any, value: Tensor) -> float:
    """The share of draws that lie on an end of the support, or as near as numbers come."""
    bounds = dist.support
    while hasattr(bounds, "base_constraint"):
        bounds = bounds.base_constraint
    simplex = bounds is constraints.simplex
    low, high = (0, 1) if simplex else (getattr(bounds, f"{side}_bound", None) for side in ("lower", "upper"))
    least, step = 2 * torch.finfo(value.dtype).tiny, 2 * torch.finfo(value.dtype).eps
    found = torch.zeros_like(value, dtype=torch.bool)
    for end, inward in ((low, 1), (high, -1)):
        if end is not None:
            end = torch.as_tensor(end, dtype=value.dtype, device=value.device)
            found |= inward * (value - end) <= (step * end.abs()).clamp(min=least)
    return found.double().mean().item()


def _repeated(dist: Any, value: Tensor) -> float:
    """The share of repetitions among few draws of a law of torch's, which is continuous and has none."""
    if len(value) < FEW or not type(dist).__module__.startswith("torch."):
        return 0.0
    few = value[:FEW].sort(0).values
    return (few[1:] == few[:-1]).double().mean().item()


def _has_finite_path(context: SiteContext, phi: Sequence[Tensor], live: Sequence[int]) -> bool:
    """Whether pathwise gradients of many draws are finite."""
    leaves = [p.clone().requires_grad_(i in live) for i, p in enumerate(phi)]
    with torch.enable_grad():
        draw = context.build(leaves).rsample(torch.Size((MORE_DRAWS,)))
        grads = torch.autograd.grad(draw.sum(), [leaves[i] for i in live], allow_unused=True)
    return all(bool(torch.isfinite(grad).all()) for grad in grads if grad is not None)


def _rounded(
    site: Site, context: SiteContext, phi: Sequence[Tensor], live: Sequence[int], found: Found
) -> EstimatorError:
    """What was found, and what was tried and works."""
    name, what = site.spec.fields[found.index], "is not finite"
    if found.far != float("inf"):
        what = f"has a mean {found.far:.0f} standard errors from zero"
    if found.at_end > AT_AN_END:
        why = f"{found.at_end:.0%} of its draws are rounded to an end of the support"
    elif found.repeated > REPEATED:
        what, why = "is that of rounded draws", f"of {FEW} in {phi[found.index].dtype} {found.repeated:.0%} are equal"
    else:
        why = "its draws are rounded, or its log_prob is not that of what it draws"
    wide = _asked(context, [p.double() if p.is_floating_point() else p for p in phi], live, MORE_GROUPS, MORE_DRAWS)
    path = site.spec.has_rsample and _has_finite_path(context, phi, live)
    ways = ["use 'rp' here, where the costs have a path to the draw"] if path else []
    ways += ["let its parameters be float64"] if wide is not None and not wide.suspicious else []
    fix = ", or ".join(ways) or "keep its parameters away from where its draws are rounded"
    return site.error(
        f"the score of {site.spec} in {name!r} {what}: {why}. With {site.estimator!r} the gradient would be wrong",
        f"{fix[0].upper()}{fix[1:]}; validate=False leaves this check out.",
        EstimatorError,
    )

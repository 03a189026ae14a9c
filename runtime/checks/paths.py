"""Paths that autograd claims and that are none: tested with values, operation by operation.

An operation cuts a path where its value moves with what it reads while its derivative is exactly zero: rounding under
another name, in place or as an option, random operations with a tensor for a parameter, functions of a user's library.
No list can hold them all. So what a first call reads is moved, and the derivative looked at.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.distributions.spec import DistributionSpec, Skeleton
from propc.fx.operations import CustomFunction, operation_name
from propc.fx.program import Program, mark_of, type_of
from propc.runtime.checks.traced_run import last_uses, step_value
from propc.util.torch_private import pytree
from propc.util.torch_rng import same_random, seed_all

FxNode = torch.fx.Node
Call = Callable[[Sequence[Tensor]], list[Tensor]]  # from what is moved to what comes out

# Operations that were tested (`tests/runtime/checks/test_paths.py` runs this test on each of them): programs of nothing
# else, nearly all, are not run for it.
_TRUSTED = frozenset(
    "abs add addbmm addcdiv addcmul addmm addmv after atan2 baddbmm bmm cat clamp clone conv1d conv2d cos cosh "
    "cumsum detach diagonal div einsum elu erf exp expand expm1 flatten gather gelu getitem index_select "
    "leaky_relu lerp linear log log1p log_softmax logsigmoid logsumexp matmul max maximum mean min minimum "
    "movedim mul neg permute pow prod reciprocal relu reshape rsqrt rsub select sigmoid silu sin sinh softmax "
    "softplus sqrt square squeeze stack std sub sum t tan tanh tensordot to transpose tril triu truediv unbind "
    "unsqueeze var view where".split()
)
_ROUNDING = "rounding_mode"
_HALVINGS = 16  # of a move across which a value changes: a stretch with a slope is found down to 1e-5 of the move


def cut_false_paths(program: Program, leaves: Sequence[Tensor]) -> None:
    """Mark the steps of a program, and its sites, through which autograd claims a path that is none.

    A step so marked is as one that jumps; a law whose `rsample` gives no path is one without.

    Args:
        program: fresh from its trace; its marks are changed.
        leaves: the tensors of a call, in their order. No random number is used up.
    """
    suspects = _suspects(program)
    if not suspects or any(leaf.device.type == "meta" for leaf in leaves):
        return
    with same_random(), warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # what torch warns of it does so again when the program runs
        _look(program, leaves, suspects)


def _suspects(program: Program) -> set[FxNode]:
    """Steps on the way from draws with a path, of whose operation that is not known; and the users' own laws."""
    hangs: set[FxNode] = set()
    found = set()
    for node in program.graph.nodes:
        mark = mark_of(node)
        if mark is not None and mark.spec is not None:
            if mark.spec.has_rsample:
                hangs.add(node)
                if not _is_torchs(mark.spec):
                    found.add(node)
        elif (mark is None or mark.kind != "opaque") and any(source in hangs for source in node.all_input_nodes):
            hangs.add(node)
            if mark is None and _unknown(node):
                found.add(node)
    return found


def _unknown(node: FxNode) -> bool:
    kind = type_of(node)
    if node.op not in ("call_function", "call_method") or node.meta.get("rough") or (kind and not kind.requires_grad):
        return False
    if isinstance(node.target, CustomFunction):  # its derivative is what the user says that it is
        return False
    name = operation_name(node)
    return (name not in _TRUSTED and name.removeprefix("i") not in _TRUSTED) or bool(node.kwargs.get(_ROUNDING))


def _is_torchs(spec: DistributionSpec) -> bool:
    """Whether no part of a law is a user's class: torch's own have the paths that they say."""
    return all(kind.__module__.partition(".")[0] in ("torch", "builtins") for kind in _types(spec.skeleton))


def _types(skeleton: Any) -> Iterator[type]:
    if isinstance(skeleton, Skeleton):
        yield skeleton.type
        for _, child in skeleton.items:
            yield from _types(child)


# -- a run with values --------------------------------------------------------------------------


def _look(program: Program, leaves: Sequence[Tensor], suspects: set[FxNode]) -> None:
    """Run the program up to the last suspect, and test each where it stands; behind a black box nothing is known."""
    values: dict[FxNode, Any] = {
        leaf.node: given.detach().clone() if program.mutates else given.detach()
        for leaf, given in zip(program.leaves, leaves)
    }
    done = last_uses(program.graph)
    left = len(suspects)
    for node in program.graph.nodes:
        if not left or node.op == "output":
            return
        if node.op != "placeholder" and all(source in values for source in node.all_input_nodes):
            if node in suspects:
                _test(node, values)
            with suppress(Exception), torch.no_grad():  # what needs a history, or is a black box, is not known
                values[node] = step_value(node, values)
        left -= node in suspects
        for source in done.get(node, ()):
            values.pop(source, None)


def _test(node: FxNode, values: Mapping[FxNode, Any]) -> None:
    """Mark a step, or a site, that cuts a path."""
    mark = mark_of(node)
    if mark is not None and mark.spec is not None:
        phi = [values[source] for source in node.args if isinstance(source, FxNode)]
        if _is_cut(_drawing(mark.spec), phi):
            node.meta["mark"] = replace(mark, spec=replace(mark.spec, has_rsample=False))
        return
    step = _Operation(node, values)
    if any(_is_cut(step.of(source), [values[source]]) for source in step.moved):
        node.meta["rough"] = True


@dataclass(frozen=True)
class _Operation:
    """A step of the program, as a function of any one tensor that it reads."""

    node: FxNode
    values: Mapping[FxNode, Any]

    @property
    def moved(self) -> Iterator[FxNode]:
        """What it reads, as far as it is floating point."""
        for source in dict.fromkeys(self.node.all_input_nodes):
            value = self.values[source]
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                yield source

    def of(self, source: FxNode) -> Call:
        def call(given: Sequence[Tensor]) -> list[Tensor]:
            values = {node: self.values[node] for node in self.node.all_input_nodes}
            if self.node.meta.get("writes"):
                values = {node: _copied(value) for node, value in values.items()}
            values[source] = given[0]
            found = step_value(self.node, values)
            if found is None:  # an assignment to a part
                found = values[self.node.args[0]]  # type: ignore[index]
            return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]

        return call


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _drawing(spec: DistributionSpec) -> Call:
    build = spec.builder()
    return lambda phi: [build(phi).rsample()]


# -- the test -----------------------------------------------------------------------------------


def _is_cut(call: Call, values: Sequence[Tensor]) -> bool:
    """Whether what comes out moves with one of the values, which has no derivative anywhere on the way."""
    movable = [i for i, value in enumerate(values) if value.is_floating_point() and value.numel()]
    return any(_cuts(_one(call, values, i), values[i].detach()) for i in movable)


def _one(call: Call, values: Sequence[Tensor], index: int) -> Callable[[Tensor], list[Tensor]]:
    return lambda moved: call([*values[:index], moved, *values[index + 1 :]])


def _cuts(call: Callable[[Tensor], list[Tensor]], value: Tensor) -> bool:
    start = _Moved.at(call, value)
    if start is None or start.slope:
        return False
    for there in _moves(value):
        end = _Moved.at(call, there)
        if end is None:
            continue
        if end.slope:
            return False
        if end.differs(start):
            return not _has_slope_between(call, start, end)
    return False


def _has_slope_between(call: Callable[[Tensor], list[Tensor]], low: _Moved, high: _Moved) -> bool:
    """Halve the way to where the value changes: a function with flat ends, such as a clamp, has a slope there."""
    for _ in range(_HALVINGS):
        middle = _Moved.at(call, (low.value + high.value) / 2)
        if middle is None or middle.slope:
            return True
        low, high = (low, middle) if middle.differs(low) else (middle, high)
    return False


def _moves(value: Tensor) -> Iterator[Tensor]:
    """Other values of the kind: a little and far off, within the signs and below one where the value is."""
    scale = value.std() if value.numel() > 1 else value.abs().mean()
    scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))
    share = torch.rand_like(value)
    yield value * (1 - share / 2)
    yield value + (1 - value) * share / 2 if bool(((value >= 0) & (value <= 1)).all()) else value * (1 + share / 2)
    for far in (0.1, 1.0, 10.0):
        yield value + far * scale * torch.randn_like(value)


@dataclass(frozen=True)
class _Moved:
    """What a function gives at a value, and whether its derivative there is other than zero."""

    value: Tensor
    given: list[Tensor]
    slope: bool

    @staticmethod
    def at(call: Callable[[Tensor], list[Tensor]], value: Tensor) -> _Moved | None:
        """None where it cannot be had: a value outside the domain, an operation without derivative."""
        seed_all(0)  # the same noise in the operation wherever it stands
        leaf = value.detach().requires_grad_()
        try:
            with torch.enable_grad():
                given = call(leaf.clone())
            slope = _has_slope(given, leaf)
        except Exception:
            return None
        return _Moved(value.detach(), [out.detach() for out in given], slope)

    def differs(self, other: _Moved) -> bool:
        """Whether it gives something else."""
        pairs = zip(self.given, other.given)
        return any(a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def _has_slope(given: Sequence[Tensor], leaf: Tensor) -> bool:
    """Whether a derivative along a random direction of what comes out is other than zero; NaN is."""
    live = [out for out in given if out.requires_grad and (out.is_floating_point() or out.is_complex())]
    if not live:
        return False
    try:
        (found,) = torch.autograd.grad(live, leaf, [torch.randn_like(out) for out in live], allow_unused=True)
    except RuntimeError as error:
        if "is not implemented" in str(error):  # as of binomial: there is none
            return False
        raise
    return found is not None and bool((found != 0).any())

"""Random numbers inside a program that runs again: each operation draws from a seed of its own.

Some use as many random numbers as their inputs say, as `torch.poisson` and every rejection sampler do. Where a row has
another input, those behind it in memory would draw others, though rows do not mix. What such an operation gave for
inputs that are as they were is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.ir.nodes.segment import Segment
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Plan, Step
from propc.runtime.plates.segments import lifted
from propc.util.torch_private import pytree
from propc.util.torch_rng import seed, state_of

Key = tuple[str, int]  # of a segment, and the place of an operation in it


@dataclass(frozen=True)
class _Drawn:
    """What an operation got and gave in a run, and where it left the generator."""

    given: Sequence[Tensor]
    made: Sequence[Tensor]
    state: Tensor


class ReplayedNoise:
    """The random numbers of runs that are compared.

    Attributes:
        uneven: the operations that were seen to use as many random numbers as their inputs say.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.uneven: set[Key] = set()
        self._drawn: dict[Key, list[_Drawn]] = {}

    def begin(self) -> None:
        """Begin with the first of the runs."""
        self._drawn.clear()

    def through(self, plan: Plan) -> list[Step]:
        """A plan whose segments run operation by operation."""
        return [replace(step, function=self._apart(step.node)) if _has_code(step) else step for step in plan]

    def _apart(self, segment: Any) -> Callable[..., Sequence[Any]]:
        if not segment.plates:
            return _ByOperation(self, segment.name, segment.stage.module, segment.stage.module.graph).run
        reads = [self.planner.graph.plates_of(ref) for ref in segment.inputs]
        code = lifted(self.planner.graph, segment, reads).code
        return _ByOperation(self, segment.name, torch.nn.Module(), code).run

    def kept(self, key: Key, drawn: _Drawn) -> Sequence[Tensor]:
        """What an operation gives: where it gets what it got in an earlier run, what it gave then."""
        before = self._drawn.setdefault(key, [])
        if before and not torch.equal(before[0].state, drawn.state):
            self.uneven.add(key)
        made = list(drawn.made)
        if key in self.uneven:
            for one in reversed(before):  # the first last, so that it counts
                made = [_where_same(one.given, drawn.given, *pair) for pair in zip(one.made, made)]
        before.append(replace(drawn, made=[each.detach().clone() for each in made]))
        return made


class _ByOperation(torch.fx.Interpreter):
    """Code, operation by operation."""

    def __init__(self, noise: ReplayedNoise, name: str, module: torch.nn.Module, code: torch.fx.Graph) -> None:
        super().__init__(module, graph=code)
        self.noise, self.name = noise, name
        self.extra_traceback = False
        self.place = {node: i for i, node in enumerate(code.nodes)}

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.op not in ("call_function", "call_method"):
            return super().run_node(n)
        key, read = (self.name, self.place[n]), self.fetch_args_kwargs_from_env(n)
        given = [value.detach().clone() for value in _tensors(read)]
        device = given[0].device if given else torch.device(n.kwargs.get("device") or "cpu")  # type: ignore[arg-type]
        seed(device, self.place[n])
        before, region = state_of(device), n.meta.get("context")
        with nullcontext() if region is None else region.entered():
            value = super().run_node(n)
        after = state_of(device)
        if torch.equal(before, after):
            return value
        if _overwrites(n):
            given = given[1:]
        made = _tensors(value)
        kept = iter(self.noise.kept(key, _Drawn(given, made, after)))
        written = {id(each) for each in _tensors(read)}
        return pytree.tree_map_only(Tensor, lambda each: _put(each, next(kept), id(each) in written), value)


def _has_code(step: Step) -> bool:
    return isinstance(step.node, Segment) and step.node.stage is not None and not step.node.rows


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _overwrites(node: torch.fx.Node) -> bool:
    """Whether what stands in the first argument does not matter, as to `Tensor.normal_`."""
    inner = getattr(node.target, "node", node)
    return inner.op == "call_method" and str(inner.target) in _FILLS


_FILLS = frozenset("bernoulli_ normal_ uniform_ exponential_ geometric_ cauchy_ log_normal_ random_".split())


def _put(value: Tensor, kept: Tensor, in_place: bool) -> Tensor:
    """What is kept, in the memory of what was written into."""
    if kept is value or not in_place:
        return kept
    with torch.no_grad():
        value.copy_(kept)
    return value


def _where_same(before: Sequence[Tensor], now: Sequence[Tensor], first: Tensor, made: Tensor) -> Tensor:
    """`first` where all inputs are the same, by element where they are aligned with it, else by leading dimensions."""
    alike = len(before) == len(now) and all(a.shape == b.shape for a, b in zip(before, now))
    if not alike or first.shape != made.shape:
        return made
    same = torch.ones((), dtype=torch.bool, device=made.device)
    for a, b in zip(before, now):
        same = same & _aligned(((a == b) | ((a != a) & (b != b))).to(made.device), made.shape)
    return torch.where(same, first, made)


def _aligned(equal: Tensor, shape: torch.Size) -> Tensor:
    """Truths for each element of a shape."""
    if equal.dim() <= len(shape) and all(a in (1, b) for a, b in zip(reversed(equal.shape), reversed(shape))):
        return equal
    lead = 0
    while lead < min(equal.dim(), len(shape)) and equal.shape[lead] == shape[lead]:
        lead += 1
    return equal.flatten(lead).all(-1).reshape(*shape[:lead], *(1,) * (len(shape) - lead))

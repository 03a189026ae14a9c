"""A traced program as functions: from leaves to draws, and from draws to costs with its selections in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.frontend.cost_terms import returned_costs
from propc.fx import segment_code
from propc.fx.operations import is_random, step_name
from propc.fx.program import Program, mark_of, type_of
from propc.fx.selections import selects, spelled_out
from propc.runtime.checks.traced_run import last_uses, step_value
from propc.util.torch_rng import seed_all

Force = Callable[[int, Any], Any]
FxNode = torch.fx.Node


@dataclass(frozen=True)
class Reached:
    """What of a program a set of sites reaches along paths: draw by draw, by sites that pass their paths on.

    Attributes:
        near: bit i is the i-th site of the program, if a path from its draw meets no other site.
        far: the same along paths through other sites that pass theirs on, too.
    """

    near: Mapping[FxNode, int]
    far: Mapping[FxNode, int]


def sites_of(program: Program) -> list[FxNode]:
    """The marks of sites, in program order."""
    return [node for node in program.graph.nodes if (mark := mark_of(node)) is not None and mark.kind == "site"]


def reached(program: Program, passing: Sequence[bool]) -> Reached:
    """What hangs on the draws of sites, of which some pass the path on; through a black box no path leads."""
    near: dict[FxNode, int] = {}
    far: dict[FxNode, int] = {}
    place = {node: i for i, node in enumerate(sites_of(program))}
    for node in program.graph.nodes:
        before = [sum_bits(table[source] for source in node.all_input_nodes) for table in (near, far)]
        mark = mark_of(node)
        if node in place:
            own = passing[place[node]] << place[node]
            before = [own, own | before[1] if own else 0]
        elif mark is not None and mark.kind == "opaque":
            before = [0, 0]
        near[node], far[node] = before
    return Reached(near, far)


def sum_bits(masks: Iterable[int]) -> int:
    """The union of bit masks."""
    found = 0
    for mask in masks:
        found |= mask
    return found


class SelectionRun:
    """The part of a program that hangs on the draws of some sites, with its selections in hand.

    Attributes:
        nodes: the selections, as they stand in the program.
        draws: the sites whose draws are moved.
        seen: the values of the selections in the last run, in their order.
    """

    def __init__(self, program: Program, hangs: Mapping[FxNode, int], draws: Sequence[FxNode]) -> None:
        self.program, self.draws = program, draws
        self.nodes = [node for node in program.graph.nodes if hangs[node] and selects(node)]
        self.seen: list[Any] = [None] * len(self.nodes)
        self.force: Force | None = None
        results = list(dict.fromkeys(_ends(program, set(self.nodes))))
        stays = {node for node in hangs if not hangs[node] and (not program.mutates or _runs_once(node))}
        body = _leading_to([*results, *self.nodes], {*draws, *stays}) if results else []
        inside = {*body, *draws}
        self.fixed = list(dict.fromkeys(s for n in body for s in n.all_input_nodes if s not in inside))
        self.random = any(map(is_random, body))
        self.grad = any(map(_needs_history, program.graph.nodes))
        instead: dict[FxNode, Callable[..., Any]] = {node: _itself for node in body if mark_of(node) is not None}
        instead.update((node, self._held(i, node)) for i, node in enumerate(self.nodes))
        self.part = segment_code.build("moved", body, [*self.fixed, *draws], results, instead) if results else None

    def draw(self, leaves: Sequence[Tensor]) -> tuple[list[Any], list[Tensor]]:
        """Run the program: what stays fixed when draws move, and the draws."""
        given = [leaf.detach().clone() if self.program.mutates else leaf.detach() for leaf in leaves]
        values = _interpreted(self.program, given, {*self.fixed, *self.draws})
        return [values[node] for node in self.fixed], [values[node].detach() for node in self.draws]

    def run(self, fixed: Sequence[Any], draws: Sequence[Tensor], force: Force | None = None) -> list[Tensor]:
        """Costs and parameters of sites, at draws; `force` may put other values in the place of selections."""
        assert self.part is not None
        self.force = force
        if self.random:
            seed_all(0)
        if self.program.mutates:
            fixed = [value.clone() if isinstance(value, Tensor) else value for value in fixed]
        return [value.detach() for value in self.part.forward(*fixed, *draws)]

    def _held(self, index: int, node: FxNode) -> Callable[..., Any]:
        """A selection that is seen, and gives what it is forced to give."""
        function, steps = _function(node), spelled_out(node)

        def hold(value: Any) -> Any:
            self.seen[index] = value = value if self.force is None else self.force(index, value)
            return value

        if steps is not None:
            return lambda *args, **kwargs: steps.gives(hold(steps.selects(*args, **kwargs)), *args, **kwargs)
        return lambda *args, **kwargs: hold(function(*args, **kwargs))


def _function(node: FxNode) -> Callable[..., Any]:
    target: Any = node.target
    return (
        (lambda value, *args, **kwargs: getattr(value, target)(*args, **kwargs)) if isinstance(target, str) else target
    )


def _itself(value: Any) -> Any:
    return value


def _interpreted(program: Program, leaves: Sequence[Tensor], wanted: set[FxNode]) -> dict[FxNode, Any]:
    """Values of a run of a program in which its sites draw."""
    done = last_uses(program.graph, wanted)
    values: dict[FxNode, Any] = {leaf.node: value for leaf, value in zip(program.leaves, leaves)}
    for node in program.graph.nodes:
        if node.op not in ("placeholder", "output"):
            values[node] = step_value(node, values, boxes=True)
        for source in done.get(node, ()):
            del values[source]
    return values


def _ends(program: Program, selections: set[FxNode]) -> list[FxNode]:
    """Parameters of sites and costs that hang on a selection; of costs that are summed up, the sums."""
    hangs = set(selections)
    for node in program.graph.nodes:
        if any(source in hangs for source in node.all_input_nodes):
            hangs.add(node)
    costs = list(returned_costs(program))
    inside = set(_leading_to(costs, set()))
    found = []
    for node in program.graph.nodes:
        mark = mark_of(node)
        if mark is not None and mark.kind == "site":
            found += node.all_input_nodes
        elif mark is not None and mark.kind == "cost" and node not in inside:
            found.append(node)
    kinds = ((node, type_of(node)) for node in (*found, *costs) if node in hangs)
    return [node for node, kind in kinds if kind is not None and kind.dtype.is_floating_point]


def _leading_to(ends: Iterable[FxNode], start: set[FxNode]) -> list[FxNode]:
    """The steps that lead to some ends from others on, in program order."""
    found: set[FxNode] = set()
    ahead = list(ends)
    while ahead:
        node = ahead.pop()
        if node not in found and node not in start and node.op != "placeholder":
            found.add(node)
            ahead += node.all_input_nodes
    return [node for node in next(iter(found)).graph.nodes if node in found] if found else []


def _needs_history(node: FxNode) -> bool:
    """Whether a step is a hook, or takes a gradient inside the program."""
    name = step_name(node)
    return "hook" in name or "grad" in name


def _runs_once(node: FxNode) -> bool:
    """Whether a step must not run again: what draws, and black boxes."""
    mark = mark_of(node)
    return mark is not None and mark.kind in ("site", "opaque")

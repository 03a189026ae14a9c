"""Expand targets: the variance of per-sample gradients at the parameter or node where weights are taken.

A weighting target is shared by the whole batch, and autograd gives only its summed gradient. This pass
inserts, before each site that wants it, a node that keeps what is needed to turn cotangents on φ, any number
of them, into that variance: what one reverse traversal to the target reads of the forward pass, where the
layers on the way allow it; else the tangents of φ along directions of the target.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.fx

from propc.errors import EstimatorError
from propc.fx.operations import is_random
from propc.fx.program import type_of
from propc.fx.segment_code import structure
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.node import Node
from propc.ir.nodes.site import Site
from propc.passes.pipeline import Pass, register
from propc.passes.targets.target_slice import TargetPaths, TargetSlice
from propc.runtime.weighting.layer_uses import find_uses, operation
from propc.runtime.weighting.per_sample_jvp import tangent_module
from propc.runtime.weighting.per_sample_norms import Norms
from propc.runtime.weighting.per_sample_vjp import Pulled, pulled
from propc.types import TensorType

# Measured for ten sites of 1000 rows. One element by a tangent takes 0.95 of the time of a reverse traversal, two 1.05,
# sixteen 1.5. By tangents 64 elements take 3 times as long as by two signs, 128 take 6 times. Of signs, 8 take 1.2
# times as long as 1, 32 take 1.9; two are a choice.
FEW, EXACT, SIGNS = 1, 64, 2


@register("expand-targets")
@dataclass(frozen=True)
class ExpandTargets(Pass):
    """Insert an `Expand` node for every site whose weights are taken at a target.

    Args:
        few: targets of at most this many elements (per sample, for a node) have a tangent for each element. Of
            larger ones the variance is taken by one reverse traversal, exactly, as far as layers allow it.
        exact_up_to: where none does, targets of at most this many elements have a tangent for each, too.
        sketches: the number of random signs that stand for what remains, whose squared projections are an
            unbiased estimate of the summed variance (Hutchinson 1989).
    """

    name: ClassVar[str] = "expand-targets"
    needed: ClassVar[bool] = True
    few: int = FEW
    exact_up_to: int = EXACT
    sketches: int = SIGNS

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        ways: dict[Hashable, _Way] = {}
        paths: dict[str, TargetPaths] = {}
        changed: dict[str, Node] = {}
        inserted: dict[str, Expand] = {}
        for site in graph.sites:
            target = None if site.rule is None else site.rule.weighting_target
            if target is None:
                continue
            if site.plates:
                raise _inside_a_plate(site, target)
            if target not in paths:
                paths[target] = TargetPaths(graph, target, changed, site)
            changed[site.name], inserted[site.name] = self._expand(graph, site, paths[target], ways)
        nodes: dict[str, Node] = {}
        for name, node in graph.nodes.items():
            if name in inserted:
                nodes[inserted[name].name] = inserted[name]
            nodes[name] = changed.get(name, node)
        return replace(graph, nodes=nodes)

    def _expand(
        self, graph: PropagationGraph, site: Site, paths: TargetPaths, ways: dict[Hashable, _Way]
    ) -> tuple[Site, Expand]:
        rule, ports = site.rule, tuple(i for i, ref in enumerate(site.inputs) if ref in paths.on)
        assert rule is not None
        if not ports:
            raise _out_of_reach(site, paths.path)
        found = paths.slice([site.inputs[i] for i in ports])
        drawn = next(filter(is_random, found.body), None)
        if drawn is not None:
            raise _draws(site, paths.path, drawn)
        written = _written_over(found, paths)
        if written is not None:
            raise _writes(site, paths.path, written)
        key = paths.path, rule.mixes, structure(found.body, found.placeholders, found.results)
        if key not in ways:
            back = all(paths.kind(site.inputs[i]).requires_grad for i in ports)
            ways[key] = self._way(graph.batch if back else None, found, paths, rule.mixes)
        way = ways[key]
        expand = Expand(
            name=f"{site.name}.expand",
            inputs=tuple(paths.ref(found, found.values[i]) for i in way.reads),
            outputs=way.outputs,
            where=site.where,
            target=paths.path,
            directions=way.directions,
            exact=way.exact,
            norms=way.back is not None,
            code=way.code,
        )
        along = dict(zip(ports, expand.made)) if way.directions else {}
        tangents = (*(along.get(i) for i in range(len(site.inputs))), *expand.made[len(along) :])
        if way.back is not None:
            divisor = 1 if way.exact else way.directions
            rule = rule.with_norms(Norms(ports, way.back.code, way.back.layout, divisor))
        return replace(site, rule=rule, tangents=tangents), expand

    def _way(self, batch: int | None, found: TargetSlice, paths: TargetPaths, parts: int) -> _Way:
        """How variances are taken; `batch` is None where no cotangents come back."""
        places = {ref: node for node, ref in zip(found.placeholders, found.inputs)}
        rest = targets = [places[ref] for ref in paths.targets if ref in places]
        size, back = paths.size, None
        if size > self.few and batch is not None:
            uses = find_uses(found.code, targets, batch, paths.per_sample)
            if uses is not None and uses.exact:
                back = pulled(found.code, uses, parts)
                rest = [target for target in targets if target not in uses.exact]
                size = sum(math.prod(_kind(target).shape) for target in rest)
        exact = size <= (self.exact_up_to if back is None else self.few)
        directions = size if exact else self.sketches
        along: torch.fx.GraphModule | None = None
        read: tuple[torch.fx.Node, ...] = ()
        if rest:
            along, read = tangent_module(found.code, rest, paths.per_sample, directions, exact)
        reads = list(dict.fromkeys((*read, *(back.reads if back is not None else ()))))
        made = [replace(kind, shape=(directions, *kind.shape)) for kind in map(_kind, found.results) if rest]
        made += map(_kind, back.reads if back is not None else ())
        return _Way(
            code=_keeping(along, len(read), reads, back),
            reads=tuple(map(found.values.index, reads)),
            outputs=tuple(replace(kind, requires_grad=False) for kind in made),
            directions=directions,
            exact=exact,
            back=back,
        )


@dataclass(frozen=True)
class _Way:
    """What sites with equal code from the target to φ share.

    Attributes:
        code: of the node: from what it reads to tangents, and what the reverse traversal reads.
        reads: places among the values of a slice.
        outputs: what the code gives.
        directions, exact: of the tangents; 0 and true where there are none.
        back: the reverse traversal, if any.
    """

    code: torch.fx.GraphModule
    reads: tuple[int, ...]
    outputs: tuple[TensorType, ...]
    directions: int
    exact: bool
    back: Pulled | None


def _written_over(found: TargetSlice, paths: TargetPaths) -> torch.fx.Node | None:
    """The first step that writes what depends on the target into a tensor that does not; it would have no tangent."""
    moved = {node for node, ref in zip(found.placeholders, found.inputs) if ref in paths.targets}
    for step in found.body:
        sources = step.all_input_nodes
        if step.meta.get("writes") and sources[0] not in moved and not moved.isdisjoint(sources):
            return step
        if not moved.isdisjoint(sources):
            moved.add(step)
    return None


def _keeping(
    along: torch.fx.GraphModule | None, count: int, reads: Sequence[torch.fx.Node], back: Pulled | None
) -> torch.fx.GraphModule:
    """The code of an expand node; tangents read the first `count` of what it is given."""
    graph = torch.fx.Graph()
    given = {node: graph.placeholder(f"value{i}") for i, node in enumerate(reads)}
    results: list[torch.fx.Node] = []
    if along is not None:
        inner = [node for node in along.graph.nodes if node.op == "placeholder"]
        results += graph.graph_copy(along.graph, dict(zip(inner, [*given.values()][:count])))  # type: ignore[arg-type]
    for node in back.reads if back is not None else ():
        results.append(graph.call_function(torch.ops.aten.detach.default, (given[node],)))
    graph.output(tuple(results))
    return torch.fx.GraphModule({} if along is None else along, graph)


def _kind(node: torch.fx.Node) -> TensorType:
    kind = type_of(node)
    assert kind is not None
    return kind


def _inside_a_plate(site: Site, target: str) -> EstimatorError:
    return site.error(
        f"a weighting target, here {target!r}, cannot be reached from inside the plate of "
        f"{', '.join(map(repr, site.plates))}",
        "Leave out target=, which weighs at the site, or use one sample at the sites before it.",
    )


def _out_of_reach(site: Site, target: str) -> EstimatorError:
    return site.error(
        f"its weighting target {target!r} does not reach it without passing another site",
        "Choose another target for this site with a mapping, such as estimator={'x*': ..., 'z': 'tp'}.",
    )


def _draws(site: Site, target: str, step: torch.fx.Node) -> EstimatorError:
    return site.error(
        f"{operation(step)!r} draws random numbers between it and its weighting target {target!r}; they cannot be "
        "drawn again",
        "Leave out target=, which weighs at the site, or mark the draw with propc.sample.",
    )


def _writes(site: Site, target: str, step: torch.fx.Node) -> EstimatorError:
    return site.error(
        f"{operation(step)!r} ({step.meta['where']}) writes what depends on its weighting target {target!r} into a "
        "tensor that does not",
        "Write x = x + y in place of x += y, or leave out target=, which weighs at the site.",
    )

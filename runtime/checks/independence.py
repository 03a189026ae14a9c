"""Check that rows of the batch, and elements of plates of the data, do not mix on the way from draws to costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.errors import GraphError
from propc.fx.operations import operation_name
from propc.fx.separate_rows import NOWHERE
from propc.ir.footprint import gives, inside
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.runtime.checks.changed_draws import Variants, runs
from propc.runtime.checks.out_of_memory import is_shortage
from propc.runtime.checks.row_structure import RowStructure
from propc.types import PlateKind
from propc.util.rounding import agree

Values = Mapping[Ref, Any]
Replay = Callable[[Mapping[Ref, Tensor], bool], Values]  # on other draws; whether later ones are compared with it
Place = Callable[[Ref], int]
LIGHT = 10**6  # bytes that a program computes, or is given, and may run ten times: each takes a millisecond


@dataclass(frozen=True)
class Axis:
    """A dimension along which elements are to be independent.

    Attributes:
        name: of the plate; empty for the batch.
        size: how many elements there are.
        draws: those of which elements are changed.
        ends: nodes whose inputs must not move in other elements.
        place: where the dimension is in the value of a draw, or in what an end or a black box reads.
    """

    name: str
    size: int
    draws: frozenset[Ref]
    ends: Sequence[Node]
    place: Place


def find_mixed(graph: PropagationGraph, replay: Replay, draws: Mapping[Ref, Tensor]) -> GraphError | None:
    """Change some rows, or elements of a plate, of the draws, and see which others move.

    Where the structure of the program keeps elements apart, nothing is tried.

    Args:
        replay: runs the program on given draws and gives all values.
        draws: those of the first call.

    Returns:
        an error that names the site or cost where elements have mixed, and the user's line; None if they have not.
    """
    found = (_mixed_along(graph, axis, replay, draws) for axis in (*_batch(graph), *_plates(graph)))
    return next((error for error in found if error is not None), None)


def _mixed_along(graph: PropagationGraph, axis: Axis, replay: Replay, draws: Mapping[Ref, Tensor]) -> GraphError | None:
    def place(ref: Ref) -> int:
        found = axis.place(ref)
        return found if found == NOWHERE else found - len(graph.plates_of(ref))

    structure = RowStructure(graph, {ref: place(ref) if ref in axis.draws else NOWHERE for ref in draws})
    open_ends = [node for node in axis.ends if not structure.proves(node, place)]
    if not open_ends:
        return None
    variants = Variants(graph, draws, _dims(axis, draws))
    levels = runs(axis.size, variants.levels, is_light(graph))
    found = [_tried(replay, variants.at(each), begins=i == 0) for i, each in enumerate(levels)]
    given = [i for i, values in enumerate(found) if values is not None]
    if not given:
        replay(draws, True)  # says what the user's code does not take
        return None
    return _compare(graph, axis, open_ends, [found[i] for i in given], levels[given], structure)


def _tried(replay: Replay, draws: Mapping[Ref, Tensor], begins: bool) -> Values | None:
    """The values of a run; None where the user's code does not take draws, though they are possible."""
    try:
        return replay(draws, begins)
    except Exception as error:
        if is_shortage(error):
            raise
        return None


def is_light(graph: PropagationGraph) -> bool:
    """Whether a program takes so little time that it may run ten times."""
    boxes = any(isinstance(node, Opaque) for node in graph)
    return not boxes and sum(inside(graph, node) for node in graph) <= LIGHT and sum(_held(graph)) <= LIGHT


def _held(graph: PropagationGraph) -> Iterator[int]:
    """Bytes of what is given."""
    return (gives(graph, node) for node in graph if isinstance(node, LeafNode))


def _dims(axis: Axis, draws: Mapping[Ref, Tensor]) -> dict[Ref, int]:
    """Where the dimension is in the draws that have it."""
    places = {ref: axis.place(ref) for ref in draws if ref in axis.draws}
    return {
        ref: dim
        for ref, dim in places.items()
        if dim != NOWHERE and draws[ref].dim() > dim and draws[ref].shape[dim] == axis.size
    }


def _batch(graph: PropagationGraph) -> Iterator[Axis]:
    """The rows of the batch, of all draws."""
    batch = graph.batch
    if batch is None or batch < 2:
        return

    def place(ref: Ref) -> int:
        shape = graph[ref.node].outputs[ref.port].shape
        return len(graph.plates_of(ref)) if shape[:1] == (batch,) else NOWHERE

    drawn = [node for node in graph if isinstance(node, (Site, Resample)) and not node.copy_of]
    ends = [node for node in graph if isinstance(node, (Site, Resample, Cost)) and not node.copy_of]
    yield Axis("", batch, frozenset(ref for node in drawn for ref in node.made), ends, place)


def _plates(graph: PropagationGraph) -> Iterator[Axis]:
    """The elements of the plates along which messages go from element to element."""
    used = {name for route in graph.routes for name in route.along}
    for plate in graph.plates:
        inside = [n for n in graph if isinstance(n, (Site, Cost)) and plate.name in n.dims and not n.copy_of]
        if plate.kind == PlateKind.DATA and plate.size > 1 and plate.name in used:
            draws = frozenset(Ref(node.name) for node in inside if isinstance(node, Site))
            yield Axis(plate.name, plate.size, draws, inside, _places(graph, plate.name, inside))


def _places(graph: PropagationGraph, plate: str, inside: Iterable[Node]) -> Place:
    """Where the dimension of a plate is in the draws of sites inside, and in what sites and costs inside read."""
    known: dict[Ref, int] = {}
    for node in inside:
        place = node.dims.index(plate)
        known[Ref(node.name)] = len(node.plates) + place
        for index, ref in enumerate(node.inputs):
            shape = graph[ref.node].outputs[ref.port].shape
            if isinstance(node, Site):
                place = _in_parameter(node, index, shape, node.dims.index(plate))
            known[ref] = len(graph.plates_of(ref)) + place if place >= 0 else NOWHERE
    return lambda ref: known.get(ref, NOWHERE)


def _in_parameter(site: Site, index: int, shape: tuple[int, ...], place: int) -> int:
    """Where a dimension of a site's batch shape is in a parameter, which may have fewer; negative if it is not."""
    whole = site.spec.batch_shape
    if shape[: len(whole)] == whole:
        return place
    found = len(shape) - site.spec.event_dims[index] - (len(whole) - place)
    return found if found >= 0 and shape[found] == whole[place] else NOWHERE


def _compare(
    graph: PropagationGraph,
    axis: Axis,
    ends: Sequence[Node],
    found: Sequence[Any],
    levels: Tensor,
    structure: RowStructure,
) -> GraphError | None:
    """Whether in all runs elements of the same level have the same values."""
    like = (levels.unsqueeze(0) == levels.unsqueeze(1)).to(torch.uint8).argmax(1)  # the first run with the same level

    def apart(refs: Iterable[Ref]) -> bool:
        return all(_same([values[ref] for values in found], like, axis.place(ref)) for ref in refs)

    mixed = next((node for node in ends if not apart(node.inputs)), None)
    if mixed is None:
        return None
    boxes = [box for box in graph.of(Opaque) if not axis.name and apart(box.inputs) and not apart(box.made)]
    from networkx import ancestors  # here, as only this error needs it, and it takes long to import

    behind = ancestors(graph.nx, mixed.name)
    box = next((box for box in boxes if box.name in behind), None)
    refs = [ref for node in (*map(graph.__getitem__, behind), mixed) for ref in node.inputs if not apart([ref])]
    return _mixed(graph, mixed, axis, box, structure.suspected(refs))


def _mixed(
    graph: PropagationGraph, node: Node, axis: Axis, box: Opaque | None, suspects: Sequence[torch.fx.Node]
) -> GraphError:
    """Elements have mixed on the way to a node, perhaps in a black box."""
    what = f"{_named(suspects)} before it" if box is None else f"black box {box.name!r} ({box.where}) before it"
    if axis.name:
        finding = (
            f"{what} mixes elements of plate {axis.name!r}: changing one element of a draw changes others, or a value "
            "that all elements share"
        )
        fix = "Keep elements apart inside the plate, or move the site or the cost out of it."
    else:
        finding = (
            f"{what} mixes samples of the batch: changing one sample of a draw changes other rows, or a value that "
            "all rows share"
        )
        pathwise = all(site.spec.has_rsample for site in graph.sites)
        fix = (
            "Keep every operation between sites and costs within its row (no batch normalization, batch mean or sort "
            "over dimension 0; a draw that all rows share has shape [1, ...]), return a scalar cost"
            f"{', or use estimator=' + repr('rp') if pathwise else ''}."
        )
    if box is not None:
        fix = "Let row i of its results depend on row i of its arguments alone."
    return node.error(finding, fix, GraphError)


def _named(suspects: Sequence[torch.fx.Node]) -> str:
    """An operation, with its line, where only one can have mixed elements."""
    names = dict.fromkeys((operation_name(step), step.meta.get("where")) for step in suspects)
    if len(names) != 1:
        return "an operation"
    ((name, where),) = names
    return f"operation {name!r} ({where})"


def _same(values: Sequence[Any], like: Tensor, dim: int) -> bool:
    """Whether each element of a value has in each run what it has in the run like it; in one that all share, the first.

    Args:
        like: runs, [runs, elements].
    """
    if not isinstance(values[0], Tensor):
        return True
    every = torch.stack([value.detach() for value in values])
    if dim == NOWHERE:
        first = every[:1].expand_as(every)
    else:
        every = every.movedim(dim + 1, 1)
        like = like.to(every.device)
        first = every[like, torch.arange(like.shape[1], device=like.device)]
    return agree(every, first) if every.dtype.is_floating_point else bool(torch.equal(every, first))

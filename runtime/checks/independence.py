"""Check that rows of the batch, and elements of plates of the data, do not mix on the way from draws to costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from propc.distributions.families import family
from propc.distributions.perturbed_logits import Binary, Categories, Family
from propc.distributions.spec import DistributionSpec
from propc.distributions.support import event_of, of_ones, values_of
from propc.errors import GraphError
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.types import PlateKind, TensorType
from propc.util.rounding import agree

Values = Mapping[Ref, Any]
Replay = Callable[[Mapping[Ref, Tensor]], Values]
Place = Callable[[Ref], int]
MANY = 200  # so that one element moves a mean by less than a percent
NOWHERE = -1  # the place of a dimension in a value that all its elements share


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

    def chosen(self, device: torch.device) -> Tensor:
        """Which elements are changed: the first; of very many half, without a pattern that an operation could share."""
        if self.size < MANY:
            return torch.arange(self.size, device=device) == 0
        spread = torch.arange(self.size, device=device) * 2654435761  # a hash of the index
        return ((spread ^ (spread >> 15)) * 2246822519 >> 16) % 2 == 0


def check_independence(graph: PropagationGraph, replay: Replay, draws: Mapping[Ref, Tensor]) -> None:
    """Change some rows, or elements of a plate, of the draws, and see which others move.

    Args:
        replay: runs the program on given draws and gives all values.
        draws: those of the first call.

    Raises:
        GraphError: names the site or cost where elements have mixed, and the user's line.
    """
    axes = [*_batch(graph), *_plates(graph)]
    if not axes:
        return
    before = replay(draws)
    for axis in axes:
        changed = {
            ref: _changed(value, axis, axis.place(ref), _another(graph, ref)) if ref in axis.draws else value
            for ref, value in draws.items()
        }
        _compare(graph, axis, before, replay(changed))


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


def _compare(graph: PropagationGraph, axis: Axis, before: Values, after: Values) -> None:
    def apart(refs: Iterable[Ref]) -> bool:
        return all(_same(before[ref], after[ref], axis, axis.place(ref)) for ref in refs)

    boxes = [box for box in graph.of(Opaque) if not axis.name and apart(box.inputs) and not apart(box.made)]
    for node in axis.ends:
        if not apart(node.inputs):
            from networkx import has_path  # here, as only this error needs it, and it takes long to import

            box = next((box for box in boxes if has_path(graph.nx, box.name, node.name)), None)
            raise _mixed(node, axis, box)


def _mixed(node: Node, axis: Axis, box: Opaque | None) -> GraphError:
    """Elements have mixed on the way to a node, perhaps in a black box."""
    what = "an operation before it" if box is None else f"black box {box.name!r} ({box.where}) before it"
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
        fix = (
            "Keep every operation between sites and costs within its row (no batch normalization, batch mean or sort "
            "over dimension 0), or use estimator='rp'."
        )
    if box is not None:
        fix = "Let row i of its results depend on row i of its arguments alone."
    return node.error(finding, fix, GraphError)


def _changed(value: Tensor, axis: Axis, dim: int, another: Callable[[Tensor], Tensor | None]) -> Tensor:
    """A draw with the chosen elements of a dimension replaced by one of another element, which is a possible draw too.

    Many are replaced by the same, so that a mean over a large batch moves as well.
    """
    value = value.detach()
    if dim == NOWHERE or value.dim() <= dim or value.shape[dim] != axis.size:
        return value
    rows = value.movedim(dim, 0)
    differs = (rows != rows[:1]).flatten(1).any(1) if rows.dim() > 1 else rows != rows[0]
    other = rows[int(differs.to(torch.uint8).argmax())] if bool(differs.any()) else another(rows[0])
    if other is None:
        return value
    changed = value.clone()
    changed.movedim(dim, 0)[axis.chosen(value.device)] = other
    return changed


def _another(graph: PropagationGraph, ref: Ref) -> Callable[[Tensor], Tensor | None]:
    """Gives another value than that of a discrete draw, where all elements have drawn the same."""
    site = graph[ref.node]
    found = family(site.spec) if isinstance(site, Site) else None
    if not isinstance(site, Site) or found is None:
        return lambda _: None
    if found.value_by is not None:
        return _other_outcome(found, site.spec, [graph[r.node].outputs[r.port] for r in site.inputs])
    if isinstance(found, Binary):
        return lambda value: 1 - value
    if not (isinstance(found, Categories) and found.indexed):
        return lambda value: value.roll(1, -1)
    count = values_of(site.spec, [graph[r.node].outputs[r.port] for r in site.inputs]) or 1
    return lambda value: (value + 1) % count


def _other_outcome(found: Family, spec: DistributionSpec, phi: Sequence[TensorType]) -> Callable[[Tensor], Tensor]:
    """Gives the first outcome of a family, or, where that is what there is, the second."""
    event = event_of(spec)

    def other(value: Tensor) -> Tensor:
        outcomes = found.outcomes(of_ones(spec, phi), 2).to(value)
        first, second = outcomes.reshape(2, -1, *event)[:, 0]
        same = value == first
        for _ in event:
            same = same.all(-1)
        return torch.where(same.reshape((*same.shape, *(1 for _ in event))), second, first)

    return other


def _same(before: Any, after: Any, axis: Axis, dim: int) -> bool:
    """Whether elements other than the chosen ones are the same; in a value that all share, whether it is."""
    if not isinstance(before, Tensor):
        return True
    before, after = before.detach(), after.detach()
    if dim != NOWHERE:
        kept = ~axis.chosen(before.device)
        before, after = before.movedim(dim, 0)[kept], after.movedim(dim, 0)[kept]
    if not before.dtype.is_floating_point:
        return bool(torch.equal(before, after))
    return agree(before, after)

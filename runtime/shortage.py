"""Out of memory: at which node, how large it is, and which option helps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from propc.errors import OutOfMemoryError, PropcError, message
from propc.graph import PropagationGraph
from propc.ir import Node, Segment, Site

MANY = 8  # runs of one stage from which a horizon is worth mentioning
_CPU = re.compile(r"DefaultCPUAllocator.*?(?:allocate (\d+) bytes|$)|Storage size calculation overflowed")
_DEVICE = re.compile(r"[Tt]ried to allocate ([\d.]+ [KMGTP]?i?B)")


def is_shortage(error: BaseException) -> bool:
    """Whether an error is torch's for a lack of memory, on any device."""
    if isinstance(error, PropcError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or _CPU.search(str(error)) is not None


@contextmanager
def explaining(graph: PropagationGraph, nodes: Iterable[Node], backward: bool = False) -> Iterator[None]:
    """Turn torch's errors for a lack of memory into one that names these nodes."""
    try:
        yield
    except RuntimeError as error:
        if is_shortage(error):
            raise explained(graph, list(nodes), error, backward) from error
        raise


def explained(graph: PropagationGraph, nodes: list[Node], error: Exception, backward: bool = False) -> OutOfMemoryError:
    """The error for a lack of memory at nodes, which one step of autograd runs together.

    Args:
        backward: whether it has come in the reverse pass.
    """
    first, last = nodes[0], nodes[-1]
    names = f"{first.kind.value} {first.name!r}" + (f" to {last.kind.value} {last.name!r}" if last is not first else "")
    when = " in the reverse pass" if backward else ""
    runs = _runs(graph, first)
    finding = f"out of memory{when}{_asked(error)}; {_size(graph, first)}"
    if runs >= MANY:
        finding += f"; its stage runs {runs} times"
    return OutOfMemoryError(message(finding, _fix(graph, first, runs), at=names, where=first.where))


def _asked(error: Exception) -> str:
    """How much was asked for, where torch says so."""
    found = _CPU.search(str(error))
    if found is not None and found.group(1):
        return f": {_bytes(int(found.group(1)))} more were asked for"
    found = _DEVICE.search(str(error))
    return f": {found.group(1)} more were asked for" if found is not None else ""


def _bytes(count: int) -> str:
    """A number of bytes for people."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = min((count.bit_length() - 1) // 10, len(units) - 1)
    return f"{count / 1024**power:.4g} {units[power]}"


def _size(graph: PropagationGraph, node: Node) -> str:
    """The types of a node's values, and the plates around them."""
    types = ", ".join(map(str, node.outputs)) or "nothing"
    plates = " and ".join(f"{name!r} ({size})" for name, size in zip(node.plates, graph.sizes(node.plates)))
    return f"it makes {types}" + (f" for each element of the plates of {plates}" if plates else "")


def _runs(graph: PropagationGraph, node: Node) -> int:
    """How many times the stage of a node runs; of a site, the stage before it."""
    stages = [s.stage for s in graph.of(Segment)]
    before = [node, *(graph[ref.node] for ref in node.inputs)]
    return max((stages.count(s.stage) for s in before if isinstance(s, Segment)), default=1)


def _fix(graph: PropagationGraph, node: Node, runs: int) -> str:
    """The options that make it smaller, the most to the point first."""
    ways = [*_by_plates(graph, node)]
    if runs >= MANY and torch.is_grad_enabled():
        more = "more blocks= in " if graph.schedule.blocks else ""
        ways.append(f"{more}passes=[propc.passes.Checkpoint()], which keeps less of {runs} steps for the reverse pass")
    ways.append("a smaller batch")
    first, *rest = ways
    return f"Use {first}" + "".join(f", or {way}" for way in rest) + "."


def _by_plates(graph: PropagationGraph, node: Node) -> Iterator[str]:
    """What helps in plates: their sites draw less, and segments take a chunk at a time."""
    plates = [graph.plate(name) for name in node.plates]
    if not plates:
        return
    widest = max(plates, key=lambda plate: plate.size)
    owner = next(site for site in graph.sites if widest.name in (site.plate, site.alternatives, site.name))
    if widest.kind == "samples":
        yield f"fewer samples= at site {owner.name!r}"
    else:
        yield f"'lr' at site {owner.name!r}, which needs no plate of {widest.size} {widest.kind}"
    if not isinstance(node, Site):
        size = "a smaller chunk=" if widest.chunk is not None else "chunk="
        yield f"{size} in propc.compile, so that segments hold fewer of the {widest.size} elements at once"

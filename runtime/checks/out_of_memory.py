"""Out of memory: at which node, how large it is, and which option helps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from propc.errors import OutOfMemoryError, PropcError, message
from propc.ir.footprint import inside
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.passes.memory.chunk_batch import ROWS
from propc.types import PlateKind

# Runs of one stage from which a horizon is worth mentioning: of 8 steps, √8 blocks of √8 steps keep two thirds, and of
# fewer nearly all.
MANY = 8
_CPU = re.compile(r"DefaultCPUAllocator.*?(?:allocate (\d+) bytes|$)|Storage size calculation overflowed")
_DEVICE = re.compile(r"[Tt]ried to allocate ([\d.]+ [KMGTP]?i?B)")


def is_shortage(error: BaseException) -> bool:
    """Whether an error is torch's for a lack of memory, on any device."""
    if isinstance(error, PropcError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or _CPU.search(str(error)) is not None


@contextmanager
def explaining(graph: PropagationGraph, nodes: Sequence[Node], backward: bool) -> Iterator[None]:
    """Turn torch's errors for a lack of memory into one that names the node, or the largest of several.

    Args:
        backward: whether it is their reverse pass that runs inside.
    """
    try:
        yield
    except RuntimeError as error:
        if is_shortage(error):
            largest = max(nodes, key=lambda node: inside(graph, node))
            raise explained(graph, largest, error, nodes if backward else ()) from error
        raise


@contextmanager
def checking(graph: PropagationGraph) -> Iterator[None]:
    """The same while the first call is checked."""
    try:
        yield
    except RuntimeError as error:
        if is_shortage(error):
            raise OutOfMemoryError(
                message(
                    f"out of memory in the checks of the first call{_asked(error)}; they run {graph.name!r} again, and "
                    "hold all its values",
                    "Pass validate=False to propc.compile, or make the first call with a smaller batch, where rows "
                    "that mix are found too.",
                )
            ) from error
        raise


def explained(graph: PropagationGraph, node: Node, error: Exception, block: Sequence[Node] = ()) -> OutOfMemoryError:
    """The error for a lack of memory at a node.

    Args:
        block: nodes whose reverse pass it has come in; the node is the largest of them.
    """
    when = " in the reverse pass" if block else ""
    if len(block) > 1:
        when += f" of {block[0].name!r} to {block[-1].name!r}, where this is the largest"
    runs = Counter(segment.stage for segment in graph.of(Segment))
    own = runs[node.stage] if isinstance(node, Segment) else 1
    finding = f"out of memory{when}{_asked(error)}; it makes {_size(graph, node)}"
    if own >= MANY:
        finding += f", and its stage runs {own} times"
    fix = _fix(graph, node, max(runs.values(), default=1))
    return node.error(finding, fix, OutOfMemoryError)


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
    return types + (f" for each element of the plates of {plates}" if plates else "")


def _fix(graph: PropagationGraph, node: Node, runs: int) -> str:
    """The options that make it smaller, the most to the point first.

    Args:
        runs: how many times the stage runs that runs most often.
    """
    ways = [*_by_plates(graph, node)]
    if runs >= MANY and torch.is_grad_enabled():
        more = "more blocks= in " if graph.schedule.blocks else ""
        ways.append(f"{more}passes=[propc.passes.Checkpoint()], which keeps less of {runs} steps for the reverse pass")
    if isinstance(node, Segment) and not node.plates and (graph.batch or 0) > ROWS:
        less = "fewer rows= in " if node.rows else ""
        ways.append(f"{less}passes=[propc.passes.ChunkBatch()], by which segments take a few rows of the batch at once")
    ways.append("a smaller batch")
    first, *rest = ways
    return f"Use {first}" + "".join(f", or {way}" for way in rest) + "."


def _by_plates(graph: PropagationGraph, node: Node) -> Iterator[str]:
    """What helps in plates: their sites draw less, and segments take a chunk at a time."""
    plates = [graph.plate(name) for name in node.plates]
    if not plates:
        return
    widest = max(plates, key=lambda plate: plate.size)
    owner = next((site.name for site in graph.sites if widest.name in (site.plate, site.alternatives)), widest.name)
    if not isinstance(node, Site):
        size = "a smaller chunk=" if widest.chunk is not None else "chunk="
        yield f"{size} in propc.compile, so that segments hold fewer of the {widest.size} {widest.kind} at once"
    if widest.kind == PlateKind.SAMPLES:
        yield f"fewer samples= at site {owner!r}"
    else:
        yield f"'lr' at site {owner!r}, which needs no plate of {widest.size} {widest.kind}"

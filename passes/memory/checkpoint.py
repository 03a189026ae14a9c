"""Checkpoint: blocks of the program run again in the reverse pass, in place of being kept for it."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import accumulate, groupby, pairwise
from math import isqrt
from typing import ClassVar

from propc.errors import GraphError, PropcTypeError, PropcValueError, PropcWarning, message, nearest
from propc.ir.footprint import between, inside
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.repeatable import once_only
from propc.passes.pipeline import Pass, register
from propc.propagators.sites.samples import positive
from propc.util.torch_rng import STATE

# Times the least memory. Around its least the curve is flat: n/k + k, over k blocks, is within a tenth of it from
# 0.64·√n blocks on.
NEAR = 1.1


@register("checkpoint")
@dataclass(frozen=True)
class Checkpoint(Pass):
    """Cut the program into blocks, of which only what enters them is kept for the reverse pass, which runs them again.

    The same seed gives the same numbers: a block runs again from the random numbers that it has seen. With H like
    steps in √H blocks, √H values are kept, and √H steps at a time; the price is one more forward pass. The last block
    is kept as it is, for it is needed at once.

    Where nothing is said, there are as few blocks as bring the estimated memory within a tenth of its least: about √H,
    and more where steps compute much and hand on little. Black boxes and moving averages are not run again: what they
    gave is kept. Nodes that write into tensors of others, or have a propagator of the user's, are in no block.

    The steps of a long `propc.scan` are one node: they run in √H blocks, or in `blocks`, and nothing else does.

    Requires: a scheduled graph, without messages between propagators.
    Ensures: `Schedule.blocks` are runs of consecutive names of the forward order.
    Reference: Chen, Xu, Zhang & Guestrin (2016), arXiv:1604.06174.

    Args:
        blocks: how many, the last one included.
        budget: bytes that all kept values may take; then the last block, which does not run again, is as large as that
            allows. A `PropcWarning` says so if it cannot be met.
        at: patterns of names of nodes before which a block begins, such as ``"x*0.in"``.
    """

    name: ClassVar[str] = "checkpoint"
    after: ClassVar[str] = "schedule"
    blocks: int | None = None
    budget: float | None = None
    at: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("blocks", "budget", "at") if getattr(self, name) is not None]
        if len(given) > 1:
            raise PropcValueError(message(f"Checkpoint has {' and '.join(given)}", "Give one of them."))
        if self.blocks is not None:
            positive("blocks", self.blocks)
        if self.budget is not None and not (isinstance(self.budget, (int, float)) and self.budget > 0):
            raise PropcValueError(message(f"option budget={self.budget!r} is no positive number of bytes"))
        if isinstance(self.at, str):
            object.__setattr__(self, "at", (self.at,))
        if self.at is not None and not all(isinstance(each, str) for each in self.at):
            raise PropcTypeError(message(f"option at={self.at!r} is no name of a node, and no sequence of names"))

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        if graph.program is None or graph.general:
            raise GraphError(
                message(
                    f"{graph.name!r} has propagators whose messages autograd does not carry, so that its nodes run one "
                    "by one",
                    "Leave out propc.passes.Checkpoint().",
                )
            )
        if graph.of(Scan):
            return self._in_scans(graph)
        plan = _Plan(graph)
        cuts = self._cuts(plan)
        blocks = plan.blocks(cuts)
        if cuts and not blocks:
            self._warn(graph)
        return replace(graph, schedule=replace(graph.schedule, blocks=blocks))

    def _in_scans(self, graph: PropagationGraph) -> PropagationGraph:
        """Let the steps of long scans run in blocks; nothing else of such a program grows with its length."""
        if self.budget is not None or self.at is not None:
            raise PropcValueError(
                message(
                    f"Checkpoint has {'budget' if self.at is None else 'at'}, and the steps of a long propc.scan are "
                    "one node",
                    "Give blocks=, or nothing for the square root of the number of steps.",
                    where=graph.of(Scan)[0].where,
                )
            )
        alone = once_only(graph)
        for name, why in ((name, alone[name]) for scan in graph.of(Scan) for name in scan.body if name in alone):
            node = graph[name]
            raise node.error(
                f"it {why}, so that its step cannot run again",
                "Write x = x + y in place of x += y, or leave out propc.passes.Checkpoint().",
                GraphError,
            )
        counts = ((scan, self.blocks or 1 + isqrt(scan.length - 1)) for scan in graph.of(Scan))
        return graph.with_nodes(*(replace(scan, blocks=min(count, scan.length)) for scan, count in counts))

    def _warn(self, graph: PropagationGraph) -> None:
        name, why = next(iter(once_only(graph).items()))
        node = graph[name]
        warnings.warn(
            message(
                f"nothing of {graph.name!r} can run again; this {node.called}, for one, {why}",
                "Write x = x + y in place of x += y, and torch.stack in place of assignments to elements, or leave out "
                "propc.passes.Checkpoint().",
                at=f"{node.called} {name!r}",
                where=node.where,
            ),
            PropcWarning,
            stacklevel=2,
        )

    def _cuts(self, plan: _Plan) -> list[int]:
        if self.at is not None:
            return [place for pattern in self.at for place in _matching(plan.order, pattern)]
        if self.blocks is not None:
            return plan.cuts(self.blocks)
        choices = [(cuts, plan.peak(cuts)) for cuts in map(plan.cuts, plan.counts())]
        least = min(peak for _, peak in choices)
        if self.budget is not None and least > self.budget:
            warnings.warn(
                message(
                    f"the budget of {self.budget:.3g} bytes is too small: the program is estimated to keep "
                    f"{least:.3g} at least",
                    "Take a smaller batch, or a larger budget.",
                ),
                PropcWarning,
                stacklevel=2,
            )
        limit = NEAR * least if self.budget is None else max(self.budget, least)
        return next(cuts for cuts, peak in choices if peak <= limit)


class _Plan:
    """Estimates of what a graph keeps when it is cut before some places of its forward order."""

    def __init__(self, graph: PropagationGraph) -> None:
        self.graph, self.order = graph, graph.schedule.forward
        self.live = between(graph, self.order)
        self.sums = [0, *accumulate(inside(graph, graph[name]) for name in self.order)]

    def counts(self) -> Iterator[int]:
        """Numbers of blocks to try, each about a fifth larger than the one before.

        Of n/k + k the best of these is within a hundredth of the least.
        """
        count, most = 1, sum(isinstance(self.graph[name], (Site, Segment)) for name in self.order)
        while count <= max(1, most):
            yield count
            count = max(count + 1, count * 6 // 5)

    def cuts(self, count: int) -> list[int]:
        """Places that cut the program into so many parts of like size, where little lies between them."""
        whole = self.sums[-1]  # of a part a quarter at each end may go: none is larger than one and a half
        found = [self._near(whole * k / count, whole / count / 4) for k in range(1, count)]
        return sorted({place for place in found if 0 < place < len(self.order)})

    def _near(self, size: float, slack: float) -> int:
        """The place of the least live bytes not far from where so many bytes have been computed."""
        first = bisect_left(self.sums, size - slack)
        last = max(first, bisect_left(self.sums, size + slack) - 1)
        places = range(first, min(last, len(self.order) - 1) + 1)

        def worse(place: int) -> tuple[float, ...]:
            begins = isinstance(self.graph[self.order[place]], Segment)  # not between a segment and its site
            return self.live[place], not begins, abs(self.sums[place] - size)

        return min(places, key=worse, default=first)

    def peak(self, cuts: Sequence[int]) -> int:
        """Bytes kept at once: what lies at all cuts, and the largest part."""
        ends = [0, *cuts, len(self.order)]
        parts = (self.sums[stop] - self.sums[start] for start, stop in pairwise(ends))
        return sum(self.live[cut] + STATE for cut in cuts) + max(parts)

    def blocks(self, cuts: Iterable[int]) -> tuple[tuple[str, ...], ...]:
        """The parts before the last cut, without the nodes that must not run again."""
        alone, ends = once_only(self.graph), sorted({0, *cuts})
        found = []
        for start, stop in pairwise(ends):
            for apart, names in groupby(self.order[start:stop], key=alone.__contains__):
                run = tuple(names)
                if not apart and any(isinstance(self.graph[name], (Segment, Site)) for name in run):
                    found.append(self._without_leaves(run))
        return tuple(found)

    def _without_leaves(self, names: Sequence[str]) -> tuple[str, ...]:
        """A block begins where something is computed."""
        first = next(i for i, name in enumerate(names) if not isinstance(self.graph[name], (Input, Parameter)))
        return tuple(names[first:])


def _matching(order: Sequence[str], pattern: str) -> list[int]:
    """The places of the nodes that a pattern names.

    Raises:
        PropcValueError: there is none.
    """
    found = [i for i, name in enumerate(order) if fnmatchcase(name, pattern)]
    if not found:
        raise PropcValueError(message(f"at={pattern!r} names no node of the graph", nearest(pattern, order)))
    return found

"""Bookkeeping: what it costs to pass messages through a chain whose propagators only count their visits.

Building is adding the nodes and compiling; executing is one forward and one reverse pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import timing

import propc
from propc.ir import Named

FULL, SMALL = (10, 100, 1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000)
BUILD_TARGET, EXECUTE_TARGET, BYTES_TARGET = 50.0, 1.0, 2_000.0
HEADER = ["chain of nodes", "build, µs a node", "execute, µs a node", "held, bytes a node"]


class Count(propc.Propagator):
    """Counts its visits in both passes."""

    def __init__(self) -> None:
        self.visits = 0

    def forward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        self.visits += 1
        return message

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        self.visits += 1
        return message


class Empty(propc.Propagator):
    """Does nothing, and is left out but for the ends, where messages begin and end."""


@dataclass(frozen=True)
class Result:
    """Of a chain: microseconds to build and to execute, and bytes held, all for one node."""

    nodes: int
    build: float
    execute: float
    held: float


def chain(propagator: propc.Propagator, nodes: int) -> propc.Network:
    """A chain of nodes that share a propagator."""
    network = propc.Network("chain")
    parents: tuple[str, ...] = ()
    for i in range(nodes):
        parents = (network.add(f"n{i}", propagator, parents),)
    return network


def measure(nodes: int, repeats: int) -> Result:
    """Medians over `repeats` chains."""
    count = Count()
    built, executed = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        network = chain(count, nodes)
        compiled = network.graph
        built.append(time.perf_counter() - start)
        assert len(compiled.wiring.vertices) == nodes
        network.propagate("backward")
        calls = max(1, 1_000 // nodes)  # a single call of a short chain is too quick to time
        before, start = count.visits, time.perf_counter()
        for _ in range(calls):
            network.propagate("backward")
        executed.append((time.perf_counter() - start) / calls)
        assert count.visits == before + 2 * nodes * calls
    scale = 1e6 / nodes
    return Result(nodes, statistics.median(built) * scale, statistics.median(executed) * scale, held(nodes))


def held(nodes: int, most: int = 20_000) -> float:
    """Bytes that a compiled chain holds for each node after it has been executed."""
    chain(Count(), 100).propagate("backward")  # what is made only once is not counted
    tracemalloc.start()
    network = chain(Count(), min(nodes, most))
    network.propagate("backward")
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size / min(nodes, most)


def rows(results: Sequence[Result]) -> list[list[str]]:
    """The table."""
    return [[f"{r.nodes:,}", f"{r.build:.0f}", f"{r.execute:.2f}", f"{r.held:.0f}"] for r in results]


def bounds(results: Sequence[Result]) -> list[timing.Bound]:
    """Of the longest chain."""
    last = results[-1]
    return [
        timing.Bound(f"build, µs a node, {last.nodes:,} nodes", last.build, BUILD_TARGET, slack=3.0),
        timing.Bound(f"execute, µs a node, {last.nodes:,} nodes", last.execute, EXECUTE_TARGET, slack=3.0),
        timing.Bound(f"bytes a node, {last.nodes:,} nodes", last.held, BYTES_TARGET),
        timing.Bound("nodes left of 1,000 empty ones", float(len(list(chain(Empty(), 1_000).graph.of(Named)))), 2.0),
    ]


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write the page where asked; the exit status."""
    results = [measure(nodes, 3) for nodes in (SMALL if arguments.small else FULL)]
    timing.print_table("a chain of propagators that count their visits", HEADER, rows(results))
    if arguments.out:
        timing.replace_section(arguments.out, "bookkeeping", timing.markdown(HEADER, rows(results)))
    return timing.check(bounds(results), strict=arguments.check)


def main() -> int:
    """The command line."""
    return run(timing.options("Cost of message passing itself, by the number of nodes.").parse_args())


if __name__ == "__main__":
    raise SystemExit(main())

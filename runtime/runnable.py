"""A graph ready to run: by one call of autograd's engine, or, where autograd cannot carry its messages, by messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.runtime.backend import Backend, Report
from propc.runtime.executable import Executable
from propc.runtime.messaging.messenger import Messenger
from propc.runtime.observe.cotangent_probe import Probe
from propc.util.estimator_state import EstimatorState


class Runnable(Protocol):
    """What runs a graph.

    Attributes:
        report: what a backend has made of it; None on `eager`.
    """

    report: Report | None

    @property
    def labelled(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes of each name that a watcher hears."""

    def run(self, inputs: Sequence[Tensor], held: Sequence[Tensor]) -> Sequence[Tensor]:
        """One forward pass; the returned tensors in flattened order, differentiable."""


def runnable(
    graph: PropagationGraph,
    state: EstimatorState,
    validate: bool = True,
    probe: Probe | None = None,
    backend: Backend | None = None,
) -> Runnable:
    """What runs a graph; the arguments are those of `Executable`."""
    made = Messenger if graph.general else Executable
    return made(graph, state, validate, probe, backend)


def by_messages(graph: PropagationGraph, run: Runnable) -> Messenger:
    """What runs the same graph by messages, whatever they are."""
    if isinstance(run, Messenger):
        return run
    assert isinstance(run, Executable)
    return Messenger(graph, run.state, run.mode.validate)

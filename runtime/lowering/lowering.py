"""How nodes of a kind become steps of a plan: the class to derive from, and the table of those there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, TypeVar

from propc.errors import PropcTypeError, PropcValueError, message
from propc.ir.nodes.node import Node
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step, Values

LOOKS = "it checks values while it runs"  # on a CPU; elsewhere only in the first call
Made = TypeVar("Made", bound="type[Lowering]")


class Lowering(ABC):
    """What becomes of the nodes of a kind in a plan. It keeps nothing; all is asked with the planner of a graph.

    Attributes:
        ends_stage: whether code that is compiled as one ends behind such a node.
    """

    ends_stage: ClassVar[bool] = False

    @abstractmethod
    def step(self, planner: Planner, node: Any) -> Step | None:
        """The step of a node, often `Planner.step`; None where it has nothing to do."""

    def replayed(self, planner: Planner, step: Step, first: Values) -> Step | None:
        """What is done in its place on other draws: nothing is drawn, no message is sent. By default the same.

        None where there is nothing to do, as its values are given, or nobody reads them then.

        Args:
            first: all values of the first call.
        """
        return step

    def obstacle(self, planner: Planner, node: Any) -> str:
        """What keeps the step from being traced and compiled; empty if nothing is known to."""
        return "a kind of node that is not known to be traceable"

    def key(self, planner: Planner, node: Any) -> Hashable:
        """Equal for nodes whose steps do the same with what they read, so that they share compiled code."""
        return id(node)


_TABLE: dict[type[Node], Lowering] = {}


def lowers(*kinds: type[Node]) -> Callable[[Made], Made]:
    """Decorator of a `Lowering`: it is that of nodes of these kinds, and of kinds derived from them.

    Raises:
        PropcTypeError: a kind that is no class of nodes, or what is decorated is no lowering.
        PropcValueError: a kind has one.
    """
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Node)):
            raise PropcTypeError(message(f"lowers() takes classes of nodes; got {kind!r}"))
        if kind in _TABLE:
            raise PropcValueError(message(f"nodes of {kind.__name__} have a lowering: {type(_TABLE[kind]).__name__}"))

    def register(made: Made) -> Made:
        if not (isinstance(made, type) and issubclass(made, Lowering)):
            raise PropcTypeError(message(f"{made!r} is no lowering", "Derive the class from Lowering."))
        _TABLE.update(dict.fromkeys(kinds, made()))
        return made

    return register


def lowering(node: Node) -> Lowering:
    """That of a node.

    Raises:
        PropcTypeError: its kind has none.
    """
    found = next((_TABLE[kind] for kind in type(node).__mro__ if kind in _TABLE), None)
    if found is None:
        kind = type(node).__name__
        fix = f"Register one: @propc.runtime.lowering.lowers({kind})."
        raise PropcTypeError(message(f"nodes of {kind} have no lowering", fix, at=f"node {node.name!r}"))
    return found

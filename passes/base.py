"""What a pass is, the table of their names, and the pipeline that runs and checks them."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from propc.errors import PropcTypeError, PropcValueError, message, nearest
from propc.graph import PropagationGraph
from propc.registering import check_entry, check_name


class Pass(ABC):
    """A step of the compiler: takes a graph, returns a new one.

    Subclass it as a frozen dataclass; options are fields with defaults.

    Attributes:
        name: printed name.
        after: name of the pass behind which a user's pass runs in the default pipeline.
    """

    name: ClassVar[str] = "pass"
    after: ClassVar[str] = "find-influence"

    @abstractmethod
    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        """The new graph; the old one stays as it is."""

    def __call__(self, graph: PropagationGraph) -> PropagationGraph:
        return self.apply(graph)


P = TypeVar("P", bound=type[Pass])
_TABLE: dict[str, type[Pass]] = {}


def register(name: str) -> Callable[[P], P]:
    """Class decorator: make a pass known by `name` in ``compile(passes=[...])``.

    Raises:
        PropcTypeError: a name that is no string; no pass class.
        PropcValueError: the name is taken by another class.
    """
    check_name(name, "a pass", "propc.passes.register")

    def add(cls: P) -> P:
        check_entry(_TABLE, name, cls, "a pass", Pass)
        _TABLE[name] = cls
        cls.name = name
        return cls

    return add


def known_passes() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_TABLE))


def make_pass(choice: Any) -> Pass:
    """A pass from a name, a class or an object.

    Raises:
        PropcValueError: an unknown name.
        PropcTypeError: anything else.
    """
    if isinstance(choice, str):
        if choice not in _TABLE:
            raise PropcValueError(message(f"unknown pass {choice!r}", nearest(choice, _TABLE)))
        return _TABLE[choice]()
    if isinstance(choice, type) and issubclass(choice, Pass):
        return choice()
    if isinstance(choice, Pass):
        return choice
    raise PropcTypeError(message(f"a pass is a name, a Pass class or a Pass object; got {choice!r}"))


@dataclass(frozen=True)
class Record:
    """What the pipeline saw of one pass: the graph after it, and the seconds it took."""

    name: str
    graph: PropagationGraph
    seconds: float


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Every graph is verified after every pass.

    With ``PROPC_DEBUG=1`` the text form is printed after each pass, with ``PROPC_DEBUG=2``
    a DOT file is written too.
    """

    passes: tuple[Pass, ...] = field(default=())

    def with_passes(self, extra: Iterable[Any]) -> Pipeline:
        """The pipeline with a user's passes, each behind the pass that its `after` names."""
        passes = list(self.passes)
        placed: dict[str, int] = {}
        for added in map(make_pass, extra):
            names = [p.name for p in passes]
            if added.after not in names:
                raise PropcValueError(
                    message(f"pass {added.name!r} wants to run after {added.after!r}", nearest(added.after, names))
                )
            index = placed.get(added.after, names.index(added.after)) + 1
            passes.insert(index, added)
            placed = {k: v + (v >= index) for k, v in placed.items()}
            placed[added.after] = index
        return Pipeline(tuple(passes))

    def run(self, graph: PropagationGraph) -> PropagationGraph:
        """The graph after all passes."""
        records = self.records(graph)
        return records[-1].graph if records else graph.verify()

    def records(self, graph: PropagationGraph) -> list[Record]:
        """Run the passes and keep the graph after each.

        Raises:
            PropcError: a pass broke an invariant, or returned something else. A note on every error
                that leaves a pass names it and those before it.
        """
        records: list[Record] = []
        for step in self.passes:
            start = time.perf_counter()
            try:
                made = step(graph)
                if not isinstance(made, PropagationGraph):
                    raise PropcTypeError(
                        message(f"the pass returned {type(made).__name__}", "Return a PropagationGraph.")
                    )
                if made is not graph or step is self.passes[-1]:
                    made.verify()
                graph = made
            except Exception as error:
                _note(error, step, records)
                raise
            records.append(Record(step.name, graph, time.perf_counter() - start))
            _debug(len(records), records[-1])
        return records


def _note(error: Exception, step: Pass, records: list[Record]) -> None:
    if hasattr(error, "add_note"):
        done = ", ".join(r.name for r in records) or "none"
        error.add_note(f"(in pass {step.name!r}; run before it: {done})")


def _debug(number: int, record: Record) -> None:
    level = os.environ.get("PROPC_DEBUG", "")
    if level in ("1", "2"):
        print(f"-- {number:02d} {record.name} ({record.seconds * 1e3:.1f} ms)\n{record.graph}")
    if level == "2":
        with open(f"{number:02d}-{record.name}.dot", "w", encoding="utf-8") as file:
            file.write(record.graph.to_dot())

"""What a pass is, the table of their names, and the pipeline that runs and checks them."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeGuard, TypeVar

from propc.errors import PropcTypeError, PropcValueError, message, nearest
from propc.ir.graph import PropagationGraph
from propc.ir.pass_request import PassRequest
from propc.util.configure import printed
from propc.util.name_table import check_entry, check_name


class Pass(ABC):
    """A step of the compiler: takes a graph, returns a new one.

    Subclass it as a frozen dataclass; options are fields with defaults.

    Attributes:
        name: printed name; by default the registered one, or that of the class.
        after: name of the pass behind which a user's pass runs in the default pipeline.
        needed: whether later passes or the runtime rely on what it sets; then it can be replaced, and not left out.
    """

    name: ClassVar[str] = "pass"
    after: ClassVar[str] = "find-influence"
    needed: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = printed(cls)

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
    """A pass from a name, a request, a class or an object.

    Raises:
        PropcValueError: an unknown name.
        PropcTypeError: anything else.
    """
    if isinstance(choice, str):
        choice = PassRequest(choice)
    if isinstance(choice, PassRequest):
        if choice.name not in _TABLE:
            raise PropcValueError(message(f"unknown pass {choice.name!r}", nearest(choice.name, _TABLE)))
        return _TABLE[choice.name](**dict(choice.options))
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

    Its methods give changed copies: ``compile(passes=[lambda p: p.without("split-costs")])``.

    With ``PROPC_DEBUG=1`` the text form is printed after each pass, with ``PROPC_DEBUG=2``
    a DOT file is written too.
    """

    passes: tuple[Pass, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the passes, in order."""
        return tuple(step.name for step in self.passes)

    def before(self, name: str, *added: PassChoice) -> Pipeline:
        """With these passes in front of the one of this name."""
        return self._spliced(self._index(name), added)

    def behind(self, name: str, *added: PassChoice) -> Pipeline:
        """With these passes behind the one of this name."""
        return self._spliced(self._index(name) + 1, added)

    def replaced(self, name: str, *by: PassChoice) -> Pipeline:
        """With these passes in the place of the one of this name."""
        return self._spliced(self._index(name), by, 1)

    def without(self, *names: str) -> Pipeline:
        """Without the passes of these names.

        Raises:
            PropcValueError: there is no such pass, or others rely on it (`Pass.needed`).
        """
        gone = {self._index(name) for name in names}
        for step in (self.passes[index] for index in gone if self.passes[index].needed):
            finding = f"pass {step.name!r} cannot be left out, as others rely on it"
            raise PropcValueError(message(finding, f"Put one of yours in its place: replaced({step.name!r}, ...)."))
        return Pipeline(tuple(step for index, step in enumerate(self.passes) if index not in gone))

    def with_passes(self, extra: Iterable[PassChoice | PipelineChange]) -> Pipeline:
        """The pipeline with a user's passes, each behind the pass that its `after` names, and a user's changes.

        Raises:
            PropcValueError: no pass has the name.
            PropcTypeError: something that is no pass, and no function from a pipeline to another.
        """
        made = self
        placed: dict[str, int] = {}  # how many stand behind a pass, in their order
        for added in extra:
            if is_change(added):
                made, placed = _changed(made, added), {}
                continue
            step = make_pass(added)
            if step.after not in made.names:
                raise PropcValueError(
                    message(f"pass {step.name!r} wants to run after {step.after!r}", nearest(step.after, made.names))
                )
            made = made._spliced(made._index(step.after) + 1 + placed.get(step.after, 0), (step,))
            placed[step.after] = placed.get(step.after, 0) + 1
        return made

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise PropcValueError(message(f"the pipeline has no pass {name!r}", nearest(name, self.names)))
        return self.names.index(name)

    def _spliced(self, index: int, added: Iterable[PassChoice], gone: int = 0) -> Pipeline:
        return Pipeline((*self.passes[:index], *map(make_pass, added), *self.passes[index + gone :]))

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


PassChoice = str | Pass | type[Pass]
"""A pass as ``compile(passes=[...])`` takes it: a name, an object or a class."""

PipelineChange = Callable[[Pipeline], Pipeline]
"""What ``compile(passes=[...])`` takes too: a function from the pipeline to another one."""


def is_change(choice: object) -> TypeGuard[PipelineChange]:
    """Whether a user gave a function of the pipeline in place of a pass."""
    return callable(choice) and not isinstance(choice, (Pass, type))


def _changed(pipeline: Pipeline, change: PipelineChange) -> Pipeline:
    name = getattr(change, "__name__", repr(change))
    try:
        made = change(pipeline)
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(
                f"(propc called {name}, of passes=, with the pipeline; what works on a graph is a propc.passes.Pass)"
            )
        raise
    if not isinstance(made, Pipeline):
        finding = f"{name} in passes= got the pipeline and returned {type(made).__name__}"
        raise PropcTypeError(message(finding, "Return a Pipeline, such as pipeline.without('split-costs')."))
    return made


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

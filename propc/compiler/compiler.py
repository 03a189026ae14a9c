"""From a call to an executable: bind, look up, trace, run the passes, build."""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from propc import passes
from propc.compiler.call_key import CallKey, flatten, identity, static_key, weakly
from propc.compiler.forward_mode import refuse_forward_mode
from propc.compiler.options import Options
from propc.compiler.pickled import reference, referred
from propc.errors import PropcTypeError, PropcWarning, ScanError, StepError, message
from propc.frontend import Tracer
from propc.frontend.cost_terms import aside, returned_costs, with_terms
from propc.frontend.cut import cut
from propc.frontend.dynamo import refuse_transforms, run
from propc.frontend.environment.code_names import PRIMITIVE
from propc.frontend.environment.collect import Attention, Roots, changes, look_around, mentioned_names, watch
from propc.frontend.environment.isolation import TRACING, without_collection
from propc.frontend.environment.snapshot import State, Watch
from propc.frontend.environment.writes import counters
from propc.frontend.scan_rounds import ROOMS
from propc.frontend.simplify import simplify
from propc.frontend.user_source import is_hidden
from propc.fx.operations import autocast, default_device
from propc.fx.program import Leaf, Program
from propc.ir.graph import PropagationGraph
from propc.ir.messages import Message
from propc.ir.nodes.scan import Scan
from propc.passes.pipeline import Record, is_change, make_pass
from propc.passes.scan.roll_scans import check_steady
from propc.runtime.backends import Report, backend
from propc.runtime.checks.arguments import ArgumentChecks
from propc.runtime.checks.continuity import Continuity
from propc.runtime.checks.out_of_memory import checking
from propc.runtime.checks.paths import cut_false_paths
from propc.runtime.messaging.messenger import Messenger
from propc.runtime.messaging.propagation import Propagation, check_call
from propc.runtime.observe.cotangent_probe import Probe
from propc.runtime.runnable import Runnable, by_messages, runnable
from propc.types import Source
from propc.util.estimator_state import EstimatorState, without_state
from propc.util.stopwatch import Laps, Seconds
from propc.util.torch_private import breaks_graph, differentiates_forward, pytree

R = TypeVar("R")
_OWN = (passes.Checkpoint,)  # passes that do not tell the steps of a scan apart

# Compiled graphs that one compiled object keeps, and at how many traces it warns of an argument that should be a
# tensor. Choices: a loader with buckets of lengths has a dozen shapes; a number that changes at every step soon passes
# both.
GRAPHS_KEPT, GRAPHS_WARNED = 64, 16


@dataclass(frozen=True)
class Compiled:
    """What the cache keeps for a key."""

    program: Program
    graph: PropagationGraph
    executable: Runnable
    held: tuple[Leaf, ...]
    keep: tuple[Any, ...]  # static arguments compared by identity must not be freed
    seconds: Seconds  # that tracing, each pass and what else compiling is took
    continuity: Continuity | None = None  # looks at further calls for selections at which costs jump
    checks: ArgumentChecks | None = None  # of distributions' arguments

    @cached_property
    def messenger(self) -> Messenger:
        """The graph ready to run by messages."""
        return by_messages(self.graph, self.executable)

    def check_arguments(self, call: CallKey) -> None:
        """Make the checks of torch on the arguments of distributions."""
        assert self.checks is not None
        with checking(self.graph):
            self.checks(call.tensors, call.owner)

    def fetch(self, owner: Any) -> list[Tensor] | None:
        """The held tensors as they are now; None if one of them is of another type than when traced."""
        found = []
        for leaf in self.held:
            assert leaf.fetch is not None
            try:
                tensor = leaf.fetch(owner)
            except (AttributeError, LookupError, ValueError):  # deleted since, or a cell is empty
                return None
            kind = leaf.type
            if (
                not isinstance(tensor, Tensor)
                or tensor.shape != kind.shape
                or tensor.dtype != kind.dtype
                or tensor.device != kind.device
                or tensor.requires_grad != kind.requires_grad
            ):
                return None
            found.append(tensor)
        return found


class Compiler:
    """Compiles one function, caches its graphs and keeps the estimators' state.

    Args:
        fn: the user's function. Where it is a method, calls come with its owner: the module
            whose plain `forward` it is, or the object that it was looked up on.
        options: what `propc.compile` was told.
    """

    def __init__(self, fn: Callable[..., Any], options: Options, name: str | None = None) -> None:
        self.fn, self.options = fn, options
        self.name: str = name or str(getattr(fn, "__name__", type(fn).__name__))
        self.state = EstimatorState()
        self.cache: OrderedDict[Any, list[Compiled]] = OrderedDict()
        self.attention = Attention()
        self.watched: tuple[Callable[[], Any], list[Any], Watch] | None = None  # of the last call
        self.traces = 0
        self.jumps: dict[Any, float] = {}  # that calls have found, by line and operation
        self.probe: Probe | None = None

    @breaks_graph
    def __call__(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run(self._call, owner, args, kwargs)

    def _call(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.take_apart(owner, args, kwargs)
        compiled, held = self._find(call)
        if differentiates_forward():
            refuse_forward_mode(compiled.graph, (*call.tensors, *held), self.options.backend != "eager")
        if compiled.checks is not None and not compiled.checks.idle:
            compiled.check_arguments(call)
        if compiled.continuity is not None and compiled.continuity.due():
            compiled = self._looked_at(call, compiled, held)
        try:
            returned = compiled.executable.run(call.tensors, held)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            if compiled.checks is not None:
                compiled.check_arguments(call)  # it may be a distribution's matrix: says whose
            raise
        return compiled.program.assemble(returned)

    def propagate(
        self,
        owner: Any,
        direction: str,
        sent: Message | Mapping[str, Message] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Propagation:
        """Run a call by messages alone."""
        check_call(direction, sent)
        call = self.take_apart(owner, args, kwargs)
        compiled, held = self._find(call)
        if compiled.checks is not None and not compiled.checks.idle:
            compiled.check_arguments(call)
        found = compiled.messenger.propagation(direction, sent, call.tensors, held)
        return replace(found, value=compiled.program.assemble(found.value))

    def graph(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PropagationGraph:
        """The graph of a call after all passes."""
        return self.compiled(owner, args, kwargs).graph

    def reported(
        self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[PropagationGraph, Report | None]:
        """The graph of a call after all passes, and what the backend has made of it."""
        compiled = self._find(self.take_apart(owner, args, kwargs))[0]
        return compiled.graph, compiled.executable.report

    def records(
        self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[PropagationGraph, list[Record]]:
        """The graph before all passes, and what the pipeline saw of each."""
        call = self.take_apart(owner, args, kwargs)

        def attempt(room: int) -> tuple[PropagationGraph, list[Record]]:
            program = self._trace(call, room)
            first = self._first(program)
            return first, self.options.pipeline(self._continuity(call, program).jumps).records(first)

        with without_collection():
            return _with_room(attempt)

    def compiled(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compiled:
        """What a call runs."""
        return self._find(self.take_apart(owner, args, kwargs))[0]

    def apart(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compiler:
        """A compiler with the graph of a call and a copy of the estimators' state, whose runs change nothing here."""
        call = self.take_apart(owner, args, kwargs)
        compiled, _ = self._find(call)
        new = Compiler(self.fn, self.options, self.name)
        new.attention, new.state = self.attention, copy.deepcopy(self.state)
        new._keep(call, replace(compiled, executable=new._build(compiled.graph), continuity=None))
        return new

    def take_apart(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallKey:
        """Flatten the arguments and make the key of their graph.

        Raises:
            PropcTypeError: the call is under a `torch.func` transform.
        """
        refuse_transforms(self.name)
        leaves, tree, form = flatten(args, kwargs)
        tensors, kinds, statics = [], [], []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                tensors.append(leaf)
                kinds.append((leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad, leaf.stride()))
            else:
                kinds.append(static_key(leaf))
                statics.append(("", leaf))
        reached = self._reached(owner, statics)
        modes = torch.is_grad_enabled(), autocast(), torch.get_default_dtype(), default_device()
        return CallKey(leaves, tensors, tree, (tuple(kinds), form, modes, identity(owner), reached), owner)

    def _reached(self, owner: Any, statics: list[tuple[str, Any]]) -> State:
        """What the program reaches besides its arguments; looked through anew only where something has changed."""
        objects = [leaf for _, leaf in statics if not isinstance(leaf, PRIMITIVE)]
        watched = self.watched  # another thread may set it
        if watched is not None:
            known, before, seen = watched
            same = known() is owner and len(before) == len(objects) and all(map(operator.is_, before, objects))
            if same and seen.holds():
                return seen.state
        seen = watch(Roots(self.fn, owner, tuple(statics)), self.attention)
        self.watched = weakly(owner), objects, seen
        return seen.state

    def _find(self, call: CallKey) -> tuple[Compiled, list[Tensor]]:
        """The compiled graph of a call, and the tensors that its program holds as they are now."""
        for compiled in self.cache.get(call.key, ()):
            held = compiled.fetch(call.owner)
            if held is not None:
                return compiled, held
        with TRACING:
            return self._found_or_made(call)

    def _found_or_made(self, call: CallKey) -> tuple[Compiled, list[Tensor]]:
        """The same, one thread after the other."""
        for compiled in self.cache.get(call.key, ()):
            held = compiled.fetch(call.owner)
            if held is not None:
                return compiled, held
        names = self.attention.names | mentioned_names(self._roots(call, [""] * len(call.leaves)))
        if names != self.attention.names:
            self.attention.names, self.watched = names, None
            args, kwargs = pytree.tree_unflatten(call.leaves, call.tree)
            return self._find(self.take_apart(call.owner, args, kwargs))
        compiled = self._compile(call)
        self._keep(call, compiled)
        held = compiled.fetch(call.owner)
        assert held is not None
        return compiled, held

    def _keep(self, call: CallKey, compiled: Compiled) -> None:
        """Cache a graph, also for the state in which tracing has left the program's surroundings."""
        args, kwargs = pytree.tree_unflatten(call.leaves, call.tree)
        for key in {call.key, self.take_apart(call.owner, args, kwargs).key}:
            self.cache.setdefault(key, []).append(compiled)
            self.cache.move_to_end(key)
        while len(self.cache) > GRAPHS_KEPT:
            self.cache.popitem(last=False)

    def _compile(self, call: CallKey) -> Compiled:
        self._count()
        with without_collection():
            laps, program, graph, continuity = _with_room(lambda room: self._passed(call, room))
            executable = self._build(graph)
            laps.lap("building")
        held = tuple(leaf for leaf in program.leaves if leaf.fetch is not None)
        keep = tuple(leaf for leaf in call.leaves if not isinstance(leaf, Tensor))
        validate, checked = self.options.validate, program.checked
        checks = None if checked is None or validate is False else ArgumentChecks(checked, always=validate is True)
        watching = continuity if continuity.open else None
        return Compiled(program, graph, executable, held, keep, laps.seconds, watching, checks)

    def _continuity(self, call: CallKey, program: Program) -> Continuity:
        """What looks for selections at which the costs of a call jump."""
        return Continuity(program, _leaves_of(program, call), self.jumps)

    def _looked_at(self, call: CallKey, compiled: Compiled, held: list[Tensor]) -> Compiled:
        """What a call runs, after a look at its selections: where one is found to jump, compiled anew."""
        assert compiled.continuity is not None
        with TRACING, without_collection():
            found = compiled.continuity.look(_leaves_of(compiled.program, call))
            new = replace(compiled, continuity=compiled.continuity if compiled.continuity.open else None)
            if found:
                first, kept = self._first(compiled.program), compiled.continuity.jumps
                graph = self.options.pipeline(kept).records(first)[-1].graph
                new = replace(new, graph=graph, executable=self._build(graph))
            for others in self.cache.values():
                others[:] = [new if other is compiled else other for other in others]
        return new

    def _build(self, graph: PropagationGraph) -> Runnable:
        validate = self.options.validate is not False
        return runnable(graph, self.state, validate, self.probe, backend(self.options.backend))

    def _passed(self, call: CallKey, room: int) -> tuple[Laps, Program, PropagationGraph, Continuity]:
        """The program of a call and its graph after all passes, with the seconds that these took."""
        laps = Laps()
        program = self._trace(call, room)
        laps.lap("tracing")
        first = self._first(program)
        laps.lap("cutting")
        continuity = self._continuity(call, program)
        records = self.options.pipeline(continuity.jumps).records(first)
        laps.parts((record.name, record.seconds) for record in records)
        graph = records[-1].graph
        if graph.of(Scan) and any(is_change(p) or not isinstance(make_pass(p), _OWN) for p in self.options.passes):
            longer = self._trace(call, 2 * ROOMS[-1])
            jumps = self._continuity(call, longer).jumps
            check_steady(graph, self.options.pipeline(jumps).run(self._first(longer)))
        return laps, program, graph, continuity

    def _trace(self, call: CallKey, room: int) -> Program:
        paths = self._paths(call)
        fn = self.fn if call.owner is None else self.fn.__get__(call.owner)
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(torch.is_grad_enabled()),
            without_state(call.owner),
        ):
            around = look_around(self._roots(call, paths), self.attention)
            program = Tracer(around, room).run(
                fn,
                call.leaves,
                lambda values: pytree.tree_unflatten(values, call.tree),
                paths,
                self.name,
                self._where(),
            )
            written = {(id(place.container), key) for place in around.places for key, _ in changes(place)}
            self._warn_of(counters(around.places))
            self.attention.written |= written
            self.watched = None
        program = simplify(program)
        if torch.is_grad_enabled():
            cut_false_paths(program, _leaves_of(program, call))
        return program

    def _warn_of(self, counters: list[tuple[str, Any]]) -> None:
        """Python code runs when it is traced, and not at later calls."""
        if counters:
            changed = " and ".join(f"{name!r} to {value}" for name, value in counters)
            warnings.warn(
                message(
                    f"{self.name!r} sets {changed} when it is traced; later calls neither change the number nor see "
                    "it change",
                    "Count in a tensor that is written in place (a buffer, self.step += 1), or outside.",
                    where=self._where(),
                ),
                PropcWarning,
                stacklevel=_outside(),
            )

    def _count(self) -> None:
        self.traces += 1
        if self.traces == GRAPHS_WARNED:
            warnings.warn(
                message(
                    f"{self.name!r} was traced {self.traces} times: its static arguments, shapes or closed-over "
                    "numbers keep changing",
                    "Pass what changes at every call as a tensor.",
                ),
                PropcWarning,
                stacklevel=_outside(),
            )

    def _first(self, program: Program) -> PropagationGraph:
        """The graph before all passes: returned values are the costs."""
        marked = with_terms(program, returned_costs(program), ())
        nodes = cut(marked, aside(program))
        return PropagationGraph(self.name, program, nodes, program.plates, cut=nodes)

    def _roots(self, call: CallKey, paths: list[str]) -> Roots:
        statics = tuple((p, leaf) for p, leaf in zip(paths, call.leaves) if not isinstance(leaf, Tensor))
        return Roots(self.fn, call.owner, statics)

    def _paths(self, call: CallKey) -> list[str]:
        """A name for every flattened argument, from the function's signature."""
        args, kwargs = pytree.tree_unflatten(list(range(len(call.leaves))), call.tree)
        first = () if call.owner is None else (call.owner,)
        try:
            bound = inspect.signature(self.fn).bind(*first, *args, **kwargs)
        except TypeError as error:
            raise PropcTypeError(message(f"{self.name}(): {error}")) from None
        paths = [""] * len(call.leaves)
        for name, value in bound.arguments.items():
            if call.owner is not None and value is call.owner:
                continue
            variadic = bound.signature.parameters[name].kind
            for path, index in pytree.tree_flatten_with_path(value)[0]:
                tail = pytree.keystr(path)
                named = variadic is inspect.Parameter.VAR_KEYWORD and isinstance(path[0], pytree.MappingKey)
                paths[index] = str(path[0].key) if named else name + tail  # type: ignore[attr-defined]
        return paths

    def _where(self) -> Source:
        code = getattr(inspect.unwrap(self.fn), "__code__", None)
        return Source(code.co_filename, code.co_firstlineno, self.name) if code is not None else Source("", 0)

    def with_options(self, **changed: Any) -> Compiler:
        """The same program under other options, with a cache and state of its own."""
        return Compiler(self.fn, replace(self.options, **changed), self.name)

    def __deepcopy__(self, memo: Any) -> Compiler:
        fn = copy.deepcopy(self.fn, memo)  # a bound method is copied with its object, a function is itself
        new = Compiler(fn, self.options, self.name)
        new.state = copy.deepcopy(self.state, memo)
        return new

    def __reduce__(self) -> Any:
        return _restore, (reference(self.fn), self.options, self.name, self.state)


def _leaves_of(program: Program, call: CallKey) -> list[Tensor]:
    """The tensors of a call, and those that its program holds, in the order of its leaves."""
    given = iter(call.tensors)
    return [next(given) if leaf.fetch is None else leaf.fetch(call.owner) for leaf in program.leaves]


def _with_room(attempt: Callable[[int], R]) -> R:
    """What `attempt` gives, with as many steps of long scans traced as are needed; at worst all of them."""
    failed = ScanError()
    for room in ROOMS:
        try:
            return attempt(room)
        except StepError as error:
            failed = error
            break
        except ScanError as error:
            failed = error
    if failed.length > failed.longest:
        raise failed
    found = attempt(failed.length)
    said = f"{failed} All its steps, more than {failed.length - 1}, were traced one by one, as in a loop."
    warnings.warn(said, PropcWarning, stacklevel=_outside())
    return found


def _restore(of: Any, options: Options, name: str, state: EstimatorState) -> Compiler:
    compiler = Compiler(referred(of), options, name)
    compiler.state = state
    return compiler


def _outside() -> int:
    """The stack level of the user's own line, for a warning."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and is_hidden(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level

"""From a call to an executable: bind, look up, trace, run the passes, build."""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from propc.cut import cut
from propc.errors import PropcTypeError, PropcValueError, PropcWarning, message, nearest
from propc.graph import PropagationGraph
from propc.ir import Source
from propc.passes import (
    AssignPropagators,
    DeduplicateStages,
    ExpandTargets,
    FindInfluence,
    Fuse,
    Pipeline,
    Prune,
    RouteMessages,
    Schedule,
    SplitCosts,
)
from propc.passes.base import Record
from propc.runtime.executor import Executable
from propc.runtime.state import EstimatorState
from propc.terms import aside, returned_costs, with_terms
from propc.tracing import Tracer
from propc.tracing.held import held_tensors, static_state
from propc.tracing.program import Leaf, Program
from propc.tracing.simplify import simplify

BACKENDS = ("eager",)
GRAPHS_KEPT = 64  # compiled graphs that one compiled object keeps
GRAPHS_WARNED = 16  # a warning at this many traces: an argument that should be a tensor


@dataclass(frozen=True)
class Options:
    """What `propc.compile` was told."""

    estimator: Any = "infer"
    passes: tuple[Any, ...] = ()
    backend: str = "eager"
    validate: bool = True

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise PropcValueError(message(f"unknown backend {self.backend!r}", nearest(str(self.backend), BACKENDS)))
        _check_estimator(self.estimator)
        self.pipeline()

    def pipeline(self) -> Pipeline:
        """The default passes with the user's among them."""
        return Pipeline((
            SplitCosts(), FindInfluence(), AssignPropagators(self.estimator), ExpandTargets(), RouteMessages(),
            Prune(), DeduplicateStages(), Fuse(), Schedule(),
        )).with_passes(self.passes)


@dataclass(frozen=True)
class Call:
    """A call taken apart: flattened arguments, which of them are tensors, and the key of its graph."""

    leaves: list[Any]
    tensors: list[Tensor]
    tree: pytree.TreeSpec
    key: Any


@dataclass(frozen=True)
class Compiled:
    """What the cache keeps for a key."""

    program: Program
    graph: PropagationGraph
    executable: Executable
    held: tuple[Leaf, ...]
    keep: tuple[Any, ...]  # static arguments compared by identity must not be freed

    def fetch(self, module: nn.Module | None) -> list[Tensor] | None:
        """The held tensors as they are now; None if one of them has changed its shape, dtype or device."""
        found = []
        for leaf in self.held:
            assert leaf.fetch is not None
            tensor, kind = leaf.fetch(module), leaf.type
            if (not isinstance(tensor, Tensor) or tensor.shape != kind.shape or tensor.dtype != kind.dtype
                    or tensor.device != kind.device or tensor.requires_grad != kind.requires_grad):
                return None
            found.append(tensor)
        return found


class Compiler:
    """Compiles one function, caches its graphs and keeps the estimators' state.

    Args:
        fn: the user's function; of a module it is the plain `forward`, called with the module.
        options: what `propc.compile` was told.
    """

    def __init__(self, fn: Callable[..., Any], options: Options, name: str | None = None) -> None:
        self.fn, self.options = fn, options
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.state = EstimatorState()
        self.cache: OrderedDict[Any, Compiled] = OrderedDict()
        self.traces = 0

    def __call__(self, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.take_apart(module, args, kwargs)
        compiled = self.cache.get(call.key)
        held = compiled.fetch(module) if compiled is not None else None
        if compiled is None or held is None:
            compiled = self._compile(module, call)
            held = compiled.fetch(module)
            assert held is not None
            self._keep(call.key, compiled)
        returned = iter(compiled.executable.run(call.tensors, held))
        program = compiled.program
        flat = [next(returned) if isinstance(v, torch.fx.Node) else v for v in program.outputs]
        return pytree.tree_unflatten(flat, program.spec)

    def graph(self, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PropagationGraph:
        """The graph of a call after all passes."""
        call = self.take_apart(module, args, kwargs)
        compiled = self.cache.get(call.key)
        if compiled is None or compiled.fetch(module) is None:
            compiled = self._compile(module, call)
            self._keep(call.key, compiled)
        return compiled.graph

    def records(self, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]
                ) -> tuple[PropagationGraph, list[Record]]:
        """The graph before all passes, and what the pipeline saw of each."""
        first = self._first(self.trace(module, self.take_apart(module, args, kwargs)))
        return first, self.options.pipeline().records(first)

    def take_apart(self, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Flatten the arguments and make the key of their graph."""
        leaves, tree = pytree.tree_flatten((args, kwargs))
        tensors, kinds = [], []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                tensors.append(leaf)
                kinds.append((leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad))
            else:
                kinds.append(_static_key(leaf))
        context = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
                   torch.get_default_dtype())
        return Call(leaves, tensors, tree, (tuple(kinds), tree, context, static_state(self.fn, module)))

    def trace(self, module: nn.Module | None, call: Call) -> Program:
        """Trace a call."""
        fn = self.fn if module is None else self.fn.__get__(module)
        tracer = Tracer(held_tensors(self.fn, module))
        self.traces += 1
        if self.traces == GRAPHS_WARNED:
            warnings.warn(message(
                f"{self.name!r} was traced {self.traces} times: its static arguments, shapes or closed-over numbers keep "
                "changing", "Pass what changes at every call as a tensor."), PropcWarning, stacklevel=4)
        program = tracer.run(fn, call.leaves, lambda values: pytree.tree_unflatten(values, call.tree),
                             self._paths(module, call), self.name, self._where())
        return simplify(program)

    def _compile(self, module: nn.Module | None, call: Call) -> Compiled:
        program = self.trace(module, call)
        graph = self.options.pipeline().run(self._first(program))
        executable = Executable(graph, self.state, self.options.validate)
        held = tuple(leaf for leaf in program.leaves if leaf.fetch is not None)
        keep = tuple(leaf for leaf in call.leaves if not isinstance(leaf, Tensor))
        return Compiled(program, graph, executable, held, keep)

    def _first(self, program: Program) -> PropagationGraph:
        """The graph before all passes: returned values are the costs."""
        marked = with_terms(program, returned_costs(program), ())
        return PropagationGraph(self.name, program, cut(marked, aside(program)))

    def _keep(self, key: Any, compiled: Compiled) -> None:
        self.cache[key] = compiled
        self.cache.move_to_end(key)
        if len(self.cache) > GRAPHS_KEPT:
            self.cache.popitem(last=False)

    def _paths(self, module: nn.Module | None, call: Call) -> list[str]:
        """A name for every flattened argument, from the function's signature."""
        args, kwargs = pytree.tree_unflatten(list(range(len(call.leaves))), call.tree)
        try:
            bound = inspect.signature(self.fn).bind(*(() if module is None else (module,)), *args, **kwargs)
        except TypeError as error:
            raise PropcTypeError(message(f"{self.name}(): {error}")) from None
        paths = [""] * len(call.leaves)
        for name, value in bound.arguments.items():
            if value is module and module is not None:
                continue
            variadic = bound.signature.parameters[name].kind
            for path, index in pytree.tree_flatten_with_path(value)[0]:
                tail = pytree.keystr(path)
                paths[index] = path[0].key if variadic is inspect.Parameter.VAR_KEYWORD else name + tail
        return paths

    def _where(self) -> Source:
        code = getattr(inspect.unwrap(self.fn), "__code__", None)
        return Source(code.co_filename, code.co_firstlineno, self.name) if code is not None else Source("", 0)

    def with_options(self, **changed: Any) -> Compiler:
        """The same program under other options, with a cache and state of its own."""
        return Compiler(self.fn, replace(self.options, **changed), self.name)

    def __deepcopy__(self, memo: Any) -> Compiler:
        import copy

        new = Compiler(self.fn, self.options, self.name)
        new.state = copy.deepcopy(self.state, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": OrderedDict()}


def _static_key(leaf: Any) -> Any:
    """A static argument by value, or by identity where it has no hash."""
    if isinstance(leaf, (int, float, str, bool, type(None))):
        return type(leaf), leaf
    try:
        hash(leaf)
    except TypeError:
        return "object", id(leaf)
    return type(leaf), leaf


def _check_estimator(choice: Any) -> None:
    """Find a misspelt estimator when the function is compiled, not when it is called."""
    from propc.estimators import resolve

    choices: Sequence[Any] = list(choice.values()) if isinstance(choice, Mapping) else [choice]
    for each in choices:
        if not callable(each) or isinstance(each, type):
            resolve(each)

"""The tracer: runs the user's function on fake tensors and records what it does to them.

A `torch.fx.Tracer` whose traced values are FakeTensors with a torch.fx node behind
each. The user's own code runs, so distributions, modules, helpers such as
`kl_divergence` and control flow on shapes work as they are; a
`TorchFunctionMode` sees every torch call and writes it into the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.distributions import Distribution

from propc.distributions.spec import DistributionSpec, hidden_tensors, take_apart
from propc.errors import PropcTypeError, PropcValueError, message
from propc.frontend import data_dependence
from propc.frontend.argument_checks import at_site, not_constructed, recorded_checks, taken_out
from propc.frontend.environment.collect import Surroundings
from propc.frontend.environment.isolation import isolated
from propc.frontend.environment.writes import kept
from propc.frontend.func_transforms import recorded_transforms
from propc.frontend.outputs import assembler, take_apart_returned
from propc.frontend.recorder import Listener, Recorder, tensor_type
from propc.frontend.scan_rounds import ROOM, Round, label_in_scan
from propc.frontend.user_source import user_source
from propc.fx import operations
from propc.fx.program import Mark, Program
from propc.types import Source
from propc.util.torch_private import (
    DataDependentOutputException,
    DisableTorchFunction,
    DynamicOutputShapeException,
    pytree,
)

_ACTIVE = threading.local()


def active_tracer() -> Tracer | None:
    """The tracer at work in this thread, or None."""
    return getattr(_ACTIVE, "tracer", None)


class Tracer(Recorder):
    """Traces one call of a function.

    Args:
        surroundings: what the function reaches besides its tensor arguments.
        room: how many like steps of a long scan to trace on both sides of the one that stands for many.

    Attributes:
        rounds: the steps of scans that are being traced, the outer one first.
    """

    def __init__(self, surroundings: Surroundings | None = None, room: int = ROOM) -> None:
        super().__init__(surroundings)
        self.room = room
        self.rounds: list[Round] = []

    def run(
        self,
        fn: Callable[..., Any],
        leaves: list[Any],
        rebuild: Callable[[list[Any]], tuple[Any, Any]],
        paths: list[str],
        name: str,
        where: Source,
    ) -> Program:
        """Trace ``fn`` on flattened arguments; tensors among `leaves` are traced, the rest is static."""
        with ExitStack() as stack:
            stack.enter_context(isolated(self._surroundings, _recorded_apply, where))
            stack.enter_context(recorded_transforms(_recorded_transform))
            stack.enter_context(recorded_checks(active_tracer))
            with DisableTorchFunction():
                values = [
                    self._placeholder(leaf, path) if isinstance(leaf, Tensor) else leaf
                    for leaf, path in zip(leaves, paths)
                ]
            args, kwargs = rebuild(values)
            stack.enter_context(self._mode)
            with _activated(self), Listener(self):
                result = _run(fn, args, kwargs)
            with DisableTorchFunction():
                return self._program(result, name, where)

    # -- marks ----------------------------------------------------------------------

    def site(self, dist: Distribution, name: str | None, estimator: Any) -> Tensor:
        """Record a site and give a fake draw of it."""
        with DisableTorchFunction():
            label = self._name(name, "site")
            spec, tensors = take_apart(dist)
            if hidden := hidden_tensors(dist):
                raise PropcTypeError(
                    message(
                        f"{spec} has a function, {hidden[0]!r}, that closes over a traced tensor",
                        "Keep the tensor as an attribute of the distribution.",
                        at=f"site {label!r}",
                        where=user_source(),
                    )
                )
            self.checks = at_site(self.checks, dist, label)
            phi = tuple(self._lift(t) for t in tensors)
            if not torch.is_grad_enabled():
                phi = tuple(self.record(Tensor.detach, (t,), {}) if t.requires_grad else t for t in phi)
            draw = self._fake_draw(spec, phi)
            dims = self.plates.dims(f"site {label!r}", spec.batch_shape)
            mark = Mark("site", label, spec, estimator, dims=dims)
            return self._mark(mark, tuple(self._node(t) for t in phi), draw, phi)

    def _fake_draw(self, spec: DistributionSpec, phi: tuple[Tensor, ...]) -> Tensor:
        """A tensor of the shape and dtype of a draw. The user's own object computes nothing."""
        key = spec.text, *(t.dtype for t in phi)
        if key not in self._drawn:
            with torch.no_grad(), self._unrecorded():
                try:
                    draw = spec.builder()(phi).sample()
                except (DataDependentOutputException, DynamicOutputShapeException):  # rejection samplers
                    draw = next((t for t in phi if t.is_floating_point()), torch.empty(()))
                self._drawn[key] = draw.dtype, draw.device
        dtype, device = self._drawn[key]
        return torch.empty(spec.sample_shape, dtype=dtype, device=device)

    def node(self, value: Tensor, name: str | None, propagator: Any = None) -> Tensor:
        """Record a named deterministic value."""
        with DisableTorchFunction():
            mark = Mark("node", self._name(name, "node"), propagator=propagator)
            value = self._lift(value)
            return self._mark(mark, (self._node(value),), value.clone(), (value,))

    def cost(self, value: Tensor, name: str | None, propagator: Any = None, how: str = "mean") -> Tensor:
        """Record a named cost."""
        with DisableTorchFunction():
            called = "cost" if how == "mean" else "bound"
            label = self._name(name, called)
            kind = tensor_type(value)
            dims = self.plates.dims(f"{called} {label!r}", value.shape)
            if not value.is_floating_point() or value.dim() > max(1, len(dims)):
                raise PropcValueError(
                    message(
                        f"a {called} is floating point, of shape [{', '.join(dims or ('batch',))}]; got {kind}",
                        f"Sum it over everything but the {' and '.join(dims or ('batch',))}."
                        if value.is_floating_point()
                        else f"Convert it: {'.real or .abs()' if value.is_complex() else '.float()'}.",
                        at=f"{called} {label!r}",
                        where=user_source(),
                    )
                )
            if dims[1:] and (propagator is not None or called == "bound"):
                what = "is a bound" if propagator is None else f"has the propagator {propagator.name!r}"
                raise PropcValueError(
                    message(
                        f"it {what}, and stands in plate {dims[1]!r} of the data",
                        "Let it be a value for each row, outside of the plate.",
                        at=f"{called} {label!r}",
                        where=user_source(),
                    )
                )
            value = self._lift(value)
            mark = Mark("cost", label, propagator=propagator, how=how, dims=dims)
            return self._mark(mark, (self._node(value),), value.clone(), (value,))

    def opaque(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        how: str = "",
        cuts: bool = False,
    ) -> Any:
        """Record a black box; its outputs' shapes come from one run on zeros."""
        cuts = cuts or not torch.is_grad_enabled()
        with DisableTorchFunction(), _activated(None):
            args, kwargs = self._lift(args), self._lift(kwargs)
            label = self._name(None, getattr(fn, "__name__", "opaque"))
            result = operations.run_on_zeros(fn, args, kwargs, self._mode)
            items = result if isinstance(result, (tuple, list)) else [result]
            if not all(isinstance(item, Tensor) for item in items):
                kinds = ", ".join(type(item).__name__ for item in items if not isinstance(item, Tensor))
                raise PropcTypeError(
                    message(
                        f"a black box must return a tensor, or a tuple or list of tensors; got {kinds}",
                        "Wrap numbers and arrays in torch.as_tensor.",
                        at=f"black box {label!r}",
                        where=user_source(),
                    )
                )
            node = self.graph.call_function(fn, self._nodes(args), self._nodes(kwargs))
            node.meta.update(
                where=user_source(), context=None, rough=True, mark=Mark("opaque", label, how=how, cuts=cuts)
            )
            node.meta["types"] = tuple(map(tensor_type, items))
            self._bind(result, node)
            return result

    def name_of_scan(self) -> str:
        """A name that is taken by nobody."""
        names = ("scan", *(f"scan{i}" for i in range(1, len(self._marks) + 2)))
        name = next(label for label in names if label not in self._marks)
        self._marks[name] = user_source()
        return name

    def _mark(self, mark: Mark, args: tuple[Any, ...], value: Tensor, sources: tuple[Any, ...]) -> Tensor:
        node = self.graph.call_function(operations.marked, args)
        node.meta.update(where=user_source(), context=None, rough=False, mark=mark)
        if torch.is_grad_enabled() and mark.kind == "site" and value.is_floating_point():
            value = value.requires_grad_().clone()  # so that a path from the draw shows as differentiable
        self._bind(value, node)
        return value

    def _name(self, name: str | None, kind: str) -> str:
        if self.rounds and (name is None or (isinstance(name, str) and name)):
            name = label_in_scan(self.rounds, name, kind)
        if name is None:
            numbers = (f"{kind}{i}" for i in range(len(self._marks) + 1))
            name = next(label for label in numbers if label not in self._marks)
        if not isinstance(name, str) or not name:
            raise PropcTypeError(message(f"a name must be a non-empty string; got {name!r}", where=user_source()))
        if name in self._marks or name == "output":
            owner = self._marks.get(name, "by what the program returns")
            raise PropcValueError(
                message(
                    f"the name is already taken ({owner})",
                    "Give every site, node and cost a name of its own, such as f'x{t}' in a loop.",
                    at=f"{kind} {name!r}",
                    where=user_source(),
                )
            )
        self._marks[name] = user_source()
        return name

    # -- the end --------------------------------------------------------------------

    def _program(self, result: Any, name: str, where: Source) -> Program:
        outputs: list[torch.fx.Node] = []
        paths: list[str] = []
        inner: set[int] = set()
        pieces: list[tuple[int, Callable[..., Any]]] = []
        flat, spec = pytree.tree_flatten_with_path(result)
        left = [each for each in kept(self._surroundings.places) if each.renewable]
        leaves = [(leaf, pytree.keystr(place), isinstance(leaf, Tensor)) for place, leaf in flat]
        for leaf, path, own in (*leaves, *((each.value, f"kept.{each.name}", False) for each in left)):
            parts, fields, build = take_apart_returned(leaf, path, where)
            if not own:
                inner.update(range(len(outputs), len(outputs) + len(parts)))
            outputs += [self._node(self._lift(part)) for part in parts]
            paths += fields
            pieces.append((len(parts), build))
        checked = taken_out(self.graph, self._leaves, [node for node, _ in self.checks])
        self.graph.output(tuple(outputs))
        return Program(
            name=name,
            graph=self.graph,
            leaves=tuple(self._leaves),
            outputs=tuple(outputs),
            paths=tuple(paths),
            inner=frozenset(inner),
            assemble=assembler(pieces, spec, [each.put for each in left]),
            mutates=self._mutates,
            where=where,
            plates=self.plates.plates(),
            returned_memory=frozenset(node.meta["memory"] for node in outputs),
            checked=checked,
        )


@contextmanager
def _activated(tracer: Tracer | None) -> Iterator[None]:
    """Make `tracer` the one at work in this thread."""
    before = active_tracer()
    _ACTIVE.tracer = tracer
    try:
        yield
    finally:
        _ACTIVE.tracer = before


def _run(fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    try:
        return fn(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        told = not_constructed(error)
        if told is None:
            raise
        raise told from error
    except TypeError as error:
        told = data_dependence.as_number(error)
        if told is None:
            raise
        raise told.with_traceback(error.__traceback__) from error


def _recorded_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """`autograd.Function.apply` as one traced operation, so that its own backward is kept."""
    tracer, function = active_tracer(), operations.CustomFunction(cls)
    if tracer is None or tracer._inside:
        return function(*args, **kwargs)
    with DisableTorchFunction():
        return tracer.record(function, args, kwargs)


def _recorded_transform(run: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of a function under `torch.vmap` or `torch.func.grad` as one traced operation, with all inside."""
    tracer = active_tracer()
    if tracer is None or tracer._inside:
        return run(*args, **kwargs)
    return tracer.transform(run, name, args, kwargs)

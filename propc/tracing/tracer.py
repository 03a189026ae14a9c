"""The tracer: runs the user's function on fake tensors and records what it does to them.

A `torch.fx.Tracer` whose traced values are FakeTensors with a torch.fx node behind
each. The user's own code runs, so distributions, modules, helpers such as
`kl_divergence` and control flow on shapes work as they are; a
`TorchFunctionMode` sees every torch call and writes it into the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.fx
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from propc.distributions import DistributionSpec, hidden_tensors, take_apart
from propc.errors import PropcTypeError, PropcValueError, TraceError, message
from propc.ir import Source, TensorType
from propc.tracing import operations
from propc.tracing.guards import isolated
from propc.tracing.held import Surroundings
from propc.tracing.program import Leaf, Mark, Program
from propc.tracing.returned import assembler, take_apart_returned
from propc.tracing.source import user_source

_ACTIVE = threading.local()


def active_tracer() -> Tracer | None:
    """The tracer at work in this thread, or None."""
    return getattr(_ACTIVE, "tracer", None)


def tensor_type(value: Tensor) -> TensorType:
    """Shape, dtype, device and requires_grad of a tensor."""
    return TensorType(tuple(value.shape), value.dtype, value.device, value.requires_grad)


class _Recorder(TorchFunctionMode):
    """Hands every torch call to the tracer."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.tracer.record(func, args, kwargs or {})


class Tracer(torch.fx.Tracer):
    """Traces one call of a function.

    Args:
        surroundings: what the function reaches besides its tensor arguments.
    """

    def __init__(
        self,
        surroundings: Surroundings | None = None,
    ) -> None:
        super().__init__()
        self.graph = torch.fx.Graph()
        self._surroundings = surroundings or Surroundings()
        self._leaves: list[Leaf] = []
        self._held: dict[int, tuple[Tensor, FakeTensor]] = {}  # the tensor itself keeps its id alive
        self._marks: dict[str, Source] = {}
        self._written: dict[int, tuple[int, torch.fx.Node, Any]] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._alive: list[Tensor] = []  # a freed tensor's memory would lend its identity to another
        self._drawn: dict[Any, tuple[torch.dtype, torch.device]] = {}  # of draws, by family
        self._region = operations.region()
        self._mutates = False
        self._steps = 0
        self._inside = False  # a torch call, whose parts are not recorded

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
            stack.enter_context(isolated(self._surroundings.places, _recorded_apply, where))
            with torch._C.DisableTorchFunction():
                values = [
                    self._placeholder(leaf, path) if isinstance(leaf, Tensor) else leaf
                    for leaf, path in zip(leaves, paths)
                ]
            args, kwargs = rebuild(values)
            stack.enter_context(self._mode)
            with _activated(self), _Recorder(self):
                result = fn(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                return self._program(result, name, where)

    # -- recording ------------------------------------------------------------------

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch call on fake tensors and write it into the graph."""
        if operations.is_static(func):
            return func(*args, **kwargs)
        if operations.name_of(func) == "__iter__":
            return iter(self.record(Tensor.unbind, args, kwargs))
        operations.refuse(func, user_source)
        given, args, kwargs = args, self._lift(args), self._lift(kwargs)
        if operations.gathers(func, args):
            raise self._needs_value(func, args)
        touched = [t for t in _flat((args, kwargs)) if isinstance(t, FakeTensor)]
        versions = [_version(t) for t in touched]
        try:
            with self._unrecorded():
                result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            return self._data_dependent(func, args, error)
        written = [t for t, v in zip(touched, versions) if _version(t) != v]
        if not written and not operations.has_effect(func) and not _has_tensor(result):
            return result
        node = self._emit(func, args, kwargs)
        node.meta["writes"] = bool(written) or operations.has_effect(func)
        self._bind(result, node)
        for tensor in written:
            self._mark_written(tensor, node)
        return given[0] if written and result is args[0] else result  # the user's own object, if it is one

    @contextmanager
    def _unrecorded(self) -> Iterator[None]:
        inside, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = inside

    def _emit(self, func: Any, args: Any, kwargs: Any) -> torch.fx.Node:
        op, target = operations.target_of(func, args)
        node = self.graph.create_node(op, target, self._nodes(args), self._nodes(kwargs))
        node.meta["where"] = user_source()
        region = operations.region()
        node.meta["context"] = None if region == self._region else region
        node.meta["rough"] = operations.is_rough(func)
        return node

    def _bind(self, result: Any, node: torch.fx.Node) -> None:
        """Let the result's tensors stand for the node, or for items of it."""
        if isinstance(result, Tensor):
            node.meta["type"] = tensor_type(result)
            self._own(result, node)
        elif isinstance(result, (tuple, list)):
            node.meta["type"] = None
            for i, item in enumerate(result):
                if _has_tensor(item):
                    child = self.graph.call_function(operations.getitem, (node, i))
                    child.meta.update(where=node.meta["where"], context=None, rough=False)
                    self._bind(item, child)
        else:
            node.meta["type"] = None

    def _own(self, tensor: Any, node: torch.fx.Node) -> None:
        self._steps += 1
        tensor._propc_node, tensor._propc_step = node, self._steps
        node.meta["memory"] = _memory(tensor)
        self._alive.append(tensor)

    def _node(self, tensor: Any) -> torch.fx.Node:
        """The torch.fx node behind a fake tensor, after the last write to its memory."""
        node: torch.fx.Node | None = getattr(tensor, "_propc_node", None)
        if node is None or node.graph is not self.graph:
            raise _unseen()
        if self._written:
            step, writer, _ = self._written.get(_memory(tensor), (0, node, None))
            if step > tensor._propc_step:
                after = self.graph.call_function(operations.after, (node, writer))
                after.meta.update(node.meta, rough=False, context=None, type=tensor_type(tensor))
                after.meta.pop("mark", None)
                self._own(tensor, after)
                return after
        return node

    def _mark_written(self, tensor: Any, node: torch.fx.Node) -> None:
        self._mutates = True
        self._steps += 1
        self._written[_memory(tensor)] = (self._steps, node, tensor)
        if not hasattr(tensor, "_propc_node"):
            self._own(tensor, node)

    def _lift(self, value: Any) -> Any:
        """Replace real tensors, which the program holds, by fake ones."""
        if isinstance(value, FakeTensor):
            if value.fake_mode is not self._mode:
                raise _unseen()
            return value
        if isinstance(value, Tensor):
            return self._hold(value)
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            items = [self._lift(v) for v in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {k: self._lift(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(self._lift(value.start), self._lift(value.stop), self._lift(value.step))
        return value

    def _nodes(self, value: Any) -> Any:
        """Replace fake tensors by their torch.fx nodes."""
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            items = [self._nodes(v) for v in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {k: self._nodes(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(self._nodes(value.start), self._nodes(value.stop), self._nodes(value.step))
        return value

    # -- leaves ---------------------------------------------------------------------

    def _placeholder(self, tensor: Tensor, path: str, fetch: Callable[[Any], Tensor] | None = None) -> Any:
        fake = self._fake(tensor)
        with self.graph.inserting_before(self._first_operation()):
            node = self.graph.placeholder(f"leaf{len(self._leaves)}")
        node.meta.update(type=tensor_type(tensor), where=user_source(), context=None, rough=False)
        self._leaves.append(Leaf(path, node, tensor_type(tensor), fetch))
        self._own(fake, node)
        return fake

    def _fake(self, tensor: Tensor) -> Any:
        if tensor.is_leaf:
            return self._mode.from_tensor(tensor)
        with _disable_current_modes():  # the gradients of the tensor's own history are not looked at
            leaf = tensor.detach().requires_grad_()
        return self._mode.from_tensor(leaf).clone()

    def _first_operation(self) -> torch.fx.Node:
        last = self._leaves[-1].node if self._leaves else self.graph._root
        return last.next

    def _hold(self, tensor: Tensor) -> Any:
        """The fake twin of a tensor that the program holds."""
        if id(tensor) not in self._held:
            if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                raise _unseen()
            unnamed = f"tensor{len(self._held)}", lambda _: tensor
            path, fetch = self._surroundings.tensors.get(id(tensor), unnamed)
            self._held[id(tensor)] = (tensor, self._placeholder(tensor, path, fetch))
        return self._held[id(tensor)][1]

    # -- marks ----------------------------------------------------------------------

    def site(self, dist: Distribution, name: str | None, estimator: Any) -> Tensor:
        """Record a site and give a fake draw of it."""
        with torch._C.DisableTorchFunction():
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
            phi = tuple(self._lift(t) for t in tensors)
            if not torch.is_grad_enabled():
                phi = tuple(self.record(Tensor.detach, (t,), {}) if t.requires_grad else t for t in phi)
            draw = self._fake_draw(spec, phi)
            mark = Mark("site", label, spec, estimator)
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

    def node(self, value: Tensor, name: str | None) -> Tensor:
        """Record a named deterministic value."""
        with torch._C.DisableTorchFunction():
            mark = Mark("node", self._name(name, "node"))
            value = self._lift(value)
            return self._mark(mark, (self._node(value),), value.clone(), (value,))

    def cost(self, value: Tensor, name: str | None) -> Tensor:
        """Record a named cost."""
        with torch._C.DisableTorchFunction():
            label = self._name(name, "cost")
            kind = tensor_type(value)
            if not value.is_floating_point() or value.dim() > 1:
                raise PropcValueError(
                    message(
                        f"a cost is floating point, of shape [batch]; got {kind}",
                        "Sum it over everything but the batch."
                        if value.is_floating_point()
                        else "Convert it: .float().",
                        at=f"cost {label!r}",
                        where=user_source(),
                    )
                )
            value = self._lift(value)
            return self._mark(Mark("cost", label), (self._node(value),), value.clone(), (value,))

    def opaque(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a black box; its outputs' shapes come from one run on zeros."""
        with torch._C.DisableTorchFunction(), _activated(None):
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
            node.meta.update(where=user_source(), context=None, rough=True, mark=Mark("opaque", label))
            node.meta["types"] = tuple(map(tensor_type, items))
            self._bind(result, node)
            return result

    def _mark(self, mark: Mark, args: tuple[Any, ...], value: Tensor, sources: tuple[Any, ...]) -> Tensor:
        node = self.graph.call_function(operations.marked, args)
        node.meta.update(where=user_source(), context=None, rough=False, mark=mark)
        if torch.is_grad_enabled() and mark.kind == "site" and value.is_floating_point():
            value = value.requires_grad_().clone()  # so that a path from the draw shows as differentiable
        self._bind(value, node)
        return value

    def _name(self, name: str | None, kind: str) -> str:
        if name is None:
            numbers = (f"{kind}{i}" for i in range(len(self._marks) + 1))
            name = next(label for label in numbers if label not in self._marks)
        if not isinstance(name, str) or not name:
            raise PropcTypeError(message(f"a name must be a non-empty string; got {name!r}", where=user_source()))
        if name in self._marks:
            raise PropcValueError(
                message(
                    f"the name is already taken ({self._marks[name]})",
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
        for place, leaf in flat:
            path = pytree.keystr(place)
            parts, fields, build = take_apart_returned(leaf, path)
            if not isinstance(leaf, Tensor):
                inner.update(range(len(outputs), len(outputs) + len(parts)))
            outputs += [self._node(self._lift(part)) for part in parts]
            paths += fields
            pieces.append((len(parts), build))
        self.graph.output(tuple(outputs))
        return Program(
            name=name,
            graph=self.graph,
            leaves=tuple(self._leaves),
            outputs=tuple(outputs),
            paths=tuple(paths),
            inner=frozenset(inner),
            assemble=assembler(pieces, spec),
            mutates=self._mutates,
            where=where,
            returned_memory=frozenset(node.meta["memory"] for node in outputs),
        )

    def _data_dependent(self, func: Any, args: Any, error: Exception) -> Any:
        if operations.name_of(func) == "__bool__" and operations.in_argument_check():
            return True  # ours runs with the site's name
        raise self._needs_value(func, args) from error

    def _needs_value(self, func: Any, args: Any) -> TraceError:
        tensors = [t for t in _flat(args) if isinstance(t, FakeTensor)]
        marks = _marks_before(t._propc_node for t in tensors if hasattr(t, "_propc_node"))
        sites = " and ".join(repr(mark.name) for mark in marks if mark.kind == "site")
        return TraceError(
            message(
                f"{operations.called(func)} needs the value of a traced tensor, which is only known when the compiled "
                "function runs",
                operations.instead(func),
                at=f"a value that depends on site {sites}" if sites else "",
                where=user_source(),
            )
        )


def _marks_before(nodes: Iterable[torch.fx.Node]) -> list[Mark]:
    """The last marks on every way to some nodes."""
    todo, seen, marks = list(nodes), set(), {}
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if (mark := node.meta.get("mark")) is not None:
            marks[mark.name] = mark
        else:
            todo.extend(node.all_input_nodes)
    return [marks[name] for name in sorted(marks)]


@contextmanager
def _activated(tracer: Tracer | None) -> Iterator[None]:
    """Make `tracer` the one at work in this thread."""
    before = active_tracer()
    _ACTIVE.tracer = tracer
    try:
        yield
    finally:
        _ACTIVE.tracer = before


def _recorded_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """`autograd.Function.apply` as one traced operation, so that its own backward is kept."""
    tracer, function = active_tracer(), operations.CustomFunction(cls)
    if tracer is None or tracer._inside:
        return function(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        return tracer.record(function, args, kwargs)


def _unseen() -> TraceError:
    return TraceError(
        message(
            "a tensor came from code that a trace cannot see (a torch.func transform such as vmap, a scripted "
            "function, or a tensor kept from an earlier trace)",
            "Write it with ordinary operations on the whole batch, or wrap it in propc.opaque if no gradient has to "
            "pass.",
            where=user_source(),
        )
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _memory(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


def _flat(value: Any) -> list[Any]:
    return pytree.tree_leaves(value)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_tensor(v) for v in value)
    return isinstance(value, Tensor)

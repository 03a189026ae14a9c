"""The recorder: writes the torch calls that it sees on fake tensors into a torch.fx graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from propc.distributions.argument_check import PARAMETER_FIX, ArgumentCheck, must_hold
from propc.errors import TraceError, message
from propc.frontend import data_dependence, func_transforms
from propc.frontend.data_plates import Declared
from propc.frontend.environment.collect import Surroundings
from propc.frontend.user_source import user_source
from propc.fx import operations
from propc.fx.program import Leaf, Mark
from propc.types import Source, TensorType
from propc.util.torch_private import (
    DataDependentOutputException,
    DisableTorchFunction,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    be_parameter,
    disable_current_modes,
    first_node,
    is_functorch_wrapped_tensor,
    pytree,
    storage_key,
    temporarily_clear_interpreter_stack,
    unknown_on_fakes,
    version,
)


def tensor_type(value: Tensor) -> TensorType:
    """Shape, dtype, device and requires_grad of a tensor."""
    return TensorType(tuple(value.shape), value.dtype, value.device, value.requires_grad)


class Listener(TorchFunctionMode):
    """Hands every torch call to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.recorder.captured is not None:
            return self.recorder.inside(func, args, kwargs or {})
        return self.recorder.record(func, args, kwargs or {})


class Recorder(torch.fx.Tracer):
    """A torch.fx graph in the making, and the fake tensors that stand for its nodes.

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
        self.plates = Declared()
        self._mutates = False
        self._steps = 0
        self.checks: list[tuple[torch.fx.Node, object]] = []  # of torch, each with the distribution it looks at
        self._inside = False  # a torch call, whose parts are not recorded
        self.captured: dict[int, tuple[Tensor, Any]] | None = None  # by the transform that runs: the tensor, its twin

    # -- recording ------------------------------------------------------------------

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch call on fake tensors and write it into the graph."""
        if operations.is_static(func):
            if data_dependence.shows(func, args):
                raise self._needs_value(func, args)
            return func(*args, **kwargs)
        if operations.name_of(func) == "__iter__":
            return iter(self.record(Tensor.unbind, args, kwargs))
        if operations.asserts(func, args):
            return self._assertion(func, args)
        operations.refuse(func, user_source)
        given, args, kwargs = args, self._lift(args), self._lift(kwargs)
        if data_dependence.gathers(func, args):
            raise self._needs_value(func, args)
        touched = [t for t in _flat((args, kwargs)) if isinstance(t, FakeTensor)]
        versions = [_version(t) for t in touched]
        try:
            with self._unrecorded():
                result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if not operations.only_looks(func):
                return self._data_dependent(func, args, error)
            result = operations.run_on_ones(func, args, kwargs, self._mode)
        except RuntimeError as error:
            if not data_dependence.reads_memory(error):
                raise
            raise self._needs_value(func, args) from error
        written = [t for t, v in zip(touched, versions) if _version(t) != v]
        if not written and not operations.has_effect(func) and not _has_tensor(result):
            return result
        node = self._emit(func, args, kwargs)
        node.meta["writes"] = bool(written) or operations.has_effect(func)
        if node.meta["writes"]:
            node.meta["written"] = frozenset(map(_memory, written or touched))
        self._bind(result, node)
        for tensor in written:
            self._mark_written(tensor, node)
        return given[0] if written and args and result is args[0] else result  # the user's own object, if it is one

    def transform(self, run: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a transformed function on fake tensors and write it into the graph as one operation."""
        with DisableTorchFunction():
            args, kwargs = self._lift(args), self._lift(kwargs)
        captured: dict[int, tuple[Tensor, Any]] = {}
        self.captured = captured
        try:
            with self._unrecorded(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"The \.grad attribute")  # of what torch makes fakes of by itself
                result = run(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise self._needs_value(run, args) from error
        except RuntimeError as error:
            if not unknown_on_fakes(error):
                raise
            raise TraceError(
                message(
                    f"torch cannot tell the shapes of what 'torch.{name}' gives here ({error})",
                    "Take derivatives in reverse mode: jacrev for jacfwd, jacrev(jacrev(f)) for hessian(f).",
                    where=user_source(),
                )
            ) from error
        finally:
            self.captured = None
        with DisableTorchFunction():
            leaves, tree = pytree.tree_flatten(result)
            call = func_transforms.Transformed(run, name, [tensor for tensor, _ in captured.values()])
            node = self._emit(call, ([twin for _, twin in captured.values()], args, kwargs), {})
            self._bind(tuple(leaves), node)
            return pytree.tree_unflatten(leaves, tree)

    def inside(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A torch call inside a transformed function, which is not written; notes which tensors it reaches."""
        assert self.captured is not None
        if operations.is_static(func):
            return func(*args, **kwargs)
        captured = self.captured

        def twin(tensor: Tensor) -> Any:
            if is_functorch_wrapped_tensor(tensor):
                return tensor
            if isinstance(tensor, FakeTensor) and not hasattr(tensor, "_propc_node"):
                return tensor  # made inside
            if id(tensor) not in captured:
                with temporarily_clear_interpreter_stack():
                    captured[id(tensor)] = tensor, self._lift(tensor)
            return captured[id(tensor)][1]

        with DisableTorchFunction():
            args, kwargs = pytree.tree_map_only(Tensor, twin, (args, kwargs))
        return func(*args, **kwargs)

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

    # -- checks ---------------------------------------------------------------------

    def argument_check(self, check: ArgumentCheck, values: Sequence[Tensor], of: object) -> None:
        """Record a check of torch on values; what happens inside of one recorded call is not seen."""
        if self._inside or self.captured is not None:
            return
        with DisableTorchFunction():
            node = self.graph.call_function(check, tuple(self._node(self._lift(value)) for value in values))
            node.meta.update(where=check.where, type=None, context=None, rough=False)
            self.checks.append((node, of))

    def _assertion(self, func: Any, args: tuple[Any, ...]) -> None:
        """Record a truth that the program asserts."""
        said = f": {args[1]}" if len(args) > 1 else ""
        judge = must_hold(f"torch.{operations.name_of(func)} finds that its condition does not hold{said}")
        self.argument_check(ArgumentCheck(judge, "", user_source()), args[:1], None)

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
        """A fake twin of its own, also where one tensor is passed twice, or passed and held: next time they differ."""
        with disable_current_modes():  # nor are the gradients of the tensor's own history looked at
            alias = tensor.detach().requires_grad_(tensor.requires_grad)
        fake = self._mode.from_tensor(alias)
        if isinstance(tensor, nn.Parameter):
            be_parameter(fake)
        return fake if tensor.is_leaf else fake.clone()

    def _first_operation(self) -> torch.fx.Node:
        last = self._leaves[-1].node if self._leaves else first_node(self.graph)
        return last.next

    def _hold(self, tensor: Tensor) -> Any:
        """The fake twin of a tensor that the program holds."""
        if id(tensor) not in self._held:
            if is_functorch_wrapped_tensor(tensor):
                raise _unseen()
            unnamed = f"tensor{len(self._held)}", lambda _: tensor
            path, fetch = self._surroundings.tensors.get(id(tensor), unnamed)
            if nn.parameter.is_lazy(tensor):
                raise TraceError(
                    message(
                        f"{path!r} belongs to a lazy layer that has not seen an input yet, so it has no shape",
                        "Call the plain module once before the compiled one.",
                        where=user_source(),
                    )
                )
            fake = self._placeholder(tensor, path, fetch)
            self._mode.fake_tensor_converter.set_tensor_memo(tensor, fake)  # torch.from_numpy makes fakes by itself
            self._held[id(tensor)] = (tensor, fake)
        return self._held[id(tensor)][1]

    def _data_dependent(self, func: Any, args: Any, error: Exception) -> Any:
        checking = operations.in_argument_check() if operations.name_of(func) == "__bool__" else None
        if checking is not None:
            expected = args[0]._propc_node.target != "any"  # all are valid, none is not
            judge = must_hold(f"its own check does not allow the arguments of {type(checking).__name__}", expected)
            self.argument_check(ArgumentCheck(judge, PARAMETER_FIX, user_source()), args, checking)
            return expected
        raise self._needs_value(func, args) from error

    def _needs_value(self, func: Any, args: Any) -> TraceError:
        tensors = [t for t in _flat(args) if isinstance(t, FakeTensor)]
        marks = _marks_before(t._propc_node for t in tensors if hasattr(t, "_propc_node"))
        sites = " and ".join(repr(mark.name) for mark in marks if mark.kind == "site")
        return TraceError(
            message(
                f"{data_dependence.called(func, args)} needs the value of a traced tensor, which is only known when "
                "the compiled function runs",
                data_dependence.instead(Distribution.sample if operations.in_sampler() else func, args),
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


def _unseen() -> TraceError:
    return TraceError(
        message(
            "a tensor came from code that a trace cannot see (a torch.func transform, such as jvp or jacrev outside "
            "of vmap, a scripted function, or a tensor kept from an earlier trace)",
            "Write it with ordinary operations on the whole batch, or wrap it in propc.opaque if no gradient has to "
            "pass.",
            where=user_source(),
        )
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else version(tensor)


def _memory(tensor: Any) -> int:
    if tensor.layout != torch.strided:
        return id(tensor)
    try:
        return storage_key(tensor)
    except NotImplementedError:  # a wrapper of torch.func
        raise _unseen() from None


def _flat(value: Any) -> list[Any]:
    return pytree.tree_leaves(value)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_tensor(v) for v in value)
    return isinstance(value, Tensor)

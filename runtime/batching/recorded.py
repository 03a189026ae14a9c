"""Operations through `torch.vmap` recorded: run once, and written as the operations of torch that they come to.

A call of `torch.vmap` takes some 40 µs, and each operation inside it is looked up in its table of batching rules anew.
What comes out is always the same operations, so that they are written down at the first call. They stand below those
that torch puts together from others, and above autograd: the code can be differentiated, and twice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.fx import segment_code
from propc.fx.assignment import WRITTEN
from propc.fx.operations import autocast, getitem
from propc.runtime.batching.table import is_of_torch
from propc.runtime.batching.vmapped import VmappedOperation
from propc.util.torch_private import (
    OpOverload,
    TorchDispatchMode,
    builtin_of,
    has_effect,
    pytree,
    transforms_active,
)

Run = Callable[..., Sequence[Any]]
MOST = 256  # operations that one may come to; more are torch.vmap's loop over the elements, which saves nothing
_BY_VALUE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Recorded:
    """Code with vmapped operations, which are recorded at the first call on tensors of a kind.

    What shapes, strides or the wish for gradients decide, such as whether `reshape` copies and which kernel attends,
    is in the record. Dtypes and devices are those of a compiled call.

    Args:
        name: of the segment's stage.
        code: from its placeholders to what it returns.
    """

    def __init__(self, name: str, code: torch.fx.Graph) -> None:
        self.name, self.code = name, code
        self.plain = _built(name, code)
        self.known: dict[Hashable, Run] = {}

    @property
    def run(self) -> Run:
        """Itself, or the code alone where there is nothing to record."""
        return self if any(isinstance(node.target, VmappedOperation) for node in self.code.nodes) else self.plain

    def __call__(self, *values: Tensor) -> Sequence[Any]:
        key = torch.is_grad_enabled(), *[(v.shape, v.stride(), v.requires_grad) for v in values]
        run = self.known.get(key)
        if run is not None:
            return run(*values)
        if any(type(v) not in (Tensor, torch.nn.Parameter) for v in values) or transforms_active():
            return self.plain(*values)  # tensors without values, as a compiler of stages has them
        recording = _Recording(self.code)
        found: Sequence[Any] = recording.run(*values)
        self.known[key] = _built(self.name, recording.made)
        return found


def _built(name: str, code: torch.fx.Graph) -> Run:
    arguments = [node for node in code.nodes if node.op == "placeholder"]
    body = [node for node in code.nodes if node.op not in ("placeholder", "output")]
    run: Run = segment_code.build(name, body, arguments, code.output_node().args[0]).forward  # type: ignore[arg-type]
    return run


class _Recording(torch.fx.Interpreter):
    """Runs code, and writes it again with torch's operations in place of vmapped ones.

    Attributes:
        made: the new code.
        copies: for each node of the old code the one of the new, or of the items of a tuple.
    """

    def __init__(self, code: torch.fx.Graph) -> None:
        super().__init__(torch.nn.Module(), graph=code)
        self.extra_traceback = False
        self.made = torch.fx.Graph()
        self.copies: dict[torch.fx.Node, Any] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        region = n.meta.get("context")
        with nullcontext() if region is None else region.entered():
            if isinstance(n.target, VmappedOperation):
                return self._vmapped(n, n.target)
            value = super().run_node(n)
        source: Any = self.copies.get(n.args[0]) if n.target is getitem else None  # type: ignore[arg-type]
        whole = not isinstance(source, tuple)
        self.copies[n] = self.made.node_copy(n, self.copies.__getitem__) if whole else source[n.args[1]]
        return value

    def _vmapped(self, n: torch.fx.Node, operation: VmappedOperation) -> Any:
        values, _ = self.fetch_args_kwargs_from_env(n)
        operations = _Operations(self.made, n.meta.get("context"))
        operations.known = {id(v): (v, self.copies[arg]) for v, arg in zip(values, n.args)}  # type: ignore[index]
        if is_of_torch(operation.node.target) or operation.node.target in WRITTEN:
            with operations:
                value = operation(*values)
            copy = operations.copy_of(value)
        else:
            value, operations.failed = operation(*values), True
        self.copies[n] = self.made.node_copy(n, self.copies.__getitem__) if operations.failed else copy
        return value


class _Operations(TorchDispatchMode):
    """Writes the operations that torch runs.

    Attributes:
        casting: the devices on which autocast is on; its casts are among the operations.
        known: the nodes of tensors, by identity; the tensors are held, so that no other has theirs.
        failed: whether something was met that cannot be written.
    """

    def __init__(self, graph: torch.fx.Graph, context: Any) -> None:
        super().__init__()
        self.graph, self.context = graph, context
        self.casting = [device for device, enabled, _ in autocast() if enabled]
        self.known: dict[int, tuple[Tensor, Any]] = {}
        self.written: list[torch.fx.Node] = []
        self.failed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        if not self.failed:
            self._write(func, args, kwargs, value)
        return value

    def _write(self, func: Any, args: Any, kwargs: Any, value: Any) -> None:
        if not isinstance(func, OpOverload) or _goes_by_value(func, args) or len(self.written) >= MOST:
            self.failed = True
            return
        constant = func is torch.ops.aten.lift_fresh.default  # made of numbers in the code, as in x[[0, 2]]
        held, args = (args, ()) if constant else ((), args)
        args, kwargs = pytree.tree_map_only(Tensor, self._node, (args, kwargs))
        node = self._emit(_bound(func, held, self.casting), args, kwargs)
        node.meta["pure"] = not has_effect(func) and torch.Tag.nondeterministic_seeded not in func.tags
        if isinstance(value, Tensor):
            self.known[id(value)] = value, node
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                if isinstance(item, Tensor):
                    self.known[id(item)] = item, self._emit(getitem, (node, i), {})

    def _node(self, tensor: Tensor) -> Any:
        if id(tensor) not in self.known:  # one that Python code holds, which may hold another next time
            self.failed = True
            return None
        return self.known[id(tensor)][1]

    def _emit(self, target: Any, args: Any, kwargs: Any) -> torch.fx.Node:
        node = self.graph.call_function(target, tuple(args), dict(kwargs))
        node.meta.update(context=self.context, pure=True)
        self.written.append(node)
        return node

    def copy_of(self, value: Any) -> Any:
        """What stands for the operation's result; where that cannot be written, nothing is left in the graph."""
        results = pytree.tree_map_only(Tensor, self._node, value)
        leaves = [leaf for leaf in pytree.tree_leaves(results) if leaf is not None]
        named = all(isinstance(leaf, torch.fx.Node) for leaf in leaves)  # else a handle of a hook, say
        self.failed |= not named or not (leaves or any(not node.meta["pure"] for node in self.written))
        for node in reversed(self.written):
            if self.failed or (node.meta["pure"] and not node.users and node not in leaves):
                self.graph.erase_node(node)
        return tuple(results) if isinstance(results, (tuple, list)) else results


def _goes_by_value(func: Any, args: Sequence[Any]) -> bool:
    """Whether what an operation makes, or its shape, depends on the numbers in a tensor."""
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool(_BY_VALUE & {*func.tags})


def _bound(func: Any, held: Sequence[Tensor], casting: Sequence[str]) -> Callable[..., Any]:
    """An operation as torch.fx writes it without looking it up by its path at each call, which takes 1 µs."""
    call: Any = partial(builtin_of(func), *held)
    if casting:
        call = partial(_without_casts, casting, call)
    call.__name__ = call.__qualname__ = func.name().replace("::", "_").replace(".", "_")
    call.__module__ = __name__
    return call  # type: ignore[no-any-return]


def _without_casts(devices: Sequence[str], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call where autocast is off on some devices, on which it is on: its casts are written down already.

    `torch.autocast` does the same, and takes some 10 µs.
    """
    for device in devices:
        torch.set_autocast_enabled(device, False)
    try:
        return call(*args, **kwargs)
    finally:
        for device in devices:
            torch.set_autocast_enabled(device, True)

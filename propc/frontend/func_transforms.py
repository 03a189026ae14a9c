"""Calls of `torch.vmap` and `torch.func.grad` in a program: one operation each, whatever they nest.

What happens inside is not written into the graph. The user's function runs again at every call; the
traced tensors that it closes over are exchanged there for the values that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from propc.util.torch_private import TRANSFORMS, pytree

Call = Callable[..., Any]


@contextmanager
def recorded_transforms(record: Callable[[Call, str, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Let `record` have the calls of transformed functions: what runs them, a name, their arguments."""
    originals = [getattr(module, door) for module, door, _ in TRANSFORMS]

    def vmapped(func: Call, in_dims: Any, out_dims: Any, randomness: str, chunk: Any, *args: Any, **kwargs: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            return originals[0](func, in_dims, out_dims, randomness, chunk, *args, **kwargs)

        return record(run, "vmap", args, kwargs)

    def differentiated(which: int, func: Call, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            return originals[which](func, argnums, has_aux, args, kwargs)

        return record(run, TRANSFORMS[which][2], args, kwargs)

    doors = (vmapped, partial(differentiated, 1), partial(differentiated, 2))
    for (module, door, _), made in zip(TRANSFORMS, doors):
        setattr(module, door, made)
    try:
        yield
    finally:
        for (module, door, _), original in zip(TRANSFORMS, originals):
            setattr(module, door, original)


class Transformed:
    """Runs a transformed function; gives the leaves of what it returns.

    Args:
        run: the transform and the user's function.
        name: of the transform.
        captured: tensors that the function reaches beside its arguments, as they were when it was traced.
    """

    def __init__(self, run: Call, name: str, captured: Sequence[Tensor]) -> None:
        self.run, self.captured = run, tuple(captured)
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __call__(self, values: Sequence[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        with _Exchanged({id(old): new for old, new in zip(self.captured, values)}):
            return tuple(pytree.tree_leaves(self.run(*args, **kwargs)))


class _Exchanged(TorchFunctionMode):
    """Torch calls see other tensors than the code names."""

    def __init__(self, values: dict[int, Tensor]) -> None:
        super().__init__()
        self.values = values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: self.values.get(id(t), t), (args, kwargs or {}))
        return func(*args, **kwargs)

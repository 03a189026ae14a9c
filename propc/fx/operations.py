"""What the tracer knows of single torch operations."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.distributions import Distribution

from propc.errors import PropcError, TraceError, message
from propc.types import Source
from propc.util.torch_private import (
    ARGUMENT_CHECKS,
    ASSERTIONS,
    DRAWS,
    SETS_MODE,
    VALIDATE_ARGS,
    FakeTensorMode,
    count_function_modes,
    disable_current_modes,
    plain_apply,
    pytree,
    transforms_active,
    without_validation,
)
from propc.util.torch_rng import random_states, restore_random

getitem = operator.getitem

_STATIC = SETS_MODE.union(
    "size dim stride numel nelement ndimension element_size storage_offset is_floating_point is_complex "
    "is_signed is_contiguous data_ptr untyped_storage storage get_device type_as_class __len__ __repr__ "
    "__format__ __hash__ __dir__ is_tensor is_grad_enabled is_same_size has_names "
    "set_grad_enabled is_inference".split()
)
_TENSOR_PROPERTIES = frozenset("T mT H mH real imag data grad".split())
_EFFECTS = frozenset("__setitem__ register_hook retain_grad".split())
_REFUSED = {
    "backward": "Call backward outside the compiled function, on what it returns.",
    "numpy": "Use torch operations, or propc.opaque for code that needs NumPy.",
    "__array__": "Use torch operations, or propc.opaque for code that needs NumPy.",
}
# Autograd gives a gradient for these (zero) or none, though their value jumps.
# Names as `operation_name` gives them. Those that it lacks are found with values (`propc.runtime.checks.paths`).
JUMPING = frozenset(
    "sign sgn round floor ceil trunc fix heaviside floor_divide floordiv rfloordiv ifloordiv bernoulli histc".split()
)
# Whose result is computed with the numbers of all arguments, truths among them; by `operator`'s names too.
_ARITHMETIC = frozenset(
    "add sub mul div pow rsub lerp addcmul addcdiv subtract multiply divide true_divide truediv radd rmul rtruediv "
    "rpow iadd isub imul itruediv ipow".split()
)
_AUTOCAST_DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
_RANDOM = DRAWS.union(
    "rand randn randint randperm rand_like randn_like randint_like normal bernoulli multinomial poisson "
    "binomial dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d rrelu gumbel_softmax "
    "bernoulli_ normal_ uniform_ exponential_ geometric_ cauchy_ log_normal_ "
    "random_ scaled_dot_product_attention multi_head_attention_forward".split()
)

_DROPOUT = {  # places of the probability (with its name) and of `training`
    "dropout": (1, "p", 2),
    "dropout1d": (1, "p", 2),
    "dropout2d": (1, "p", 2),
    "dropout3d": (1, "p", 2),
    "alpha_dropout": (1, "p", 2),
    "feature_alpha_dropout": (1, "p", 2),
    "multi_head_attention_forward": (10, "dropout_p", 13),
    "scaled_dot_product_attention": (4, "dropout_p", None),
}


# More than a program has of torch; bounded for functions that are made anew at every call.
@lru_cache(maxsize=4096)
def name_of(func: Any) -> str:
    """The plain name of a torch function, method or property."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        return str(func.__self__.__name__)
    return str(name)


def step_name(node: torch.fx.Node) -> str:
    """The plain name of what a step calls, be it a function, a method or a property."""
    return node.target if isinstance(node.target, str) else name_of(node.target)


def operation_name(node: torch.fx.Node) -> str:
    """The same without underscores: operators, and operations in place, go by the name of the operation."""
    return step_name(node).strip("_")


@lru_cache(maxsize=4096)
def is_static(func: Any) -> bool:
    """Whether a call tells only shapes, dtypes and the like, or sets a mode, and is not recorded."""
    if getattr(func, "__name__", "") == "__get__":
        return name_of(func) not in _TENSOR_PROPERTIES
    return name_of(func) in _STATIC


@lru_cache(maxsize=4096)
def has_effect(func: Any) -> bool:
    """Whether a call that returns no tensor must be recorded all the same."""
    return name_of(func) in _EFFECTS


@lru_cache(maxsize=4096)
def is_rough(func: Any) -> bool:
    """Whether the value jumps where autograd says that the gradient is zero or undefined."""
    return not isinstance(func, CustomFunction) and name_of(func).strip("_") in JUMPING


def is_rough_backward(name: str) -> bool:
    """The same of a step of the autograd graph; torch's own end in a number, a user's do not."""
    own = name.rstrip("0123456789")
    return name.endswith("NotImplemented") or (own != name and own.removesuffix("Backward").lower() in JUMPING)


def is_arithmetic(node: torch.fx.Node) -> bool:
    """Whether a step computes with its arguments as numbers, so that a truth is not only a condition."""
    name = step_name(node)
    return name.strip("_") in _ARITHMETIC


def is_random(node: torch.fx.Node) -> bool:
    """Whether a torch.fx node draws random numbers; dropout that is switched off does not."""
    name = step_name(node)
    return name in _RANDOM and not _is_off(name, node)


def _is_off(name: str, node: torch.fx.Node) -> bool:
    """Whether the dropout in an operation has probability zero, or is not in training."""
    if name not in _DROPOUT:
        return False
    place, rate, train = _DROPOUT[name]
    found = node.args[place] if len(node.args) > place else node.kwargs.get(rate, 0.0 if train is None else 0.5)
    trains = True if train is None else node.kwargs.get("training", _argument(node, train, True))
    return bool(found == 0) or trains is False


def _argument(node: torch.fx.Node, place: int, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else default


def refuse(func: Any, where: Callable[[], Source]) -> None:
    """Refuse what has no meaning inside a trace."""
    name = name_of(func)
    if name in _REFUSED:
        what = {"__array__": "NumPy works on values", "numpy": "'.numpy()' needs values"}.get(
            name, f"{name!r} inside a compiled function"
        )
        why = "" if name == "backward" else ", which are only known when the compiled function runs"
        raise TraceError(message(what + why, _REFUSED[name], where=where()))
    if getattr(func, "__name__", "") == "__set__":
        raise TraceError(
            message(f"assignment to '.{name}' of a traced tensor", "Use a tensor operation.", where=where())
        )


@lru_cache(maxsize=1)
def _methods() -> dict[Any, str]:
    """Names of the tensor methods, by function; some functions do not bear the name of their method."""
    return {getattr(Tensor, name): name for name in dir(Tensor) if callable(getattr(Tensor, name))}


def target_of(func: Any, args: Any) -> tuple[str, Any]:
    """How torch.fx writes this call."""
    if getattr(func, "__name__", "") == "__get__":
        return "call_function", Property(name_of(func))
    method = _methods().get(func)
    if method == "__getitem__":
        return "call_function", getitem
    if method == "__setitem__":
        return "call_function", operator.setitem
    if method is not None and args and isinstance(args[0], Tensor):
        return "call_method", method
    return "call_function", func


class Property:
    """Reads a property of a tensor, such as ``.T``; equal for equal names."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __call__(self, tensor: Tensor) -> Any:
        return getattr(tensor, self.__name__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Property) and other.__name__ == self.__name__

    def __hash__(self) -> int:
        return hash(self.__name__)


def marked(*args: Any) -> Any:
    """Stands in the torch.fx graph for a site, a node or a cost; never called."""
    raise AssertionError("a mark is executed by the runtime")


def after(value: Any, _write: Any) -> Any:
    """`value` as it is after a write to its memory."""
    return value


class CustomFunction:
    """`apply` of a user's `torch.autograd.Function`, as one operation; equal for equal classes."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        self.__name__ = self.__qualname__ = cls.__name__
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if transforms_active():
            return self.cls.apply(*args, **kwargs)
        return plain_apply(self.cls, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CustomFunction) and other.cls is self.cls

    def __hash__(self) -> int:
        return hash(self.cls)


@dataclass(frozen=True)
class Region:
    """A grad mode, and (device, enabled, dtype) of autocast for each device.

    Operations written in a region that differs from that of the call run in it again.
    """

    grad: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @contextmanager
    def entered(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for device, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
            yield


def region() -> Region:
    """The region that the program is in now."""
    return Region(torch.is_grad_enabled(), autocast())


def default_device() -> torch.device | None:
    """Where factories make tensors; None, without the microseconds of asking, where no function mode is in force."""
    return torch.get_default_device() if count_function_modes() else None


def autocast() -> tuple[tuple[str, bool, torch.dtype], ...]:
    """(device, enabled, dtype) of autocast where there is such a device."""
    return tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES
    )


def asserts(func: Any, args: Any) -> bool:
    """Whether a call asserts a truth that a tensor holds, and gives nothing."""
    return name_of(func) in ASSERTIONS and bool(args) and isinstance(args[0], Tensor)


def in_argument_check() -> Any:
    """The distribution or constraint whose argument check the innermost Python frame outside propc is, or None.

    Of a user's distribution a method is one that asks for `validate_args` by itself.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("propc."):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return None
    code, owner = frame.f_code, frame.f_locals.get("self")
    if frame.f_globals.get("__name__", "").startswith("torch.distributions"):
        return owner if code.co_name in ARGUMENT_CHECKS else None
    return owner if isinstance(owner, Distribution) and VALIDATE_ARGS in code.co_names else None


def run_on_zeros(fn: Callable[..., Any], args: Any, kwargs: Any, mode: FakeTensorMode) -> Any:
    """What a black box returns, as fake tensors: it is run once, on zeros of the arguments' shapes."""
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    cards = {t.device.index for t in tensors if t.device.type == "cuda"}
    states = random_states()
    with disable_current_modes(), torch.no_grad(), torch.random.fork_rng(devices=cards), without_validation():
        real = pytree.tree_map_only(
            Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=t.device), (args, kwargs)
        )
        try:
            result = fn(*real[0], **real[1])
        except PropcError:
            raise
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note("propc ran this black box once on zeros, to learn the shapes it returns.")
            raise
        finally:
            restore_random(states)
    return pytree.tree_map_only(Tensor, mode.from_tensor, result)


# These look at values, in order to check them, and give a shape that does not depend on them.
_LOOKS = frozenset({"ctc_loss", "lstsq", "linalg_lstsq", "istft", "cov", "corrcoef", "gaussian_nll_loss"})


def only_looks(func: Any) -> bool:
    """Whether a call needs values, but not for the shape of what it gives."""
    return name_of(func) in _LOOKS


def run_on_ones(func: Any, args: Any, kwargs: Any, mode: FakeTensorMode) -> Any:
    """What such a call gives, as fake tensors."""

    def one(tensor: Tensor) -> Tensor:
        made = torch.ones(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        return made.requires_grad_(tensor.requires_grad)

    def fake(tensor: Tensor) -> Tensor:
        made = mode.from_tensor(tensor)
        return made.clone() if tensor.requires_grad else made

    with disable_current_modes():
        real = pytree.tree_map_only(Tensor, one, (args, kwargs))
        result = func(*real[0], **real[1])
        leaves = pytree.tree_map_only(Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), result)
    return pytree.tree_map_only(Tensor, fake, leaves)


def in_sampler() -> bool:
    """Whether the innermost Python frame outside propc is a distribution's own way of drawing."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("propc."):
        frame = frame.f_back  # type: ignore[assignment]
    own = frame is not None and frame.f_globals.get("__name__", "").startswith("torch.distributions")
    return own and "sample" in frame.f_code.co_name


SHAPED = frozenset({"expand", "view", "reshape", "broadcast_to"})  # (tensor, shape)


def counted(step: torch.fx.Node, batch: int) -> bool:
    """Whether a step has the size of the batch among its arguments, other than in front of the shape that it gives."""
    given = step.args[1:] if step.args and isinstance(step.args[0], torch.fx.Node) else step.args  # of factories, all
    leaves: list[Any] = pytree.tree_leaves((given, step.kwargs))
    places = [i for i, leaf in enumerate(leaves) if type(leaf) is int and leaf == batch]
    return bool(places) and not (places == [0] and shapes_by_argument(step))


def shapes_by_argument(step: torch.fx.Node) -> bool:
    """Whether a step gives a tensor the shape that is among its arguments."""
    name = step_name(step)
    return name in SHAPED and step.meta.get("context") is None

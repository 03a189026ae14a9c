"""Every private name of torch that propc uses, under a name of its own; nothing else in propc may name one.

Tried on torch 2.10 to 2.13 by ``make test-torch``. Where a version lacks something, what is done then stands beside it.
What takes long to import (Dynamo, inductor, the partitioner) is imported by the function that needs it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from operator import attrgetter
from typing import Any, TypeVar

import torch
import torch.fx
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _len_torch_function_stack as count_function_modes
from torch._C import _nn as native_nn
from torch._C._autograd import _get_sequence_nr as next_sequence_number
from torch._C._dynamo.eval_frame import get_eval_frame_callback, set_eval_frame
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._compile import _disable_dynamo as disable_dynamo
from torch._functorch import apis, eager_transforms
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.autograd import _profiler_enabled as profiler_enabled  # type: ignore[attr-defined]
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.distributions import Distribution
from torch.distributions.transforms import Transform, _InverseTransform
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes
from torch.utils.checkpoint import _StopRecomputationError as StopRecomputation

__all__ = [
    "ARGUMENT_CHECKS",
    "ASSERTIONS",
    "BATCH_SHAPE",
    "BUFFERS",
    "CATEGORICAL",
    "CHILDREN",
    "DRAWS",
    "EVENT_SHAPE",
    "FAKE_TENSOR_LOG",
    "FORWARD_HOOKS",
    "PARAM",
    "PARAMETERS",
    "SETS_MODE",
    "TO_COPY",
    "TRANSFORMS",
    "VALIDATE_ARGS",
    "VALIDATE_SAMPLE",
    "DataDependentOutputException",
    "DisableTorchFunction",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "OpOverload",
    "StateDictModule",
    "StopRecomputation",
    "TorchDispatchMode",
    "arguments_of",
    "be_parameter",
    "before_loading",
    "breaks_graph",
    "builtin_of",
    "caches",
    "compile_graph",
    "count_function_modes",
    "differentiates_forward",
    "disable_current_modes",
    "disable_dynamo",
    "dynamo_loaded",
    "first_node",
    "get_eval_frame_callback",
    "has_cpp_compiler",
    "has_effect",
    "has_triton",
    "inductor_decompositions",
    "inverted",
    "is_functorch_wrapped_tensor",
    "native_nn",
    "next_sequence_number",
    "partition",
    "patched_apply",
    "plain_apply",
    "profiler_enabled",
    "pytree",
    "sequence_number",
    "set_eval_frame",
    "storage_key",
    "temporarily_clear_interpreter_stack",
    "trace_joint",
    "transform_attributes",
    "transforms_active",
    "unknown_on_fakes",
    "validates_args",
    "version",
    "without_validation",
]

F = TypeVar("F", bound=Callable[..., Any])

# -- tensors ----------------------------------------------------------------------------------

version: Callable[[Tensor], int] = attrgetter("_version")  # how often its memory has been written


def storage_key(tensor: Tensor) -> int:
    """What is one for all views of one memory; `data_ptr` would not do for fake tensors."""
    return int(tensor.untyped_storage()._cdata)


def be_parameter(fake: FakeTensor) -> None:
    """Let a fake tensor pass for an `nn.Parameter`."""
    fake._is_param = True


def differentiates_forward() -> bool:
    """Whether a call is inside of `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


FAKE_TENSOR_LOG = logging.getLogger("torch._subclasses.fake_tensor")  # prints errors that the user gets anyway


def unknown_on_fakes(error: RuntimeError) -> bool:
    """Whether an error says that torch cannot tell on fake tensors what an operation gives.

    Tensors on unlike devices have an error of their own from 2.12 on; before it is a RuntimeError, told by its text.
    """
    return (
        isinstance(error, UnsupportedOperatorException)
        or type(error).__name__ == "FakeTensorDeviceMismatchError"
        or "Unhandled FakeTensor Device Propagation" in str(error)
    )


# -- torch.fx ---------------------------------------------------------------------------------


def first_node(graph: torch.fx.Graph) -> torch.fx.Node:
    """The node that stands before all others, and after the last."""
    return graph._root


def builtin_of(operation: OpOverload) -> Callable[..., Any]:
    """What an operation of aten calls in the end, 1 µs earlier."""
    builtin: Callable[..., Any] = getattr(operation, "_op", operation)
    return builtin


def has_effect(operation: OpOverload) -> bool:
    """Whether an operation of aten writes into an argument, or gives nothing, as one that checks and raises does."""
    schema = operation._schema
    return bool(schema.is_mutable or not schema.returns)


TO_COPY = torch.ops.aten._to_copy.default

# Names of operations, as a trace meets them.
SETS_MODE = frozenset({"_set_grad_enabled"})
DRAWS = frozenset({"_standard_gamma", "_sample_dirichlet"})

# -- distributions ----------------------------------------------------------------------------

# Attributes, as `vars` has them.
BATCH_SHAPE, EVENT_SHAPE, VALIDATE_ARGS, CATEGORICAL = "_batch_shape", "_event_shape", "_validate_args", "_categorical"
PARAM = "_param"  # of discrete laws: the one of probs and logits that was given
VALIDATE_SAMPLE = "_validate_sample"  # the method that checks what `log_prob` is given
ARGUMENT_CHECKS = ("__init__", VALIDATE_SAMPLE, "check")  # functions of torch.distributions that check arguments


ASSERTIONS = ("_assert", "_assert_async")  # torch's own assertions on values


def arguments_of(overload: Any) -> Any:
    """The declared arguments of a form of an operation of aten."""
    return overload._schema.arguments


def validates_args() -> bool:
    """Whether distributions check their arguments; `Distribution.set_default_validate_args` sets it."""
    return Distribution._validate_args


@contextmanager
def without_validation() -> Iterator[None]:
    """Let distributions that are not told to check their arguments take all."""
    before = validates_args()
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def inverted(transform: Transform) -> Transform | None:
    """What a transform is the inverse of, where it is torch's own inverse of another."""
    return transform._inv if isinstance(transform, _InverseTransform) else None


def caches(transform: Transform) -> bool:
    """Whether a transform keeps what it was last called on."""
    return bool(transform._cache_size)


def transform_attributes(transform: Transform) -> dict[str, Any]:
    """The attributes of a transform, its caches emptied; `_inv` of an inverse is no cache, but what it inverts."""
    empty: dict[str, Any] = {"_cached_x_y": (None, None)}
    if not isinstance(transform, _InverseTransform):
        empty["_inv"] = None
    return {name: empty.get(name, value) for name, value in vars(transform).items()}


# -- modules ----------------------------------------------------------------------------------

# Dictionaries among the attributes of a module, as `vars` has them.
PARAMETERS, BUFFERS, CHILDREN = "_parameters", "_buffers", "_modules"
FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class StateDictModule(nn.Module):
    """A module with a say in what is saved of it and loaded into it, itself and not its children."""

    def saved(self, destination: dict[str, Any], prefix: str) -> None:
        """Add to what is saved."""

    def loading(self, state: dict[str, Any], prefix: str) -> None:
        """Prepare for a state that is about to be loaded, or change it."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.saved(destination, prefix)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.loading(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def before_loading(cls: type[nn.Module], prepare: Callable[[Any], Any]) -> None:
    """Let `prepare` have an instance of a class whenever a state is about to be loaded into it."""
    plain = cls._load_from_state_dict

    @wraps(plain)
    def load(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        prepare(self)
        plain(self, *args, **kwargs)

    cls._load_from_state_dict = load  # type: ignore[method-assign]


# -- autograd ---------------------------------------------------------------------------------


def sequence_number(function: Any) -> int:
    """The number of a function in autograd's graph, in the order of their making."""
    return int(function._sequence_nr())


@contextmanager
def patched_apply(apply: Callable[..., Any]) -> Iterator[None]:
    """Let `apply`, a function of the class and its arguments, stand for that of all autograd functions.

    Aliases that a program holds (``clip = Clip.apply``) are bound to the public class, which asks its parent: this one.
    """
    _SingleLevelFunction.apply = classmethod(apply)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del _SingleLevelFunction.apply  # type: ignore[attr-defined]


def plain_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """`cls.apply` as it is when not patched."""
    return super(_SingleLevelFunction, cls).apply(*args, **kwargs)


# Where torch looks up what a function under `torch.func` runs, and how it is called by users.
TRANSFORMS: tuple[tuple[Any, str, str], ...] = (
    (apis, "vmap_impl", "vmap"),
    (eager_transforms, "grad_impl", "grad"),
    (eager_transforms, "grad_and_value_impl", "grad_and_value"),
)

# -- Dynamo -----------------------------------------------------------------------------------


def breaks_graph(call: F) -> F:
    """Let `torch.compile` call this as it is, in place of looking into it.

    `torch.compiler.disable` would do, but for the seconds of importing Dynamo.
    """
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call


def dynamo_loaded() -> bool:
    """Whether anything can have been compiled in this process."""
    return "torch._dynamo" in sys.modules


# -- inductor ---------------------------------------------------------------------------------


def has_triton() -> bool:
    """Whether there is a Triton that works on this machine."""
    from torch.utils._triton import has_triton

    return bool(has_triton())


def has_cpp_compiler() -> bool:
    """Whether inductor finds a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        return False
    return True


def trace_joint(
    run: Callable[..., Sequence[Tensor]],
    examples: tuple[Tensor, ...],
    trains: bool,
    decompositions: dict[Any, Callable[..., Any]],
) -> torch.fx.GraphModule:
    """What a function does, and its reverse pass where it `trains`, in operations of aten."""
    from torch._functorch.aot_autograd import aot_export_joint_simple

    joint = aot_export_joint_simple(run, examples, trace_joint=trains, decompositions=decompositions)
    assert isinstance(joint, torch.fx.GraphModule)
    return joint


def partition(joint: torch.fx.GraphModule, outputs: int) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    """Cut such code into forward and reverse code; the first `outputs` of what it gives are the forward code's."""
    import torch._functorch.config as config
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    with config.patch(recompute_views=True):
        forward, reverse = min_cut_rematerialization_partition(joint, None, num_fwd_outputs=outputs)
    return forward, reverse


def compile_graph(code: torch.fx.GraphModule, settings: Mapping[str, Any], reverse: bool) -> Any:
    """Code compiled by inductor under those of the settings that this version knows.

    Gives the innermost callable, without the wrapper around it where a version has one.
    """
    import torch._inductor.config as config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.ir import gm_original_output_strides

    examples = [node.meta["val"] for node in code.graph.nodes if node.op == "placeholder"]
    with config.patch({name: value for name, value in settings.items() if hasattr(config, name)}):
        gm_original_output_strides(code)  # results keep the strides that they were traced with
        with _drawing_whole():
            made = compile_fx_inner(code, examples, is_backward=reverse)
    inner = getattr(made, "current_callable", None)
    return made if inner is None else inner


@contextmanager
def _drawing_whole() -> Iterator[None]:
    """While inductor knows no way to take apart what draws.

    Code that draws the numbers of eager reaches it whole, and it refuses what it could have taken apart: `bernoulli` in
    every version, `randn_like` up to torch 2.11.
    """
    from torch._inductor.decomposition import decompositions

    drawing = [call for call in decompositions if torch.Tag.nondeterministic_seeded in getattr(call, "tags", ())]
    known = {call: decompositions.pop(call) for call in drawing}
    try:
        yield
    finally:
        decompositions.update(known)


def inductor_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """The operations that inductor takes apart where it does not draw by itself, and how."""
    import torch._inductor.config as config
    from torch._inductor.decomposition import select_decomp_table

    with config.patch({"fallback_random": True}):
        return dict(select_decomp_table())

"""`propc.compile`: functions, module classes and module instances."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import torch
from torch import nn

from propc.compiler.compiler import Compiler
from propc.compiler.options import Options
from propc.errors import PropcTypeError, message
from propc.frontend import active_tracer
from propc.ir.graph import PropagationGraph
from propc.ir.messages import Message
from propc.runtime.messaging.propagation import Propagation
from propc.util.estimator_state import STATE, without_state
from propc.util.torch_private import CHILDREN, before_loading, breaks_graph

if TYPE_CHECKING:
    from propc.diagnostics.explanation import Explanation
    from propc.diagnostics.profile.profile import Profile
    from propc.estimators import EstimatorChoice
    from propc.passes import PassChoice, PipelineChange

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)


class CompiledMethods(Generic[P]):
    """What compiled functions and modules offer beside being called."""

    def _compiler(self) -> Compiler:
        raise NotImplementedError

    def _owner(self) -> Any:
        """The module or object that the function is called with, if it is a method."""
        return None

    def _recompiled(self, **options: Any) -> Any:
        """The same program under other options: a compiled object with graphs and state of its own."""
        raise NotImplementedError

    def graph(self, *args: P.args, **kwargs: P.kwargs) -> PropagationGraph:
        """The propagation graph of a call with these arguments, after all passes. Draws nothing."""
        return self._compiler().graph(self._owner(), args, kwargs)

    def graphs(self, *args: P.args, **kwargs: P.kwargs) -> list[tuple[str, PropagationGraph]]:
        """(name, graph) before all passes, as ``"traced"``, and after each pass."""
        first, records = self._compiler().records(self._owner(), args, kwargs)
        return [("traced", first), *((r.name, r.graph) for r in records)]

    def explain(self, *args: Any, snr: int | Mapping[str, float] | None = None, **kwargs: Any) -> Explanation:
        """A table of the sites of a call: distribution, estimator, why, messages, costs.

        Under another backend than ``"eager"`` it says what was compiled, and what was not and why, once the call has
        been made.

        Args:
            snr: signal-to-noise ratios of what the sites send, as a further column: from `propc.signal_to_noise`, or
                the number of steps in which to measure them, such as 100. Without it nothing is run.
            *args, **kwargs: the call's arguments.
        """
        from propc.diagnostics.explanation import Explanation  # when asked for: a sixth of what importing propc takes
        from propc.diagnostics.signal_to_noise import measured

        ratios = snr if snr is None or isinstance(snr, Mapping) else measured(self, args, kwargs, snr)
        graph, report = self._compiler().reported(self._owner(), args, kwargs)
        return Explanation(graph, ratios, report)

    def profile(self, *args: Any, repeats: int = 20, backward: bool = True, **kwargs: Any) -> Profile:
        """Where the time and the memory of a step go, by stage, and the time of compiling, by pass.

        A step is the call and a reverse pass from the sum of the means of all returned costs. After a few that do not
        count, `repeats` steps run as they are, in turns with as many that have a clock at every node; of both, the
        faster half counts. One more runs under the PyTorch profiler, which hears of memory.

        Nothing of yours is changed: not ``.grad``, not what estimators have learned, not buffers that the program
        writes into, and not the random number generators, as it draws from a seed of its own. Black boxes
        (`propc.opaque`) do run.

        Args:
            *args, **kwargs: the call's arguments. One whose name is taken here is passed by position.
            repeats: timed steps.
            backward: whether a reverse pass belongs to a step; there is none where nothing wants a gradient.

        Returns:
            a `propc.Profile`: a table, ``rows``, ``chrome_trace(path)``, and ``graph``, a coloured picture. On a GPU
            times are those of its stream.

        Raises:
            PropcValueError: `repeats` is no positive number; a PyTorch profiler is active; no cost is returned where
                a reverse pass is wanted.
        """
        from propc.diagnostics.profile.run import profiled  # when asked for, as in `explain`

        return profiled(self, args, kwargs, repeats, backward)

    def propagate(
        self, direction: str, message: Message | Mapping[str, Message] | None = None, /, *args: Any, **kwargs: Any
    ) -> Propagation:
        """Run a call with these arguments and pass messages through its graph, without `backward()`.

        The forward pass computes the values and sends the forward messages. ``"backward"`` goes on with the
        reverse pass: nodes with a propagator handle what arrives, everything else hands cotangents on as
        autograd would, and a site does what its estimator says.

        Args:
            direction: ``"forward"`` or ``"backward"``.
            message: what waits at the beginning of that pass: a message for all nodes where it begins (the
                first ones with a propagator; the returned costs and nodes), or one for each of some nodes, by
                name. By default nothing; for ``"backward"`` 1/batch as ``grad`` at every cost, which
                gives the gradient of the mean. ``grad`` may be a number.
            *args, **kwargs: the call's arguments.

        Returns:
            what was left where nobody took it (``result.messages["beta"].grad`` is the gradient at the
            argument ``beta``), the nodes with their memory (``result["x1"].memory``), and the returned value.

        Raises:
            MessageError: a message that cannot be sent or merged; names the node.
            PropcValueError: an unknown direction or node.
            PropcTypeError: `message` is none.
        """
        return self._compiler().propagate(self._owner(), direction, message, args, kwargs)

    def estimator_parameters(self) -> Iterator[nn.Parameter]:
        """Learnable parameters of estimators (critics, control variates), for an optimizer."""
        return self._compiler().state.parameters()


class CompiledFunction(CompiledMethods[P], nn.Module, Generic[P, R]):
    """A compiled function. Calling it gives the function's own values; gradients are the estimator's.

    It is an `nn.Module` that holds only the estimators' state: ``state_dict()``, ``to()`` and
    ``eval()`` act on that.
    """

    def __init__(self, compiler: Compiler) -> None:
        super().__init__()
        self.compiler = compiler
        self.estimator_state = compiler.state
        self._propc_plain = compiler.fn
        functools.update_wrapper(self, compiler.fn, updated=())

    @breaks_graph
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        compiler: Compiler = self.__dict__["compiler"]
        # inside another compiled function: a part of its program
        made: R = compiler(None, args, kwargs) if active_tracer() is None else compiler.fn(*args, **kwargs)
        return made

    def forward(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same as calling."""
        return self(*args, **kwargs)

    def with_estimator(self, estimator: EstimatorChoice) -> CompiledFunction[P, R]:
        """The same program under another estimator: a compiled object of its own, with its own graphs and state.

        Make it once, outside a training loop: each traces anew.
        """
        return self._recompiled(estimator=estimator)

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> CompiledFunction[P, R]: ...
    @overload
    def __get__(
        self: CompiledFunction[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> CompiledMethod[Q, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        binds = instance is not None and hasattr(self.compiler.fn, "__get__")
        return CompiledMethod(self, instance) if binds else self

    def _compiler(self) -> Compiler:
        return self.compiler

    def _recompiled(self, **options: Any) -> CompiledFunction[P, R]:
        return CompiledFunction(self.compiler.with_options(**options))

    def __repr__(self) -> str:
        return f"<propc.compile({self.compiler.name}, estimator={self.compiler.options.estimator!r})>"

    def __deepcopy__(self, memo: Any) -> CompiledFunction[P, R]:
        return CompiledFunction(copy.deepcopy(self.compiler, memo))

    def __reduce__(self) -> Any:
        return CompiledFunction, (self.compiler,)


class CompiledMethod(CompiledMethods[P], Generic[P, R]):
    """A compiled method, looked up on an object. All objects of the class share graphs and estimators' state."""

    def __init__(self, function: CompiledFunction[..., R], owner: Any) -> None:
        self.function, self.__self__ = function, owner
        self.__name__, self.__doc__ = function.compiler.name, function.__doc__

    @property
    def __wrapped__(self) -> Callable[P, R]:
        """The user's own method, which has the signature."""
        bound: Callable[P, R] = self.function.compiler.fn.__get__(self.__self__)
        return bound

    @breaks_graph
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        compiler, owner = self._compiler(), self.__self__
        made: R = compiler(owner, args, kwargs) if active_tracer() is None else compiler.fn(owner, *args, **kwargs)
        return made

    def with_estimator(self, estimator: EstimatorChoice) -> CompiledMethod[P, R]:
        """The same method under another estimator."""
        return self._recompiled(estimator=estimator)

    def __repr__(self) -> str:
        return f"<{self.function!r} of {self.__self__!r}>"

    def _compiler(self) -> Compiler:
        return self.function.compiler

    def _recompiled(self, **options: Any) -> CompiledMethod[P, R]:
        return CompiledMethod(self.function._recompiled(**options), self.__self__)

    def _owner(self) -> Any:
        return self.__self__


class _ModuleMethods(CompiledMethods[...], nn.Module):
    """Methods that a compiled module class gains."""

    def _compiler(self) -> Compiler:
        return _compiler_of(self)

    def _owner(self) -> Any:
        return self

    def with_estimator(self, estimator: EstimatorChoice) -> Any:
        """The same module, sharing parameters and buffers, under another estimator."""
        return self._recompiled(estimator=estimator)

    def _recompiled(self, **options: Any) -> Any:
        return _with_options(self, _compiler_of(self).with_options(**options))


_KEY = "_propc_compiler"


class Decorator(Protocol):
    """What `propc.compile` gives where it is called with options alone."""

    @overload
    def __call__(self, target: type[M], /) -> type[M]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: CompiledFunction[P, R], /) -> CompiledFunction[P, R]: ...
    @overload
    def __call__(self, target: nn.Module, /) -> Any: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> CompiledFunction[P, R]: ...


@overload
def compile(
    fn_or_module: None = None,
    *,
    estimator: EstimatorChoice = ...,
    passes: Iterable[PassChoice | PipelineChange] = ...,
    backend: str = ...,
    validate: bool | None = ...,
    chunk: int | None = ...,
) -> Decorator: ...
@overload
def compile(  # type: ignore[overload-overlap]
    fn_or_module: type[M],
    *,
    estimator: EstimatorChoice = ...,
    passes: Iterable[PassChoice | PipelineChange] = ...,
    backend: str = ...,
    validate: bool | None = ...,
    chunk: int | None = ...,
) -> type[M]: ...
@overload
def compile(
    fn_or_module: CompiledFunction[P, R],
    *,
    estimator: EstimatorChoice = ...,
    passes: Iterable[PassChoice | PipelineChange] = ...,
    backend: str = ...,
    validate: bool | None = ...,
    chunk: int | None = ...,
) -> CompiledFunction[P, R]: ...
@overload
def compile(
    fn_or_module: nn.Module,
    *,
    estimator: EstimatorChoice = ...,
    passes: Iterable[PassChoice | PipelineChange] = ...,
    backend: str = ...,
    validate: bool | None = ...,
    chunk: int | None = ...,
) -> Any: ...
@overload
def compile(
    fn_or_module: Callable[P, R],
    *,
    estimator: EstimatorChoice = ...,
    passes: Iterable[PassChoice | PipelineChange] = ...,
    backend: str = ...,
    validate: bool | None = ...,
    chunk: int | None = ...,
) -> CompiledFunction[P, R]: ...
def compile(
    fn_or_module: Any = None,
    *,
    estimator: EstimatorChoice = "infer",
    passes: Iterable[PassChoice | PipelineChange] = (),
    backend: str = "eager",
    validate: bool | None = None,
    chunk: int | None = None,
) -> Any:
    """Compile a function, an `nn.Module` class or an `nn.Module` so that gradients pass its random choices.

    The result is called like the original and returns the same values; `backward()` through the
    returned costs gives the estimator's gradient. A call is traced once for each combination of
    static (non-tensor) arguments, shapes, dtypes and devices.

    Args:
        fn_or_module: what to compile; without it, a decorator.
        estimator: a name (`propc.estimators.known_estimators`: ``"infer"``, ``"rp"``, ``"lr"``, ``"tp"``, …), an
            estimator object (`propc.estimator`), a mapping from site-name patterns to either, or a function of the
            site (a `propc.estimators.SiteView`) that gives one.
        passes: further compiler passes: names, `Pass` classes or objects; or functions that change the pipeline, such
            as ``lambda pipeline: pipeline.without("split-costs")``.
        backend: what runs a step: ``"eager"``, operation by operation; ``"inductor"``, every distinct stage compiled by
            TorchInductor, forward and reverse, at the first call; ``"cudagraphs"``, the whole schedule captured on a
            GPU and replayed; ``"auto"``, the quickest of those that can run here, measured at the first call. All give
            the same numbers from the same noise. Or a name that `propc.register_backend` has made known.
        validate: check distribution parameters and costs at every call on the CPU (at the first on a
            GPU, where a check would wait for the device), and at the first call that rows of the batch
            stay apart, and what torch checks of distributions that are no sites: their parameters, and values
            given to `log_prob`. With True the last at every call on the CPU, which runs what leads to them once
            more; with False nothing is checked.
        chunk: how many elements of a plate (several samples, an enumeration) the program after its site holds at
            once; what autograd needs of the others is computed again in the reverse pass. None is all.

    Returns:
        For a function a `CompiledFunction`; for a class the class itself, its `forward` compiled; for
        a module a module of a subclass that shares parameters and buffers with it.

    Raises:
        PropcValueError: an unknown estimator, option, pass or backend; the nearest is named. A call raises
            `propc.errors.BackendError` where the backend cannot run on its device.
        PropcTypeError: something that cannot be compiled.
    """
    options = Options(estimator, passes, backend, validate, chunk)
    if fn_or_module is None:
        return functools.partial(_compile, options)
    return _compile(options, fn_or_module)


def _compile(options: Options, target: Any) -> Any:
    if isinstance(target, CompiledFunction):
        return CompiledFunction(Compiler(target.compiler.fn, options, target.compiler.name))
    _check_traceable(target)
    if isinstance(target, nn.Module):
        return _with_options(target, Compiler(_plain_forward(type(target)), options, type(target).__name__))
    if isinstance(target, type) and issubclass(target, nn.Module):
        return _compile_class(target, options)
    if isinstance(target, (staticmethod, classmethod)):
        return type(target)(_compile(options, target.__func__))
    if callable(target) and not isinstance(target, type):
        return CompiledFunction(Compiler(target, options))
    raise PropcTypeError(message(f"propc.compile takes a function or an nn.Module; got {target!r}"))


def _check_traceable(target: Any) -> None:
    """Refuse what calls to a function cannot be traced of."""
    plain = inspect.unwrap(target) if callable(target) else target
    if isinstance(target, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        finding, fix = "a scripted module or function hides its operations", "Compile the plain one."
    elif inspect.iscoroutinefunction(plain) or inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        finding, fix = "its body runs after the call has returned", "Return the values: no 'yield', no 'async'."
    elif inspect.isbuiltin(plain):
        finding, fix = "it is written in C and has no signature", "Wrap it: lambda x: fn(x)."
    else:
        return
    raise PropcTypeError(message(f"propc.compile cannot trace {target!r}: {finding}", fix))


def _plain_forward(cls: type[nn.Module]) -> Callable[..., Any]:
    """The user's own forward, also of a class that is compiled already."""
    return getattr(cls.forward, "_propc_plain", cls.forward)


def _compile_class(cls: type[nn.Module], options: Options) -> type[nn.Module]:
    """Compile `forward` in place; every instance has a compiler of its own."""
    plain = _plain_forward(cls)

    @breaks_graph
    @functools.wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if active_tracer() is not None:
            with without_state(self):
                return plain(self, *args, **kwargs)
        return _compiler_of(self)(self, args, kwargs)

    before_loading(cls, _compiler_of)  # with it the module of the state, also before the first call
    forward._propc_plain = plain  # type: ignore[attr-defined]
    cls.forward = forward
    cls._propc_made_of = plain, options  # type: ignore[attr-defined]
    for name in (
        "_compiler",
        "_owner",
        "_recompiled",
        "graph",
        "graphs",
        "explain",
        "estimator_parameters",
        "profile",
        "propagate",
        "with_estimator",
    ):
        if name not in vars(cls):
            setattr(cls, name, getattr(_ModuleMethods, name))
    return cls


def _compiler_of(module: Any) -> Compiler:
    """The module's compiler, made at the first use."""
    found: Compiler | None = module.__dict__.get(_KEY)
    if found is None:
        plain, options = type(module)._propc_made_of
        found = Compiler(plain, options, type(module).__name__)
        _set_compiler(module, found)
    return found


def _set_compiler(module: nn.Module, compiler: Compiler) -> None:
    module.__dict__[_KEY] = compiler
    vars(module)[CHILDREN].pop(STATE, None)
    module.add_module(STATE, compiler.state)


def _with_options(module: nn.Module, compiler: Compiler) -> nn.Module:
    """A module of a compiled subclass with the same parameters, buffers and submodules."""
    original = getattr(type(module), "_propc_original", type(module))
    made = _subclass(original)
    new = made.__new__(made)
    new.__dict__.update(module.__dict__)
    new.__dict__[CHILDREN] = dict(vars(module)[CHILDREN])  # the state of the estimator is each one's own
    _set_compiler(new, compiler)
    return new


_SUBCLASSES: dict[type, type[nn.Module]] = {}


def _subclass(original: type[nn.Module]) -> type[nn.Module]:
    """The compiled subclass of a module class, made once."""
    if original not in _SUBCLASSES:
        made = type(
            original.__name__,
            (original,),
            {
                "__module__": original.__module__,
                "__qualname__": original.__qualname__,
                "__doc__": original.__doc__,
                "_propc_original": original,
                "__reduce__": _reduce_module,
            },
        )
        made.forward = _plain_forward(original)  # type: ignore[attr-defined]
        _SUBCLASSES[original] = _compile_class(made, Options())
    return _SUBCLASSES[original]


def _reduce_module(self: Any) -> Any:
    return _restore_module, (type(self)._propc_original, dict(self.__dict__))


def _restore_module(original: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    made = _subclass(original)
    new = made.__new__(made)
    new.__dict__.update(state)
    return new

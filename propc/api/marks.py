"""The marks that a user writes into a program: `sample`, `cost`, `bound`, `node` and `opaque`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch.distributions import Distribution

from propc.distributions.score import behind_caches
from propc.errors import PropcTypeError, PropcValueError, message
from propc.frontend import active_tracer
from propc.frontend.user_source import user_source
from propc.ir.records import LOG_MEAN_EXP
from propc.propagators.propagator import Propagator
from propc.propagators.registry import at_node
from propc.util.configure import one_of
from propc.util.torch_private import pytree

if TYPE_CHECKING:
    from propc.estimators import SiteChoice

P = ParamSpec("P")
R = TypeVar("R")

_UNSAID: Any = object()  # None is a word of the user's


def sample(dist: Distribution, name: str | None = None, estimator: SiteChoice | None = None) -> Tensor:
    """Draw from `dist` and mark the draw as a site.

    Inside a compiled function the draw becomes a site of the propagation graph, and the
    gradient passes it by the site's estimator. Outside it simply samples
    (``rsample`` where the distribution has it).

    Args:
        dist: any `torch.distributions.Distribution`, nested and user-written ones
            included. Its leading batch dimension holds the independent samples.
        name: the site's name, unique in the program; numbered by default.
        estimator: overrides `compile`'s choice at this site: an estimator or a `propc.Propagator`, or the
            name of one.

    Returns:
        The draw, of shape ``dist.batch_shape + dist.event_shape``. Where a transform of the distribution keeps its last
        pre-image (``cache_size=1``) and nothing in the transforms wants a gradient, the site is the draw before them,
        so that ``dist.log_prob(draw)`` in the program is taken there, as in plain PyTorch.

    Raises:
        PropcTypeError: `dist` is not a distribution.
        PropcValueError: the name is taken.
    """
    if not isinstance(dist, Distribution):
        raise PropcTypeError(
            message(
                f"propc.sample takes a torch.distributions object; got {_kind(dist)}",
                "Write propc.sample(Normal(loc, scale), name='x').",
                at=f"site {name!r}" if name else "",
                where=user_source(),
            )
        )
    tracer = active_tracer()
    if tracer is not None:
        law, transforms = behind_caches(dist)
        draw = tracer.site(law, name, estimator)
        for transform in transforms:
            draw = transform(draw)
        return draw
    return dist.rsample() if dist.has_rsample else dist.sample()


def cost(value: Tensor, name: str | None = None, propagator: Propagator | str | None = None) -> Tensor:
    """Name a per-sample loss term, shape [batch]; returns the value.

    A named cost that enters the returned value additively becomes a cost of its own: the
    sites before it, and only these, receive its messages.

    Args:
        value: floating point, [batch] or a scalar; inside a `propc.plate` [batch, n], a cost for each element.
        name: the cost's name, unique in the program; numbered by default.
        propagator: a `propc.Propagator`, or the name of one, that decides what the cost sends: it receives
            the user's weights as ``grad``, and sends ``grad`` to what the cost was computed from and ``cost``
            to the sites. By default the weights, and weight × value.

    Raises:
        PropcTypeError: the value is not a tensor, or the propagator none.
        PropcValueError: it is not floating point, or has more dimensions; in a plate, it is no addend of what is
            returned.
    """
    _require_tensor(value, "cost", name)
    rule = None if propagator is None else at_node(propagator, "cost", name, user_source())
    tracer = active_tracer()
    return value if tracer is None else tracer.cost(value, name, rule)


def bound(log_weight: Tensor, name: str | None = None) -> Tensor:
    r"""Name a multi-sample bound: log 1/K Σ_k w_k over the K samples that the program's sites draw for a row.

    The program computes the log weight of one sample, such as log p(x, z) − log q(z | x), of which the mean over
    samples is the evidence lower bound. With ``samples=K`` at its sites, a value marked so is reduced to the
    importance-weighted bound in place of the mean: ``return -propc.bound(log_w)``. With one sample it is the value.

    The gradient is that of the bound: through the log weights by autograd, in the parameters of sites by their
    estimators. At sites without `rsample`, "vimco" has the least variance.

    Args:
        log_weight: floating point, [batch] or a scalar.
        name: the bound's name, unique in the program; numbered by default.

    Returns:
        The value: the bound of one sample. What is returned has that of all; it must be an addend of it.

    Raises:
        PropcTypeError: the value is not a tensor.
        PropcValueError: it is not floating point, or has more than one dimension.

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """
    _require_tensor(log_weight, "bound", name)
    tracer = active_tracer()
    return log_weight if tracer is None else tracer.cost(log_weight, name, None, LOG_MEAN_EXP)


def node(value: Tensor, name: str | None = None, propagator: Propagator | str | None = None) -> Tensor:
    """Name a deterministic value, for example as a weighting target; returns the value.

    Args:
        value: any tensor.
        name: the node's name, unique in the program; numbered by default.
        propagator: a `propc.Propagator`, or the name of one, that handles the messages at this node: the
            cotangent on its value, and whatever other nodes send to it. Outside a compiled function it is
            not used.

    Raises:
        PropcTypeError: the value is not a tensor, or the propagator none.
        PropcValueError: the name is taken, or no propagator has this one.
    """
    _require_tensor(value, "node", name)
    rule = None if propagator is None else at_node(propagator, "node", name, user_source())
    tracer = active_tracer()
    return value if tracer is None else tracer.node(value, name, rule)


@overload
def opaque(fn: Callable[P, R], *, plates: str | None = ..., gradient: None = ...) -> Callable[P, R]: ...
@overload
def opaque(
    fn: None = None, *, plates: str | None = ..., gradient: None = ...
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def opaque(fn: Callable[..., R] | None = None, *, plates: str | None = None, gradient: Any = _UNSAID) -> Any:
    """Make a black box of `fn`: it runs as it is, on real values, and no gradient goes through it.

    A score-function estimator sees through it; a pathwise one cannot. Row i of its
    outputs must depend on row i of its inputs alone. When a compiled function is traced,
    `fn` runs once on zeros, to learn the shapes it returns; checks may run it again. So it must
    not remember: give it its state as an argument, and let it return the next.

    Make a black box outside the compiled function if it holds what changes, such as an environment:
    one made inside is looked through for changes, each of which compiles a new graph.

    Args:
        fn: a function that returns a tensor, or a tuple or list of tensors; without it, a decorator.
        plates: how it is called on several samples, of which an estimator draws K. ``"batch"``: once, with K·batch
            rows; arguments that have the batch and are the same for all samples are repeated alike, others are
            passed as they are. ``"loop"``: K times, with the program's shapes. None takes ``"batch"`` where all
            arguments that differ and all results have the batch in front and noise is not common, else ``"loop"``.
            A box that knows its number of rows, such as a vectorized environment, needs ``"loop"``.
        gradient: None says that gradients are to end at the box. Without it a parameter or argument whose gradient
            does, on its way to a cost, is a `PropcWarning`. Draws of a score-function estimator lose nothing there.

    Returns:
        A function with the signature of `fn`; its tensor results are detached.

    Raises:
        PropcTypeError: `fn` cannot be called.
        PropcValueError: another value of `plates` or `gradient`.
    """
    if fn is not None and not callable(fn):
        raise PropcTypeError(
            message(
                f"propc.opaque takes a function; got {_kind(fn)}", "Write propc.opaque(fn)(x).", where=user_source()
            )
        )
    if plates is not None:
        one_of("plates", plates, ("batch", "loop"))
    if gradient is not None and gradient is not _UNSAID:
        raise PropcValueError(
            message(
                f"propc.opaque: gradient must be None or left out; got {gradient!r}",
                "Let a site stand before the box for a gradient through it: a Normal under 'lr' smooths it.",
                where=user_source(),
            )
        )
    if fn is None:
        return functools.partial(opaque, plates=plates, gradient=gradient)
    box = _with_name(fn)

    @functools.wraps(box)
    def call(*args: Any, **kwargs: Any) -> R:
        tracer = active_tracer()
        if tracer is not None:
            result: R = tracer.opaque(box, args, kwargs, plates or "", gradient is None)
            return result
        with torch.no_grad():
            # a result may be an argument
            result = pytree.tree_map_only(Tensor, Tensor.detach, box(*args, **kwargs))
        return result

    call._propc_opaque = True  # type: ignore[attr-defined]
    return call


def _with_name(fn: Callable[..., R]) -> Callable[..., R]:
    """A callable object, or a partial, as a function with a name."""
    if getattr(fn, "__name__", None):
        return fn

    def call(*args: Any, **kwargs: Any) -> R:
        return fn(*args, **kwargs)

    call.__name__ = call.__qualname__ = type(fn).__name__.lower()
    return call


def _require_tensor(value: Any, kind: str, name: str | None) -> None:
    if not isinstance(value, Tensor):
        raise PropcTypeError(
            message(
                f"a {kind} must be a tensor; got {_kind(value)}",
                "Give a floating-point tensor of shape [batch]." if kind != "node" else "Numbers need no name.",
                at=f"{kind} {name!r}" if name else "",
                where=user_source(),
            )
        )


def _kind(value: Any) -> str:
    """What a user calls it."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "a tensor" if isinstance(value, Tensor) else f"{type(value).__name__} {_shown(value):.40}"


def _shown(value: Any) -> str:
    """Its text, in which traced tensors are tensors."""
    return repr(pytree.tree_map_only(Tensor, lambda _: _A_TENSOR, value))


class _Tensor:
    def __repr__(self) -> str:
        return "a tensor"


_A_TENSOR = _Tensor()

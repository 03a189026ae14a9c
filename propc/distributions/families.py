"""The table of discrete families: which distributions draw one of few outcomes, and how these are told."""

from __future__ import annotations

from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
)

from propc.distributions.perturbed_logits import Binary, Categories, Family, Logits, Value
from propc.distributions.spec import DistributionSpec
from propc.errors import PropcTypeError, PropcValueError, message
from propc.util.configure import one_of
from propc.util.name_table import same_definition

_KINDS: dict[str, type[Family]] = {"binary": Binary, "categories": Categories}
_TABLE: dict[type, Family] = {
    Bernoulli: Binary(),
    OneHotCategorical: Categories(),
    OneHotCategoricalStraightThrough: Categories(),
    Categorical: Categories(indexed=True),
}
_OWN = frozenset(_TABLE)


def register_family(
    family: type[Distribution], kind: str, *, logits: Logits | None = None, value: Value | None = None
) -> None:
    """Make a discrete family known: to `arm` and `disarm`, to the relaxed and straight-through estimators, to `infer`.

    `enumerate` and `local` ask no table: they work on every class whose `enumerate_support` and `log_prob` do.

    Args:
        family: a class of distributions whose elements are independent.
        kind: ``"binary"``, two outcomes; b is 0 or 1, of the batch shape. ``"categories"``, K outcomes; b is one-hot,
            [*batch_shape, K].
        logits: distribution → its logits, of the shape of b: log p/(1 − p), or log-probabilities but for a constant.
            None reads its attributes ``logits`` and ``probs``.
        value: distribution, b → its draw; elementwise over leading dimensions of b, and differentiable, where relaxed
            draws and gradients are to pass. No parameter that wants a gradient may be in it. None where b is the draw.

    Raises:
        PropcTypeError: no class of distributions; no functions.
        PropcValueError: another word for `kind`; the family is known already.
    """
    if not (isinstance(family, type) and issubclass(family, Distribution)):
        raise PropcTypeError(message(f"a family is a class of distributions; got {family!r}"))
    one_of("kind", kind, tuple(_KINDS))
    for option, given in {"logits": logits, "value": value}.items():
        if given is not None and not callable(given):
            raise PropcTypeError(message(f"option {option}= takes a function; got {given!r}"))
    made, known = _KINDS[kind](logits_by=logits, value_by=value), _TABLE.get(family)
    if family in _OWN or (known is not None and not _same(known, made)):
        raise PropcValueError(message(f"the family {family.__name__} is known already", "Derive a class of it."))
    _TABLE[family] = made


def _same(one: Family, other: Family) -> bool:
    """Whether a family is told again, as in a notebook."""
    functions = (one.logits_by, other.logits_by), (one.value_by, other.value_by)
    return type(one) is type(other) and all(same_definition(*pair) for pair in functions)


def family(spec: DistributionSpec) -> Family | None:
    """The family of a site's distribution, inside Independent too; None for others."""
    return _TABLE.get(spec.innermost.type)

"""Gaussian shaping and resampling as a propagator: the node draws anew from a Gaussian fitted to its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeGuard

from propc.errors import PropcTypeError, PropcValueError, message
from propc.ir.nodes.resample import JITTER
from propc.ir.pass_request import PassRequest
from propc.propagators.propagator import Propagator
from propc.propagators.registry import register_propagator


@register_propagator("gs")
@dataclass(frozen=True)
class GaussianFit(Propagator):
    """The value of a `propc.node` is refitted: a resample node stands behind it in the compiled graph.

    What happens before it is the estimators' choice: with `lr` it is Gaussian shaping, with `rp` Gaussian
    resampling (also registered as ``"gr"``), with `tp` both.

    Attributes:
        sites, costs, shrinkage, jitter: as of the pass `propc.passes.GaussianShaping`, which inserts the node.
    """

    name: ClassVar[str] = "gs"
    sites: str | Sequence[str] | None = None
    costs: str | Sequence[str] | None = None
    shrinkage: float | None = None
    jitter: float = JITTER

    def __post_init__(self) -> None:
        check_refit(self.shrinkage, self.jitter, sites=self.sites, costs=self.costs)

    def passes(self, node: str) -> tuple[PassRequest, ...]:
        options = {"sites": self.sites, "costs": self.costs, "shrinkage": self.shrinkage, "jitter": self.jitter}
        return (PassRequest.of("gaussian-shaping", at=node, **options),)


def check_refit(shrinkage: object, jitter: object, **names: object) -> None:
    """Check the options of a refit.

    Args:
        shrinkage, jitter: as of the pass `propc.passes.GaussianShaping`.
        names: options that are a name or a sequence of names, or None.

    Raises:
        PropcTypeError: a name of another type.
        PropcValueError: a number outside of its range.
    """
    for option, value in names.items():
        if value is not None and not _is_names(value):
            raise PropcTypeError(message(f"option {option}={value!r} must be a name or a sequence of names"))
    if shrinkage is not None and not (_is_number(shrinkage) and 0 < shrinkage <= 1):
        raise PropcValueError(message(f"option shrinkage={shrinkage!r} must be in (0, 1], or None"))
    if not (_is_number(jitter) and 0 <= jitter < float("inf")):
        raise PropcValueError(message(f"option jitter={jitter!r} must be a number, not negative"))


def _is_names(value: object) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(name, str) for name in value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


register_propagator("gr")(lambda **options: GaussianFit(**options))

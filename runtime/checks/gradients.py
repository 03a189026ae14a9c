"""Gradients at a site are looked at in the first reverse pass, as costs are in the first call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from propc.errors import NonFiniteError
from propc.ir.nodes.site import Site
from propc.propagators import Draw


def watched(site: Site, draw: Callable[[Sequence[Tensor]], Draw], phi: Sequence[Tensor]) -> Draw:
    """What a rule draws; its gradients are looked at as they come by.

    Where what arrives at the draw and its tokens is finite and what goes on to φ is not, the rule or the law has made
    it so. In half precision nothing is said: there a scaled loss overflows now and then, as scalers of gradients know.

    Raises (in the reverse pass):
        NonFiniteError: names the site and the parameter.
    """
    if not torch.is_grad_enabled():
        return draw(phi)
    finite: list[bool] = []
    seen = tuple(
        _watched(site, index, value, finite) if value.requires_grad and value.dtype != torch.float16 else value
        for index, value in enumerate(phi)
    )
    drawn = draw(seen)
    for made in (drawn.value, *drawn.tokens, drawn.weights):
        if made is not None and made.requires_grad:
            made.register_hook(lambda grad: finite.append(_is_finite(grad)))
    return drawn


def _watched(site: Site, index: int, value: Tensor, arrived: Sequence[bool]) -> Tensor:
    def look(grad: Tensor | None) -> None:
        if grad is None or _is_finite(grad) or not all(arrived):
            return
        valid = torch.isfinite(grad)
        kind = "NaN" if bool(torch.isnan(grad).any()) else "infinite"
        raise site.error(
            f"{int((~valid).sum())} of {valid.numel()} gradients that {site.estimator!r} sends to parameter "
            f"{site.spec.fields[index]!r} of {site.spec} are {kind}, though what arrives at the draw is finite",
            "Keep the parameter away from the ends of its space, or let it be float64; compile with validate=False to "
            "let such gradients through.",
            NonFiniteError,
        )

    seen = value.view_as(value)
    seen.register_hook(look)
    return seen


def _is_finite(grad: Tensor | None) -> bool:
    """Of no gradient too, which a gate may send, and of batched ones, whose numbers nobody can look at."""
    if grad is None:
        return True
    try:
        return bool(torch.isfinite(grad).all())
    except RuntimeError:  # `is_grads_batched`
        return True

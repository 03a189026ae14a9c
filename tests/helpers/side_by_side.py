"""A program beside its compiled self, from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import propc

B = 5


def param(*shape: int, start: float = 0.3) -> Tensor:
    return (torch.linspace(start, start + 0.5, int(np.prod(shape))).reshape(shape)).requires_grad_()


def same(
    plain: Callable[..., Any], *args: Any, estimator: Any = "rp", wrt: Any = (), exact: bool = True, **kwargs: Any
) -> Any:
    """Run plain and compiled from the same seed: equal values, gradients and random state after it.

    Args:
        exact: gradients are equal to the last bit, else to rounding.
    """
    compiled = propc.compile(plain, estimator=estimator)
    outcomes = []
    for fn in (plain, compiled):
        torch.manual_seed(11)
        value = fn(*args, **kwargs)
        leaves = [t for t in [*args, *kwargs.values(), *wrt] if isinstance(t, Tensor) and t.requires_grad]
        total = sum(
            t.sum() for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor) and t.requires_grad
        )
        grads = torch.autograd.grad(total, leaves, allow_unused=True) if leaves else ()
        outcomes.append((value, grads, torch.get_rng_state()))
    (value, grads, state), (value2, grads2, state2) = outcomes
    assert torch.utils._pytree.tree_structure(value) == torch.utils._pytree.tree_structure(value2)
    for a, b in zip(torch.utils._pytree.tree_leaves(value), torch.utils._pytree.tree_leaves(value2)):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    for a, b in zip(grads, grads2):
        assert (a is None and b is None) or (torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-12))
    assert torch.equal(state, state2)
    return compiled

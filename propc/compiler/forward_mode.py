"""Forward-mode derivatives of a compiled call: those that torch carries by itself are right, others are refused."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd import forward_ad

from propc.errors import EstimatorError
from propc.ir.graph import PropagationGraph
from propc.passes.sites.assign_propagators import site_views
from propc.propagators import EnumerateRule, GumbelSoftmaxRule, PathwiseRule, Plain

CARRIED = (EnumerateRule, GumbelSoftmaxRule, PathwiseRule)


def refuse_forward_mode(graph: PropagationGraph, tensors: Sequence[Tensor], compiles: bool) -> None:
    """Refuse a tangent on the way into a program whose estimators work in the reverse pass.

    Args:
        tensors: what the program is given.
        compiles: whether a backend runs it.

    Raises:
        EstimatorError: names the first site that lets no tangent through.
    """
    if all(forward_ad.unpack_dual(tensor).tangent is None for tensor in tensors):
        return
    views = site_views(graph)
    for site in graph.sites:
        drawn = isinstance(site.rule, Plain) and site.spec.has_rsample and site.rule.relaxed is None
        carried = drawn or isinstance(site.rule, CARRIED)
        if compiles or not carried or views[site.name].blocked:
            raise site.error(
                "the call is under forward-mode differentiation (torch.autograd.forward_ad), of which an estimator "
                "that works in the reverse pass knows nothing: the tangent would be wrong",
                "Take the gradient by .backward() or torch.autograd.grad, or use 'rp' or 'enumerate' on the eager "
                "backend.",
                EstimatorError,
            )

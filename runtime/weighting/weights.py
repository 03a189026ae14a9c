"""The weights of inverse variance.

With per-sample cotangents g_c of part c, the weight of c is 1/V_c over the sum of all, V_c being the sum over samples
and coordinates of squared deviations from the mean (Parmas et al. 2018; for two parts this is total propagation).

This is the definition. Two others give the same for two parts, sooner: `propc.runtime.weighting.mix_on_cpu`, where
numbers can be looked at, and `propc.runtime.weighting.mix_compiled`, where nothing can.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_variance_weights(variances: Tensor, now: Tensor) -> Tensor:
    """Weights ∝ 1/variance over the parts, [parts, groups, ...].

    Equal for equal variances, also for zeros. A part whose variance is not finite, in these or `now`, has weight zero;
    if no part has a finite one, the weights are NaN, and so is the gradient.

    Args:
        variances: of the parts in the groups; what rounding has made negative is zero.
        now: those of the very samples that are weighed. Where these are others, an infinite one still says that there
            is an infinite cotangent to be left out.
    """
    logits = variances.clamp(min=torch.finfo(variances.dtype).tiny).log_().neg_()  # so that no quotient overflows
    logits = torch.add(logits, now, alpha=0.0)  # 0·∞ is NaN
    return torch.softmax(logits.nan_to_num_(-torch.inf, neginf=-torch.inf), 0)


def of_next_group(variances: Tensor) -> Tensor:
    """For each group the variances of the next one, for the last those of the first, [parts, groups, ...]."""
    return variances.roll(-1, 1) if variances.shape[1] > 1 else variances

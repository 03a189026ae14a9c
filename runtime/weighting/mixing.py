"""What the gate of one site knows of itself, of other sites and of other calls."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from propc.errors import ErrorAt
from propc.runtime.weighting.per_sample_norms import Norms
from propc.runtime.weighting.two_pass import Rehearsal
from propc.runtime.weighting.weighting import Weighting


class Mixing(NamedTuple):  # a frozen dataclass takes four times as long to make, and each draw makes one
    """How the cotangents at a site are weighed.

    Attributes:
        how: by which variance, over which samples.
        site: under this name it leaves its weights for others.
        error: makes an error at the site.
        weights: those of the sites of this call that others may take.
        norms: how variances at the weighting target are taken without tangents.
        donor: the site whose weights it takes in place of its own.
        rehearsal: of the reverse pass of this call.
        state: what it keeps of earlier batches.
    """

    how: Weighting
    site: str
    error: ErrorAt
    weights: dict[str, list[Tensor]]
    norms: Norms | None = None
    donor: str | None = None
    rehearsal: Rehearsal | None = None
    state: nn.Module | None = None

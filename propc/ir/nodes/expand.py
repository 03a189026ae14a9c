"""Expand nodes: tangents at a site along directions of a weighting target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.fx

from propc.ir.nodes.node import Kind, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Expand(Node):
    """What turns cotangents on a site's φ into variances at a weighting target; inserted by expand-targets.

    Where `directions` is not 0, the first outputs, one for each φ that depends on the target, are tangents of φ,
    ``[P, *φ.shape]``, along P directions: when `exact` they are the P coordinates of the target, else random signs.
    A cotangent on φ times tangents is the per-sample gradient along these directions.

    With `norms`, the outputs behind them are what a reverse traversal to the target reads, from which the site's rule
    takes the exact variance (`propc.runtime.weighting.per_sample_norms`) of the target, or of all of it that has no
    tangents.
    """

    kind: ClassVar[Kind] = Kind.EXPAND

    target: str
    directions: int
    exact: bool
    norms: bool = False
    code: torch.fx.GraphModule = field(repr=False)

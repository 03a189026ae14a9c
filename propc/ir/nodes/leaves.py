"""Inputs and parameters: values that are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.node import Kind, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Node):
    """A tensor argument. `path` is its place in the call, such as ``beta`` or ``batch['x']``."""

    kind: ClassVar[Kind] = Kind.INPUT

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter(Node):
    """A tensor that the program holds: parameter, buffer or closed-over tensor, by `path`.

    A `constant` is the same at every call; its path is its value where all elements are equal.
    """

    kind: ClassVar[Kind] = Kind.PARAMETER

    path: str
    constant: bool = False

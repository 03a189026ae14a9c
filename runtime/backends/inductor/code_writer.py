"""Source of a straight line of calls, written for a run of stages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from propc.runtime.backends.inductor.joint_graph import NOISE, Layout

_VARIABLE = re.compile(r"\b[cnuv]\d+(?:_\d+)?\b")


@dataclass
class CodeWriter:
    """Source of a function, with the objects that it names."""

    lines: list[str] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)

    def hold(self, prefix: str, value: Any) -> str:
        """A name for an object."""
        name = f"{prefix}{len(self.objects)}"
        self.objects[name] = value
        return name

    def fitted(self, variable: str, want: Layout) -> str:
        """An expression for a variable's tensor with the strides that compiled code was told of."""
        return f"{self.hold('fit', fit)}({variable}, {want.shape}, {want.stride})"

    def function(self, header: str) -> Any:
        """A function of these lines, which lets go of every variable after its last use."""
        last = {name: i for i, line in enumerate(self.lines) for name in _VARIABLE.findall(line)}
        done: dict[int, list[str]] = {}
        for name, i in last.items():
            if i < len(self.lines) - 1:
                done.setdefault(i, []).append(name)
        lines = [
            " " + "; ".join([line, *(f"{name} = None" for name in done.get(i, ()))])
            for i, line in enumerate(self.lines)
        ]
        exec(compile("\n".join([f"def line({header}):", *lines]), "<propc run>", "exec"), self.objects)
        return self.objects["line"]


def variable(index: int, kind: str, i: int) -> str:
    """The variable of noise or a result of a stage."""
    return f"{'n' if kind == NOISE else 'u'}{index}_{i}"


def fit(value: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A tensor with the strides that compiled code was told of."""
    if value.stride() == stride:
        return value
    return torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device).copy_(value)


def needs_fit(have: Layout, want: Layout) -> bool:
    """Whether strides differ where they matter."""
    differs = (h != w for h, w, size in zip(have.stride, want.stride, have.shape) if size > 1)
    return any(differs)


def listed(names: Iterable[str], bare: bool = False) -> str:
    """Variables, as a tuple or, `bare`, to be assigned to."""
    joined = "".join(f"{name}, " for name in names)
    return joined.rstrip() if bare and joined else f"({joined})"

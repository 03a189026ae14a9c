"""A random program: its text, the values of its parameters, and what is known of it."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributions
from torch.nn import functional

Costs = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Program:
    """`kind`: "rows" (independent ones), "gaussian" (linear, Normal sites), "edge" (of a parameter's space) or
    "meet" (few rows that hear of each other, and parameters without a batch).

    `behind` are the parameters that no site depends on. Sites are named by what can be done at them: c*, with
    `rsample`; b*, Bernoulli and OneHotCategorical; k*, of few values; n*, counts.
    """

    seed: int
    kind: str
    text: str
    parameters: Mapping[str, float]
    behind: frozenset[str] = frozenset()
    dtype: torch.dtype = torch.float64
    weighted: bool = False  # whether the user weights the rows of the cost

    def function(self, marks: Any) -> Callable[..., Costs]:
        """The program, written with `propc.sample` and the like of `marks`."""
        name = f"<string of seed {self.seed}>"  # <string: a user's code, for propc
        linecache.cache[name] = (len(self.text), None, self.text.splitlines(keepends=True), name)
        scope = {**vars(distributions), **vars(distributions.transforms), "torch": torch, "F": functional}
        exec(compile(self.text, name, "exec"), scope | {"propc": marks}, result := dict(scope, propc=marks))
        function: Callable[..., Costs] = result["program"]
        # what the text defines sees itself and the marks
        function.__globals__.update(result)
        return function

    def sites(self) -> list[str]:
        """Their names."""
        return re.findall(r"propc\.sample\(.*, '(\w+)'\)", self.text)

    def leaves(self, rows: int | None, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """The parameters, a value for each row, so that each row has a gradient; without rows, single numbers."""
        shape = () if rows is None else (rows,)
        dtype = dtype or self.dtype
        return [torch.full(shape, value, dtype=dtype, requires_grad=True) for value in self.parameters.values()]


def total(costs: Costs) -> torch.Tensor:
    """The sum of all costs, for each row."""
    return sum(costs[1:], costs[0]) if isinstance(costs, tuple) else costs

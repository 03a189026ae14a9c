"""A check of torch's on the arguments of a distribution, kept to be made on values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import constraints

from propc.errors import NonFiniteError, message
from propc.types import Source

Judge = Callable[..., str]
"""What is wrong with values, a sentence; empty if nothing is."""

PARAMETER_FIX = "Constrain it (softplus, exp, sigmoid, softmax), or look for NaN before it."
VALUE_FIX = (
    "Bring it there (scale pixels to 0 … 1, round counts, clamp), or give the distribution validate_args=False to let "
    "it through."
)


@dataclass(frozen=True, eq=False)
class ArgumentCheck:
    """Stands in a torch.fx graph for a check, and is called with values for its arguments.

    Attributes:
        judge: looks at the values.
        fix: what to do about what it finds.
        where: the user's line that torch would have checked at.
        at: the site whose distribution it is; empty for one that is no site's.
        by_element: whether it looks at each number, or row of numbers, by itself; not so matrices, and truths.
    """

    judge: Judge
    fix: str
    where: Source
    at: str = ""
    by_element: bool = False

    __name__ = __qualname__ = "argument_check"  # which torch.fx asks of a function

    def __call__(self, *values: Tensor) -> None:
        """Make the check.

        Raises:
            NonFiniteError: it fails.
        """
        finding = self.judge(*values)
        if finding:
            raise NonFiniteError(message(finding, self.fix, at=self.at, where=self.where))


def must_satisfy(what: str, build: Callable[[Sequence[Tensor]], constraints.Constraint]) -> Judge:
    """The judge of a constraint.

    Args:
        what: the value, in words.
        build: makes the constraint of the tensors that it holds, which follow the value.
    """

    def judge(value: Tensor, *held: Tensor) -> str:
        constraint = build(held)
        valid = constraint.check(value)
        return "" if bool(valid.all()) else f"{what} must satisfy {_brief(constraint)}; {shortfall(value, valid)}"

    return judge


def must_hold(finding: str, expected: bool = True) -> Judge:
    """The judge of a truth that a program asks for; `finding` is what is wrong where it is not as expected."""

    def judge(truth: Tensor) -> str:
        return "" if bool(truth) is expected else finding

    return judge


def shortfall(value: Tensor, valid: Tensor) -> str:
    """How many values are not valid, and one of them."""
    value = value.detach()
    if value.shape[: valid.dim()] != valid.shape:  # it is broadcast with bounds
        value = value.expand(valid.shape)
    bad = value[~valid][0].flatten()
    shown = f"{bad[0].item():g}" if len(bad) == 1 else _row(bad)
    return f"{int((~valid).sum())} of {valid.numel()} do not, such as {shown}"


def _brief(constraint: constraints.Constraint) -> str:
    """A constraint in words, without the numbers of tensors that it holds."""
    return _TENSOR.sub("…", str(constraint))


def _row(values: Tensor) -> str:
    numbers: list[Any] = values[:_SHOWN].tolist()
    return f"[{', '.join(f'{x:g}' for x in numbers)}{', …' if len(values) > _SHOWN else ''}]"


_TENSOR = re.compile(r"tensor\(\[[^a-z]*(?:(?:e|inf|nan)[^a-z]*)*\](?:, \w+=[\w.:']+)*\)")
_SHOWN = 6  # numbers of an event: as many as a line has room for behind the finding

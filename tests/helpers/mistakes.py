"""Programs with a mistake: how they are run, and what their errors must say."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.distributions import Normal
from zoo import leaf

import propc

B = 6


def normal(theta: Tensor, name: str = "x") -> Tensor:
    return propc.sample(Normal(theta.expand(B), 1.0), name)


def line_of(error: BaseException) -> str:
    """`file:line` of the last line of a test in the traceback, where the user's mistake is."""
    frames = [(Path(frame.filename).name, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    file, line = [frame for frame in frames if frame[0].startswith("test_")][-1]
    return f"{file}:{line}"


def line_with(program: Callable[..., Any], text: str) -> str:
    """`file:line` of the line of a program that contains a text."""
    lines, start = inspect.getsourcelines(program)
    line = start + next(i for i, line in enumerate(lines) if text in line)
    return f"{Path(inspect.getsourcefile(program) or '').name}:{line}"


def refused(
    kind: type[Exception], call: Callable[[], Any], *words: str, program: Callable[..., Any] | None = None, at: str = ""
) -> Exception:
    """Check that a call is refused with these words, and with the line of `program` that contains `at`."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    for word in (*words, *((line_with(program, at),) if program is not None else ())):
        assert word in text, text
    assert isinstance(caught.value, propc.PropcError)
    assert "FakeTensor" not in text
    return caught.value


def run(program: Callable[..., Any], *args: Any, estimator: Any = "lr", **options: Any) -> Callable[[], Any]:
    return lambda: propc.compile(program, estimator=estimator, **options)(leaf(), *args)

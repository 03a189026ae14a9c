"""TorchInductor: code for the two halves of a stage, compiled once in a process and kept on disk by torch.

What is compiled is called without the guards and wrappers of `torch.compile`: shapes, strides, dtypes and devices are
part of the key of a compiled call already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.runtime.backends.inductor.joint_graph import Halves, Layout, draws, halves
from propc.runtime.weighting.mix_compiled import tracing
from propc.util.torch_private import compile_graph, has_cpp_compiler, has_triton, inductor_decompositions

Compiled = Callable[[list[Tensor]], Sequence[Tensor]]

_COMPILED: dict[Any, Compiled] = {}


def missing(kind: str) -> str:
    """What the compiler lacks for devices of a kind, such as ``"cpu"``; empty if nothing."""
    if kind == "cpu":
        return "" if has_cpp_compiler() else "a C++ compiler"
    if kind == "cuda":
        return "" if has_triton() else "Triton"
    return ""


def traced(run: Callable[..., Sequence[Tensor]], layouts: Sequence[Layout], tokens: frozenset[int]) -> Halves:
    """Trace a stage for this compiler; see `propc.runtime.backends.inductor.joint_graph.halves`."""
    with tracing():
        return halves(run, layouts, tokens, decompositions())


def compiled(code: torch.fx.GraphModule, reverse: bool) -> Compiled:
    """Code that takes a list of its arguments, which it empties, and gives a sequence; the same code only once."""
    key = _key(code)
    if key is None:
        return _compile(code, reverse)
    if key not in _COMPILED:
        _COMPILED[key] = _compile(code, reverse)
    return _COMPILED[key]


def _compile(code: torch.fx.GraphModule, reverse: bool) -> Compiled:
    settings = {"fallback_random": True, "size_asserts": False, "alignment_asserts": False, "compile_threads": 1}
    made: Compiled = compile_graph(code, settings, reverse)
    return made


def _key(code: torch.fx.GraphModule) -> Any:
    """What code is the same; None where it holds tensors or objects of its own."""
    if any(node.op not in ("placeholder", "call_function", "output") for node in code.graph.nodes):
        return None
    kinds = tuple(Layout.of(node.meta["val"]) for node in code.graph.nodes if node.op == "placeholder")
    return code.code, kinds, torch.get_num_threads()


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Those of inductor, but for what draws: decomposed, it would draw other numbers than on `eager`."""
    return {call: code for call, code in inductor_decompositions().items() if not draws(call)}

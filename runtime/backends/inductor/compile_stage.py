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

Compiled = Callable[[list[Tensor]], Sequence[Tensor]]

_COMPILED: dict[Any, Compiled] = {}


def missing(kind: str) -> str:
    """What the compiler lacks for devices of a kind, such as ``"cpu"``; empty if nothing."""
    if kind == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, OSError):
            return "a C++ compiler"
    elif kind == "cuda":
        from torch.utils._triton import has_triton

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
    import torch._inductor.config as config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.ir import gm_original_output_strides

    examples = [node.meta["val"] for node in code.graph.nodes if node.op == "placeholder"]
    settings = {"fallback_random": True, "size_asserts": False, "compile_threads": 1}
    known = {name: value for name, value in {**settings, "alignment_asserts": False}.items() if hasattr(config, name)}
    with config.patch(known):
        gm_original_output_strides(code)  # results keep the strides that they were traced with
        made = compile_fx_inner(code, examples, is_backward=reverse)
    inner: Compiled | None = getattr(made, "current_callable", None)
    return made if inner is None else inner


def _key(code: torch.fx.GraphModule) -> Any:
    """What code is the same; None where it holds tensors or objects of its own."""
    if any(node.op not in ("placeholder", "call_function", "output") for node in code.graph.nodes):
        return None
    kinds = tuple(Layout.of(node.meta["val"]) for node in code.graph.nodes if node.op == "placeholder")
    return code.code, kinds, torch.get_num_threads()


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Those of inductor, but for what draws: decomposed, it would draw other numbers than on `eager`."""
    import torch._inductor.config as config
    from torch._inductor.decomposition import select_decomp_table

    with config.patch({"fallback_random": True}):
        return {call: code for call, code in select_decomp_table().items() if not draws(call)}

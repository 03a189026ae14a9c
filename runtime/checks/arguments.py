"""Checks that torch would have made on the arguments of distributions: what they need is run as it is written.

What a call runs does not hold them, so that they cost it nothing. They need neither its estimators nor its plates: the
operations before them run once more, without gradient, on draws of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.distributions.argument_check import ArgumentCheck
from propc.fx.operations import name_of
from propc.fx.program import CheckedProgram
from propc.runtime.checks.out_of_memory import is_shortage
from propc.runtime.checks.traced_run import last_uses, step_value
from propc.util.torch_rng import same_random

_NEED_HISTORY = frozenset({"grad", "register_hook", "retain_grad"})


class ArgumentChecks:
    """The checks of a program.

    Args:
        program: what they need.
        always: make them at every call, where looking at values waits for no device; else at the first call alone.

    Attributes:
        idle: whether the next call makes none.
    """

    def __init__(self, program: CheckedProgram, always: bool) -> None:
        nodes, kinds = program.graph.nodes, {leaf.type.device.type for leaf, _ in program.leaves}
        self.program = program
        self.idle = "meta" in kinds  # there are no values
        self._always = always and kinds <= {"cpu"}
        self._writes = any(node.meta.get("writes") for node in nodes)
        self._history = any(name_of(node.target) in _NEED_HISTORY for node in nodes if callable(node.target))
        self._history |= any(node.target in _NEED_HISTORY for node in nodes if node.op == "call_method")
        self._last = last_uses(program.graph)

    def __call__(self, inputs: Sequence[Tensor], owner: Any) -> None:
        """Make the checks.

        Args:
            inputs: the tensors among the arguments of the call.
            owner: the compiled module, or None.

        Raises:
            NonFiniteError: one fails; it names the distribution and the line.
        """
        with same_random(), torch.set_grad_enabled(self._history):
            self._run(self._leaves(inputs, owner))
        self.idle = not self._always

    def _leaves(self, inputs: Sequence[Tensor], owner: Any) -> dict[torch.fx.Node, Any]:
        given = iter(inputs)
        found: dict[torch.fx.Node, Any] = {}
        for leaf, node in self.program.leaves:
            tensor = next(given) if leaf.fetch is None else leaf.fetch(owner) if node.users else None
            if tensor is not None:
                found[node] = self._apart(tensor)
        return found

    def _apart(self, tensor: Tensor) -> Tensor:
        """The same values, whose history and, where the program writes, memory are the checks' own."""
        tensor = tensor.detach().requires_grad_(tensor.requires_grad and self._history)
        return tensor.clone() if self._writes or tensor.requires_grad else tensor

    def _run(self, values: dict[torch.fx.Node, Any]) -> None:
        """What cannot be known has no value: it comes from a black box, which may not run twice, or fails.

        What fails here fails in the call too, which says so.
        """
        for node in self.program.graph.nodes:
            if node.op != "placeholder" and all(each in values for each in node.all_input_nodes):
                try:
                    values[node] = step_value(node, values)
                except Exception as error:
                    if isinstance(node.target, ArgumentCheck) or is_shortage(error):
                        raise
            for done in self._last.get(node, ()):
                values.pop(done, None)

"""A run of compiled stages as one autograd function: its forward and its reverse pass are a straight line of calls.

Tokens hold nothing, so here they do not exist: a cost's reverse code gives its messages, and the line of the reverse
pass hands each to the reverse code of the sites that it is routed to, adding up what meets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.ir.adjacency import BACKWARD
from propc.ir.nodes.node import Node
from propc.ir.nodes.site import Site
from propc.runtime.autograd.tokens import applied
from propc.runtime.backend import Violated
from propc.runtime.backends.inductor.forward_source import Forward, StageSequence
from propc.runtime.backends.inductor.reverse_source import ReverseSource
from propc.runtime.backends.inductor.stage import CompiledStage, Half
from propc.runtime.observe.watcher import RUN, direction, label, label_of, span, watching
from propc.runtime.plan.code_writer import straight
from propc.util.torch_rng import from_state, state_unless_captured


class StageRun:
    """A sequence of stages as the function of one step."""

    def __init__(self, sequence: StageSequence) -> None:
        self.sequence = sequence
        self.device = next((layout.device for layout in sequence.layouts.values()), torch.device("cpu"))
        sites = [
            node
            for part in sequence.parts
            if isinstance(part, CompiledStage)
            for node in part.unit.nodes
            if isinstance(node, Site)
        ]
        self.weighing = next((site for site in sites if site.rule is not None and site.rule.mixes > 1), None)
        self.line = line = Forward(sequence)
        self.wants = tuple(line.wants[name] for name in line.leaving)
        places = {f"v{place}": i for i, place in enumerate(sequence.whole.reads)}
        places.update({name: len(sequence.whole.reads) + i for i, name in enumerate(line.leaving)})
        self.order = [places[name] for name in line.leaving_all]
        self.trains = any(layout.requires_grad for layout in sequence.entering)
        self.still = [i for i, wants in enumerate(self.wants) if not wants]
        self.forward: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]] = line.made()
        self.reverses: dict[Hashable, Callable[..., tuple[Tensor | None, ...]]] = {}

    def __call__(self, *given: Tensor) -> list[Tensor]:
        """Run; what leaves, in the order of the block."""
        traced = self.trains and torch.is_grad_enabled()
        run = self if watching() is None else self.watched
        found = _run(run, *given) if traced else run.values(given)[0]
        both = (*given, *found)
        return [both[i] for i in self.order]

    @property
    def heard(self) -> tuple[tuple[str, tuple[Node, ...]], ...]:
        """Its name, with the nodes that only hand on, and those of its stages, with theirs."""
        stages = {
            label(*part.unit.nodes): part.unit.nodes for part in self.sequence.parts if isinstance(part, CompiledStage)
        }
        every = {step.node.name: step.node for step in self.sequence.whole.steps}
        known = {node.name for nodes in stages.values() for node in nodes}
        rest = tuple(node for node in every.values() if node.name not in known)
        return (label_of(RUN, tuple(every.values())), rest), *stages.items()

    @cached_property
    def watched(self) -> StageRun:
        """The same by stages that are heard."""
        parts = [_telling(part) if isinstance(part, CompiledStage) else part for part in self.sequence.parts]
        return StageRun(replace(self.sequence, parts=parts))

    def values(self, given: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What leaves, and what the reverse pass needs.

        Raises:
            Violated: a parameter of a site is not in its support.
        """
        found, kept, flags = self.forward(*given)
        if flags and not all(map(bool, flags)):
            raise Violated
        return found, kept

    def cotangents(self, kept: Sequence[Tensor], arrived: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Cotangents on what has entered, from those on what left."""
        pattern = tuple(each is not None for each in arrived)
        if pattern not in self.reverses:
            self.reverses[pattern] = ReverseSource(self.line, pattern).made()
        return self.reverses[pattern](kept, arrived)

    def again(self, given: Sequence[Tensor], seed: Tensor) -> Sequence[Tensor]:
        """What leaves, step by step, from the random numbers of an earlier run: for derivatives of any order."""
        whole = self.sequence.whole
        with from_state(self.device, seed):
            return straight(whole.steps, whole.reads, whole.writes)(*given)


def _telling(stage: CompiledStage) -> CompiledStage:
    name = label(*stage.unit.nodes)
    reverse = None if stage.reverse is None else _between(stage.reverse, name, lambda: BACKWARD)
    return replace(stage, forward=_between(stage.forward, name, direction), reverse=reverse)


def _between(run: Half, name: str, way: Callable[[], str]) -> Half:
    def call(arguments: list[Tensor]) -> Sequence[Tensor]:
        with span(watching(), name, way()):
            return run(arguments)

    return call


class _StageFunction(Function):
    @staticmethod
    def forward(ctx: Any, run: StageRun, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.seed, ctx.count = run, state_unless_captured(run.device), len(given)
        found, kept = run.values(given)
        ctx.save_for_backward(*given, *kept)
        ctx.set_materialize_grads(False)
        if run.still:
            ctx.mark_non_differentiable(*(found[i] for i in run.still))
        return found

    @staticmethod
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        run: StageRun = ctx.run
        kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, *_differentiable(run, kept[: ctx.count], arrived, ctx.seed))
        return (None, *run.cotangents(kept, arrived))


_run = applied(_StageFunction)


def _differentiable(
    run: StageRun, given: Sequence[Tensor], arrived: Sequence[Tensor | None], seed: Tensor
) -> Sequence[Tensor | None]:
    """Cotangents that can be differentiated again: the steps run once more, one by one.

    Raises:
        EstimatorError: the run has a site that weighs by the variance of what arrives. The second reverse pass would
            meet it twice, each time with a part, and weigh each by itself; on `eager` it meets it once.
    """
    if run.weighing is not None:
        finding = "second derivatives of an inverse-variance weighting, which compiled code does not give"
        fix = "Use backend='eager'; or 'rp' or 'lr' here."
        raise run.weighing.error(finding, fix)
    given = [value.view_as(value) if value.requires_grad else value for value in given]  # no gradient goes past them
    found = run.again(given, seed)
    ends = dict(zip((i for i in run.order), found))
    live = [
        (ends[len(given) + i], grad)
        for i, grad in enumerate(arrived)
        if grad is not None and ends[len(given) + i].requires_grad
    ]
    wanted = [i for i, value in enumerate(given) if value.requires_grad]
    if not live or not wanted:
        return [None] * len(given)
    outputs, cotangents = zip(*live)
    grads = torch.autograd.grad(outputs, [given[i] for i in wanted], cotangents, create_graph=True, allow_unused=True)
    by_place = dict(zip(wanted, grads))
    return [by_place.get(i) for i in range(len(given))]

"""Steps of a program under several estimators: gradients, times, and the world left as it was."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from propc.diagnostics.comparison.running_moments import Moments
from propc.diagnostics.comparison.wrt import Leaves
from propc.errors import PropcError, PropcValueError, message
from propc.fx.operations import name_of
from propc.fx.program import Program
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.records import LOG_MEAN_EXP
from propc.util.torch_private import pytree, version
from propc.util.torch_rng import random_states, restore_random

# Steps before any is counted: compiling, first checks, memories of estimators. Times settle after three
# (`propc.diagnostics.profile.bench`); two more are a choice, so that what is kept from step to step rests on some.
WARMUP = 5


@dataclass(frozen=True)
class Situation:
    """What all steps have in common.

    Attributes:
        args, kwargs: of the call.
        targets: the tensors whose gradients are looked at, by name.
        devices: that the program computes on.
        keeps: whether the arguments have a history of their own, which must outlive a step.
        written: tensors that the program may write into, to be put back after each step.
        bounded: whether a multi-sample bound is returned, which estimators change with their number of samples.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    targets: Mapping[str, Tensor]
    devices: tuple[torch.device, ...]
    keeps: bool
    written: Originals
    bounded: bool = False

    @staticmethod
    def of(
        graph: PropagationGraph,
        leaves: Leaves,
        targets: Mapping[str, Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Situation:
        """That of a call, from its graph under any estimator."""
        assert graph.program is not None
        devices = {kind.device for node in graph for kind in node.outputs}
        keeps = any(tensor.grad_fn is not None for _, tensor in leaves)
        written = Originals(tensor for _, tensor in leaves) if _writes(graph.program) else Originals(())
        bounded = any(cost.how == LOG_MEAN_EXP for cost in graph.of(Cost))
        return Situation(args, kwargs, targets, tuple(sorted(devices, key=str)), keeps, written, bounded)

    @property
    def coordinates(self) -> int:
        """Of all targets together."""
        return sum(target.numel() for target in self.targets.values())

    def gradients(self, program: Callable[..., Any]) -> list[Tensor | None]:
        """The gradients of one step: of the sum of the means of the returned costs."""
        with torch.enable_grad():
            loss = mean_cost(program(*self.args, **self.kwargs))
            targets = list(self.targets.values())
            if not loss.requires_grad:
                return [None] * len(targets)
            return list(torch.autograd.grad(loss, targets, allow_unused=True, retain_graph=self.keeps))

    def seed(self, number: int) -> None:
        """Seed the generators of these devices, and of no others."""
        torch.default_generator.manual_seed(number)
        for device in self._cards():
            torch.cuda.default_generators[device].manual_seed(number)

    def barrier(self) -> None:
        """Wait for the devices, so that a clock can be read."""
        for device in self._cards():
            torch.cuda.synchronize(device)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Leave all random number generators as they were found."""
        states = random_states()
        with torch.random.fork_rng(devices=self._cards()):
            try:
                random.seed(0)  # black boxes may draw from these
                if "numpy" in sys.modules:
                    sys.modules["numpy"].random.seed(0)
                yield
            finally:
                restore_random(states)

    def _cards(self) -> list[int]:
        return [device.index or 0 for device in self.devices if device.type == "cuda"]


class Originals:
    """Tensors with copies of what they hold, to be put back when a program has written into them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.copies = [(t, t.detach().clone()) for t in tensors if not t.is_inference()]
        self.versions = [version(t) for t, _ in self.copies]

    def put_back(self) -> None:
        """Undo what was written since."""
        for i, (tensor, copy) in enumerate(self.copies):
            silently = not tensor.requires_grad and not torch.equal(tensor, copy)  # as batch normalization does
            if silently or version(tensor) != self.versions[i]:
                with torch.no_grad():
                    tensor.copy_(copy)
                self.versions[i] = version(tensor)


@dataclass
class Candidate:
    """A program under one estimator, and what is known of its gradient.

    Attributes:
        label: for people.
        program: a compiled one.
        chosen: what people call the estimators of its sites, where that is not the name of their rules.
        moments: of the gradient of each target.
        seconds: that each step took.
        broken: in how many steps a gradient was not finite.
        error: why it does not work, if it does not.
    """

    label: str
    program: Any
    chosen: Mapping[str, str] = field(default_factory=dict)
    moments: list[Moments] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    broken: int = 0
    error: Exception | None = None

    def step(self, situation: Situation, seed: int, *, counts: bool = True) -> None:
        """Do a step; an error stays with the candidate."""
        try:
            self._step(situation, seed, counts)
        except Exception as error:
            self.error = error
        finally:
            situation.written.put_back()

    def forget(self) -> None:
        """Begin anew."""
        self.moments, self.seconds, self.broken = [], [], 0

    def _step(self, situation: Situation, seed: int, counts: bool) -> None:
        situation.seed(seed)
        situation.barrier()
        start = time.perf_counter()
        gradients = situation.gradients(self.program)
        situation.barrier()
        if counts:
            self.seconds.append(time.perf_counter() - start)
            self._add(situation, gradients)

    def _add(self, situation: Situation, gradients: Sequence[Tensor | None]) -> None:
        if not self.moments:
            self.moments = [Moments.like(target) for target in situation.targets.values()]
        self.broken += any(g is not None and not bool(torch.isfinite(g).all()) for g in gradients)
        for moments, gradient in zip(self.moments, gradients):
            moments.add(gradient)

    @property
    def works(self) -> bool:
        """Whether all steps so far have worked and gave finite gradients."""
        return self.error is None and not self.broken

    @property
    def variance(self) -> float:
        """Of one gradient, summed over coordinates."""
        return sum(float(moments.variance.sum()) for moments in self.moments)


def interleave(
    candidates: Sequence[Candidate], situation: Situation, seeds: Iterable[int], *, warmup: int = WARMUP
) -> None:
    """Steps of all candidates in turns, so that drift of the machine hits all alike; the first do not count.

    In a turn each has the same seed. A candidate that fails takes no further steps.
    """
    for index, seed in enumerate(seeds):
        live = [candidate for candidate in candidates if candidate.error is None]
        turn = index % max(1, len(live))
        for candidate in live[turn:] + live[:turn]:
            candidate.step(situation, seed, counts=index >= warmup)


def extend(candidates: Sequence[Candidate], situation: Situation, steps: int, seed: int, *, progress: str = "") -> None:
    """Steps of candidates that started together, in turns, until each has taken so many that count.

    Args:
        candidates: with their moments so far.
        situation: the call.
        steps: that count, in all.
        seed: of all of them: those to come do not depend on where earlier calls ended.
        progress: what a progress bar calls them; without it there is none.
    """
    taken = max((len(candidate.seconds) for candidate in candidates), default=0)
    seeds = draw_seeds(WARMUP + steps, seed)[WARMUP + taken if taken else 0 :]
    shown = tqdm(seeds, desc=progress, leave=False, disable=None if progress else True)
    interleave(candidates, situation, shown, warmup=0 if taken else WARMUP)


def draw_seeds(count: int, seed: int) -> list[int]:
    """Seeds for steps, from one; the first of them are the same however many are drawn."""
    generator = torch.Generator().manual_seed(seed)
    return [int(torch.randint(2**62, (), generator=generator, dtype=torch.int64, device="cpu")) for _ in range(count)]


def mean_cost(returned: Any) -> Tensor:
    """The sum of the means of all costs in a returned value.

    Raises:
        PropcValueError: there is none.
    """
    costs = [t.mean() for t in pytree.tree_leaves(returned) if isinstance(t, Tensor) and _is_cost(t)]
    if not costs:
        raise PropcValueError(
            message("the program returns no cost", "Return a floating point tensor of shape [batch], or a scalar.")
        )
    return sum(costs[1:], costs[0])


def _writes(program: Program) -> bool:
    """Whether a program may write into tensors that it reads, announced or as running statistics."""
    functions = (node.target for node in program.graph.nodes if node.op == "call_function")
    return program.mutates or any(name_of(f) in ("batch_norm", "instance_norm") for f in functions)


def _is_cost(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() <= 1


def words(error: Exception) -> str:
    """What an error says."""
    return str(error) if isinstance(error, PropcError) else f"{type(error).__name__}: {error}"

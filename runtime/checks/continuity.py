"""Which selections of a program jump: a probe at the first call, and at later ones until all is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.fx
from torch import Tensor

from propc.fx.operations import operation_name
from propc.fx.program import Program
from propc.ir.records import Jump
from propc.runtime.checks.crossing import Walk
from propc.runtime.checks.selection_run import SelectionRun, reached, sites_of
from propc.types import Source
from propc.util.torch_rng import same_random, seed_all

MET = 8  # rows in which branches have met, after which a selection is no longer looked at
PAIRS = 256  # of draws in the first call, in as many walks as the batch needs for them
WALKS = 2  # at most: a batch of 16 sees a selection that changes in 7 of 100 draws with a probability of 0.9
LAST_CALL = 2**20  # later calls are looked at if their number is a power of two
LAST_ELSEWHERE = 8  # than on a CPU: there a look waits for the device

Key = tuple[Source, str]


@dataclass
class SelectionHistory:
    """What calls have seen of one selection."""

    met: int = 0
    sizes: list[float] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return not self.sizes and self.met < MET


class Continuity:
    """The selections of a program that hang on draws along whose paths gradients go, and what is known of them.

    Args:
        program: as traced.
        leaves: its inputs and held tensors, in the order of its leaves.
        batch: rows of its costs; None for scalar ones.
        known: the jumps found by other calls, by line and operation, and the size of each; it is added to.
    """

    def __init__(self, program: Program, leaves: Sequence[Tensor], known: dict[Key, float]) -> None:
        self.program, self.leaves, self.known = program, tuple(leaves), known
        self.run: SelectionRun | None = None
        self.seen: list[SelectionHistory] = []
        self.calls = 0
        self.batch: int | None = None
        self.able = all(leaf.device.type != "meta" and type(leaf) in (Tensor, torch.nn.Parameter) for leaf in leaves)
        self.last = LAST_CALL if all(leaf.device.type == "cpu" for leaf in leaves) else LAST_ELSEWHERE

    def jumps(self, passing: Mapping[str, bool], batch: int | None) -> tuple[Jump, ...]:
        """The jumps that are known after a first look, for sites of which some pass their paths on.

        Args:
            passing: by name, in program order.
            batch: rows of the costs.
        """
        flags = list(passing.values())
        if len(flags) != len(sites_of(self.program)):
            return ()
        hangs = reached(self.program, flags)
        if self.run is None and self.able and any(flags):
            sites = sites_of(self.program)
            self.batch = batch
            self.run = SelectionRun(self.program, hangs.far, [s for s, passes in zip(sites, flags) if passes])
            self.seen = [SelectionHistory() for _ in self.run.nodes]
            self.look(self.leaves)
            self.leaves = ()  # let them go
        if self.run is None:
            return ()
        names = list(passing)

        def named(mask: int) -> tuple[str, ...]:
            return tuple(name for i, name in enumerate(names) if mask >> i & 1)

        found: dict[Key, Jump] = {}
        for node, seen in zip(self.run.nodes, self.seen):
            key = _key(node)
            if not seen.sizes and not (seen.open and key in self.known):
                continue
            before = found.get(key, Jump(*key, self.known[key]))
            near, far = named(hangs.near[node]), named(hangs.far[node])
            found[key] = Jump(*key, before.size, _union(before.near, near), _union(before.far, far))
        return tuple(found.values())

    def look(self, leaves: Sequence[Tensor]) -> bool:
        """Look at the selections that are open; whether a jump is found at a line where none was known."""
        run, known = self.run, len(self.known)
        if run is None or run.part is None:
            return False
        try:
            with _aside(run.grad, self.calls):
                self._walk(run, leaves)
        except Exception:  # what is wrong with the program, its own call says
            self.run = None if not self.known else run
            self.calls = self.last
        return len(self.known) > known

    def _walk(self, run: SelectionRun, leaves: Sequence[Tensor]) -> None:
        fixed, start = run.draw(leaves)
        rows = self.batch or max((draw.shape[0] for draw in start if draw.dim()), default=1)
        for _ in range(min(WALKS, max(1, PAIRS // rows))):
            wanted = [i for i, seen in enumerate(self.seen) if seen.open]
            if not wanted:
                return
            _, stop = run.draw(leaves)
            for i, finding in Walk(run, fixed, start, stop, self.batch).findings(wanted).items():
                self.seen[i].met += finding.met
                self.seen[i].sizes += finding.sizes
                if finding.sizes:
                    self.known.setdefault(_key(run.nodes[i]), sorted(finding.sizes)[len(finding.sizes) // 2])

    @property
    def open(self) -> bool:
        """Whether a later call may see more."""
        return self.run is not None and self.calls < self.last and any(seen.open for seen in self.seen)

    def due(self) -> bool:
        """Count a call; whether to look at it."""
        self.calls += 1
        return self.calls > 1 and not self.calls & (self.calls - 1)


@contextmanager
def _aside(grad: bool, seed: int) -> Iterator[None]:
    """Random numbers of its own, and no history unless the program needs it."""
    with same_random(), torch.set_grad_enabled(grad):
        seed_all(seed)
        yield


def _key(node: torch.fx.Node) -> Key:
    return node.meta["where"], operation_name(node)


def _union(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*a, *b)))

"""Rows walked to where a selection changes, and what of the costs jumps there.

Two runs of a program give two draws for each row. Where a selection differs between them, it changes somewhere on the
straight line from one to the other: that place is found by halving. There the program is run with the selections of
this side and of the other on the same draw. What that makes of a difference goes to zero towards the place if the
branches meet, and stays if they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from propc.runtime.checks.selection_run import Force, SelectionRun

# A gap is taken where so many halvings lead, and so much farther away: one that has shrunk to less than half of itself
# is none. One that shrinks as a square root does shrinks to a quarter; a jump is seen if it is larger than what the
# branches differ by within 1/128 of the way.
HALVINGS, AWAY = 11, 0.5**7
KEPT = 0.5  # of the gap farther away, which a jump keeps
ROUNDING = 64.0  # in units of the last place of a result: gaps below come from rounding
ROWS = 64  # of one selection in one walk: more add time and no knowledge
SEVERAL = 12  # selections in one walk where results do not belong to rows, and each is looked at by itself
OWN = 0.1  # of a jump that a selection must make alone
ALONE = 6  # walks of draws without rows, each to a change of one selection


RowsOf = Callable[[int], Tensor]  # rows by the number of a selection


@dataclass
class Finding:
    """What was seen of one selection.

    Attributes:
        met: in how many rows its branches met.
        sizes: of the jumps that were found.
    """

    met: int
    sizes: list[float]


@dataclass(frozen=True)
class Walk:
    """From one draw to another.

    Attributes:
        run: the part of the program that hangs on the draws.
        fixed: what does not move.
        start, stop: the draws.
        batch: rows of the costs; None for scalar ones.
    """

    run: SelectionRun
    fixed: Sequence[Any]
    start: Sequence[Tensor]
    stop: Sequence[Tensor]
    batch: int | None

    def findings(self, wanted: Sequence[int]) -> dict[int, Finding]:
        """What is seen of some selections, by number; nothing of one that changes in no row."""
        found: dict[int, Finding] = {}
        left = set(wanted)
        sizes = dict.fromkeys(map(self.rows_of, self.start))
        for rows in (n for n in sizes if n > 1):
            side = _Rows(self, [self.rows_of(draw) == rows for draw in self.start], rows)
            changed = side.changed(left)
            found.update(side.findings({i: where for i, where in changed.items() if bool(where.any())}))
            left -= found.keys() if 1 in sizes else changed.keys()
        for _ in range(ALONE):
            more = _Whole(self, [True] * len(self.start), 1).first(left)
            found.update(more)
            left -= more.keys()
            if not more:
                break
        return found

    def rows_of(self, draw: Tensor) -> int:
        """How many rows a draw has; with a batch those of the batch or none."""
        rows = draw.shape[0] if draw.dim() and draw.is_floating_point() else 1
        return rows if self.batch is None or rows == self.batch else 1


@dataclass(frozen=True)
class _Crossing:
    """To which change some rows walk: the element of a selection that changes in each, and its value before."""

    rows: Tensor
    element: Tensor
    value: Tensor

    def changed(self, seen: Tensor, rows: int) -> Tensor:
        return seen.reshape(rows, -1)[self.rows].gather(1, self.element[:, None])[:, 0] != self.value


@dataclass(frozen=True)
class _Side:
    """Where rows stand on one side of the changes: their places, the results and the selections there."""

    t: Tensor
    results: list[Tensor]
    seen: list[Any]


class _Rows:
    """Rows that walk beside each other, each to a change of one selection."""

    def __init__(self, walk: Walk, moved: Sequence[bool], rows: int) -> None:
        self.walk, self.moved, self.rows = walk, moved, rows
        device = walk.start[moved.index(True)].device
        self.low = torch.zeros(rows, dtype=torch.float64, device=device)
        self.high = torch.ones_like(self.low)
        self.owner = torch.full((rows,), -1, device=device)
        self.ends = self.side(self.low), self.side(self.high)

    def changed(self, wanted: Sequence[int] | set[int]) -> dict[int, Tensor]:
        """The rows in which selections change, of those that have rows."""
        before, after = (end.seen for end in self.ends)
        return {
            i: (before[i] != after[i]).reshape(self.rows, -1).any(1)
            for i in wanted
            if isinstance(before[i], Tensor) and before[i].shape[:1] == (self.rows,) and before[i].numel()
        }

    def findings(self, changed: dict[int, Tensor]) -> dict[int, Finding]:
        """What is seen of selections, each in some of the rows in which it changes; the rarest come first."""
        apart = self.walk.batch == self.rows and any(map(self.owned, self.ends[0].results))
        rarest = sorted(changed, key=lambda i: int(changed[i].sum()))[: None if apart else SEVERAL]
        targets = {i: self.target(i, changed[i], len(rarest), apart) for i in rarest}
        self.high = torch.where(self.owner >= 0, self.high, self.low)
        self.halve({i: target for i, target in targets.items() if len(target.rows)})
        sides = self.side(self.low), self.side(self.high)
        if apart:
            near, far, noise = self.gaps(sides, self.owner >= 0, True)
            judged = {
                i: _judge(near[target.rows], far[target.rows], noise[target.rows]) for i, target in targets.items()
            }
        else:
            judged = {i: _judge(*self.gaps(sides, self.owner == i, False)) for i in targets}
        found = {i: finding for i, finding in judged.items() if finding is not None}
        jumping = {i: targets[i] for i, finding in found.items() if finding.sizes}
        if jumping and len(self.walk.run.nodes) > 1:
            size = self.own(jumping, sides, apart)
            others = {i for i in jumping if size[i] <= OWN * min(found[i].sizes)}
            if len(others) < len(jumping):  # else they jump together
                found = {i: finding for i, finding in found.items() if i not in others}
        return found

    def target(self, index: int, where: Tensor, many: int, apart: bool) -> _Crossing:
        """Let rows that walk nowhere yet walk to a selection; not all, as another may change in the same.

        Those whose results are not told apart walk in one direction: what jumps up in one must not jump down in others.
        """
        rows = (where & (self.owner < 0)).nonzero().flatten()
        rows = rows[: max(1, min(ROWS, self.rows // many, len(rows) // min(many, 2)))]
        first, last = (end.seen[index].reshape(self.rows, -1)[rows] for end in self.ends)
        element = (first != last).to(torch.uint8).argmax(1)
        value = first.gather(1, element[:, None])[:, 0]
        if not apart:
            alike = value == value[:1]
            rows, element, value = rows[alike], element[alike], value[alike]
        self.owner[rows] = index
        return _Crossing(rows, element, value)

    def halve(self, targets: dict[int, _Crossing]) -> None:
        """Halve the way of each row, keeping the half on which its selection changes."""
        for _ in range(HALVINGS):
            middle = (self.low + self.high) / 2
            seen = self.side(middle).seen
            beyond = torch.zeros_like(self.owner, dtype=torch.bool)
            for index, target in targets.items():
                beyond[target.rows] = target.changed(seen[index], self.rows)
            self.low, self.high = torch.where(beyond, self.low, middle), torch.where(beyond, middle, self.high)

    def gaps(self, sides: tuple[_Side, _Side], rows: Tensor, apart: bool) -> tuple[Tensor, Tensor, Tensor]:
        """How results differ in some rows by the selections of one side and of the other, [rows, elements].

        Returns:
            close to the change; farther away; and what of the first may be rounding. Each is the larger of both
            directions: in one the branches may be equal.
        """
        low, high = sides
        near = [
            self.gap(side.results, self.forced(side.t, other, lambda _: rows), apart)
            for side, other in ((low, high), (high, low))
        ]
        away = [
            self.gap(self.forced(t, low, lambda _: rows), self.forced(t, high, lambda _: rows), apart)[0]
            for t in (low.t - AWAY, high.t + AWAY)
        ]
        (a, noise), (b, other) = near
        return torch.maximum(a, b), torch.maximum(*away), torch.maximum(noise, other)

    def gap(self, here: Sequence[Tensor], there: Sequence[Tensor], apart: bool) -> tuple[Tensor, Tensor]:
        pairs = [pair for pair in zip(here, there) if not apart or self.owned(pair[0])]
        return _gap(pairs, self.rows if apart else 1)

    def own(self, targets: dict[int, _Crossing], sides: tuple[_Side, _Side], apart: bool) -> dict[int, float]:
        """By how much results jump with each selection alone: at a place where another changes too, that may be its."""
        low, high = sides
        if apart:
            gap, _ = self.gap(high.results, self.forced(high.t, low, lambda i: self.owner == i), True)
            return {i: float(gap[target.rows].max()) for i, target in targets.items()}
        nobody = torch.zeros_like(self.owner, dtype=torch.bool)
        alone = ((i, lambda j, i=i: self.owner == i if i == j else nobody) for i in targets)
        return {i: float(self.gap(high.results, self.forced(high.t, low, rows), False)[0].max()) for i, rows in alone}

    def forced(self, t: Tensor, side: _Side, rows: RowsOf) -> list[Tensor]:
        """Results with the selections of a side in some rows."""

        def force(index: int, value: Any) -> Any:
            return self.put(side.seen[index], value, rows(index)) if isinstance(value, Tensor) else value

        return self.results(t, force)

    def put(self, seen: Tensor, value: Tensor, rows: Tensor) -> Tensor:
        return torch.where(_beside(rows, value), seen, value) if self.owned(value) else value

    def owned(self, value: Tensor) -> bool:
        """Whether a value has an entry for each row."""
        return value.shape[:1] == (self.rows,)

    def side(self, t: Tensor) -> _Side:
        """Results and selections with each row at its place."""
        return _Side(t, self.results(t), list(self.walk.run.seen))

    def results(self, t: Tensor, force: Force | None = None) -> list[Tensor]:
        walk = self.walk
        draws = [
            torch.lerp(a, b, _beside(t.to(a.dtype), a)) if moves and a.is_floating_point() else a
            for a, b, moves in zip(walk.start, walk.stop, self.moved)
        ]
        return walk.run.run(walk.fixed, draws, force)


class _Whole(_Rows):
    """Draws without rows, which walk to a change of one element of one selection."""

    row, length = 0, 0  # of the selection's own, where it has some: only that one is put in the place of another

    def first(self, wanted: set[int]) -> dict[int, Finding]:
        """What is seen of one of the selections that change."""
        before, after = (end.seen for end in self.ends)
        for i in wanted:
            if isinstance(before[i], Tensor) and not torch.equal(before[i], after[i]):
                if before[i].dim():
                    differs = (before[i] != after[i]).flatten().to(torch.uint8).argmax()
                    self.row, self.length = int(differs) // before[i][0].numel(), before[i].shape[0]
                return self.findings({i: self.owner < 0}) or {i: Finding(0, [])}
        return {}

    def put(self, seen: Tensor, value: Tensor, rows: Tensor) -> Tensor:
        if value.dim() == 0 or value.shape[0] != self.length:
            return torch.where(rows.reshape(()), seen, value)
        own = (torch.arange(self.length, device=value.device) == self.row) & rows
        return torch.where(_beside(own, value), seen, value)


def _beside(t: Tensor, value: Tensor) -> Tensor:
    return t.reshape((-1, *(1 for _ in range(value.dim() - 1)))) if value.dim() else t.reshape(())


def _gap(pairs: Sequence[tuple[Tensor, Tensor]], rows: int) -> tuple[Tensor, Tensor]:
    """The difference of results, [rows, elements], and how much of it may be rounding; none where one is not finite."""
    gaps: list[Tensor] = []
    noise: list[Tensor] = []
    for a, b in pairs:
        size = ROUNDING * torch.finfo(a.dtype).eps * torch.maximum(a.abs(), b.abs())
        for found, value in ((gaps, (a - b).abs()), (noise, size)):
            found.append(value.nan_to_num(0.0, 0.0, 0.0).reshape(rows, -1).double())
    return torch.cat(gaps, 1), torch.cat(noise, 1)


def _judge(near: Tensor, far: Tensor, noise: Tensor) -> Finding | None:
    """In how many rows the gap has gone, and how large it is in those where it stays; None if nothing was seen."""
    if not near.numel():
        return None
    size, place = (near - noise).max(1)
    at = place[:, None]
    jumps = (size > 0) & (near.gather(1, at) >= KEPT * far.gather(1, at))[:, 0]
    seen = (far != 0).any(1) | (near != 0).any(1)
    sizes = near.gather(1, at)[:, 0][jumps].tolist()
    return Finding(int((seen & ~jumps).sum()), sizes) if bool(seen.any()) else None

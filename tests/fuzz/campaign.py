"""Programs by estimators: each estimate beside the exact answer, in standard errors."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import propc

from .exact import Exact, exact
from .generator import generate
from .program import Program, total

# In standard errors. A campaign compares some ten thousand numbers; each that is beyond must be so twice, of new draws.
LIMIT = 4.5
ROWS = 10_000  # of a call; the first and a later one are pooled, as checks belong to the first
CONFIRMING = 4  # times as many calls, where a first look finds something
REPEATS = 150  # of few rows that meet, where the estimator draws
ROUNDING = {torch.float64: 1e-8, torch.float32: 2e-4}  # of the number, and of 1

VERDICTS = ("right", "refused", "warned", "right, warned", "WRONG", "crashed")


@dataclass(frozen=True)
class Way:
    """An estimator in a campaign: what `estimator=` gets, where it fits, and what it promises.

    Args:
        choice: for the sites whose names begin with one of `letters` (all, if empty); "infer" at others.
        exact: no draws at those sites: also right for rare events.
        relaxed: only values, and the gradients of parameters behind all sites, are promised; if it is also `moved`
            not the values.
    """

    choice: Any
    letters: str = ""
    exact: bool = False
    relaxed: bool = False
    moved: bool = False
    kinds: tuple[str, ...] = ("rows", "gaussian", "edge", "meet")

    def fits(self, program: Program) -> bool:
        names = {site[0] for site in program.sites()}
        rare = program.kind == "edge" and not self.exact and program.parameters["a"] not in (0.0, 1.0)
        return program.kind in self.kinds and not rare and (not self.letters or bool(names & set(self.letters)))

    def estimator(self) -> Any:
        if not self.letters:
            return self.choice
        return lambda site: self.choice if site.name[0] in self.letters else "infer"


_ROWS = ("rows",)
WAYS: Mapping[str, Way] = {
    "infer": Way("infer"),
    "infer(budget)": Way(propc.estimator("infer", budget=8), exact=True),
    "rp": Way("rp", "c"),
    "rp(samples)": Way(propc.estimator("rp", samples=3), "c", kinds=_ROWS),
    "lr": Way("lr"),
    "lr(samples)": Way(propc.estimator("lr", samples=3)),
    "lr(moving_average)": Way(propc.estimator("lr", baseline="moving_average"), kinds=_ROWS),
    "rloo": Way("rloo"),
    "tp": Way("tp", "c"),
    "tp(rehearsed)": Way(propc.estimator("tp", weights="rehearsed"), "c", kinds=_ROWS),
    "combine": Way(propc.estimator("combine", estimators=("rp", "lr")), "c", kinds=_ROWS),
    "enumerate": Way("enumerate", "bk", exact=True),
    "local": Way("local", "bk", exact=True),
    "disarm": Way("disarm", "b"),
    "arm": Way("arm", "b", kinds=_ROWS),
    "mvd": Way("mvd", "bkcn", exact=True),
    "st": Way("st", "b", relaxed=True, kinds=_ROWS),
    "st_gumbel": Way("st_gumbel", "b", relaxed=True, kinds=_ROWS),
    "gumbel_rao": Way("gumbel_rao", "b", relaxed=True, kinds=_ROWS),
    "reinmax": Way("reinmax", "b", relaxed=True, kinds=_ROWS),
    "gumbel_softmax": Way("gumbel_softmax", "b", relaxed=True, moved=True, kinds=_ROWS),
    "gs": Way("gs", kinds=("gaussian",)),
    "gs-tp": Way("gs-tp", kinds=("gaussian",)),
    "gr": Way("gr", kinds=("gaussian",)),
}
ALWAYS = ("infer",)  # at every program; of the others `ways` in turn


@dataclass(frozen=True)
class Finding:
    """What came of one estimator at one program."""

    program: Program
    way: str
    verdict: str
    detail: str = ""

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.program.parameters.items())
        head = f"seed {self.program.seed}, {self.way}: {self.verdict}: {self.detail}"
        return f"{head}\n  at {values}, {self.program.dtype}\n" + self.program.text


@dataclass
class Report:
    """All findings of a campaign; as text a table, and the programs of those that matter."""

    findings: list[Finding] = field(default_factory=list)
    programs: int = 0
    seconds: float = 0.0

    def of(self, *verdicts: str) -> list[Finding]:
        return [each for each in self.findings if each.verdict in verdicts]

    def __str__(self) -> str:
        counts: dict[str, Counter[str]] = {}
        for each in self.findings:
            counts.setdefault(each.way, Counter())[each.verdict] += 1
        lines = [f"{'':20}" + "".join(f"{verdict:>15}" for verdict in VERDICTS)]
        lines += [
            f"{way:20}" + "".join(f"{count[verdict]:15}" for verdict in VERDICTS) for way, count in counts.items()
        ]
        lines.append(f"{self.programs} programs, {len(self.findings)} results, {self.seconds:.0f} s")
        return "\n".join([*(f"{each}\n" for each in self.of("WRONG", "crashed")), *lines])


def run(
    seeds: Iterable[int],
    seconds: float = math.inf,
    *,
    ways: Mapping[str, Way] = WAYS,
    each: int = 4,
    backend: str = "eager",
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Report:
    """The campaign: of each seed's program the exact answer, and "infer" and `each` others of `ways` beside it."""
    report, start = Report(), time.perf_counter()
    for seed in seeds:
        report.seconds = time.perf_counter() - start
        if report.seconds > seconds:
            break
        program = generate(seed)
        answer = exact(program)
        report.programs += 1
        for name in _chosen(program, ways, each):
            finding = examine(program, answer, name, ways[name], backend)
            report.findings.append(finding)
            tell(finding)
    report.seconds = time.perf_counter() - start
    return report


def _chosen(program: Program, ways: Mapping[str, Way], each: int) -> list[str]:
    """In turn by the seed, so that all have as many programs."""
    fitting = [name for name, way in ways.items() if way.fits(program)]
    always = [name for name in fitting if name in ALWAYS]
    others = [name for name in fitting if name not in ALWAYS]
    start = program.seed * each % max(len(others), 1)
    return always + (others[start:] + others[:start])[:each]


def examine(program: Program, answer: Exact, name: str, way: Way, backend: str = "eager") -> Finding:
    """One estimator at one program."""
    torch.manual_seed(program.seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            compiled = propc.compile(program.function(propc), estimator=way.estimator(), backend=backend)
            draws = _Draws(program, way)
            draws.take(compiled, 2)
            off = draws.off(answer)
            if off:
                again = _Draws(program, way)
                again.take(compiled, 2 * CONFIRMING)
                off = again.off(answer)
        except propc.PropcError as error:
            return Finding(program, name, "refused", _first_line(error))
        except Exception as error:
            return Finding(program, name, "crashed", f"{type(error).__name__}: {_first_line(error)}")
    said = [str(each.message) for each in caught if issubclass(each.category, propc.PropcWarning)]
    if off:
        return Finding(program, name, "warned" if said else "WRONG", off)
    return Finding(program, name, "right, warned" if said else "right", said[0] if said else "")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@dataclass
class _Draws:
    """Values and gradients, [draws] each; the first is the value."""

    program: Program
    way: Way
    numbers: list[list[Tensor]] = field(default_factory=list)

    def take(self, compiled: Callable[..., Any], calls: int) -> None:
        meet = self.program.kind == "meet"
        for _ in range(REPEATS * calls // 2 if meet and not self.way.exact else calls):
            self.numbers.append(self._all(compiled) if meet else self._rows(compiled))

    def _all(self, compiled: Callable[..., Any]) -> list[Tensor]:
        leaves = self.program.leaves(None)
        loss = total(compiled(*leaves)).sum()
        return [loss.detach().reshape(1), *(each.reshape(1) for each in _gradients(loss, leaves))]

    def _rows(self, compiled: Callable[..., Any]) -> list[Tensor]:
        leaves = self.program.leaves(ROWS)
        cost = total(compiled(*leaves))
        weight = 0.5 + torch.rand_like(cost) if self.program.weighted else torch.ones_like(cost)
        gradients = _gradients((weight * cost).sum(), leaves)
        return [cost.detach(), *(each / weight for each in gradients)]

    def off(self, answer: Exact) -> str:
        """What is not as promised; nothing, if all is."""
        exact_numbers = (answer.value, *answer.gradients)
        errors = (answer.value_error, *answer.gradient_errors)
        found = []
        for name, draws, right, error in zip(
            ("value", *self.program.parameters), zip(*self.numbers), exact_numbers, errors
        ):
            if self._promised(name):
                estimates = torch.cat(draws).double()
                mean = estimates.mean().item()
                deviation = estimates.std().item() / len(estimates) ** 0.5
                tolerance = error + ROUNDING[self.program.dtype] * (1 + abs(right))
                if not abs(mean - right) <= tolerance + LIMIT * deviation:
                    found.append(f"{name}: {mean:.5g} ± {deviation:.2g} for {right:.5g}")
        return "; ".join(found)

    def _promised(self, name: str) -> bool:
        if not self.way.relaxed:
            return True
        return not self.way.moved and (name == "value" or name in self.program.behind)


def _gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if each is None else each for each, leaf in zip(found, leaves)]

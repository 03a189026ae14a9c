"""What the checks cost: a first call beside one without them, and a later call beside one that counts no calls.

    python benchmarks/checks.py [--small] [--check] [--out docs/benchmarks.md]

Each round compiles a program from nothing and makes its first call and reverse pass, with all checks and without:
without those of values (`validate=False`) and without the look for jumps, which has no option. A later call counts
itself where a selection is still looked at again; beside it stands the same call with nothing to look for. Looks at
calls 2, 4, 8, … are hardly in it. One thread, CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import timing
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

import propc
from propc.runtime.checks.continuity import Continuity

FIRST_TARGET = 1.5  # a first call over one without checks
LATER_TARGET = 1.02
LATER_SLACK = 1.5  # on a loaded machine medians of 1.07 were seen
WIDTH = 50
CPU = torch.device("cpu")


def smooth(loc: Tensor) -> Tensor:
    """Two sites, nothing that selects."""
    x = propc.sample(Normal(loc, 0.3), "x")
    return propc.sample(Normal(x.tanh(), 0.3), "y").square()


def jump(loc: Tensor) -> Tensor:
    """A threshold that the draw passes."""
    x = propc.sample(Normal(loc, 0.3), "x")
    return torch.where(x > 1, x**2 + 2, x**2)


def met(loc: Tensor) -> Tensor:
    """A threshold at which both branches meet."""
    x = propc.sample(Normal(loc, 0.3), "x")
    return torch.where(x > 1, (x - 1) ** 2, 0.0)


def far(loc: Tensor) -> Tensor:
    """A threshold that no draw comes near: it stays to be looked at."""
    x = propc.sample(Normal(loc, 0.3), "x")
    return torch.where(x > 50, x**2, x)


def network(loc: Tensor) -> Tensor:
    """Six layers of relu and a threshold behind them."""
    x = propc.sample(Normal(loc[:, None].expand(-1, WIDTH), 0.3), "x")
    weights = torch.linspace(-1, 1, WIDTH * WIDTH).view(WIDTH, WIDTH).sin() / 7
    for _ in range(6):
        x = torch.relu(x @ weights)
    return torch.where(x > 0.01, x, 0.01).sum(1)


def coins(loc: Tensor) -> Tensor:
    """Scores alone."""
    b = propc.sample(Bernoulli(logits=loc), "b")
    return (b - 0.45).square()


PROGRAMS: tuple[Callable[[Tensor], Tensor], ...] = (smooth, jump, met, far, network, coins)


@contextmanager
def no_looks() -> Iterator[None]:
    """No look for jumps."""
    look = Continuity.look
    try:
        Continuity.look = lambda self, leaves: False  # type: ignore[method-assign]
        yield
    finally:
        Continuity.look = look  # type: ignore[method-assign]


@dataclass(frozen=True)
class Result:
    """Of one program: a first call, and a later one, over those without checks."""

    name: str
    first: timing.Ratio
    later: timing.Ratio


def first_call(fn: Callable[[Tensor], Tensor], loc: Tensor) -> None:
    """Compile, run, and go back."""
    propc.compile(fn)(loc).sum().backward()  # type: ignore[no-untyped-call]


def unchecked_first_call(fn: Callable[[Tensor], Tensor], loc: Tensor) -> None:
    """The same without checks."""
    with no_looks():
        propc.compile(fn, validate=False)(loc).sum().backward()  # type: ignore[no-untyped-call]


def later_calls(fn: Callable[[Tensor], Tensor], loc: Tensor) -> dict[str, Callable[[], None]]:
    """A later call as it is, and one that has nothing to look for."""
    steps: dict[str, Callable[[], None]] = {}
    for name in ("checked", "bare"):
        compiled = propc.compile(fn)
        for _ in range(20):
            compiled(loc)
        if name == "bare":
            cache = compiled.compiler.cache
            for key, found in cache.items():
                cache[key] = [replace(each, continuity=None, checks=None) for each in found]
        steps[name] = partial(step, compiled, loc)
    return steps


def step(compiled: Callable[[Tensor], Tensor], loc: Tensor) -> None:
    """A call and its reverse pass."""
    compiled(loc).sum().backward()  # type: ignore[no-untyped-call]


def measure(fn: Callable[[Tensor], Tensor], batch: int, rounds: int) -> Result:
    """Both ratios of one program."""
    loc = torch.full((batch,), 0.8, requires_grad=True)
    clock = timing.Clock.named("cpu", CPU)
    firsts = {"checked": partial(first_call, fn, loc), "bare": partial(unchecked_first_call, fn, loc)}
    first = timing.ratios(timing.interleave(firsts, rounds=rounds, warmup=1, clock=clock), "bare")["checked"]
    steps = later_calls(fn, loc)
    later = timing.ratios(timing.interleave(steps, rounds=4 * rounds, least_ns=5e7, clock=clock), "bare")["checked"]
    return Result(f"{fn.__name__}, B={batch}", first, later)


def bounds(results: list[Result]) -> list[timing.Bound]:
    """Both targets of every program."""
    return [
        bound
        for r in results
        for bound in (
            timing.Bound(f"{r.name}: first call", r.first.median, FIRST_TARGET),
            timing.Bound(f"{r.name}: later call", r.later.median, LATER_TARGET, LATER_SLACK),
        )
    ]


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write the page where asked; the exit status."""
    torch.set_num_threads(1)
    Distribution.set_default_validate_args(True)  # torch's default, whatever the environment says
    batches, rounds = ((16,), 5) if arguments.small else ((16, 1000), 15)
    results = [measure(fn, batch, rounds) for batch in batches for fn in PROGRAMS]
    header = ["with checks over without", "first call", "later call"]
    timing.show([(header, [[r.name, str(r.first), str(r.later)] for r in results])], arguments.out, "checks")
    return timing.check(bounds(results), strict=arguments.check)


def main() -> int:
    """The command line."""
    return run(timing.options("What the checks of a first call and of later ones cost.").parse_args())


if __name__ == "__main__":
    raise SystemExit(main())

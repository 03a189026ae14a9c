"""Time and memory of one training step of total propagation weighted at the parameters of a network.

    python benchmarks/targets.py [--small] [--check] [--out docs/benchmarks.md]

As `step_time.py`: steps are interleaved in one process, and a ratio is taken within a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import memory
import timing
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import propc

DIM, HORIZON = 16, 10
REFERENCE = "propc rp"
AT_PARAMETERS = ("propc tp[net]", "propc tp[net], by signs")
TARGET = 3.0  # over rp, at 34,000 parameters


@dataclass(frozen=True)
class Case:
    """One size: 16 → `width` → 16, which has 33 · width + 16 parameters."""

    batch: int
    width: int
    rounds: int

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return (2 * DIM + 1) * self.width + DIM

    def __str__(self) -> str:
        return f"B={self.batch}, {self.parameters:,} parameters"


FULL = (Case(1000, 16, 101), Case(1000, 256, 31), Case(1000, 1024, 15), Case(100, 1024, 31))
SMALL = (Case(1000, 16, 21), Case(1000, 1024, 5))


class Plain(nn.Linear):
    """A linear layer in terms that propc knows nothing special about."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result."""
        return torch.einsum("bi,oi->bo", x, self.weight) + self.bias


class Rollout(nn.Module):
    """x′ = net(x) + N(0, 0.1²), with a cost at the end."""

    def __init__(self, width: int, layer: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.net = nn.Sequential(layer(DIM, width), nn.Tanh(), layer(width, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """Costs [batch]."""
        for t in range(HORIZON):
            x = propc.sample(Normal(self.net(x), 0.1), f"x{t}")
        return (1 - x).square().sum(-1)


def step(model: nn.Module, estimator: object, x: Tensor) -> Callable[[], None]:
    """A training step without the optimizer."""
    compiled = propc.compile(model, estimator=estimator)

    def run() -> None:
        compiled.zero_grad()
        compiled(x).mean().backward()

    return run


def measure(case: Case, clock: timing.Clock) -> tuple[dict[str, timing.Ratio], dict[str, int]]:
    """Time over `rp`, and bytes at the peak of a step."""
    known, unknown = Rollout(case.width), Rollout(case.width, Plain)
    x, at_net = torch.rand(case.batch, DIM), propc.estimator("tp", target="net")
    steps = {
        REFERENCE: step(known, "rp", x),
        "propc tp": step(known, "tp", x),
        AT_PARAMETERS[0]: step(known, at_net, x),
        AT_PARAMETERS[1]: step(unknown, at_net, x),
    }
    figures = timing.interleave(steps, rounds=case.rounds, clock=clock)
    peaks = {name: memory.peak_bytes(run, torch.device("cpu")) for name, run in steps.items()}
    return timing.ratios(figures, REFERENCE), peaks


def main() -> int:
    """The command line."""
    parser = timing.options("Step time of total propagation at the parameters of a network, over rp.")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu", help="what is timed")
    arguments = parser.parse_args()
    timing.keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = timing.Clock.named(arguments.clock, torch.device("cpu"))
    results = {case: measure(case, clock) for case in (SMALL if arguments.small else FULL)}
    header = [f"step time / {REFERENCE}", *map(str, results)]
    times = [
        [name, *(str(time[name]) for time, _ in results.values())] for name in (REFERENCE, "propc tp", *AT_PARAMETERS)
    ]
    peaks = [
        [f"{name}, peak memory", *(f"{peak[name] / peak[REFERENCE]:.2f}" for _, peak in results.values())]
        for name in ("propc tp", *AT_PARAMETERS)
    ]
    timing.print_table(f"torch {torch.__version__}, cpu, one thread", header, [*times, *peaks])
    if arguments.out:
        timing.replace_section(arguments.out, "targets", timing.markdown(header, [*times, *peaks]))
    bounds = [
        timing.Bound(f"{case}: time of {name} / {REFERENCE}", time[name].median, TARGET)
        for case, (time, _) in results.items()
        for name in AT_PARAMETERS
        if case.parameters > 30_000
    ]
    return timing.check(bounds, strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())

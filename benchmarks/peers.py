"""Time of one training step on the chaotic RNN with Proppo and Storchastic, where they are installed, and with propc.

    python benchmarks/peers.py [--small] [--check] [--out docs/benchmarks.md]

All run in one process over the same reference, plain PyTorch without distribution objects. Importing Storchastic
replaces functions of torch, so it comes last, beside the reference alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec

import candidates
import models
import timing
import torch
from torch.distributions import Normal

__all__ = ["PEERS", "measured", "proppo", "storchastic"]

REFERENCE = "hand rp"
PEERS = {"Proppo": "proppo", "Storchastic": "storch"}  # the modules to import
BACKENDS = ("eager", "inductor")
ABSENT = "not installed"
Size = tuple[int, int, int]  # batch, dimension, horizon
Step = Callable[[], None]
FULL: tuple[Size, ...] = ((10, 2, 10), (1000, 2, 10), (1000, 2, 100), (1000, 500, 10))
SMALL: tuple[Size, ...] = ((1000, 2, 10),)


def installed(peer: str) -> bool:
    """Whether a peer can be imported."""
    return find_spec(PEERS[peer]) is not None


def proppo(given: models.Problem) -> dict[str, Step]:
    """Steps with Proppo's estimators, total propagation weighted at β; none where it is not installed."""
    if not installed("Proppo"):
        return {}
    import proppo
    from proppo.propagators import LRProp, RPProp, TotalProp

    rows = given.beta.reshape(1).expand(len(given.x0), 1)  # one β for each sample, as its weighting asks
    noise = {"dist_class": Normal, "dist_params": lambda x: {"loc": torch.zeros_like(x), "scale": models.SIGMA}}

    def step(propagator: object) -> Step:
        manager = proppo.PropagationManager(default_propagator=propagator)

        def run() -> None:
            given.beta.grad = None
            x = given.x0
            for _ in range(given.horizon):
                x = manager.forward(torch.sigmoid(rows * (x @ given.W)))
            manager.backward(0.5 * (1 - x).square().sum(1, keepdim=True))

        return run

    return {
        "Proppo rp": step(RPProp(**noise)),
        "Proppo lr": step(LRProp(**noise)),
        "Proppo tp[beta]": step(TotalProp(**noise, ivw_target=rows)),
    }


def storchastic(given: models.Problem) -> dict[str, Step]:
    """Steps with Storchastic's estimators; none where it is not installed. From here on torch is not as it was."""
    if not installed("Storchastic"):
        return {}
    import storch

    methods = {
        "rp": storch.method.Reparameterization,
        "lr": partial(storch.method.ScoreFunction, baseline_factory="moving_average"),
    }

    def run(method: Callable[[str], Callable[[Normal], torch.Tensor]]) -> None:
        given.beta.grad = None
        x = storch.denote_independent(given.x0, 0, "batch")
        for t in range(given.horizon):
            x = method(f"x{t}")(Normal(torch.sigmoid(given.beta * (x @ given.W)), models.SIGMA))
        storch.add_cost(0.5 * (1 - x).square().sum(-1), "loss")
        storch.backward()

    return {f"Storchastic {name}": partial(run, method) for name, method in methods.items()}


def measured(
    steps: Mapping[str, Step], given: models.Problem, rounds: int, clock: timing.Clock
) -> dict[str, timing.Ratio]:
    """Time of steps over the reference on the same problem."""
    every = {REFERENCE: models.step(models.direct_rp, given), **steps}
    return timing.ratios(timing.interleave(every, rounds=rounds, warmup=3, clock=clock), REFERENCE)


def before(size: Size, rounds: int, clock: timing.Clock) -> dict[str, timing.Ratio]:
    """Everyone but Storchastic."""
    given = models.problem(*size)
    rollouts = {name: fn for backend in BACKENDS for name, fn in candidates.by_propc(backend).items()}
    steps = {name: models.step(fn, given) for name, fn in rollouts.items()} | proppo(given)
    return measured(steps, given, rounds, clock)


def bounds(results: Mapping[str, Mapping[str, timing.Ratio]]) -> list[timing.Bound]:
    """propc's `tp` at β over Proppo's, on the eager backend."""
    return [
        timing.Bound(f"{case}: time of eager tp[beta] / Proppo's", found["eager tp[beta]"].median / peer.median, 1.0)
        for case, found in results.items()
        if (peer := found.get("Proppo tp[beta]"))
    ]


def main() -> int:
    """The command line."""
    arguments = timing.options("Step time on the chaotic RNN of Proppo, Storchastic and propc.").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = timing.Clock.named("cpu", torch.device("cpu"))
    sizes, rounds = (SMALL, 9) if arguments.small else (FULL, 21)
    results = {"B={} D={} H={}".format(*size): before(size, rounds, clock) for size in sizes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size, found in zip(sizes, results.values()):
            given = models.problem(*size)
            if steps := storchastic(given):
                found |= measured(steps, given, 5, clock)
    header, rows = timing.ratio_table(f"step time / {REFERENCE}", results)
    rows += [[peer, *[ABSENT] * len(results)] for peer in PEERS if not installed(peer)]
    timing.show([(header, rows)], arguments.out, "peers")
    return timing.check(bounds(results), strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())

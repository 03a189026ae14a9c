"""Time of a training step with discrete latents or several samples, over the same estimator by hand.

    python benchmarks/discrete.py [--small] [--check] [--out docs/benchmarks.md] [--peer PYTHON]

The references are in `latents.py`. As in `step_time.py`, steps are interleaved in one process and a ratio is taken
within a round. Where Storchastic is installed, or in another interpreter with `--peer`, the same is done with it, in a
process of its own (`peer.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import latents
import timing
import torch
import workloads
from torch import Tensor
from torch.distributions import Bernoulli, Normal, OneHotCategorical
from workloads import SAMPLES, Workload

import propc

REFERENCE, PLAIN = "by hand", "torch.distributions"
Results = Mapping[Workload, Mapping[str, timing.Ratio]]
Program = Callable[[Any, Tensor], Tensor]
SLACK = 2.5  # short chains are not at their target yet
FLAT = 1.1  # the ratio of a chain over that of one a tenth as long


def vae(model: latents.VAE, x: Tensor) -> Tensor:
    """20×10 classes."""
    q = OneHotCategorical(logits=model.logits(x))
    z = propc.sample(q, "z")
    return model.loss(z, x) + latents.categorical_kl(q.logits)


def coins(model: latents.VAE, x: Tensor) -> Tensor:
    """20 Bernoullis."""
    logits = model.logits(x)
    z = propc.sample(Bernoulli(logits=logits), "z")
    return model.loss(z, x) + latents.bernoulli_kl(logits)


def choice(model: latents.Choice, x: Tensor) -> Tensor:
    """Four choices among ten."""
    return model.loss(propc.sample(OneHotCategorical(logits=model.logits(x)), "z"), x)


def chain(model: latents.Chain, x: Tensor) -> Tensor:
    """Gaussian steps."""
    for t in range(model.horizon):
        x = propc.sample(Normal(model.step(x), latents.SIGMA), f"x{t}")
    return model.loss(x)


PROGRAMS: dict[str, tuple[Program, str, dict[str, Any]]] = {
    "vae, lr K=1": (vae, "lr", {}),
    f"vae, lr K={SAMPLES}": (vae, "lr", {"samples": SAMPLES}),
    "vae, gumbel_softmax": (vae, "gumbel_softmax", {"temperature": latents.TEMPERATURE}),
    "vae, local": (coins, "local", {}),
    "enumerate": (choice, "enumerate", {"budget": 10_000}),
    f"chain, lr K={SAMPLES}": (chain, "lr", {"samples": SAMPLES}),
    f"chain, rp K={SAMPLES}": (chain, "rp", {"samples": SAMPLES}),
}
"""Program, estimator and options of each kind of workload."""


def measure(workload: Workload, clock: timing.Clock) -> dict[str, timing.Ratio]:
    """The steps of propc, and with distribution objects, over that by hand."""
    program, name, options = PROGRAMS[workload.kind]
    model, x = workload.model(), workload.inputs()
    compiled = propc.compile(partial(program, model), estimator=propc.estimator(name, **options))
    steps = {
        REFERENCE: workloads.step(model, partial(workload.by_hand, model, x)),
        "propc": workloads.step(model, partial(compiled, x)),
    }
    if workload.plain is not None:
        steps[PLAIN] = workloads.step(model, partial(workload.plain, model, x))
    return timing.ratios(timing.interleave(steps, rounds=workload.rounds, clock=clock), REFERENCE)


def of_peer(python: Path, small: bool) -> Mapping[str, timing.Ratio]:
    """The peer's ratios by workload, measured by another interpreter; none, with the reason, where it cannot."""
    command = [str(python), str(Path(__file__).with_name("peer.py")), *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"Storchastic is left out: {python} cannot run peer.py ({reason})\n")
        return {}
    return {name: timing.Ratio(*figures) for name, figures in json.loads(done.stdout).items()}


def bounds(results: Results) -> list[timing.Bound]:
    """What each workload should reach, and that long chains cost no more a site than shorter ones."""
    over = {w: found["propc"].median for w, found in results.items()}
    every = [timing.Bound(f"{w}: time of propc / {REFERENCE}", ratio, w.target, SLACK) for w, ratio in over.items()]
    for kind in {w.kind: None for w in results if w.kind.startswith("chain")}:
        lengths = [ratio for w, ratio in over.items() if w.kind == kind]
        every += [timing.Bound(f"{kind}: growth", longer / shorter, FLAT) for shorter, longer in pairwise(lengths)]
    return every


def table(results: Results, peer: Mapping[str, timing.Ratio]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: median time over that by hand, quartiles in brackets."""
    header = [f"step time / {REFERENCE}", "target", "propc", PLAIN, *(["Storchastic"] if peer else [])]
    rows = [
        [str(w), f"{w.target:g}", *(str(found.get(name, "–")) for name in ("propc", PLAIN))]
        + ([str(peer.get(str(w), "–"))] if peer else [])
        for w, found in results.items()
    ]
    return header, rows


def main() -> int:
    """The command line."""
    parser = timing.options("Step time with discrete latents or several samples against the estimators by hand.")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu", help="what is timed")
    ours = Path(sys.executable) if find_spec("storch") else None
    parser.add_argument("--peer", type=Path, metavar="PYTHON", default=ours, help="an interpreter with Storchastic")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="workloads by name, such as 'chain*'")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = timing.Clock.named(arguments.clock, torch.device("cpu"))
    chosen = [
        w for w in (workloads.small() if arguments.small else workloads.full()) if fnmatch(str(w), arguments.only)
    ]
    results = {w: measure(w, clock) for w in chosen}
    peer = of_peer(arguments.peer, arguments.small) if arguments.peer else {}
    timing.show([table(results, peer)], arguments.out, "discrete")
    return timing.check(bounds(results), strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())

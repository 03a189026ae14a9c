"""Steps of `discrete.py` with Storchastic, over the same estimator by hand.

    python benchmarks/peer.py [--small]      prints one JSON object: workload -> [median, low, high]

Importing Storchastic replaces functions of torch, so this runs in a process of its own and without propc:
`discrete.py --peer PYTHON` calls it, where PYTHON is an interpreter that has torch, tabulate and storchastic.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import latents
import storch
import timing
import torch
import workloads
from torch import Tensor, nn
from torch.distributions import Normal, OneHotCategorical

SAMPLES = workloads.SAMPLES
Cost = Callable[[Any, Any], None]


def classes(model: Any, x: Any, method: nn.Module) -> Any:
    """One-hot classes under `method`."""
    q = OneHotCategorical(logits=model.logits(x))
    z = method(q)
    storch.add_cost(model.loss(z, x), "loss")
    return q


def vae(model: latents.VAE, x: Any, method: nn.Module) -> None:
    """Two costs, as propc's program has."""
    q = classes(model, x, method)
    storch.add_cost(latents.categorical_kl(q.logits), "kl")


def chain(model: latents.Chain, x: Any, method: type[nn.Module], **options: Any) -> None:
    """The first site draws all samples, every other one for each of them."""
    x = method("x0", n_samples=SAMPLES, **options)(Normal(model.step(x), latents.SIGMA))
    for t in range(1, model.horizon):
        x = method(f"x{t}", n_samples=1)(Normal(model.step(x), latents.SIGMA))
    storch.add_cost(model.loss(x), "loss")


def costs() -> dict[str, Cost]:
    """What adds the costs of each kind of workload; methods keep state from step to step."""
    methods = storch.method
    of_batch = {"baseline_factory": "batch_average"}  # leave-one-out over the samples
    return {
        "vae, lr K=1": partial(vae, method=methods.ScoreFunction("z", baseline_factory="moving_average")),
        f"vae, lr K={SAMPLES}": partial(vae, method=methods.ScoreFunction("z", n_samples=SAMPLES, **of_batch)),
        "vae, gumbel_softmax": partial(vae, method=methods.GumbelSoftmax("z")),
        "enumerate": partial(classes, method=methods.Expect("z", budget=10_000)),
        f"chain, lr K={SAMPLES}": partial(chain, method=methods.ScoreFunction, **of_batch),
        f"chain, rp K={SAMPLES}": partial(chain, method=methods.Reparameterization),
    }


def step(model: nn.Module, x: Tensor, add: Cost) -> Callable[[], None]:
    """As `workloads.step`."""
    parameters = list(model.parameters())

    def run() -> None:
        for parameter in parameters:
            parameter.grad = None
        add(model, storch.denote_independent(x, 0, "batch"))
        storch.backward()

    return run


def measure(workload: workloads.Workload, add: Cost) -> timing.Ratio:
    """The peer's step over the one by hand."""
    model, x = workload.model(), workload.inputs()
    steps = {"by hand": workloads.step(model, partial(workload.by_hand, model, x)), "peer": step(model, x, add)}
    rounds = max(5, workload.rounds // 10)
    figures = timing.interleave(steps, rounds=rounds, warmup=2, clock=timing.Clock.named("cpu", torch.device("cpu")))
    return timing.ratios(figures, "by hand")["peer"]


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = costs()
    chosen = workloads.small() if "--small" in sys.argv else workloads.full()
    print(json.dumps({str(w): astuple(measure(w, known[w.kind])) for w in chosen if w.kind in known}))


if __name__ == "__main__":
    main()

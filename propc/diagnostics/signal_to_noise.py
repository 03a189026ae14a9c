"""`propc.signal_to_noise`: how much of what a site sends is gradient, and how much is noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from propc.diagnostics.comparison.running_moments import Moments
from propc.diagnostics.comparison.steps import WARMUP, Situation, draw_seeds
from propc.diagnostics.comparison.wrt import chosen, leaves_of
from propc.errors import PropcValueError, message
from propc.ir.graph import PropagationGraph
from propc.runtime.observe.cotangent_probe import Place, Probe


def measured(
    program: Any, args: Sequence[Any], kwargs: Mapping[str, Any], repeats: int, seed: int = 0
) -> dict[str, float]:
    """The ratios of a compiled program's sites."""
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 2:
        raise PropcValueError(message(f"{repeats!r} steps are too few for a variance", "Take two or more."))
    probed, probe = program.with_estimator(program._compiler().options.estimator), Probe()
    probed._compiler().probe = probe
    graph: PropagationGraph = probed.graph(*args, **kwargs)
    leaves = leaves_of(graph, probed._owner(), args, kwargs)
    situation = Situation.of(graph, leaves, chosen(leaves, None), args, kwargs)
    found: dict[Place, Moments] = {}
    with situation.undisturbed():
        for index, number in enumerate(draw_seeds(WARMUP + repeats, seed)):
            situation.seed(number)
            situation.gradients(probed)
            situation.written.put_back()
            heard = probe.take()
            if index >= WARMUP:
                _add(found, heard, index - WARMUP)
    senders = {site: [found[place] for place in found if place[0] == site] for site, _ in found}
    return {site.name: _ratio(senders[site.name]) for site in graph.sites if site.name in senders}


def _add(found: dict[Place, Moments], heard: Mapping[Place, Any], before: int) -> None:
    """Add what was heard in a step; what was not is zero."""
    for place, cotangent in heard.items():
        if place not in found:
            found[place] = Moments.like(cotangent, before)
    for place, moments in found.items():
        moments.add(heard.get(place))


def _ratio(sent: Sequence[Moments]) -> float:
    noise = sum(float(moments.variance.sum()) for moments in sent)
    square = sum(float(moments.mean.square().sum()) for moments in sent)
    if not noise:
        return math.inf if square else 0.0
    return max(square - noise / sent[0].count, 0.0) / noise

"""TD(λ): eligibility traces are messages that a node keeps for the next step.

Prediction on the random walk with 19 states: start in the middle, step left or right, -1 at the left end, +1 at the
right end. The loss of a step is ½(target - value)². Its cotangent at the value is minus the TD error, which the node
there (`Value`) sends to the weights as a message of its own, and hands on 1 as cotangent: so ∇value arrives at the
weights. The node there (`Traces`) adds it to the trace that it has kept from the step before, and passes on
error × trace, the gradient of TD(λ). How much of the trace stays is told to it, forward, by a third node.
All methods and repetitions run as rows of one batch; training is `loss.backward()` and `torch.optim.SGD`.

Sutton and Barto, "Reinforcement Learning: An Introduction", second edition (2018), section 12.2; the error is that
of figure 12.6: root mean square over the states, mean over the first ten episodes and all repetitions.

Run it: `python examples/messages/td_lambda.py`, options: `--help`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from shared import parser, show, write_graph, write_results
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

import propc

STATES = 19
TRUTH = torch.linspace(-1, 1, STATES + 2, dtype=torch.float64)[1:-1]
ERROR = propc.Field("error", shape=("batch",))  # cotangent on the value: minus the TD error, times the step size
DECAY = propc.Field("decay", shape=("batch",))  # share of the trace that stays: γλ, or 0 where an episode begins
TRACE = propc.Field("trace", shape=("batch", STATES))


@dataclass(frozen=True)
class Decay(propc.Propagator):
    """Tells the weights how much of the trace stays."""

    sends = (DECAY,)
    forward_targets = "weights"

    def forward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return propc.Message(decay=node.value)


@dataclass(frozen=True)
class Value(propc.Propagator):
    """At the value: the cotangent goes to the weights as it is, and 1 goes on in its place."""

    sends = (ERROR,)
    targets = "weights"

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return propc.Message(grad=torch.ones_like(message.grad), error=message.grad)


@dataclass(frozen=True)
class Traces(propc.Propagator):
    """At the weights: trace = decay × trace + ∇value, gradient = error × trace."""

    keeps = (TRACE,)

    def forward(self, node: propc.NodeView, message: propc.Message) -> None:
        node.memory.faded = message.decay[:, None] * message.get("trace", torch.zeros_like(node.value))

    def backward(self, node: propc.NodeView, message: propc.Message) -> list[propc.Message]:
        trace = node.memory.faded + message.grad
        return [propc.Message(grad=message.error[:, None] * trace), propc.Message(trace=trace).to(propc.SELF)]


def td_loss(weights: Tensor, decay: Tensor, now: Tensor, then: Tensor, reward: Tensor) -> Tensor:
    """Half the squared TD error of a step, [batch].

    Args:
        weights: of a linear value, [batch, 19].
        decay: share of the trace that stays, [batch].
        now: features of the state, [batch, 19].
        then: features of the next one, [batch, 19]; zeros at an end.
        reward: of the step, [batch].
    """
    propc.node(decay, "decay", Decay())
    weights = propc.node(weights, "weights", Traces())
    value = propc.node((weights * now).sum(-1), "value", Value())
    target = reward + (weights.detach() * then).sum(-1)
    return 0.5 * (target - value).square()

"""Small programs whose text, picture and table are in tests/golden/. A line more here changes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence
from torch.nn.functional import softplus

import propc
from propc.ir.graph import PropagationGraph


def rollout(beta: Tensor, x0: Tensor, W: Tensor, horizon: int) -> Tensor:
    x = x0
    for t in range(horizon):
        x = propc.sample(Normal(torch.sigmoid(beta * (x @ W)), 0.001), name=f"x{t}")
    return 0.5 * (1 - x).square().sum(-1)


def rewards(theta: Tensor, state: Tensor, horizon: int) -> Tensor:
    total: Any = 0
    for t in range(horizon):
        action = propc.sample(Bernoulli(logits=theta * state), f"a{t}")
        state = propc.sample(Normal(state + action - 0.5, 0.1), f"s{t}")
        total = total + propc.cost(-state.square(), f"r{t}")
    return total


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.loc, self.log_scale = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 2)
        self.decode = nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encode(x))
        q = Normal(self.loc(h), self.log_scale(h).exp())
        z = propc.sample(Independent(q, 1), "z")
        prior = Normal(torch.zeros(()), torch.ones(()))
        likelihood = Independent(Bernoulli(logits=self.decode(z)), 1)
        return kl_divergence(q, prior).sum(-1) + propc.cost(-likelihood.log_prob(x), "nll")


def square(z: Tensor) -> Tensor:
    return torch.as_tensor(z.detach().numpy() ** 2)


def mixture(w: Tensor, x: Tensor) -> Tensor:
    hidden = propc.node(torch.tanh(x @ w), "hidden")
    z = propc.sample(Normal(hidden, 1.0), "z")
    k = propc.sample(Categorical(logits=hidden * z.detach() + w.sum()), "k")
    u = propc.sample(Normal(z.sum(-1) + k, softplus(w.sum())), "u")
    y = propc.sample(Normal(u, softplus(w.sum())), "y")
    simulated = propc.cost(propc.opaque(square)(z).sum(-1), "simulated")
    return simulated + (y - 1).square()


def rollout_graph(horizon: int, estimator: Any = "tp") -> PropagationGraph:
    beta = torch.tensor(2.4, requires_grad=True)
    compiled = propc.compile(rollout, estimator=estimator)
    return compiled.graph(beta, torch.zeros(100, 4), torch.eye(4), horizon=horizon)


def rewards_graph(horizon: int) -> PropagationGraph:
    theta = torch.tensor(0.5, requires_grad=True)
    return propc.compile(rewards, estimator="lr").graph(theta, torch.zeros(32), horizon=horizon)


def autoencoder_graph() -> PropagationGraph:
    return propc.compile(Autoencoder(), estimator="rp").graph(torch.zeros(16, 6))


def mixture_graph() -> PropagationGraph:
    estimators = {"z": "lr", "k": "lr", "u": "tp", "y": "rp"}
    w = torch.zeros(3, 3, requires_grad=True)
    return propc.compile(mixture, estimator=estimators).graph(w, torch.zeros(20, 3))


def clusters(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    k = propc.sample(Categorical(logits=x @ w), "k")
    z = propc.sample(Normal(w[:, 0][k], softplus(w.sum())), "z")
    a = propc.sample(Normal(z.detach(), 1.0), "a")
    return propc.cost((z - x[:, 0]).square(), "far") + propc.cost(a * k, "near"), k.to(z.dtype)


def plates_graph() -> PropagationGraph:
    estimators = {"k": "enumerate", "z": propc.estimator("lr", samples=10, chunk=5), "a": "rp"}
    w = torch.ones(3, 3, requires_grad=True)
    return propc.compile(clusters, estimator=estimators).graph(w, torch.zeros(20, 3))


GRAPHS = {
    "plates": plates_graph,
    "rollout": lambda: rollout_graph(3, propc.estimator("tp", target="beta")),
    "rewards": lambda: rewards_graph(3),
    "autoencoder": autoencoder_graph,
    "mixture": mixture_graph,
}


class Tell(propc.Propagator):
    """Hands cotangents on, and tells others of it: nodes further back, nodes ahead, and itself at the next call."""

    sends = (propc.Field("size", "list"), propc.Field("step", "replace", shape=()))
    keeps = (propc.Field("count"),)

    def __init__(self, back: Any = None, on: Any = None) -> None:
        self.targets, self.forward_targets = back, on

    def forward(self, node: propc.NodeView, message: propc.Message) -> list[propc.Message]:
        count = message.get("count", torch.zeros(()))
        return [propc.Message(step=count), propc.Message(count=count + 1).to(propc.SELF)]

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return message.replace(size=message.grad.norm()) if "grad" in message else message


def messages(theta: Tensor, x: Tensor) -> Tensor:
    h = propc.node(torch.tanh(theta * x), "h", propagator=Tell(on=["late", "r*"]))
    a = propc.sample(Bernoulli(logits=h), "a")
    z = propc.sample(Normal(propc.node(h + a, "mean", propagator="clip"), 1.0), "z")
    late = propc.node(z * h, "late", propagator=Tell(back=[2, "theta"]))
    r1 = propc.cost(torch.sin(z), "r1", propagator="loss")
    return r1 + propc.cost(late.square(), "r2", propagator=propc.propagators.Sequence("skip", "loss"))


def messages_graph() -> PropagationGraph:
    theta = torch.tensor(0.5, requires_grad=True)
    return propc.compile(messages, estimator={"a": "lr", "z": "tp"}).graph(theta, torch.zeros(20))


GRAPHS["messages"] = messages_graph


def explored(w: Tensor, x: Tensor) -> Tensor:
    seen = torch.tanh(x @ w)
    z = propc.sample(Bernoulli(logits=seen), "z")
    k = propc.sample(Categorical(logits=z @ w), "k")
    y = propc.sample(Normal((z * seen.square()).sum(-1), 1.0), "y")
    return propc.cost((y - k).square(), "error") + propc.cost(z.sum(-1), "count") + propc.cost(w.sum() + 0 * y, "flat")


def alternatives_graph() -> PropagationGraph:
    estimators = {"z": "local", "k": "enumerate", "y": "lr"}
    w = torch.ones(3, 3, requires_grad=True)
    return propc.compile(explored, estimator=estimators).graph(w, torch.zeros(20, 3))


GRAPHS["alternatives"] = alternatives_graph


def observations(theta: Tensor, x: Tensor) -> Tensor:
    scale = propc.sample(Normal(theta[:1].expand(len(x), 1), 1.0), "scale")
    with propc.plate("data", dim=1):
        z = propc.sample(Bernoulli(logits=theta + scale.expand(x.shape)), "z")
        seen = propc.opaque(square)(z)
        loss = propc.cost((z * scale - x).square() + seen, "loss")
    return loss.sum(1) + scale.square().squeeze(1)


def data_graph() -> PropagationGraph:
    theta = torch.zeros(5, requires_grad=True)
    return propc.compile(observations, estimator=propc.estimator("lr", samples=3)).graph(theta, torch.zeros(20, 5))


GRAPHS["data"] = data_graph

"""A propagator, to copy: rename it, say what it sends and what it does, and check it against plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

import propc
from propc import Field, Message, NodeView

NORM = Field("norm", shape=())  # a field of your own: its name, how two of them merge, its shape


@propc.register_propagator("mine")
class MyPropagator(propc.Propagator):
    """Halves the cotangent on its node, and tells the node below how long it was."""

    sends = (propc.messages.GRAD, NORM)
    targets = propc.PARENTS  # or a name, a pattern, a kind, a number

    def forward(self, node: NodeView, message: Message) -> Message:
        """The node's value is known; keep what `backward` needs."""
        node.memory.size = node.value.shape[0]
        return message

    def backward(self, node: NodeView, message: Message) -> Message:
        """What arrived is one message; what is returned goes on."""
        return message.replace(grad=0.5 * message.grad, norm=message.grad.norm() * node.memory.size)


@propc.compile
def program(x: Tensor, weight: Tensor) -> Tensor:
    """Two layers with a node behind each."""
    hidden = propc.node(torch.tanh(x @ weight), "below", propagator="mine")
    return propc.node(hidden @ weight, "above", propagator="mine").square().sum(-1)


def check() -> None:
    """The gradient against plain PyTorch with the same factors."""
    torch.manual_seed(0)
    x, weight = torch.randn(8, 3), torch.randn(3, 3, requires_grad=True)
    (found,) = torch.autograd.grad(program(x, weight).sum(), weight)
    hidden = torch.tanh(x @ weight)
    above = 2 * (hidden @ weight).detach() * 0.5
    by_hand = torch.autograd.grad(hidden, weight, 0.5 * above @ weight.detach().T)[0] + hidden.detach().T @ above
    assert torch.allclose(found, by_hand, atol=1e-5)
    result = program.propagate("backward", Message(grad=1.0), x, weight)
    assert result.messages["below"].norm > 0  # nobody below takes it: handed back


if __name__ == "__main__":
    check()

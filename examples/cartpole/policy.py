"""The policy: a linear law and radial basis functions of the observation, saturated at the largest force."""

import torch
from torch import Tensor, nn

from cartpole.system import FORCE

SCALE = (1.0, 2.0, 0.7, 0.7, 4.0)  # usual size of position, velocity, sine, cosine and spin


class Policy(nn.Module):
    """Linear feedback, which can hold the pole, and `units` Gaussian bumps, which can bend it; all is learned."""

    def __init__(self, units: int = 50, width: float = 2.0):
        super().__init__()
        angle = 2 * torch.randn(units)
        position, velocity, spin = torch.randn(3, units) * torch.tensor([[0.5], [1.0], [4.0]])
        centers = torch.stack([position, velocity, angle.sin(), angle.cos(), spin], 1)
        self.log_width = nn.Parameter((width * torch.tensor(SCALE)).log())  # [5]
        self.centers = nn.Parameter(centers / self.log_width.detach().exp())  # [units, 5], in widths
        self.weights = nn.Parameter(0.1 * torch.randn(units, 1))
        self.gains = nn.Parameter(torch.zeros(5, 1))
        self.register_buffer("scale", torch.tensor(SCALE))

    def forward(self, seen: Tensor) -> Tensor:
        """Observations [B, 5] to forces [B, 1]."""
        x = seen / self.log_width.exp()
        far = x.square().sum(1, keepdim=True) + self.centers.square().sum(1)
        bumps = torch.exp(x @ self.centers.T - 0.5 * far)  # exp(-½ |x - center|²)
        return FORCE * torch.tanh(bumps @ self.weights + (seen / self.scale) @ self.gains)


def random_policy(seen: Tensor) -> Tensor:
    """Uniform forces, for the first episodes."""
    return FORCE * (2 * torch.rand(len(seen), 1) - 1)

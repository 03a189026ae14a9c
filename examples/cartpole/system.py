"""The real system: a cart that slides on a rail and a pole that hangs from it, to be swung up.

A state is (position of the cart, its velocity, angle of the pole, its velocity), in SI units; the
pole hangs down at angle 0 and stands upright at angle π. An action is the force on the cart.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FORCE = 10.0  # N, the most that the motor gives
GRAVITY = 9.82
CART, POLE = 0.5, 0.1  # kg; the pole's mass is at its tip
LENGTH = 1.0  # m
FRICTION = 0.1  # N s / m, of the cart on its rail
PERIOD = 0.08  # s from one action to the next
SUBSTEPS = 10  # of the integration, in a period
START_STD = 0.1  # of every coordinate
NOISE_STD = (0.01, 0.05, 0.01, 0.05)  # of what is added to the state after a period
COST_WIDTH = 1.5  # m


class Episodes(NamedTuple):
    """Episodes of T steps run side by side: states [T + 1, episodes, 4], actions [T, episodes, 1]."""

    states: Tensor
    actions: Tensor


def start(episodes: int) -> Tensor:
    """States near rest with the pole down, shape [episodes, 4]."""
    return START_STD * torch.randn(episodes, 4)


def step(state: Tensor, action: Tensor) -> Tensor:
    """The states [B, 4] one period later: semi-implicit Euler, then noise."""
    position, velocity, angle, spin = state.unbind(-1)
    force = action.squeeze(-1)
    dt = PERIOD / SUBSTEPS
    for _ in range(SUBSTEPS):
        sin, cos = angle.sin(), angle.cos()
        pull = POLE * sin * (LENGTH * spin.square() + GRAVITY * cos)
        acceleration = (force - FRICTION * velocity + pull) / (CART + POLE * sin.square())
        velocity = velocity + dt * acceleration
        spin = spin - dt * (acceleration * cos + GRAVITY * sin) / LENGTH
        position = position + dt * velocity
        angle = angle + dt * spin
    after = torch.stack([position, velocity, angle, spin], -1)
    return after + torch.tensor(NOISE_STD) * torch.randn_like(after)


def observe(state: Tensor) -> Tensor:
    """What models and policies see, [B, 5]: the angle as its sine and cosine."""
    position, velocity, angle, spin = state.split(1, -1)
    return torch.cat([position, velocity, angle.sin(), angle.cos(), spin], -1)


def tip_distance(state: Tensor) -> Tensor:
    """Squared distance of the pole's tip from its target, upright above the middle of the rail."""
    across = state[..., 0] + LENGTH * state[..., 2].sin()
    below = LENGTH * (1 + state[..., 2].cos())
    return across.square() + below.square()


def cost(state: Tensor) -> Tensor:
    """The saturating cost of PILCO (Deisenroth & Rasmussen 2011), in [0, 1], one for each row."""
    return 1 - torch.exp(-tip_distance(state) / (2 * COST_WIDTH**2))


@torch.no_grad()
def run(policy: Callable[[Tensor], Tensor], episodes: int, steps: int) -> Episodes:
    """Let a policy, observations [B, 5] to actions [B, 1], control the real system."""
    states, actions = [start(episodes)], []
    for _ in range(steps):
        actions.append(policy(observe(states[-1])))
        states.append(step(states[-1], actions[-1]))
    return Episodes(torch.stack(states), torch.stack(actions))

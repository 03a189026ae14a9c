"""The exact gradient of the chaotic RNN, by quadrature instead of sampling.

The weights have rank one: x W = u·(5, 25) with u = x2 - x1, so that the two neurons follow a
one-dimensional chain, u' = g(u) + N(0, 2 sigma²) with g(u) = s(25 beta u) - s(5 beta u). The
expected cost to come, as a function of u, is computed backwards in time on a fine grid, and its
derivative in beta along with it.
"""

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SIGMA = 0.001  # of the activation noise
START = 0.2  # x2 - x1 of the initial state
WIDTH = SIGMA * 2**0.5  # standard deviation of u around g(u)
GRID, STEP = np.linspace(-1.02, 1.02, 2**18, retstep=True)  # WIDTH is 182 steps


def exact_gradients(beta: float, horizons: Collection[int]) -> dict[int, float]:
    """The derivative in `beta` of the expected loss after each of `horizons` steps."""
    low, high = sigmoid(5 * beta * GRID), sigmoid(25 * beta * GRID)
    low_slope, high_slope = low * (1 - low), high * (1 - high)  # of the sigmoid, at 5 beta u and 25 beta u
    at_image = interpolation(high - low)
    image_in_beta = GRID * (25 * high_slope - 5 * low_slope)

    # After the last step; the variance of its noise adds a constant, which has no derivative.
    cost = 0.5 * ((1 - low) ** 2 + (1 - high) ** 2)
    in_beta = -GRID * (5 * (1 - low) * low_slope + 25 * (1 - high) * high_slope)
    found = {}
    for horizon in range(1, max(horizons) + 1):
        if horizon in horizons:
            found[horizon] = float(np.interp(START, GRID, in_beta))
        mean, mean_in_beta = smoothed(cost), smoothed(in_beta)  # over the noise of a step
        cost = at_image(mean)
        in_beta = at_image(np.gradient(mean, STEP)) * image_in_beta + at_image(mean_in_beta)
    return found


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z))."""
    return np.asarray(1 / (1 + np.exp(-z)))


def interpolation(places: Array) -> Callable[[Array], Array]:
    """Linear interpolation, at fixed places, of functions given on the grid."""
    position = (places - GRID[0]) / STEP
    left = position.astype(np.int64)
    share = position - left
    return lambda values: (1 - share) * values[left] + share * values[left + 1]


def smoothed(values: Array) -> Array:
    """The expectation over u ~ N(m, WIDTH²) of a function on the grid, for every m on the grid."""
    padded = np.pad(values, len(values) // 2, mode="edge")
    frequency = 2 * np.pi * np.fft.rfftfreq(len(padded), STEP)
    response = np.exp(-0.5 * (WIDTH * frequency) ** 2)
    return np.asarray(np.fft.irfft(np.fft.rfft(padded) * response, len(padded))[len(values) // 2 : -len(values) // 2])

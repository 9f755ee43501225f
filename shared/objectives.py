"""Landscapes with closed-form gradients, and the thresholds that follow from them.

Gradient descent on a landscape that curves with constant ``curvature`` multiplies the
distance to the minimum by ``1 - learning_rate * curvature`` at each step. Everything
the first chapters predict (when a stop test fires, which learning rate is too large)
follows from that one factor (Nocedal and Wright 2006, section 3.3).
"""

import math

import torch
from scipy.optimize import brentq

# --------------------------------------------------------------------------------------
# Gradient descent on constant curvature
# --------------------------------------------------------------------------------------


def contraction(learning_rate: float, curvature: float) -> float:
    """Return the factor by which one step shrinks the distance to the minimum.

    Below 1 the descent converges, at 1 it oscillates forever, above 1 it diverges.

    Args:
        learning_rate: step size, any sign.
        curvature: second derivative along the direction of travel, above 0.

    Raises:
        ValueError: if ``curvature`` is not above 0.
    """
    if not curvature > 0:
        raise ValueError(f"curvature must be above 0, not {curvature}")
    return abs(1 - learning_rate * curvature)


def largest_stable_learning_rate(curvature: float) -> float:
    """Return 2 / curvature: from this learning rate on, descent no longer converges.

    Args:
        curvature: largest second derivative (largest Hessian eigenvalue), above 0.

    Raises:
        ValueError: if ``curvature`` is not above 0.
    """
    if not curvature > 0:
        raise ValueError(f"curvature must be above 0, not {curvature}")
    return 2 / curvature


def steps_until_gradient_below(
    tolerance: float, first_gradient: float, rate: float
) -> float:
    """Return the first step whose gradient ``|g0| rate^k`` is below ``tolerance``.

    Args:
        tolerance: stop when the size of the gradient is below this; above 0.
        first_gradient: gradient at step 0, any sign.
        rate: factor per step, as returned by `contraction`; at least 0.

    Returns:
        A whole number of steps as a float, or infinity if it never happens.

    Raises:
        ValueError: if ``tolerance`` is not above 0 or ``rate`` is below 0.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, not {tolerance}")
    if not rate >= 0:
        raise ValueError(f"rate must be at least 0, not {rate}")
    if abs(first_gradient) < tolerance:
        return 0.0
    if rate >= 1:
        return math.inf
    if rate == 0:
        return 1.0
    # |g0| rate^k < tolerance, strictly: the first whole number above the root.
    root = math.log(tolerance / abs(first_gradient)) / math.log(rate)
    steps = math.floor(root)
    # Next to a whole number the root may be rounded to its other side.
    while steps < root + 1 and not abs(first_gradient) * rate**steps < tolerance:
        steps += 1
    return float(steps)


# --------------------------------------------------------------------------------------
# Rastrigin: one global minimum at 0, a local one near every other whole number
# --------------------------------------------------------------------------------------

RASTRIGIN_AMPLITUDE = 10.0
RASTRIGIN_BOX = 5.12
"""The usual search box is [-5.12, 5.12] in each coordinate."""


def rastrigin(x: torch.Tensor) -> torch.Tensor:
    """Return Rastrigin's function, summed over the last dimension.

    ``sum(x^2 + 10 (1 - cos(2 pi x)))``, the minimum 0 at the origin.

    Args:
        x: points, shape (..., dimensions).

    Returns:
        Values, shape (...).
    """
    return (x**2 + RASTRIGIN_AMPLITUDE * (1 - torch.cos(2 * math.pi * x))).sum(-1)


def rastrigin_gradient(x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of `rastrigin`, same shape as ``x``."""
    return 2 * x + 2 * math.pi * RASTRIGIN_AMPLITUDE * torch.sin(2 * math.pi * x)


def rastrigin_curvature(x: float) -> float:
    """Return the second derivative of one-dimensional `rastrigin` at ``x``."""
    return 2 + 4 * math.pi**2 * RASTRIGIN_AMPLITUDE * math.cos(2 * math.pi * x)


def rastrigin_basin_edge() -> float:
    """Return the hilltop between the global minimum and its neighbor, near 0.5025.

    Small steps from a start inside ``|x| <`` this edge end in the global minimum.
    """

    def gradient(x: float) -> float:
        return 2 * x + 2 * math.pi * RASTRIGIN_AMPLITUDE * math.sin(2 * math.pi * x)

    return float(brentq(gradient, 0.4, 0.6, xtol=1e-14))


# --------------------------------------------------------------------------------------
# Himmelblau: four minima, all of value 0, each with a curvature of its own
# --------------------------------------------------------------------------------------


def himmelblau(xy: torch.Tensor) -> torch.Tensor:
    """Return Himmelblau's function ``(x^2 + y - 11)^2 + (x + y^2 - 7)^2``.

    Args:
        xy: points, shape (..., 2).

    Returns:
        Values, shape (...).
    """
    x, y = xy[..., 0], xy[..., 1]
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def himmelblau_gradient(xy: torch.Tensor) -> torch.Tensor:
    """Return the gradient of `himmelblau`, same shape as ``xy``."""
    x, y = xy[..., 0], xy[..., 1]
    first, second = x**2 + y - 11, x + y**2 - 7
    return torch.stack((4 * x * first + 2 * second, 2 * first + 4 * y * second), -1)


def himmelblau_hessian(xy: torch.Tensor) -> torch.Tensor:
    """Return the Hessian of `himmelblau`, shape (..., 2, 2)."""
    x, y = xy[..., 0], xy[..., 1]
    xx = 12 * x**2 + 4 * y - 42
    yy = 12 * y**2 + 4 * x - 26
    xy_term = 4 * (x + y)
    return torch.stack(
        (torch.stack((xx, xy_term), -1), torch.stack((xy_term, yy), -1)), -2
    )


def himmelblau_minima() -> torch.Tensor:
    """Return the four minima in float64, shape (4, 2), polished by Newton's method."""
    near = ((3.0, 2.0), (-2.8, 3.1), (-3.8, -3.3), (3.6, -1.8))
    xy = torch.tensor(near, dtype=torch.float64)
    for _ in range(20):
        step = torch.linalg.solve(himmelblau_hessian(xy), himmelblau_gradient(xy))
        xy = xy - step
    return xy

"""What a wide random network does to a gradient, in closed form.

In a wide network with random weights each pre-activation is close to a normal variable
of variance ``q``. Layer by layer ``q`` settles at a fixed point, and there the norm of
the gradient changes by the same factor ``sqrt(chi)`` per layer, with
``chi = width * weight_variance * E[activation'(sqrt(q) z)^2]``
(Poole et al. 2016; Schoenholz et al. 2017).
"""

import math

import torch

from shared.models import ACTIVATIONS, weight_and_bias_variance


def _activation_on_grid(
    activation: str, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the activation's values and derivatives at the points ``z``."""
    z = z.clone().requires_grad_()
    value = ACTIVATIONS[activation]()(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def gradient_ratio_per_layer(
    activation: str, initialization: str, width: int, layers: int = 200
) -> float:
    """Return ``sqrt(chi)``: gradient norm of a layer over that of the next one.

    Below 1 the gradient shrinks toward the input, above 1 it grows. This is the ratio
    for pre-activations; for weights it is the same once the size of the forward signal
    has settled, some layers behind the input.

    Args:
        activation: a key of `shared.models.ACTIVATIONS`.
        initialization: one of `shared.models.INITIALIZATIONS`.
        width: units in each hidden layer.
        layers: how often the variance is passed on before it counts as settled.

    Raises:
        ValueError: if a name is not known or a size is below 1.
    """
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation must be one of {known}, not {activation!r}")
    if layers < 1:
        raise ValueError(f"layers must be at least 1, not {layers}")
    weight_variance, bias_variance = weight_and_bias_variance(
        initialization, width, width
    )
    # The trapezoid rule converges fast for smooth functions. The kink of ReLU, which
    # spoils Gauss-Hermite quadrature, costs it nothing halfway between two points:
    # hence an even number of them.
    z = torch.linspace(-10, 10, 20_000, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1.0
    for _ in range(layers):
        value, _ = _activation_on_grid(activation, math.sqrt(variance) * z)
        mean_square = torch.trapezoid(value**2 * density, z).item()
        variance = width * weight_variance * mean_square + bias_variance
    _, slope = _activation_on_grid(activation, math.sqrt(variance) * z)
    mean_square_slope = torch.trapezoid(slope**2 * density, z).item()
    return math.sqrt(width * weight_variance * mean_square_slope)


def depth_where_gradient_falls_below(
    threshold: float, gradient_at_depth_1: float, ratio: float
) -> float:
    """Return the depth at which ``gradient_at_depth_1 * ratio^(depth-1)`` passes.

    Args:
        threshold: for example the smallest normal float32, about 1.18e-38.
        gradient_at_depth_1: size of the gradient with one hidden layer, above 0.
        ratio: factor per layer, in (0, 1).

    Raises:
        ValueError: if a value is not as above.
    """
    if not (threshold > 0 and gradient_at_depth_1 > 0):
        raise ValueError(
            "threshold and gradient_at_depth_1 must be above 0, "
            f"not {threshold} and {gradient_at_depth_1}"
        )
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be in (0, 1), not {ratio}")
    return 1 + math.log(threshold / gradient_at_depth_1) / math.log(ratio)

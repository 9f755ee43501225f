"""Mean-field ratios against exact values, numerical integrals and a wide network."""

import math

import pytest
import torch
from scipy.integrate import quad

from shared.mean_field import (
    depth_where_gradient_falls_below,
    gradient_ratio_per_layer,
)
from shared.models import deep_network
from shared.probes import ratio_per_layer


@pytest.mark.parametrize(
    ("initialization", "chi"),
    # Half of the units of a ReLU layer pass the gradient on, unchanged.
    [("he", 1.0), ("xavier", 1 / 2), ("xavier4", 16 / 2), ("default", 1 / 6)],
)
@pytest.mark.parametrize("width", [8, 100])
def test_relu_has_an_exact_ratio(initialization: str, chi: float, width: int) -> None:
    found = gradient_ratio_per_layer("relu", initialization, width, layers=20)
    assert found == pytest.approx(math.sqrt(chi), rel=1e-6)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def normal_mean(function: object, deviation: float) -> float:
    """Return the mean of ``function(deviation z)`` over a standard normal ``z``."""
    return quad(
        lambda z: function(deviation * z) * math.exp(-z * z / 2), -12, 12, limit=200
    )[0] / math.sqrt(2 * math.pi)


FUNCTIONS = {
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z))),
    "tanh": (math.tanh, lambda z: 1 / math.cosh(z) ** 2),
}


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize(
    ("initialization", "weight_power", "bias"),
    # Width times the weight's variance, and the bias's variance, for width 30.
    [("default", 1 / 3, 1 / 90), ("xavier", 1.0, 0.0), ("he", 2.0, 0.0)],
)
def test_smooth_activations_match_an_integral(
    activation: str, initialization: str, weight_power: float, bias: float
) -> None:
    value, slope = FUNCTIONS[activation]
    variance = 1.0
    for _ in range(15):
        square = normal_mean(lambda h: value(h) ** 2, math.sqrt(variance))
        variance = weight_power * square + bias
    chi = weight_power * normal_mean(lambda h: slope(h) ** 2, math.sqrt(variance))
    found = gradient_ratio_per_layer(activation, initialization, 30, layers=15)
    assert found == pytest.approx(math.sqrt(chi), rel=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_wide_network_agrees(activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    network = deep_network(
        8, activation, generator=generator, inputs=800, width=800, dtype=torch.float64
    )
    x = torch.randn(16, 800, generator=generator, dtype=torch.float64)
    pull = torch.randn(16, 10, generator=generator, dtype=torch.float64)
    sums: list[torch.Tensor] = []
    for block in network.blocks:
        block.linear.register_forward_hook(lambda _, __, output: sums.append(output))
    loss = (network(x) * pull).sum()
    norms = [g.norm().item() for g in torch.autograd.grad(loss, sums)]
    # The first layers and the last one have not settled.
    measured = ratio_per_layer(norms[2:7])
    predicted = gradient_ratio_per_layer(activation, "default", 800)
    assert measured == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": "swish"}, "activation must be one of sigmoid.*'swish'"),
        ({"initialization": "lecun"}, "initialization must be one of.*'lecun'"),
        ({"width": 0}, "0"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
    ],
)
def test_refusals(changes: dict[str, object], words: str) -> None:
    arguments = {"activation": "relu", "initialization": "he", "width": 8} | changes
    with pytest.raises(ValueError, match=words):
        gradient_ratio_per_layer(**arguments)


@pytest.mark.parametrize("depth", [1, 7, 44.5])
def test_depth_inverts_the_law(depth: float) -> None:
    threshold = 0.02 * 0.14 ** (depth - 1)
    found = depth_where_gradient_falls_below(threshold, 0.02, 0.14)
    assert found == pytest.approx(depth, rel=1e-9)


@pytest.mark.parametrize(
    ("threshold", "gradient", "ratio", "words"),
    [
        (0.0, 1.0, 0.5, "must be above 0"),
        (1e-9, -1.0, 0.5, "must be above 0"),
        (1e-9, 1.0, 0.0, "ratio must be in"),
        (1e-9, 1.0, 1.0, "ratio must be in"),
        (math.nan, 1.0, 0.5, "must be above 0"),
    ],
)
def test_depth_refuses(
    threshold: float, gradient: float, ratio: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        depth_where_gradient_falls_below(threshold, gradient, ratio)

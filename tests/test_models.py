"""The networks against PyTorch's own initializers and plain matrix algebra."""

import math

import pytest
import torch
from torch import nn

from shared.models import (
    ACTIVATIONS,
    INITIALIZATIONS,
    DeepNetwork,
    InFixedOrder,
    SideBySide,
    deep_network,
    initialize,
    weight_and_bias_variance,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torch_weights(initialization: str, fan_in: int, fan_out: int) -> torch.Tensor:
    """Return weights as PyTorch's own initializer draws them."""
    torch.manual_seed(0)
    weight = nn.Linear(fan_in, fan_out).weight.detach()
    if initialization == "xavier":
        nn.init.xavier_uniform_(weight)
    elif initialization == "xavier4":
        nn.init.xavier_uniform_(weight, gain=4)
    elif initialization == "he":
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")
    return weight


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
@pytest.mark.parametrize(("fan_in", "fan_out"), [(400, 900), (900, 400)])
def test_variance_is_that_of_torchs_initializer(
    initialization: str, fan_in: int, fan_out: int
) -> None:
    drawn = torch_weights(initialization, fan_in, fan_out)
    weight, _ = weight_and_bias_variance(initialization, fan_in, fan_out)
    # 360,000 uniform numbers: the variance is known to 0.15 %.
    assert drawn.var().item() == pytest.approx(weight, rel=0.01)


def test_variance_of_biases() -> None:
    torch.manual_seed(0)
    drawn = nn.Linear(25, 200_000).bias.detach()
    _, bias = weight_and_bias_variance("default", 25, 200_000)
    assert drawn.var().item() == pytest.approx(bias, rel=0.01)
    for initialization in ("xavier", "he", "xavier4"):
        assert weight_and_bias_variance(initialization, 25, 7)[1] == 0


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_initialize_draws_uniformly_with_that_variance(initialization: str) -> None:
    layer = nn.Linear(300, 700)
    initialize(layer, initialization, generator())
    wanted, bias = weight_and_bias_variance(initialization, 300, 700)
    weight = layer.weight.detach()
    assert weight.var().item() == pytest.approx(wanted, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=0.02 * math.sqrt(wanted))
    assert weight.abs().max().item() == pytest.approx(math.sqrt(3 * wanted), rel=1e-3)
    if bias:
        assert layer.bias.var().item() == pytest.approx(bias, rel=0.15)
    else:
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lecun", 3, 3), "initialization must be one of default.*'lecun'"),
        (("he", 0, 3), "fan_in and fan_out must be at least 1: 0, 3"),
        (("he", 3, -1), "fan_in and fan_out must be at least 1: 3, -1"),
    ],
)
def test_variance_refuses(arguments: tuple[str, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        weight_and_bias_variance(*arguments)


def by_hand(network: DeepNetwork, x: torch.Tensor, residual: bool) -> torch.Tensor:
    """Return a sigmoid network's outputs from its matrices alone."""
    for block in network.blocks:
        out = 1 / (1 + torch.exp(-(x @ block.linear.weight.T + block.linear.bias)))
        x = x + out if residual and out.shape == x.shape else out
    return x @ network.readout.weight.T + network.readout.bias


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("inputs", [5, 6])
def test_forward_is_matrix_algebra(residual: bool, inputs: int) -> None:
    network = deep_network(
        3,
        generator=generator(),
        inputs=inputs,
        width=6,
        outputs=2,
        residual=residual,
        dtype=torch.float64,
    )
    x = torch.randn(7, inputs, dtype=torch.float64, generator=generator(1))
    torch.testing.assert_close(network(x), by_hand(network, x, residual))


def test_layer_norm_comes_before_the_activation() -> None:
    network = deep_network(
        1, "tanh", generator=generator(), inputs=4, width=9, layer_norm=True
    )
    block = network.blocks[0]
    x = torch.randn(5, 4, generator=generator(1))
    sums = block.linear(x)
    centered = sums - sums.mean(1, keepdim=True)
    scaled = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block(x), torch.tanh(scaled))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_what_their_names_say(activation: str) -> None:
    network = deep_network(1, activation, generator=generator(), inputs=4, width=9)
    x = torch.randn(5, 4, generator=generator(1))
    sums = network.blocks[0].linear(x)
    expected = {
        "sigmoid": torch.sigmoid(sums),
        "tanh": torch.tanh(sums),
        "relu": sums.clamp(min=0),
        "gelu": sums * (1 + torch.erf(sums / math.sqrt(2))) / 2,
    }[activation]
    torch.testing.assert_close(network.blocks[0](x), expected)


def test_shapes_order_and_type() -> None:
    network = deep_network(
        3, generator=generator(), inputs=5, width=6, outputs=2, dtype=torch.float64
    )
    shapes = [tuple(weight.shape) for weight in network.weights()]
    assert shapes == [(6, 5), (6, 6), (6, 6), (2, 6)]
    assert all(p.dtype == torch.float64 for p in network.parameters())
    assert sum(p.numel() for p in network.parameters()) == 36 + 42 + 42 + 14
    assert network(torch.zeros(11, 5, dtype=torch.float64)).shape == (11, 2)


def test_the_generator_decides_the_weights() -> None:
    torch.manual_seed(3)
    one = deep_network(2, generator=generator(5))
    torch.manual_seed(4)
    same = deep_network(2, generator=generator(5))
    other = deep_network(2, generator=generator(6))
    for mine, theirs in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(one.weights()[0], other.weights()[0])


def test_the_readout_starts_as_torch_would_start_it() -> None:
    network = deep_network(
        1, "relu", "xavier4", generator=generator(), width=600, outputs=500
    )
    assert network.readout.weight.var().item() == pytest.approx(1 / 1800, rel=0.02)
    hidden = network.blocks[0].linear.weight.var().item()
    assert hidden == pytest.approx(16 * 2 / 664, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"inputs": 0}, "inputs must be at least 1"),
        ({"width": -2}, "width must be at least 1, not -2"),
        ({"outputs": 0}, "outputs must be at least 1"),
        ({"activation": "swish"}, "activation must be one of sigmoid.*'swish'"),
        ({"initialization": "lecun"}, "initialization must be one of default.*'lecun'"),
    ],
)
def test_deep_network_refuses(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        deep_network(**({"depth": 2, "generator": generator()} | changes))


# --------------------------------------------------------------------------------------
# Networks side by side
# --------------------------------------------------------------------------------------


def three_networks() -> list[DeepNetwork]:
    sizes = {"inputs": 4, "width": 5, "outputs": 2, "dtype": torch.float64}
    return [deep_network(2, "tanh", generator=generator(s), **sizes) for s in range(3)]


def test_side_by_side_trains_each_network_as_if_alone() -> None:
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator(9))
    y = torch.randn(3, 6, 2, dtype=torch.float64, generator=generator(8))
    together = SideBySide(three_networks())
    optimizer = torch.optim.Adam(together.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (together(x) - y).square().mean((1, 2)).sum().backward()
        optimizer.step()
    outputs = together(x)
    for place, alone in enumerate(three_networks()):
        optimizer = torch.optim.Adam(alone.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            (alone(x[place]) - y[place]).square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(outputs[place], alone(x[place]))


def test_side_by_side_copies() -> None:
    networks = three_networks()
    before = networks[1].weights()[0].detach().clone()
    together = SideBySide(networks)
    weights = together.weights()
    assert [tuple(w.shape) for w in weights] == [(3, 5, 4), (3, 5, 5), (3, 2, 5)]
    assert torch.equal(weights[0][1], before)
    with torch.no_grad():
        weights[0].zero_()
    assert torch.equal(networks[1].weights()[0], before)
    assert sum(p.numel() for p in together.parameters()) == 3 * (25 + 30 + 12)


def test_side_by_side_refuses() -> None:
    with pytest.raises(ValueError, match="at least one network"):
        SideBySide([])
    with pytest.raises(ValueError, match="no buffers"):
        SideBySide([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))])


# --------------------------------------------------------------------------------------
# Sums in one order
# --------------------------------------------------------------------------------------


def convolutional(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), **options),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.Flatten(),
        nn.LazyLinear(5),
    ).double()


@pytest.mark.parametrize("padding", [0, 1, (2, 0)])
def test_in_fixed_order_is_the_network(padding: int | tuple[int, int]) -> None:
    network = convolutional(padding=padding)
    x = torch.randn(3, 2, 9, 8, dtype=torch.float64, generator=generator())
    expected = network(x)
    assert torch.allclose(InFixedOrder(network)(x), expected, rtol=0, atol=1e-14)


def test_in_fixed_order_passes_gradients_on() -> None:
    network = convolutional()
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64, generator=generator())
    network(x)
    x.requires_grad_()
    expected = torch.autograd.grad(network(x).square().sum(), x)[0]
    found = torch.autograd.grad(InFixedOrder(network)(x).square().sum(), x)[0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


def test_in_fixed_order_adds_from_the_first_term_to_the_last() -> None:
    """In float32 the order shows: 1 + 2^-24 is 1, so small terms must come first."""
    layer = nn.Linear(3, 1)
    tiny = 2.0**-24
    for terms, expected in (((tiny, tiny, 1.0), 1 + 2 * tiny), ((1, tiny, tiny), 1.0)):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([terms]))
            layer.bias.zero_()
            ordered = InFixedOrder(nn.Sequential(layer))(torch.ones(1, 3))
        assert ordered.item() == expected


def test_equal_patches_have_equal_sums_to_the_last_bit() -> None:
    layer = nn.Conv2d(1, 8, 3)
    x = torch.randn(1, 1, 3, 5, generator=generator()).tile(1, 1, 4, 4)
    with torch.no_grad():
        sums = InFixedOrder(nn.Sequential(layer))(x)
    assert torch.equal(sums[..., :5], sums[..., 5:10])
    assert torch.equal(sums[:, :, :3], sums[:, :, 3:6])


@pytest.mark.parametrize(
    "option", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": "same"}]
)
def test_in_fixed_order_takes_plain_convolutions_only(option: dict) -> None:
    layer = nn.Conv2d(2, 4, 3, **option)
    with pytest.raises(ValueError, match="must have plain convolutions, not Conv2d"):
        InFixedOrder(nn.Sequential(layer))

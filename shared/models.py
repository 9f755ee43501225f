"""The small networks that several chapters use."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}
"""Activation functions by name."""

INITIALIZATIONS = ("default", "xavier", "he", "xavier4")
"""PyTorch's own; Glorot and Bengio 2010; He et al. 2015; Xavier with gain 4."""


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def weight_and_bias_variance(
    initialization: str, fan_in: int, fan_out: int
) -> tuple[float, float]:
    """Return the variance of one weight and of one bias before training.

    PyTorch's default draws both from ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``; the
    others draw weights only and start biases at zero.

    Args:
        initialization: one of `INITIALIZATIONS`.
        fan_in: inputs of the layer, at least 1.
        fan_out: outputs of the layer, at least 1.

    Raises:
        ValueError: if a value is not as above.
    """
    _one_of("initialization", initialization, INITIALIZATIONS)
    if min(fan_in, fan_out) < 1:
        raise ValueError(f"fan_in and fan_out must be at least 1: {fan_in}, {fan_out}")
    if initialization == "default":
        return 1 / (3 * fan_in), 1 / (3 * fan_in)
    if initialization == "he":
        return 2 / fan_in, 0.0
    gain = 4.0 if initialization == "xavier4" else 1.0
    return gain**2 * 2 / (fan_in + fan_out), 0.0


def initialize(
    layer: nn.Linear, initialization: str, generator: torch.Generator
) -> None:
    """Draw a linear layer's weights and biases uniformly, with the named variance.

    Args:
        layer: changed in place.
        initialization: one of `INITIALIZATIONS`.
        generator: draws the weights.

    Raises:
        ValueError: if ``initialization`` is not known.
    """
    weight_variance, bias_variance = weight_and_bias_variance(
        initialization, layer.in_features, layer.out_features
    )
    with torch.no_grad():
        for tensor, variance in (
            (layer.weight, weight_variance),
            (layer.bias, bias_variance),
        ):
            bound = math.sqrt(3 * variance)
            tensor.uniform_(-bound, bound, generator=generator)


class Block(nn.Module):
    """One hidden layer: linear, optional layer norm, activation, optional shortcut."""

    def __init__(
        self, linear: nn.Linear, activation: nn.Module, norm: bool, residual: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.LayerNorm(linear.out_features) if norm else nn.Identity()
        self.activation = activation
        self.residual = residual and linear.in_features == linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (examples, fan_in) to (examples, fan_out)."""
        out = self.activation(self.norm(self.linear(x)))
        return x + out if self.residual else out


class DeepNetwork(nn.Module):
    """A plain stack of equal hidden layers, and a linear layer that reads it out."""

    def __init__(self, blocks: list[Block], readout: nn.Linear) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.readout = readout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (examples, inputs) to (examples, outputs)."""
        return self.readout(self.blocks(x))

    def weights(self) -> list[nn.Parameter]:
        """Return the weight matrices from the input side to the output side."""
        return [b.linear.weight for b in self.blocks] + [self.readout.weight]


def deep_network(
    depth: int,
    activation: str = "sigmoid",
    initialization: str = "default",
    *,
    generator: torch.Generator,
    inputs: int = 64,
    width: int = 32,
    outputs: int = 10,
    layer_norm: bool = False,
    residual: bool = False,
    dtype: torch.dtype = torch.float32,
) -> DeepNetwork:
    """Return a fully connected network with ``depth`` hidden layers.

    Args:
        depth: number of hidden layers, at least 1.
        activation: a key of `ACTIVATIONS`.
        initialization: one of `INITIALIZATIONS`, for the hidden layers; the readout
            always starts as PyTorch would start it.
        generator: draws the weights, so that the same seed gives the same network.
        inputs: number of input features.
        width: units in each hidden layer.
        outputs: number of outputs.
        layer_norm: normalize each layer's pre-activations.
        residual: add each layer's input to its output (where the widths agree).
        dtype: floating type of the parameters.

    Raises:
        ValueError: if a size is below 1 or a name is not known.
    """
    _one_of("activation", activation, tuple(ACTIVATIONS))
    _one_of("initialization", initialization, INITIALIZATIONS)
    sizes = {"depth": depth, "inputs": inputs, "width": width, "outputs": outputs}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    blocks = []
    for layer in range(depth):
        linear = nn.Linear(inputs if layer == 0 else width, width, dtype=dtype)
        initialize(linear, initialization, generator)
        block = Block(linear, ACTIVATIONS[activation](), layer_norm, residual)
        blocks.append(block.to(dtype))
    readout = nn.Linear(width, outputs, dtype=dtype)
    initialize(readout, "default", generator)
    return DeepNetwork(blocks, readout)


class SideBySide(nn.Module):
    """Networks of one shape as one module: many seeds for the price of few.

    No network sees another. The gradient of the SUM of their losses is therefore, for
    each network, the gradient of its own loss, and one optimizer trains them all as if
    each were alone (true of optimizers that treat every number by itself, such as SGD
    and Adam).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Copy the parameters of ``networks`` into stacked ones.

        Args:
            networks: at least one; all of the same shape, without buffers.

        Raises:
            ValueError: if there is none, or one has buffers such as running means.
        """
        super().__init__()
        if not networks:
            raise ValueError("networks must have at least one network")
        if any(True for _ in networks[0].buffers()):
            raise ValueError("networks must have no buffers, such as running means")
        stacked, _ = stack_module_state(list(networks))
        self.stacked: dict[str, nn.Parameter] = {
            name: nn.Parameter(values.detach()) for name, values in stacked.items()
        }
        """By the name in one network; shape (networks, *shape in one network)."""
        self._registered = nn.ParameterList(self.stacked.values())
        # In a list, so that the prototype's own parameters are not registered here.
        self._prototype = [networks[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (networks, examples, inputs) to (networks, examples, outputs)."""
        prototype = self._prototype[0]

        def one(values: dict[str, torch.Tensor], own_x: torch.Tensor) -> torch.Tensor:
            return functional_call(prototype, values, (own_x,))

        return vmap(one)(self.stacked, x)

    def weights(self) -> list[nn.Parameter]:
        """Return the stacked weight matrices, input side first."""
        return [value for value in self.stacked.values() if value.dim() == 3]


class InFixedOrder(nn.Module):
    """A convolutional network that adds its products one by one, in one order.

    Libraries add the products inside a layer in an order of their own, which depends on
    the processor, and with it the last bits of a score. Where these bits are the
    subject, every sum has to start at the bias and take one product after the other:
    then a format rounds alike everywhere, and equal patches of an image have equal sums
    to the last bit. It is slower than the layers themselves.
    """

    def __init__(self, network: nn.Sequential) -> None:
        """Take over the layers of ``network``.

        Args:
            network: layers in order; `torch.nn.Conv2d` and `torch.nn.Linear` are
                replaced, the others are called as they are.

        Raises:
            ValueError: if a convolution has a stride, a dilation, groups, or padding
                that is named instead of counted.
        """
        super().__init__()
        for layer in network:
            if isinstance(layer, nn.Conv2d) and (
                (layer.stride, layer.dilation, layer.groups) != ((1, 1), (1, 1), 1)
                or isinstance(layer.padding, str)
            ):
                raise ValueError(f"network must have plain convolutions, not {layer}")
        self.layers = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs to what the network itself would give, up to round-off."""
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                patches = nn.functional.unfold(
                    x, layer.kernel_size, padding=layer.padding
                )
                sums = _one_by_one(patches, layer.weight.flatten(1), layer.bias)
                sides = zip(x.shape[-2:], layer.padding, layer.kernel_size, strict=True)
                x = sums.unflatten(2, [n + 2 * p - k + 1 for n, p, k in sides])
            elif isinstance(layer, nn.Linear):
                x = _one_by_one(x[..., None], layer.weight, layer.bias)[..., 0]
            else:
                x = layer(x)
        return x


def _one_by_one(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``weight @ x + bias``, shape (examples, outputs, n)."""
    out = weight.new_zeros(len(weight), 1) if bias is None else bias[:, None]
    for term in range(weight.shape[1]):
        out = out + weight[:, term, None] * x[:, term, None]
    return out

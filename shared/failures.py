"""The failure of every chapter as one small program, with its repaired twin.

A program is what a reader would hand to `diagnose`, and the loss by itself, so that
other measurements can be taken of the same thing. All of them are small: a step takes
less than a millisecond.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.data import breast_cancer, diabetes, digits
from shared.diagnose import Cause
from shared.models import deep_network
from shared.objectives import rastrigin


@dataclasses.dataclass(frozen=True)
class Program:
    """One loop that is stuck, or its repaired twin.

    Attributes:
        loss: the forward pass as the step makes it, with its graph.
        step: one iteration; returns the loss.
        variables: what should move.
        optimizer: None if the step updates by hand.
        learning_rate: step size of plain descent.
        loss_fn: compares a prediction with a target.
        batch: the inputs and the targets of the step.
        objective: the loss as a function of the variable.
        metric: what the loss stands for; better when higher.
        full_loss: the loss on all data, where the step draws some; else None.
        own_gradient: how the step computes its gradient, if not by autograd.
    """

    loss: Callable[[], Tensor]
    step: Callable[[], Any]
    variables: nn.Module | Tensor
    optimizer: torch.optim.Optimizer | None
    learning_rate: float
    loss_fn: Callable[..., Tensor] | None = None
    batch: tuple[Tensor, Tensor] | None = None
    objective: Callable[..., Tensor] | None = None
    metric: Callable[[], float] | None = None
    full_loss: Callable[[], Tensor] | None = None
    own_gradient: Callable[[], Tensor] | None = None

    def value(self) -> float:
        """Return the loss where the variables are, on all data."""
        with torch.no_grad():
            return (self.full_loss or self.loss)().item()

    def gradients(self) -> list[Tensor | None]:
        """Return the gradient of each variable, as the step would get it."""
        if self.own_gradient is not None:
            return [self.own_gradient()]
        loss = self.loss()
        if not loss.requires_grad:
            return [None] * len(self.tensors())
        return list(torch.autograd.grad(loss, self.tensors(), allow_unused=True))

    def tensors(self) -> list[Tensor]:
        """Return the variables as a list, input side first."""
        if isinstance(self.variables, nn.Module):
            return list(self.variables.parameters())
        return [self.variables]

    def arguments(self) -> dict[str, Any]:
        """Return what `diagnose` is called with."""
        given = {
            "step": self.step,
            "variables": self.variables,
            "optimizer": self.optimizer,
            "loss_fn": self.loss_fn,
            "batch": self.batch,
            "objective": self.objective,
            "metric": self.metric,
        }
        return {name: value for name, value in given.items() if value is not None}


def _descent(
    loss: Callable[[], Tensor],
    variables: nn.Module | Tensor,
    learning_rate: float,
    **known: Any,  # noqa: ANN401  (fields of Program)
) -> Program:
    """Return plain gradient descent on a loss: clear, backward, step."""
    tensors = (
        list(variables.parameters())
        if isinstance(variables, nn.Module)
        else [variables]
    )
    optimizer = torch.optim.SGD(tensors, lr=learning_rate)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value

    return Program(loss, step, variables, optimizer, learning_rate, **known)


def _on_batch(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batch: tuple[Tensor, Tensor],
    learning_rate: float,
) -> Program:
    """Return plain gradient descent of a model on one batch."""
    inputs, targets = batch
    return _descent(
        lambda: loss_fn(model(inputs), targets),
        model,
        learning_rate,
        loss_fn=loss_fn,
        batch=batch,
    )


def _draw(seed: int, *shape: int) -> Tensor:
    """Return standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _some_digits(count: int = 64) -> tuple[Tensor, Tensor]:
    """Return a few digits, centered and scaled as one, in float64."""
    data = digits(torch.float64)
    images = data.train_inputs[:count]
    return (images - images.mean()) / images.std(), data.train_targets[:count]


def _patients(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return the diabetes data with targets of shape (examples, 1)."""
    data = diabetes(dtype)
    return data.train_inputs, data.train_targets[:, None]


def _network(seed: int, *sizes: int) -> nn.Sequential:
    """Return linear layers of these sizes with a tanh between each two, float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, dtype=torch.float64), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


# --------------------------------------------------------------------------------------
# The gradient of the input is zero
# --------------------------------------------------------------------------------------


def local_minimum(repaired: bool, seed: int) -> Program:
    """Descend Rastrigin's function in the third basin to the right; or in the best."""
    start = 0.2 + 0.1 * _draw(seed, 1).tanh() + (0 if repaired else 3)
    x = start.requires_grad_()
    program = _descent(lambda: rastrigin(x), x, 0.002, objective=rastrigin)
    for _ in range(60):
        program.step()
    return program


def saturated_loss(repaired: bool, seed: int) -> Program:
    """Square the error of a sigmoid that is sure of the wrong answer; or take logs."""
    x = (-40 - _draw(seed, 1).abs()).requires_grad_()
    one = torch.ones(1, dtype=torch.float64)

    def objective(x: Tensor) -> Tensor:
        if repaired:
            return F.binary_cross_entropy_with_logits(x, one)
        return F.mse_loss(torch.sigmoid(x), one)

    return _descent(lambda: objective(x), x, 0.5, objective=objective)


def saddle_point(repaired: bool, seed: int) -> Program:
    """Start two factors of a matrix at zero; or one of them only."""
    wanted = _draw(seed, 6, 4)
    factors = torch.zeros(2, 6, 4, dtype=torch.float64)
    if repaired:
        factors[0] = 0.5 * _draw(seed + 1, 6, 4)
    factors.requires_grad_()

    def objective(factors: Tensor) -> Tensor:
        return (factors[0].T @ factors[1] - wanted.T @ wanted).square().mean()

    return _descent(lambda: objective(factors), factors, 0.05, objective=objective)


def numerical_precision(repaired: bool, seed: int) -> Program:
    """Train a linear model in bfloat16, with steps under half a spacing; or float32."""
    dtype = torch.float32 if repaired else torch.bfloat16
    inputs, targets = _patients(dtype)
    torch.manual_seed(seed)
    model = nn.Linear(10, 1)
    nn.init.uniform_(model.weight, 2, 3)
    nn.init.constant_(model.bias, 3.0)
    return _on_batch(model.to(dtype), F.mse_loss, (inputs, targets), 2e-4)


def finite_differences(repaired: bool, seed: int) -> Program:
    """Difference a float32 loss over 1e-7; or over 1e-2."""
    epsilon = 1e-2 if repaired else 1e-7
    x = (5 + 0.1 * _draw(seed, 1)).float().requires_grad_()

    def objective(x: Tensor) -> Tensor:
        return (x - 6).square().sum()

    @torch.no_grad()
    def gradient() -> Tensor:
        rise = objective(x + epsilon) - objective(x - epsilon)
        return (rise / (2 * epsilon)).reshape(1)

    @torch.no_grad()
    def step() -> Tensor:
        x.sub_(0.1 * gradient())
        return objective(x)

    return Program(
        lambda: objective(x),
        step,
        x,
        None,
        0.1,
        objective=objective,
        own_gradient=gradient,
    )


def input_parameterization(repaired: bool, seed: int) -> Program:
    """Hold an image in bytes and clamp it to [0, 1] in the model; or in [0, 1]."""
    network = _network(seed, 64, 16, 10).requires_grad_(False)
    image = 0.5 + 0.2 * _draw(seed, 1, 64).tanh()
    image = (image if repaired else 255 * image).requires_grad_()
    wanted = torch.tensor([7])

    def objective(image: Tensor) -> Tensor:
        return F.cross_entropy(network(image.clamp(0, 1)), wanted)

    return _descent(lambda: objective(image), image, 0.5, objective=objective)


def confident_model(repaired: bool, seed: int) -> Program:
    """Attack a float32 model whose logits are a thousand; or their margin."""
    weights = 1000 * _draw(seed, 10, 64).float() / 8
    image = (0.5 + 0.1 * _draw(seed + 1, 64).float()).requires_grad_()
    best = (weights @ image).argmax()

    def objective(image: Tensor) -> Tensor:
        logits = weights @ image
        if repaired:
            others = logits[torch.arange(10) != best]
            return (logits[best] - others.max()) / 1000
        return logits.softmax(0)[best]

    return _descent(lambda: objective(image), image, 0.1, objective=objective)


def input_optimization(repaired: bool, seed: int) -> Program:
    """Move a spot onto another one that it does not touch; or that it touches."""
    line = torch.arange(48, dtype=torch.float32)
    target = 32 + _draw(seed, 1).tanh().float()

    def drawn(center: Tensor) -> Tensor:
        return torch.exp(-((line - center) ** 2) / 4.5)

    picture = drawn(target)
    center = (target - (1.2 if repaired else 17)).requires_grad_()

    def objective(center: Tensor) -> Tensor:
        return (drawn(center) - picture).square().sum() / 48

    return _descent(lambda: objective(center), center, 6.0, objective=objective)


# --------------------------------------------------------------------------------------
# The optimizer moves nothing
# --------------------------------------------------------------------------------------


def loop_order(repaired: bool, seed: int) -> Program:
    """Clear the gradients between backward and step; or before backward."""
    program = _on_batch(_network(seed, 10, 8, 1), F.mse_loss, _patients(), 0.1)
    optimizer = program.optimizer
    assert optimizer is not None

    def step() -> Tensor:
        value = program.loss()
        value.backward()
        optimizer.zero_grad()
        optimizer.step()
        return value

    return program if repaired else dataclasses.replace(program, step=step)


def accumulated_gradients(repaired: bool, seed: int) -> Program:
    """Never clear the gradients; or clear them in each iteration."""
    torch.manual_seed(seed)
    model = nn.Linear(10, 1, dtype=torch.float64)
    program = _on_batch(model, F.mse_loss, _patients(), 0.1)
    optimizer = program.optimizer
    assert optimizer is not None

    def step() -> Tensor:
        value = program.loss()
        value.backward()
        optimizer.step()
        return value

    return program if repaired else dataclasses.replace(program, step=step)


def vanishing_depth(repaired: bool, seed: int) -> Program:
    """Stack twelve sigmoid layers; or tanh layers."""
    model = deep_network(
        12,
        "tanh" if repaired else "sigmoid",
        "xavier" if repaired else "default",
        generator=torch.Generator().manual_seed(seed),
        width=12,
        dtype=torch.float64,
    )
    return _on_batch(model, F.cross_entropy, _some_digits(), 0.1)


def forward_collapse(repaired: bool, seed: int) -> Program:
    """Average the hidden layer over the examples; or over nothing."""
    model = _network(seed, 64, 16, 10)

    class Averaged(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden.mean(0, keepdim=True).expand_as(hidden)

    if not repaired:
        model = nn.Sequential(model[0], model[1], Averaged(), model[2])
    return _on_batch(model, F.cross_entropy, _some_digits(), 0.3)


class _StackedLSTM(nn.Module):
    """LSTM layers on the rows of a digit, with or without shortcuts."""

    def __init__(self, depth: int, residual: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.LSTM(8, 8, batch_first=True, dtype=torch.float64) for _ in range(depth)
        )
        self.head = nn.Linear(8, 10, dtype=torch.float64)
        self.residual = residual

    def forward(self, images: Tensor) -> Tensor:
        states = images.view(-1, 8, 8)
        for layer in self.layers:
            out, _ = layer(states)
            states = out + states if self.residual else out
        return self.head(states[:, -1])


def stacked_lstm(repaired: bool, seed: int) -> Program:
    """Stack six LSTM layers; or the same with shortcuts."""
    torch.manual_seed(seed)
    model = _StackedLSTM(6, residual=repaired)
    return _on_batch(model, F.cross_entropy, _some_digits(32), 0.3)


def exploding_loss(repaired: bool, seed: int) -> Program:
    """Train on raw data until one step has killed all ReLUs; or on standardized."""
    data = breast_cancer(torch.float64, standardized=repaired)
    batch = data.train_inputs[:128], data.train_targets[:128]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    program = _on_batch(model, F.cross_entropy, batch, 0.1)
    for _ in range(10):
        program.step()
    return program


def discontinuous_loss(repaired: bool, seed: int) -> Program:
    """Round the score before it is compared; or compare it as it is."""
    inputs, targets = _patients()

    def loss_fn(scores: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(scores if repaired else scores.round(), targets)

    return _on_batch(_network(seed, 10, 8, 1), loss_fn, (inputs, targets), 0.1)


def reciprocal_loss(repaired: bool, seed: int) -> Program:
    """Minimize 1 / MSE; or the MSE."""
    inputs, targets = _patients()

    def loss_fn(scores: Tensor, targets: Tensor) -> Tensor:
        error = F.mse_loss(scores, targets)
        return error if repaired else 1 / error

    model = _network(seed, 10, 8, 1)
    program = _on_batch(model, loss_fn, (inputs, targets), 0.1)

    def metric() -> float:
        with torch.no_grad():
            return -F.mse_loss(model(inputs), targets).item()

    return dataclasses.replace(program, metric=metric)


def learning_rate(repaired: bool, seed: int) -> Program:
    """Step three times as far as the curvature allows; or a tenth of that."""
    torch.manual_seed(seed)
    inputs, targets = _patients()
    model = nn.Linear(10, 1, dtype=torch.float64)
    curvature = 2 * torch.linalg.matrix_norm(inputs.T @ inputs, 2) / len(inputs)
    rate = (0.6 if repaired else 6) / curvature.item()
    return _on_batch(model, F.mse_loss, (inputs, targets), rate)


def initialization(repaired: bool, seed: int) -> Program:
    """Start all weights at the same value; or draw them."""
    model = _network(seed, 64, 12, 10)
    if not repaired:
        for layer in (model[0], model[2]):
            nn.init.constant_(layer.weight, 0.1)
            nn.init.zeros_(layer.bias)
    return _on_batch(model, F.cross_entropy, _some_digits(), 0.3)


def batch_size(repaired: bool, seed: int) -> Program:
    """Draw one example a step at a large rate; or take all of them."""
    torch.manual_seed(seed)
    inputs = _draw(seed, 400, 40)
    targets = inputs @ _draw(seed + 1, 40, 1) / 40**0.5 + 0.7 * _draw(seed + 2, 400, 1)
    model = nn.Linear(40, 1, dtype=torch.float64)

    def full_loss() -> Tensor:
        return F.mse_loss(model(inputs), targets)

    def loss() -> Tensor:
        if repaired:
            return full_loss()
        rows = torch.randint(len(inputs), (1,))
        return F.mse_loss(model(inputs[rows]), targets[rows])

    return _descent(
        loss,
        model,
        0.03,
        loss_fn=F.mse_loss,
        batch=(inputs, targets),
        full_loss=full_loss,
    )


# --------------------------------------------------------------------------------------
# Beyond the sources
# --------------------------------------------------------------------------------------


def disconnected_graph(repaired: bool, seed: int) -> Program:
    """Make a new tensor of the hidden layer; or use it as it is."""
    model = _network(seed, 10, 8, 1)
    inputs, targets = _patients()

    class Remade(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden.clone().detach()

    if not repaired:
        model = nn.Sequential(model[0], model[1], Remade(), model[2])
    return _on_batch(model, F.mse_loss, (inputs, targets), 0.1)


def silent_loss_bugs(repaired: bool, seed: int) -> Program:
    """Compare outputs of shape (N, 1) with targets of shape (N,); or (N, 1)."""
    inputs, targets = _patients()
    targets = targets if repaired else targets[:, 0]

    def loss_fn(scores: Tensor, targets: Tensor) -> Tensor:
        return (scores - targets).square().mean()

    return _on_batch(_network(seed, 10, 8, 1), loss_fn, (inputs, targets), 0.1)


FAILURES: dict[str, tuple[Callable[[bool, int], Program], Cause]] = {
    "local_minimum": (local_minimum, Cause.healthy),
    "saturated_loss": (saturated_loss, Cause.saturated_activation),
    "saddle_point": (saddle_point, Cause.stationary_not_minimum),
    "numerical_precision": (numerical_precision, Cause.update_below_precision),
    "finite_differences": (finite_differences, Cause.graph_detached),
    "input_parameterization": (input_parameterization, Cause.clamped_at_bound),
    "confident_model": (confident_model, Cause.saturated_activation),
    "input_optimization": (input_optimization, Cause.out_of_support),
    "loop_order": (loop_order, Cause.zero_grad_before_step),
    "accumulated_gradients": (accumulated_gradients, Cause.zero_grad_missing),
    "vanishing_depth": (vanishing_depth, Cause.vanishing_gradient),
    "forward_collapse": (forward_collapse, Cause.forward_collapse),
    "stacked_lstm": (stacked_lstm, Cause.vanishing_gradient),
    "exploding_loss": (exploding_loss, Cause.unnormalised_data),
    "discontinuous_loss": (discontinuous_loss, Cause.nondifferentiable_op),
    "reciprocal_loss": (reciprocal_loss, Cause.runaway_loss),
    "learning_rate": (learning_rate, Cause.lr_too_large),
    "initialization": (initialization, Cause.symmetric_init),
    "batch_size": (batch_size, Cause.gradient_noise),
    "disconnected_graph": (disconnected_graph, Cause.graph_detached),
    "silent_loss_bugs": (silent_loss_bugs, Cause.shape_broadcast),
}
"""By the slug of the chapter: the program, and the cause to be named."""

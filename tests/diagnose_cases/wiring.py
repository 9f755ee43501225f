"""Programs whose variables are not connected to the loss, or not to the optimizer."""

import copy
import itertools
from typing import Any

import torch
from scipy import ndimage
from sklearn.datasets import load_diabetes
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

from shared.diagnose.causes import Cause
from tests.diagnose_cases.material import (
    digits,
    least_likely,
    network,
    trained_classifier,
)
from tests.diagnose_cases.program import Program, case


@case(Cause.graph_detached, "training")
def losses_collected_with_item(repaired: bool, seed: int) -> Program:
    """Losses are collected as numbers and made a tensor again for the backward pass."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = network(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        losses = []
        for x, y in zip(images.split(64), labels.split(64), strict=True):
            loss = criterion(model(x), y)
            losses.append(loss if repaired else loss.item())
        if repaired:
            total = torch.stack(losses).mean()
        else:
            total = torch.tensor(losses, requires_grad=True).mean()
        total.backward()
        optimizer.step()
        return total

    return Program(step, model, optimizer, criterion, (images, labels))


class _Regressor(nn.Module):
    def __init__(self, repaired: bool) -> None:
        super().__init__()
        self.body = network(10, 24, 24, 1)
        self.repaired = repaired

    @torch.no_grad()
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).squeeze(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.repaired:
            return self.body(x).squeeze(1)
        return self.predict(x)


@case(Cause.graph_detached, "training")
def forward_reuses_predict(repaired: bool, seed: int) -> Program:
    """Training goes through `predict`, which is without gradients; backward raises."""
    torch.manual_seed(seed)
    x, y = load_diabetes(return_X_y=True)
    inputs = torch.tensor(x, dtype=torch.float32) * 21
    targets = torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=221, shuffle=True)
    batches = itertools.cycle(list(loader))
    model = _Regressor(repaired)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def step() -> float:
        x, y = next(batches)
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer)


@case(Cause.graph_detached, "training")
def encoder_output_detached(repaired: bool, seed: int) -> Program:
    """Features are detached, as left from an older trial; only the head learns."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    encoder = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()
    )
    head = nn.Linear(128, 10)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.01)

    def step() -> torch.Tensor:
        features = encoder(images.view(-1, 1, 8, 8))
        logits = head(features if repaired else features.detach())
        loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Program(step, dict(encoder.named_parameters()), optimizer)


def _blur(image: torch.Tensor) -> torch.Tensor:
    """Return a Gaussian blur of an image, in PyTorch."""
    line = torch.exp(-0.5 * torch.arange(-2.0, 3.0).square() / 0.49)
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(image[None, None], (2, 2, 2, 2), mode="reflect")
    return functional.conv2d(padded, kernel[None, None])[0, 0]


@case(Cause.graph_detached, "input")
def image_blurred_with_scipy(repaired: bool, seed: int) -> Program:
    """SciPy blurs the image, outside the graph; the network's graph hides the cut."""
    model = trained_classifier(seed)
    image = torch.rand(8, 8, requires_grad=True)
    wanted = least_likely(model, image)
    optimizer = torch.optim.Adam([image], lr=0.05)

    def blurred() -> torch.Tensor:
        if repaired:
            return _blur(image)
        array = ndimage.gaussian_filter(image.detach().numpy(), sigma=0.7)
        return torch.from_numpy(array)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(blurred().flatten()[None]), wanted)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer)


@case(Cause.graph_detached, "input")
def circle_drawn_from_numbers(repaired: bool, seed: int) -> Program:
    """Circle parameters are unpacked with `tolist`, so the drawing has no graph."""
    generator = torch.Generator().manual_seed(seed)
    circle = torch.rand(3, generator=generator) * 2 + torch.tensor([6.0, 6.0, 4.0])
    circle.requires_grad_()
    axis = torch.arange(16.0)

    def draw(x: float, y: float, radius: float) -> torch.Tensor:
        distance = torch.sqrt((axis - x) ** 2 + (axis[:, None] - y) ** 2 + 1e-6)
        return torch.sigmoid(radius - distance)

    target = draw(9.3, 8.6, 3.4)
    optimizer = torch.optim.Adam([circle], lr=0.1)

    def step() -> torch.Tensor:
        x, y, radius = circle if repaired else circle.tolist()
        loss = (draw(x, y, radius) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, [circle], optimizer)


@case(Cause.nondifferentiable_op, "training")
def loss_on_predicted_class(repaired: bool, seed: int) -> Program:
    """Arg-max and label are compared in the loss; backward raises."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = network(64, 32, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step() -> torch.Tensor:
        logits = model(images)
        if repaired:
            loss = functional.cross_entropy(logits, labels)
        else:
            loss = functional.mse_loss(logits.argmax(dim=1).float(), labels.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, batch=(images, labels))


@case(Cause.nondifferentiable_op, "training")
def probability_rounded_before_loss(repaired: bool, seed: int) -> Program:
    """Probabilities are rounded to a decision before the loss: all gradients are 0."""
    torch.manual_seed(seed)
    angle = torch.rand(256) * 6.2832
    inner = torch.arange(256) % 2 == 0
    radius = torch.where(inner, 0.6, 1.6) + 0.1 * torch.randn(256)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    targets = inner.float()
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    loss_fn = nn.MSELoss()

    def accuracy() -> float:
        with torch.no_grad():
            decided = model(points).squeeze(1) > 0.5
        return (decided == inner).float().mean().item()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        probability = model(points).squeeze(1)
        predicted = probability if repaired else torch.round(probability)
        loss = loss_fn(predicted, targets)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, metric=accuracy)


@case(Cause.nondifferentiable_op, "training")
def hidden_units_thresholded(repaired: bool, seed: int) -> Program:
    """Hidden units are compared with zero to make codes; the encoder never learns."""
    torch.manual_seed(seed)
    images, _ = digits(seed)
    encode, decode = nn.Linear(64, 24), nn.Linear(24, 64)
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], lr=0.01)

    def step() -> torch.Tensor:
        hidden = encode(images)
        code = torch.sigmoid(hidden) if repaired else (hidden > 0).float()
        loss = functional.mse_loss(decode(code), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, encode, optimizer)


@case(Cause.nondifferentiable_op, "input")
def image_rounded_to_bytes(repaired: bool, seed: int) -> Program:
    """Pixels are rounded to 256 gray levels before the network sees them."""
    model = trained_classifier(seed)
    image = torch.rand(64, requires_grad=True)
    optimizer = torch.optim.SGD([image], lr=0.02)

    def logit(pixels: torch.Tensor) -> torch.Tensor:
        shown = pixels if repaired else torch.round(pixels * 255) / 255
        return model(shown)[7]

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -logit(image)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer, objective=lambda pixels: -logit(pixels))


@case(Cause.variable_not_used, "training")
def embedding_looked_up_once(repaired: bool, seed: int) -> Program:
    """Vectors are looked up before the loop; `retain_graph` keeps old ones in use."""
    torch.manual_seed(seed)
    group = torch.arange(40) % 4
    linked = (group[:, None] == group).float()
    embedding = nn.Embedding(40, 8)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=5.0)
    items = torch.arange(40)
    looked_up = embedding(items)

    def step() -> float:
        vectors = embedding(items) if repaired else looked_up
        loss = functional.binary_cross_entropy_with_logits(vectors @ vectors.T, linked)
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        optimizer.step()
        return loss.item()

    return Program(step, embedding, optimizer)


class _Adapted(nn.Module):
    def __init__(self, base: nn.Sequential, repaired: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapter = network(32, 16, 32)
        self.repaired = repaired

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.base[:2](x)
        change = self.adapter(hidden)
        if self.repaired:
            hidden = hidden + change
        return self.base[2](hidden)


@case(Cause.variable_not_used, "training")
def adapter_result_dropped(repaired: bool, seed: int) -> Program:
    """Inside a fixed network the adapter is called and its result dropped."""
    base = trained_classifier(seed)
    images, labels = digits(seed + 1)
    images = images.view(-1, 8, 8).transpose(1, 2).flatten(1)
    model = _Adapted(base, repaired)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=0.01)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        loss = loss_fn(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model.adapter, optimizer, loss_fn, (images, labels))


@case(Cause.variable_not_used, "input")
def objective_ignores_argument(repaired: bool, seed: int) -> Program:
    """Scores are of the original image, not of the one that the function is given."""
    model = trained_classifier(seed)
    original = digits(seed)[0][0]
    wanted = least_likely(model, original)
    image = original.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)

    def loss_of(candidate: torch.Tensor) -> torch.Tensor:
        shown = candidate if repaired else original
        return functional.cross_entropy(model(shown[None]), wanted)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(image)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer, objective=loss_of)


@case(Cause.variable_not_used, "input")
def distances_computed_before_loop(repaired: bool, seed: int) -> Program:
    """Scaled positions are made once, outside the loop; the moved ones never enter."""
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randn(12, 2, generator=generator)
    points = torch.randn(12, 2, generator=generator).requires_grad_()
    scaled = points * 2

    def step() -> torch.Tensor:
        points.grad = None
        placed = points * 2 if repaired else scaled
        loss = (placed - wanted).square().sum(dim=1).mean()
        loss.backward(retain_graph=True)
        with torch.no_grad():
            points.sub_(0.2 * points.grad)
        return loss

    return Program(step, {"points": points})


@case(Cause.non_leaf_variable, "training")
def weights_scaled_after_requires_grad(repaired: bool, seed: int) -> Program:
    """Weights are scaled after `requires_grad`; their `.grad` is None and skipped."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    if repaired:
        first = (torch.randn(64, 32) * 0.15).requires_grad_()
        second = (torch.randn(32, 10) * 0.15).requires_grad_()
    else:
        first = torch.randn(64, 32, requires_grad=True) * 0.15
        second = torch.randn(32, 10, requires_grad=True) * 0.15
    weights = [first, second]

    def step() -> float:
        loss = functional.cross_entropy(torch.relu(images @ first) @ second, labels)
        loss.backward(retain_graph=True)
        with torch.no_grad():
            for weight in weights:
                if weight.grad is not None:
                    weight -= 0.5 * weight.grad
                    weight.grad = None
        return loss.item()

    return Program(step, weights)


@case(Cause.non_leaf_variable, "training")
def weight_rebound_by_update(repaired: bool, seed: int) -> Program:
    """`w = w - lr * w.grad` makes a new, non-leaf tensor; the next step raises."""
    torch.manual_seed(seed)
    x, y = load_diabetes(return_X_y=True)
    inputs = torch.tensor(x, dtype=torch.float32) * 21
    targets = torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)
    weight = (torch.randn(10) * 0.3).requires_grad_()
    start = weight

    def step() -> torch.Tensor:
        nonlocal weight
        loss = (inputs @ weight - targets).square().mean()
        loss.backward()
        if repaired:
            with torch.no_grad():
                weight -= 0.1 * weight.grad
            weight.grad = None
        else:
            weight = weight - 0.1 * weight.grad
        return loss

    return Program(step, start)


@case(Cause.non_leaf_variable, "input")
def image_converted_after_requires_grad(repaired: bool, seed: int) -> Program:
    """Conversion to float64 after `requires_grad` gives an image that never moves."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.rand(8, 8, generator=generator)
    target = digits(seed)[0][0].view(8, 8).double()
    if repaired:
        source = source.double()
    source.requires_grad_()
    image = source.to(torch.float64)
    optimizer = torch.optim.Adam([source], lr=0.05)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (image - target).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer)


@case(Cause.non_leaf_variable, "input")
def image_rebound_by_clamp(repaired: bool, seed: int) -> Program:
    """After each step the name is bound to a clamped result; backward soon raises."""
    model = trained_classifier(seed).requires_grad_(False)
    image = (0.2 + 0.6 * torch.rand(64)).requires_grad_()
    start = image
    wanted = least_likely(model, image)
    optimizer = torch.optim.Adam([image], lr=0.02)

    def step() -> torch.Tensor:
        nonlocal image
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(image[None]), wanted)
        loss.backward()
        optimizer.step()
        if repaired:
            with torch.no_grad():
                image.clamp_(0, 1)
        else:
            image = image.clamp(0, 1)
        return loss

    return Program(step, start, optimizer)


@case(Cause.frozen_parameters, "training")
def head_name_misspelled(repaired: bool, seed: int) -> Program:
    """All but the "head" is frozen, but the head is called "classifier"."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = nn.ModuleDict(
        {"features": network(64, 64), "classifier": nn.Linear(64, 10)}
    )
    trained = "classifier" if repaired else "head"
    for name, parameter in model.named_parameters():
        if not name.startswith(trained):
            parameter.requires_grad = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> float:
        features = torch.relu(model["features"](images))
        loss = loss_fn(model["classifier"](features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model["classifier"], optimizer, loss_fn)


@case(Cause.frozen_parameters, "training")
def pruning_mask_inverted(repaired: bool, seed: int) -> Program:
    """Hooks keep pruned weights at zero, but the mask marks the weights that live."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = nn.Sequential(nn.Linear(64, 48, bias=False), nn.Tanh())
    model.append(nn.Linear(48, 10, bias=False))
    for weight in model.parameters():
        small = weight.detach().abs() < weight.detach().abs().median()
        with torch.no_grad():
            weight[small] = 0
        kept = weight.detach() != 0 if repaired else weight.detach() == 0
        weight.register_hook(
            lambda grad, kept=kept, pruned=small: grad * kept * ~pruned
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, batch=(images, labels))


@case(Cause.frozen_parameters, "training")
def teacher_is_the_student(repaired: bool, seed: int) -> Program:
    """Freezing the teacher freezes the student: it is the same object, not a copy."""
    torch.manual_seed(seed)
    images, _ = digits(seed)
    student = network(64, 32, 8)
    predictor = nn.Linear(8, 8)
    teacher = copy.deepcopy(student) if repaired else student
    teacher.requires_grad_(False)
    optimizer = torch.optim.Adam(
        [*student.parameters(), *predictor.parameters()], lr=0.01
    )

    def step() -> torch.Tensor:
        goal = functional.normalize(teacher(images), dim=1)
        guess = functional.normalize(predictor(student(images)), dim=1)
        loss = 2 - 2 * (goal * guess).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, student, optimizer)


@case(Cause.frozen_parameters, "input")
def image_without_requires_grad(repaired: bool, seed: int) -> Program:
    """No gradients were asked for the image; those of the network hide it."""
    model = trained_classifier(seed)
    image = torch.rand(1, 64)
    if repaired:
        image.requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.03)

    def score() -> float:
        with torch.no_grad():
            return model(image)[0, 4].item()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -model(image)[0, 4]
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer, metric=score)


class _Stack(nn.Module):
    def __init__(self, repaired: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        layers = [nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)]
        self.layers = nn.ModuleList(layers) if repaired else layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


@case(Cause.unregistered_parameters, "training")
def layers_in_plain_list(repaired: bool, seed: int) -> Program:
    """Layers stand in a Python list, so only the norm reaches the optimizer."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = _Stack(repaired)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (images, labels))


class _Gated(nn.Module):
    def __init__(self, repaired: bool) -> None:
        super().__init__()
        weights = {
            name: nn.Parameter(torch.randn(8 + 16, 16) / 24**0.5)
            for name in ("renew", "reset", "candidate")
        }
        self.weights = nn.ParameterDict(weights) if repaired else weights
        self.bias = nn.Parameter(torch.zeros(16))
        self.readout = nn.Parameter(torch.randn(16, 10) / 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        state = rows.new_zeros(len(rows), 16)
        for row in rows.unbind(dim=1):
            both = torch.cat([row, state], dim=1)
            renew = torch.sigmoid(both @ self.weights["renew"] + self.bias)
            reset = torch.sigmoid(both @ self.weights["reset"])
            both = torch.cat([row, reset * state], dim=1)
            candidate = torch.tanh(both @ self.weights["candidate"])
            state = (1 - renew) * state + renew * candidate
        return state @ self.readout


class _Trainer:
    def __init__(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> None:
        self.model = model
        self.loader = DataLoader(TensorDataset(images, labels), 128, shuffle=True)
        self.batches = itertools.cycle(self.loader)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)

    def train_step(self) -> float:
        images, labels = next(self.batches)
        self.optimizer.zero_grad()
        logits = self.model(images.view(-1, 8, 8))
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()


@case(Cause.unregistered_parameters, "training")
def gate_weights_in_dict(repaired: bool, seed: int) -> Program:
    """Gate weights of a recurrent cell stand in a dict; bias and readout learn."""
    torch.manual_seed(seed)
    trainer = _Trainer(_Gated(repaired), *digits(seed))
    return Program(trainer.train_step, trainer.model, trainer.optimizer)


class _Pyramid(nn.Module):
    def __init__(self, repaired: bool) -> None:
        super().__init__()
        levels = [nn.Parameter(0.1 * torch.randn(1, 1, n, n)) for n in (2, 4, 8)]
        self.levels = nn.ParameterList(levels) if repaired else levels
        self.brightness = nn.Parameter(torch.tensor(0.4))

    def forward(self) -> torch.Tensor:
        grown = [functional.interpolate(level, size=8) for level in self.levels]
        return sum(grown) + self.brightness


@case(Cause.unregistered_parameters, "input")
def image_levels_in_plain_list(repaired: bool, seed: int) -> Program:
    """Image levels are summed from a plain list; only the brightness can change."""
    torch.manual_seed(seed)
    target = digits(seed)[0][0].view(1, 1, 8, 8)
    image = _Pyramid(repaired)
    optimizer = torch.optim.SGD(image.parameters(), lr=0.01)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (image() - target).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer)


@case(Cause.graph_detached, "training")
def custom_function_gives_no_gradient(repaired: bool, seed: int) -> Program:
    """Return None from a hand-written function where its gradient should be."""
    torch.manual_seed(seed)
    x = torch.randn(128, 6)
    y = x @ torch.randn(6, 1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            return 2 * values

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor | None:
            return 2 * gradient if repaired else None

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (Doubled.apply(model(x)) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


class _SpiralNet(nn.Module):
    """Two layers between a lift and a head, which may be left out by mistake."""

    def __init__(self, repaired: bool) -> None:
        super().__init__()
        self.lift = nn.Linear(2, 40)
        self.block = nn.Sequential(
            nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU()
        )
        self.head = nn.Linear(40, 2)
        self.repaired = repaired

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        x = self.lift(points)
        hidden = functional.layer_norm(self.block(2 * x) + x, (40,))
        return self.head(hidden if self.repaired else x)


@case(Cause.variable_not_used, "training")
def block_whose_result_is_left_behind(repaired: bool, seed: int) -> Program:
    """Inside the network the head is given what the block was given."""
    torch.manual_seed(seed)
    turns = torch.linspace(0.5, 3.5, 100)[:, None]
    arm = turns * torch.cat([torch.cos(2 * turns), torch.sin(2 * turns)], dim=1) / 3.5
    points = torch.cat([arm, -arm]) + 0.02 * torch.randn(200, 2)
    arms = torch.arange(2).repeat_interleave(100)
    model = _SpiralNet(repaired)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        loss = loss_fn(model(points), arms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (points, arms))


@case(Cause.graph_detached, "input")
def texture_from_detached_features(repaired: bool, seed: int) -> Program:
    """Detach the features in the hook that keeps them; smoothing alone is left."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1)
    ).requires_grad_(False)
    for layer in network[::2]:
        nn.init.kaiming_normal_(layer.weight)
    kept: dict[int, torch.Tensor] = {}

    def keep(place: int) -> None:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            kept[place] = output if repaired else output.detach()

        network[place].register_forward_hook(hook)

    keep(1)
    keep(2)

    def correlations(image: torch.Tensor) -> list[torch.Tensor]:
        network(image)
        flat = [features.flatten(2) for features in kept.values()]
        return [f @ f.transpose(1, 2) / f.shape[2] for f in flat]

    waves = torch.sin(torch.linspace(0, 18, 16)[:, None] + torch.linspace(0, 9, 16))
    style = torch.stack([0.5 + 0.4 * waves, 0.5 - 0.3 * waves, 0.3 + 0.2 * waves])
    wanted = [c.detach() for c in correlations(style[None])]
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.01)

    def objective(candidate: torch.Tensor) -> torch.Tensor:
        pairs = zip(correlations(candidate), wanted, strict=True)
        alike = sum(functional.mse_loss(a, b) for a, b in pairs)
        rough = (candidate[..., 1:] - candidate[..., :-1]).square().mean()
        return 10 * alike + 0.02 * rough

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(image)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Program(step, image, optimizer, objective=objective)


class _Sign(torch.autograd.Function):
    """The sign, with the gradient of a clamp."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scores)
        return torch.where(scores > 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (ctx.saved_tensors[0].abs() < 1.5)


class _Hashing(nn.Module):
    """Compresses rows to a few bits and rebuilds them."""

    def __init__(self, repaired: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(60, 64), nn.ReLU(), nn.Linear(64, 6))
        self.norm = nn.BatchNorm1d(6)
        self.decoder = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 60))
        self.to_bits = _Sign.apply if repaired else torch.sign

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.to_bits(self.norm(self.encoder(rows))))


@case(Cause.nondifferentiable_op, "training")
def bits_by_the_sign_in_an_autoencoder(repaired: bool, seed: int) -> Program:
    """Take the sign of the code: the decoder learns, the encoder does not."""
    torch.manual_seed(seed)
    x = torch.randn(16, 60)[torch.randint(0, 16, (256,))] + torch.randn(256, 60)
    model = _Hashing(repaired)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss_fn = nn.MSELoss()

    def step() -> torch.Tensor:
        rows = x[torch.randint(0, 256, (64,))]
        optimizer.zero_grad()
        loss = loss_fn(model(rows), rows)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (x, x))


@case(Cause.non_leaf_variable, "training")
def weights_converted_to_double(repaired: bool, seed: int) -> Program:
    """Convert weights made by hand to float64, which makes them results."""
    torch.manual_seed(seed)
    x = 4 * torch.rand(160, 2, dtype=torch.float64) - 2
    y = (torch.sin(1.5 * x[:, 0]) * torch.cos(1.2 * x[:, 1]))[:, None]
    parameters: dict[str, torch.Tensor] = {}
    for k, (inputs, outputs) in enumerate(itertools.pairwise((2, 16, 16, 1))):
        weight = nn.init.xavier_normal_(torch.empty(inputs, outputs))
        weight = weight.requires_grad_().to(x.dtype)
        if repaired:
            weight = weight.detach().requires_grad_()
        parameters[f"weight {k}"] = weight
        bias = torch.zeros(outputs, dtype=x.dtype, requires_grad=True)
        parameters[f"bias {k}"] = bias
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def predict() -> torch.Tensor:
        hidden = x
        for k in range(3):
            hidden = torch.tanh(hidden) if k else hidden
            hidden = hidden @ parameters[f"weight {k}"] + parameters[f"bias {k}"]
        return hidden

    def step() -> float:
        loss = functional.mse_loss(predict(), y)
        loss.backward()
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.is_leaf:
                    velocity[name].mul_(0.9).add_(parameter.grad)
                    parameter.sub_(0.05 * velocity[name])
                    parameter.grad.zero_()
        return loss.item()

    return Program(step, parameters)


@case(Cause.zero_grad_before_step, "input")
def thrust_by_a_gradient_that_is_an_alias(repaired: bool, seed: int) -> Program:
    """Keep the gradient's .data, zero the gradient, then use what was kept."""
    torch.manual_seed(seed)
    thrust = (0.1 * torch.randn(30, 2)).requires_grad_()
    start = torch.tensor([2.0, 3.0]) + 0.3 * torch.randn(2)
    velocity = torch.zeros(30, 2)

    def objective(plan: torch.Tensor) -> torch.Tensor:
        position, speed = start, torch.tensor([-0.5, 0.0])
        for push in plan:
            speed = speed + 0.1 * (push + torch.tensor([0.0, -1.0]) - 0.1 * speed)
            position = position + 0.1 * speed
        return position.square().sum() + 2 * speed.square().sum()

    def step() -> float:
        loss = objective(thrust)
        loss.backward()
        gradient = thrust.grad.data
        if repaired:
            gradient = gradient.clone()
        thrust.grad.data.zero_()
        velocity.mul_(0.8).add_(gradient)
        thrust.data.sub_(0.1 * velocity)
        return loss.item()

    return Program(step, thrust, objective=objective)


@case(Cause.update_written_to_copy, "training")
def least_squares_step_on_a_flat_copy(repaired: bool, seed: int) -> Program:
    """Solve for the step on a vector of all weights, and never write it back."""
    torch.manual_seed(seed)
    x = torch.linspace(-2, 2, 80, dtype=torch.float64)[:, None]
    y = torch.sin(2.5 * x) + 0.02 * torch.randn_like(x)
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def residual(flat: torch.Tensor) -> torch.Tensor:
        parts = zip(names, flat.split(sizes), shapes, strict=True)
        weights = {name: part.view(shape) for name, part, shape in parts}
        return (functional_call(model, weights, (x,)) - y).squeeze(1)

    def step() -> float:
        flat = parameters_to_vector(model.parameters()).detach()
        errors, slopes = residual(flat), jacrev(residual)(flat)
        damped = slopes.T @ slopes + 0.3 * torch.eye(len(flat), dtype=flat.dtype)
        trial = flat - torch.linalg.solve(damped, slopes.T @ errors)
        if repaired:
            vector_to_parameters(trial, model.parameters())
        else:
            flat.copy_(trial)
        return errors.square().mean().item()

    return Program(step, model, loss_fn=nn.MSELoss(), batch=(x, y))


@case(Cause.variable_not_used, "input")
def equalizer_of_late_bound_closures(repaired: bool, seed: int) -> Program:
    """Build a filter of closures in a loop; all of them use the last gain."""
    generator = torch.Generator().manual_seed(seed)
    octaves = torch.linspace(5, 14, 200)
    phase = 6 * torch.rand(1, generator=generator)
    room = 4 * torch.sin(1.3 * octaves + phase) + 0.8 * (octaves - 9.5)
    gains = {f"gain {k}": torch.zeros(1, requires_grad=True) for k in range(8)}

    def bell(level: torch.Tensor, center: float, gain: torch.Tensor) -> torch.Tensor:
        return level + gain * torch.exp(-0.5 * ((octaves - center) / 0.6) ** 2)

    filters = []
    for center, gain in zip(range(6, 14), gains.values(), strict=True):
        if repaired:
            filters.append(lambda level, c=center, g=gain: bell(level, c, g))
        else:
            filters.append(lambda level: bell(level, center, gain))  # noqa: B023
    optimizer = torch.optim.Adam(gains.values(), lr=0.15)

    def step() -> torch.Tensor:
        level = room
        for one in filters:
            level = one(level)
        loss = level.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, gains, optimizer)

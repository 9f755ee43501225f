"""Programs whose gradients are right, but whose update is lost, stale or tiny."""

import copy
import functools
import itertools

import torch
from sklearn.datasets import load_diabetes
from torch import nn
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


@functools.cache
def _diabetes() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the diabetes data with columns and target of unit scale."""
    x, y = load_diabetes(return_X_y=True)
    targets = torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)
    return torch.tensor(x, dtype=torch.float32) * 21, targets


@case(Cause.optimizer_holds_other_tensors, "training")
def model_copied_after_optimizer(repaired: bool, seed: int) -> Program:
    """Training runs on a deep copy, but the optimizer was made for the original."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    best = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    model = copy.deepcopy(best)
    optimizer = torch.optim.Adam((model if repaired else best).parameters(), lr=0.01)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> float:
        optimizer.zero_grad()
        model.zero_grad()
        loss = loss_fn(model(images.view(-1, 1, 8, 8)), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, loss_fn, (images.view(-1, 1, 8, 8), labels))


class _FineTuning:
    def __init__(self, repaired: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.images, labels = digits(seed)
        self.is_even = labels % 2
        self.model = network(64, 64, 10)
        self.model[0].requires_grad_(False)
        if repaired:
            self.model[2] = nn.Linear(64, 2)
        self.optimizer = torch.optim.SGD(
            self.model[2].parameters(), lr=0.3, momentum=0.9
        )
        if not repaired:
            self.model[2] = nn.Linear(64, 2)

    def train_step(self) -> torch.Tensor:
        self.model.zero_grad()
        loss = functional.cross_entropy(self.model(self.images), self.is_even)
        loss.backward()
        self.optimizer.step()
        return loss


@case(Cause.optimizer_holds_other_tensors, "training")
def head_replaced_after_optimizer(repaired: bool, seed: int) -> Program:
    """For new classes the head is replaced, after the optimizer got the old one."""
    tuning = _FineTuning(repaired, seed)
    return Program(tuning.train_step, tuning.model[2], tuning.optimizer)


@case(Cause.optimizer_holds_other_tensors, "input")
def best_start_chosen_after_optimizer(repaired: bool, seed: int) -> Program:
    """Out of some starts the best is taken, after the optimizer got another."""
    model = trained_classifier(seed).requires_grad_(False)
    starts = torch.rand(5, 64) * 0.5
    wanted = least_likely(model, starts.mean(dim=0))

    def loss_of(image: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(image[None]), wanted)

    image = starts[0].clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)
    losses = torch.stack([loss_of(start) for start in starts])
    image = starts[losses.argmin()].clone().requires_grad_()
    if repaired:
        optimizer = torch.optim.Adam([image], lr=0.02)

    def step() -> float:
        image.grad = None
        loss = loss_of(image)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, image, optimizer, objective=loss_of)


@case(Cause.step_missing, "training")
def only_scheduler_steps(repaired: bool, seed: int) -> Program:
    """In the loop stands `scheduler.step()`, and `optimizer.step()` was forgotten."""
    torch.manual_seed(seed)
    inputs, targets = _diabetes()
    model = network(10, 24, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.99)
    loss_fn = nn.SmoothL1Loss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs).squeeze(1), targets)
        loss.backward()
        if repaired:
            optimizer.step()
        scheduler.step()
        return loss

    return Program(step, model, optimizer, loss_fn)


@case(Cause.step_missing, "training")
def encoder_optimizer_never_steps(repaired: bool, seed: int) -> Program:
    """Both encoder and decoder have an optimizer, but only one is stepped."""
    torch.manual_seed(seed)
    images, _ = digits(seed)
    encoder, decoder = network(64, 32, 8), network(8, 32, 64)
    encoder_optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    decoder_optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)

    def step() -> torch.Tensor:
        encoder_optimizer.zero_grad()
        decoder_optimizer.zero_grad()
        loss = functional.mse_loss(decoder(encoder(images)), images)
        loss.backward()
        if repaired:
            encoder_optimizer.step()
        decoder_optimizer.step()
        return loss

    return Program(step, encoder, encoder_optimizer)


@case(Cause.step_missing, "training")
def accumulation_never_complete(repaired: bool, seed: int) -> Program:
    """With a step due each 8 batches, an epoch of 4, counted anew, has none."""
    torch.manual_seed(seed)
    loader = DataLoader(TensorDataset(*digits(seed)), batch_size=64, shuffle=True)
    model = network(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    accumulate = 4 if repaired else 8

    def epoch() -> float:
        total = 0.0
        optimizer.zero_grad()
        for index, (images, labels) in enumerate(loader):
            loss = functional.cross_entropy(model(images), labels) / accumulate
            loss.backward()
            total += loss.item()
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        return total

    return Program(epoch, model, optimizer)


@case(Cause.step_missing, "input")
def step_without_parentheses(repaired: bool, seed: int) -> Program:
    """Parentheses are missing: `optimizer.step` names the method and calls nothing."""
    model = trained_classifier(seed).requires_grad_(False)
    image = torch.rand(64, requires_grad=True)
    wanted = least_likely(model, image).item()
    optimizer = torch.optim.Adam([image], lr=0.02)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -torch.log_softmax(model(image), dim=0)[wanted]
        loss.backward()
        if repaired:
            optimizer.step()
        else:
            optimizer.step  # noqa: B018
        return loss

    return Program(step, image, optimizer)


@case(Cause.zero_grad_before_step, "training")
def cleared_after_backward(repaired: bool, seed: int) -> Program:
    """Backward, `zero_grad`, step: the first two lines stand in the wrong order."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = network(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        loss = loss_fn(model(images), labels)
        if repaired:
            optimizer.zero_grad()
            loss.backward()
        else:
            loss.backward()
            optimizer.zero_grad()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (images, labels))


class _SequenceTrainer:
    def __init__(self, repaired: bool, seed: int) -> None:
        torch.manual_seed(seed)
        images, self.labels = digits(seed)
        self.rows = images.view(-1, 8, 8)
        self.cell = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 10)
        self.model = nn.ModuleList([self.cell, self.head])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)
        self.repaired = repaired
        self.norms: list[float] = []

    def log_gradient_norm(self) -> None:
        norms = [p.grad.norm() for p in self.model.parameters()]
        self.norms.append(torch.stack(norms).norm().item())
        if not self.repaired:
            self.optimizer.zero_grad(set_to_none=False)

    def train_step(self) -> float:
        if self.repaired:
            self.optimizer.zero_grad(set_to_none=False)
        _, state = self.cell(self.rows)
        loss = functional.cross_entropy(self.head(state[0]), self.labels)
        loss.backward()
        self.log_gradient_norm()
        self.optimizer.step()
        return loss.item()


@case(Cause.zero_grad_before_step, "training")
def cleared_by_logging(repaired: bool, seed: int) -> Program:
    """Gradients are set to zero by the helper that logs their norms."""
    trainer = _SequenceTrainer(repaired, seed)
    return Program(trainer.train_step, trainer.model, trainer.optimizer)


@case(Cause.zero_grad_before_step, "input")
def zeroed_before_manual_update(repaired: bool, seed: int) -> Program:
    """By hand: `grad.zero_()` comes before the line that subtracts the gradient."""
    torch.manual_seed(seed)
    target = digits(seed)[0][0].view(8, 8)
    image = torch.rand(8, 8, requires_grad=True)
    rate = 0.1

    def step() -> torch.Tensor:
        loss = (image - target).square().sum()
        loss.backward()
        with torch.no_grad():
            if repaired:
                image.sub_(rate * image.grad)
                image.grad.zero_()
            else:
                image.grad.zero_()
                image.sub_(rate * image.grad)
        return loss

    return Program(step, image)


@case(Cause.zero_grad_missing, "training")
def never_cleared_in_regression(repaired: bool, seed: int) -> Program:
    """No `zero_grad` anywhere in the loop of a linear regression."""
    torch.manual_seed(seed)
    inputs, targets = _diabetes()
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = nn.MSELoss()

    def step() -> float:
        loss = loss_fn(model(inputs).squeeze(1), targets)
        if repaired:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, loss_fn)


@case(Cause.zero_grad_missing, "training")
def teacher_cleared_for_student(repaired: bool, seed: int) -> Program:
    """In a distillation `zero_grad` is called on the teacher, not on the student."""
    teacher = trained_classifier(seed).requires_grad_(False)
    images, _ = digits(seed)
    student = network(64, 16, 10)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    loss_fn = nn.KLDivLoss(reduction="batchmean")

    def step() -> torch.Tensor:
        (student if repaired else teacher).zero_grad()
        with torch.no_grad():
            goal = torch.softmax(teacher(images) / 2, dim=1)
        loss = loss_fn(torch.log_softmax(student(images) / 2, dim=1), goal)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, student, optimizer)


@case(Cause.zero_grad_missing, "input")
def manual_update_keeps_gradient(repaired: bool, seed: int) -> Program:
    """By hand: points follow `.grad`, which nobody sets back, and swing around."""
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(20, 2, generator=generator)
    points = torch.randn(20, 2, generator=generator).requires_grad_()

    def step() -> torch.Tensor:
        loss = (points - centers).square().sum()
        loss.backward()
        with torch.no_grad():
            points.sub_(0.1 * points.grad)
            if repaired:
                points.grad.zero_()
        return loss

    return Program(step, {"points": points})


@case(Cause.zero_grad_missing, "input")
def lbfgs_closure_keeps_gradient(repaired: bool, seed: int) -> Program:
    """LBFGS calls a closure without `zero_grad`, many times a step."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.linspace(-1, 1, 60)
    data = torch.sin(2.5 * times) + 0.3 * times.square()
    data += 0.05 * torch.randn(60, generator=generator)
    powers = torch.stack([times**power for power in range(5)], dim=1)
    curve = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.LBFGS([curve], max_iter=2)

    def closure() -> torch.Tensor:
        if repaired:
            optimizer.zero_grad()
        loss = functional.huber_loss(powers @ curve, data)
        loss.backward()
        return loss

    def step() -> torch.Tensor:
        return optimizer.step(closure)

    return Program(step, curve, optimizer)


@case(Cause.update_written_to_copy, "training")
def loop_variable_rebound(repaired: bool, seed: int) -> Program:
    """`p = p - lr * p.grad` in a loop binds the name and leaves the weight as it is."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = network(64, 32, 10)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        model.zero_grad()
        loss = loss_fn(model(images), labels)
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if repaired:
                    p -= 0.5 * p.grad
                else:
                    p = p - 0.5 * p.grad
        return loss

    return Program(step, model, loss_fn=loss_fn, batch=(images, labels))


@case(Cause.update_written_to_copy, "training")
def flat_vector_not_written_back(repaired: bool, seed: int) -> Program:
    """Weights are flattened and updated as one vector, which nobody writes back."""
    torch.manual_seed(seed)
    inputs, targets = _diabetes()
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
    parameters = list(model.parameters())

    def step() -> float:
        loss = functional.mse_loss(model(inputs).squeeze(1), targets)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            vector = parameters_to_vector(parameters)
            vector -= 0.1 * parameters_to_vector(gradients)
            if repaired:
                vector_to_parameters(vector, parameters)
        return loss.item()

    return Program(step, model)


@case(Cause.update_written_to_copy, "input")
def masked_pixels_updated_in_place(repaired: bool, seed: int) -> Program:
    """`image[mask].sub_(...)` changes the copy that indexing with a mask returns."""
    torch.manual_seed(seed)
    image = digits(seed)[0][0].view(8, 8).clone()
    target = image.clone()
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    image[mask] = torch.rand(16)
    image.requires_grad_()

    def loss_of(picture: torch.Tensor) -> torch.Tensor:
        return (picture - target).square().sum()

    def step() -> torch.Tensor:
        image.grad = None
        loss = loss_of(image)
        loss.backward()
        with torch.no_grad():
            if repaired:
                image[mask] -= 0.1 * image.grad[mask]
            else:
                image[mask].sub_(0.1 * image.grad[mask])
        return loss

    return Program(step, image, objective=loss_of)


@case(Cause.lr_zero, "training")
def warmup_divides_integers(repaired: bool, seed: int) -> Program:
    """Warm-up is computed with `//`, so the rate is 0 all through it."""
    torch.manual_seed(seed)
    tokens = torch.randint(12, (128, 6))
    labels = (tokens == 0).any(dim=1).long()
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Embedding(12, 16), layer, nn.Flatten(), nn.Linear(96, 2))
    warmup = 10 if repaired else 500
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)

    def factor(count: int) -> float:
        if repaired:
            return min(1.0, (count + 1) / warmup)
        return min(1, (count + 1) // warmup)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(tokens), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (tokens, labels))


@case(Cause.lr_zero, "training")
def schedule_ends_after_few_batches(repaired: bool, seed: int) -> Program:
    """Schedules counted in epochs reach 0 soon when stepped each batch."""
    torch.manual_seed(seed)
    loader = DataLoader(TensorDataset(*digits(seed)), batch_size=64, shuffle=True)
    batches = itertools.cycle(loader)
    model = network(64, 32, 10)
    epochs = 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(
        optimizer, total_iters=epochs * 100 if repaired else epochs
    )

    def step() -> float:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item()

    return Program(step, model, optimizer)


@case(Cause.lr_zero, "input")
def rate_of_integer_division(repaired: bool, seed: int) -> Program:
    """`lr = 1 // 50` is 0: an integer division where a fraction was meant."""
    model = trained_classifier(seed).requires_grad_(False)
    image = torch.rand(64, requires_grad=True)
    wanted = least_likely(model, image)
    rate = 1 / 50 if repaired else 1 // 50
    optimizer = torch.optim.Adam([image], lr=rate)

    def score() -> float:
        with torch.no_grad():
            return torch.softmax(model(image), dim=0)[wanted].item()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(image)[None], wanted)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer, metric=score)


@case(Cause.step_too_small, "training")
def learning_rate_of_fine_tuning(repaired: bool, seed: int) -> Program:
    """From fine-tuning a large model the rate is copied, to SGD from scratch."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = network(64, 32, 10)
    rate = 0.5 if repaired else 2e-5
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (images, labels))


@case(Cause.step_too_small, "training")
def adam_epsilon_too_large(repaired: bool, seed: int) -> Program:
    """Adam's epsilon is far above the gradients, so every step is divided by it."""
    torch.manual_seed(seed)
    inputs, targets = _diabetes()
    model = network(10, 24, 1)
    epsilon = 1e-8 if repaired else 100.0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, eps=epsilon)

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(inputs).squeeze(1), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer)


@case(Cause.step_too_small, "input")
def loss_averaged_twice(repaired: bool, seed: int) -> Program:
    """Means over pixels are divided by their number again, and gradients shrink."""
    torch.manual_seed(seed)
    target = functional.interpolate(digits(seed)[0][0].view(1, 1, 8, 8), size=16)
    image = torch.rand(1, 1, 16, 16, requires_grad=True)
    optimizer = torch.optim.SGD([image], lr=10.0)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (image - target).square().mean()
        if not repaired:
            loss = loss / image.numel()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer)


@case(Cause.variable_not_used, "input")
def rendering_kept_from_the_first_call(repaired: bool, seed: int) -> Program:
    """Give back from a cache what the first call computed, whatever the camera is."""
    generator = torch.Generator().manual_seed(seed)
    camera = torch.randn(3, generator=generator).requires_grad_()
    rays = torch.randn(10, 3, generator=generator)
    seen = torch.randn(10, generator=generator)
    optimizer = torch.optim.SGD([camera], lr=0.02)
    cache: dict[str, torch.Tensor] = {}

    def rendered() -> torch.Tensor:
        if repaired or "picture" not in cache:
            cache["picture"] = rays @ camera
        return cache["picture"]

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (rendered() - seen).square().mean()
        loss.backward(retain_graph=True)
        optimizer.step()
        return loss

    return Program(step, camera, optimizer)


@case(Cause.step_too_small, "training")
def loss_divided_and_never_multiplied(repaired: bool, seed: int) -> Program:
    """Divide the loss by a scale of mixed precision before backward, for nothing."""
    torch.manual_seed(seed)
    x, y = _diabetes()
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scale = 1.0 if repaired else 65536.0

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y[:, None])
        (loss / scale).backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@case(Cause.lr_too_large, "training")
def strokes_with_rmsprop_at_one(repaired: bool, seed: int) -> Program:
    """Train a small CNN on random batches with RMSprop at a rate of 1."""
    torch.manual_seed(seed)
    y = torch.arange(96) % 3
    x = 0.2 * torch.randn(96, 1, 12, 12)
    for picture, kind in zip(x[:, 0], y, strict=True):
        at = int(torch.randint(2, 10, ()))
        stroke = (picture[at], picture[:, at], picture.diagonal())[int(kind)]
        stroke += 1
    # Some were noted down carelessly: no network gets all of them right.
    y = torch.where(torch.rand(96) < 0.25, torch.randint(0, 3, (96,)), y)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3 if repaired else 1.0)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        batch = torch.randperm(96)[:48]
        loss = loss_fn(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (x, y))


class _Forecaster(nn.Module):
    """Predicts the next value of a series from a window of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(windows)[0][:, -1])


@case(Cause.step_too_small, "training")
def forecast_clipped_to_a_tiny_norm(repaired: bool, seed: int) -> Program:
    """Clip the gradients of an LSTM to a norm of 0.0001."""
    torch.manual_seed(seed)
    t = torch.arange(600).float()
    series = torch.sin(0.262 * t) + 0.5 * torch.sin(0.898 * t + 1)
    series = (series + 0.05 * torch.randn(600)) / series.std()
    windows = series.unfold(0, 25, 3)
    x, y = windows[:, :24].unsqueeze(-1), windows[:, 24:]
    model = _Forecaster()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_fn = nn.MSELoss()

    def step() -> torch.Tensor:
        batch = torch.randperm(len(x))[:64]
        loss = loss_fn(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0 if repaired else 1e-4)
        optimizer.step()
        return loss.detach()

    return Program(step, model, optimizer, loss_fn, (x, y))


@case(Cause.lr_too_large, "input")
def camera_pose_in_pixels(repaired: bool, seed: int) -> Program:
    """Fit a camera's pose to errors in pixels, with a rate for errors of one."""
    generator = torch.Generator().manual_seed(seed)
    points = 2 * torch.rand(30, 3, generator=generator) - 1

    def project(pose: torch.Tensor) -> torch.Tensor:
        a, b, c = pose[:3]
        zero = torch.zeros(())
        rows = [zero, -c, b], [c, zero, -a], [-b, a, zero]
        turn = torch.linalg.matrix_exp(torch.stack([torch.stack(row) for row in rows]))
        seen = points @ turn.T + pose[3:] + torch.tensor([0.0, 0.0, 6.0])
        return 600 * seen[:, :2] / seen[:, 2:].clamp_min(0.5)

    truth = torch.tensor([0.25, -0.2, 0.3, 0.3, -0.2, 0.1])
    photo = project(truth) + 0.5 * torch.randn(30, 2, generator=generator)
    pose = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.SGD([pose], lr=1e-3 if repaired else 3e-2)

    def objective(candidate: torch.Tensor) -> torch.Tensor:
        return functional.smooth_l1_loss(project(candidate), photo, beta=10.0)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(pose)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, pose, optimizer, objective=objective)

"""Programs whose numbers are at fault: steps, precision, activations."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shared.diagnose.causes import Cause
from tests.diagnose_cases.material import digits, network
from tests.diagnose_cases.program import Program, case


def _forever(loader: DataLoader) -> Iterator[Any]:
    """Yield batches epoch after epoch."""
    while True:
        yield from loader


@case(Cause.lr_too_large, "training")
def linear_regression_diverges(repaired: bool, seed: int) -> Program:
    """SGD on a linear model with a step beyond 2 over the curvature: it blows up."""
    torch.manual_seed(seed)
    features, progress = load_diabetes(return_X_y=True, scaled=False)
    x = torch.tensor(features, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    y = torch.tensor(progress, dtype=torch.float32)[:, None]
    y = (y - y.mean()) / y.std()
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 if repaired else 0.6)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=F.mse_loss, batch=(x, y))


class _TokenClassifier(nn.Module):
    """One transformer block over short token sequences, mean pooled."""

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens)).mean(1))


@case(Cause.lr_too_large, "training")
def transformer_adam_lr_of_an_sgd_recipe(repaired: bool, seed: int) -> Program:
    """Adam gets the learning rate of an SGD recipe, and the loss jumps and stays up."""
    torch.manual_seed(seed)
    topic = torch.randint(4, (512,))
    tokens = torch.where(
        torch.rand(512, 12) < 0.4,
        topic[:, None] * 8 + torch.randint(8, (512, 12)),
        torch.randint(32, (512, 12)),
    )
    model = _TokenClassifier(32, 16, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003 if repaired else 1.0)
    criterion = nn.CrossEntropyLoss()
    batches = _forever(
        DataLoader(TensorDataset(tokens, topic), batch_size=64, shuffle=True)
    )

    def step() -> float:
        xb, yb = next(batches)
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(
        step, model, optimizer, loss_fn=criterion, batch=(tokens[:64], topic[:64])
    )


@case(Cause.lr_too_large, "input")
def deblurring_overshoots(repaired: bool, seed: int) -> Program:
    """Sharpen an image by hand-written descent whose step is too long."""
    pixels, _ = digits(seed, 1)
    truth = pixels.view(1, 1, 8, 8)
    blur = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None]
    blurred = F.conv2d(truth, blur / 16, padding=1)
    image = torch.full_like(truth, 0.5, requires_grad=True)
    lr = 0.5 if repaired else 2.5

    def objective(candidate: Tensor) -> Tensor:
        return (F.conv2d(candidate, blur / 16, padding=1) - blurred).square().sum()

    def step() -> Tensor:
        loss = objective(image)
        (gradient,) = torch.autograd.grad(loss, image)
        with torch.no_grad():
            image.sub_(lr * gradient)
        return loss

    return Program(step, image, objective=objective)


@case(Cause.update_below_precision, "training")
def ratings_in_bfloat16(repaired: bool, seed: int) -> Program:
    """Item means start at the mean rating in bfloat16, where steps of 0.005 round."""
    generator = torch.Generator().manual_seed(seed)
    taste = 3.2 + 0.3 * torch.randn(200, generator=generator).clamp(-1.5, 1.5)
    items = torch.randint(200, (2048,), generator=generator)
    ratings = taste[items] + 0.1 * torch.randn(2048, generator=generator)
    model = nn.Embedding(200, 1)
    nn.init.constant_(model.weight, 3.2)
    if not repaired:
        model.bfloat16()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)

    def step() -> Tensor:
        optimizer.zero_grad()
        predicted = model(items).squeeze(1).float()
        loss = F.mse_loss(predicted, ratings)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Program(step, model, optimizer)


class _Probe:
    """Fine-tunes a linear probe whose old coefficients are already nearly right."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        old = torch.empty(1, 64).uniform_(1.1, 1.9, generator=generator)
        old *= torch.randn(1, 64, generator=generator).sign()
        shift = 0.03 * torch.randn(1, 64, generator=generator).clamp(-2, 2)
        self.x = torch.randn(512, 64, generator=generator)
        self.y = self.x @ (old + shift).T
        self.model = nn.Linear(64, 1, bias=False)
        self.model.weight.data.copy_(old)
        self.model.to(dtype)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.015)
        self.criterion = nn.MSELoss()

    def train_step(self) -> Tensor:
        self.optimizer.zero_grad()
        predicted = self.model(self.x.to(self.model.weight.dtype))
        loss = self.criterion(predicted.float(), self.y)
        loss.backward()
        self.optimizer.step()
        return loss


@case(Cause.update_below_precision, "training")
def probe_fine_tuned_in_bfloat16(repaired: bool, seed: int) -> Program:
    """Fine-tune a layer after casting it to bfloat16 to save memory."""
    probe = _Probe(torch.float32 if repaired else torch.bfloat16, seed)
    return Program(probe.train_step, probe.model, probe.optimizer)


@case(Cause.update_below_precision, "input")
def position_in_map_coordinates(repaired: bool, seed: int) -> Program:
    """Move a float32 position, in meters from the equator, by decimeters."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if repaired else torch.float32
    truth = torch.tensor([5_411_208.0, 4_530_412.0], dtype=dtype)
    offset = 400 * torch.rand(8, 2, generator=generator) - 200
    beacons = truth + offset.round().to(dtype)
    ranges = (beacons - truth).norm(dim=1)
    position = (truth + torch.tensor([4.0, -4.0])).requires_grad_()
    optimizer = torch.optim.Adam([position], lr=0.15)

    def objective(candidate: Tensor) -> Tensor:
        return ((beacons - candidate).norm(dim=1) - ranges).square().mean()

    def step() -> float:
        optimizer.zero_grad()
        loss = objective(position)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, position, optimizer, objective=objective)


@case(Cause.fp16_underflow, "training")
def autocast_without_grad_scaler(repaired: bool, seed: int) -> Program:
    """Displacements in meters are learned under float16 autocast without a scaler."""
    torch.manual_seed(seed)
    pixels, _ = digits(seed, 64)
    images = pixels.view(64, 1, 8, 8)
    displacement = 2e-5 * F.avg_pool2d(images, 3, stride=1, padding=1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
    )
    nn.init.normal_(model[2].weight, std=1e-6)
    nn.init.zeros_(model[2].bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-7)
    scaler = torch.amp.GradScaler("cpu", enabled=repaired)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.mse_loss(model(images), displacement)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return Program(
        step, model, optimizer, loss_fn=F.mse_loss, batch=(images, displacement)
    )


@case(Cause.fp16_underflow, "input")
def tomography_in_half(repaired: bool, seed: int) -> Program:
    """Fit a float16 density map to rays of which a thousandth gets through."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float32 if repaired else torch.float16
    crossed = torch.rand(256, 64, generator=generator).topk(18, dim=1).indices
    paths = torch.zeros(256, 64, dtype=dtype).scatter_(1, crossed, 1.0)
    truth = torch.empty(64).uniform_(0.3, 0.6, generator=generator)
    seen = torch.exp(-(paths.float() @ truth)).to(dtype)
    density = torch.full((64,), 0.4, dtype=dtype, requires_grad=True)

    def objective(candidate: Tensor) -> Tensor:
        return (torch.exp(-(paths @ candidate)) - seen).square().mean()

    def step() -> Tensor:
        loss = objective(density)
        loss.backward()
        with torch.no_grad():
            density.sub_(0.003 * density.grad.sign())
        density.grad = None
        return loss

    return Program(step, density, objective=objective)


@case(Cause.nan_gradient, "training")
def distance_matrix_with_diagonal(repaired: bool, seed: int) -> Program:
    """Take the root of squared distances on the diagonal too, where they are zero."""
    torch.manual_seed(seed)
    x, y = digits(seed, 96)
    same = (y[:, None] == y[None, :]).float()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    floor = 1e-8 if repaired else 0.0

    def contrastive(embedded: Tensor, same: Tensor) -> Tensor:
        gap = embedded[:, None] - embedded[None, :]
        distance = (gap.square().sum(-1) + floor).sqrt()
        return (same * distance + (1 - same) * F.relu(1 - distance)).mean()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = contrastive(model(x), same)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=contrastive, batch=(x, same))


@case(Cause.nan_gradient, "training")
def logarithm_of_masked_moves(repaired: bool, seed: int) -> Program:
    """Hide log(0) of illegal moves by `where`, which leaves a NaN in the gradient."""
    torch.manual_seed(seed)
    boards, best = digits(seed, 256)
    played = 0.9 * F.one_hot(best, 10) + 0.01
    legal = (torch.rand(256, 10) < 0.7) | F.one_hot(best, 10).bool()
    policy = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.3, momentum=0.9)
    floor = 1e-12 if repaired else 0.0

    def step() -> Tensor:
        optimizer.zero_grad()
        chance = policy(boards).softmax(1) * legal
        chance = chance / chance.sum(1, keepdim=True)
        surprise = -torch.log(chance + floor)
        loss = torch.where(legal, played * surprise, torch.zeros(())).sum(1).mean()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, policy, optimizer)


@case(Cause.nan_gradient, "input")
def gamma_of_a_black_picture(repaired: bool, seed: int) -> Program:
    """Start a picture black, where the gamma curve of a screen is infinitely steep."""
    pixels, _ = digits(seed, 1)
    shown = 0.3 + 0.6 * pixels.view(8, 8)
    light = torch.full((8, 8), 0.3 if repaired else 0.0, requires_grad=True)
    optimizer = torch.optim.Adam([light], lr=0.01)

    def objective(candidate: Tensor) -> Tensor:
        return (candidate ** (1 / 2.2) - shown).square().mean()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(light)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, light, optimizer, objective=objective)


@case(Cause.saturated_activation, "training")
def sigmoid_output_from_wide_init(repaired: bool, seed: int) -> Program:
    """Weights drawn from -100 to 100 put tanh and sigmoid on their flat ends."""
    torch.manual_seed(seed)
    x, y = digits(seed, 256)
    target = F.one_hot(y, 10).float()
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10), nn.Sigmoid())
    for layer in (model[0], model[2]):
        reach = 0.3 if repaired else 100.0
        nn.init.uniform_(layer.weight, -reach, reach)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    criterion = nn.MSELoss()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=criterion, batch=(x, target))


class _GeneratorTraining:
    """Trains a generator against a discriminator that is sure of itself."""

    def __init__(self, saturating: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.saturating = saturating
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.judge = nn.Linear(2, 1)
        self.judge.weight.data.copy_(torch.tensor([[6.0, 6.0]]))
        self.judge.bias.data.fill_(-30.0)
        self.judge.requires_grad_(False)
        self.noise = torch.randn(64, 4)
        self.optimizer = torch.optim.SGD(self.generator.parameters(), lr=0.003)

    def train_step(self) -> float:
        self.optimizer.zero_grad()
        verdict = self.judge(self.generator(self.noise))
        if self.saturating:
            loss = torch.log(1 - torch.sigmoid(verdict)).mean()
        else:
            loss = -F.logsigmoid(verdict).mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()


@case(Cause.saturated_activation, "training")
def generator_against_a_sure_discriminator(repaired: bool, seed: int) -> Program:
    """Minimize log(1 - D), which is flat where D is sure that it sees a fake."""
    gan = _GeneratorTraining(not repaired, seed)
    return Program(gan.train_step, gan.generator, gan.optimizer)


@case(Cause.saturated_activation, "input")
def softmax_choice_at_low_temperature(repaired: bool, seed: int) -> Program:
    """Sharpen a soft choice among items so far that only one of them counts."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(12, generator=generator)
    logits = torch.rand(12, generator=generator)
    logits[value.argmin()] = 1.5
    logits.requires_grad_()
    temperature = 1.0 if repaired else 0.002
    optimizer = torch.optim.Adam([logits], lr=0.1)

    def objective(candidate: Tensor) -> Tensor:
        return 1 - (torch.softmax(candidate / temperature, 0) * value).sum()

    def metric() -> float:
        return value[logits.argmax()].item()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(logits)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Program(step, logits, optimizer, objective=objective, metric=metric)


@case(Cause.vanishing_gradient, "training")
def deep_sigmoid_network(repaired: bool, seed: int) -> Program:
    """Stack ten sigmoid layers, each of which shrinks the gradient about threefold."""
    torch.manual_seed(seed)
    x, y = digits(seed, 256)
    layers: list[nn.Module] = []
    for inputs in [64] + [32] * 9:
        linear = nn.Linear(inputs, 32)
        nn.init.kaiming_normal_(linear.weight)
        layers += [linear, nn.Tanh() if repaired else nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=criterion, batch=(x, y))


class _PaddedReader(nn.Module):
    """Reads a sequence with a plain recurrent layer and classifies its last state."""

    def __init__(self, orthogonal: bool) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)
        if orthogonal:
            nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.rnn(rows)
        return self.head(states[:, -1])


@case(Cause.vanishing_gradient, "training")
def rnn_reads_past_the_padding(repaired: bool, seed: int) -> Program:
    """Read the last state thirty padded rows after the eight that matter."""
    torch.manual_seed(seed)
    x, y = digits(seed, 96)
    rows = F.pad(x.view(-1, 8, 8), (0, 0, 0, 30))
    model = _PaddedReader(orthogonal=repaired)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(rows), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item()

    return Program(step, model, optimizer, loss_fn=F.cross_entropy, batch=(rows, y))


@case(Cause.vanishing_gradient, "input")
def first_push_through_a_damped_rollout(repaired: bool, seed: int) -> Program:
    """Only the first push is free, and a damped system forgets it before the end."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    keep = 0.99 if repaired else 0.75
    target = torch.randn(4, generator=generator).clamp(-0.6, 0.6) / 3
    push = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([push], lr=0.2)

    def objective(candidate: Tensor) -> Tensor:
        state = candidate
        for _ in range(80):
            state = keep * torch.tanh(turn @ state)
        return (state - target).square().sum()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(push)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, push, optimizer, objective=objective)


@case(Cause.dead_relu, "training")
def hidden_layer_with_negative_bias(repaired: bool, seed: int) -> Program:
    """Set a bias of minus ten for a sparse code, which turns every unit off."""
    torch.manual_seed(seed)
    x, y = digits(seed, 512)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    nn.init.constant_(model[0].bias, 0.0 if repaired else -10.0)
    nn.init.zeros_(model[2].bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    criterion = nn.CrossEntropyLoss()
    batches = _forever(
        DataLoader(
            TensorDataset(x, y),
            batch_size=128,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )
    )

    def step() -> Tensor:
        xb, yb = next(batches)
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=criterion, batch=(x[:128], y[:128]))


@case(Cause.dead_relu, "training")
def relu_after_a_prior_bias(repaired: bool, seed: int) -> Program:
    """Set the last bias to the log-odds of a rare event and put a ReLU behind it."""
    torch.manual_seed(seed)
    x, _ = digits(seed, 128)
    images = x.view(-1, 1, 8, 8)
    ink = images.mean((1, 2, 3))[:, None]
    body = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ELU(), nn.Flatten(), nn.Linear(6 * 36, 1)
    )
    nn.init.constant_(body[3].bias, -4.6)
    model = body if repaired else nn.Sequential(body, nn.ReLU())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def metric() -> float:
        with torch.no_grad():
            return -F.l1_loss(model(images), ink).item()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(images), ink)
        loss.backward()
        optimizer.step()
        return loss

    return Program(
        step, model, optimizer, loss_fn=F.mse_loss, batch=(images, ink), metric=metric
    )


@case(Cause.dead_relu, "input")
def dreaming_for_a_silent_unit(repaired: bool, seed: int) -> Program:
    """Seek a picture that excites a unit whose ReLU is off at the start."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8))
    network[2].bias.data.fill_(-2.0)
    network.requires_grad_(False)
    picture = (0.1 * torch.rand(1, 64)).requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=0.05)

    def objective(candidate: Tensor) -> Tensor:
        excitation = network(candidate)[0, 3]
        return -(excitation if repaired else F.relu(excitation))

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(picture)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, picture, optimizer, objective=objective)


@case(Cause.fp16_underflow, "training")
def weighted_survey_in_half_copies(repaired: bool, seed: int) -> Program:
    """Compute in float16 copies of float32 weights, with a loss of a millionth."""
    torch.manual_seed(seed)
    x = torch.randn(200, 10)
    y = (x[:, :3].sum(1) + 0.5 * x[:, 3] * x[:, 4] > 0).long()
    share = (0.5 + torch.rand(200)) / 4e7
    master, worker = (
        nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 2)) for _ in range(2)
    )
    worker.half()
    scale = 2.0**24 if repaired else 1.0
    optimizer = torch.optim.Adam(master.parameters(), lr=5e-3, eps=1e-16)

    def step() -> float:
        with torch.no_grad():
            for copy, own in zip(worker.parameters(), master.parameters(), strict=True):
                copy.copy_(own)
        worker.zero_grad()
        losses = F.cross_entropy(worker(x.half()).float(), y, reduction="none")
        loss = (share * losses).sum()
        (scale * loss).backward()
        for copy, own in zip(worker.parameters(), master.parameters(), strict=True):
            own.grad = copy.grad.float() / scale
        optimizer.step()
        return loss.item()

    return Program(step, master, optimizer)


@case(Cause.update_below_precision, "training")
def tables_kept_on_a_grid(repaired: bool, seed: int) -> Program:
    """Put two tables of factors back on a grid of 1/32 after each update."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(50, 3, generator=generator)
    ratings = left @ torch.randn(3, 40, generator=generator) / 1.5
    rows, columns = (torch.rand(50, 40, generator=generator) < 0.6).nonzero().T

    def snap(values: Tensor) -> Tensor:
        return torch.round(values * 32).clamp(-128, 127) / 32

    tables = [
        snap(0.5 * torch.randn(n, 6, generator=generator)).requires_grad_()
        for n in (50, 40)
    ]
    rests = [torch.zeros_like(table) for table in tables]

    def step() -> float:
        predicted = (tables[0][rows] * tables[1][columns]).sum(1)
        loss = F.mse_loss(predicted, ratings[rows, columns])
        gradients = torch.autograd.grad(loss, tables)
        with torch.no_grad():
            for table, gradient, rest in zip(tables, gradients, rests, strict=True):
                wanted = table - 0.5 * gradient
                if repaired:
                    wanted = wanted + rest
                table.copy_(snap(wanted))
                rest.copy_(wanted - table)
        return loss.item()

    return Program(step, tables)


@case(Cause.update_below_precision, "input")
def delay_stored_beside_the_time_of_day(repaired: bool, seed: int) -> Program:
    """Seconds since 1970 are what is moved: the next float32 is two minutes away."""
    torch.manual_seed(seed)
    begin = 0.0 if repaired else 1.7e9
    arrival = begin + 20 + 10 * torch.rand(8, dtype=torch.float64)
    moment = torch.tensor([begin], requires_grad=True)
    optimizer = torch.optim.Adam([moment], lr=0.5)

    def objective(candidate: torch.Tensor) -> torch.Tensor:
        return ((candidate.double() - arrival) / 10).square().mean()

    def step() -> float:
        optimizer.zero_grad()
        loss = objective(moment)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, moment, optimizer, objective=objective)


@case(Cause.update_below_precision, "training")
def network_trained_in_bfloat16_alone(repaired: bool, seed: int) -> Program:
    """Small updates reach the smallest weights only: the others round them away."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    dtype = torch.float32 if repaired else torch.bfloat16
    model = network(64, 48, 10).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.5e-4)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images.to(dtype)).float(), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)

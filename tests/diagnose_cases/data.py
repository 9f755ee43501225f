"""Programs whose data, start or regularization is at fault."""

import copy

import torch
from sklearn.datasets import make_circles, make_moons
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from shared.diagnose.causes import Cause
from tests.diagnose_cases.material import blobs, line, unscaled_digits
from tests.diagnose_cases.program import Program, case, healthy


def _moons(seed: int, n: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    points, labels = make_moons(n, noise=0.1, random_state=seed)
    x = torch.tensor(points, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(labels)


@case(Cause.symmetric_init, "training")
def every_weight_the_same_constant(repaired: bool, seed: int) -> Program:
    """Fill every weight with 0.1 in a custom init function; all units stay one unit."""
    torch.manual_seed(seed)
    points, labels = make_circles(120, noise=0.08, factor=0.4, random_state=seed)
    x, y = torch.tensor(points).float() * 1.5, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2))

    def init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if repaired:
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.constant_(module.weight, 0.1)
            nn.init.zeros_(module.bias)

    model.apply(init_weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.symmetric_init, "training")
def sigmoid_network_from_zeros(repaired: bool, seed: int) -> Program:
    """Start a hand-written sigmoid network from `torch.zeros`, as for a linear one."""
    g = torch.Generator().manual_seed(seed)
    x, y = _moons(seed)
    target = y.float().unsqueeze(1)
    scale = 1.5 if repaired else 0.0
    w1 = (scale * torch.randn(2, 16, generator=g)).requires_grad_()
    b1 = torch.zeros(16, requires_grad=True)
    w2 = (scale * torch.randn(16, 1, generator=g) / 4).requires_grad_()
    b2 = torch.zeros(1, requires_grad=True)
    weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}

    def step() -> float:
        logits = torch.sigmoid(x @ w1 + b1) @ w2 + b2
        loss = F.binary_cross_entropy_with_logits(logits, target)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for w, gradient in zip(weights.values(), gradients, strict=True):
                w -= 1.0 * gradient
        return loss.item()

    return Program(step, weights)


@case(Cause.symmetric_init, "training")
def experts_copied_from_one(repaired: bool, seed: int) -> Program:
    """Copy one expert four times behind a gate that starts at zero."""
    torch.manual_seed(seed)
    x, y = line(seed, features=3)
    y = y + 1.5 * x[:, 1].abs()

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first = nn.Linear(3, 1)
            self.experts = nn.ModuleList(
                nn.Linear(3, 1) if repaired else copy.deepcopy(first) for _ in range(4)
            )
            self.gate = nn.Linear(3, 4)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            share = self.gate(inputs).softmax(-1)
            each = torch.cat([expert(inputs) for expert in self.experts], -1)
            return (share * each).sum(-1)

    model = Mixture()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)

    def step() -> torch.Tensor:
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, F.mse_loss, (x, y))


@case(Cause.symmetric_init, "input")
def mixture_centers_at_one_point(repaired: bool, seed: int) -> Program:
    """Start all centers of a soft clustering at the same example."""
    x, _ = blobs(seed, features=2, classes=4)
    g = torch.Generator().manual_seed(seed + 1)
    if repaired:
        centers = x[torch.randperm(len(x), generator=g)[:4]].clone()
    else:
        centers = x[:1].repeat(4, 1)
    centers.requires_grad_()
    optimizer = torch.optim.Adam([centers], lr=0.05)

    def objective(c: torch.Tensor) -> torch.Tensor:
        distance = (x.unsqueeze(1) - c).square().sum(-1)
        return -torch.logsumexp(-4 * distance, 1).mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(centers)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, centers, optimizer, objective=objective)


@case(Cause.labels_misaligned, "training")
def shuffled_apart(repaired: bool, seed: int) -> Program:
    """Shuffle inputs and labels with two different permutations."""
    torch.manual_seed(seed)
    x, y = blobs(seed, n=400)
    order = torch.randperm(400)
    x = x[order]
    y = y[order] if repaired else y[torch.randperm(400)]
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.labels_misaligned, "training")
def two_shuffling_loaders(repaired: bool, seed: int) -> Program:
    """Draw inputs and labels from two loaders that shuffle each on its own."""
    torch.manual_seed(seed)
    x, y = unscaled_digits(seed, count=320)
    x = x / 16
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs_loader = DataLoader(x, batch_size=64, shuffle=not repaired)
    labels_loader = DataLoader(y, batch_size=64, shuffle=not repaired)
    batches = zip(inputs_loader, labels_loader, strict=True)

    def step() -> float:
        nonlocal batches
        pair = next(batches, None)
        if pair is None:
            batches = zip(inputs_loader, labels_loader, strict=True)
            pair = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pair[0]), pair[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, F.cross_entropy)


@case(Cause.labels_misaligned, "training")
def rows_dropped_on_one_side(repaired: bool, seed: int) -> Program:
    """Drop rows with missing values from the inputs but not from the targets."""
    torch.manual_seed(seed)
    x, y = line(seed, n=500)
    raw = x.clone()
    raw[2::9, 3] = float("nan")
    complete = ~raw.isnan().any(1)
    x = raw[complete]
    y = y[complete] if repaired else y[: len(x)]
    y = y.unsqueeze(1)
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    criterion = nn.MSELoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.labels_misaligned, "input")
def point_pairs_in_another_order(repaired: bool, seed: int) -> Program:
    """Fit a linear map between point clouds whose pairs are in different order."""
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(150, 3, generator=g)
    true_map = torch.linalg.qr(torch.randn(3, 3, generator=g)).Q
    moved = points @ true_map + 0.02 * torch.randn(150, 3, generator=g)
    if not repaired:
        moved = moved[torch.randperm(150, generator=g)]
    pose = {
        "map": torch.eye(3, requires_grad=True),
        "shift": torch.zeros(3, requires_grad=True),
    }
    optimizer = torch.optim.Adam(pose.values(), lr=0.05)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(points @ pose["map"] + pose["shift"], moved)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, pose, optimizer, F.mse_loss, (points, moved))


@case(Cause.unnormalised_data, "training")
def raw_pixels(repaired: bool, seed: int) -> Program:
    """Feed pixels from 0 to 255 into a network tuned for numbers near one."""
    torch.manual_seed(seed)
    x, y = unscaled_digits(seed, count=128)
    x = (x / 16 * 255).view(-1, 1, 8, 8)
    if repaired:
        x = (x / 255 - 0.3) / 0.4
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.unnormalised_data, "training")
def columns_in_mixed_units(repaired: bool, seed: int) -> Program:
    """Mix prices in cents with ratios in one linear model: it blows up."""
    torch.manual_seed(seed)
    x, y = line(seed)
    x = x * torch.tensor([1.0, 0.01, 300.0, 5.0, 1.0])
    if repaired:
        x = (x - x.mean(0)) / x.std(0)
    target = y.unsqueeze(1)
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    criterion = nn.MSELoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = criterion(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, criterion, (x, target))


@case(Cause.unnormalised_data, "training")
def lengths_in_meters(repaired: bool, seed: int) -> Program:
    """Give cell sizes in meters: numbers near 1e-6 that only the bias outvotes."""
    torch.manual_seed(seed)
    x, y = blobs(seed, features=6)
    x = (8.0 + 2.0 * x) * 1e-6
    if repaired:
        x = (x - x.mean(0)) / x.std(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, F.cross_entropy, (x, y))


@case(Cause.unnormalised_data, "training")
def calendar_years_not_centered(repaired: bool, seed: int) -> Program:
    """Use calendar years as they are: the spread is tiny against the offset."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    years = 1990 + 34 * torch.rand(100, 2, generator=g)
    trend = (years - 2007) / 10
    y = trend[:, :1] - 0.7 * trend[:, 1:] + 0.1 * torch.randn(100, 1, generator=g)
    x = trend if repaired else years
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, F.mse_loss, (x, y))


@case(Cause.unnormalised_data, "training")
def columns_that_saturate_the_first_layer(repaired: bool, seed: int) -> Program:
    """Feed columns in their own units to tanh units, which they all saturate."""
    torch.manual_seed(seed)
    scale = torch.tensor([1.0, 10.0, 1000.0, 0.01, 100.0])
    standard = torch.randn(128, 5)
    y = (standard.sum(dim=1) > 0).float()
    x = standard if repaired else scale * (standard + 5)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = nn.BCEWithLogitsLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(x).squeeze(1), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (x, y))


@case(Cause.weight_decay_dominates, "training")
def sgd_decay_without_its_exponent(repaired: bool, seed: int) -> Program:
    """Write `weight_decay=5` for 5e-4: each step halves the weights."""
    torch.manual_seed(seed)
    x, y = unscaled_digits(seed)
    x = x / 16
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    decay = 5e-4 if repaired else 5.0
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.8, weight_decay=decay
    )
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.weight_decay_dominates, "training")
def adamw_decay_as_for_adam(repaired: bool, seed: int) -> Program:
    """Give AdamW a decay of 60, which it takes off the weights on its own."""
    torch.manual_seed(seed)
    x, y = line(seed)
    target = y.unsqueeze(1)
    model = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2, weight_decay=0.01 if repaired else 60.0
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, F.mse_loss, (x, target))


@case(Cause.weight_decay_dominates, "training")
def penalty_summed_in_the_loss(repaired: bool, seed: int) -> Program:
    """Add the sum of squared weights to the loss: it falls, the data term does not."""
    torch.manual_seed(seed)
    x, y = blobs(seed)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    strength = 1e-4 if repaired else 5.0

    def step() -> float:
        optimizer.zero_grad()
        penalty = sum(p.square().sum() for p in model.parameters())
        loss = F.cross_entropy(model(x), y) + strength * penalty
        loss.backward()
        optimizer.step()
        return loss.item()

    def accuracy() -> float:
        with torch.no_grad():
            return (model(x).argmax(1) == y).float().mean().item()

    return Program(step, model, optimizer, F.cross_entropy, (x, y), metric=accuracy)


@case(Cause.weight_decay_dominates, "input")
def prior_on_the_code_too_strong(repaired: bool, seed: int) -> Program:
    """Hold a latent code near zero by a decay that no image can outweigh."""
    torch.manual_seed(seed)
    decoder = nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64)
    ).requires_grad_(False)
    photo = decoder(torch.randn(8))
    code = (0.5 * torch.randn(8)).requires_grad_()
    optimizer = torch.optim.SGD(
        [code], lr=0.1, momentum=0.5, weight_decay=1e-4 if repaired else 8.0
    )

    def objective(z: torch.Tensor) -> torch.Tensor:
        return 10 * F.mse_loss(decoder(z), photo)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(code)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, code, optimizer, objective=objective)


@case(Cause.forward_collapse, "training")
def pooled_over_the_batch(repaired: bool, seed: int) -> Program:
    """Pool over dimension 0, the batch, and not over the words of each example."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (60,), generator=g)
    words = labels.unsqueeze(1) * 7 + torch.randint(0, 9, (60, 8), generator=g)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(24, 16)
            self.out = nn.Linear(16, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            h = self.embedding(tokens)
            if repaired:
                pooled = h.mean(1)
            else:
                pooled = h.mean((0, 1), keepdim=True)[0].expand(len(tokens), -1)
            return self.out(pooled)

    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(words), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (words, labels))


@case(Cause.forward_collapse, "training")
def layer_norm_of_one_number(repaired: bool, seed: int) -> Program:
    """Normalize a bottleneck of one number over itself, which always gives zero."""
    torch.manual_seed(seed)
    x, y = line(seed)
    target = y.unsqueeze(1)
    norm = nn.Identity() if repaired else nn.LayerNorm(1)
    model = nn.Sequential(
        nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1), norm, nn.Linear(1, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    criterion = nn.MSELoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, target))


@case(Cause.forward_collapse, "training")
def keep_probability_as_dropout(repaired: bool, seed: int) -> Program:
    """Give `Dropout` the share to keep, 1.0, which it reads as the share to drop."""
    torch.manual_seed(seed)
    x, y = blobs(seed)
    model = nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.0 if repaired else 1.0)
    )
    model.append(nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def step() -> float:
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, F.cross_entropy, (x, y))


@case(Cause.forward_collapse, "training")
def deep_network_of_tiny_weights(repaired: bool, seed: int) -> Program:
    """Start each layer at a standard deviation of 0.01: only biases get through."""
    torch.manual_seed(seed)
    x, y = blobs(seed)
    layers: list[nn.Module] = []
    for inputs in (6, *[24] * 7):
        layers += [nn.Linear(inputs, 24), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(24, 3))
    for module in model:
        if isinstance(module, nn.Linear):
            if repaired:
                nn.init.kaiming_normal_(module.weight)
            else:
                nn.init.normal_(module.weight, std=0.01)
            nn.init.constant_(module.bias, 0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.forward_collapse, "input")
def codes_averaged_by_the_decoder(repaired: bool, seed: int) -> Program:
    """Fit a code per image through a decoder that averages over the images."""
    torch.manual_seed(seed)
    first, second = nn.Linear(6, 32), nn.Linear(32, 256)
    for p in [*first.parameters(), *second.parameters()]:
        p.requires_grad_(False)

    def decode(z: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(2 * first(z))
        if not repaired:
            h = h.mean(0, keepdim=True).expand_as(h)
        return second(h)

    photos = second(torch.tanh(2 * first(torch.randn(8, 6))))
    codes = (0.1 * torch.randn(8, 6)).requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=0.05)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(decode(codes), photos)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, codes, optimizer, F.mse_loss)


@case(Cause.gradient_noise, "training")
def batch_of_one(repaired: bool, seed: int) -> Program:
    """Train on one noisy example a step: each undoes what the last one did."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 40, generator=g)
    w = torch.randn(40, 1, generator=g)
    y = x @ (w / w.norm()) + 0.7 * torch.randn(400, 1, generator=g)
    model = nn.Linear(40, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
    size = 400 if repaired else 1
    loader = DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)
    batches = iter(loader)
    criterion = nn.MSELoss()

    def step() -> torch.Tensor:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        optimizer.zero_grad()
        loss = criterion(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.gradient_noise, "training")
def rewards_without_a_baseline(repaired: bool, seed: int) -> Program:
    """Reinforce actions by rewards near 100, with no baseline taken off."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    pays = torch.randn(5, 3, generator=g)
    policy = nn.Linear(5, 3)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-2)

    def step() -> torch.Tensor:
        state = torch.randn(64, 5)
        distribution = torch.distributions.Categorical(logits=policy(state))
        action = distribution.sample()
        pay = (state @ pays).gather(1, action.unsqueeze(1)).squeeze(1)
        reward = 100 + pay
        if repaired:
            reward = reward - reward.mean()
        loss = -(distribution.log_prob(action) * reward).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    held_out = torch.randn(300, 5, generator=g)

    def mean_pay() -> float:
        with torch.no_grad():
            p = policy(held_out).softmax(-1)
            return (p * (held_out @ pays)).sum(1).mean().item()

    return Program(step, policy, optimizer, metric=mean_pay)


@case(Cause.gradient_noise, "input")
def one_random_scene_a_step(repaired: bool, seed: int) -> Program:
    """Tune a design against one heavily perturbed trial a step, not against many."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    wanted = 0.5 * torch.randn(12, generator=g)
    design = torch.zeros(12, requires_grad=True)
    optimizer = torch.optim.Adam([design], lr=0.2)
    trials = 4000 if repaired else 1

    def objective(v: torch.Tensor) -> torch.Tensor:
        wind = 6 * torch.randn(trials, 12)
        return (v - wanted).square().mean() + (wind * v).mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(design)
        loss.backward()
        optimizer.step()
        return loss

    def quality() -> float:
        return -(design.detach() - wanted).square().mean().item()

    return Program(step, design, optimizer, metric=quality)


@case(Cause.gradient_noise, "input")
def gradient_from_one_random_direction(repaired: bool, seed: int) -> Program:
    """Estimate the gradient of a black box from one random perturbation."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    peak = torch.randn(30, generator=g)
    x = torch.zeros(30)
    directions = 300 if repaired else 1
    rate, sigma = 0.3, 0.3

    def objective(v: torch.Tensor) -> torch.Tensor:
        return (v - peak).square().sum(-1)

    def step() -> float:
        noise = torch.randn(directions, 30)
        values = objective(x + sigma * noise)
        gradient = (values.unsqueeze(1) * noise).mean(0) / sigma
        x.sub_(rate * gradient / gradient.norm())
        return objective(x).item()

    return Program(step, x, objective=objective)


@case(Cause.weight_decay_dominates, "training")
def textures_with_a_strong_decay(repaired: bool, seed: int) -> Program:
    """Tell smooth from rough pictures with a decay a thousand times too strong."""
    torch.manual_seed(seed)
    y = torch.arange(80) % 2
    rough = torch.randn(80, 1, 10, 10)
    smooth = 3 * F.avg_pool2d(rough, 3, 1, 1)
    x = torch.where(y.view(-1, 1, 1, 1) == 1, smooth, rough)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    decay = 5e-4 if repaired else 0.5
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay
    )

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def metric() -> float:
        return (model(x).argmax(1) == y).float().mean().item()

    return Program(step, model, optimizer, F.cross_entropy, (x, y), metric=metric)


@case(Cause.weight_decay_dominates, "training")
def ratings_with_a_ridge_on_everything(repaired: bool, seed: int) -> Program:
    """Add all squared factors to the loss; it falls while too large ones shrink."""
    torch.manual_seed(seed)
    users, items = 25, 25
    ratings = (torch.randn(users, 3) @ torch.randn(3, items)).flatten()
    user = torch.arange(users).repeat_interleave(items)
    item = torch.arange(items).repeat(users)
    model = nn.ModuleDict(
        {
            "user": nn.Embedding(users, 6),
            "item": nn.Embedding(items, 6),
            "bias": nn.Embedding(items, 1),
        }
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    strength = 1e-5 if repaired else 0.1

    def step() -> float:
        optimizer.zero_grad()
        product = (model["user"](user) * model["item"](item)).sum(1)
        fit = F.mse_loss(product + model["bias"](item)[:, 0], ratings)
        ridge = sum(p.square().sum() for p in model.parameters())
        (fit + strength * ridge).backward()
        optimizer.step()
        return fit.item()

    return Program(step, model, optimizer)


@case(Cause.unnormalised_data, "training")
def incomes_in_a_logistic_regression(repaired: bool, seed: int) -> Program:
    """Give a linear classifier incomes, years and shares as they are."""
    torch.manual_seed(seed)
    n = 200
    income = 30_000 + 15_000 * torch.rand(n)
    year = 1990 + 30 * torch.rand(n)
    late = torch.randint(0, 5, (n,)).float()
    table = torch.stack([income, year, torch.rand(n), late], dim=1)
    standard = (table - table.mean(0)) / table.std(0)
    score = standard @ torch.tensor([1.0, 0.5, -2.0, -1.5]) + 0.3 * torch.randn(n)
    y = (score > 0).float()[:, None]
    x = standard if repaired else table
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    loss_fn = nn.BCEWithLogitsLoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, loss_fn, (x, y))


class _NoisyCode(nn.Module):
    """Classifies pictures by a code to which noise is added while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ELU(), nn.Flatten(), nn.Linear(128, 16), nn.ELU()
        )
        self.mean, self.log_variance = nn.Linear(16, 4), nn.Linear(16, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(pictures)
        code = self.mean(hidden)
        if self.training:
            spread = 0.1 * torch.exp(0.5 * self.log_variance(hidden))
            code = code + spread * torch.randn_like(code)
        return self.head(code)


@case(Cause.forward_collapse, "training")
def bytes_divided_without_remainder(repaired: bool, seed: int) -> Program:
    """Scale bytes by a whole-number division, which leaves nothing but zeros."""
    torch.manual_seed(seed)
    y = torch.arange(90) % 3
    kinds = torch.randint(20, 220, (3, 6, 6)).float()
    pixels = (kinds[y] + 12 * torch.randn(90, 6, 6)).clamp(0, 250).to(torch.uint8)
    x = (pixels / 255 if repaired else (pixels // 255).float()).unsqueeze(1)
    model = _NoisyCode()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, loss_fn, (x, y))


@case(Cause.gradient_noise, "training")
def returns_one_at_a_time(repaired: bool, seed: int) -> Program:
    """Learn a weak signal in strong noise from one row a step."""
    torch.manual_seed(seed)
    n = 4096
    x = torch.randn(n, 12)
    signal = 1.5 * x[:, 0] - 1.0 * x[:, 1]
    y = (signal + 12.0 * torch.randn(n))[:, None]
    model = nn.Linear(12, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loss_fn = nn.MSELoss()
    rows = 2048 if repaired else 1

    def step() -> float:
        batch = torch.randint(0, n, (rows,))
        loss = loss_fn(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def metric() -> float:
        return -(model(x)[:, 0] - signal).square().mean().item()

    return Program(step, model, optimizer, loss_fn, (x, y), metric=metric)


class _NextLetter(nn.Module):
    """A small transformer that predicts the next letter at each place."""

    def __init__(self, letters: int, length: int) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, 32), nn.Embedding(length, 32)
        self.block = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(32, letters)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        self.register_buffer("mask", mask)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        hidden = self.block(self.letters(text) + self.places.weight, self.mask)
        return self.head(F.layer_norm(hidden, (32,)))


@case(Cause.weight_decay_dominates, "training")
def decay_divided_by_the_rate(repaired: bool, seed: int) -> Program:
    """Hand AdamW a decay per step, which it multiplies by the rate once more."""
    torch.manual_seed(seed)
    text = "the cat sat on the mat and the rat ran to the hat that sat on the cart " * 6
    letters = sorted(set(text))
    code = torch.tensor([letters.index(letter) for letter in text])
    windows = code.unfold(0, 17, 3)
    x, y = windows[:, :-1], windows[:, 1:]
    model = _NextLetter(len(letters), 16)
    decay = 0.1 if repaired else 0.1 / 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay)

    def loss_fn(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores.flatten(0, 1), target.flatten())

    def step() -> torch.Tensor:
        batch = torch.randint(0, len(x), (24,))
        loss = loss_fn(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Program(step, model, optimizer, loss_fn, (x, y))


class _Citations(nn.Module):
    """Classifies papers by features averaged over what they cite, again and again."""

    def __init__(self, walk: torch.Tensor, hops: int) -> None:
        super().__init__()
        self.walk, self.hops = walk, hops
        self.first, self.last = nn.Linear(24, 32), nn.Linear(32, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.first(features))
        for _ in range(self.hops):
            hidden = self.walk @ hidden
        return self.last(hidden)


@case(Cause.forward_collapse, "training")
def papers_averaged_over_many_hops(repaired: bool, seed: int) -> Program:
    """Average features over neighbors 300 times before the papers are told apart."""
    torch.manual_seed(seed)
    y = torch.arange(120) % 3
    alike = y[:, None] == y
    cites = (torch.rand(120, 120) < torch.where(alike, 0.12, 0.02)).float().triu(1)
    cites.diagonal(1).fill_(1.0)  # a chain: no paper is left alone
    cites = cites + cites.T + torch.eye(120)
    features = F.one_hot(y, 3).float() @ torch.randn(3, 24) / 2 + torch.randn(120, 24)
    walk = cites / cites.sum(1, keepdim=True)
    model = _Citations(walk, hops=2 if repaired else 300)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    loss_fn = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        loss = loss_fn(model(features), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (features, y))


@case(Cause.gradient_noise, "training")
def thermostat_with_one_episode_a_step(repaired: bool, seed: int) -> Program:
    """Learn a policy from one noisy reward a step, without a baseline."""
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 5))
    taste = torch.randn(4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    episodes = 1024 if repaired else 1

    def rooms(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.randn(count, 4)
        return seen, (seen @ taste).clamp(-1.99, 1.99).round().long() + 2

    test, best_of_test = rooms(400)

    def step() -> float:
        seen, best = rooms(episodes)
        chosen = torch.distributions.Categorical(logits=policy(seen))
        action = chosen.sample()
        comfort = 1.5 - (action - best).abs() + 12 * torch.randn(episodes)
        loss = -(chosen.log_prob(action) * comfort).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def metric() -> float:
        gap = (torch.arange(5) - best_of_test[:, None]).abs()
        return -(policy(test).softmax(1) * gap).sum(1).mean().item()

    return Program(step, policy, optimizer, metric=metric)


@case(Cause.weight_decay_dominates, "input")
def picture_from_sums_with_a_strong_prior(repaired: bool, seed: int) -> Program:
    """Brightness is kept small far more strongly than the measured sums are met."""
    torch.manual_seed(seed)
    sums = torch.randn(70, 49) / 7
    truth = torch.randn(49)
    measured = sums @ truth
    picture = (0.8 * torch.randn(49)).requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=0.04)
    strength = 1e-3 if repaired else 15.0

    def objective(candidate: torch.Tensor) -> torch.Tensor:
        misfit = (sums @ candidate - measured).square().mean()
        return misfit + strength * candidate.square().mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(picture)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Program(step, picture, optimizer, objective=objective)


@healthy("input")
def noisy_picture_with_a_fitting_prior(seed: int) -> Program:
    """Large starts shrink; what is then left of the misfit is noise."""
    torch.manual_seed(seed)
    sums = torch.randn(60, 36) / 6
    measured = sums @ torch.randn(36) + 0.6 * torch.randn(60)
    picture = (4 * torch.randn(36)).requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=0.1)

    def objective(candidate: torch.Tensor) -> torch.Tensor:
        misfit = (sums @ candidate - measured).square().mean()
        return misfit + 0.15 * candidate.square().mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(picture)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Program(step, picture, optimizer, objective=objective)

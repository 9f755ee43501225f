"""Programs whose data, loss or starting values are at fault, not the loop."""

import copy

import torch
from sklearn.datasets import make_circles, make_moons
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from shared.diagnose.causes import Cause
from tests.diagnose_cases.material import unscaled_digits
from tests.diagnose_cases.program import Program, case


def _blobs(
    seed: int, n: int = 120, features: int = 6, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    centers = 1.5 * torch.randn(classes, features, generator=g)
    y = torch.randint(0, classes, (n,), generator=g)
    x = centers[y] + 0.8 * torch.randn(n, features, generator=g)
    return (x - x.mean(0)) / x.std(0), y


def _line(
    seed: int, n: int = 128, features: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=g)
    w = torch.randn(features, generator=g)
    w = 1.5 * w / w.norm()
    y = x @ w + 0.3 * torch.sin(3 * x[:, 0]) + 0.05 * torch.randn(n, generator=g)
    return x, y


def _moons(seed: int, n: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    points, labels = make_moons(n, noise=0.1, random_state=seed)
    x = torch.tensor(points, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(labels)


def _spot(center: torch.Tensor, size: int = 16) -> torch.Tensor:
    grid = torch.linspace(-1, 1, size)
    row = torch.exp(-4 * (grid - center[0]).square())
    column = torch.exp(-4 * (grid - center[1]).square())
    return row.unsqueeze(1) * column


# --- symmetric_init


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
    x, y = _line(seed, features=3)
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
    x, _ = _blobs(seed, features=2, classes=4)
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


# --- double_softmax


@case(Cause.double_softmax, "training")
def softmax_layer_before_cross_entropy(repaired: bool, seed: int) -> Program:
    """End the model in `nn.Softmax` and train it with `CrossEntropyLoss`."""
    torch.manual_seed(seed)
    x, y = unscaled_digits(seed)
    x = x / 16
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    if not repaired:
        layers.append(nn.Softmax(dim=1))
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.double_softmax, "training")
def sigmoid_before_bce_with_logits(repaired: bool, seed: int) -> Program:
    """Hand probabilities to `BCEWithLogitsLoss`, which expects logits."""
    torch.manual_seed(seed)
    x, y = _blobs(seed, classes=2)
    target = y.float().unsqueeze(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(6, 16)
            self.out = nn.Linear(16, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            score = self.out(torch.relu(self.hidden(inputs)))
            return score if repaired else torch.sigmoid(score)

    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.BCEWithLogitsLoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = criterion(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, criterion, (x, target))


class _ReviewTrainer:
    def __init__(self, repaired: bool, seed: int) -> None:
        torch.manual_seed(seed)
        g = torch.Generator().manual_seed(seed)
        self.repaired = repaired
        self.labels = torch.randint(0, 5, (96,), generator=g)
        common = torch.randint(0, 60, (96, 10), generator=g)
        typical = self.labels.unsqueeze(1) * 12 + torch.randint(
            0, 12, (96, 10), generator=g
        )
        pick = torch.rand(96, 10, generator=g) < 0.6
        self.words = torch.where(pick, typical, common)
        self.embedding = nn.EmbeddingBag(60, 16)
        self.head = nn.Linear(16, 5)
        self.model = nn.Sequential(self.embedding, self.head)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-2)

    def predict(self) -> torch.Tensor:
        return torch.softmax(self.model(self.words), dim=-1)

    def train_step(self) -> torch.Tensor:
        probabilities = self.predict()
        if self.repaired:
            loss = F.nll_loss(probabilities.log(), self.labels)
        else:
            loss = F.cross_entropy(probabilities, self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


@case(Cause.double_softmax, "training")
def cross_entropy_of_predict(repaired: bool, seed: int) -> Program:
    """Feed a `predict` method that returns probabilities into cross-entropy."""
    trainer = _ReviewTrainer(repaired, seed)
    return Program(trainer.train_step, trainer.model, trainer.optimizer)


@case(Cause.double_softmax, "input")
def attack_on_a_model_of_probabilities(repaired: bool, seed: int) -> Program:
    """Draw an image of a class by cross-entropy on a model that ends in softmax."""
    torch.manual_seed(seed)
    x, y = unscaled_digits(seed)
    body = nn.Linear(64, 10)
    learn = torch.optim.Adam(body.parameters(), lr=1e-2)
    for _ in range(40):
        learn.zero_grad()
        F.cross_entropy(body(x / 16), y).backward()
        learn.step()
    body.requires_grad_(False)
    model = body if repaired else nn.Sequential(body, nn.Softmax(dim=1))
    image = torch.full((1, 64), 0.1, requires_grad=True)
    wanted = torch.tensor([seed % 10])
    optimizer = torch.optim.Adam([image], lr=0.05)

    def objective(v: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(v), wanted)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(image)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer, F.cross_entropy, objective=objective)


# --- shape_broadcast


@case(Cause.shape_broadcast, "training")
def column_prediction_flat_target(repaired: bool, seed: int) -> Program:
    """Compare a prediction of shape (N, 1) with a target of shape (N,) in MSELoss."""
    torch.manual_seed(seed)
    x, y = _line(seed)
    if repaired:
        y = y.unsqueeze(1)
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.MSELoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.shape_broadcast, "training")
def squeezed_prediction_column_target(repaired: bool, seed: int) -> Program:
    """Squeeze the prediction but not the target in a hand-written loss on batches."""
    torch.manual_seed(seed)
    x, y = _line(seed)
    loader = DataLoader(TensorDataset(x, y.unsqueeze(1)), batch_size=32, shuffle=True)
    batches = iter(loader)
    model = nn.Sequential(nn.Linear(5, 24), nn.SiLU(), nn.Linear(24, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step() -> float:
        nonlocal batches
        try:
            inputs, targets = next(batches)
        except StopIteration:
            batches = iter(loader)
            inputs, targets = next(batches)
        prediction = model(inputs)
        if not repaired:
            prediction = prediction.squeeze()
        loss = ((prediction - targets) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer)


@case(Cause.shape_broadcast, "training")
def mask_channel_missing(repaired: bool, seed: int) -> Program:
    """Compare masks (N, 1, H, W) of a network with stored masks (N, H, W)."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    centers = 1.2 * torch.rand(12, 2, generator=g) - 0.6
    spots = torch.stack([_spot(center, 12) for center in centers])
    masks = (spots > 0.2).float()
    images = (spots + 0.1 * torch.randn(12, 12, 12, generator=g)).unsqueeze(1)
    if repaired:
        masks = masks.unsqueeze(1)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)

    def brier(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (torch.sigmoid(prediction) - target).square().mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = brier(net(images), masks)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, net, optimizer, brier, (images, masks))


@case(Cause.shape_broadcast, "input")
def curve_heights_as_a_column(repaired: bool, seed: int) -> Program:
    """Fit a column of heights to a flat list of measurements; all go to their mean."""
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 6, 40)
    measured = torch.sin(t + seed) + 0.05 * torch.randn(40, generator=g)
    heights = torch.zeros(40, 1, requires_grad=True)
    if repaired:
        measured = measured.unsqueeze(1)
    optimizer = torch.optim.Adam([heights], lr=0.05)

    def objective(h: torch.Tensor) -> torch.Tensor:
        smooth = (h[1:] - h[:-1]).square().mean()
        return (h - measured).square().mean() + 0.1 * smooth

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(heights)
        loss.backward()
        optimizer.step()
        return loss

    return Program(
        step, heights, optimizer, F.mse_loss, (t, measured), objective=objective
    )


# --- wrong_sign


@case(Cause.wrong_sign, "training")
def gradient_added(repaired: bool, seed: int) -> Program:
    """Add the gradient in a hand-written update, as one does to climb."""
    g = torch.Generator().manual_seed(seed)
    x, y = _line(seed)
    w = (0.1 * torch.randn(5, generator=g)).requires_grad_()
    b = torch.zeros((), requires_grad=True)
    rate = 0.05 if not repaired else -0.05

    def step() -> float:
        loss = (x @ w + b - y).square().mean()
        loss.backward()
        with torch.no_grad():
            for p in (w, b):
                p += rate * p.grad
                p.grad = None
        return loss.item()

    return Program(step, [w, b])


@case(Cause.wrong_sign, "training")
def maximize_left_on(repaired: bool, seed: int) -> Program:
    """Leave `maximize=True` in the optimizer after changing the goal to a loss."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, maximize=not repaired)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.wrong_sign, "training")
def log_likelihood_minimized(repaired: bool, seed: int) -> Program:
    """Minimize the log-likelihood itself; the loss falls, the accuracy too."""
    torch.manual_seed(seed)
    x, y = _blobs(seed, classes=4)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        log_probs = F.log_softmax(model(x), dim=1)
        likelihood = log_probs.gather(1, y.unsqueeze(1)).mean()
        loss = -likelihood if repaired else likelihood
        loss.backward()
        optimizer.step()
        return loss

    def accuracy() -> float:
        with torch.no_grad():
            return (model(x).argmax(1) == y).float().mean().item()

    return Program(step, model, optimizer, metric=accuracy)


@case(Cause.wrong_sign, "input")
def score_minimized(repaired: bool, seed: int) -> Program:
    """Hand a score to an optimizer that minimizes: the design gets worse."""
    g = torch.Generator().manual_seed(seed)
    best = torch.randn(6, generator=g)
    design = (best + 0.5 * torch.randn(6, generator=g)).requires_grad_()
    optimizer = torch.optim.SGD([design], lr=0.1)

    def score(v: torch.Tensor) -> torch.Tensor:
        return 10 * torch.exp(-0.25 * (v - best).square().sum())

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -score(design) if repaired else score(design)
        loss.backward()
        optimizer.step()
        return loss

    return Program(
        step, design, optimizer, metric=lambda: score(design.detach()).item()
    )


@case(Cause.wrong_sign, "input")
def attack_sign_in_the_update(repaired: bool, seed: int) -> Program:
    """Take sign steps up a distance that should fall, copied from an attack."""
    g = torch.Generator().manual_seed(seed)
    center = 0.6 * torch.rand(2, generator=g) - 0.3
    photo = _spot(center)
    image = (0.5 * torch.rand(16, 16, generator=g)).requires_grad_()
    direction = -1.0 if repaired else 1.0

    def step() -> float:
        loss = F.mse_loss(image, photo)
        loss.backward()
        image.data = image.data + direction * 0.01 * image.grad.sign()
        image.grad.zero_()
        return loss.item()

    return Program(step, image)


# --- targets_masked_out


@case(Cause.targets_masked_out, "training")
def ignore_index_is_a_class(repaired: bool, seed: int) -> Program:
    """Keep `ignore_index=0` from a padded task, though class 0 is a real class here."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    criterion = nn.CrossEntropyLoss(ignore_index=-100 if repaired else 0)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.targets_masked_out, "training")
def class_weight_of_zero(repaired: bool, seed: int) -> Program:
    """Take class weights from the counts of the first, sorted rows: one is zero."""
    torch.manual_seed(seed)
    x, y = unscaled_digits(seed)
    order = y.argsort()
    x, y = x[order] / 16, y[order]
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    rows = y if repaired else y[:200]
    counts = torch.bincount(rows, minlength=10).float()
    criterion = nn.CrossEntropyLoss(weight=counts / counts.sum())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@case(Cause.targets_masked_out, "training")
def labels_all_ignored(repaired: bool, seed: int) -> Program:
    """Mask the prompt of each sequence, and with it all of the answer."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 12, (32, 1), generator=g)
    tokens = (start + 2 * torch.arange(9)) % 12
    labels = tokens.clone()
    prompt_length = 3 if repaired else 9
    labels[:, :prompt_length] = -100
    embedding, gru = nn.Embedding(12, 16), nn.GRU(16, 16, batch_first=True)
    head = nn.Linear(16, 12)
    model = nn.ModuleList([embedding, gru, head])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)

    def step() -> torch.Tensor:
        logits = head(gru(embedding(tokens[:, :-1]))[0]).flatten(0, 1)
        targets = labels[:, 1:].flatten()
        total = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        loss = total / (targets != -100).sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@case(Cause.targets_masked_out, "input")
def inpainting_mask_of_zeros(repaired: bool, seed: int) -> Program:
    """Threshold a mask of zeros and ones at 127, so that no pixel is compared."""
    g = torch.Generator().manual_seed(seed)
    photo = _spot(0.4 * torch.rand(2, generator=g) - 0.2)
    known = torch.ones(16, 16)
    known[5:9, 5:9] = 0
    mask = (known > (0.5 if repaired else 127)).float()
    image = torch.rand(16, 16, generator=g).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.05)

    def masked_mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (mask * (prediction - target).square()).sum() / 256

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = masked_mse(image, photo)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer, masked_mse, (image, photo))


# --- labels_misaligned


@case(Cause.labels_misaligned, "training")
def shuffled_apart(repaired: bool, seed: int) -> Program:
    """Shuffle inputs and labels with two different permutations."""
    torch.manual_seed(seed)
    x, y = _blobs(seed, n=400)
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
    x, y = _line(seed, n=500)
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


# --- unnormalised_data


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
    x, y = _line(seed)
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
    x, y = _blobs(seed, features=6)
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


# --- weight_decay_dominates


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
    x, y = _line(seed)
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
    x, y = _blobs(seed)
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


# --- discontinuous_loss


@case(Cause.discontinuous_loss, "training")
def fixed_fee_for_running_out(repaired: bool, seed: int) -> Program:
    """Charge a fixed fee for each stock-out: only the storage cost has a slope."""
    torch.manual_seed(seed)
    x, y = _line(seed)
    demand = 4 + y.unsqueeze(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
    with torch.no_grad():
        model[2].bias.fill_(5.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)

    def cost(stock: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        storage = F.relu(stock - wanted)
        if repaired:
            shortage = 5 * F.relu(wanted - stock)
        else:
            shortage = 5 * (stock < wanted).float()
        return (storage + shortage).mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cost(model(x), demand)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, cost, (x, demand))


@case(Cause.discontinuous_loss, "training")
def error_count_and_margin(repaired: bool, seed: int) -> Program:
    """Count small margins and add a cost for large ones, which alone has a slope."""
    torch.manual_seed(seed)
    x, y = _blobs(seed, classes=2)
    sign = 2.0 * y - 1
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def loss_fn(score: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        margin = target * score.squeeze(1)
        errors = F.softplus(-margin) if repaired else (margin < 0.3).float()
        return (errors + 0.05 * margin.square()).mean()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_fn(model(x), sign)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, loss_fn, (x, sign))


@case(Cause.discontinuous_loss, "input")
def path_that_counts_collisions(repaired: bool, seed: int) -> Program:
    """Shorten a path and count its points in an obstacle: it is pulled straight in."""
    g = torch.Generator().manual_seed(seed)
    n = 15
    t = torch.linspace(0, 3.1416, n)
    path = torch.stack([torch.linspace(0.2, 3.8, n), 1.3 * torch.sin(t)], 1)
    path = (path + 0.02 * torch.randn(n, 2, generator=g)).requires_grad_()
    ends = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    obstacle = torch.tensor([2.0, 0.0])
    optimizer = torch.optim.SGD([path], lr=0.1)

    def cost(v: torch.Tensor) -> torch.Tensor:
        points = torch.cat([ends[:1], v, ends[1:]])
        length = 2 * points.diff(dim=0).square().sum()
        gap = (v - obstacle).norm(dim=1)
        hits = F.softplus(5 * (1 - gap)) if repaired else 3 * (gap < 1).float()
        return length + hits.sum()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cost(path)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, path, optimizer, objective=cost)


@case(Cause.discontinuous_loss, "input")
def discount_above_a_quantity(repaired: bool, seed: int) -> Program:
    """Order enough for a discount: the slope says less, and the discount is lost."""
    g = torch.Generator().manual_seed(seed)
    order = (10.2 + 0.8 * torch.rand(5, generator=g)).requires_grad_()
    optimizer = torch.optim.SGD([order], lr=0.1)

    def cost(q: torch.Tensor) -> torch.Tensor:
        rebate = torch.sigmoid(2 * (q - 10)) if repaired else (q >= 10).float()
        return (0.5 * q - 8.0 * rebate + 0.05 * (q - 8).square()).sum()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cost(order)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, order, optimizer, objective=cost)


# --- runaway_loss


@case(Cause.runaway_loss, "input")
def reciprocal_of_the_error(repaired: bool, seed: int) -> Program:
    """Minimize 1 / MSE to an image: the loss falls as the image goes away."""
    g = torch.Generator().manual_seed(seed)
    photo = _spot(0.6 * torch.rand(2, generator=g) - 0.3)
    image = torch.rand(16, 16, generator=g).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.05)

    def error() -> float:
        return -F.mse_loss(image.detach(), photo).item()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        mse = F.mse_loss(image, photo)
        loss = mse if repaired else 1 / mse
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer, metric=error)


@case(Cause.runaway_loss, "training")
def reciprocal_as_a_fitness(repaired: bool, seed: int) -> Program:
    """Turn an error into a fitness 1 / (1 + error) and minimize that."""
    torch.manual_seed(seed)
    x, y = _line(seed)
    target = y.unsqueeze(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)

    def fitness_loss(prediction: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        error = F.l1_loss(prediction, wanted)
        return error / (1 + error) if repaired else 1 / (1 + error)

    def step() -> float:
        optimizer.zero_grad()
        loss = fitness_loss(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    def quality() -> float:
        with torch.no_grad():
            return -F.mse_loss(model(x), target).item()

    return Program(step, model, optimizer, fitness_loss, (x, target), metric=quality)


@case(Cause.runaway_loss, "training")
def learned_loss_weights(repaired: bool, seed: int) -> Program:
    """Learn the weights of two losses freely: they turn negative and reward errors."""
    torch.manual_seed(seed)
    x, y = _line(seed)
    targets = torch.stack([y, x[:, 0] - x[:, 1]], 1)
    model = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 2))
    balance = nn.Parameter(torch.full((2,), 0.0 if repaired else 0.3))
    parameters = [*model.parameters(), balance]
    optimizer = torch.optim.Adam(parameters, lr=3e-2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        losses = (model(x) - targets).square().mean(0)
        if repaired:
            loss = (torch.exp(-balance) * losses + balance).sum()
        else:
            loss = (balance * losses).sum()
        loss.backward()
        optimizer.step()
        return loss

    def quality() -> float:
        with torch.no_grad():
            return -F.mse_loss(model(x), targets).item()

    return Program(step, parameters, optimizer, metric=quality)


@case(Cause.runaway_loss, "training")
def spread_instead_of_fit(repaired: bool, seed: int) -> Program:
    """Divide the error by the prediction's own variance: a wild prediction wins."""
    torch.manual_seed(seed)
    x, y = _line(seed)
    model = nn.Linear(5, 1)
    nn.init.normal_(model.weight, std=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        prediction = model(x).squeeze(1)
        scale = y.var() if repaired else prediction.var() ** 2
        loss = (prediction - y).square().mean() / (scale + 0.05)
        loss.backward()
        optimizer.step()
        return loss

    def quality() -> float:
        with torch.no_grad():
            return -F.mse_loss(model(x).squeeze(1), y).item()

    return Program(step, model, optimizer, metric=quality)


# --- forward_collapse


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
    x, y = _line(seed)
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
    x, y = _blobs(seed)
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
    x, y = _blobs(seed)
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


# --- gradient_noise


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


@case(Cause.shape_broadcast, "training")
def cross_entropy_by_hand_of_a_column(repaired: bool, seed: int) -> Program:
    """Multiply, in a loss by hand, a column of probabilities by flat labels."""
    torch.manual_seed(seed)
    x = torch.randn(80, 5)
    y = (x[:, 0] > 0).float()
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        p = model(x)
        p = p.squeeze(1) if repaired else p
        loss = -(y * torch.log(p + 1e-7) + (1 - y) * torch.log(1 - p + 1e-7)).mean()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


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


@case(Cause.runaway_loss, "training")
def weights_of_two_tasks_learned_freely(repaired: bool, seed: int) -> Program:
    """Learn the weights of two losses too, which lets both go below zero."""
    torch.manual_seed(seed)
    x = torch.randn(200, 7)
    age = 2 * torch.tanh(0.6 * x[:, :3].sum(1, keepdim=True))
    age = age + 0.5 * torch.randn(200, 1)
    kind = (x[:, 3] - x[:, 4] + torch.randn(200) > 0).long()
    trunk = nn.Sequential(nn.Linear(7, 32), nn.ReLU())
    heads = nn.ModuleList([nn.Linear(32, 1), nn.Linear(32, 2)])
    weights = nn.Parameter(torch.zeros(2) if repaired else torch.ones(2))
    network = [*trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": network, "lr": 5e-3}, {"params": [weights], "lr": 0.1}]
    )

    def losses() -> torch.Tensor:
        hidden = trunk(x)
        years = F.mse_loss(heads[0](hidden), age)
        return torch.stack([years, F.cross_entropy(heads[1](hidden), kind)])

    def step() -> float:
        optimizer.zero_grad()
        if repaired:
            loss = (torch.exp(-weights) * losses()).sum() + weights.sum()
        else:
            loss = weights @ losses()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def metric() -> float:
        return -losses().sum().item()

    return Program(step, [*network, weights], optimizer, metric=metric)

"""Programs whose loss compares or rewards the wrong thing."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from shared.diagnose.causes import Cause
from tests.diagnose_cases.material import blobs, line, unscaled_digits
from tests.diagnose_cases.program import Program, case, healthy


def _spot(center: torch.Tensor, size: int = 16) -> torch.Tensor:
    grid = torch.linspace(-1, 1, size)
    row = torch.exp(-4 * (grid - center[0]).square())
    column = torch.exp(-4 * (grid - center[1]).square())
    return row.unsqueeze(1) * column


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
    x, y = blobs(seed, classes=2)
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


@case(Cause.shape_broadcast, "training")
def column_prediction_flat_target(repaired: bool, seed: int) -> Program:
    """Compare a prediction of shape (N, 1) with a target of shape (N,) in MSELoss."""
    torch.manual_seed(seed)
    x, y = line(seed)
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
    x, y = line(seed)
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


@case(Cause.wrong_sign, "training")
def gradient_added(repaired: bool, seed: int) -> Program:
    """Add the gradient in a hand-written update, as one does to climb."""
    g = torch.Generator().manual_seed(seed)
    x, y = line(seed)
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
    x, y = blobs(seed)
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
    x, y = blobs(seed, classes=4)
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


@case(Cause.targets_masked_out, "training")
def ignore_index_is_a_class(repaired: bool, seed: int) -> Program:
    """Keep `ignore_index=0` from a padded task, though class 0 is a real class here."""
    torch.manual_seed(seed)
    x, y = blobs(seed)
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


@case(Cause.discontinuous_loss, "training")
def fixed_fee_for_running_out(repaired: bool, seed: int) -> Program:
    """Charge a fixed fee for each stock-out: only the storage cost has a slope."""
    torch.manual_seed(seed)
    x, y = line(seed)
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
    x, y = blobs(seed, classes=2)
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
    x, y = line(seed)
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
    x, y = line(seed)
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
    x, y = line(seed)
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


@case(Cause.targets_masked_out, "training")
def padding_counts_and_words_do_not(repaired: bool, seed: int) -> Program:
    """Masks are true where the padding is, and used as if they were true elsewhere."""
    torch.manual_seed(seed)
    words, length = 15, 9
    tokens = torch.randint(1, words, (48, length))
    padding = torch.arange(length) >= torch.randint(4, length, (48, 1))
    tokens = tokens.masked_fill(padding, 0)
    tags = (2 * tokens + 1) % words
    model = nn.Sequential(nn.Embedding(words, 16), nn.Linear(16, words))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    weight = (~padding if repaired else padding).float()

    def step() -> torch.Tensor:
        scores = model(tokens).transpose(1, 2)
        losses = F.cross_entropy(scores, tags, reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@healthy("training")
def words_hidden_at_random(seed: int) -> Program:
    """One word in six is hidden and counts; many rare words are never among them."""
    torch.manual_seed(seed)
    words = 200
    text = (200 * torch.rand(32, 12).square()).long()
    model = nn.Sequential(nn.Embedding(words + 1, 24), nn.Linear(24, words))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def step() -> torch.Tensor:
        hidden = torch.rand(text.shape) < 1 / 6
        context = text.roll(1, dims=1).masked_fill(hidden.roll(1, dims=1), words)
        scores = model(context).transpose(1, 2)
        losses = F.cross_entropy(scores, text, reduction="none")
        loss = losses[hidden].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@healthy("training")
def logarithms_of_the_named_targets(seed: int) -> Program:
    """Losses compare logarithms, which are not the targets that were handed in."""
    torch.manual_seed(seed)
    x, y = line(seed)
    lengths = (0.4 * y).exp()
    model = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def loss_fn(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (outputs.squeeze(1) - target.log()).square().mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(x), lengths)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn, (x, lengths))

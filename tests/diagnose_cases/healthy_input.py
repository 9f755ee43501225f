"""Healthy input optimization: what is moved gets better, or is already the best."""

import math

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from tests.diagnose_cases.program import Program, healthy


def _digit_classifier(seed: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    data = load_digits()
    x = torch.tensor(data.data[:400], dtype=torch.float32) / 16
    y = torch.tensor(data.target[:400])
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), x, y


def _image(size: int = 16) -> torch.Tensor:
    grid = torch.linspace(-1, 1, size)
    yy, xx = torch.meshgrid(grid, grid, indexing="ij")
    disk = torch.sigmoid(12 * (0.6 - (xx.square() + yy.square()).sqrt()))
    stripes = 0.5 + 0.5 * torch.sin(9 * xx)
    return torch.stack([disk, stripes, disk * stripes]).unsqueeze(0)


def _gram(features: torch.Tensor) -> torch.Tensor:
    _, channels, height, width = features.shape
    flat = features.view(channels, height * width)
    return flat @ flat.T / (height * width)


@healthy("input")
def neural_style(seed: int) -> Program:
    """Change an image until its features have the Gram matrix of another."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
    ).requires_grad_(False)
    style = _image()
    content = style.flip(-1).roll(3, -2)
    style_gram, content_features = _gram(net(style)), net(content)
    image = (content + 0.3 * torch.randn_like(content)).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.03)

    def step() -> float:
        optimizer.zero_grad()
        features = net(image)
        style_loss = F.mse_loss(_gram(features), style_gram)
        content_loss = F.mse_loss(features, content_features)
        smooth = (image[..., 1:] - image[..., :-1]).abs().mean()
        loss = 100 * style_loss + content_loss + 0.05 * smooth
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, image, optimizer)


@healthy("input")
def style_with_lbfgs(seed: int) -> Program:
    """Match a Gram matrix with LBFGS and a line search."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()).requires_grad_(False)
    wanted = _gram(net(_image()))
    image = torch.rand(1, 3, 16, 16).requires_grad_()
    optimizer = torch.optim.LBFGS([image], max_iter=2, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 100 * F.mse_loss(_gram(net(image)), wanted)
        loss.backward()
        return loss

    return Program(lambda: optimizer.step(closure), image, optimizer)


@healthy("input")
def box_projected_gradient(seed: int) -> Program:
    """Clamp to [0, 1] after each step; part of the solution lies on the edge."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(20, 12, generator=g)
    target = matrix @ (2.0 * torch.rand(12, generator=g) - 0.5)
    x = torch.full((12,), 0.5, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def objective(v: torch.Tensor) -> torch.Tensor:
        return (matrix @ v - target).square().mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(x)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0.0, 1.0)
        return loss

    return Program(step, x, optimizer, objective=objective)


@healthy("input")
def box_solution_on_the_corner(seed: int) -> Program:
    """Stand in the corner of a box where the solution is; the gradient is not zero."""
    g = torch.Generator().manual_seed(seed)
    wish = 1.5 + torch.rand(6, generator=g)
    x = torch.ones(6, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def objective(v: torch.Tensor) -> torch.Tensor:
        return (v - wish).square().sum()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(x)
        loss.backward()
        optimizer.step()
        x.data.clamp_(0, 1)
        return loss

    return Program(step, x, optimizer, objective=objective)


@healthy("input")
def adversarial_sign_updates(seed: int) -> Program:
    """Raise the loss of a digit by sign steps within a ball, as in PGD."""
    model, x, y = _digit_classifier(seed)
    clean, label = x[seed : seed + 1], y[seed : seed + 1]
    delta = torch.zeros_like(clean, requires_grad=True)

    def step() -> float:
        loss = F.cross_entropy(model(clean + delta), label)
        loss.backward()
        with torch.no_grad():
            delta.add_(0.01 * delta.grad.sign())
            delta.clamp_(-0.4, 0.4)
            delta.grad.zero_()
        return -loss.item()

    def confusion() -> float:
        with torch.no_grad():
            return F.cross_entropy(model(clean + delta), label).item()

    return Program(step, delta, metric=confusion)


@healthy("input")
def targeted_attack(seed: int) -> Program:
    """Turn a digit into another class with a penalty on the change."""
    model, x, y = _digit_classifier(seed)
    clean = x[seed : seed + 1]
    wanted = (y[seed : seed + 1] + 1) % 10
    noise = (0.01 * torch.randn_like(clean)).requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=0.02)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        attack = F.cross_entropy(model((clean + noise).clamp(0, 1)), wanted)
        loss = attack + 0.05 * noise.square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, noise, optimizer)


@healthy("input")
def sigmoid_reparametrization(seed: int) -> Program:
    """Keep pixels in (0, 1) by optimizing their logits."""
    torch.manual_seed(seed)
    target = 0.1 + 0.8 * _image()
    logits = torch.randn_like(target).mul(0.1).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)

    def objective(v: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(torch.sigmoid(v), target)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(logits)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, logits, optimizer, objective=objective)


@healthy("input")
def maximize_by_the_negative(seed: int) -> Program:
    """Maximize a design's score by minimizing its negative."""
    g = torch.Generator().manual_seed(seed)
    peak = torch.randn(4, generator=g)
    design = (peak + torch.randn(4, generator=g)).requires_grad_()
    optimizer = torch.optim.SGD([design], lr=0.5)

    def score(v: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + (v - peak).square().sum())

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -score(design)
        loss.backward()
        optimizer.step()
        return loss

    return Program(
        step, design, optimizer, metric=lambda: score(design.detach()).item()
    )


@healthy("input")
def maximize_option(seed: int) -> Program:
    """Maximize a class logit with `maximize=True`; the returned value grows."""
    model, x, _ = _digit_classifier(seed)
    image = x.mean(0, keepdim=True).clone().requires_grad_()
    optimizer = torch.optim.SGD([image], lr=0.02, maximize=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        score = model(image)[0, seed % 10] - 0.2 * image.square().sum()
        score.backward()
        optimizer.step()
        return score

    def logit() -> float:
        with torch.no_grad():
            return model(image)[0, seed % 10].item()

    return Program(step, image, optimizer, metric=logit)


@healthy("input")
def deep_dream(seed: int) -> Program:
    """Climb the activation of a layer along the normalized gradient, with jitter."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2)
    ).requires_grad_(False)
    image = (0.5 + 0.1 * torch.randn(1, 3, 16, 16)).requires_grad_()
    rate = 0.02

    def step() -> torch.Tensor:
        dx, dy = torch.randint(-2, 3, (2,)).tolist()
        activation = net(torch.roll(image, (dx, dy), (2, 3)))
        loss = -activation.square().mean()
        (gradient,) = torch.autograd.grad(loss, image)
        with torch.no_grad():
            image.sub_(rate * gradient / (gradient.abs().mean() + 1e-8))
        return loss

    return Program(step, image)


@healthy("input")
def random_restarts(seed: int) -> Program:
    """Move sixteen starting points of a wavy function at once; several stay behind."""
    g = torch.Generator().manual_seed(seed)
    points = (8 * torch.rand(16, 2, generator=g) - 4).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.05)

    def objective(v: torch.Tensor) -> torch.Tensor:
        waves = 10 * (1 - torch.cos(2 * v)).sum(-1)
        return (v.square().sum(-1) + waves).sum()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(points)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, points, optimizer, objective=objective)


@healthy("input")
def inverse_kinematics(seed: int) -> Program:
    """Bend four joints, a list of single numbers, until the hand is at its goal."""
    g = torch.Generator().manual_seed(seed)
    joints = [
        (0.3 + 0.2 * torch.randn((), generator=g)).requires_grad_() for _ in range(4)
    ]
    goal = torch.tensor([1.0, 2.0]) + 0.3 * torch.randn(2, generator=g)
    optimizer = torch.optim.Adam(joints, lr=0.03)

    def hand() -> torch.Tensor:
        angle = torch.cumsum(torch.stack(joints), 0)
        return torch.stack([angle.cos().sum(), angle.sin().sum()])

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (hand() - goal).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, joints, optimizer)


@healthy("input")
def trajectory_around_an_obstacle(seed: int) -> Program:
    """Bend a path, as a dict of x and y, around an obstacle between fixed ends."""
    g = torch.Generator().manual_seed(seed)
    n = 20
    path = {
        "x": (torch.linspace(0, 4, n) + 0.02 * torch.randn(n, generator=g)),
        "y": 0.3 + 0.1 * torch.rand(n, generator=g),
    }
    for tensor in path.values():
        tensor.requires_grad_()
    start, end, obstacle = torch.zeros(2), torch.tensor([4.0, 0.0]), torch.tensor(2.0)
    optimizer = torch.optim.SGD(path.values(), lr=0.02, momentum=0.9)

    def cost(v: dict[str, torch.Tensor]) -> torch.Tensor:
        points = torch.cat(
            [start.view(1, 2), torch.stack([v["x"], v["y"]], 1), end.view(1, 2)]
        )
        length = points.diff(dim=0).square().sum() * n
        gap = (points - torch.stack([obstacle, torch.zeros(())])).norm(dim=1)
        return 0.05 * length + F.softplus(4 * (1 - gap)).sum()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cost(path)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, path, optimizer, objective=cost)


@healthy("input")
def float64_minimum_energy(seed: int) -> Program:
    """Relax a cluster of atoms in float64 by plain descent."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.cartesian_prod(*[torch.arange(2.0)] * 3).double()
    atoms = 1.2 * grid + 0.05 * torch.randn(8, 3, generator=g, dtype=torch.float64)
    atoms.requires_grad_()
    first, second = torch.triu_indices(8, 8, 1)

    def energy(v: torch.Tensor) -> torch.Tensor:
        r = (v[first] - v[second]).norm(dim=1)
        return (r**-12 - 2 * r**-6).sum()

    def step() -> float:
        value = energy(atoms)
        (force,) = torch.autograd.grad(value, atoms)
        with torch.no_grad():
            atoms.add_(force, alpha=-2e-3)
        return value.item()

    return Program(step, atoms, objective=energy)


@healthy("input")
def gradient_hook_on_an_image(seed: int) -> Program:
    """Mask the gradient of an image on purpose, so that only a window changes."""
    model, x, y = _digit_classifier(seed)
    image = x[seed + 5 : seed + 6].clone().requires_grad_()
    wanted = (y[seed + 5 : seed + 6] + 3) % 10
    window = torch.zeros(8, 8)
    window[1:7, 1:7] = 1
    image.register_hook(lambda grad: 2 * grad * window.view(1, 64))
    optimizer = torch.optim.SGD([image], lr=0.05, momentum=0.9)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(image), wanted)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, image, optimizer)


@healthy("input")
def already_at_the_minimum(seed: int) -> Program:
    """Start least squares at its exact solution, where the residual is not zero."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(30, 5, generator=g, dtype=torch.float64)
    target = torch.randn(30, generator=g, dtype=torch.float64)
    x = torch.linalg.lstsq(matrix, target).solution.requires_grad_()
    optimizer = torch.optim.SGD([x], lr=0.1)

    def objective(v: torch.Tensor) -> torch.Tensor:
        return (matrix @ v - target).square().mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(x)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, x, optimizer, objective=objective)


@healthy("input")
def softmax_weights_of_a_portfolio(seed: int) -> Program:
    """Choose weights that sum to one, through a softmax over several assets."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(10, 10, generator=g) / 10**0.5
    risk = factor @ factor.T + 0.1 * torch.eye(10)
    gain = 0.5 * torch.rand(10, generator=g)
    logits = torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)

    def objective(v: torch.Tensor) -> torch.Tensor:
        w = torch.softmax(v, 0)
        return w @ risk @ w - gain @ w

    def step() -> torch.Tensor:
        loss = objective(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, logits, optimizer, objective=objective)


@healthy("input")
def prompt_tuning(seed: int) -> Program:
    """Learn a soft prompt in front of a frozen recurrent network."""
    torch.manual_seed(seed)
    gru = nn.GRU(8, 16, batch_first=True)
    head = nn.Linear(16, 4)
    for p in [*gru.parameters(), *head.parameters()]:
        p.requires_grad_(False)
        p.mul_(2.0)
    text = torch.randn(12, 2, 8)
    prompt = (0.1 * torch.randn(4, 8)).requires_grad_()
    wanted = torch.full((12,), seed % 4)
    optimizer = torch.optim.Adam([prompt], lr=0.1)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        tokens = torch.cat([prompt.expand(12, -1, -1), text], 1)
        _, hidden = gru(tokens)
        loss = F.cross_entropy(head(hidden[0]), wanted)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, prompt, optimizer)


@healthy("input")
def pose_from_overlap(seed: int) -> Program:
    """Slide a blurred spot over a wide one until they match."""
    g = torch.Generator().manual_seed(seed)
    goal = 0.5 * torch.randn(2, generator=g)
    pose = torch.zeros(2, requires_grad=True)
    grid = torch.linspace(-3, 3, 32)

    def draw(center: torch.Tensor) -> torch.Tensor:
        row = torch.exp(-(grid - center[0]).square())
        column = torch.exp(-(grid - center[1]).square())
        return row.unsqueeze(1) * column

    wanted = draw(goal)
    optimizer = torch.optim.RMSprop([pose], lr=0.02)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (draw(pose) - wanted).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, pose, optimizer)


@healthy("input")
def annealed_temperature(seed: int) -> Program:
    """Choose one of six parts by a softmax whose temperature falls each step."""
    g = torch.Generator().manual_seed(seed)
    price = torch.rand(5, 6, generator=g)
    logits = (0.01 * torch.randn(5, 6, generator=g)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    calls = 0

    def step() -> torch.Tensor:
        nonlocal calls
        temperature = max(0.3, math.exp(-0.02 * calls))
        calls += 1
        choice = torch.softmax(logits / temperature, dim=1)
        loss = (choice * price).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, logits, optimizer)


@healthy("input")
def picture_smoothed_from_itself(seed: int) -> Program:
    """Smooth a noisy picture: the data pulls at nothing where it starts."""
    noisy = torch.rand(20, 20, generator=torch.Generator().manual_seed(seed))
    picture = noisy.clone().requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=0.02)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        fit = (picture - noisy).square().sum()
        rough = picture.diff(dim=0).abs().sum() + picture.diff(dim=1).abs().sum()
        loss = fit + 0.3 * rough
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, picture, optimizer)

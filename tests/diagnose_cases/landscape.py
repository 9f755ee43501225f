"""Programs whose landscape is at fault: bounds, plateaus, saddles, and minima."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from shared.diagnose.causes import Cause
from tests.diagnose_cases.material import digits
from tests.diagnose_cases.program import Program, case


@case(Cause.clamped_at_bound, "training")
def predictions_clamped_to_a_range(repaired: bool, seed: int) -> Program:
    """Clamp outputs to [0, 1] while the last bias still has the unscaled mean."""
    torch.manual_seed(seed)
    features, progress = load_diabetes(return_X_y=True)
    x = torch.tensor(features, dtype=torch.float32) * 20
    y = torch.tensor(progress, dtype=torch.float32)[:, None]
    mean = y.mean().item()
    y = (y - y.min()) / (y.max() - y.min())
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
    nn.init.constant_(model[2].bias, 0.5 if repaired else mean)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    criterion = nn.MSELoss()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x).clamp(0, 1), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=criterion, batch=(x, y))


@case(Cause.clamped_at_bound, "input")
def picture_in_bytes_clamped_to_one(repaired: bool, seed: int) -> Program:
    """Hold a picture from 0 to 255 but clamp it to [0, 1] before the network."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 10)
    ).requires_grad_(False)
    picture = 50 + 150 * torch.rand(1, 1, 8, 8)
    if repaired:
        picture = picture / 255
    picture.requires_grad_()
    optimizer = torch.optim.SGD([picture], lr=0.3)
    wanted = torch.tensor([7])

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(picture.clamp(0, 1)), wanted)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, picture, optimizer)


@case(Cause.clamped_at_bound, "input")
def levels_start_on_the_edge_of_hardtanh(repaired: bool, seed: int) -> Program:
    """Levels start at zero, the edge of hardtanh, which passes no gradient there."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.rand(20, 6, generator=generator)
    heard = mixing @ (0.2 + 0.7 * torch.rand(6, generator=generator))
    level = torch.full((6,), 0.5 if repaired else 0.0, requires_grad=True)

    def objective(candidate: Tensor) -> Tensor:
        gain = F.hardtanh(candidate, min_val=0.0, max_val=1.0)
        return (mixing @ gain - heard).square().mean()

    def step() -> float:
        loss = objective(level)
        loss.backward()
        with torch.no_grad():
            level.sub_(0.1 * level.grad)
            level.grad.zero_()
        return loss.item()

    return Program(step, level, objective=objective)


class _SpotFitting:
    """Moves one drawn spot until the drawing matches a picture."""

    def __init__(self, start: Tensor, target: Tensor) -> None:
        line = torch.arange(48, dtype=torch.float32)
        self.rows, self.columns = torch.meshgrid(line, line, indexing="ij")
        self.center = start.requires_grad_()
        self.picture = self.draw(target)
        self.optimizer = torch.optim.SGD([self.center], lr=6.0)

    def draw(self, center: Tensor) -> Tensor:
        squared = (self.rows - center[0]) ** 2 + (self.columns - center[1]) ** 2
        return torch.exp(-squared / (2 * 1.5**2))

    def objective(self, center: Tensor) -> Tensor:
        return (self.draw(center) - self.picture).square().sum() / 48

    def train_step(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.objective(self.center)
        loss.backward()
        self.optimizer.step()
        return loss


@case(Cause.out_of_support, "input")
def spot_drawn_far_from_the_target(repaired: bool, seed: int) -> Program:
    """Move a small spot by a pixel loss toward another that it does not touch."""
    generator = torch.Generator().manual_seed(seed)
    target = 32 + 3 * torch.rand(2, generator=generator)
    away = 1.2 if repaired else 20.0
    fitting = _SpotFitting((target - away).clone(), target)
    return Program(
        fitting.train_step,
        fitting.center,
        fitting.optimizer,
        objective=fitting.objective,
    )


@case(Cause.out_of_support, "input")
def template_shifted_off_the_picture(repaired: bool, seed: int) -> Program:
    """Align a template by a shift that starts where it samples only padding."""
    pixels, _ = digits(seed, 1)
    template = F.pad(pixels.view(1, 1, 8, 8), (4, 4, 4, 4))
    start = [0.12, -0.12] if repaired else [2.5, -2.5]
    shift = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.005)
    turn = torch.eye(2)

    def objective(candidate: Tensor) -> Tensor:
        affine = torch.cat([turn, candidate[:, None]], dim=1)[None]
        grid = F.affine_grid(affine, list(template.shape), align_corners=False)
        moved = F.grid_sample(template, grid, align_corners=False)
        return F.mse_loss(moved, template)

    def metric() -> float:
        return -shift.detach().norm().item()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(shift)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, shift, optimizer, objective=objective, metric=metric)


@case(Cause.out_of_support, "training")
def box_loss_without_overlap(repaired: bool, seed: int) -> Program:
    """Train a detector by overlap alone while its first boxes overlap nothing."""
    torch.manual_seed(seed)
    corner = 0.3 + 0.2 * torch.rand(64, 2)
    boxes = torch.cat([corner, corner + 0.35], dim=1)
    line = (torch.arange(12) + 0.5) / 12
    inside = (line > corner[:, :, None]) & (line < corner[:, :, None] + 0.35)
    images = (inside[:, 0, :, None] & inside[:, 1, None, :]).float()[:, None]
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.Tanh(), nn.Linear(32, 4))
    nn.init.normal_(model[3].weight, std=0.01)
    first = [0.35, 0.35, 0.8, 0.8] if repaired else [-0.4, -0.4, 0.0, 0.0]
    model[3].bias.data.copy_(torch.tensor(first))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def overlap_loss(found: Tensor, wanted: Tensor) -> Tensor:
        low = torch.maximum(found[:, :2], wanted[:, :2])
        high = torch.minimum(found[:, 2:], wanted[:, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (found, wanted)]
        return (1 - shared / (areas[0] + areas[1] - shared)).mean()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = overlap_loss(model(images), boxes)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=overlap_loss, batch=(images, boxes))


@case(Cause.constant_objective, "training")
def softmax_over_a_single_output(repaired: bool, seed: int) -> Program:
    """Put a softmax on the single output of a classifier: it is always one."""
    torch.manual_seed(seed)
    x, digit = digits(seed, 256)
    y = (digit % 2).float()[:, None]
    last = nn.Sigmoid() if repaired else nn.Softmax(dim=1)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 1), last)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    criterion = nn.BCELoss()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=criterion, batch=(x, y))


class _CrossAttention(nn.Module):
    """Looks values up by a query: only the query and key maps are to be learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)

    def forward(self, asked: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        score = torch.einsum("bd,bkd->bk", self.query(asked), self.key(keys))
        return torch.einsum("bk,bkv->bv", score.softmax(1), values)


@case(Cause.constant_objective, "training")
def attention_over_one_key(repaired: bool, seed: int) -> Program:
    """Attention is trained to look up, but the context was cut to a single key."""
    torch.manual_seed(seed)
    keys = torch.randn(128, 6, 8)
    values = torch.randn(128, 6, 4)
    place = torch.randint(6, (128,))
    each = torch.arange(128)
    asked = keys[each, place] + 0.1 * torch.randn(128, 8)
    wanted = values[each, place]
    context = 6 if repaired else 1
    model = _CrossAttention(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def step() -> float:
        optimizer.zero_grad()
        found = model(asked, keys[:, :context], values[:, :context])
        loss = F.mse_loss(found, wanted)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer)


@case(Cause.constant_objective, "input")
def total_of_a_normalized_spectrum(repaired: bool, seed: int) -> Program:
    """Maximize the total of a spectrum that is first scaled to total one."""
    generator = torch.Generator().manual_seed(seed)
    sensitivity = torch.rand(16, generator=generator)
    if not repaired:
        sensitivity = torch.ones(16)
    filters = torch.rand(16, generator=generator).requires_grad_()
    optimizer = torch.optim.SGD([filters], lr=2.0)

    def objective(candidate: Tensor) -> Tensor:
        spectrum = torch.softmax(candidate, dim=0)
        return -(spectrum * sensitivity).sum()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(filters)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, filters, optimizer, objective=objective)


class _GatedAdapter(nn.Module):
    """Adds a small residual branch, scaled by a gate, to a frozen linear model."""

    def __init__(self, width: int, outputs: int, gate: float) -> None:
        super().__init__()
        self.base = nn.Linear(width, outputs).requires_grad_(False)
        self.down = nn.Linear(width, 16)
        self.up = nn.Linear(16, outputs, bias=False)
        self.gate = nn.Parameter(torch.tensor(gate))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.gate * self.up(F.gelu(self.down(x)))


@case(Cause.stationary_not_minimum, "training")
def adapter_with_two_zero_factors(repaired: bool, seed: int) -> Program:
    """Start an adapter with a zero gate and a zero projection: each hides the other."""
    torch.manual_seed(seed)
    x, y = digits(seed, 256)
    model = _GatedAdapter(64, 10, gate=1.0 if repaired else 0.0)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=5e-3, weight_decay=0.0)
    criterion = nn.CrossEntropyLoss()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, learned, optimizer, loss_fn=criterion, batch=(x, y))


@case(Cause.stationary_not_minimum, "training")
def collapsed_embeddings_never_part(repaired: bool, seed: int) -> Program:
    """All embeddings start as ones, and squared distances have no slope at zero."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(5, (60,), generator=generator)
    left, right = torch.randint(60, (2, 512), generator=generator)
    same = (group[left] == group[right]).float()
    table = nn.Embedding(60, 6)
    noise = torch.randn(60, 6, generator=generator)
    table.weight.data.copy_(1 + 0.4 * noise if repaired else torch.ones(60, 6))
    optimizer = torch.optim.Adam(table.parameters(), lr=0.03)

    def step() -> Tensor:
        optimizer.zero_grad()
        squared = (table(left) - table(right)).square().sum(1)
        loss = (same * squared + (1 - same) * F.relu(4 - squared)).mean()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, table, optimizer)


@case(Cause.stationary_not_minimum, "input")
def particles_start_on_the_hilltop(repaired: bool, seed: int) -> Program:
    """Particles with two wells each start at the origin, the top between the wells."""
    generator = torch.Generator().manual_seed(seed)
    depth = 0.5 + torch.rand(5, generator=generator)
    start = 0.2 * torch.randn(5, generator=generator).sign() if repaired else 0.0
    position = (torch.zeros(5) + start).requires_grad_()
    optimizer = torch.optim.SGD([position], lr=0.02, momentum=0.5)

    def energy(candidate: Tensor) -> Tensor:
        return (depth * (candidate.square() - 1).square()).sum()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = energy(position)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, position, optimizer, objective=energy)


@case(Cause.saddle_point, "training")
def factors_start_almost_at_zero(repaired: bool, seed: int) -> Program:
    """Both factors of a low-rank model start at 1e-6, where their product is flat."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(24, 2, generator=generator) @ torch.randn(
        2, 18, generator=generator
    )
    truth = truth / torch.linalg.matrix_norm(truth, ord=2)
    scale = 0.2 if repaired else 1e-6
    factors = {
        "rows": (scale * torch.randn(24, 3, generator=generator)).requires_grad_(),
        "columns": (scale * torch.randn(3, 18, generator=generator)).requires_grad_(),
    }
    optimizer = torch.optim.SGD(factors.values(), lr=0.08)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = (factors["rows"] @ factors["columns"] - truth).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, factors, optimizer)


@case(Cause.saddle_point, "input")
def receiver_halfway_between_antennas(repaired: bool, seed: int) -> Program:
    """Look for the best signal starting halfway between two antennas."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(6, 10, (1,), generator=generator).item() / 4
    antennas = torch.tensor([[-half, 0.0], [half, 0.0]])
    place = torch.tensor([0.4 if repaired else 0.0, 0.3 if repaired else 0.0])
    place.requires_grad_()
    optimizer = torch.optim.SGD([place], lr=0.15)

    def signal(candidate: Tensor) -> Tensor:
        return torch.exp(-(antennas - candidate).square().sum(1) / 2).sum()

    def metric() -> float:
        return signal(place.detach()).item()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = -signal(place)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, place, optimizer, metric=metric)


@case(Cause.saddle_point, "input")
def axis_starts_on_the_second_component(repaired: bool, seed: int) -> Program:
    """Seek the main axis of a cloud from its second axis, a saddle of variance."""
    torch.manual_seed(seed)
    cloud = torch.randn(200, 4, dtype=torch.float64) * torch.tensor(
        [2.0, 1.4, 0.8, 0.5]
    )
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    cloud = cloud @ turn
    covariance = cloud.T @ cloud / 200
    axes = torch.linalg.eigh(covariance).eigenvectors
    start = axes[:, 2] + (0.3 * axes[:, 3] if repaired else 0.0)
    axis = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([axis], lr=0.05)

    def objective(candidate: Tensor) -> Tensor:
        return -(candidate @ covariance @ candidate) / (candidate @ candidate)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(axis)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, axis, optimizer, objective=objective)


@case(Cause.at_minimum, "training")
def regression_already_solved(repaired: bool, seed: int) -> Program:
    """Train a linear model on from its least-squares solution."""
    torch.manual_seed(seed)
    features, progress = load_diabetes(return_X_y=True)
    x = torch.tensor(features) * 20
    y = torch.tensor(progress)[:, None] / 100
    model = nn.Linear(10, 1).double()
    if not repaired:
        padded = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
        solution = torch.linalg.lstsq(padded, y).solution
        model.weight.data.copy_(solution[:10].T)
        model.bias.data.copy_(solution[10])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, loss_fn=F.mse_loss, batch=(x, y))


@case(Cause.at_minimum, "training")
def classifier_run_to_convergence(repaired: bool, seed: int) -> Program:
    """LBFGS goes on after a regularized classifier has converged."""
    torch.manual_seed(seed)
    x, digit = digits(seed, 120)
    x, y = x.double(), (digit > 4).double()
    weight = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], lr=0.1, max_iter=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        data = F.binary_cross_entropy_with_logits(x @ weight + bias, y)
        loss = data + 0.05 * weight.square().sum()
        loss.backward()
        return loss

    def step() -> Tensor:
        return optimizer.step(closure)

    if not repaired:
        for _ in range(200):
            step()
    return Program(step, [weight, bias], optimizer)


@case(Cause.at_minimum, "input")
def portfolio_at_the_edge_of_its_box(repaired: bool, seed: int) -> Program:
    """Shares are projected to [0, 1] after each step, and the best ones are corners."""
    generator = torch.Generator().manual_seed(seed)
    gain = 1 + torch.rand(6, generator=generator)
    gain = gain * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    best = (gain > 0).float()
    shares = (torch.full((6,), 0.5) if repaired else best).clone().requires_grad_()
    optimizer = torch.optim.SGD([shares], lr=0.02)

    def objective(candidate: Tensor) -> Tensor:
        return 0.2 * candidate.square().sum() - gain @ candidate

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(shares)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            shares.clamp_(0, 1)
        return loss

    return Program(step, shares, optimizer, objective=objective)


@case(Cause.constant_objective, "input")
def energy_of_a_normalized_signal(repaired: bool, seed: int) -> Program:
    """Maximize the energy of a signal that layer norm gives the same energy always."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(16, generator=generator).requires_grad_()
    pattern = torch.randn(16, generator=generator)
    optimizer = torch.optim.SGD([signal], lr=0.5)

    def objective(candidate: Tensor) -> Tensor:
        shape = F.layer_norm(candidate, (16,))
        if repaired:
            return (shape - pattern).square().mean()
        return -shape.square().mean()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(signal)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, signal, optimizer, objective=objective)


@case(Cause.out_of_support, "input")
def disk_with_a_clamped_rim(repaired: bool, seed: int) -> Program:
    """Draw a disk through a clamp, far from the disk that it should cover."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(
        torch.arange(32.0), torch.arange(32.0), indexing="ij"
    )

    def drawn(center: Tensor) -> Tensor:
        distance = torch.hypot(rows - center[0], columns - center[1])
        return 1 - (distance - 4).clamp(0, 2) / 2

    wanted = drawn(torch.tensor([24.0, 24.0]))
    start = torch.tensor([21.0, 21.0] if repaired else [6.0, 7.0])
    center = (start + torch.rand(2, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([center], lr=0.3)

    def objective(candidate: Tensor) -> Tensor:
        return -(drawn(candidate) * wanted).mean()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(center)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, center, optimizer, objective=objective)


@case(Cause.symmetric_init, "training")
def factors_filled_with_one_number(repaired: bool, seed: int) -> Program:
    """Factorize a table from two constant factors: all columns stay the same."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(20, 3, generator=generator) @ torch.randn(
        3, 15, generator=generator
    )
    factors = [
        (
            0.5 * torch.randn(n, 3, generator=generator)
            if repaired
            else torch.full((n, 3), 0.5)
        )
        for n in (20, 15)
    ]
    users, items = (factor.requires_grad_() for factor in factors)
    optimizer = torch.optim.Adam([users, items], lr=0.02)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = (users @ items.T - table).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, {"users": users, "items": items}, optimizer)


@case(Cause.lr_too_large, "training")
def curve_fit_that_jumps_into_saturation(repaired: bool, seed: int) -> Program:
    """Take such long steps with a tanh network that all its units saturate."""
    torch.manual_seed(seed)
    x = torch.linspace(0, 1, 40)[:, None]
    y = torch.sin(3 * x)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 if repaired else 3.0)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@case(Cause.out_of_support, "input")
def box_apart_in_both_directions(repaired: bool, seed: int) -> Program:
    """Move a box by its overlap with another, which it touches in neither direction."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.tensor([50.0, 50.0, 70.0, 70.0])
    corners = [45.0, 45.0, 65.0, 66.0] if repaired else [5.0, 5.0, 20.0, 20.0]
    box = (torch.tensor(corners) + torch.rand(4, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([box], lr=0.5)

    def step() -> Tensor:
        optimizer.zero_grad()
        low = torch.maximum(box[:2], target[:2])
        high = torch.minimum(box[2:], target[2:])
        width, height = (high - low).clamp(min=0)
        common = width * height
        both = (box[2] - box[0]) * (box[3] - box[1]) + 400 - common
        loss = 1 - common / both
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, box, optimizer)


@case(Cause.out_of_support, "input")
def sprite_placed_in_pixels(repaired: bool, seed: int) -> Program:
    """Give a position in pixels to a sampler that counts from -1 to 1."""
    generator = torch.Generator().manual_seed(seed)
    size, scale = 40, 0.55
    line = torch.linspace(-1, 1, 16)
    bump = torch.exp(-2.5 * (line[:, None] ** 2 + line**2))
    sprite = bump * (0.8 + 0.2 * torch.rand(16, 16, generator=generator))

    def paste(position: Tensor) -> Tensor:
        shrink = torch.eye(2) / scale
        affine = torch.cat([shrink, -position[:, None] / scale], dim=1)[None]
        grid = F.affine_grid(affine, (1, 1, size, size), align_corners=False)
        return F.grid_sample(sprite[None, None], grid, align_corners=False)

    canvas = paste(torch.tensor([0.25, -0.15]))
    start = torch.tensor([12.0, 25.0])
    if repaired:
        start = start / (size - 1) * 2 - 1
    position = nn.Parameter(start)
    optimizer = torch.optim.SGD([position], lr=0.6, momentum=0.8)

    def objective(candidate: Tensor) -> Tensor:
        return F.mse_loss(paste(candidate), canvas)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(position)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, position, optimizer, objective=objective)


@case(Cause.constant_objective, "input")
def mean_of_normalized_tokens(repaired: bool, seed: int) -> Program:
    """Raise the mean of all features behind a layer norm, which is always zero."""
    torch.manual_seed(seed)
    embed = nn.Conv2d(3, 32, 4, stride=4).requires_grad_(False)
    hidden = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    hidden.requires_grad_(False)
    picture = (0.3 * torch.randn(1, 3, 24, 24)).requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=0.03)

    def objective(candidate: Tensor) -> Tensor:
        tokens = embed(candidate).flatten(2).transpose(1, 2)
        tokens = F.layer_norm(tokens + hidden(tokens), (32,))
        return -(tokens[..., 11] if repaired else tokens).mean()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(picture)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, picture, optimizer, objective=objective)


class _Ratings(nn.Module):
    """Predicts a rating by a product of three factors: user, item and month."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.factors = nn.ModuleList(nn.Embedding(n, 5) for n in (20, 15, 6))
        for factor in self.factors:
            nn.init.normal_(factor.weight, std=spread)

    def forward(self, places: Tensor) -> Tensor:
        user, item, month = (
            factor(places[:, k]) for k, factor in enumerate(self.factors)
        )
        return (user * item * month).sum(dim=1)


@case(Cause.stationary_not_minimum, "training")
def three_factors_start_at_zero(repaired: bool, seed: int) -> Program:
    """Three factors of a product start at zero, and batches are drawn at random."""
    torch.manual_seed(seed)
    truth = _Ratings(spread=1.0)
    places = torch.stack([torch.randint(0, n, (900,)) for n in (20, 15, 6)], dim=1)
    ratings = truth(places).detach()
    model = _Ratings(spread=0.5 if repaired else 0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)

    def step() -> float:
        batch = torch.randint(0, 900, (300,))
        loss = F.mse_loss(model(places[batch]), ratings[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, loss_fn=F.mse_loss, batch=(places, ratings))


@case(Cause.at_minimum, "input")
def attack_resumed_in_the_corner_of_its_box(repaired: bool, seed: int) -> Program:
    """Go on with sign steps by hand from where an earlier attack arrived."""
    generator = torch.Generator().manual_seed(seed)
    bound = 0.03
    weights = 0.3 * torch.randn(64, generator=generator)
    image = 0.3 + 0.4 * torch.rand(64, generator=generator)
    offset = 0.5 - weights @ image
    arrived = torch.zeros(64) if repaired else -bound * weights.sign()
    change = arrived.requires_grad_()

    def objective(candidate: Tensor) -> Tensor:
        return F.softplus(weights @ (image + candidate) + offset)

    def step() -> float:
        loss = objective(change)
        loss.backward()
        with torch.no_grad():
            change.sub_(0.005 * change.grad.sign())
            change.clamp_(-bound, bound)
            change.grad.zero_()
        return loss.item()

    return Program(step, change, objective=objective)


@case(Cause.discontinuous_loss, "input")
def bubble_with_a_sharp_rim(repaired: bool, seed: int) -> Program:
    """Locate a disk, bright towards its sharp rim, by the pixels of its drawing."""
    generator = torch.Generator().manual_seed(seed + 1)
    line = torch.linspace(-1, 1, 36)
    rows, columns = torch.meshgrid(line, line, indexing="ij")

    def draw(center: Tensor) -> Tensor:
        squared = ((columns - center[0]) ** 2 + (rows - center[1]) ** 2) / 0.45**2
        soft = torch.sigmoid((1 - squared) / 0.2)
        cover = soft if repaired else (squared < 1).float()
        return cover * (0.3 + 0.7 * squared.clamp(max=1.0))

    truth = torch.tensor([0.15, -0.1]) + 0.05 * torch.rand(2, generator=generator)
    photo = draw(truth)
    center = (truth + torch.tensor([-0.28, 0.22])).requires_grad_()
    optimizer = torch.optim.SGD([center], lr=0.2, momentum=0.5)

    def objective(candidate: Tensor) -> Tensor:
        return F.mse_loss(draw(candidate), photo)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(center)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, center, optimizer, objective=objective)


@case(Cause.saturated_activation, "input")
def recipe_of_one_pure_pigment(repaired: bool, seed: int) -> Program:
    """Mix pigments by a softmax that starts from one of them, with a score of 100."""
    torch.manual_seed(seed + 1)
    pigments = torch.rand(9, 31)
    wanted = torch.distributions.Dirichlet(torch.full((9,), 0.6)).sample() @ pigments
    pure = F.one_hot(torch.tensor(4), 9).float()
    scores = nn.Parameter(pure * (3.0 if repaired else 100.0))
    optimizer = torch.optim.Adam([scores], lr=0.05)

    def mismatch(candidate: Tensor) -> Tensor:
        return (torch.softmax(candidate, 0) @ pigments - wanted).square().sum()

    def step() -> float:
        optimizer.zero_grad()
        loss = mismatch(scores)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, [scores], optimizer, objective=mismatch)


@case(Cause.dead_relu, "input")
def factors_of_logarithms_through_relu(repaired: bool, seed: int) -> Program:
    """Keep two factors positive by ReLU; they start as logarithms, below zero."""
    torch.manual_seed(seed)
    spectra = torch.rand(30, 3) @ torch.rand(3, 50)
    starts = [0.1 + 0.5 * torch.rand(30, 3), 0.1 + 0.5 * torch.rand(3, 50)]
    factors = [nn.Parameter(f if repaired else f.log()) for f in starts]
    optimizer = torch.optim.Adagrad(factors, lr=0.05)

    def step() -> Tensor:
        optimizer.zero_grad()
        left, right = map(torch.relu, factors)
        loss = F.mse_loss(left @ right, spectra)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, factors, optimizer)


@case(Cause.vanishing_gradient, "input")
def throw_through_a_thick_medium(repaired: bool, seed: int) -> Program:
    """Aim a throw whose speed is damped away long before its end is compared."""
    torch.manual_seed(seed)
    drag = 0.3 if repaired else 15.0
    goal = torch.tensor([1.0, -0.5])
    throw = torch.randn(2).requires_grad_()
    optimizer = torch.optim.SGD([throw], lr=1.5)

    def objective(speed: Tensor) -> Tensor:
        for _ in range(60):
            speed = speed - 0.05 * drag * speed
        return (speed - goal).square().sum()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = objective(throw)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, throw, optimizer, objective=objective)


@case(Cause.stationary_not_minimum, "training")
def every_weight_at_zero(repaired: bool, seed: int) -> Program:
    """Zeros in every layer keep each other at zero; the targets have no mean."""
    torch.manual_seed(seed)
    x = torch.randn(150, 5)
    y = x[:, :1] - x[:, 1:2] * x[:, 2:3]
    y = y - y.mean()
    model = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 1))
    if not repaired:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@case(Cause.out_of_support, "input")
def lamp_far_outside_of_the_frame(repaired: bool, seed: int) -> Program:
    """Light from so far away is zero to the last digit in every pixel."""
    torch.manual_seed(seed)
    pixels = torch.arange(24.0)

    def lit(place: torch.Tensor) -> torch.Tensor:
        rows, columns = (pixels - place[0]).square(), (pixels - place[1]).square()
        distance = rows[:, None] + columns[None, :]
        return torch.exp(-distance / 6)

    picture = lit(torch.tensor([17.0, 15.0]))
    begin = torch.tensor([14.0, 12.0]) if repaired else torch.tensor([-50.0, 70.0])
    place = (begin + torch.rand(2)).requires_grad_()
    optimizer = torch.optim.Adam([place], lr=0.2)

    def objective(candidate: torch.Tensor) -> torch.Tensor:
        return (lit(candidate) - picture).abs().mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(place)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, place, optimizer, objective=objective)


@case(Cause.clamped_at_bound, "training")
def log_spread_below_its_floor(repaired: bool, seed: int) -> Program:
    """One of two variables lies under the floor of a clamp; the other one moves."""
    torch.manual_seed(seed)
    data = 3 + 0.05 * torch.randn(200)
    center = torch.zeros(1, requires_grad=True)
    log_spread = torch.full((1,), -0.2, requires_grad=True)
    optimizer = torch.optim.Adam([center, log_spread], lr=0.05)

    def step() -> torch.Tensor:
        low = log_spread.clamp(-6.0 if repaired else 0.5, 3.0)
        loss = (0.5 * ((data - center) / low.exp()).square() + low).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    variables = {"center": center, "log_spread": log_spread}
    return Program(step, variables, optimizer)

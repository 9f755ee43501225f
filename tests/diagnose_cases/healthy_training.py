"""Healthy training programs: each learns, or is already where it can get."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.diagnose_cases.material import digits
from tests.diagnose_cases.program import Program, healthy


def _blobs(
    seed: int, n: int = 96, features: int = 8, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    centers = 1.5 * torch.randn(classes, features, generator=g)
    y = torch.arange(n) % classes
    x = centers[y] + 0.7 * torch.randn(n, features, generator=g)
    return (x - x.mean(0)) / x.std(0), y


def _curve(
    seed: int, n: int = 96, features: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=g)
    w = torch.randn(features, 1, generator=g)
    y = torch.tanh(x @ w) + 0.3 * x[:, :1] + 0.05 * torch.randn(n, 1, generator=g)
    return x, y


def _walks(seed: int, n: int = 32, length: int = 24) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(n, 1, generator=g)
    speed = 0.3 + 0.3 * torch.rand(n, 1, generator=g)
    t = torch.arange(length)
    return torch.sin(phase + speed * t).unsqueeze(-1)


def _sentences(
    seed: int, n: int = 48, length: int = 10, words: int = 20
) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    start = torch.randint(0, words, (n, 1), generator=g)
    stride = torch.randint(1, 4, (n, 1), generator=g)
    return (start + stride * torch.arange(length)) % words


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


@healthy("training")
def plain_classifier(seed: int) -> Program:
    """Train a small MLP with Adam on three blobs."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    model = _mlp(8, 16, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@healthy("training")
def gan(seed: int) -> Program:
    """Alternate one discriminator and one generator step on a ring of points."""
    torch.manual_seed(seed)
    angle = 6.28 * torch.rand(256)
    real_points = torch.stack([angle.cos(), angle.sin()], 1) + 2.0
    generator = _mlp(4, 32, 2)
    discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(
        discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999)
    )
    bce = nn.BCEWithLogitsLoss()
    batch_size = 64

    def step() -> float:
        real = real_points[torch.randint(0, 256, (batch_size,))]
        fake = generator(torch.randn(batch_size, 4))
        ones, zeros = torch.ones(batch_size, 1), torch.zeros(batch_size, 1)

        optimizer_d.zero_grad()
        loss_d = bce(discriminator(real), ones)
        loss_d = loss_d + bce(discriminator(fake.detach()), zeros)
        loss_d.backward()
        optimizer_d.step()

        optimizer_g.zero_grad()
        loss_g = bce(discriminator(fake), ones)
        loss_g.backward()
        optimizer_g.step()
        return loss_g.item()

    return Program(step, generator, optimizer_g)


@healthy("training")
def gradient_accumulation(seed: int) -> Program:
    """Update once in four calls, with the loss divided by four."""
    torch.manual_seed(seed)
    x, y = _blobs(seed, n=128)
    model = _mlp(8, 24, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    loader = itertools.cycle(DataLoader(TensorDataset(x, y), batch_size=32))
    accumulate = 4
    calls = 0

    def step() -> torch.Tensor:
        nonlocal calls
        inputs, labels = next(loader)
        loss = F.cross_entropy(model(inputs), labels)
        (loss / accumulate).backward()
        calls += 1
        if calls % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return Program(step, model, optimizer, F.cross_entropy, (x, y))


@healthy("training")
def mixed_precision_float16(seed: int) -> Program:
    """Train under float16 autocast with a gradient scaler, as on a GPU."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    model = _mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    criterion = nn.CrossEntropyLoss()

    def train_step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = criterion(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return Program(train_step, model, optimizer, criterion, (x, y))


@healthy("training")
def mixed_precision_bfloat16(seed: int) -> Program:
    """Train under bfloat16 autocast, with the weights kept in float32."""
    torch.manual_seed(seed)
    x, y = _curve(seed)
    model = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def step() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(x)
        loss = F.mse_loss(output.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, F.mse_loss, (x, y))


@healthy("training")
def lbfgs_with_closure(seed: int) -> Program:
    """Fit a regression with LBFGS, which calls a closure several times."""
    torch.manual_seed(seed)
    x, y = _curve(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.LBFGS(
        model.parameters(), lr=1.0, max_iter=4, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    def step() -> torch.Tensor:
        return optimizer.step(closure)

    return Program(step, model, optimizer, F.mse_loss, (x, y))


@healthy("training")
def rnn_truncated_backprop(seed: int) -> Program:
    """Carry the hidden state over windows of a sequence and detach it on purpose."""
    torch.manual_seed(seed)
    walks = _walks(seed, n=16, length=49)
    rnn = nn.GRU(1, 16, batch_first=True)
    head = nn.Linear(16, 1)
    model = nn.ModuleDict({"rnn": rnn, "head": head})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    window = 8
    hidden: torch.Tensor | None = None
    position = 0

    def step() -> float:
        nonlocal hidden, position
        if position + window + 1 > walks.shape[1]:
            hidden, position = None, 0
        inputs = walks[:, position : position + window]
        targets = walks[:, position + 1 : position + window + 1]
        if hidden is not None:
            hidden = hidden.detach()
        output, hidden = rnn(inputs, hidden)
        loss = F.mse_loss(head(output), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        position += window
        return loss.item()

    return Program(step, model, optimizer)


class _TinyTransformer(nn.Module):
    def __init__(self, words: int, width: int, length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(words, width)
        self.position = nn.Embedding(length, width)
        self.block = nn.TransformerEncoderLayer(
            width, 4, dim_feedforward=64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        h = self.token(tokens) + self.position(torch.arange(length))
        return self.head(self.block(h, src_mask=mask, is_causal=True))


@healthy("training")
def transformer_with_warmup(seed: int) -> Program:
    """Train a causal transformer, with a rate that warms up from exactly zero."""
    torch.manual_seed(seed)
    tokens = _sentences(seed)
    model = _TinyTransformer(20, 32, 9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    warmup = 6
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(k / warmup, math.sqrt(warmup / max(k, 1)))
    )

    def step() -> torch.Tensor:
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, 20), tokens[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    return Program(step, model, optimizer)


@healthy("training")
def frozen_backbone(seed: int) -> Program:
    """Train only the head; the backbone is frozen on purpose."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
    for parameter in backbone.parameters():
        parameter.requires_grad = False
    backbone.eval()
    head = nn.Linear(128, 10)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        with torch.no_grad():
            features = backbone(x)
        loss = criterion(head(features), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, head, optimizer, criterion)


@healthy("training")
def fine_tuning_with_frozen_layers(seed: int) -> Program:
    """Hand the whole model over, though its first layer is frozen for fine-tuning."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=3e-3
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, F.cross_entropy, (x, y))


@healthy("training")
def ema_teacher(seed: int) -> Program:
    """Train a student to agree with a slow copy of itself as well as with labels."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    student = _mlp(8, 24, 3)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)

    def step() -> torch.Tensor:
        noisy = x + 0.1 * torch.randn_like(x)
        logits = student(noisy)
        with torch.no_grad():
            wanted = teacher(x).softmax(-1)
        consistency = F.mse_loss(logits.softmax(-1), wanted)
        loss = F.cross_entropy(logits, y) + 0.5 * consistency
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(
                teacher.parameters(), student.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.05)
        return loss

    return Program(step, student, optimizer)


@healthy("training")
def tied_weights(seed: int) -> Program:
    """Use one matrix both as the embedding and as the output layer."""
    torch.manual_seed(seed)
    tokens = _sentences(seed)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 24)
            self.gru = nn.GRU(24, 24, batch_first=True)
            self.decoder = nn.Linear(24, 20)
            self.decoder.weight = self.embedding.weight

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.decoder(self.gru(self.embedding(words))[0])

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@healthy("training")
def sparse_embedding(seed: int) -> Program:
    """Learn word vectors with sparse gradients; most rows are not in a batch."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    words = 500
    centers = torch.randint(0, words, (512,), generator=g)
    contexts = (centers + torch.randint(1, 4, (512,), generator=g)) % words
    embedding = nn.Embedding(words, 16, sparse=True)
    context = nn.Embedding(words, 16, sparse=True)
    model = nn.ModuleList([embedding, context])
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=3e-2)
    start = 0

    def step() -> torch.Tensor:
        nonlocal start
        rows = torch.arange(start, start + 128) % 512
        start += 128
        center, positive = embedding(centers[rows]), context(contexts[rows])
        negative = context(torch.randint(0, words, (128, 5)))
        score = (center * positive).sum(-1)
        others = (center.unsqueeze(1) * negative).sum(-1)
        loss = -F.logsigmoid(score).mean() - F.logsigmoid(-others).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@healthy("training")
def dropout_and_batch_norm(seed: int) -> Program:
    """Train a small convolutional network with batch norm and dropout."""
    torch.manual_seed(seed)
    x, y = digits(seed, count=128)
    x = x.view(-1, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        model.train()
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    def accuracy() -> float:
        model.eval()
        with torch.no_grad():
            value = (model(x).argmax(1) == y).float().mean().item()
        model.train()
        return value

    return Program(step, model, optimizer, criterion, (x, y), metric=accuracy)


@healthy("training")
def several_losses(seed: int) -> Program:
    """Train one trunk for a class and a number at once, with weighted losses."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    size = x.norm(dim=1)
    trunk, classify, regress = nn.Linear(8, 32), nn.Linear(32, 3), nn.Linear(32, 1)
    model = nn.ModuleDict({"trunk": trunk, "classify": classify, "regress": regress})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        h = torch.relu(trunk(x))
        losses = {
            "class": F.cross_entropy(classify(h), y),
            "size": F.smooth_l1_loss(regress(h).squeeze(1), size),
            "sparse": h.abs().mean(),
        }
        total = losses["class"] + 0.5 * losses["size"] + 1e-3 * losses["sparse"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total

    return Program(step, model, optimizer)


@healthy("training")
def weight_norm(seed: int) -> Program:
    """Train layers whose weights are computed from a direction and a length."""
    torch.manual_seed(seed)
    x, y = _curve(seed)
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 32)),
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(32, 1)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, F.mse_loss, (x, y))


class _Symmetric(nn.Module):
    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.triu() + matrix.triu(1).transpose(-1, -2)


@healthy("training")
def parametrized_symmetric(seed: int) -> Program:
    """Learn a symmetric matrix; the lower half of its parameter is never used."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    half = torch.randn(6, 6, generator=g)
    x = torch.randn(80, 6, generator=g)
    y = x @ (half + half.T) / 2
    layer = nn.Linear(6, 6, bias=False)
    parametrize.register_parametrization(layer, "weight", _Symmetric())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.5)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, layer, optimizer, F.mse_loss, (x, y))


class _CleverSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


@healthy("training")
def custom_function(seed: int) -> Program:
    """Use an activation with a hand-written backward pass."""
    torch.manual_seed(seed)
    x, y = _blobs(seed, features=5)
    first, second = nn.Linear(5, 24), nn.Linear(24, 3)
    parameters = [*first.parameters(), *second.parameters()]
    optimizer = torch.optim.RMSprop(parameters, lr=3e-3)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(second(_CleverSwish.apply(first(x))), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, parameters, optimizer)


class _FakeQuantLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight.detach().abs().max() / 7
        rounded = torch.round(self.weight / scale).clamp(-7, 7) * scale
        weight = self.weight + (rounded - self.weight).detach()
        return F.linear(x, weight, self.bias)


@healthy("training")
def quantization_aware(seed: int) -> Program:
    """Round the weights to four bits, with a straight-through gradient."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    model = nn.Sequential(_FakeQuantLinear(64, 48), nn.ReLU(), _FakeQuantLinear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@healthy("training")
def converged_interpolation(seed: int) -> Program:
    """Keep training a linear regression that already fits its points exactly."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 5, generator=g, dtype=torch.float64)
    w = torch.randn(5, 1, generator=g, dtype=torch.float64)
    y = x @ w + 0.5
    model = nn.Linear(5, 1).double()
    with torch.no_grad():
        model.weight.copy_(w.T)
        model.bias.fill_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    criterion = nn.MSELoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@healthy("training")
def converged_after_training(seed: int) -> Program:
    """Go on with a noisy linear fit that has been trained to its end before."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 4, generator=g)
    y = x @ torch.randn(4, 1, generator=g) + 0.5 * torch.randn(60, 1, generator=g)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(300):
        step()
    return Program(step, model, optimizer, F.mse_loss, (x, y))


@healthy("training")
def converged_ridge(seed: int) -> Program:
    """Stand at the optimum of a ridge regression, where both terms balance."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(50, 6, generator=g)
    y = x @ torch.randn(6, generator=g) + 0.3 * torch.randn(50, generator=g)
    strength = 0.1
    gram = x.T @ x / 50 + strength * torch.eye(6)
    w = torch.linalg.solve(gram, x.T @ y / 50).requires_grad_()
    optimizer = torch.optim.SGD([w], lr=0.1)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (x @ w - y).square().mean() + 0.5 * strength * w.square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, [w], optimizer)


@healthy("training")
def slow_but_steady(seed: int) -> Program:
    """Fine-tune with a small rate: about one per cent of the loss a step."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    model = _mlp(8, 32, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-2)
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


class _LoraLinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


@healthy("training")
def zero_initialized_adapter(seed: int) -> Program:
    """Adapt a frozen layer by a low-rank product whose second factor starts at zero."""
    torch.manual_seed(seed)
    x, y = _curve(seed, features=8)
    model = nn.Sequential(
        _LoraLinear(nn.Linear(8, 24), 4), nn.Tanh(), _LoraLinear(nn.Linear(24, 1), 4)
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-2, weight_decay=0.0)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, trainable, optimizer, batch=(x, y))


@healthy("training")
def dqn_with_target_network(seed: int) -> Program:
    """Learn action values from replayed moves, against a target network."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    state = 2 * torch.rand(512, 2, generator=g) - 1
    action = torch.randint(0, 4, (512,), generator=g)
    moves = torch.tensor([[0.2, 0.0], [-0.2, 0.0], [0.0, 0.2], [0.0, -0.2]])
    following = (state + moves[action]).clamp(-1, 1)
    reward = 1.0 - following.norm(dim=1)
    done = following.norm(dim=1) < 0.2
    q = _mlp(2, 32, 4)
    target = copy.deepcopy(q)
    optimizer = torch.optim.Adam(q.parameters(), lr=5e-3)
    updates = 0

    def step() -> torch.Tensor:
        nonlocal updates
        rows = torch.randint(0, 512, (128,))
        with torch.no_grad():
            best = target(following[rows]).max(1).values
            wanted = reward[rows] + 0.6 * best * (~done[rows]).float()
        value = q(state[rows]).gather(1, action[rows].unsqueeze(1)).squeeze(1)
        loss = F.smooth_l1_loss(value, wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(q.parameters(), 1.0)
        optimizer.step()
        updates += 1
        if updates % 20 == 0:
            target.load_state_dict(q.state_dict())
        return loss

    return Program(step, q, optimizer)


@healthy("training")
def vae(seed: int) -> Program:
    """Train a variational autoencoder on digits by re-parametrized samples."""
    torch.manual_seed(seed)
    x, _ = digits(seed, count=128)

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
            self.mean, self.log_var = nn.Linear(32, 4), nn.Linear(32, 4)
            self.decoder = _mlp(4, 32, 64)

        def forward(
            self, image: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            h = self.encoder(image)
            mean, log_var = self.mean(h), self.log_var(h)
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
            return self.decoder(z), mean, log_var

    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step() -> torch.Tensor:
        output, mean, log_var = model(x)
        fit = F.binary_cross_entropy_with_logits(output, x, reduction="sum") / len(x)
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum() / len(x)
        loss = fit + kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@healthy("training")
def contrastive(seed: int) -> Program:
    """Bring two noisy views of an image together against the rest of the batch."""
    torch.manual_seed(seed)
    x, _ = digits(seed, count=64)
    encoder = _mlp(64, 48, 16)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)

    def step() -> torch.Tensor:
        first = F.normalize(encoder(x + 0.15 * torch.randn_like(x)), dim=1)
        second = F.normalize(encoder(x + 0.15 * torch.randn_like(x)), dim=1)
        similarity = first @ second.T / 0.2
        labels = torch.arange(len(x))
        loss = F.cross_entropy(similarity, labels) + F.cross_entropy(
            similarity.T, labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, encoder, optimizer)


class _LoggingTrainer:
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.x, self.y = _blobs(seed, classes=4)
        self.model = _mlp(8, 24, 4)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.history: list[dict[str, float]] = []

    def train_step(self) -> float:
        self.optimizer.zero_grad()
        logits = self.model(self.x)
        loss = F.cross_entropy(logits, self.y)
        loss.backward()
        gradient = [p.grad.norm().item() for p in self.model.parameters()]
        self.optimizer.step()
        predicted = logits.detach().argmax(dim=1)
        accuracy = (predicted == self.y).float().mean().item()
        confidence = logits.detach().softmax(1).numpy().max(1).mean()
        self.history.append(
            {
                "loss": loss.item(),
                "accuracy": accuracy,
                "confidence": float(confidence),
                "gradient": max(gradient),
            }
        )
        return loss.item()

    def accuracy(self) -> float:
        with torch.no_grad():
            return (self.model(self.x).argmax(1) == self.y).float().mean().item()


@healthy("training")
def logging_in_the_step(seed: int) -> Program:
    """Log accuracy by arg-max, norms and numpy values in a trainer's step."""
    trainer = _LoggingTrainer(seed)
    return Program(
        trainer.train_step, trainer.model, trainer.optimizer, metric=trainer.accuracy
    )


@healthy("training")
def hard_gradient_clipping(seed: int) -> Program:
    """Clip the gradient to a norm that it exceeds at every step."""
    torch.manual_seed(seed)
    walks = _walks(seed)
    lstm, head = nn.LSTM(1, 16, batch_first=True), nn.Linear(16, 1)
    model = nn.ModuleList([lstm, head])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def step() -> torch.Tensor:
        output, _ = lstm(walks[:, :-1])
        loss = F.mse_loss(head(output), walks[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@healthy("training")
def parameter_groups(seed: int) -> Program:
    """Give biases no decay and the trunk a tenth of the head's rate."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    trunk, head = nn.Sequential(nn.Linear(64, 48), nn.ReLU()), nn.Linear(48, 10)
    model = nn.Sequential(trunk, head)
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    optimizer = torch.optim.AdamW(
        [
            {"params": [trunk[0].weight], "lr": 1e-3},
            {"params": [head.weight], "lr": 1e-2},
            {"params": biases, "lr": 1e-2, "weight_decay": 0.0},
        ],
        weight_decay=0.05,
    )
    criterion = nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@healthy("training")
def two_optimizers(seed: int) -> Program:
    """Train an encoder with Adam and its head with SGD in the same step."""
    torch.manual_seed(seed)
    x, y = _curve(seed)
    encoder = nn.Sequential(nn.Linear(6, 24), nn.ReLU())
    head = nn.Linear(24, 1)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=5e-3)
    optimizer_head = torch.optim.SGD(head.parameters(), lr=5e-2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        optimizer_head.zero_grad()
        loss = F.mse_loss(head(encoder(x)), y)
        loss.backward()
        optimizer.step()
        optimizer_head.step()
        return loss

    return Program(step, encoder, optimizer, F.mse_loss)


@healthy("training")
def functional_parameters(seed: int) -> Program:
    """Train a dict of tensors that a module only borrows by `functional_call`."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    template = _mlp(8, 16, 3)
    parameters = {
        name: p.detach().clone().requires_grad_()
        for name, p in template.named_parameters()
    }
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)

    def step() -> torch.Tensor:
        logits = functional_call(template, parameters, (x,))
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, parameters, optimizer)


@healthy("training")
def functional_grad(seed: int) -> Program:
    """Take gradients with `torch.func.grad` and write new values back by hand."""
    torch.manual_seed(seed)
    x, y = _blobs(seed, classes=2)
    weights = {"w": torch.zeros(8), "b": torch.zeros(())}
    target = y.float()

    def loss_of(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = x @ parameters["w"] + parameters["b"]
        return F.binary_cross_entropy_with_logits(logits, target)

    both = torch.func.grad_and_value(loss_of)

    def step() -> torch.Tensor:
        gradients, loss = both(weights)
        for name, gradient in gradients.items():
            weights[name].sub_(0.5 * gradient)
        return loss

    return Program(step, weights)


@healthy("training")
def gradient_checkpointing(seed: int) -> Program:
    """Recompute the residual blocks in the backward pass to save memory."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    first, last = nn.Linear(64, 32), nn.Linear(32, 10)
    blocks = nn.ModuleList(
        nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU()) for _ in range(3)
    )
    model = nn.ModuleDict({"first": first, "blocks": blocks, "last": last})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def step() -> torch.Tensor:
        h = first(x)
        for block in blocks:
            h = h + checkpoint(block, h, use_reentrant=False)
        loss = F.cross_entropy(last(h), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer)


@healthy("training")
def policy_gradient(seed: int) -> Program:
    """Reinforce actions that pay more than the batch mean; the loss may go anywhere."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    pays = torch.randn(6, 4, generator=g)
    policy = _mlp(6, 24, 4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        context = torch.randn(256, 6)
        distribution = torch.distributions.Categorical(logits=policy(context))
        action = distribution.sample()
        reward = (context @ pays).gather(1, action.unsqueeze(1)).squeeze(1)
        advantage = (reward - reward.mean()) / reward.std()
        loss = -(distribution.log_prob(action) * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    held_out = torch.randn(256, 6, generator=g)

    def mean_reward() -> float:
        with torch.no_grad():
            p = policy(held_out).softmax(-1)
            return (p * (held_out @ pays)).sum(1).mean().item()

    return Program(step, policy, optimizer, metric=mean_reward)


@healthy("training")
def hand_written_updates(seed: int) -> Program:
    """Update two matrices by hand under `no_grad`, and zero their gradients."""
    g = torch.Generator().manual_seed(seed)
    x, y = _curve(seed)
    w1 = (torch.randn(6, 16, generator=g) / 6**0.5).requires_grad_()
    b1 = torch.zeros(16, requires_grad=True)
    w2 = (torch.randn(16, 1, generator=g) / 4).requires_grad_()
    weights = [w1, b1, w2]
    rate = 0.1

    def step() -> float:
        loss = ((torch.tanh(x @ w1 + b1) @ w2 - y) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            for w in weights:
                w -= rate * w.grad
                w.grad.zero_()
        return loss.item()

    return Program(step, weights)


@healthy("training")
def loader_restarted_every_epoch(seed: int) -> Program:
    """Draw batches from a shuffled loader, made anew when an epoch ends."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    batches = iter(loader)
    model = _mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    criterion = nn.CrossEntropyLoss()

    def step() -> float:
        nonlocal batches
        try:
            inputs, labels = next(batches)
        except StopIteration:
            batches = iter(loader)
            inputs, labels = next(batches)
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Program(step, model, optimizer, criterion, (x[:64], y[:64]))


@healthy("training")
def label_smoothing(seed: int) -> Program:
    """Smooth the labels, so that the loss cannot come near zero."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    model = _mlp(8, 24, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@healthy("training")
def padding_ignored(seed: int) -> Program:
    """Leave the padded ends of the sentences out of the loss."""
    torch.manual_seed(seed)
    tokens = _sentences(seed) + 1
    lengths = torch.arange(len(tokens)) % 6 + 4
    tokens[torch.arange(10) >= lengths.unsqueeze(1)] = 0
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    embedding = nn.Embedding(21, 16, padding_idx=0)
    gru, head = nn.GRU(16, 32, batch_first=True), nn.Linear(32, 21)
    model = nn.ModuleList([embedding, gru, head])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.CrossEntropyLoss(ignore_index=0)

    def step() -> torch.Tensor:
        output, _ = gru(embedding(inputs))
        loss = criterion(head(output).transpose(1, 2), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (inputs, targets))


@healthy("training")
def quantile_loss(seed: int) -> Program:
    """Predict three quantiles; one target is compared with three outputs on purpose."""
    torch.manual_seed(seed)
    x, y = _curve(seed)
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    model = _mlp(6, 24, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def pinball(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        error = target - prediction
        return torch.maximum(quantiles * error, (quantiles - 1) * error).mean()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = pinball(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, pinball, (x, y))


@healthy("training")
def ensemble_against_one_target(seed: int) -> Program:
    """Train five regressions at once against one target, expanded on purpose."""
    g = torch.Generator().manual_seed(seed)
    x, y = _curve(seed)
    w1 = (torch.randn(5, 6, 12, generator=g) / 6**0.5).requires_grad_()
    w2 = (torch.randn(5, 12, 1, generator=g) / 12**0.5).requires_grad_()
    optimizer = torch.optim.Adam([w1, w2], lr=1e-2)

    def loss_fn(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (prediction - target).square().mean(dim=(1, 2)).sum()

    def step() -> torch.Tensor:
        prediction = torch.relu(x @ w1) @ w2
        loss = loss_fn(prediction, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, {"first": w1, "second": w2}, optimizer, loss_fn)


@healthy("training")
def scaled_gradient_hook(seed: int) -> Program:
    """Scale the gradient of one layer by a hook on its parameter."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    model = _mlp(8, 24, 3)
    model[0].weight.register_hook(lambda grad: 0.1 * grad)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, F.cross_entropy, (x, y))


@healthy("training")
def log_softmax_and_nll(seed: int) -> Program:
    """End the model in log-softmax, with the loss that belongs to it."""
    torch.manual_seed(seed)
    x, y = digits(seed)
    model = nn.Sequential(*_mlp(64, 32, 10), nn.LogSoftmax(dim=1))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=5e-2)
    criterion = nn.NLLLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, model, optimizer, criterion, (x, y))


@healthy("training")
def distillation(seed: int) -> Program:
    """Learn a teacher's probabilities: softmax output is the target, not the input."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    teacher = _mlp(8, 32, 3)
    learn = torch.optim.Adam(teacher.parameters(), lr=2e-2)
    for _ in range(30):
        learn.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        learn.step()
    wanted = teacher(x).detach().softmax(1)
    student = nn.Linear(8, 3)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        log_probs = F.log_softmax(student(x), dim=1)
        loss = F.kl_div(log_probs, wanted, reduction="batchmean")
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, student, optimizer)


@healthy("training")
def running_mean_of_the_loss(seed: int) -> Program:
    """Return the running mean of the loss as a float, with a plateau scheduler."""
    torch.manual_seed(seed)
    x, y = _curve(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 1))
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=50)
    running: float | None = None

    def step() -> float:
        nonlocal running
        optimizer.zero_grad()
        loss = F.huber_loss(model(x), y)
        loss.backward()
        optimizer.step()
        value = loss.item()
        running = value if running is None else 0.9 * running + 0.1 * value
        scheduler.step(running)
        return running

    return Program(step, model, optimizer, F.huber_loss)


@healthy("training")
def meta_learning(seed: int) -> Program:
    """Adapt a copy by one inner step and learn the start from its outer loss."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    tasks = [
        (0.5 + torch.rand(1, generator=g), 0.3 * torch.rand(1, generator=g))
        for _ in range(4)
    ]
    points = torch.linspace(-2, 2, 20).unsqueeze(1)

    def fit(parameters: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(functional_call(model, parameters, (points,)), y)

    def step() -> torch.Tensor:
        start = dict(model.named_parameters())
        total = torch.zeros(())
        for height, shift in tasks:
            y = height * torch.sin(points + shift)
            gradients = torch.autograd.grad(
                fit(start, y), list(start.values()), create_graph=True
            )
            fast = {
                name: p - 0.1 * grad
                for (name, p), grad in zip(start.items(), gradients, strict=True)
            }
            total = total + fit(fast, y)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total

    return Program(step, model, optimizer)


@healthy("training")
def kernel_fit_in_float64(seed: int) -> Program:
    """Fit length and noise of a Gaussian process in log space and float64."""
    g = torch.Generator().manual_seed(seed)
    x = torch.linspace(0, 6, 25, dtype=torch.float64).unsqueeze(1)
    noise = 0.1 * torch.randn(25, 1, generator=g, dtype=torch.float64)
    y = torch.sin(x) + noise
    log_length = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    log_noise = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_length, log_noise], lr=0.05)

    def step() -> torch.Tensor:
        distance = torch.cdist(x, x) / log_length.exp()
        k = torch.exp(-0.5 * distance.square())
        k = k + (log_noise.exp().square() + 1e-6) * torch.eye(25, dtype=x.dtype)
        factor = torch.linalg.cholesky(k)
        fit = 0.5 * (y * torch.cholesky_solve(y, factor)).sum()
        loss = fit + factor.diagonal().log().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, {"length": log_length, "noise": log_noise}, optimizer)


def _make_trainer(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: nn.Module
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    def train(x: torch.Tensor, y: torch.Tensor) -> float:
        model.train()
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train


@healthy("training")
def imbalanced_with_class_weights(seed: int) -> Program:
    """Weight a rare class up in a binary problem with nine negatives to a positive."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 4, generator=g)
    score = x @ torch.randn(4, 1, generator=g)
    y = (score > score.quantile(0.9)).float()
    model = _mlp(4, 16, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([9.0]))
    train = _make_trainer(model, optimizer, criterion)

    return Program(lambda: train(x, y), model, optimizer, criterion, (x, y))


@healthy("training")
def compiled_model(seed: int) -> Program:
    """Train a network through torch.compile."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    model = _mlp(8, 16, 3)
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(compiled(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step, compiled, optimizer, F.cross_entropy, (x, y))


@healthy("training")
def gradients_of_single_examples_clipped(seed: int) -> Program:
    """Clip each example's own gradient, from vmap, before they are averaged."""
    torch.manual_seed(seed)
    x, y = _blobs(seed)
    model = _mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)

    def loss_of_one(
        weights: dict[str, torch.Tensor], row: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, weights, row[None]), target[None])

    gradients_of_each = vmap(grad(loss_of_one), in_dims=(None, 0, 0))

    def step() -> float:
        weights = {name: p.detach() for name, p in model.named_parameters()}
        each = gradients_of_each(weights, x, y)
        for name, parameter in model.named_parameters():
            flat = each[name].flatten(1)
            flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1.0)
            parameter.grad = flat.mean(0).view_as(parameter)
        optimizer.step()
        with torch.no_grad():
            return F.cross_entropy(model(x), y).item()

    return Program(step, model, optimizer, F.cross_entropy, (x, y))

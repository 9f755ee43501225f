"""The symptom table: every test in it is run, on what fails and on what works.

An example is the names that the test uses. What the test prints is read as its outcomes
tell the reader to read it, and must lead to the right one.
"""

import contextlib
import copy
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sphinx.errors import ExtensionError
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from shared import failures, notebooks, objectives, pages
from shared.data import breast_cancer, diabetes, digits
from shared.models import DeepNetwork, deep_network
from shared.reproducible import reproducible
from shared.trained import trained as trained_digits

ROOT = Path(__file__).resolve().parent.parent
SLUGS = [path.stem for path in notebooks.chapter_paths()]
GROUPS = pages.read_symptoms(ROOT / pages.TABLE, SLUGS)
SYMPTOMS = {symptom.name: symptom for group in GROUPS for symptom in group.symptoms}

Names = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """How one symptom's test is tried out."""

    read: Callable[[str], int]
    """What the test printed, to the place in the symptom's outcomes."""
    examples: tuple[tuple[Callable[[], Names], int], ...]
    """Names that the test uses, and the outcome it must have."""


# --------------------------------------------------------------------------------------
# You optimize an input or a few numbers
# --------------------------------------------------------------------------------------


def tensor(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def descent(
    gradient: Callable[[torch.Tensor], torch.Tensor], learning_rate: float, steps: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    def descend(x: torch.Tensor) -> torch.Tensor:
        for _ in range(steps):
            x = x - learning_rate * gradient(x)
        return x

    return descend


on_rastrigin = descent(objectives.rastrigin_gradient, 0.001, 300)
on_himmelblau = descent(objectives.himmelblau_gradient, 0.01, 500)


def parabola(x: torch.Tensor) -> torch.Tensor:
    return ((x - 2) ** 2).sum()


def parabola_gradient(x: torch.Tensor) -> torch.Tensor:
    return 2 * (x - 2)


def saddle(x: torch.Tensor) -> torch.Tensor:
    return x[0] ** 2 - x[1] ** 2


def read_radii(printed: str) -> int:
    better = [line.endswith("True") for line in printed.splitlines()]
    if better[0]:
        return 2
    return 0 if better[-1] else 1


def restarts(f: Callable, descend: Callable, dimensions: int) -> Callable[[], Names]:
    def names() -> Names:
        generator = reproducible(0)
        starts = 8 * torch.rand(12, dimensions, generator=generator).double() - 4
        return {"f": f, "descend": descend, "starts": starts}

    return names


def read_spreads(printed: str) -> int:
    ends, values = (float(word) > 1e-3 for word in printed.split())
    return {(True, True): 0, (True, False): 1, (False, False): 2}[ends, values]


def frozen(optimum: float) -> Names:
    """Descend in float32 until the spacing of its numbers stops the descent."""
    x = tensor(optimum - 5, dtype=torch.float32).requires_grad_()
    for _ in range(300):
        x.grad = None
        ((x - optimum) ** 2).sum().backward()
        with torch.no_grad():
            x -= 0.1 * x.grad
    return {"x": x, "learning_rate": 0.1}


def moving() -> Names:
    x = tensor(0.0).requires_grad_()
    parabola(x).backward()
    return {"x": x, "learning_rate": 0.1}


def at_the_minimum() -> Names:
    x = tensor(2.0).requires_grad_()
    parabola(x).backward()
    return {"x": x, "learning_rate": 0.1}


def read_frozen(printed: str) -> int:
    unchanged, gradient = printed.split()
    if unchanged == "False":
        return 2
    return 0 if float(gradient) > 0 else 1


def stepping(learning_rate: float, dimensions: int = 1) -> Callable[[], Names]:
    x = torch.full((dimensions,), 5.0, dtype=torch.float64)
    names = {"gradient": parabola_gradient, "x": x, "learning_rate": learning_rate}
    return lambda: names


def read_step(printed: str) -> int:
    return 0 if float(printed) > 1.95 else 1


def shelf(x: torch.Tensor) -> torch.Tensor:
    return x[0] ** 2 + x[1] ** 3


def at_origin(f: Callable) -> Callable[[], Names]:
    return lambda: {"f": f, "x": tensor(0.0, 0.0)}


def read_curvature(printed: str) -> int:
    lowest, highest = (float(word) for word in printed.split())
    if abs(lowest) <= 1e-6 * abs(highest):
        return 2
    return 0 if lowest < 0 else 1


def attacked(measure: Callable) -> Callable[[], Names]:
    """Attack a linear classifier of four pixels; ``measure`` compares its scores."""
    weight = tensor(1, 2, 3, 4, 4, 3, 2, 1).reshape(2, 4)
    image = tensor(0.1, 0.9, 0.3, 0.5)

    def of_change(change: torch.Tensor) -> torch.Tensor:
        return measure(weight @ (image + change), weight @ image)

    return lambda: {"image": image, "measure": of_change}


def score_distance(scores: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return ((scores - clean) ** 2).sum()


def own_loss(scores: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(scores[None], clean.argmax()[None])


def rounded_loss(scores: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return own_loss(scores.round(), clean)


def read_start(printed: str) -> int:
    clean, beside = (float(word) for word in printed.split())
    if beside == 0:
        return 2
    return 0 if clean <= 1e-6 * beside else 1


# Losses that are flat where the answer is wrong

SURE = tensor(40.0, 41.0, -40.0)
UNSURE = tensor(0.3, -0.2, 0.1)
LABELS = tensor(0.0, 0.0, 0.0)


def with_sigmoid(loss: Callable) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda scores: loss(torch.sigmoid(scores), LABELS)


def naive_cross_entropy(scores: torch.Tensor) -> torch.Tensor:
    return -torch.log(1 - torch.sigmoid(scores)).mean()


def on_scores(scores: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(scores, LABELS)


def answers(scores: torch.Tensor, loss_of: Callable) -> Callable[[], Names]:
    names = {"scores": scores, "y": LABELS, "loss_of": loss_of}
    return lambda: names | {"loss": loss_of(scores)}


def read_gradient_per_error(printed: str) -> int:
    ratio = float(printed)
    if not math.isfinite(ratio):
        return 1
    return 0 if ratio < 0.1 else 2


def read_ceiling(printed: str) -> int:
    wrong, loss = (float(word) for word in printed.split())
    if wrong == 0:
        return 2
    ceilings = (1.0, 15.942, 16.118, 27.631, 100.0)
    return 0 if any(math.isclose(loss, c, rel_tol=1e-3) for c in ceilings) else 1


def read_certain(printed: str) -> int:
    certain, finite = (word == "True" for word in printed.split())
    if not finite:
        return 2
    return 0 if certain else 1


def clamped(scores: torch.Tensor) -> torch.Tensor:
    p = torch.sigmoid(scores.float()).clamp(1e-7, 1 - 1e-7)
    return -torch.log(1 - p).mean()


def from_far(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Names]:
    names = {"f": f, "goal": tensor(2.0, 2.0), "direction": tensor(0.6, 0.8)}
    return lambda: names


def welsch(x: torch.Tensor) -> torch.Tensor:
    return (1 - torch.exp(-((x - 2) ** 2))).sum()


def read_distances(printed: str) -> int:
    slopes = [float(line.split()[1]) for line in printed.splitlines()]
    return 0 if slopes[-1] < 0.1 * max(slopes) else 1


def one_number(
    f: Callable, x: float, gradient: float, dtype: torch.dtype = torch.float64
) -> Callable[[], Names]:
    number = torch.tensor(x, dtype=dtype)
    return lambda: {"f": f, "x": number, "epsilon": 1e-7, "gradient": gradient}


def composed_cross_entropy(x: torch.Tensor) -> torch.Tensor:
    return -torch.log(1 - 1 / (1 + torch.exp(-x)))


def read_step_lost(printed: str) -> int:
    lost, change = printed.split()
    if float(change) == 0:
        return 2
    return 0 if lost == "True" else 1


def read_slopes(printed: str) -> int:
    lines = [[float(word) for word in line.split()] for line in printed.splitlines()]
    slopes = [line[1:] for line in lines]
    size = max(map(abs, slopes[1]))
    if all(abs(ahead - behind) > 0.1 * size for ahead, behind, _ in slopes[:3]):
        return 1
    _, near, nearer, lost = slopes
    assert math.isclose(near[0], near[1], rel_tol=1e-3)
    assert math.isclose(nearer[0], nearer[1], rel_tol=1e-3)
    assert lost[0] != nearer[0]
    return 0 if math.isclose(near[0], near[2], rel_tol=1e-3) else 2


def checked(f: Callable, dtype: torch.dtype = torch.float64) -> Callable[[], Names]:
    return lambda: {"f": f, "x": torch.tensor([0.0, 0.5, 1.0], dtype=dtype)}


def read_checks(printed: str) -> int:
    return {"True True": 0, "False True": 1, "False False": 2}[
        " ".join(printed.split())
    ]


# An input that is optimized in a box


def ended(f: Callable, x: float, goal: float, best: float = 0.0) -> Callable[[], Names]:
    """End at ``x`` in the box [0, 1]; the goal is a value of at least ``goal``."""

    def names() -> Names:
        end = tensor(x).requires_grad_()
        (g,) = torch.autograd.grad(f(end), end, allow_unused=True)
        names = {"f": f, "x": end.detach(), "g": g, "best": best}
        return names | {"low": 0, "high": 1, "reached": lambda x: x.item() >= goal}

    return names


def two_valleys(x: torch.Tensor) -> torch.Tensor:
    return (x * (1 - x) + 0.1 * (1 - x)).sum()


def far_off(x: torch.Tensor) -> torch.Tensor:
    return (1 - torch.sigmoid(1000 * (x - 1))).sum()


def read_questions(printed: str) -> int:
    left, reached, above = printed.split()
    if float(left) > 1e-6:
        return 3
    if reached == "False":
        return 0
    return 1 if float(above) < 1e-6 else 2


SLOPE = tensor(3.0).requires_grad_()


def moved_by_hand(f: Callable) -> Callable[[], Names]:
    return lambda: {"f": f, "x": tensor(0.4).requires_grad_(), "size": 1.0}


def staircase(x: torch.Tensor) -> torch.Tensor:
    return parabola((4 * x).round())


def read_hand(printed: str) -> int:
    gradient, change = printed.split()
    if gradient == "None":
        return 1
    if float(gradient) > 0:
        return 3
    return 2 if float(change) == 0 else 0


def pixels(
    values: tuple[float, ...],
    to_pixels: Callable[[torch.Tensor], torch.Tensor],
    seen: slice = slice(None),
) -> Callable[[], Names]:
    """Compare the pixels that a model sees with a gray level that none of them has."""
    return lambda: {
        "w": tensor(*values).requires_grad_(),
        "to_pixels": to_pixels,
        "loss_of": lambda x: ((x[seen] - 0.55) ** 2).sum(),
    }


def read_shares_of_zeros(printed: str) -> int:
    at_variable, at_pixel = (float(word) for word in printed.split())
    if at_variable > at_pixel + 0.1:
        return 0
    return 1 if at_pixel > 0.1 else 2


def read_weakening(printed: str) -> int:
    return 0 if float(printed) < 0.1 else 1


def in_a_box(steps: int) -> Callable[[], Names]:
    """Descend toward a goal outside of [0, 1] and project after each step."""

    def names() -> Names:
        goal = tensor(-3.0, 0.4, 9.0)
        x = torch.full_like(goal, 0.5).requires_grad_()
        for _ in range(steps):
            x.grad = None
            ((x - goal) ** 2).sum().backward()
            with torch.no_grad():
                x -= 0.01 * x.grad
                x.clamp_(0, 1)
        x.grad = None
        ((x - goal) ** 2).sum().backward()
        return {"x": x, "low": 0, "high": 1}

    return names


def read_box(printed: str) -> int:
    whole, projected = (float(word) for word in printed.split())
    assert whole > 1, "not a gradient that stays large"
    return 0 if projected < 1e-3 * whole else 1


def kept_digits(scale: float, rounds: bool = False) -> tuple[Callable, torch.Tensor]:
    """Return a kept classifier, its scores times ``scale``, and images to attack."""
    network = trained_digits("kinked", 0)

    def model(x: torch.Tensor) -> torch.Tensor:
        return scale * network((16 * x).round() / 16 if rounds else x)

    return model, digits().test_inputs[:100]


def scored_digits(scale: float, rounds: bool = False) -> Callable[[], Names]:
    def names() -> Names:
        model, x = kept_digits(scale, rounds)
        x.requires_grad_()
        scores, labels = model(x), digits().test_targets[:100]
        nn.functional.cross_entropy(scores, labels, reduction="sum").backward()
        return {"x": x, "scores": scores, "radius": 0.15, "learning_rate": 1.0}

    return names


def margin_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    own = scores.gather(1, labels[:, None]).squeeze(1)
    rival = scores.scatter(1, labels[:, None], -math.inf).amax(1)
    return (rival - own).sum()


def climbing_margin() -> Names:
    names = scored_digits(1.0)()
    x = names["x"].detach().requires_grad_()
    margin_loss(kept_digits(1.0)[0](x), digits().test_targets[:100]).backward()
    return names | {"x": x}


def sign_attack(scale: float, radius: float) -> Callable[[], Names]:
    model, original = kept_digits(scale)
    labels = digits().test_targets[:100]

    def attack(loss: Callable) -> torch.Tensor:
        x = original
        for _ in range(5):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(model(x), labels), x)
            x = x.detach() + radius / 3 * gradient.sign()
            x = x.clamp(original - radius, original + radius).clamp(0, 1)
        return x

    names = {"model": model, "labels": labels, "margin_loss": margin_loss}
    return lambda: names | {"attack": attack}


def read_gap(printed: str) -> int:
    gap, share = (float(word) for word in printed.split())
    if share == 0:
        return 2
    return 0 if gap > 90 else 1


def read_small_steps(printed: str) -> int:
    return 0 if float(printed) > 0.5 else 1


def read_two_losses(printed: str) -> int:
    first, second = (float(word) for word in printed.split())
    if second > first + 0.2:
        return 0
    return 1 if second < 0.3 else 2


# --------------------------------------------------------------------------------------
# You train a network (three groups)
# --------------------------------------------------------------------------------------

BATCH = 64


def trained(model: nn.Module, dtype: torch.dtype = torch.float32) -> Names:
    split = digits(dtype)
    inputs, targets = split.train_inputs[:BATCH], split.train_targets[:BATCH]
    loss = nn.functional.cross_entropy(model(inputs), targets)
    return {"model": model, "inputs": inputs, "loss": loss}


def network(depth: int, activation: str, start: str) -> DeepNetwork:
    return deep_network(depth, activation, start, generator=reproducible(0))


def sigmoids(depth: int) -> Callable[[], Names]:
    return lambda: trained(network(depth, "sigmoid", "default"))


def healthy() -> Names:
    return trained(network(8, "relu", "he"))


def switched_off() -> Names:
    """Layer 5 of a healthy network is negative before its ReLU for every example."""
    model = network(8, "relu", "he")
    for block in model.blocks:
        nn.init.constant_(block.linear.bias, 0.1)
    nn.init.constant_(model.blocks[4].linear.bias, -100.0)
    return trained(model)


def with_zero_readout() -> DeepNetwork:
    """Return a healthy network whose output layer starts at zero."""
    model = network(4, "tanh", "xavier")
    nn.init.zeros_(model.readout.weight)
    nn.init.zeros_(model.readout.bias)
    return model


def layer_by_layer(model: DeepNetwork, scale: float = 1.0) -> Callable[[], Names]:
    inputs = digits().train_inputs[:BATCH] * scale
    return lambda: {"layers": [*model.blocks, model.readout], "inputs": inputs}


def trains(activation: str, start: str) -> Callable[[], Names]:
    def train(inputs: torch.Tensor, labels: torch.Tensor) -> float:
        model = network(8, activation, start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(100):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    split = digits()
    names = {"train": train, "inputs": split.train_inputs[:BATCH]}
    return lambda: names | {"labels": split.train_targets[:BATCH]}


def cut_off() -> Names:
    model = network(8, "relu", "he")
    model.blocks[0].linear.requires_grad_(False)
    return trained(model)


def bottleneck() -> Names:
    """One hidden layer of a healthy network works at a hundredth of its scale."""
    model = network(8, "relu", "he")

    def shrink(gradient: torch.Tensor) -> torch.Tensor:
        return gradient / 100

    for block in model.blocks[:4]:
        block.linear.weight.register_hook(shrink)
        block.linear.bias.register_hook(shrink)
    return trained(model)


def first_weight(
    model: DeepNetwork, dtype: torch.dtype = torch.float32
) -> Callable[[], Names]:
    def names() -> Names:
        trained(model, dtype)["loss"].backward()
        return {"weight": model.weights()[0]}

    return names


def read_layers(printed: str) -> int:
    if "NoneType" in printed:
        return 2
    norms = [
        float(line.split()[1]) for line in printed.splitlines() if "weight" in line
    ]
    arrived = [norm for norm in norms if norm > 0]
    shrinks = arrived[0] < 1e-3 * arrived[-1]
    if len(arrived) < len(norms) and not shrinks:
        return 1
    return 0 if shrinks else 3


def read_spread(printed: str) -> int:
    spread = float(printed)
    assert not 0.001 <= spread < 0.01, "neither of the answers"
    return 0 if spread < 0.001 else 1


def read_ratios(printed: str) -> int:
    ratios = [float(word) for word in printed.strip("[]\n").split(",")][1:-1]
    if max(ratios) < 0.6:
        return 0
    return 1 if min(ratios) < 0.2 else 2


def read_layer_spreads(printed: str) -> int:
    first, *others = (float(line) for line in printed.splitlines())
    fallen = next((k for k, size in enumerate(others) if size < 1e-3 * first), None)
    if fallen is None:
        return 1 if first < 1e-3 else 3
    return 2 if others[fallen] == 0 else 0


def read_true_and_shuffled(printed: str) -> int:
    true, shuffled = (float(line) for line in printed.splitlines())
    return 0 if math.isclose(true, shuffled, rel_tol=1e-3) else 1


def read_norms(printed: str) -> int:
    single, double, zeros = (float(word) for word in printed.split())
    if single > 0:
        assert math.isclose(single, double, rel_tol=1e-3)
        return 2
    assert (zeros == 1) == (double == 0)
    return 0 if double > 0 else 1


def linear_network(scale: float, target: float = 1.0) -> Callable[[], Names]:
    """Train a linear network of two layers on one number, by full-batch descent."""
    weights = scale * tensor(1.0, 0.7)

    def step() -> float:
        nonlocal weights
        first, second = weights
        gradient = (first * second - target) * torch.stack((second, first))
        weights = weights - 0.1 * gradient
        return gradient.norm().item()

    return lambda: {"step": step}


def read_growth(printed: str) -> int:
    low, high = (float(word) for word in printed.split())
    if math.isnan(low) or (abs(low - 1) < 1e-6 and abs(high - 1) < 1e-6):
        return 2
    assert (low > 1) == (high > 1)
    return 0 if low > 1 else 1


def scores_of_one_image(dtype: torch.dtype, margin: float) -> Callable[[], Names]:
    """One image of a large batch; float16 holds its scores, float32 the loss."""

    def names() -> Names:
        x = torch.tensor([[margin, 0.0, 0.0]], dtype=dtype, requires_grad=True)
        target = torch.tensor([0])
        return {"x": x, "loss": nn.functional.cross_entropy(x.float(), target) / 500}

    return names


def read_zero_shares(printed: str) -> int:
    plain, scaled = (float(word) for word in printed.split())
    if scaled < plain - 0.1:
        return 0
    return 1 if plain > 0.1 else 2


def about_to_step(
    dtype: torch.dtype, learning_rate: float, scale: float = 1.0
) -> Callable[[], Names]:
    def names() -> Names:
        model = network(1, "relu", "default")
        (scale * trained(model)["loss"]).backward()
        w = model.weights()[-1].detach().to(dtype).requires_grad_()
        w.grad = model.weights()[-1].grad.to(dtype)
        return {"w": w, "learning_rate": learning_rate}

    return names


def read_moved(printed: str) -> int:
    moved, arrived = (float(word) for word in printed.split())
    if arrived == 0:
        return 2
    return 0 if moved < 0.5 * arrived else 1


def one_step(constant: float, learning_rate: float) -> Callable[[], Names]:
    def names() -> Names:
        model = network(1, "relu", "default")
        loss = trained(model)["loss"] + constant
        loss.backward()
        before = model.weights()[0].detach().clone()
        after = before - learning_rate * model.weights()[0].grad
        return {"before": before, "after": after, "loss": loss}

    return names


def read_printed_loss(printed: str) -> int:
    moves, spacing = printed.split()
    if moves == "False":
        return 2
    return 0 if float(spacing) > 0.001 else 1


def with_optimizer(**settings: float) -> tuple[Names, torch.optim.Optimizer]:
    names = trained(network(1, "relu", "he"))
    return names, torch.optim.SGD(names["model"].parameters(), lr=0.1, **settings)


def erased() -> Names:
    names, optimizer = with_optimizer()
    return names | {"between": optimizer.zero_grad}


def cut_between() -> Names:
    """Let the loss depend on a number of its own, not on the network."""
    names, _ = with_optimizer()
    own = torch.ones((), requires_grad=True)
    return names | {"loss": own * names["loss"].detach(), "between": lambda: None}


def arrives() -> Names:
    names, _ = with_optimizer()
    return names | {"between": lambda: None}


def read_two_counts(printed: str) -> int:
    first, second = map(int, printed.split())
    if first == 0:
        return 1
    return 2 if first == second else 0


def looping(order: str, *, set_to_none: bool = True) -> Callable[[], Names]:
    """Loop over zero_grad (Z), backward (B) and step (S), with weight decay."""

    def names() -> Names:
        names, optimizer = with_optimizer(weight_decay=0.1)
        model, inputs = names["model"], names["inputs"]
        targets = digits().train_targets[:BATCH]

        def train() -> None:
            for operation in order * 100:
                if operation == "Z":
                    optimizer.zero_grad(set_to_none=set_to_none)
                elif operation == "S":
                    optimizer.step()
                else:
                    nn.functional.cross_entropy(model(inputs), targets).backward()

        return names | {"train": train}

    return names


def read_shrinking(printed: str) -> int:
    cosine, norm = map(float, printed.split())
    if cosine < 0.9999:
        return 2
    assert cosine > 0.99999, "neither of the answers"
    return 0 if norm < 0.99 else 1


def stepped_in_between() -> Names:
    names, optimizer = with_optimizer()
    names["loss"].backward()
    return names | {"between": optimizer.step}


def activation_in_between() -> Names:
    names, _ = with_optimizer()
    activation = names["model"].blocks(names["inputs"])
    return names | {"between": lambda: activation.add_(1)}


def counting(kind: str) -> Callable[[], Names]:
    """Ask a network for its accuracy, in one of the ways that people try."""

    def names() -> Names:
        names = trained(network(1, "relu", "he"))
        scores = names["model"](names["inputs"])
        targets = digits().train_targets[:BATCH]
        if kind == "detached":
            scores = scores.detach()
        loss = 1 - (scores.argmax(1) == targets).float().mean()
        if kind == "silenced":
            loss.requires_grad_()
        elif kind == "cross-entropy":
            loss = nn.functional.cross_entropy(scores, targets)
        return {"scores": scores, "loss": loss}

    return names


def read_three_flags(printed: str) -> int:
    scores, loss, leaf = (word == "True" for word in printed.split())
    if not scores:
        return 1
    assert leaf or loss
    return 0 if leaf else 2


def scored(loss_of: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Names]:
    reproducible(0)
    scores = torch.randn(200, dtype=torch.float64)
    return lambda: {"scores": scores.clone().requires_grad_(), "loss_of": loss_of}


def read_staircase(printed: str) -> int:
    slope, tiny, *larger = (float(word.strip("[],")) for word in printed.split())
    if slope > 0:
        return 2
    assert tiny == 0
    return 0 if max(larger) > 0 else 1


def softened(temperature: float, scale: float = 1.0) -> Callable[[], Names]:
    """Scores of a batch, random or, at a large scale, mostly right."""

    def names() -> Names:
        scores = torch.randn(BATCH, 10, generator=reproducible(0))
        labels = digits().train_targets[:BATCH]
        scores = scores + (scale - 1) * nn.functional.one_hot(labels, 10)
        return {"scores": scores, "labels": labels, "temperature": temperature}

    return names


def read_carriers(printed: str) -> int:
    carriers, errors = (float(word) for word in printed.split())
    if errors < 0.1:
        return 2
    return 1 if carriers >= BATCH / 10 else 0


def after_two_iterations(*, forgets: bool) -> Callable[[], Names]:
    def names() -> Names:
        names, optimizer = with_optimizer()
        for _ in range(2):
            if not forgets:
                optimizer.zero_grad()
            targets = digits().train_targets[:BATCH]
            outputs = names["model"](names["inputs"])
            nn.functional.cross_entropy(outputs, targets).backward()
            optimizer.step()
        if not forgets:
            optimizer.zero_grad()
        return names

    return names


def climbing(
    learning_rate: float, batch: int, *, forgets: bool = False
) -> Callable[[], Names]:
    """Fit the diabetes data; a batch of 0 stands for all patients."""

    def names() -> Names:
        inputs, targets, *_ = diabetes(torch.float64)
        weights = torch.zeros(10, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weights], lr=learning_rate)

        def step() -> torch.Tensor:
            rows = torch.randint(len(inputs), (batch,)) if batch else slice(None)
            if not forgets:
                optimizer.zero_grad()
            old = weights.detach().clone()
            (inputs[rows] @ weights - targets[rows]).square().mean().backward()
            optimizer.step()
            return weights.detach() - old

        torch.manual_seed(0)
        for _ in range(150):
            step()
        return {"step": step}

    return names


def read_turns(printed: str) -> int:
    turn = float(printed)
    return 0 if turn > 0.5 else 1 if turn < -0.5 else 2


def added_up(
    *sizes: int, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Callable[[], Names]:
    """Add up the gradients of small batches, each loss multiplied by a number."""

    def gradient(
        parts: tuple[int, ...], factor: float, form: torch.dtype
    ) -> torch.Tensor:
        inputs, targets, *_ = diabetes(form)
        weights = torch.zeros(10, dtype=form, requires_grad=True)
        split = zip(inputs.split(parts), targets.split(parts), strict=True)
        for own_inputs, own_targets in split:
            errors = own_inputs @ weights - own_targets
            (factor * errors.square().mean()).backward()
        return weights.grad

    whole = gradient((sum(sizes),), 1.0, torch.float64)
    return lambda: {"added": gradient(sizes, scale, dtype), "whole": whole}


def read_sums(small_batches: int) -> Callable[[str], int]:
    def read(printed: str) -> int:
        ratio, error = map(float, printed.split())
        if error < 1e-3:
            return 2
        return 0 if math.isclose(ratio, small_batches, rel_tol=1e-3) else 1

    return read


def rows_of_digits(count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    split = digits(dtype)
    rows = split.train_inputs[:count].reshape(-1, 8, 8).transpose(0, 1)
    return rows, split.train_targets[:count]


def stacked_lstm(layers: int) -> Callable[[], Names]:
    def names() -> Names:
        reproducible(0)
        lstm, readout = nn.LSTM(8, 16, layers), nn.Linear(16, 10)
        x, y = rows_of_digits(BATCH, torch.float32)
        nn.functional.cross_entropy(readout(lstm(x)[0][-1]), y).backward()
        return {"lstm": lstm}

    return names


def remembering(forget_bias: float, pause: int) -> Callable[[], Names]:
    def names() -> Names:
        reproducible(0)
        lstm, readout = nn.LSTM(8, 16).double(), nn.Linear(16, 10).double()
        lstm.bias_ih_l0.data[16:32] += forget_bias
        x, y = rows_of_digits(BATCH, torch.float64)
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, pause))

        def loss_of(x: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(readout(lstm(x)[0][-1]), y)

        return {"x": x, "loss_of": loss_of}

    return names


def long_sequence(
    gate: Callable[[torch.Tensor], torch.Tensor], start: float = 0.0
) -> Callable[[], Names]:
    def names() -> Names:
        reproducible(0)
        weight = (torch.randn(4, 17, 16) / 8).requires_grad_()

        def loss_of(x: torch.Tensor) -> torch.Tensor:
            h, c = torch.zeros(1, 16), torch.full((1, 16), start)
            for row in x:
                i, f, g, o = torch.cat((row, h), 1) @ weight
                c = gate(f + 1) * c + gate(i + 1) * torch.tanh(g)
                h = gate(o + 1) * torch.tanh(c)
            return h.sum()

        return {"x": torch.randn(512, 1, 1), "weights": [weight], "loss_of": loss_of}

    return names


def read_below_a_thousandth(printed: str) -> int:
    return 0 if float(printed) < 1e-3 else 1


def read_lengths(printed: str) -> int:
    finite = [line.split()[1] == "True" for line in printed.splitlines()]
    assert len(finite) == 3
    return 1 if all(finite) else 0 if finite[0] else 2


def on_tumors(
    standardized: bool, learning_rate: float = 0.01, bias: float = 0.0
) -> Callable[[], Names]:
    """About to take the first step on the tumors."""

    def names() -> Names:
        tumors = breast_cancer(torch.float64, standardized=standardized)
        model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1)).double()
        with torch.no_grad():
            model[0].bias += bias
        optimizer = torch.optim.SGD(model.parameters(), learning_rate)

        def step() -> None:
            scores = model(tumors.train_inputs)[:, 0]
            nn.functional.binary_cross_entropy_with_logits(
                scores, tumors.train_targets.double()
            ).backward()
            optimizer.step()

        return {"hidden": model[0], "inputs": tumors.train_inputs, "step": step}

    return names


def read_dead(printed: str) -> int:
    before, after = (float(word) for word in printed.split())
    if after > before + 0.1:
        return 0
    return 1 if before > 0.3 else 2


def first_scores(standardized: bool, scale: float = 1.0) -> Callable[[], Names]:
    def names() -> Names:
        tumors = breast_cancer(torch.float64, standardized=standardized)
        model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1)).double()
        outputs = scale * model(tumors.train_inputs)[:, 0]
        targets = tumors.train_targets.double()
        return {
            "inputs": tumors.train_inputs,
            "outputs": outputs,
            "loss_of": lambda scores: nn.functional.binary_cross_entropy_with_logits(
                scores, targets
            ),
        }

    return names


def read_first_loss(printed: str) -> int:
    ratio, shift, spread = (float(word) for word in printed.split())
    if ratio <= 3:
        return 2
    return 0 if max(shift, spread) > 3 else 1


def regressing(scale: float, learning_rate: float) -> Callable[[], Names]:
    patients = diabetes(torch.float64)

    def train(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1)).double()
        optimizer = torch.optim.SGD(model.parameters(), learning_rate)
        for _ in range(50):
            loss = ((model(inputs)[:, 0] - targets) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    names = {
        "train": train,
        "inputs": patients.train_inputs,
        "targets": scale * (patients.train_targets + 2),
    }
    return lambda: names


def read_two_regressions(printed: str) -> int:
    raw, standardized = (float(word) < 1e6 for word in printed.split())
    if raw:
        return 2
    return 0 if standardized else 1


def loss_to_check(loss_fn: Callable) -> Callable[[], Names]:
    def names() -> Names:
        reproducible(0)
        return {"loss_fn": loss_fn, "target": tensor(1.0, -2.0, 3.0)}

    return names


def after_a_drop(output: tuple[float, ...]) -> Callable[[], Names]:
    return lambda: {"output": tensor(*output), "target": tensor(1.0, -2.0)}


def read_error_size(printed: str) -> int:
    error = float(printed)
    if error > 2:
        return 0
    return 1 if error < 0.1 else 2


# Wires that are cut, or lead elsewhere


def wired(cut: Callable | None = None, frozen: bool = False) -> Callable[[], Names]:
    """Make three layers, with ``cut`` behind the first one, after a backward pass."""

    def names() -> Names:
        torch.manual_seed(0)
        link = Through(cut) if cut else nn.Identity()
        model = nn.Sequential(nn.Linear(3, 4), link, nn.Linear(4, 2))
        model[0].requires_grad_(not frozen)
        inputs = torch.randn(5, 3)
        model(inputs).square().mean().backward()
        return {"model": model, "inputs": inputs}

    return names


class Through(nn.Module):
    """A layer that applies a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function."""
        return self.function(x)


def read_none(printed: str) -> int:
    answers = [line.split()[1:] for line in printed.splitlines()]
    if ["True", "True"] in answers:
        return 0
    return 1 if ["False", "True"] in answers else 2


def scores_passed_on(
    after: Callable | None = None, inside: Callable | None = None, frozen: bool = False
) -> Callable[[], Names]:
    """Compute scores with ``inside`` behind the last layer, ``after`` behind all."""

    def names() -> Names:
        model = nn.Sequential(nn.Linear(3, 4), Through(inside or torch.relu))
        model.requires_grad_(not frozen)
        inputs = torch.randn(5, 3)
        return {
            "model": model,
            "inputs": inputs,
            "scores": (after or torch.relu)(model(inputs)),
        }

    return names


def read_scores(printed: str) -> int:
    answers = printed.split()
    if answers[0] == "False":
        return 3
    return {"True True": 0, "False True": 1, "False False": 2}[" ".join(answers[1:])]


def optimized(x: torch.Tensor) -> Callable[[], Names]:
    return lambda: {"x": x}


def read_leaf(printed: str) -> int:
    flags, operation = printed.splitlines()
    assert (operation == "None") == flags.startswith("True")
    return {"False True": 0, "True False": 1, "True True": 2}[flags]


def stepped(
    change: Callable = lambda model: None, rate: float = 0.1
) -> Callable[[], Names]:
    """Make an optimizer, and ``change`` the model afterwards."""

    def names() -> Names:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        return {"optimizer": optimizer, "model": change(model) or model}

    return names


def replace_a_layer(model: nn.Sequential) -> None:
    model[1] = nn.Linear(4, 2)


def read_rates(printed: str) -> int:
    if "not held" in printed:
        return 0
    return 1 if printed == "[0.0, 0.0, 0.0, 0.0]\n" else 2


def filled(
    weights: Callable[[torch.Tensor], object] | None = None,
    readout: Callable[[torch.Tensor], object] | None = None,
) -> DeepNetwork:
    """Return a network with one hidden layer, whose weights are filled anew."""
    model = network(1, "tanh", "xavier")
    nn.init.zeros_(model.readout.bias)
    for weight, fill in zip(model.weights(), (weights, readout), strict=True):
        if fill:
            fill(weight)
    return model


def after_steps(model: DeepNetwork, steps: int = 20) -> Callable[[], Names]:
    """Train a copy, and look at its hidden layer."""

    def names() -> Names:
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            trained(own)["loss"].backward()
            optimizer.step()
        return {"layer": own.blocks[0].linear}

    return names


def in_pairs(weight: torch.Tensor) -> None:
    """Make the second half of the units copies of the first half."""
    with torch.no_grad():
        half = (weight.shape[0] if weight.shape[0] == 32 else weight.shape[1]) // 2
        if weight.shape[0] == 32:
            weight[half:] = weight[:half]
        else:
            weight[:, half:] = weight[:, :half]


def all_alike(weight: torch.Tensor) -> None:
    nn.init.constant_(weight, 0.05)


def read_distinct(printed: str) -> int:
    differ, units = map(int, printed.split())
    if differ == units:
        return 2
    return 0 if differ == 1 else 1


def after_backward(model: DeepNetwork) -> Callable[[], Names]:
    def names() -> Names:
        names = trained(model)
        names["loss"].backward()
        return names

    return names


def read_zero_layers(printed: str) -> int:
    lines = [line.split()[1:] for line in printed.splitlines()]
    if lines.count(["False", "False"]) >= 2:
        return 0
    if lines.count(["False", "True"]) == 1:
        return 1
    assert all(held == "True" for held, _ in lines)
    return 2


def drawing_gradients(size: int) -> Callable[[], Names]:
    """Gradients of a linear model of the digits, on batches of one size."""

    def names() -> Names:
        model, generator = nn.Linear(64, 10), reproducible(0)
        split = digits()

        def batch_gradient() -> torch.Tensor:
            rows = torch.randperm(len(split.train_inputs), generator=generator)[:size]
            scores = model(split.train_inputs[rows])
            loss = nn.functional.cross_entropy(scores, split.train_targets[rows])
            gradients = torch.autograd.grad(loss, model.parameters())
            return torch.cat([g.flatten() for g in gradients])

        return {"batch_gradient": batch_gradient}

    return names


def following_noise(noise: float) -> Callable[[], Names]:
    """At the floor of the noise around a minimum where the loss is 1."""

    def names() -> Names:
        generator = reproducible(0)
        w = torch.zeros(50, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.5)

        def mean_loss(steps: int) -> float:
            total = 0.0
            for _ in range(steps):
                optimizer.zero_grad()
                drawn = noise * torch.randn(50, generator=generator)
                (w.square().sum() / 2 + drawn @ w).backward()
                total += 1 + w.detach().square().sum().item() / 2
                optimizer.step()
            return total / steps

        mean_loss(100)
        return {"mean_loss": mean_loss, "optimizer": optimizer}

    return names


def read_disagreement(printed: str) -> int:
    return 0 if float(printed) > 5 else 1


def read_fall(printed: str) -> int:
    return 0 if float(printed) < 0.9 else 1


def loading(examples: int, batch_size: int) -> Callable[[], Names]:
    return lambda: {"data": range(examples), "batch_size": batch_size}


def read_single(printed: str) -> int:
    return 0 if "1" in printed.split() else 1


def looking_along(
    loss_at: Callable[[torch.Tensor], torch.Tensor], learning_rate: float, *start: float
) -> Callable[[], Names]:
    def names() -> Names:
        w = tensor(*start).requires_grad_()
        loss_at(w).backward()
        with torch.no_grad():
            return {"loss_at": loss_at, "w": w, "learning_rate": learning_rate}

    return names


def of_digits(w: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a linear classifier with 640 weights."""
    data = digits(torch.float64)
    scores = data.train_inputs @ w.view(64, 10)
    return nn.functional.cross_entropy(scores, data.train_targets)


def with_a_floor(w: torch.Tensor) -> torch.Tensor:
    """Return the height in a valley a thousand times longer than wide; at least 1."""
    return 1 + (w[0] - 2) ** 2 + 1e-6 * (w[1] - 2) ** 2


def read_best_step(printed: str) -> int:
    best, share = map(float, printed.split())
    if not share > 0.01:
        return 2
    return 0 if best >= 1000 else 1


def regression(rate: float, reduction: str = "mean", sign: int = 1) -> Callable:
    data = diabetes(torch.float64)

    def final_loss(learning_rate: float) -> float:
        w = torch.zeros(10, dtype=torch.float64)
        for _ in range(50):
            w = w.detach().requires_grad_()
            errors = data.train_inputs @ w - data.train_targets
            loss = getattr(errors.square(), reduction)()
            loss.backward()
            w = w - sign * learning_rate * w.grad
        return loss.item()

    return lambda: {"final_loss": final_loss, "learning_rate": rate}


def read_final_losses(printed: str) -> int:
    start, full, part = map(float, printed.split())
    if full < start:
        return 2
    return 0 if part < start else 1


def compared(
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *, classes: bool
) -> Callable[[], Names]:
    """Return outputs of an untrained model, targets, and a loss of both."""

    def names() -> Names:
        generator = reproducible(0)
        if not classes:
            output = torch.randn(50, 1, generator=generator)
            return {
                "output": output,
                "target": torch.randn(50, generator=generator),
                "loss_fn": loss_fn,
            }
        output = torch.randn(50, 3, generator=generator)
        return {"output": output, "target": torch.arange(50) % 3, "loss_fn": loss_fn}

    return names


def read_mixed_targets(printed: str) -> int:
    return 0 if printed.split()[-1] == "True" else 1


def ending_with(last: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Names]:
    return lambda: {"output": last(torch.randn(20, 10, generator=reproducible(0)))}


def read_probabilities(printed: str) -> int:
    return 0 if printed.split() == ["True", "True"] else 1


def read_unused_classes(printed: str) -> int:
    return 1 if printed.strip() == "[]" else 0


def labeled(*, shuffled: bool) -> Callable[[], Names]:
    def names() -> Names:
        data, generator = digits(), reproducible(0)
        inputs, target = data.train_inputs[:300], data.train_targets[:300]
        if shuffled:
            target = target[torch.randperm(300, generator=generator)]
        return {"inputs": inputs, "target": target}

    return names


def read_neighbors(printed: str) -> int:
    near, chance = map(float, printed.split())
    return 0 if near < 1.5 * chance else 1


def in_the_clinic(fixed: bool) -> Callable[[], Names]:
    def names() -> Names:
        program = failures.loop_order(fixed, 0)
        return {
            "step": program.step,
            "model": program.variables,
            "optimizer": program.optimizer,
        }

    return names


CASES = {
    "stuck-cause-unknown": Case(
        lambda printed: int(printed.startswith("True")),
        ((in_the_clinic(False), 0), (in_the_clinic(True), 1)),
    ),
    "loss-hardly-falls": Case(
        read_best_step,
        (
            (looking_along(of_digits, 1e-6, *[0.0] * 640), 0),
            (looking_along(parabola, 1e-6, 0.0, 0.0), 0),
            (looking_along(of_digits, 0.5, *[0.0] * 640), 1),
            (looking_along(parabola, 0.1, 0.0, 0.0), 1),
            (looking_along(with_a_floor, 0.9, 2.0, 0.0), 2),
            (looking_along(with_a_floor, 0.1, 2.0, 2.0), 2),
        ),
    ),
    "loss-jumps-at-once-and-stays-high": Case(
        read_final_losses,
        (
            (regression(1.0), 0),
            (regression(0.003, "sum"), 0),
            (regression(0.2, "sum"), 1),
            (regression(0.01, sign=-1), 1),
            (regression(0.1), 2),
        ),
    ),
    "zero-gradient-in-half-precision": Case(
        read_zero_shares,
        (
            (scores_of_one_image(torch.float16, 14.0), 0),
            (scores_of_one_image(torch.float32, 200.0), 1),
            (scores_of_one_image(torch.float32, 14.0), 2),
            (scores_of_one_image(torch.float16, 2.0), 2),
        ),
    ),
    "weights-keep-their-value": Case(
        read_moved,
        (
            (about_to_step(torch.bfloat16, 1e-3), 0),
            (about_to_step(torch.float32, 1e-9), 0),
            (about_to_step(torch.float32, 0.1), 1),
            (about_to_step(torch.float32, 0.1, scale=0.0), 2),
        ),
    ),
    "loss-prints-one-value": Case(
        read_printed_loss,
        ((one_step(1e8, 0.1), 0), (one_step(0.0, 0.1), 1), (one_step(1e8, 0.0), 2)),
    ),
    "gradient-close-to-zero": Case(
        read_radii,
        (
            (lambda: {"f": objectives.rastrigin, "x": on_rastrigin(tensor(2.1))}, 0),
            (lambda: {"f": parabola, "x": tensor(2.0)}, 1),
            (lambda: {"f": saddle, "x": tensor(0.0, 0.0)}, 2),
            (lambda: {"f": parabola, "x": tensor(1.9)}, 2),
        ),
    ),
    "restarts-differ": Case(
        read_spreads,
        (
            (restarts(objectives.rastrigin, on_rastrigin, 1), 0),
            (restarts(objectives.himmelblau, on_himmelblau, 2), 1),
            (restarts(parabola, descent(parabola_gradient, 0.1, 200), 1), 2),
        ),
    ),
    "stop-test-never-fires": Case(
        read_frozen,
        ((lambda: frozen(2000.1), 0), (at_the_minimum, 1), (moving, 2)),
    ),
    "hops-back-and-forth": Case(
        read_step,
        (
            (stepping(1.0), 0),
            (stepping(1.1, dimensions=3), 0),
            (stepping(0.9), 1),
            (stepping(0.1, dimensions=3), 1),
        ),
    ),
    "zero-gradient-which-kind": Case(
        read_curvature,
        (
            (at_origin(saddle), 0),
            (lambda: {"f": parabola, "x": tensor(2.0, 2.0)}, 1),
            (at_origin(shelf), 2),
        ),
    ),
    "attack-returns-its-start": Case(
        read_start,
        (
            (attacked(score_distance), 0),
            (attacked(own_loss), 1),
            (attacked(rounded_loss), 2),
        ),
    ),
    "flat-then-drops": Case(
        read_growth,
        (
            (linear_network(1e-9), 0),
            (linear_network(0.8), 1),
            (linear_network(0.0), 2),
        ),
    ),
    "wrong-answer-tiny-gradient": Case(
        read_gradient_per_error,
        (
            (answers(SURE, with_sigmoid(nn.functional.mse_loss)), 0),
            (answers(SURE, with_sigmoid(nn.functional.binary_cross_entropy)), 0),
            (answers(SURE, naive_cross_entropy), 1),
            (answers(SURE, on_scores), 2),
            (answers(UNSURE, with_sigmoid(nn.functional.mse_loss)), 2),
        ),
    ),
    "loss-stands-at-100": Case(
        read_ceiling,
        (
            (answers(SURE, with_sigmoid(nn.functional.mse_loss)), 0),
            (answers(SURE, with_sigmoid(nn.functional.binary_cross_entropy)), 0),
            (answers(SURE, clamped), 0),
            (answers(SURE, on_scores), 1),
            (answers(UNSURE, with_sigmoid(nn.functional.mse_loss)), 1),
            (answers(-SURE.abs(), on_scores), 2),
        ),
    ),
    "nan-when-certain": Case(
        read_certain,
        (
            (answers(SURE, naive_cross_entropy), 0),
            (answers(UNSURE, naive_cross_entropy), 1),
            (answers(SURE * math.nan, naive_cross_entropy), 2),
        ),
    ),
    "moves-only-when-close": Case(
        read_distances, ((from_far(welsch), 0), (from_far(parabola), 1))
    ),
    "numerical-gradient-is-zero": Case(
        read_step_lost,
        (
            (one_number(parabola, 5.0, 6.0, torch.float32), 0),
            (one_number(composed_cross_entropy, 30.0, 1.0), 1),
            (one_number(torch.relu, -1.0, 0.0), 2),
        ),
    ),
    "autograd-and-differences-disagree": Case(
        read_slopes,
        (
            (one_number(parabola, 5.0, 6.0), 0),
            (one_number(torch.abs, 0.0, 0.0), 1),
            (one_number(parabola, 5.0, 3.0), 2),
        ),
    ),
    "gradcheck-fails": Case(
        read_checks,
        (
            (checked(torch.tanh, torch.float32), 0),
            (checked(torch.relu), 1),
            (checked(lambda x: x.detach() * x), 2),
        ),
    ),
    "goal-missed-at-zero-gradient": Case(
        read_questions,
        (
            (ended(far_off, 0.2, goal=0.5), 0),
            (ended(two_valleys, 1.0, goal=0.5), 1),
            (ended(two_valleys, 0.0, goal=0.0), 2),
            (ended(two_valleys, 0.8, goal=0.5), 3),
        ),
    ),
    "zero-gradient-but-loss-moves": Case(
        read_hand,
        (
            (moved_by_hand(staircase), 0),
            (moved_by_hand(lambda x: (SLOPE * x.detach()).sum()), 1),
            (moved_by_hand(lambda x: (0 * x).sum()), 2),
            (moved_by_hand(parabola), 3),
        ),
    ),
    "pixels-do-not-change": Case(
        read_shares_of_zeros,
        (
            (pixels((-0.1, -0.2, 0.5, 1.2), lambda w: w.clamp(0, 1)), 0),
            (pixels((0.1, 0.2, 0.5), lambda w: (255 * w).round() / 255), 0),
            (pixels((-torch.inf, 0.0, torch.inf), torch.sigmoid), 0),
            (pixels((0.1, 0.2, 0.3, 0.4), lambda w: w, slice(1)), 1),
            (pixels((0.1, 0.2, 0.3, 0.4), lambda w: w), 2),
            (pixels((-4.0, 0.0, 4.0), torch.sigmoid), 2),
        ),
    ),
    "image-barely-changes": Case(
        read_weakening,
        (
            (pixels((20.0, 80.0, 240.0), lambda w: w / 255), 0),
            (pixels((-4.6, -5.0, 4.6), torch.sigmoid), 0),
            (pixels((-1.0, 0.0, 1.0), torch.sigmoid), 1),
            (pixels((0.1, 0.2, 0.3), lambda w: w), 1),
        ),
    ),
    "gradient-stays-large-in-a-box": Case(
        read_box, ((in_a_box(500), 0), (in_a_box(3), 1))
    ),
    "input-gradient-zero-when-right": Case(
        read_gap,
        (
            (scored_digits(20.0), 0),
            (scored_digits(1.0, rounds=True), 1),
            (scored_digits(1.0), 2),
        ),
    ),
    "sign-steps-work-gradient-steps-do-not": Case(
        read_small_steps,
        ((scored_digits(1.0), 0), (scored_digits(20.0), 0), (climbing_margin, 1)),
    ),
    "attack-fails-is-it-robust": Case(
        read_two_losses,
        (
            (sign_attack(20.0, 0.15), 0),
            (sign_attack(1.0, 0.02), 1),
            (sign_attack(1.0, 0.15), 2),
        ),
    ),
    "first-layers-do-not-change": Case(
        read_layers,
        ((sigmoids(8), 0), (switched_off, 1), (cut_off, 2), (healthy, 3)),
    ),
    "loss-stays-at-ln-classes": Case(
        read_spread, ((sigmoids(8), 0), (sigmoids(30), 0), (healthy, 1))
    ),
    "same-output-for-every-input": Case(
        read_layer_spreads,
        (
            (layer_by_layer(network(8, "sigmoid", "default")), 0),
            (layer_by_layer(network(16, "relu", "default")), 0),
            (layer_by_layer(network(4, "tanh", "xavier"), 1 / 255**2), 1),
            (layer_by_layer(switched_off()["model"]), 2),
            (layer_by_layer(with_zero_readout()), 2),
            (layer_by_layer(network(8, "tanh", "xavier")), 3),
        ),
    ),
    "accuracy-is-the-largest-class": Case(
        read_true_and_shuffled,
        ((trains("sigmoid", "default"), 0), (trains("relu", "he"), 1)),
    ),
    "constant-factor-per-layer": Case(
        read_ratios, ((sigmoids(8), 0), (bottleneck, 1), (healthy, 2))
    ),
    "gradient-norm-prints-zero": Case(
        read_norms,
        (
            (first_weight(network(30, "sigmoid", "default")), 0),
            (first_weight(network(60, "sigmoid", "default")), 1),
            (first_weight(network(8, "relu", "he")), 2),
        ),
    ),
    "step-changes-nothing": Case(
        read_two_counts, ((erased, 0), (cut_between, 1), (arrives, 2))
    ),
    "weights-only-shrink": Case(
        read_shrinking,
        (
            (looping("BZS", set_to_none=False), 0),
            (looping("BZS"), 1),
            (looping("BSZ"), 2),
            (looping("BSZ", set_to_none=False), 2),
        ),
    ),
    "modified-by-an-inplace-operation": Case(
        lambda printed: 1 if printed == "True\n" else 0,
        ((stepped_in_between, 0), (activation_in_between, 1)),
    ),
    "loss-swings-in-waves": Case(
        lambda printed: 1 if float(printed) == 0 else 0,
        (
            (after_two_iterations(forgets=True), 0),
            (after_two_iterations(forgets=False), 1),
        ),
    ),
    "trains-well-then-explodes": Case(
        read_turns,
        (
            (climbing(0.03, 4, forgets=True), 0),
            (climbing(0.26, 0), 1),
            (climbing(0.09, 1), 2),
        ),
    ),
    "accumulation-differs-from-the-big-batch": Case(
        read_sums(2),
        (
            (added_up(177, 177), 0),
            (added_up(300, 54, scale=1 / 2), 1),
            (added_up(*[1] * 354, scale=1 / 354, dtype=torch.bfloat16), 1),
            (added_up(177, 177, scale=1 / 2), 2),
        ),
    ),
    "accuracy-has-no-gradient": Case(
        read_three_flags,
        (
            (counting("counted"), 0),
            (counting("silenced"), 0),
            (counting("detached"), 1),
            (counting("cross-entropy"), 2),
        ),
    ),
    "every-gradient-exactly-zero": Case(
        read_staircase,
        (
            (scored(lambda s: s.round().mean()), 0),
            (scored(lambda s: s.sign().mean()), 0),
            (scored(lambda s: (0 * s).sum()), 1),
            (scored(lambda s: s.sigmoid().mean()), 2),
        ),
    ),
    "soft-accuracy-does-not-train": Case(
        read_carriers,
        (
            (softened(0.01), 0),
            (softened(1e-6), 0),
            (softened(1.0), 1),
            (softened(0.1, scale=20.0), 2),
        ),
    ),
    "stacked-lstm-does-not-learn": Case(
        read_below_a_thousandth, ((stacked_lstm(8), 0), (stacked_lstm(2), 1))
    ),
    "lstm-forgets-the-beginning": Case(
        read_below_a_thousandth, ((remembering(0, 16), 0), (remembering(4, 16), 1))
    ),
    "nan-in-long-sequences": Case(
        read_lengths,
        (
            (long_sequence(torch.relu), 0),
            (long_sequence(torch.sigmoid), 1),
            (long_sequence(torch.sigmoid, start=math.nan), 2),
        ),
    ),
    "one-huge-loss-then-silence": Case(
        read_dead,
        (
            (on_tumors(False), 0),
            (on_tumors(False, 1e-7), 1),
            (on_tumors(True, bias=-100), 1),
            (on_tumors(True), 2),
        ),
    ),
    "first-loss-is-huge": Case(
        read_first_loss,
        (
            (first_scores(False), 0),
            (first_scores(True, 100), 1),
            (first_scores(True), 2),
        ),
    ),
    "regression-turns-nan": Case(
        read_two_regressions,
        ((regressing(77, 0.01), 0), (regressing(77, 2.0), 1), (regressing(1, 0.01), 2)),
    ),
    "loss-falls-metric-worsens": Case(
        lambda printed: ("False", "True").index(printed.strip()),
        (
            (loss_to_check(lambda output, target: 1 / mse_loss(output, target)), 0),
            (loss_to_check(lambda output, target: -mse_loss(output, target)), 0),
            (loss_to_check(mse_loss), 1),
        ),
    ),
    "loss-drops-once-then-frozen": Case(
        read_error_size,
        (
            (after_a_drop((1e5, -2.0)), 0),
            (after_a_drop((1.01, -2.0)), 1),
            (after_a_drop((0.0, -2.0)), 2),
        ),
    ),
    "gradient-is-none": Case(
        read_none,
        (
            (wired(torch.Tensor.detach), 0),
            (wired(lambda h: torch.from_numpy(h.detach().numpy())), 0),
            (wired(frozen=True), 1),
            (wired(), 2),
        ),
    ),
    "does-not-require-grad": Case(
        read_scores,
        (
            (scores_passed_on(), 0),
            (scores_passed_on(after=torch.Tensor.detach), 1),
            (scores_passed_on(inside=torch.Tensor.detach), 2),
            (scores_passed_on(frozen=True), 3),
        ),
    ),
    "non-leaf-tensor": Case(
        read_leaf,
        (
            (optimized(torch.ones(3, requires_grad=True).double()), 0),
            (optimized(0.1 * torch.ones(3, requires_grad=True)), 0),
            (optimized(torch.ones(3).double()), 1),
            (optimized(torch.ones(3).double().requires_grad_()), 2),
        ),
    ),
    "healthy-gradient-nothing-moves": Case(
        read_rates,
        (
            (stepped(copy.deepcopy), 0),
            (stepped(replace_a_layer), 0),
            (stepped(rate=0.0), 1),
            (stepped(nn.Module.double), 2),
            (stepped(), 2),
        ),
    ),
    "units-all-equal": Case(
        read_distinct,
        (
            (after_steps(filled(all_alike, all_alike)), 0),
            (after_steps(filled(in_pairs, in_pairs)), 1),
            (after_steps(filled()), 2),
            (after_steps(filled(all_alike)), 2),
        ),
    ),
    "only-the-last-bias-learns": Case(
        read_zero_layers,
        (
            (after_backward(filled(nn.init.zeros_, nn.init.zeros_)), 0),
            (after_backward(filled(readout=nn.init.zeros_)), 1),
            (after_backward(filled(nn.init.zeros_)), 1),
            (after_backward(filled()), 2),
            (after_backward(filled(lambda w: nn.init.constant_(w, -100.0))), 2),
        ),
    ),
    "loss-jumps-but-does-not-fall": Case(
        read_disagreement,
        (
            (drawing_gradients(1), 0),
            (drawing_gradients(64), 1),
            (drawing_gradients(1024), 1),
        ),
    ),
    "loss-hovers-at-a-level": Case(
        read_fall,
        ((following_noise(0.5), 0), (following_noise(0.01), 1)),
    ),
    "expected-more-than-one-value": Case(
        read_single,
        ((loading(1797, 4), 0), (loading(100, 1), 0), (loading(1797, 64), 1)),
    ),
    "predicts-the-mean": Case(
        read_mixed_targets,
        (
            (compared(lambda p, t: (p - t).square().mean(), classes=False), 0),
            (compared(lambda p, t: (p[:, 0] - t).square().mean(), classes=False), 1),
        ),
    ),
    "cross-entropy-stops-at-1-46": Case(
        read_probabilities,
        (
            (ending_with(lambda scores: scores.softmax(1)), 0),
            (ending_with(lambda scores: scores.log_softmax(1)), 1),
            (ending_with(lambda scores: scores), 1),
        ),
    ),
    "one-class-never-predicted": Case(
        read_unused_classes,
        (
            (compared(partial(cross_entropy, ignore_index=2), classes=True), 0),
            (compared(cross_entropy, classes=True), 1),
        ),
    ),
    "loss-stays-near-ln-of-classes": Case(
        read_neighbors,
        ((labeled(shuffled=True), 0), (labeled(shuffled=False), 1)),
    ),
}


def run(test: str, names: Names) -> str:
    """Return what a test prints, or the error that it ends with."""
    torch.manual_seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            exec(test, {"torch": torch} | names)
        except AttributeError as error:
            print(error)
    return printed.getvalue()


def test_every_symptom_is_tried_out() -> None:
    assert set(CASES) == set(SYMPTOMS)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (name, place)
        for name, case in CASES.items()
        for place in range(len(case.examples))
    ],
)
def test_the_answer_tells_causes_apart(name: str, place: int) -> None:
    names, outcome = CASES[name].examples[place]
    printed = run(SYMPTOMS[name].test, names())
    assert CASES[name].read(printed) == outcome, printed


@pytest.mark.parametrize("name", CASES)
def test_every_outcome_has_an_example(name: str) -> None:
    shown = {outcome for _, outcome in CASES[name].examples}
    assert shown == set(range(len(SYMPTOMS[name].outcomes)))


def test_every_chapter_can_be_found() -> None:
    assert {symptom.chapter for symptom in SYMPTOMS.values()} == set(SLUGS)


def test_underflow_is_seen_in_float64_as_the_table_says() -> None:
    model = deep_network(60, "sigmoid", generator=reproducible(0), dtype=torch.float64)
    names = first_weight(model, torch.float64)()
    single = first_weight(network(60, "sigmoid", "default"))()
    assert single["weight"].grad.abs().max() == 0
    assert names["weight"].grad.abs().max() > 0


# --------------------------------------------------------------------------------------
# Faults in the table
# --------------------------------------------------------------------------------------

GOOD = """
[[group]]
title = "A group"
[[group.symptom]]
name = "stuck"
see = "It is stuck."
also = ["frozen"]
test = "print(x)"
uses = "`x` is what you move."
outcomes = [{ answer = "0", means = "Stuck." }, { answer = "1", means = "Not." }]
chapter = "local_minimum"
"""


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "symptoms.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_table_is_read(tmp_path: Path) -> None:
    (group,) = pages.read_symptoms(table(tmp_path, GOOD), ["local_minimum"])
    (symptom,) = group.symptoms
    assert symptom.also == ("frozen",)
    assert symptom.outcomes[1] == pages.Outcome("1", "Not.")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('see = "It is stuck."\n', "", r"symptom 1 \('stuck'\): .*'see' is missing"),
        ('name = "stuck"\n', "", "group 1, symptom 1: the field 'name' is missing"),
        ('title = "A group"\n', "", "group 1: the field 'title' is missing"),
        ('"It is stuck."', '" "', "see must not be empty"),
        ('"It is stuck."', "3", "see must be a string, not 3"),
        ('["frozen"]', '"frozen"', "also must be a list"),
        ('["frozen"]', "[1]", "also must list phrases, and 1 is none"),
        ("see =", "sees = 1\nsee =", "there is no field 'sees', only name, see"),
        ('"stuck"', '"Is Stuck"', "name must be lower-case words"),
        ('"local_minimum"', '"local_minimun"', "did you mean 'local_minimum'"),
        ('"local_minimum"', '"zzz"', "Chapters in _toc.yml: local_minimum"),
        ('"print(x)"', '"1\\n2\\n3\\n4"', "test has 4 lines, at most 3"),
        ('"print(x)"', '"print(x"', "test is not Python"),
        ('means = "Not."', 'mean = "Not."', "outcome 2: the field 'means' is missing"),
        (', { answer = "1", means = "Not." }', "", "outcomes must list at least two"),
        ("[[group]]", "[[group]", "symptoms.toml: .*line 2"),
        (GOOD, GOOD + GOOD, "two symptoms have the name 'stuck'"),
        (GOOD, "", "the field 'group' is missing"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(pages.SymptomTableError, match=message):
        pages.read_symptoms(table(tmp_path, text), ["local_minimum"])


def test_each_chapter_has_one_address_in_the_finder() -> None:
    text = pages.finder_markdown(GROUPS)
    for slug in SLUGS:
        assert text.count(f"(find-{slug.replace('_', '-')})=") == 1
    for name in SYMPTOMS:
        assert text.count(f"(symptom-{name})=") == 1


# --------------------------------------------------------------------------------------
# The link to the source
# --------------------------------------------------------------------------------------


def options_with(monkeypatch: pytest.MonkeyPatch, address: str) -> Names:
    monkeypatch.setenv("BOOK_REPOSITORY", address)
    config = SimpleNamespace(html_theme_options={"show_toc_level": 2})
    pages.link_to_repository(None, config)
    return config.html_theme_options


def test_a_published_book_links_to_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_with(monkeypatch, "https://github.com/owner/book/") == {
        "show_toc_level": 2,
        "repository_url": "https://github.com/owner/book",
        "use_repository_button": True,
        "use_issues_button": True,
    }


def test_a_book_built_at_home_promises_no_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert options_with(monkeypatch, "") == {"show_toc_level": 2}


@pytest.mark.parametrize("address", ["owner/book", "http://a.org/b/c", "https://a.org"])
def test_a_wrong_address_of_the_source_stops_the_build(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with pytest.raises(ExtensionError, match="BOOK_REPOSITORY must be like"):
        options_with(monkeypatch, address)

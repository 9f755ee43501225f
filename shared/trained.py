"""Small digit classifiers that several chapters attack, trained once and kept.

Chapters that optimize an *input* need a trained network, but how it was trained is not
their lesson. The weights in `shared/weights` come from `train`, in this file;
``python -m shared.trained`` makes them anew. They are stored in float32, so that each
chapter starts from the same network on every processor.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from shared.data import digits

WEIGHTS = Path(__file__).parent / "weights"
SEEDS = range(5)
"""Of each kind there are five networks, which differ in their random start."""

KINDS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "smooth": (nn.Softplus, nn.AvgPool2d),
    "kinked": (nn.ReLU, nn.MaxPool2d),
}
"""Activation and pooling by name: differentiable everywhere, or the usual choice."""


def untrained(kind: str, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return the convolutional network, with PyTorch's random start.

    It maps (examples, 64) pixels in [0, 1] to (examples, 10) scores.

    Args:
        kind: ``"smooth"`` or ``"kinked"``.
        dtype: floating type of the parameters.

    Raises:
        ValueError: if ``kind`` is not known.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    activation, pool = KINDS[kind]
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        activation(),
        pool(2),
        nn.Conv2d(8, 16, 3, padding=1),
        activation(),
        pool(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).to(dtype)


def train(kind: str, seed: int, steps: int = 1000) -> nn.Sequential:
    """Train a network on the digits: Adam, batches of 64, learning rate 0.01 to 0.

    Args:
        kind: ``"smooth"`` or ``"kinked"``.
        seed: draws the random start and the batches.
        steps: number of updates, at least 1.

    Raises:
        ValueError: if ``kind`` is not known or ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = untrained(kind, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    data = digits(torch.float64)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        batch = torch.randint(len(data.train_inputs), (64,), generator=generator)
        scores = network(data.train_inputs[batch])
        loss = nn.functional.cross_entropy(scores, data.train_targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def trained(
    kind: str, seed: int = 0, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Return a trained digit classifier whose weights are frozen.

    It maps (examples, 64) pixels in [0, 1] to (examples, 10) scores.

    Args:
        kind: ``"smooth"`` (softplus, average pooling) or ``"kinked"`` (ReLU, max
            pooling).
        seed: which of the five networks of this kind, 0 to 4.
        dtype: floating type of the parameters.

    Raises:
        ValueError: if ``kind`` or ``seed`` is not as above.
    """
    network = untrained(kind, dtype)
    if seed not in SEEDS:
        raise ValueError(f"seed must be 0 to {SEEDS[-1]}, not {seed}")
    with np.load(WEIGHTS / f"{kind}.npz") as stored:
        state = {
            name: torch.tensor(stored[f"{seed}/{name}"], dtype=dtype)
            for name in network.state_dict()
        }
    network.load_state_dict(state)
    return network.requires_grad_(False)


def remake() -> None:
    """Train all networks and write their weights."""
    WEIGHTS.mkdir(exist_ok=True)
    for kind in KINDS:
        arrays = {
            f"{seed}/{name}": values.float().numpy()
            for seed in SEEDS
            for name, values in train(kind, seed).state_dict().items()
        }
        np.savez(WEIGHTS / f"{kind}.npz", **arrays)


if __name__ == "__main__":
    remake()

"""Data and small networks that many cases are made of."""

import functools
import itertools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional


@functools.cache
def all_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all 1,797 digits, rows of 64 pixels from 0 to 1, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)


def digits(seed: int, count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` digits drawn without replacement, and their labels."""
    images, labels = all_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:count]], labels[order[:count]]


def unscaled_digits(seed: int, count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same with pixels from 0 to 16, as the data set stores them."""
    images, labels = digits(seed, count)
    return 16 * images, labels


def network(*sizes: int) -> nn.Sequential:
    """Return linear layers of these sizes with a ReLU between each two."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained_classifier(seed: int) -> nn.Sequential:
    """Return a small digit classifier after a few steps of training."""
    torch.manual_seed(seed)
    images, labels = digits(seed)
    model = network(64, 32, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.zero_grad()
    return model


def least_likely(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Return the class that the model gives to the image last, as a batch of one."""
    with torch.no_grad():
        return model(image.reshape(1, 64)).argmin(dim=1)


def blobs(
    seed: int, n: int = 120, features: int = 6, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return standardized rows around a center for each class, and their classes."""
    g = torch.Generator().manual_seed(seed)
    centers = 1.5 * torch.randn(classes, features, generator=g)
    y = torch.randint(0, classes, (n,), generator=g)
    x = centers[y] + 0.8 * torch.randn(n, features, generator=g)
    return (x - x.mean(0)) / x.std(0), y


def line(
    seed: int, n: int = 128, features: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random rows, and a nearly linear function of them, shape (n,)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=g)
    w = torch.randn(features, generator=g)
    w = 1.5 * w / w.norm()
    y = x @ w + 0.3 * torch.sin(3 * x[:, 0]) + 0.05 * torch.randn(n, generator=g)
    return x, y

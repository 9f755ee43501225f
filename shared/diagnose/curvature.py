"""Curvature of the loss from gradients at moved values: a few steps of Lanczos."""

import dataclasses
import math
from collections.abc import Sequence

import torch

from shared.diagnose.observation import Observation

MOST_GRADIENTS = 8


@dataclasses.dataclass(frozen=True)
class Curvature:
    """Extreme curvatures, and what a move along the lowest one gains."""

    lowest: float
    highest: float
    gain: float
    unit: float
    """The length of the variables together, which moves are measured in."""


def curvature(seen: Observation) -> Curvature:
    """Return the extreme curvatures at the start, by the Lanczos method.

    Products with the Hessian are differences of gradients (C. Lanczos, 1950; B. A.
    Pearlmutter, 1994), here over a move of a hundredth of the variables' size.
    """
    unit = seen.length
    width = 1e-2 * max(unit, 1e-3)
    base = _flat(seen.gradient)
    start = _flat(seen.random_direction(7))
    vector = start / start.norm()
    basis: list[torch.Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(MOST_GRADIENTS, len(vector))):
        basis.append(vector)
        moved = seen.trials.moved(_shaped(vector, seen.trials.start), width)
        product = (_flat(seen.trials.gradient_at(moved)) - base) / width
        if not torch.isfinite(product).all():
            break
        diagonal.append(float(product @ vector))
        for known in basis:
            product = product - (product @ known) * known
        size = float(product.norm())
        if size < 1e-9 * max(map(abs, diagonal)) or size == 0.0:
            break
        beside.append(size)
        vector = product / size
    if not diagonal:
        return Curvature(0.0, 0.0, 0.0, unit)
    n = len(diagonal)
    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for k in range(n - 1):
        small[k, k + 1] = small[k + 1, k] = beside[k]
    values, vectors = torch.linalg.eigh(small)
    direction = sum(w * b for w, b in zip(vectors[:, 0], basis, strict=False))
    return Curvature(
        float(values[0]),
        float(values[-1]),
        _gain(seen, direction, float(values[0]), unit),
        unit,
    )


def _gain(
    seen: Observation, direction: torch.Tensor, lowest: float, unit: float
) -> float:
    """Return by how much the loss falls along a direction, at the best move."""
    start = seen.progress[0]
    best = start
    clear = -lowest * unit**2 > 1e-3 * seen.loss_scale
    distances = (1e-2, 1e-1, 1.0) if clear else (1e-2, 1e-1)
    for sign in (1.0, -1.0):
        for distance in distances:
            move = _shaped(direction, seen.trials.start)
            found = seen.trials.loss_at(
                seen.trials.moved(move, sign * distance * max(unit, 1e-3))
            )
            if math.isfinite(found):
                best = min(best, found)
    return start - best


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


def _shaped(vector: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    parts = vector.split([t.numel() for t in like])
    return [part.reshape(t.shape) for part, t in zip(parts, like, strict=True)]

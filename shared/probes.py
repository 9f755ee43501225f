"""Measurements of a network or a variable that does not move.

All norms are computed in float64: the float32 norm of a gradient reads exactly 0 once
its entries fall below about 2e-23, because their squares underflow.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn


def gradient_norms(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Return the norm of each tensor's ``.grad``, NaN where it is None.

    Args:
        tensors: leaves after a backward pass, such as ``network.weights()``.
    """
    return [
        float("nan") if t.grad is None else t.grad.double().norm().item()
        for t in tensors
    ]


def ratio_per_layer(norms: Sequence[float]) -> float:
    """Return the factor per layer: the slope of a straight line through ``ln norms``.

    Args:
        norms: at least two gradient norms from the input side to the output side.

    Returns:
        Norm of a layer over that of the next one; below 1 the gradient vanishes toward
        the input. NaN if a norm is 0 or not finite.

    Raises:
        ValueError: if there are fewer than two norms.
    """
    if len(norms) < 2:
        raise ValueError(f"norms must have at least two entries, not {len(norms)}")
    logs = torch.tensor(norms, dtype=torch.float64).log()
    if not torch.isfinite(logs).all():
        return float("nan")
    layer = torch.arange(len(norms), dtype=torch.float64)
    layer = layer - layer.mean()
    return torch.exp(-(layer @ logs) / (layer @ layer)).item()


def saturated_share(
    network: nn.Module, inputs: torch.Tensor, slope_below: float = 0.1
) -> float:
    """Return the share of sigmoid or tanh outputs whose slope is below a bound.

    Args:
        network: contains `torch.nn.Sigmoid` or `torch.nn.Tanh` modules.
        inputs: shape (examples, features).
        slope_below: bound on the activation's derivative.

    Raises:
        ValueError: if the network has no sigmoid and no tanh.
    """
    flat = total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal flat, total
        sigmoid = isinstance(module, nn.Sigmoid)
        slope = output * (1 - output) if sigmoid else 1 - output**2
        flat += (slope < slope_below).sum().item()
        total += slope.numel()

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Sigmoid | nn.Tanh)
    ]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not total:
        raise ValueError("network has no Sigmoid and no Tanh module to measure")
    return flat / total


def projected_gradient(
    x: torch.Tensor, gradient: torch.Tensor, lower: float, upper: float
) -> torch.Tensor:
    """Return the part of a gradient along which descent can move inside a box.

    At a bound, the component that points out of the box is dropped: a point is
    stationary in the box when what is left is zero, not when the gradient is
    (Nocedal and Wright 2006, section 16.7).

    Args:
        x: points with ``lower <= x <= upper``.
        gradient: gradient of the function to MINIMIZE there, same shape.
        lower: lower bound of every coordinate.
        upper: upper bound of every coordinate, above ``lower``.

    Raises:
        ValueError: if a point is outside the box or the shapes differ.
    """
    if x.shape != gradient.shape:
        raise ValueError(
            f"gradient must have the shape of x, {tuple(x.shape)}, "
            f"not {tuple(gradient.shape)}"
        )
    if not bool(((x >= lower) & (x <= upper)).all()):
        raise ValueError(f"x must be in the box [{lower}, {upper}]")
    blocked = ((x == lower) & (gradient > 0)) | ((x == upper) & (gradient < 0))
    return torch.where(blocked, torch.zeros_like(gradient), gradient)


def largest_curvature(
    losses: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    free: torch.Tensor | None = None,
    rounds: int = 50,
) -> torch.Tensor:
    """Return, row by row, the eigenvalue of the Hessian that is largest in size.

    Power iteration on products of the Hessian with a vector, each of them the gradient
    of a directional derivative (Pearlmutter 1994). Two eigenvalues of opposite sign
    and nearly equal size need more rounds.

    Args:
        losses: maps (rows, columns) to one loss a row, which no other row influences.
        x: where, shape (rows, columns), in a floating type.
        free: True where a coordinate can move, same shape; the others count as fixed.
            None lets all of them move.
        rounds: number of products, at least 1.

    Returns:
        One curvature a row, 0 for a row that cannot move.

    Raises:
        ValueError: if the shapes differ or ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    if free is None:
        free = torch.ones_like(x, dtype=torch.bool)
    if free.shape != x.shape:
        raise ValueError(
            f"free must have the shape of x, {tuple(x.shape)}, not {tuple(free.shape)}"
        )
    # Random, so that it is not perpendicular to the direction that is looked for.
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * free
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(x).sum(), x, create_graph=True)
    tiny = torch.finfo(x.dtype).tiny
    for _ in range(rounds):
        # A row without curvature has no direction, and stays zero.
        along = along / along.norm(dim=1, keepdim=True).clamp(min=tiny)
        slope = (gradient * along).sum()
        (turned,) = torch.autograd.grad(slope, x, retain_graph=True)
        turned = turned * free
        curvature, along = (turned * along).sum(1), turned
    return curvature


def ulp(x: torch.Tensor) -> torch.Tensor:
    """Return the spacing of the numbers of ``x.dtype`` at ``|x|``, away from zero.

    ``2^(floor(log2 |x|) - p)`` with ``p`` stored fraction bits (Goldberg 1991); near
    zero, where numbers are evenly spaced, the smallest number above 0. The spacing
    toward zero is half of it just below a power of two.

    Args:
        x: any floating type, any shape.

    Returns:
        Spacings in float64, same shape; infinite or NaN where ``x`` is.
    """
    info = torch.finfo(x.dtype)
    # Without its fraction bits a float64 is the power of two at or below it.
    power = (x.double().view(torch.int64) & (0x7FF << 52)).view(torch.float64)
    spacing = (power * info.eps).clamp(min=info.smallest_normal * info.eps)
    return torch.where(x.isfinite(), spacing, x.double().abs())


def changed_by_update_predicted(x: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Return where ``x + update``, rounded to ``x.dtype``, will differ from ``x``.

    The half-ulp rule: an update is lost when it is smaller than half the spacing to
    the neighbor it points at. One that lands halfway goes to the neighbor whose last
    bit is 0 (Higham 2002, section 2.1).

    Args:
        x: finite values in any floating type.
        update: what is added, same shape; used in float64.

    Returns:
        Booleans, same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    if x.shape != update.shape:
        raise ValueError(
            f"update must have the shape of x, {tuple(x.shape)}, "
            f"not {tuple(update.shape)}"
        )
    spacing, update = ulp(x), update.double()
    # Exact: a whole number of spacings, below 2^53.
    last_bit = torch.remainder(x.double() / spacing, 2)
    info = torch.finfo(x.dtype)
    power = x.double().abs() / spacing == 1 / info.eps
    normal = x.double().abs() > info.smallest_normal
    toward_zero = torch.sign(update) * torch.sign(x.double()) < 0
    # A multiple of the update, because half of the smallest spacing is no number.
    times = torch.where(power & normal & toward_zero, 4.0, 2.0) * update.abs()
    return torch.where(last_bit == 0, times > spacing, times >= spacing)

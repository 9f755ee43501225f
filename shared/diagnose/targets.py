"""What targets are: classes or amounts, and what can be said of them at best."""

import torch


def are_classes(target: torch.Tensor) -> bool:
    """Whether targets are whole numbers, each of which occurs again and again."""
    few = target.unique().numel() <= max(2, target.numel() // 3)
    return few and bool((target == target.round()).all())


def base_loss(y: torch.Tensor) -> float:
    """Return the loss of the best constant answer: entropy, or variance."""
    if are_classes(y):
        counts = y.flatten().unique(return_counts=True)[1].double()
        shares = counts / counts.sum()
        return float(-(shares * shares.log()).sum())
    return float(y.double().var())

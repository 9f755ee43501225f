"""Measures what is special about a torch call: shares that are off, flat or masked."""

import math
from collections.abc import Callable
from typing import Any

import torch

from shared.diagnose.torch_calls import Call, all_zero
from shared.probes import ulp


def facts_of(
    call: Call,
    value_in: torch.Tensor | None,
    value_out: torch.Tensor,
    bits_of: Callable[[torch.Tensor], int],
) -> dict[str, Any]:
    """Measure what is special about one call: shares that are off, flat or masked."""
    name = call.name.rstrip("_") if not call.name.startswith("__") else call.name
    measure = _FACTS.get(name)
    if measure is None or value_in is None or not value_out.numel():
        return {}
    with torch.no_grad():
        try:
            return measure(call, value_in.detach(), value_out.detach(), bits_of)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return {}


def _rectifier(call: Call, x: torch.Tensor, y: torch.Tensor, _: Any) -> dict[str, Any]:
    off = y <= 0
    return {"kind": "rectifier", "off": off.float().mean().item(), **_units_off(off)}


def _units_off(off: torch.Tensor) -> dict[str, float]:
    """Share of units (the channels, or else all entries) that are off everywhere."""
    if off.dim() < 2 or len(off) < 2:
        return {"units_off": off.float().mean().item(), "examples": 1}
    channel = 1 if off.dim() in (2, 4, 5) else off.dim() - 1
    others = [d for d in range(off.dim()) if d != channel]
    all_off = off
    for dimension in sorted(others, reverse=True):
        all_off = all_off.all(dim=dimension)
    return {"units_off": all_off.float().mean().item(), "examples": len(off)}


def _flat_by_slope(
    kind: str, slope: Callable[[torch.Tensor], torch.Tensor]
) -> Callable:
    def measure(call: Call, x: torch.Tensor, y: torch.Tensor, _: Any) -> dict[str, Any]:
        steepness = slope(y.double()) if kind != "logsigmoid" else slope(x.double())
        return {
            "kind": kind,
            "flat": (steepness < 1e-2).float().mean().item(),
            "exactly_flat": (slope(y) == 0).float().mean().item(),
        }

    return measure


def _softmax(call: Call, x: torch.Tensor, y: torch.Tensor, _: Any) -> dict[str, Any]:
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
    dim = -1 if not isinstance(dim, int) else dim
    logarithmic = "log" in call.name
    p = y.exp() if logarithmic else y
    top = p.max(dim=dim).values
    return {
        "kind": "log_softmax" if logarithmic else "softmax",
        "classes": x.shape[dim],
        "flat": (top > 1 - 1e-2).float().mean().item(),
        "exactly_flat": (top == 1).float().mean().item(),
        "fed_probabilities": x.shape[dim] > 1 and _are_probabilities(x, dim),
    }


def _are_probabilities(x: torch.Tensor, dim: int) -> bool:
    """Whether all slices are nonnegative and sum to 1, as a softmax leaves them."""
    if not x.is_floating_point() or x.numel() < 2:
        return False
    sums = x.float().sum(dim=dim)
    tolerance = 1e-3 if x.dtype in (torch.float16, torch.bfloat16) else 1e-5
    one_hot = bool(((x == 0) | (x == 1)).all()) and not x.requires_grad
    return (
        bool((x >= 0).all())
        and bool(((sums - 1).abs() < tolerance).all())
        and (not one_hot or x.shape[dim] > 1)
    )


def _clamp(call: Call, x: torch.Tensor, y: torch.Tensor, _: Any) -> dict[str, Any]:
    bounds = [
        b
        for b in (*call.args[1:3], call.kwargs.get("min"), call.kwargs.get("max"))
        if b is not None
    ]
    pair = call.name in ("minimum", "maximum", "clamp_min", "clamp_max")
    return {
        "kind": "clamp",
        "two_sided": not pair
        and (call.name in ("hardtanh", "relu6", "hardsigmoid") or len(bounds) > 1),
        "outside": (x != y).float().mean().item(),
    }


def _cross_entropy(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    target = call.args[1] if len(call.args) > 1 else call.kwargs["target"]
    weight = call.kwargs.get("weight")
    if weight is None and len(call.args) > 2:
        weight = call.args[2]
    ignored = call.kwargs.get("ignore_index", -100)
    scores = call.args[0] if call.args else call.kwargs["input"]
    dim = 1 if scores.dim() > 1 else 0
    is_log = call.name == "nll_loss"
    facts = {
        "kind": "cross_entropy",
        "classes": scores.shape[dim],
        "fed_probabilities": not is_log and _are_probabilities(scores.detach(), dim),
    }
    if target.dtype == torch.long:
        facts |= _masked_targets(target, weight, ignored, scores.shape[dim])
    return facts


def _masked_targets(
    target: torch.Tensor, weight: torch.Tensor | None, ignored: int, classes: int
) -> dict[str, Any]:
    flat = target.flatten()
    counted = flat != ignored
    if _is_padding(~counted):
        return {"counted": counted.float().mean().item(), "classes_lost": []}
    if weight is not None:
        valid = flat.clamp(0, classes - 1)
        counted &= weight[valid] != 0
    valid = flat[(flat >= 0) & (flat < classes)]
    present = valid.bincount(minlength=classes)
    counting = flat[counted & (flat >= 0) & (flat < classes)].bincount(
        minlength=classes
    )
    lost = ((present > 0) & (counting == 0)).nonzero().flatten().tolist()
    return {"counted": counted.float().mean().item(), "classes_lost": lost}


def counted_targets(call: Call, gradient: torch.Tensor | None) -> dict[str, Any]:
    """Count by class the targets of a loss call, and those that give a gradient.

    Args:
        call: one of a classification loss, with its scores and targets.
        gradient: that of the scores, of their shape.
    """
    tensors = [t.detach() for t in call.inputs[:2]]
    if gradient is None or len(tensors) < 2 or call.name not in _CLASSIFYING:
        return {}
    scores, target = tensors
    if call.name == "binary_cross_entropy_with_logits":
        whole = bool(((target == 0) | (target == 1)).all())
        if scores.shape != target.shape or not whole:
            return {}
        classes, silent = target.long(), gradient == 0
        right = scores * (2 * target - 1) > _SURE
    else:
        dim = 1 if scores.dim() > 1 else 0
        if target.dtype != torch.long or scores.shape[dim] < 2:
            return {}
        inside = (target >= 0) & (target < scores.shape[dim])
        classes, silent = target.clamp(0, scores.shape[dim] - 1), ~inside
        silent |= (gradient == 0).all(dim=dim)
        own = scores.gather(dim, classes.unsqueeze(dim)).squeeze(dim)
        right = scores.logsumexp(dim=dim) - own < math.exp(-_SURE)
    if bool((silent & right).any()):
        return {}  # what is right to the last digit gives none, and need not
    classes, counts = classes.flatten(), ~silent.flatten()
    most = int(classes.max()) + 1 if classes.numel() else 1
    return {
        "targets": classes.bincount(minlength=most).tolist(),
        "targets_counted": classes[counts].bincount(minlength=most).tolist(),
    }


_CLASSIFYING = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits")
_SURE = 10.0


def _is_padding(ignored: torch.Tensor) -> bool:
    """Whether ignored entries come in runs, as the padded ends of sequences do."""
    share = float(ignored.double().mean())
    if share in (0.0, 1.0):
        return False
    pairs = ignored[:-1]
    following = float(ignored[1:][pairs].double().mean()) if pairs.any() else 0.0
    return following > 0.5 + 0.5 * share


def _with_logits(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    scores = call.args[0] if call.args else call.kwargs["input"]
    inside = bool(((scores >= 0) & (scores <= 1)).all())
    return {"kind": "with_logits", "fed_probabilities": inside, **_shapes(call)}


def _pairing(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    target = [t for t in call.inputs[:2] if not bits_of(t)]
    comparable = x.dim() > 1 and len(x) >= 4 and bool(target)
    spread = (x - x.mean(dim=0)).abs().max() if comparable else torch.ones(())
    scale = x.abs().max() if x.numel() else torch.ones(())
    equal = bool(spread <= 4 * torch.finfo(x.dtype).eps * scale)
    return {"kind": "pairing", "rows_equal": equal, **_shapes(call, bits_of)}


def _shapes(call: Call, bits_of: Callable | None = None) -> dict[str, Any]:
    """Return the shapes of a pair and whether they are expanded against each other."""
    pair = [t for t in call.inputs[:2] if isinstance(t, torch.Tensor)]
    if len(pair) < 2:
        return {}
    a, b = (tuple(t.shape) for t in pair)
    column_against_flat = (
        len(a) != len(b) and _expand_mutually(a, b) and math.prod(a) == math.prod(b)
    )
    one_is_target = bits_of is None or any(not bits_of(t) for t in pair)
    return {
        "shapes": (a, b),
        "broadcast": column_against_flat and one_is_target,
    }


def _expand_mutually(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether each of two shapes is expanded: (N, 1) against (N,), with N over 1."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    first = any(x == 1 and y > 1 for x, y in zip(a, b, strict=True))
    second = any(y == 1 and x > 1 for x, y in zip(a, b, strict=True))
    return first and second


def _shift(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    """Whether a number other than zero is added, and lost, to the last digit."""
    facts = (
        {}
        if call.name.startswith(("add", "__add", "__radd"))
        else _pairing(call, x, y, bits_of)
    )
    numbers = [a for a in call.args if isinstance(a, (int, float)) and a]
    numbers += [t.item() for t in call.inputs if t.numel() == 1 and not bits_of(t)]
    if numbers and numbers[0] and x.shape == y.shape and bool((x == y).all()):
        facts["lost_shift"] = abs(numbers[0]) / largest_spacing(x)
    return facts


def _product(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    pair = [t.detach() for t in call.inputs[:2]]
    zero = [all_zero(t) for t in pair]
    constant_zero = any(
        z and not bits_of(t) for z, t in zip(zero, call.inputs[:2], strict=True)
    )
    both = len(pair) == 2 and all(bits_of(t) for t in call.inputs[:2])
    vary = [t for t in call.inputs[:2] if bits_of(t)]
    # A leaf is no prediction: frequencies times positions are meant as a table.
    made = len(vary) == 1 and not vary[0].is_leaf
    by_entry = "mul" in call.name and "matmul" not in call.name
    shapes = _shapes(call, bits_of) if made and by_entry else {}
    return {
        "shapes": shapes.get("shapes"),
        "broadcast_product": shapes.get("broadcast", False),
        "kind": "product",
        "zero_factors": zero,
        "constant_zero": constant_zero,
        "both_vary": both,
    }


def _quotient(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    """Whether a quantity that the variables decide stands below the line."""
    if call.name == "pow":
        exponent = call.args[1] if len(call.args) > 1 else call.kwargs["exponent"]
        return {"reciprocal": isinstance(exponent, (int, float)) and exponent < 0}
    if call.name in ("reciprocal", "__rdiv__", "__rtruediv__"):
        return {"reciprocal": y.numel() == 1}
    below = call.args[1]
    tensor = isinstance(below, torch.Tensor) and bool(bits_of(below))
    return {"reciprocal": tensor and below.numel() == 1 and y.numel() == 1}


def _exponential(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    return {"underflows": all_zero(y)}


def largest_spacing(values: torch.Tensor) -> float:
    """Return the distance from the largest entry to the next number of its format."""
    return float(ulp(values.detach().abs().max()))


_FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "relu": _rectifier,
    "threshold": _rectifier,
    "exp": _exponential,
    "sigmoid": _flat_by_slope("sigmoid", lambda y: 4 * y * (1 - y)),
    "tanh": _flat_by_slope("tanh", lambda y: 1 - y * y),
    "softmax": _softmax,
    "log_softmax": _softmax,
    "cross_entropy": _cross_entropy,
    "nll_loss": _cross_entropy,
    "binary_cross_entropy_with_logits": _with_logits,
    **dict.fromkeys(
        (
            "clamp",
            "clip",
            "hardtanh",
            "relu6",
            "clamp_min",
            "clamp_max",
            "hardsigmoid",
            "minimum",
            "maximum",
        ),
        _clamp,
    ),
    **dict.fromkeys(("add", "__add__", "__radd__", "sub", "__sub__"), _shift),
    **dict.fromkeys(
        (
            "reciprocal",
            "__rdiv__",
            "__rtruediv__",
            "pow",
            "__pow__",
            "div",
            "__truediv__",
            "true_divide",
        ),
        _quotient,
    ),
    **dict.fromkeys(
        (
            "mse_loss",
            "l1_loss",
            "smooth_l1_loss",
            "huber_loss",
            "rsub",
            "__rsub__",
            "kl_div",
            "soft_margin_loss",
            "poisson_nll_loss",
            "gaussian_nll_loss",
            "hinge_embedding_loss",
            "subtract",
        ),
        _pairing,
    ),
    **dict.fromkeys(
        (
            "mul",
            "__mul__",
            "matmul",
            "__matmul__",
            "linear",
            "bmm",
            "mm",
            "multiply",
            "__rmul__",
        ),
        _product,
    ),
}

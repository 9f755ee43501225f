"""Rules for steps that are connected and still get nowhere: landscape and chance.

They compare losses at moved values of the variables, on the same draws of batches and
random numbers. Each ends in a trial: where the repair does not help, nothing is said.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.chance import noise
from shared.diagnose.curvature import Curvature, curvature
from shared.diagnose.dead_ends import (
    constant,
    dead_rectifier,
    explain_dead,
    explain_saturated,
    out_of_support,
    saturated_call,
)
from shared.diagnose.jumps import jumps
from shared.diagnose.loss_faults import wrong_way
from shared.diagnose.observation import (
    STEPS_IN_DETAIL,
    Observation,
    cosine,
    helps,
    norm,
)
from shared.diagnose.repairs import (
    Repair,
    ScaledUpdate,
)
from shared.diagnose.report import Evidence, Finding, Note
from shared.diagnose.structure import (
    nearly_collapsed,
    structure,
    vanishing_in_recurrence,
)
from shared.diagnose.torch_calls import NEVER_BELOW_ZERO, SUMS, all_zero
from shared.diagnose.trials import OutOfBudget
from shared.diagnose.watch import Level

DISTANCES = (0.01, 0.1, 1.0, 10.0, 100.0, 1e3)
"""Multiples of one update at which the loss is probed along it."""

MUCH_WORSE = 3.0
"""Rise of the loss, over what it was, from which the steps are looked at first."""

AGAINST = 0.05
"""Cosine of update and negative gradient from which an update goes down, if small."""

FARTHEST = 1e9
"""Up to which multiple the search goes on, as long as the loss falls."""


def progress(seen: Observation) -> Iterator[Finding]:
    """Give why the loss does not fall, if it does not."""
    try:
        found = list(_progress(seen))
    except OutOfBudget:
        found = []
        seen.skipped.append("probes of the landscape (no steps left)")
    if not found:
        found = list(vanishing_in_recurrence(seen)) or list(nearly_collapsed(seen))
        if found:  # what looks like a minimum is all that the last inputs give
            seen.notes[:] = [n for n in seen.notes if n.cause != Cause.at_minimum]
    yield from found


def _progress(seen: Observation) -> Iterator[Finding]:
    if seen.fall < -MUCH_WORSE:
        found = list(_scale(seen))
        yield from found
        if found:
            return
    found = list(structure(seen)) or list(noise(seen)) or list(wrong_way(seen))
    yield from found
    if found:
        return
    found = list(jumps(seen))
    yield from found
    if found:
        return
    if seen.learns:
        yield from _dies(seen)
        return
    for rule in _RULES:
        found = list(rule(seen))
        yield from found
        if found or any(n.cause == Cause.at_minimum for n in seen.notes):
            return
    died = list(_dies(seen))
    yield from died
    if not died and seen.fall > 0:
        seen.notes.append(Note("The loss falls slowly, and steadily."))


def _dies(seen: Observation) -> Iterator[Finding]:
    """Give rectifiers that work at first, and are off for good after some steps."""
    if seen.module is None or not seen.trials.steps_left:
        return
    # What lies right before a dead one has a gradient of zeros alone.
    if not any(g is not None and all_zero(g) for g in seen.records[-1].fresh()):
        return
    last = seen.trials.run(1, Level.EVERYTHING, values=seen.end)
    end = dead_rectifier(last[0])
    if end is not None and dead_rectifier(seen.records[0]) is None:
        yield from explain_dead(seen, end)


# -- flat ------------------------------------------------------------------------------


def _flat(seen: Observation) -> Iterator[Finding]:
    """Give why the loss is the same wherever one goes."""
    unseen = any(p.facts.get("underflows") for p in seen.passages)
    if seen.loss_is_constant:
        stale = max(seen.fresh_largest, default=0.0) > 1e-5 * max(
            abs(seen.losses[0]), 1e-3
        )
        if not any(seen.in_values) or (stale and _bit_constant(seen)):
            yield _stale(
                seen, "loss at distances of 0.001 to 10 sizes of the variables"
            )
        elif unseen:
            yield out_of_support(seen, "exp")
        else:
            yield constant(seen)
    elif _kept_result(seen):
        yield _stale(seen, "loss in every watched step")
    elif seen.loss_is_nearly_constant:
        lower = unseen or seen.lower_elsewhere is not None
        off = seen.gradient_is_zero and lower
        yield out_of_support(seen) if off else constant(seen)


def _unseen_slope(seen: Observation) -> Iterator[Finding]:
    """Give a slope of the loss where backward says that there is none.

    The odd part of a smooth loss grows with the distance at a slope, and with its cube
    where the gradient is zero.
    """
    arrived = [c for c in seen.backwards if any(f is not None for f in c.fresh)]
    if not seen.backwards or seen.is_random or (arrived and not seen.gradient_is_zero):
        return
    odd = {}
    for radius in (1e-3, 3e-3):
        direction = seen.random_direction(7)
        ahead, behind = seen.along(direction, (radius, -radius)).values()
        odd[radius] = ahead - behind
    near, far = odd.values()
    least = 1e-5 * seen.loss_scale
    if not (abs(near) > least and 2.4 < far / near < 3.6):
        return
    yield Finding(
        Cause.graph_detached,
        0.9,
        (
            Evidence("largest gradient entry", 0, "above 0"),
            Evidence(
                "loss 0.003 sizes ahead, less that as far behind", far, "0, by backward"
            ),
            Evidence("the same at 0.001 sizes", near, "a third of it, at a slope"),
        ),
        (),
        "The loss has a slope here, and backward gives zero or nothing: a call on the "
        "way, such as a custom autograd.Function, does not pass its gradient back.",
        "torch.autograd.gradcheck(Function.apply, x.double())  # backward must return "
        "the gradient, not None",
    )


def _kept_result(seen: Observation) -> bool:
    """Whether the loss stays to the bit while the variables move on.

    A trial that starts where they ended gives another loss: the step keeps a result
    that it computed in its first call.
    """
    if len(seen.losses) < STEPS_IN_DETAIL or not any(seen.moves) or seen.is_random:
        return False
    if not all(seen.same_loss_exactly(loss) for loss in seen.losses):
        return False
    return not seen.same_loss(seen.trials.loss_at(seen.end))


def _bit_constant(seen: Observation) -> bool:
    return all(seen.same_loss_exactly(loss) for loss in seen.around.values())


def _stale(seen: Observation, where: str) -> Finding:
    return Finding(
        Cause.variable_not_used,
        0.95,
        (
            Evidence(where, "the same to the bit", "changing"),
            Evidence("largest gradient entry", max(seen.fresh_largest), "-"),
        ),
        (),
        "The variables get a gradient, and the loss does not depend on their values: "
        "it is computed from what they were before, in a copy or an earlier result.",
        "loss = objective(x)  # all of it inside the step, from x as it is now",
    )


def _stationary(seen: Observation) -> Iterator[Finding]:
    """Give what kind of point it is, where the gradient is zero or tiny."""
    if not seen.backwards or not _is_stationary(seen):
        return
    bend = curvature(seen)
    products = [
        p
        for p in seen.passages
        if p.facts.get("kind") == "product"
        and p.facts["both_vary"]
        and seen.gradient_is_zero
        and any(p.facts["zero_factors"])
        and p.gradient_out
        and not p.gradient_in
    ]
    coincide = any(
        s.dim() > 1 and len(s) > 1 and bool((s == s[:1]).all())
        for s in seen.trials.start
    )
    # Zero factors that come out of clamps which are off stay zero nearby.
    cut_off = any(
        p.facts.get("outside") == 1.0 or p.facts.get("off") == 1.0
        for p in seen.passages
    )
    if products and cut_off and seen.lower_elsewhere is not None:
        yield out_of_support(seen)
        return
    flat_near = seen.same_loss(seen.around[1e-3]) and seen.same_loss(
        seen.losses_around(radii=(1e-2,))[1e-2]
    )
    goes_down = bend.gain > 1e-5 * seen.loss_scale and bend.lowest < 0
    bends_down = bend.lowest * bend.unit**2 < -1e-4 * seen.loss_scale
    if (
        flat_near
        and not bends_down
        and not products
        and seen.lower_elsewhere is not None
    ):
        flat = saturated_call(seen)
        if flat is None:
            yield out_of_support(seen)
        else:
            yield from explain_saturated(seen, flat)
        return
    if flat_near and not goes_down and not products and _far_above_zero(seen):
        yield out_of_support(seen)
        return
    if not goes_down:
        if seen.lower_elsewhere is not None and products:
            yield _degenerate(seen, bend)
        else:
            _note_minimum(seen, bend)
        return
    evidence = (
        Evidence("norm of the gradient", seen.gradient_norm, "above 0"),
        Evidence("lowest curvature", bend.lowest, "0 or above, at a minimum"),
        Evidence("highest curvature", bend.highest, "-"),
        Evidence(
            "loss along the lowest curvature",
            f"{seen.losses[0]:.3g} -> {seen.losses[0] - bend.gain:.3g}",
            "rising",
        ),
    )
    saddle = Finding(
        Cause.saddle_point,
        0.9,
        evidence,
        (),
        "The gradient is zero, or nearly, and the loss bends down in some direction: "
        "this is a saddle, and plain steps leave it slowly or not at all.",
        "with torch.no_grad():\n    x.add_(1e-2 * torch.randn_like(x))  # once: break "
        "the tie",
    )
    stationary = Finding(
        Cause.stationary_not_minimum,
        0.9,
        evidence,
        (),
        (
            "The gradient is exactly zero"
            if seen.gradient_is_zero
            else "The gradient is next to zero"
        )
        + ", and lower losses lie next to this point: it is "
        "no minimum. "
        + (
            "Two factors are zero, and each blocks the other's gradient."
            if products
            else "It is a maximum, or a degenerate point."
        ),
        "torch.nn.init.normal_(factor, std=1e-2)  # let not all factors start at zero",
    )
    mixed = bend.highest > 0.02 * abs(bend.lowest)
    exact = seen.gradient_is_zero
    if exact and (products or coincide or not mixed):
        yield stationary
        yield saddle
    else:
        yield saddle
        yield stationary


def _far_above_zero(seen: Observation) -> bool:
    """Whether a sum of squares or absolute values is flat here, and not near zero.

    It has a floor that is known; where it is reached, a flat piece is a minimum.
    """
    names = [p.name for p in reversed(seen.ways[0].passages)] if seen.ways else []
    summed = next((name for name in names if name not in SUMS), "")
    flat = seen.same_loss(seen.around[1e-1])
    highest = max(map(abs, filter(math.isfinite, seen.around.values())), default=0.0)
    return flat and summed in NEVER_BELOW_ZERO and seen.losses[0] > 1e-3 * highest


def _degenerate(seen: Observation, bend: Curvature) -> Finding:
    return Finding(
        Cause.stationary_not_minimum,
        0.85,
        (
            Evidence("norm of the gradient", seen.gradient_norm, "above 0"),
            Evidence("lowest curvature", bend.lowest, "-"),
            Evidence(
                "loss here, and the lowest found around",
                f"{seen.losses[0]:.3g}, {seen.lower_elsewhere:.3g}",
                "-",
            ),
        ),
        (),
        "The gradient is exactly zero because several factors are zero at once, and "
        "lower losses lie further off: this is no minimum.",
        "torch.nn.init.normal_(factor, std=1e-1)  # let not all factors start at zero",
    )


def _is_stationary(seen: Observation) -> bool:
    """Whether by the gradient a move of the variables' size gains next to nothing."""
    if seen.gradient_is_zero:
        return True
    slope = seen.gradient_norm * math.hypot(*seen.sizes)
    return slope < 1e-4 * seen.loss_scale * seen.root_share


def _note_minimum(seen: Observation, bend: Curvature | None = None) -> None:
    lowest = "" if bend is None else f" Lowest curvature found: {bend.lowest:.3g}."
    seen.notes.append(
        Note(
            f"The gradient's norm is {seen.gradient_norm:.3g}, and no probe finds a "
            f"lower loss nearby: this is a minimum.{lowest}",
            Cause.at_minimum,
        )
    )


# -- the size and the sign of the step -------------------------------------------------


def _scale(seen: Observation) -> Iterator[Finding]:
    """Give whether updates are far too small or large, or point the wrong way."""
    update = seen.first_update
    if not norm(update) or not math.isfinite(norm(update)):
        return
    start = seen.progress[0]
    along = {0.0: start} | seen.along(update, DISTANCES)
    farthest = DISTANCES[-1]
    while farthest < FARTHEST and along[farthest] == min(along.values()) < start:
        farthest *= 10
        along |= seen.along(update, (farthest,))
    known = {c: x for c, x in along.items() if math.isfinite(x)}
    best = min(known, key=known.get)
    gain = start - known[best]
    small = [known[c] for c in (0.01, 0.1) if c in known]
    scale = max(abs(start), 1e-12)
    against = cosine(seen.first_update, [-g for g in seen.gradient])
    if best == 0.0 and against > AGAINST and along[0.01] > start:
        yield from _too_large(seen, along, start)
        return
    if best == 0.0:
        yield from _wrong_sign(seen, along, start, against)
        return
    if gain <= 1e-4 * scale:
        return
    if best >= 100 and start - seen.progress[1] < 0.05 * gain:
        yield from _too_small(seen, best, along)
    elif min(small) < start or best <= 1:
        yield from _too_large(seen, along, start)


def _wrong_sign(
    seen: Observation, along: dict[float, float], start: float, against: float
) -> Iterator[Finding]:
    rises = along[0.01] > start or along[0.1] > start
    if not rises:
        return
    proof = seen.prove("the update turned around", ScaledUpdate(seen.tensors, -1.0))
    if not helps(proof, 0.0) or not proof.with_repair[-1] < proof.with_repair[0]:
        return
    yield Finding(
        Cause.wrong_sign,
        0.95,
        (
            Evidence(
                "cosine of update and negative gradient of what backward starts from",
                against,
                "about 1",
            ),
            Evidence(
                "loss after 0.01 of one update", along[0.01], f"below {start:.3g}"
            ),
            Evidence("loss after one update", along[1.0], f"below {start:.3g}"),
        ),
        (),
        "Every update raises the loss, however small it is made: it goes the wrong "
        "way.",
        "x -= learning_rate * x.grad  # minus to minimize; loss = -score to maximize",
        proof,
    )


def _too_small(
    seen: Observation, best: float, along: dict[float, float]
) -> Iterator[Finding]:
    factor = best / 10
    proof = seen.prove(
        f"updates {factor:g} times as large", ScaledUpdate(seen.tensors, factor)
    )
    if not helps(proof, 0.01):
        return
    yield Finding(
        Cause.step_too_small,
        0.9,
        (
            Evidence(
                "update that a search along it asks for, over the one made",
                best,
                "about 1 to 30",
            ),
            Evidence(
                "share of the loss gone after the watched steps",
                seen.fall,
                "above 0.03",
            ),
            Evidence(
                "change over size of the variables", _relative(seen), "0.0001 to 0.1"
            ),
        ),
        (),
        "The updates point the right way and are far too small: one of them, made "
        f"{best:g} times as long, would gain more than all of them.",
        "optimizer = torch.optim.SGD(parameters, lr=larger)  # or a smaller eps in "
        "Adam, a larger loss scale",
        proof,
    )


def _relative(seen: Observation) -> float:
    return norm(seen.first_update) / max(norm(seen.trials.start), 1e-12)


def _too_large(
    seen: Observation, along: dict[float, float], start: float
) -> Iterator[Finding]:
    for factor in (0.1, 0.01, 0.001):
        if along.get(factor, start) > start + abs(start):
            continue  # even so small, one update makes it far worse
        repair = ScaledUpdate(seen.tensors, factor)
        proof = seen.prove(f"updates {factor:g} times as large", repair, steps=12)
        if proof is None:
            return
        after = proof.with_repair[-1]
        falls = proof.with_repair[0] - after > 0.01 * max(abs(start), 1e-12)
        if helps(proof, 0.01) and falls and not seen.is_random:
            break
        if seen.is_random and _falls_pinned(seen, repair):
            break
    else:
        return
    yield Finding(
        Cause.lr_too_large,
        0.9,
        (
            Evidence(
                "loss before and after the watched steps",
                f"{start:.3g} -> {seen.progress[1]:.3g}",
                "falling",
            ),
            Evidence("loss after one whole update", along[1.0], f"below {start:.3g}"),
            Evidence(
                f"loss after {factor:g} of it",
                along.get(factor, math.nan),
                f"below {start:.3g}",
            ),
        ),
        (),
        "The updates point the right way and overshoot: smaller ones lower the loss, "
        "these do not.",
        f'for group in optimizer.param_groups:\n    group["lr"] *= {factor:g}',
        proof,
    )


def _falls_pinned(seen: Observation, repair: Repair) -> bool:
    """Whether a repair lowers the mean loss over the draws that are probed."""
    records = seen.trials.run(12, repair.level, repair)
    after = seen.trials.loss_at(_ends_of(records, seen))
    return seen.progress[0] - after > 0.01 * max(abs(seen.progress[0]), 1e-12)


def _ends_of(records: Sequence, seen: Observation) -> list[torch.Tensor]:
    return [v.detach().clone() for v in seen.tensors]


_RULES: tuple[Callable[[Observation], Iterator[Finding]], ...] = (
    _flat,
    _unseen_slope,
    _stationary,
    _scale,
)

"""Rules about numbers: NaN, updates that round away, gradients lost in float16.

They are exact, in units of the format's last digit, and come before any probe.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.flow import Passage
from shared.diagnose.observation import Observation, helps
from shared.diagnose.repairs import RightUpdate, ScaledLoss
from shared.diagnose.report import Evidence, Finding, Proof
from shared.diagnose.torch_calls import all_zero
from shared.diagnose.watch import StepRecord
from shared.diagnose.wiring import due_update
from shared.probes import ulp

LOSS_SCALE = 2.0**16


def not_a_number(seen: Observation) -> Iterator[Finding]:
    """Give the call at which a NaN or an infinity is born, if one is there at once."""
    first = seen.records[0]
    fresh = [g for r in seen.records[:2] for g in r.fresh() if g is not None]
    broken = any(not torch.isfinite(g).all() for g in fresh)
    if not broken and (math.isfinite(first.loss) or first.error is not None):
        return
    if _grew_first(seen):
        return
    where = next((p for p in reversed(seen.passages) if _ends_finite(p)), None)
    name = where.name if where is not None else "the forward pass"
    masked = any(p.facts.get("counted") == 0.0 for p in seen.passages)
    if masked:
        yield Finding(
            Cause.targets_masked_out,
            1.0,
            (
                Evidence("targets that count", 0, "all but padding"),
                Evidence("loss (a mean over no targets)", first.loss, "a number"),
            ),
            (),
            "The loss ignores every target: its mean is zero divided by zero.",
            "loss_fn = torch.nn.CrossEntropyLoss(ignore_index=-100)  # no class",
        )
        return
    finite_loss = math.isfinite(first.loss)
    which = [
        i
        for i in seen.everything
        if any(
            g is not None and not torch.isfinite(g).all()
            for g in [r.fresh()[i] for r in seen.records[:2]]
        )
    ]
    yield Finding(
        Cause.nan_gradient,
        1.0,
        (
            Evidence("first loss", first.loss, "a finite number"),
            Evidence(
                "variables with NaN or infinite gradient",
                f"{len(which)} of {len(seen.variables)}",
                "0",
            ),
            Evidence("call whose derivative is not finite here", name, "none"),
        ),
        seen.names(which),
        (
            "The loss is finite and its gradient is not: "
            if finite_loss
            else "Loss and gradient are not finite from the start: "
        )
        + f"at this point the derivative of {name}() does not exist or is infinite.",
        "torch.sqrt(x.clamp_min(1e-12))  # keep away from the point: sqrt(0), log(0), "
        "0/0",
    )


def _grew_first(seen: Observation) -> bool:
    """Whether the loss grew before it broke: steps that overshoot, not a bad point."""
    losses = seen.losses
    if not losses or not math.isfinite(losses[0]):
        return False
    first = seen.records[0].fresh()
    return all(g is None or bool(torch.isfinite(g).all()) for g in first)


def _ends_finite(passage: Passage) -> bool:
    after, before = passage.gradient_out, passage.gradient_in
    return (
        after is not None
        and before is not None
        and math.isfinite(after)
        and not math.isfinite(before)
    )


def precision(seen: Observation) -> Iterator[Finding]:
    """Give updates that round away, and gradients that half precision loses."""
    yield from _lost_difference(seen)
    yield from _rounds_by_hand(seen)
    yield from _rounds_away(seen)
    yield from _underflows(seen)


def _lost_difference(seen: Observation) -> Iterator[Finding]:
    """Give a difference quotient whose shift is lost: x + epsilon is x."""
    if seen.backwards or any(seen.moves):
        return
    lost = max(
        (max(r.lost_shift, r.largest_addition) for r in seen.detailed), default=0.0
    )
    if not lost:
        return
    yield Finding(
        Cause.update_below_precision,
        0.9,
        (
            Evidence(
                "shift of the variable, in spacings of its numbers",
                lost,
                "far above 0.5",
            ),
            Evidence("backward calls", 0, "-"),
        ),
        (),
        "The step adds a number to the variable and gets the variable back: the number "
        "is under half a spacing of the format, so the sum rounds to what was there.",
        "epsilon = torch.finfo(x.dtype).eps ** (1 / 3) * x.abs()  # or x.double()",
    )


def _rounds_by_hand(seen: Observation) -> Iterator[Finding]:
    """Give updates that the step itself puts on a grid, back to where they began."""
    late = [r for r in seen.records[len(seen.records) // 2 :] if r.after]
    if not any(r.update_rounded for r in seen.detailed) or not late:
        return
    largest = max(
        (float(g.abs().max()) for g in late[-1].fresh() if g is not None), default=0.0
    )
    if any(any(r.moved()) for r in late) or not largest > 0:
        return
    yield Finding(
        Cause.update_below_precision,
        0.95,
        (
            Evidence("largest gradient entry", largest, "above 0"),
            Evidence("entries that changed in the last watched steps", 0, "all"),
            Evidence("the update is rounded before it is written", "yes", "no"),
        ),
        (),
        "The step rounds what it writes to the variables, and every update is smaller "
        "than half a step of that grid: it rounds to what was there, again and again.",
        "wanted = x - learning_rate * x.grad + rest  # keep what rounding leaves\n"
        "x.copy_(snap(wanted))\nrest = wanted - x",
    )


def _rounds_away(seen: Observation) -> Iterator[Finding]:
    rounded = [i for i in seen.everything if _mostly_rounded(seen, i)]
    if not rounded or (seen.learns and len(rounded) < len(seen.trainable)):
        return
    like = next(iter(seen.held_by(rounded[0])), None)
    shares = [_largest_in_spacings(seen, i) for i in rounded]
    evidence = (
        Evidence(
            "largest update, in spacings of the stored number",
            max(shares),
            "at least 0.5",
        ),
        Evidence("format", str(seen.tensors[rounded[0]].dtype), "one with more digits"),
        Evidence("size of the variable", seen.sizes[rounded[0]], "-"),
    )
    proof = None
    if like is not None:
        proof = seen.prove(
            "variables kept in float64",
            RightUpdate(seen.tensors, rounded, like, in_float64=True),
            steps=20,
        )
    rate = max((r for u in seen.updates for r in u.rates), default=math.nan)
    if not helps(proof, 1e-4) and rate >= 1e-9 and not _grid_too_coarse(seen, rounded):
        return  # the updates round away, and nothing is lost with them
    if rate < 1e-9 and not helps(proof, 1e-4):
        larger = RightUpdate(seen.tensors, rounded, like, rate=1e-2)
        yield Finding(
            Cause.lr_zero,
            0.9,
            (Evidence("learning rate", rate, "about 0.001 to 0.1"), *evidence[:1]),
            seen.names(rounded),
            "The learning rate is so small that it is zero in effect: no update "
            "reaches the last digit of a variable.",
            'for group in optimizer.param_groups:\n    group["lr"] = 1e-2',
            seen.prove("learning rate 0.01", larger) if like is not None else None,
        )
        return
    yield Finding(
        Cause.update_below_precision,
        0.95,
        evidence,
        seen.names(rounded),
        "Each update is smaller than half the distance to the next number that the "
        "variable can hold, so it rounds to nothing, in every step again.",
        "model.float()  # keep the variables in float32 (or x - offset instead of x), "
        "and compute in the short format",
        proof,
    )


def _grid_too_coarse(seen: Observation, which: Sequence[int]) -> bool:
    """Whether the next numbers against the gradient lie far beyond what is wanted.

    Then the loss has a slope here, and is higher there: its minimum lies between two
    numbers that the format can hold.
    """
    next_ones = [
        -seen.gradient[i].sign() * ulp(start).double()
        if i in which
        else torch.zeros_like(start, dtype=torch.float64)
        for i, start in enumerate(seen.trials.start)
    ]
    there = seen.trials.loss_at(seen.trials.moved(next_ones))
    return there - seen.losses[0] > 0.1 * abs(seen.losses[0])


def _mostly_rounded(seen: Observation, i: int) -> bool:
    """Whether most entries stay although an update is due."""
    if not seen.fresh_largest[i] > 0:
        return False
    # Asked first: in a healthy training the first update settles it.
    due, stays = _due_and_staying(seen.records[0], i)
    if stays < 0.5 * due:
        return False
    # In a short format the smaller entries may still move: where nothing is learned
    # for it, most is enough.
    short = torch.finfo(seen.tensors[i].dtype).bits == 16 and not seen.learns
    size_of = _median_of if short else _largest_of
    if any(size_of(sizes) >= 1 for sizes in _updates_in_spacings(seen, i)):
        return False
    counts = [_due_and_staying(record, i) for record in seen.records]
    due, stays = (sum(count) for count in zip(*counts, strict=True))
    share = 0.5 if short else 0.9
    return due > 0 and stays / due > share and _largest_in_spacings(seen, i) > 0


def _due_and_staying(record: StepRecord, i: int) -> tuple[int, int]:
    """Return how many entries of a variable have a gradient, and how many stay."""
    gradient = record.fresh()[i]
    if gradient is None or not record.after:
        return 0, 0
    wanted = gradient != 0
    still = record.before[i] == record.after[i]
    return int(wanted.count_nonzero()), int((wanted & still).count_nonzero())


def _largest_of(sizes: torch.Tensor) -> float:
    return float(sizes.max())


def _median_of(sizes: torch.Tensor) -> float:
    return float(sizes.median())


def _largest_in_spacings(seen: Observation, i: int) -> float:
    return max(map(_largest_of, _updates_in_spacings(seen, i)), default=0.0)


def _updates_in_spacings(seen: Observation, i: int) -> Iterator[torch.Tensor]:
    """Give the size of each due update, in spacings of the stored numbers."""
    for update in seen.updates:
        gradient = update.at_entry[i]
        if i not in update.holds or gradient is None:
            continue
        size = due_update(update.optimizer, seen.tensors[i], gradient)
        yield size / ulp(update.before[i])
    if not seen.updates:
        yield torch.tensor(_own_update_in_spacings(seen, i))


def _own_update_in_spacings(seen: Observation, i: int) -> float:
    """Return the same for an update that the step adds by hand, and that is lost."""
    if any(r.moved()[i] for r in seen.records if r.after):
        return 0.0
    return max((record.additions.get(i, 0.0) for record in seen.detailed), default=0.0)


def _underflows(seen: Observation) -> Iterator[Finding]:
    if not any(call.in_half for call in seen.backwards):
        return
    lost = list(_lost_in_copies(seen))
    if lost:
        yield from lost
        return
    zero = [
        i for i in seen.trainable if seen.in_graph[i] and _zero_share(seen, i) > 0.9
    ]
    if not zero:
        return
    repair = RightUpdate(
        seen.tensors,
        zero,
        next(iter(seen.held_by(zero[0])), None),
        loss_scale=LOSS_SCALE,
    )
    records = seen.trials.run(3, repair.level, repair)
    found = [r.fresh()[i] for r in records for i in zero]
    share = [float((g != 0).double().mean()) for g in found if g is not None]
    if not share or max(share) < 0.1:
        return
    proof = seen.prove(f"loss times {LOSS_SCALE:.0f} in backward", repair)
    if seen.learns and not helps(proof, 0.05):
        return
    largest = max(float(g.abs().max()) for g in found if g is not None) / LOSS_SCALE
    yield _underflow(largest, zero, seen, proof)


def _lost_in_copies(seen: Observation) -> Iterator[Finding]:
    """Give gradients that float16 copies of the variables lose on the way back."""
    leaves = {id(leaf): leaf for way in seen.ways for leaf in way.other_leaves}
    copies = [leaf for leaf in leaves.values() if leaf.dtype == torch.float16]
    if not copies or any(way.reached_by_graph for way in seen.ways):
        return
    seen.trials.run(1)
    if not all(leaf.grad is not None and all_zero(leaf.grad) for leaf in copies):
        return
    seen.trials.run(1, repair=ScaledLoss(LOSS_SCALE))
    found = [float(leaf.grad.abs().max()) for leaf in copies if leaf.grad is not None]
    if max(found, default=0.0) > 0:
        yield _underflow(max(found) / LOSS_SCALE, seen.everything, seen, None)


def _underflow(
    largest: float, which: Sequence[int], seen: Observation, proof: Proof | None
) -> Finding:
    return Finding(
        Cause.fp16_underflow,
        1.0,
        (
            Evidence("largest gradient entry in float16", 0, "above 0"),
            Evidence(
                "the same with the loss scaled up, scale divided out",
                largest,
                "above 6e-8, the smallest number of float16",
            ),
        ),
        seen.names(which),
        "The gradients are smaller than the smallest number of float16 and become zero "
        "on the way back. Scaled up they are there.",
        "scaler = torch.amp.GradScaler()\nscaler.scale(loss).backward()\n"
        "scaler.step(optimizer)\nscaler.update()",
        proof,
    )


def _zero_share(seen: Observation, i: int) -> float:
    found = [r.fresh()[i] for r in seen.records[:3]]
    shares = [float((g == 0).double().mean()) for g in found if g is not None]
    return min(shares, default=0.0)

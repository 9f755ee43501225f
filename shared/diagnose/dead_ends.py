"""Rules about gradients that are NaN, lost in a number format, or exactly zero.

A zero gradient ends in one call: the gradient of its output is there, that of its input
is not. The kind of that call, and what it was given, name the cause.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.flow import Passage
from shared.diagnose.observation import LENGTHS, Observation, helps
from shared.diagnose.repairs import (
    OtherCalls,
    RightUpdate,
    ScaledLoss,
    leaky,
    pass_straight_through,
)
from shared.diagnose.report import Evidence, Finding, Note, Proof
from shared.diagnose.torch_calls import STEP_FUNCTIONS, all_zero
from shared.diagnose.watch import Level, StepRecord
from shared.diagnose.wiring import due_update
from shared.probes import ulp

LOSS_SCALE = 2.0**16

PART = 0.1
"""Share of a module's entries that is too much to get no gradient on purpose."""

FEW = 16
"""Up to how many numbers are searched for finely: positions, angles, sizes."""
FINE_LENGTHS = tuple(0.1 * 1.16**k for k in range(40))
"""Lengths of the moves of few numbers: what they should meet may be small."""


# -- NaN ------------------------------------------------------------------------------


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


# -- number formats -------------------------------------------------------------------


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
    if not helps(proof, 1e-4) and rate >= 1e-9:
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


def _mostly_rounded(seen: Observation, i: int) -> bool:
    """Whether most entries stay although an update is due."""
    if not seen.fresh_largest[i] > 0:
        return False
    # Asked first: in a healthy training one update settles it.
    if any(size >= 1 for size in _updates_in_spacings(seen, i)):
        return False
    stays, due = 0.0, 0.0
    for record in seen.records:
        gradient = record.fresh()[i]
        if gradient is None or not record.after:
            continue
        wanted = gradient != 0
        still = record.before[i] == record.after[i]
        due += float(wanted.sum())
        stays += float((wanted & still).sum())
    return due > 0 and stays / due > 0.9 and _largest_in_spacings(seen, i) > 0


def _largest_in_spacings(seen: Observation, i: int) -> float:
    return max(_updates_in_spacings(seen, i), default=0.0)


def _updates_in_spacings(seen: Observation, i: int) -> Iterator[float]:
    """Give the largest entry of each due update, in spacings of the stored number."""
    for update in seen.updates:
        gradient = update.at_entry[i]
        if i not in update.holds or gradient is None:
            continue
        size = due_update(update.optimizer, seen.tensors[i], gradient)
        yield float((size / ulp(update.before[i])).max())
    if not seen.updates:
        yield _own_update_in_spacings(seen, i)


def _own_update_in_spacings(seen: Observation, i: int) -> float:
    """Return the same for an update that the step adds by hand, and that is lost."""
    if any(r.moved()[i] for r in seen.records if r.after):
        return 0.0
    return max((record.largest_addition for record in seen.detailed), default=0.0)


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


# -- exact zeros ----------------------------------------------------------------------


def dead_ends(seen: Observation) -> Iterator[Finding]:
    """Give the call in which the gradient ends, and why."""
    layer = _dead_layer(seen)
    if layer is not None:
        yield from explain_dead(seen, layer)
        return
    if not seen.gradient_is_zero:
        yield from _partly_dead(seen)
        return
    for end in (*_ends(seen), *_own_rectifiers(seen)):
        cause = _cause_of(seen, end)
        if cause is not None:
            yield from _EXPLAIN[cause](seen, end)
            return


def _partly_dead(seen: Observation) -> Iterator[Finding]:
    """Give a call with steps behind which some of the variables get only zeros.

    The others may learn, with what these happen to give them.
    """
    which = [
        i
        for i in seen.everything
        if seen.in_graph[i] and seen.fresh_largest[i] == 0 and not _waits(seen, i)
    ]
    if seen.module is not None and seen.share_of_entries(which) < PART:
        return
    zero = sum(1 << i for i in which)
    for end in _ends(seen):
        alone = end.from_variables and not end.from_variables & ~zero
        if alone and end.name in STEP_FUNCTIONS:
            yield from _explain_steps(seen, end)
            return


def _waits(seen: Observation, i: int) -> bool:
    """Whether no optimizer is meant to move a variable now."""
    return bool(seen.optimizers) and not seen.stepped[i]


def _ends(seen: Observation) -> list[Passage]:
    """Return the calls whose output has a gradient and whose input has none."""
    return [
        p
        for p in seen.passages
        if p.gradient_out and math.isfinite(p.gradient_out) and not p.gradient_in
    ]


def _own_rectifiers(seen: Observation) -> list[Passage]:
    """Return rectifiers of the variables themselves that are off altogether.

    Two of them as factors of a product block each other: neither sees a gradient.
    """
    return [
        p
        for p in seen.passages
        if p.own and p.facts.get("kind") == "rectifier" and p.facts["off"] == 1.0
    ]


def _cause_of(seen: Observation, end: Passage) -> Cause | None:
    kind = end.facts.get("kind")
    if end.name in STEP_FUNCTIONS:
        return Cause.nondifferentiable_op
    if kind in ("softmax", "log_softmax") and end.facts["classes"] == 1:
        return Cause.constant_objective
    if kind in ("softmax", "log_softmax", "sigmoid", "tanh"):
        return Cause.saturated_activation if end.facts["exactly_flat"] > 0.5 else None
    if kind == "cross_entropy" or end.name in _SATURATING:
        return Cause.saturated_activation
    if kind == "rectifier":
        dead = end.facts["after_layer"] or end.own
        return Cause.dead_relu if dead else Cause.out_of_support
    if kind == "clamp":
        everything = end.facts["two_sided"] and end.facts["outside"] == 1.0
        own = everything or end.direct
        return Cause.clamped_at_bound if own else Cause.out_of_support
    if kind == "product" and end.facts["constant_zero"]:
        return Cause.frozen_parameters if end.direct else Cause.targets_masked_out
    return None


_SATURATING = frozenset(
    [
        "logsigmoid",
        "softplus",
        "binary_cross_entropy_with_logits",
        "logsumexp",
        "erf",
        "atan",
        "arctan",
        "softsign",
        "gelu",
        "silu",
        "elu",
        "celu",
    ]
)


def _dead_layer(seen: Observation) -> Passage | None:
    """Return a rectifier that is off for all units and examples in all steps."""
    if seen.module is None:
        return None
    dead = [dead_rectifier(record) for record in seen.detailed]
    return dead[-1] if dead and all(dead) else None


def dead_rectifier(record: StepRecord) -> Passage | None:
    """Return a rectifier of a step that is off for all units and examples."""
    return next(
        (
            p
            for p in record.passages
            if p.facts.get("kind") == "rectifier"
            and p.facts["off"] == 1.0
            and p.facts["examples"] > 1
        ),
        None,
    )


def explain_dead(seen: Observation, end: Passage) -> Iterator[Finding]:
    """Give the finding, with its proof."""
    proof = seen.prove(
        "leaky rectifier (slope 0.1)",
        OtherCalls(dict.fromkeys(("relu", "relu_", "threshold"), leaky)),
    )
    yield Finding(
        Cause.dead_relu,
        1.0,
        (
            Evidence(
                "units of a layer that are off for every example",
                f"{100 * end.facts['units_off']:.0f} %",
                "0 to 50 %",
            ),
            Evidence("gradient behind the layer", end.gradient_in or 0.0, "above 0"),
        ),
        (),
        "A rectifier gives zero for every example, so its derivative is zero for every "
        "example, and nothing passes back to what lies before it. It cannot recover.",
        "torch.nn.LeakyReLU(0.1)  # or a smaller learning rate, and biases that start "
        "at 0",
        proof if helps(proof, 0.0) else None,
    )


def _explain_steps(seen: Observation, end: Passage) -> Iterator[Finding]:
    proof = seen.prove(
        f"gradient passed straight through {end.name}()",
        OtherCalls({end.name: pass_straight_through}),
    )
    yield Finding(
        Cause.nondifferentiable_op,
        1.0,
        (
            Evidence("call in which the gradient ends", end.name, "none"),
            Evidence("gradient of its output", end.gradient_out or 0.0, "above 0"),
            Evidence("gradient of its input", 0, "above 0"),
        ),
        (),
        f"{end.name}() is constant but for jumps: autograd gives its derivative, which "
        "is zero.",
        "y = x + (x.round() - x).detach()  # value of round, gradient of x",
        proof if helps(proof, 0.0) else None,
    )


def saturated_call(seen: Observation) -> Passage | None:
    """Return a softmax, sigmoid or tanh most of which is 0 or 1 to the last digit.

    Its derivative need not be zero: the smallest numbers of a format may be left.
    """
    return next(
        (
            p
            for p in seen.passages
            if p.facts.get("kind") in ("softmax", "log_softmax", "sigmoid", "tanh")
            and p.facts["exactly_flat"] > 0.5
            and p.facts.get("classes", 2) > 1
        ),
        None,
    )


def explain_saturated(seen: Observation, end: Passage) -> Iterator[Finding]:
    """Give the finding, or note a minimum where nothing lower is found."""
    squashes = end.facts.get("kind") in ("sigmoid", "tanh")
    if not _something_lower(seen, end if squashes else None):
        _note_minimum(seen)
        return
    kind = end.facts.get("kind", end.name)
    yield Finding(
        Cause.saturated_activation,
        0.95,
        (
            Evidence(
                f"share of {kind} outputs on the flat part",
                end.facts.get("exactly_flat", 1.0),
                "below 0.5",
            ),
            Evidence("gradient of its output", end.gradient_out or 0.0, "above 0"),
            Evidence("gradient of its input", end.gradient_in or 0.0, "above 0"),
        ),
        (),
        f"The {kind} is so far out that its value is 0 or 1 to the last digit. There "
        "its derivative is zero, whatever the loss asks for.",
        "loss = torch.nn.functional.cross_entropy(scores, target)  # of the scores, "
        "not of the probabilities;\nand keep the scores small: normalize the inputs",
    )


def _explain_clamp(seen: Observation, end: Passage) -> Iterator[Finding]:
    if not _something_lower(seen, end):
        _note_minimum(seen)
        return
    proof = seen.prove(
        "gradient passed through the clamp",
        OtherCalls({end.name: pass_straight_through}),
    )
    yield Finding(
        Cause.clamped_at_bound,
        0.95,
        (
            Evidence("share of entries outside the clamp", end.facts["outside"], "0"),
            Evidence("gradient of its output", end.gradient_out or 0.0, "above 0"),
            Evidence("gradient of its input", 0, "above 0"),
        ),
        (),
        f"Everything that {end.name}() is given lies outside its bounds, or on them. "
        "It returns the bound, and passes no gradient back.",
        "with torch.no_grad():\n    x.clamp_(low, high)  # project after the step, "
        "instead of a clamp inside the loss",
        proof if helps(proof, 0.0) else None,
    )


def _explain_support(seen: Observation, end: Passage) -> Iterator[Finding]:
    if not _something_lower(seen, end):
        _note_minimum(seen)
        return
    yield out_of_support(seen, end.name)


def out_of_support(seen: Observation, name: str | None = None) -> Finding:
    """Return the finding: flat here, not flat further away."""
    moved = [r for r, loss in seen.around.items() if not seen.same_loss(loss)]
    lower = seen.lower_elsewhere
    where = () if name is None else (Evidence("gradient ends in", name, "nowhere"),)
    return Finding(
        Cause.out_of_support,
        0.85,
        (
            Evidence("gradient", seen.gradient_norm, "above 0"),
            Evidence(
                "distance at which the loss first changes, in sizes of the variable",
                min(moved),
                "any",
            )
            if moved or lower is None
            else Evidence(
                "loss here, and the lowest found elsewhere",
                f"{seen.losses[0]:.3g}, {lower:.3g}",
                "-",
            ),
            *where,
        ),
        (),
        "The loss is flat around here: what is moved does not touch what it should "
        "match. Far enough away the loss does change.",
        "loss = (position - target).square().sum()  # a loss that feels the distance, "
        "or blur, or a start that overlaps",
    )


def _explain_masked(seen: Observation, end: Passage) -> Iterator[Finding]:
    own = end.direct
    yield Finding(
        Cause.frozen_parameters if own else Cause.targets_masked_out,
        0.95,
        (
            Evidence("entries of the mask that are not zero", 0, "some"),
            Evidence("gradient behind the mask", 0, "above 0"),
        ),
        (),
        "A constant tensor of zeros is multiplied with "
        + ("the variables themselves." if own else "what the loss compares.")
        + " Nothing can pass back through it.",
        "assert mask.any()  # and look at how it is made: mask = 1 - mask?",
    )


def _explain_constant(seen: Observation, end: Passage) -> Iterator[Finding]:
    yield constant(seen)


def constant(seen: Observation) -> Finding:
    """Return the finding: the loss is the same wherever one goes."""
    return Finding(
        Cause.constant_objective,
        0.95,
        (
            Evidence(
                "loss at distances of 0.001 to 10 sizes of the variables",
                "the same up to rounding",
                "changing",
            ),
            Evidence(
                "largest gradient entry",
                max((s for s in seen.fresh_largest), default=0.0),
                "above 0",
            ),
        ),
        (),
        "The objective uses the variables and does not depend on them: as a softmax "
        "over one value, or the sum of something that is normalized to that sum.",
        "torch.softmax(scores, dim=1)  # over the classes, not over the batch or one "
        "unit",
    )


def _something_lower(seen: Observation, end: Passage | None = None) -> bool:
    """Whether the loss is lower behind the dead end, or anywhere that probes reach."""
    if end is not None and _lower_behind(seen, end):
        return True
    return seen.lower_elsewhere is not None


def _lower_behind(seen: Observation, end: Passage) -> bool:
    """Whether the loss falls where the gradient points that the call would pass on."""
    repair = OtherCalls({end.name: pass_straight_through})
    record = seen.trials.run(1, Level.GRADIENTS, repair)[0]
    gradient = [
        torch.zeros_like(s) if g is None else g
        for g, s in zip(record.fresh(), seen.trials.start, strict=True)
    ]
    few = sum(s.numel() for s in seen.trials.start) <= FEW
    lengths = FINE_LENGTHS if few else LENGTHS
    return seen.gain_against(gradient, lengths) > 1e-5 * max(
        abs(seen.progress[0]), 1e-12
    )


def _note_minimum(seen: Observation) -> None:
    seen.notes.append(
        Note(
            "The gradient is zero, and no probe finds a lower loss nearby.",
            Cause.at_minimum,
        )
    )


_EXPLAIN = {
    Cause.nondifferentiable_op: _explain_steps,
    Cause.saturated_activation: explain_saturated,
    Cause.clamped_at_bound: _explain_clamp,
    Cause.dead_relu: explain_dead,
    Cause.out_of_support: _explain_support,
    Cause.constant_objective: _explain_constant,
    Cause.frozen_parameters: _explain_masked,
    Cause.targets_masked_out: _explain_masked,
}

"""Rules about gradients that are exactly zero: in which call they end, and why.

A zero gradient ends in one call: the gradient of its output is there, that of its input
is not. The kind of that call, and what it was given, name the cause.
"""

import math
from collections.abc import Iterator

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.flow import Passage, Way
from shared.diagnose.observation import LENGTHS, Observation, helps
from shared.diagnose.repairs import OtherCalls, leaky, pass_straight_through
from shared.diagnose.report import Evidence, Finding, Note
from shared.diagnose.torch_calls import STEP_FUNCTIONS
from shared.diagnose.watch import Level, StepRecord

PART = 0.1
"""Share of a module's entries that is too much to get no gradient on purpose."""

FEW = 16
"""Up to how many numbers are searched for finely: positions, angles, sizes."""
FINE_LENGTHS = tuple(0.1 * 1.16**k for k in range(40))
"""Lengths of the moves of few numbers: what they should meet may be small."""


def dead_ends(seen: Observation) -> Iterator[Finding]:
    """Give the call in which the gradient ends, and why."""
    layer = _dead_layer(seen)
    if layer is not None:
        yield from explain_dead(seen, layer)
        return
    if not seen.gradient_is_zero:
        yield from _partly_dead(seen)
        return
    places = [way for way in seen.ways if way.indexed]
    if places and seen.lower_elsewhere is not None:
        yield _picked(places[0])
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
        held = end.facts.get("kind") == "clamp" and end.facts["outside"] == 1.0
        if alone and held and end.direct and seen.module is None:
            yield from _explain_clamp(seen, end)
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


def _picked(way: Way) -> Finding:
    steps = [cut for cut in way.cuts if cut in STEP_FUNCTIONS]
    return Finding(
        Cause.nondifferentiable_op,
        0.9,
        (
            Evidence("places in a tensor computed from the variables", "yes", "no"),
            Evidence("made whole by", f"{steps[0]}()" if steps else "-", "nothing"),
            Evidence("largest gradient entry", 0, "above 0"),
        ),
        (),
        "The variables say which entries are picked. The entries are picked by whole "
        "numbers, which change in steps: no gradient passes to what they come from.",
        "torch.nn.functional.grid_sample(values, places)  # between the entries, or\n"
        "weights = torch.softmax(-(grid - place) ** 2, dim=0)  # of all entries",
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
    where = () if name is None else (Evidence("gradient ends in", name, "nowhere"),)
    return Finding(
        Cause.out_of_support,
        0.85,
        (
            Evidence("gradient", seen.gradient_norm, "above 0"),
            _where_it_changes(seen),
            *where,
        ),
        (),
        "The loss is flat around here: what is moved does not touch what it should "
        "match. Far enough away the loss does change.",
        "loss = (position - target).square().sum()  # a loss that feels the distance, "
        "or blur, or a start that overlaps",
    )


def _where_it_changes(seen: Observation) -> Evidence:
    """Say how far away the loss is another one, or what it is elsewhere."""
    moved = [r for r, loss in seen.around.items() if not seen.same_loss(loss)]
    if moved:
        name = "distance at which the loss first changes, in sizes of the variable"
        return Evidence(name, min(moved), "any")
    others = [loss for loss in seen.scan if not seen.same_loss(loss)]
    if not others:
        return Evidence("entries on the way that are not zero", 0, "some")
    elsewhere = min(filter(math.isfinite, others), default=math.nan)
    name = "loss here, and the lowest other one found elsewhere"
    return Evidence(name, f"{seen.losses[0]:.3g}, {elsewhere:.3g}", "-")


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

"""Rules about what the loss compares: exact tests of the values that enter it.

These faults let the loss fall, so they are asked of every step, whether it learns or
not. Each is a statement about values, not about names of functions.
"""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch

from shared.diagnose.causes import Cause
from shared.diagnose.flow import Passage
from shared.diagnose.observation import (
    STEPS_OF_PROOF,
    STEPS_WATCHED,
    Observation,
    helps,
)
from shared.diagnose.repairs import (
    OtherCalls,
    ScaledUpdate,
    likelihood,
    log_likelihood,
    same_shape,
)
from shared.diagnose.report import Evidence, Finding
from shared.diagnose.targets import are_classes
from shared.diagnose.watch import Level, StepRecord

SURE = 10.0
"""A score of this size for the right one of two classes leaves next to no gradient."""

LOG_OF_CHANCE = -20.0
"""Logarithm of a probability below which chance explains nothing."""

MANY_STEPS = 80
"""After how many steps a metric is asked again that was better halfway."""


def loss_faults(seen: Observation) -> Iterator[Finding]:
    """Give what is wrong with the comparison that the loss makes."""
    yield from _double_softmax(seen)
    yield from _broadcast(seen)
    yield from _masked_out(seen)
    yield from _paired_wrongly(seen)


def _in_all_steps(seen: Observation, fact: str) -> list[Passage]:
    """Return a fact's passages if each step watched in detail has one."""
    found = []
    for record in seen.detailed:
        ways = record.ways or ([record.return_way] if record.return_way else [])
        here = [p for way in ways for p in way.passages if p.facts.get(fact)]
        if not here:
            return []
        found += here
    return found


_SQUASHING = ("sigmoid", "softmax", "clamp", "exp", "hardsigmoid", "sigmoid_")


def _double_softmax(seen: Observation) -> Iterator[Finding]:
    passages = [
        p
        for p in _in_all_steps(seen, "fed_probabilities")
        if p.facts["kind"] == "cross_entropy"
        or (
            p.facts["kind"] in ("with_logits", "log_softmax")
            and p.facts.get("made_by") in _SQUASHING
        )
    ]
    if not passages:
        return
    first = passages[0]
    sigmoid = first.facts["kind"] == "with_logits"
    classes = first.facts.get("classes", 2)
    floor = (
        math.log(1 + math.exp(-1)) if sigmoid else math.log(1 + (classes - 1) / math.e)
    )
    repair = OtherCalls(
        {
            "cross_entropy": log_likelihood,
            "binary_cross_entropy_with_logits": likelihood,
        }
    )
    proof = seen.prove("the loss of the probabilities themselves", repair)
    yield Finding(
        Cause.double_softmax,
        1.0,
        (
            Evidence(
                "what enters the loss",
                "numbers between 0 and 1" + ("" if sigmoid else " whose rows sum to 1"),
                "any real numbers",
            ),
            Evidence("lowest loss that can then be reached", floor, "0"),
            Evidence("loss now", seen.losses[-1], "falling toward 0"),
        ),
        (),
        "The loss normalizes what it is given, and it is given probabilities. It can "
        "never come near zero, and its gradient is far too small.",
        "from torch.nn import functional as F\nloss = F."
        + ("binary_cross_entropy_with_logits" if sigmoid else "cross_entropy")
        + "(scores, target)  # scores without "
        + ("sigmoid" if sigmoid else "softmax"),
        proof,
    )


_COMPARING = (
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "poisson_nll_loss",
    "gaussian_nll_loss",
    "sub",
    "rsub",
)
_MULTIPLYING = ("mul", "__mul__", "__rmul__", "multiply", *_COMPARING)


def _broadcast(seen: Observation) -> Iterator[Finding]:
    compared = _in_all_steps(seen, "broadcast")
    passages = compared or _in_all_steps(seen, "broadcast_product")
    if not passages:
        return
    a, b = passages[0].facts["shapes"]
    calls = _COMPARING if compared else _MULTIPLYING
    repair = OtherCalls(dict.fromkeys(calls, same_shape))
    proof = seen.prove(
        "target given the prediction's shape",
        repair,
        STEPS_OF_PROOF if compared else 2 * STEPS_OF_PROOF,
    )
    if not compared and not helps(proof, 0.01):
        return  # a table of products, and meant as one
    yield Finding(
        Cause.shape_broadcast,
        1.0,
        (
            Evidence("shape of the two sides", f"{a} and {b}", "equal"),
            Evidence(
                "pairs compared",
                str(tuple(torch.broadcast_shapes(a, b))),
                f"{max(a, b, key=len)}",
            ),
        ),
        (),
        "Prediction and target have different shapes and are expanded against each "
        "other: every prediction is compared with every target, and the best answer is "
        "their mean.",
        "prediction = prediction.squeeze(1)  # or target.unsqueeze(1)\n"
        "assert prediction.shape == target.shape",
        proof,
    )


def _masked_out(seen: Observation) -> Iterator[Finding]:
    lost = _in_all_steps(seen, "classes_lost")
    if (
        not lost
        and seen.detailed
        and all(
            any(p.facts.get("counted") == 0.0 for p in r.passages)
            for r in seen.detailed
        )
    ):
        yield _masked_finding("0 of the targets", "The loss ignores every target.")
        return
    if lost:
        counted = lost[0].facts["counted"]
        yield _masked_finding(
            f"{counted:.3g} of the targets; none of class "
            + ", ".join(map(str, lost[0].facts["classes_lost"][:5])),
            "The loss leaves out every target of a class: ignore_index names it, or "
            "its weight is zero.",
        )
        return
    shares = [_silent_rows(record) for record in seen.detailed]
    if shares and all(share == 1.0 for share in shares):
        blocked = any(
            p.facts.get("constant_zero")
            and p.gradient_out
            and not p.gradient_in
            and "mul" in p.name
            for p in seen.passages
        )
        if blocked:
            yield _masked_finding(
                "0 of the targets", "The loss multiplies every target's part by zero."
            )
        return
    classes = _silent_classes(seen) or _never_counted(seen)
    if classes:
        yield _masked_finding(
            "no target of class " + ", ".join(map(str, classes)),
            "The loss has no gradient with respect to any output of these targets.",
        )


def _masked_finding(counted: str, explanation: str) -> Finding:
    return Finding(
        Cause.targets_masked_out,
        1.0,
        (Evidence("targets that count", counted, "all but padding"),),
        (),
        explanation + " What does not count cannot be learned.",
        "loss_fn = torch.nn.CrossEntropyLoss(ignore_index=-100)  # a number that is no "
        "class\nassert mask.any() and (weight > 0).all()",
    )


def _silent_rows(record: StepRecord) -> float:
    """Return the share of rows of the module's output without any gradient."""
    rows = [m.gradient_rows for m in record.modules if m.gradient_rows is not None]
    return float((rows[-1] == 0).double().mean()) if rows else math.nan


def _silent_classes(seen: Observation) -> list[int]:
    """Return classes all of whose targets give no gradient, in all watched steps."""
    if seen.batch is None or not isinstance(seen.batch[1], torch.Tensor):
        return []
    silent: set[int] | None = None
    for record in seen.detailed:
        rows = [m.gradient_rows for m in record.modules if m.gradient_rows is not None]
        target = seen.batch[1].flatten()
        if not rows or len(rows[-1]) != len(target) or not are_classes(target):
            return []
        zero = rows[-1] == 0
        outputs = [m.output for m in record.modules if m.gradient_rows is not None]
        here = {
            int(c)
            for c in target.unique()
            if zero[target == c].all() and _not_yet_right(outputs[-1], target, c)
        }
        if zero.all():
            return []
        silent = here if silent is None else silent & here
    return sorted(silent or ())


def _never_counted(seen: Observation) -> list[int]:
    """Return classes none of whose targets counts, if they are half of all and more.

    Padding is one class. A mask drawn at random misses a rare class by chance: the
    probability of that must be small.
    """
    targets, counted = Counter(), Counter()
    for passage in (p for record in seen.detailed for p in record.passages):
        for total, name in ((targets, "targets"), (counted, "targets_counted")):
            total.update(dict(enumerate(passage.facts.get(name, ()))))
    present = [c for c, count in targets.items() if count]
    lost = [c for c in present if not counted[c]]
    share = counted.total() / max(targets.total(), 1)
    if not 0 < share < 1 or 2 * len(lost) < len(present):
        return []
    by_chance = math.log1p(-share) * sum(targets[c] for c in lost)
    return sorted(lost) if by_chance < LOG_OF_CHANCE else []


def _not_yet_right(
    output: torch.Tensor, target: torch.Tensor, chosen: torch.Tensor
) -> bool:
    """Whether the outputs for a class are not so right that no gradient is due."""
    rows = output.detach()[target == chosen].reshape(int((target == chosen).sum()), -1)
    if rows.shape[1] == 1:
        scores = rows[:, 0]
        right = (scores - chosen).abs() <= 1e-3
        if chosen in (0, 1):
            right |= scores * (2 * chosen - 1) > SURE
        return not right.any()
    if target.dtype != torch.long or int(chosen) >= rows.shape[1]:
        return False
    return bool((rows.max(dim=1).values - rows[:, int(chosen)] < 50).all()) and bool(
        (rows.max(dim=1).values - rows.min(dim=1).values < 50).all()
    )


def _paired_wrongly(seen: Observation) -> Iterator[Finding]:
    """Rows of the named batch that the step pairs with other rows' targets."""
    if seen.batch is None:
        return
    shares = [_share_paired(seen, record) for record in seen.detailed]
    shares = [share for share in shares if share is not None]
    if not shares or min(shares) > 0.9:
        return
    if max(shares) > 0.95:
        return
    yield Finding(
        Cause.labels_misaligned,
        1.0,
        (Evidence("inputs whose target in the step is their own", max(shares), "1"),),
        (),
        "The step pairs inputs with targets of other inputs: both are shuffled, sorted "
        "or cut, and not by the same index.",
        "order = torch.randperm(len(x))\nx, y = x[order], y[order]  # one order for "
        "both",
    )


def _share_paired(seen: Observation, record: StepRecord) -> float | None:
    """Return the share of the step's inputs that meet the target of their own row."""
    x, y = seen.batch
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return None
    if x.dim() < 1 or len(x) != len(y) or not record.pairs:
        return None
    for inputs, target in record.pairs:
        rows = _find_rows(inputs, x)
        if rows is None or len(target) != len(rows):
            continue
        own = y[rows].reshape(len(rows), -1)
        given = target.reshape(len(rows), -1)
        if own.shape == given.shape and _are_rows_of(given, y):
            return float((own == given.to(own.dtype)).all(dim=1).double().mean())
    return None


def _are_rows_of(given: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether what the step compares with are the named targets, in any order.

    It may compare with their logarithms, or standardize them: these are others.
    """
    known = {row.tobytes() for row in _as_rows(y)}
    return all(row.tobytes() in known for row in _as_rows(given.to(y.dtype)))


def _as_rows(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().reshape(len(values), -1).numpy()


def _find_rows(inputs: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """Return for each row of ``inputs`` its place in ``x``; None if one has none."""
    if inputs.shape[1:] != x.shape[1:] or len(x) > 5000:
        return None
    places: dict[bytes, int] = {}
    for k, row in enumerate(x.detach().to(torch.float64).reshape(len(x), -1).numpy()):
        key = row.tobytes()
        if key in places:
            return None  # two equal inputs: their rows cannot be told apart
        places[key] = k
    rows = inputs.detach().to(torch.float64).reshape(len(inputs), -1).numpy()
    found = [places.get(row.tobytes(), -1) for row in rows]
    return None if -1 in found or not found else torch.tensor(found)


def wrong_way(seen: Observation) -> Iterator[Finding]:
    """Give a loss that falls while what it should improve gets worse."""
    change = seen.metric_change
    if change is None or not all(map(math.isfinite, change)):
        return
    before, after = change
    if not after < before - 1e-6 * max(abs(before), abs(after)):
        later = _after_its_best(seen, after)
        if later is None or not later < before - 1e-3 * abs(before):
            return
        after = later
    if seen.is_random and not seen.learns and after > before - 0.05 * abs(before):
        return
    if seen.is_random and not seen.metric_on_other_draws < before:
        return
    reciprocal = any(p.facts.get("reciprocal") for p in seen.passages)
    evidence = (
        Evidence(
            "loss, before and after",
            f"{seen.progress[0]:.3g} -> {seen.progress[1]:.3g}",
            "falling",
        ),
        Evidence("metric, before and after", f"{before:.3g} -> {after:.3g}", "rising"),
    )
    other_way = math.nan if reciprocal else _metric_the_other_way(seen)
    if other_way > before:
        name = f"metric, before and after {STEPS_OF_PROOF} steps the other way"
        turned = Evidence(name, f"{before:.3g} -> {other_way:.3g}", "rising")
        yield Finding(
            Cause.wrong_sign,
            0.95,
            (*evidence, turned),
            (),
            "The optimizer does what it is told: the loss falls. But the metric falls "
            "with it, so what is minimized is what should be maximized.",
            "loss = -score  # an optimizer minimizes; or optimizer(..., maximize=True)",
        )
        return
    if not seen.learns and not (seen.fall > 0 and not seen.is_random):
        return
    yield Finding(
        Cause.runaway_loss,
        0.9,
        evidence,
        (),
        "The loss falls as it should, and the metric gets worse: the loss rewards "
        "something else than what it is meant to measure.",
        "loss = torch.nn.functional.mse_loss(prediction, target)  # not its reciprocal",
    )


def _after_its_best(seen: Observation, after: float) -> float | None:
    """Return the metric after many more steps, if it was better on the way than it is.

    A loss may reward first what is wanted, and then something else.
    """
    half = STEPS_WATCHED // 2
    falls_on = len(seen.losses) > half and seen.losses[-1] < seen.losses[half]
    if not falls_on or seen.is_random or seen.trials.steps_left < 2 * half + MANY_STEPS:
        return None
    best = -math.inf
    for steps in (half, half // 2):
        if best == -math.inf:
            seen.trials.run(steps)
        else:
            seen.trials.go_on(steps, Level.LOSS)
        best = max(best, seen.measure_metric())
    if not after < best - 0.01 * abs(best):
        return None
    seen.trials.run(MANY_STEPS)
    return seen.measure_metric()


def _metric_the_other_way(seen: Observation) -> float:
    """Return the metric after some steps with every update turned around."""
    repair = ScaledUpdate(seen.tensors, -1.0)
    seen.trials.run(STEPS_OF_PROOF, repair.level, repair)
    return seen.measure_metric()

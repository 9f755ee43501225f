"""Rules about steps whose gradient changes from draw to draw by more than it is."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.observation import Observation, norm
from shared.diagnose.report import Evidence, Finding, Note
from shared.diagnose.watch import Level, StepRecord, quiet

DRAWS_FIRST, DRAWS_MORE = 12, 40
"""Over how many draws a mean gradient is taken: the more, if the first lead nowhere.

A trial starts from the kept state, so the second draws contain the first.
"""

STEPS_ALONG = 30
"""Steps that a search along the mean gradient takes at most."""

CLEAR = 0.1
"""Squared mean gradient over the variance of one draw, from which steps find down."""

HOPELESS = 0.005
"""The same, for steps that get somewhere after all, if by very little."""

LENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Lengths of the moves along the mean gradient, in updates of the step."""


def noise(seen: Observation) -> Iterator[Finding]:
    """Give whether one draw's gradient says little about the mean gradient."""
    if not seen.is_random or (seen.learns and not seen.metric_barely_rises):
        return
    enough = HOPELESS if seen.learns else CLEAR
    for count in (DRAWS_FIRST, DRAWS_MORE):
        if count > DRAWS_FIRST and seen.trials.steps_left < count + STEPS_ALONG:
            break
        gradients = _drawn(seen, count)
        if len(gradients) < 4 or len({len(g) for g in gradients}) > 1:
            return
        stacked = torch.stack(gradients)
        mean = stacked.mean(dim=0)
        variance = float((stacked - mean).square().sum(dim=1).sum()) / (count - 1)
        whole = _gradient_of_all(seen)
        if whole is None:
            signal = max(float(mean.square().sum()) - variance / len(stacked), 0.0)
            of_what, least = f"the mean of {len(gradients)} gradients", 0.01
        else:
            mean = whole
            signal = float(whole.square().sum())
            of_what, least = "the gradient of the whole batch", 0.003
        ratio = signal / variance if variance > 0 else math.inf
        if ratio > enough:
            return
        gain = _gain_along(seen, mean, whole is not None)
        least *= max(abs(seen.progress[0]), 1e-12)
        if gain > least or whole is not None:
            break
    if gain <= least and seen.learns:
        return
    if gain <= least:
        seen.notes.append(
            Note(
                "The gradient is mostly noise, and its mean leads to no lower loss.",
                Cause.at_minimum,
            )
        )
        return
    yield Finding(
        Cause.gradient_noise,
        0.8,
        (
            Evidence(
                "squared mean gradient over the variance of one draw",
                ratio,
                "above 0.1",
            ),
            Evidence(
                "loss before and after the watched steps",
                f"{seen.progress[0]:.3g} -> {seen.progress[1]:.3g}",
                "falling",
            ),
            Evidence(
                f"gain of one step along {of_what}",
                gain,
                "above 0",
            ),
        ),
        (),
        "The gradient changes from draw to draw by more than it is: the variables move "
        "at random. Averaged over more draws it has a direction.",
        "loader = DataLoader(data, batch_size=larger)  # or several draws a step, and "
        "a smaller learning rate",
    )


def _drawn(seen: Observation, count: int) -> list[torch.Tensor]:
    """Return the gradients of some draws at the start, each as one vector."""
    records = seen.trials.run(
        count, values=seen.trials.start, pinned=True, level=Level.GRADIENTS
    )
    return [torch.cat([g.flatten() for g in _pull(r)]) for r in records]


def _pull(record: StepRecord) -> list[torch.Tensor]:
    """Return a step's gradients; where it has none, its change turned around."""
    fresh = record.fresh()
    if all(g is None for g in fresh):
        return [
            a.double() - b.double()
            for a, b in zip(record.before, record.after, strict=True)
        ]
    return [
        torch.zeros_like(a, dtype=torch.float64) if g is None else g.double()
        for g, a in zip(fresh, record.before, strict=True)
    ]


def _loss_of_all(seen: Observation) -> torch.Tensor:
    """Return the loss of the whole named batch with the variables as they are."""
    x, y = seen.batch
    with torch.enable_grad(), quiet():
        return seen.loss_fn(seen.module(x), y)


def _loss_value_of_all(seen: Observation) -> float:
    return float(_loss_of_all(seen).detach())


def _gradient_of_all(seen: Observation) -> torch.Tensor | None:
    """Return the gradient of the whole named batch, if each step draws from it.

    None if there is no such batch, or its loss is another one than that of the step.
    """
    if seen.batch is None or seen.loss_fn is None or seen.module is None:
        return None
    fed = [m for r in seen.detailed for m in r.modules if m.module is seen.module]
    drawn = [len(m.inputs[0]) for m in fed if m.inputs and m.inputs[0].dim()]
    if not drawn or max(drawn) >= len(seen.batch[0]):
        return None
    seen.trials.snapshot.restore()
    asked = [t for t in seen.tensors if t.requires_grad]
    try:
        loss = _loss_of_all(seen)
        found = torch.autograd.grad(loss, asked, allow_unused=True)
    except (RuntimeError, TypeError, ValueError):
        return None  # the step calls them in another way
    if not 0.1 < float(loss.detach()) / seen.progress[0] < 10.0:
        return None
    given = dict(zip(map(id, asked), found, strict=True))
    parts = [given.get(id(t)) for t in seen.tensors]
    return torch.cat(
        [
            (torch.zeros_like(t) if g is None else g).double().flatten()
            for g, t in zip(parts, seen.tensors, strict=True)
        ]
    )


def _gain_along(seen: Observation, mean: torch.Tensor, whole: bool) -> float:
    """Return the most that one move against a mean gradient gains, in the loss.

    With the reader's metric it is the metric's relative gain, times the loss. For the
    gradient of the whole batch it is the loss of that.
    """
    sizes = [s.numel() for s in seen.trials.start]
    if sum(sizes) != len(mean):
        return 0.0
    parts = [
        -m.reshape(s.shape)
        for m, s in zip(mean.split(sizes), seen.trials.start, strict=True)
    ]
    length = max(norm(seen.first_update), 1e-12) / max(float(mean.norm()), 1e-300)
    lengths = [c * length for c in LENGTHS]
    if seen.metric is not None:
        start = seen.metric_change[0]
        best = max(_after_moves(seen, parts, lengths, seen.measure_metric))
        return (best - start) / max(abs(start), 1e-12) * abs(seen.progress[0])
    if whole:
        moves = [0.0, *lengths]
        measure = partial(_loss_value_of_all, seen)
        start, *after = _after_moves(seen, parts, moves, measure)
        return start - min(after)
    return seen.progress[0] - min(seen.along(parts, lengths).values())


def _after_moves(
    seen: Observation,
    parts: Sequence[torch.Tensor],
    lengths: Sequence[float],
    measure: Callable[[], float],
) -> list[float]:
    """Return what is measured after each of some moves from the start."""
    found = []
    for length in lengths:
        seen.trials.snapshot.restore()
        seen.trials.write(seen.trials.moved(parts, length))
        found.append(measure())
    return found

"""Rules about losses that jump: found along the way of an update, by halving."""

import itertools
import math
from collections.abc import Callable, Iterator

from shared.diagnose.causes import Cause
from shared.diagnose.observation import Observation, norm
from shared.diagnose.report import Evidence, Finding
from shared.diagnose.torch_calls import STEP_FUNCTIONS
from shared.diagnose.watch import StepRecord

FAR_JUMP = 100.0
"""How many updates ahead a jump is looked for where a call on the way has steps."""


def jumps(seen: Observation) -> Iterator[Finding]:
    """Give jumps of the loss of which its gradient does not know."""
    steps = [p.name for p in seen.passages if p.name in STEP_FUNCTIONS]
    if seen.is_random or not seen.gradient_norm:
        return
    if seen.fall > 0.1 or seen.metric_rises:
        return
    suspects = [(record, 1.0) for record in _suspects(seen)]
    if steps and not seen.learns:
        suspects += [(seen.records[0], FAR_JUMP)]
    for record, reach in suspects:
        found = _jump_in(seen, record, bool(steps), reach)
        if found is None:
            continue
        distance, change, predicted = found
        where = ()
        if steps:
            where = (Evidence("call on the way whose value jumps", steps[0], "none"),)
        yield Finding(
            Cause.discontinuous_loss,
            0.85,
            (
                Evidence(
                    f"change of the loss over {distance:g} of an update",
                    change,
                    f"{predicted:.2g}, by the gradient",
                ),
                *where,
            ),
            (),
            "The loss jumps on the way of the updates. The gradient is that of the "
            "pieces between the jumps, and leads across them.",
            "weight = torch.sigmoid((x - threshold) / temperature)  # instead of x > "
            "threshold",
        )
        return


def _slope(record: StepRecord) -> float:
    """Return the change of the loss that the gradient predicts for a step."""
    total = 0.0
    for gradient, a, b in zip(record.fresh(), record.before, record.after, strict=True):
        if gradient is not None:
            total += float((gradient.double() * (b.double() - a.double())).sum())
    return total


def _suspects(seen: Observation) -> list[StepRecord]:
    """Return the first step, and that whose loss rises most above its prediction."""
    records = [r for r in seen.records if r.after and math.isfinite(r.loss)]
    pairs = list(itertools.pairwise(records))
    above = [b.loss - a.loss - _slope(a) for a, b in pairs]
    if not above:
        return records[:1]
    worst = pairs[above.index(max(above))][0]
    return [records[0]] + ([worst] if worst is not records[0] else [])


def _jump_in(
    seen: Observation, record: StepRecord, has_steps: bool, reach: float
) -> tuple[float, float, float] | None:
    """Return where in a step the loss leaves its tangent, its change and the tangent's.

    The step is made ``reach`` times as long, for jumps that lie further ahead.

    A smooth loss leaves its tangent with the square of the distance; one that jumps
    leaves it at once, or in one place.
    """
    slope = reach * _slope(record)
    base = record.before
    change = [
        reach * (b.double() - a.double())
        for a, b in zip(base, record.after, strict=True)
    ]
    if not slope < 0 or not norm(change) or not math.isfinite(norm(change)):
        return None

    def loss_at(share: float) -> float:
        values = [
            (a.double() + share * d).to(a.dtype)
            for a, d in zip(base, change, strict=True)
        ]
        return seen.trials.loss_at(values)

    start = loss_at(0.0)
    scale = max(abs(start), 1e-12)
    ahead = {share: loss_at(share) - start for share in (0.03, 0.1, 0.3, 1.0)}
    off = {
        share: d
        for share, d in ahead.items()
        if abs(d - share * slope) > max(0.5 * share * abs(slope), 1e-5 * scale)
    }
    rises = any(d > 0 for d in ahead.values())
    if not rises:
        return None
    if has_steps and reach == 1.0 and sum(share < 1 for share in off) >= 2:
        farthest = max(off, key=lambda share: abs(off[share]))
        return farthest, off[farthest], farthest * slope
    # A call with steps is known: many small jumps count as well as a large one.
    small_ones = has_steps and (reach > 1.0 or not seen.learns)
    least = 0.05 * abs(slope) if small_ones else None
    jump = _largest_jump(loss_at, start, least)
    return None if jump is None else (reach, jump, slope)


def _largest_jump(
    loss_at: Callable[[float], float], start: float, least: float | None
) -> float | None:
    """Halve an interval toward its larger change; return a change that stays.

    It must stand out from the others and hold most of what the interval changes; or,
    where jumps are expected, be at least ``least``.
    """
    at = {0.0: start} | {0.25 * k: loss_at(0.25 * k) for k in range(1, 9)}
    points = sorted(at)
    pairs = list(itertools.pairwise(points))
    changes = sorted(abs(at[b] - at[a]) for a, b in pairs)
    low, high = max(pairs, key=lambda p: abs(at[p[1]] - at[p[0]]))
    first = abs(at[high] - at[low])
    stands_out = first >= 4 * changes[len(changes) // 2]
    if not math.isfinite(first) or (least is None and not stands_out):
        return None
    for _ in range(8):
        middle = (low + high) / 2
        at[middle] = loss_at(middle)
        if abs(at[middle] - at[low]) > abs(at[high] - at[middle]):
            high = middle
        else:
            low = middle
    jump = abs(at[high] - at[low])
    enough = 0.5 * first if least is None else least
    return jump if jump > max(enough, 1e-3 * max(abs(start), 1e-12)) else None

"""Rules about how a network is built and started: equal units, lost layers.

They are exact, or ratios over many layers, and need no probe of the landscape.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.curvature import curvature
from shared.diagnose.inputs import saturates_by_scale
from shared.diagnose.observation import STEPS_WATCHED, Observation, helps, norm
from shared.diagnose.repairs import DataAlone, Repair, RightUpdate
from shared.diagnose.report import Evidence, Finding, Proof
from shared.diagnose.targets import base_loss
from shared.diagnose.terms import Term
from shared.diagnose.torch_calls import all_zero
from shared.diagnose.watch import Level, StepRecord

FADED = 1e-4
"""Gradient at the first layer over that at the last below which it has vanished."""

FADED_IN_RECURRENCE = 1e-3
"""The same where it is known that nothing is learned."""

FEWEST_LAYERS = 5
"""From how many layers on a gradient may fade, and not end in one of them."""

MANY_CALLS = 30
"""From how many calls on a computation without layers is as deep as a network."""

NEARLY_EQUAL = 1e-3
"""Spread over size of outputs below which no gradient tells inputs apart."""

MANY_STEPS = 60
"""Steps after which a penalty that dominates has emptied the variables."""


def structure(seen: Observation) -> Iterator[Finding]:
    """Give what is wrong with the network as it is built and started."""
    smooth = any(p.facts.get("kind") in ("sigmoid", "tanh") for p in seen.passages)
    lost = (_vanishing, _collapsed) if smooth else (_collapsed, _vanishing)
    for rule in (_equal_units, _penalty, _decay, _saturated, *lost):
        found = list(rule(seen))
        yield from found
        if found and rule not in lost:
            return


def _equal_units(seen: Observation) -> Iterator[Finding]:
    """Give units that start equal to the bit, are updated, and stay equal."""
    which = [i for i in seen.everything if _rows_stay_equal(seen, i)]
    of_rows = bool(which)
    if not of_rows:
        which = [i for i in seen.everything if _columns_stay_equal(seen, i)]
    if not which:
        return
    many, units = ("rows", 0) if of_rows else ("columns", -1)
    share = 0.1 if seen.module is not None else 0.5
    noise = [
        start
        + share
        * size
        * torch.randn(start.shape, generator=_generator(i)).to(start.dtype)
        if i in which
        else start
        for i, (start, size) in enumerate(
            zip(seen.trials.start, seen.sizes, strict=True)
        )
    ]
    proof = seen.prove(f"{share:g} of noise on the start", Repair(), 20, noise)
    if not (seen.module is not None and of_rows) and not helps(proof, 0.01):
        return
    count = min(seen.tensors[i].shape[units] for i in which)
    yield Finding(
        Cause.symmetric_init,
        1.0,
        (
            Evidence(f"different {many} at the start", 1, f"{count}"),
            Evidence(f"different {many} after the watched steps", 1, f"{count}"),
        ),
        seen.names(which),
        "All units of a layer start equal, so they get equal gradients and stay equal: "
        "the layer is as good as one with a single unit.",
        "torch.nn.init.kaiming_uniform_(layer.weight)  # random: no two units alike",
        proof if helps(proof, 0.0) else None,
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rows_stay_equal(seen: Observation, i: int) -> bool:
    start, end = seen.trials.start[i], seen.end[i]
    if _has_equal_sibling(seen, i):
        return True
    least = 1 if seen.module is None else 2
    if start.dim() < least or len(start) < 2 or not seen.moves[i]:
        return False
    if not seen.tensors[i].requires_grad:
        return False
    # Sums over units that are computed in another order differ in their last digit.
    return _all_rows_equal(start) and torch.allclose(end, end[:1], rtol=1e-6, atol=0)


def _columns_stay_equal(seen: Observation, i: int) -> bool:
    """Whether the columns start equal, not the rows alone, and move together.

    The factors of a matrix have their units in the columns.
    """
    start, end = seen.trials.start[i], seen.end[i]
    if start.dim() != 2 or start.shape[1] < 2 or not seen.moves[i]:
        return False
    columns = end.T
    return (
        seen.tensors[i].requires_grad
        and _all_rows_equal(start.T)
        and torch.allclose(columns, columns[:1], rtol=1e-6, atol=0)
    )


def _has_equal_sibling(seen: Observation, i: int) -> bool:
    """Whether another variable starts equal, moves, and stays equal to the bit."""
    start, end = seen.trials.start[i], seen.end[i]
    one_number = bool((start == start.flatten()[0]).all())
    if start.dim() < 2 or not seen.moves[i] or one_number:
        return False
    return any(
        k != i
        and seen.tensors[k] is not seen.tensors[i]
        and seen.trials.start[k].shape == start.shape
        and torch.equal(seen.trials.start[k], start)
        and torch.equal(seen.end[k], end)
        for k in seen.everything
    )


def _all_rows_equal(values: torch.Tensor) -> bool:
    return bool((values == values[:1]).all())


def _saturated(seen: Observation) -> Iterator[Finding]:
    """Give a sigmoid, tanh or softmax most of which sits where it is flat."""
    if seen.fall > 0.1:
        return
    # Of the first step: later ones may be flat because the first went too far.
    flat = [
        p
        for p in seen.detailed[0].passages
        if p.facts.get("kind") in ("sigmoid", "tanh", "softmax")
        and p.facts["flat"] > 0.8
        and p.facts.get("classes", 2) > 1
    ]
    loses = [
        p
        for p in flat
        if p.gradient_out and (_loses(p) < 1e-2 or p.facts["exactly_flat"] > 0.5)
    ]
    least = 1e-3 * max(abs(seen.progress[0]), 1e-3)
    if not loses or not seen.gain_against(seen.gradient) > least:
        return
    by_scale = list(saturates_by_scale(seen))
    yield from by_scale
    if by_scale:
        return
    worst = min(loses, key=_loses)
    yield Finding(
        Cause.saturated_activation,
        0.9,
        (
            Evidence(
                f"share of {worst.facts['kind']} outputs on the flat part",
                worst.facts["flat"],
                "below 0.5",
            ),
            Evidence(
                "gradient of its input over that of its output",
                _loses(worst),
                "0.01 to 1",
            ),
        ),
        (),
        f"Nearly all outputs of a {worst.facts['kind']} sit on its flat part, where "
        "its derivative is near zero: what lies before it gets next to no gradient.",
        "torch.nn.init.xavier_normal_(layer.weight)  # smaller scores; normalize the "
        "inputs;\nor the loss of the scores: cross_entropy(scores, target)",
    )


def _loses(passage: object) -> float:
    after, before = passage.gradient_out, passage.gradient_in
    if not after or before is None or not math.isfinite(after):
        return math.nan
    return before / after


def _vanishing(seen: Observation) -> Iterator[Finding]:
    """Give a gradient that falls by a factor per layer, over many layers."""
    sizes = _sizes_by_depth(seen)
    ratio = _fades(sizes)
    if ratio is None or (seen.learns and ratio > 1e-5 and seen.fall > 0.2):
        return
    yield _vanished("layer", len(sizes), ratio)


def vanishing_in_recurrence(seen: Observation) -> Iterator[Finding]:
    """Give a gradient that falls by a factor per recurrent layer, or per time step.

    All steps share their weights, which learn from the last ones in any case. It is a
    fault only where nothing at all is learned, and nothing else keeps it from that.
    """
    passages = seen.detailed[-1].passages if seen.detailed else []
    recurrent = [p for p in passages if p.facts.get("kind") == "recurrence"]
    if not recurrent or not seen.knows_nothing():
        return
    layers = [p.gradient_out for p in recurrent if p.gradient_out is not None]
    ways = {"layer": layers, "time step": recurrent[0].facts["sizes"]}
    for link, sizes in ways.items():
        ratio = _fades(sizes, FADED_IN_RECURRENCE)
        if ratio is not None:
            yield _vanished(link, len(sizes), ratio)
            return


def _fades(sizes: Sequence[float], most: float = FADED) -> float | None:
    """Return first over largest, if gradients fade gradually to next to nothing."""
    if len(sizes) < FEWEST_LAYERS or max(sizes) <= 0:
        return None
    if sizes[0] == 0 and min(s for s in sizes if s > 0) > 1e-30:
        return None  # it ends in one place, and does not fade
    ratio = sizes[0] / max(sizes)
    if ratio >= most:
        return None
    drops = [a / b for a, b in itertools.pairwise(sizes) if b > 0]
    sudden = min(drops) < math.sqrt(ratio)
    return None if sudden else ratio


def _vanished(link: str, count: int, ratio: float) -> Finding:
    return Finding(
        Cause.vanishing_gradient,
        0.9,
        (
            Evidence(
                f"gradient at the first {link} over that at the last",
                ratio,
                "above 0.001",
            ),
            Evidence(f"factor per {link}", ratio ** (1 / (count - 1)), "about 1"),
            Evidence(f"{link}s", count, "-"),
        ),
        (),
        f"Each {link} multiplies the gradient by a small factor on its way back. After "
        "all of them next to nothing is left for the first ones.",
        "y = x + layer(x)  # residual connections; ReLU with He initialization; "
        "normalization",
    )


def _sizes_by_depth(seen: Observation) -> list[float]:
    """Return the gradients' sizes along the way, from the variables to the loss."""
    ways = seen.detailed[-1].ways if seen.detailed else []
    if not ways:
        return []
    passages = [p for p in ways[0].passages if p.gradient_out is not None]
    layers = [p for p in passages if p.name in _DEEP]
    if len(layers) < FEWEST_LAYERS and len(passages) >= MANY_CALLS and not seen.learns:
        layers = passages  # no layers: a long computation, such as a simulation
    return [p.gradient_out for p in layers if math.isfinite(p.gradient_out)]


_DEEP = frozenset(
    [
        "linear",
        "matmul",
        "__matmul__",
        "mm",
        "mv",
        "conv2d",
        "conv1d",
        "addmm",
        "bmm",
        "tanh",
        "sigmoid",
        "relu",
        "rnn_tanh_cell",
        "gru_cell",
        "lstm_cell",
        "einsum",
    ]
)


def _collapsed(seen: Observation) -> Iterator[Finding]:
    """All inputs give the same output."""
    if seen.module is None:
        yield from _collapsed_pairs(seen)
        return
    if not seen.gradient_is_zero and _all_weights_zero(seen):
        yield _blocked()
        return
    if seen.gradient_is_zero and (
        all(_all_rows_equal(t) for t in seen.trials.start)
        or curvature(seen).gain > 1e-5 * seen.loss_scale
    ):
        return  # it is the variables that coincide, or a point next to lower ones
    if _fed_one_row(seen):
        yield _collapse()
        return
    shares = []
    for record in seen.records[:3]:
        varied = any(target.unique().numel() > 1 for _, target in record.pairs)
        outermost = [
            m
            for m in record.modules
            if m.rows_equal is not None and (m.rows_differ_in_input or varied)
        ]
        if not outermost:
            return
        shares.append(all(m.rows_equal for m in outermost))
    if shares and all(shares):
        yield _collapse()


def _all_weights_zero(seen: Observation) -> bool:
    """Whether all matrices start at zero, two of them at least, and all stay."""
    matrices = [i for i in seen.trainable if seen.tensors[i].dim() > 1]
    return len(matrices) > 1 and all(
        all_zero(values[i])
        for values in (seen.trials.start, seen.end)
        for i in matrices
    )


def _blocked() -> Finding:
    return Finding(
        Cause.stationary_not_minimum,
        0.95,
        (Evidence("weight matrices that start at zero, and stay", "all", "none"),),
        (),
        "All weights start at zero. Each layer's gradient is multiplied by the other "
        "layers' weights, so each zero keeps the others at zero.",
        "torch.nn.init.kaiming_normal_(layer.weight)  # zeros in one layer at most",
    )


def nearly_collapsed(seen: Observation) -> Iterator[Finding]:
    """Give outputs that are nearly equal, to the end, while nothing is learned.

    It is asked last: what keeps a network from learning may keep them alike, too.
    """
    # A loss may fall to that of the best constant answer: that needs no inputs.
    if seen.module is None or not seen.knows_nothing():
        return
    start = _widest_spread(seen.detailed)
    if start < NEARLY_EQUAL:
        end = _widest_spread(seen.trials.run(1, Level.EVERYTHING, values=seen.end))
        if end < NEARLY_EQUAL:
            yield _collapse(max(start, end))


def _widest_spread(records: Sequence[StepRecord]) -> float:
    spreads = [
        m.spread
        for record in records
        for m in record.modules
        if m.rows_differ_in_input and m.rows_equal is not None
    ]
    return max(spreads, default=math.inf)


def _fed_one_row(seen: Observation) -> bool:
    """Whether the module is given one and the same row again and again, as data.

    Noise inside of it may make its outputs differ; from the input they do not.
    """
    fed = [m for r in seen.detailed for m in r.modules if m.module is seen.module]
    targets = [[y for _, y in r.pairs if len(y.unique()) > 1] for r in seen.detailed]
    if not fed or not all(targets):
        return False
    if seen.learns and seen.progress[1] < 0.9 * base_loss(targets[-1][-1]):
        return False
    rows = [t for m in fed for t in m.inputs if t.dim() and len(t) >= 4]
    return bool(rows) and all(map(_all_rows_equal, rows))


def _collapsed_pairs(seen: Observation) -> Iterator[Finding]:
    """Rows of a variable differ, and all give the row that the loss compares."""
    rows = [t for t in seen.trials.start if t.dim() > 1 and len(t) >= 4]
    if not rows or all(_all_rows_equal(t) for t in rows):
        return
    counts = {len(t) for t in rows}
    for record in seen.detailed:
        found = [
            p
            for p in record.passages
            if p.facts.get("rows_equal") and p.shape_in and p.shape_in[0] in counts
        ]
        if not found:
            return
    yield _collapse()


def _collapse(spread: float = 0.0) -> Finding:
    return Finding(
        Cause.forward_collapse,
        0.95,
        (
            Evidence(
                "spread of the outputs, from input to input, over their size",
                spread,
                "above 0.001",
            ),
            Evidence("rows of the input that differ", "yes", "yes"),
        ),
        (),
        "The network gives the same output for every input: what distinguishes the "
        "inputs is lost on the way forward, and no gradient can depend on it.",
        "torch.nn.init.kaiming_normal_(layer.weight)  # keep the spread from layer to "
        "layer; fewer layers, residual connections, normalization",
    )


def _penalty(seen: Observation) -> Iterator[Finding]:
    """Give a penalty inside the loss that pulls harder than the data."""
    before = _data_term(seen.records[0])
    # Without a pull of the data the start is what was measured, and is to be smoothed.
    if (
        before is None
        or math.isinf(before[2])
        or before[2] < (1.5 if seen.module is not None else 3.0)
    ):
        return
    sizes = norm(seen.trials.start), norm(seen.end)
    if not sizes[1] < 0.95 * sizes[0]:
        return
    ends = seen.trials.run(1, Level.EVERYTHING, values=seen.end)
    after = _data_term(ends[0])
    if after is None:
        return
    gained = (before[0] - after[0]) / max(abs(before[0]), 1e-12)
    falls_on = gained > 0.3 or (gained > 0.1 and not _rests(seen, after, sizes))
    if falls_on:
        proof = _empties(seen, sizes[0])
        if proof is None:
            return
    else:
        proof = _without_penalty(seen, STEPS_WATCHED)
    yield Finding(
        Cause.weight_decay_dominates,
        0.9,
        (
            Evidence(
                "gradient of the penalty over that of the data", before[2], "below 0.1"
            ),
            Evidence(
                "the data's part of the loss, before and after",
                f"{before[0]:.3g} -> {after[0]:.3g}",
                "falling",
            ),
            Evidence("the penalty's part", f"{before[1]:.3g} -> {after[1]:.3g}", "-"),
        ),
        (),
        "The loss falls because its penalty does: the variables shrink, and the part "
        "that compares with data does not get better.",
        "loss = data_loss + 1e-4 * penalty  # a strength that leaves the data the lead",
        proof if helps(proof, 0.01) else None,
    )


def _rests(
    seen: Observation, after: tuple[float, float, float], sizes: tuple[float, float]
) -> bool:
    """Whether the data's part has stopped to fall because the variables are gone."""
    halfway = seen.records[len(seen.records) // 2].after
    records = seen.trials.run(1, Level.EVERYTHING, values=halfway)
    middle = _data_term(records[0])
    gone = sizes[1] < 0.3 * sizes[0]
    return gone and middle is not None and after[0] > 0.99 * middle[0]


def _empties(seen: Observation, size: float) -> Proof | None:
    """Return the proof that a penalty empties the variables, and the data suffer.

    Variables drawn too large make a loss that falls at first while they shrink. Many
    steps on all are small, and the data's part is about what it is with all of them at
    zero, or could be far lower: what is left of it is not noise alone.
    """
    if seen.is_random or seen.trials.steps_left < 2 * MANY_STEPS + 1:
        return None
    proof = _without_penalty(seen, MANY_STEPS)
    if proof is None or not norm(seen.tensors) < 0.3 * size:
        return None
    nothing = [torch.zeros_like(tensor) for tensor in seen.trials.start]
    at_zero = _data_term(seen.trials.run(1, Level.EVERYTHING, values=nothing)[0])
    if at_zero is None:
        return None
    left, alone = proof.without[-1], proof.with_repair[-1]
    emptied = left > 0.9 * at_zero[0] or left > max(0.5 * at_zero[0], 2 * alone)
    return proof if emptied else None


def _without_penalty(seen: Observation, steps: int) -> Proof | None:
    """Return what the data's part of the loss does with and without the penalty.

    The variables are left where the steps as they are lead.
    """
    if seen.trials.steps_left < 2 * steps:
        return None
    which = [i for i in seen.trainable if seen.moves[i]]
    alone = DataAlone(seen.tensors, which, seen.optimizer)
    parts = []
    for change in (alone, None):
        records = seen.trials.run(steps, Level.EVERYTHING, change)
        terms = [_data_term(record) for record in records]
        if None in terms:
            return None
        parts.append(tuple(term[0] for term in terms))
    return Proof("the data's part alone, of which the losses are,", parts[1], parts[0])


def _data_term(record: StepRecord) -> tuple[float, float, float] | None:
    """Return data part, penalty part and the ratio of their gradients' norms."""
    terms = record.ways[0].terms if record.ways else []
    data = [t for t in terms if t.uses_data]
    penalty = [t for t in terms if not t.uses_data]
    if not data or not penalty:
        return None
    sizes = [_norm_of_sum(part) for part in (penalty, data)]
    ratio = sizes[0] / sizes[1] if sizes[1] > 0 else math.inf
    return sum(t.value for t in data), sum(t.value for t in penalty), ratio


def _norm_of_sum(terms: Sequence[Term]) -> float:
    total = 0.0
    for parts in zip(*(t.gradients for t in terms), strict=True):
        given = [p.double() for p in parts if p is not None]
        if given:
            total += float(sum(given).square().sum())
    return math.sqrt(total)


def _decay(seen: Observation) -> Iterator[Finding]:
    """Regularization pulls harder than the data."""
    strengths = [
        float(group.get("weight_decay", 0) or 0)
        for optimizer in seen.optimizers
        for group in optimizer.param_groups
    ]
    strongest = max(strengths, default=0.0)
    if strongest <= 0:
        return
    which = [i for i in seen.trainable if seen.stepped[i]]
    gradient = norm([seen.gradient[i] for i in which])
    pull = norm([strongest * seen.trials.start[i].double() for i in which])
    sizes = (
        norm([seen.end[i] for i in which]),
        norm([seen.trials.start[i] for i in which]),
    )
    if pull < 0.5 * gradient or sizes[0] > sizes[1]:
        return
    like = seen.optimizers[0]
    repair = RightUpdate(seen.tensors, which, like, weight_decay=0.0)
    proof = seen.prove("weight_decay=0", repair, steps=16)
    if not helps(proof, 0.02):
        return
    yield Finding(
        Cause.weight_decay_dominates,
        0.9,
        (
            Evidence(
                "weight decay times weights, over the data's gradient",
                pull / max(gradient, 1e-300),
                "below 0.1",
            ),
            Evidence(
                "norm of the variables, before and after",
                f"{sizes[1]:.3g} -> {sizes[0]:.3g}",
                "growing, or at rest",
            ),
        ),
        (),
        "Weight decay shrinks the variables faster than the data can make them grow: "
        "they go to zero, whatever the loss says.",
        "optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)",
        proof,
    )

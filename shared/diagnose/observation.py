"""What was seen of a step, as answers to the questions that the rules ask."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch

from shared.diagnose.flow import Passage, Way
from shared.diagnose.repairs import Repair
from shared.diagnose.report import Finding, Note, Proof
from shared.diagnose.targets import base_loss
from shared.diagnose.trials import OutOfBudget, Trials
from shared.diagnose.watch import BackwardCall, Level, StepRecord, UpdateCall, quiet

ALL_ZERO = 2
"""The place in `Observation.scan` of the point at which all variables are zero."""

STEPS_IN_DETAIL = 3
STEPS_WATCHED = 20
STEPS_OF_PROOF = 8
DRAWS = 6
"""Over how many batches or random numbers a mean loss is taken."""
SMALLEST_SIZE = 1e-2
"""Variables smaller than this are probed as if they were of this size."""
LENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Lengths of moves against a gradient, in lengths of all variables together."""
RADII = (1e-3, 1e-1, 1.0, 10.0, 1e3)
"""Distances at which the loss is probed, in multiples of the variables' own size."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """A tensor that should change, under the name by which the reader knows it."""

    name: str
    tensor: torch.Tensor


@dataclasses.dataclass
class Observation:
    """All that is known about a step when the rules are asked.

    Args:
        variables: what should change.
        trials: runs the step from the kept state.
        optimizer: the reader's, or None.
        module: the module that `variables` was, if it was one.
        batch: inputs and targets, if the reader named them.
        metric: gives a number that should rise, if the reader named it.
        loss_fn: compares a prediction with a target, if the reader named it.
    """

    variables: list[Variable]
    trials: Trials
    optimizer: torch.optim.Optimizer | None = None
    module: torch.nn.Module | None = None
    batch: tuple[torch.Tensor, torch.Tensor] | None = None
    metric: Callable[[], float] | None = None
    loss_fn: Callable[..., torch.Tensor] | None = None
    notes: list[Note] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    rebound: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    """What stood, after the watched steps, where a variable had stood."""
    _metric_after: float | None = None

    # -- the watched steps ------------------------------------------------------------

    @cached_property
    def records(self) -> list[StepRecord]:
        """The first steps from the kept state, three of them watched in detail."""
        records = self.trials.run(STEPS_IN_DETAIL, Level.EVERYTHING)
        if len(records) < STEPS_IN_DETAIL or records[-1].error is not None:
            # Where backward raises, its root is the only loss that there is.
            self.trials.least_level = Level.GRADIENTS
            self.rebound = self.trials.snapshot.rebound(self.tensors)
            self._metric_after = None
            return records
        more = STEPS_WATCHED - STEPS_IN_DETAIL
        records += self.trials.go_on(more, Level.GRADIENTS)
        if not any(r.updates for r in records) and self.optimizers:
            # An optimizer that waits: gradients of many batches may be collected.
            records += self.trials.go_on(STEPS_WATCHED, Level.GRADIENTS)
        self._metric_after = self.measure_metric()
        self.rebound = self.trials.snapshot.rebound(self.tensors)
        return records

    @cached_property
    def metric_change(self) -> tuple[float, float] | None:
        """The reader's metric before and after the watched steps."""
        if self.metric is None or len(self.records) < STEPS_IN_DETAIL:
            return None
        self.trials.snapshot.restore()
        before = self.measure_metric()
        after = self._metric_after
        if before is None or after is None:
            return None
        return before, after

    @cached_property
    def metric_on_other_draws(self) -> float:
        """The metric after as many steps from the same values, on other draws."""
        self.trials.run(1)
        self.trials.write(self.trials.start)
        self.trials.go_on(STEPS_WATCHED, Level.LOSS)
        return self.measure_metric()

    def measure_metric(self) -> float | None:
        """Return the reader's metric of the variables as they are now."""
        if self.metric is None:
            return None
        with quiet():
            value = self.metric()
        return float(value)

    @property
    def detailed(self) -> list[StepRecord]:
        """The steps that were watched in detail."""
        return self.records[:STEPS_IN_DETAIL]

    @cached_property
    def losses(self) -> list[float]:
        """The losses that the watched steps returned."""
        return [
            r.loss for r in self.records if r.error is None or math.isfinite(r.loss)
        ]

    @cached_property
    def error(self) -> BaseException | None:
        """What the reader's code raised, if it did."""
        return next((r.error for r in self.records if r.error is not None), None)

    @cached_property
    def ways(self) -> list[Way]:
        """All ways from the variables to a loss that were examined."""
        found = [way for record in self.detailed for way in record.ways]
        if not found:
            found = [r.return_way for r in self.detailed if r.return_way is not None]
        return found

    @cached_property
    def backwards(self) -> list[BackwardCall]:
        """All backward calls of all watched steps."""
        return [call for record in self.records for call in record.backwards]

    @cached_property
    def updates(self) -> list[UpdateCall]:
        """All optimizer calls of all watched steps."""
        return [call for record in self.records for call in record.updates]

    @cached_property
    def passages(self) -> list[Passage]:
        """The calls between variables and loss, in all examined ways."""
        return [p for way in self.ways for p in way.passages]

    @cached_property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Every optimizer that the step reaches, the reader's first."""
        known = list(self.trials.snapshot.optimizers)
        if self.optimizer is not None:
            known = [self.optimizer] + [o for o in known if o is not self.optimizer]
        return known

    # -- the variables, by index ------------------------------------------------------

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The variables' tensors."""
        return [v.tensor for v in self.variables]

    @property
    def everything(self) -> range:
        """The indices of all variables."""
        return range(len(self.variables))

    def names(self, which: Iterable[int]) -> tuple[str, ...]:
        """Return the names of some variables."""
        return tuple(self.variables[i].name for i in which)

    @cached_property
    def moves(self) -> list[bool]:
        """Whether a variable changed in any watched step."""
        return [
            any(not _same(r.before[i], r.after[i]) for r in self.records if r.after)
            for i in self.everything
        ]

    @cached_property
    def in_graph(self) -> list[bool]:
        """Whether a gradient can reach, or reached, a variable."""
        reached = set().union(*(way.reached_by_graph for way in self.ways), set())
        return [
            i in reached or any(c.fresh[i] is not None for c in self.backwards)
            for i in self.everything
        ]

    @cached_property
    def in_values(self) -> list[bool]:
        """Whether a variable's value was seen to enter a loss."""
        bits = 0
        for way in self.ways:
            bits |= way.reached_by_values
        return [bool(bits >> i & 1) for i in self.everything]

    @cached_property
    def dropped(self) -> list[bool]:
        """Whether modules compute with a variable, and hand nothing of that on."""
        every = -1 if self.detailed else 0
        for record in self.detailed:
            here = 0
            for call in record.modules:
                here |= call.dropped
            every &= here
        return [
            bool(every >> i & 1) and not used
            for i, used in zip(self.everything, self.in_values, strict=True)
        ]

    @cached_property
    def fresh_largest(self) -> list[float]:
        """The largest entry of any gradient that a variable was given; NaN counts."""
        return [
            _largest(c.fresh[i] for c in self.backwards if c.fresh[i] is not None)
            for i in self.everything
        ]

    def share_of_entries(self, which: Iterable[int]) -> float:
        """Return how much of all trainable entries some variables hold."""
        total = sum(self.tensors[i].numel() for i in self.trainable)
        return sum(self.tensors[i].numel() for i in which) / max(total, 1)

    def held_by(self, i: int) -> list[torch.optim.Optimizer]:
        """Return the optimizers that hold a variable."""
        return [o for o in self.optimizers if _holds(o, self.tensors[i])]

    @cached_property
    def stepped(self) -> list[bool]:
        """Whether some optimizer that holds a variable was called."""
        return [any(i in u.holds for u in self.updates) for i in self.everything]

    @cached_property
    def trainable(self) -> list[int]:
        """Variables that require gradients."""
        return [i for i in self.everything if self.tensors[i].requires_grad]

    @cached_property
    def gradient_is_zero(self) -> bool:
        """Whether gradients arrive, and every entry of all of them is exactly zero."""
        sizes = [self.fresh_largest[i] for i in self.everything if self.in_graph[i]]
        given = [c for c in self.backwards if any(f is not None for f in c.fresh)]
        return bool(given) and bool(sizes) and all(size == 0 for size in sizes)

    # -- does it learn? ---------------------------------------------------------------

    @cached_property
    def end(self) -> list[torch.Tensor]:
        """The variables' values after the watched steps."""
        return self.records[-1].after

    @cached_property
    def is_random(self) -> bool:
        """Whether two steps from the same values give different losses."""
        first, second = self.records[0], self.trials.second_draw()
        if second.error is not None:
            return False
        gradients = zip(first.fresh(), second.fresh(), strict=True)
        same = first.loss == second.loss and all(
            (a is None) == (b is None) and (a is None or _same(a, b))
            for a, b in gradients
        )
        same = same and not self._moves_at_random(first, second)
        if not same:
            # Where every draw's gradient is exactly zero, so is that of their mean.
            self.trials.draws = 1 if self.gradient_is_zero else DRAWS
        return not same

    def _moves_at_random(self, *records: StepRecord) -> bool:
        """Whether steps from the same values, without backward, end at others."""
        remembers = any(len(o.state) for o in self.optimizers)
        if remembers or any(r.backwards or r.error is not None for r in records):
            return False
        ends = zip(*(record.after for record in records), strict=True)
        return any(not _same(a, b) for a, b in ends)

    @cached_property
    def _pairs(self) -> tuple[list[float], list[float]]:
        """The losses before and after the watched steps, on the same draws."""
        if not self.is_random or self.trials.large:
            return self.losses[:1], self.losses[-1:]
        before = self.trials.losses_at(self.trials.start)
        return before, self.trials.losses_at(self.end)

    @property
    def progress(self) -> tuple[float, float]:
        """The mean loss before and after the watched steps, on the same draws."""
        before, after = self._pairs
        if not before or not after:
            return math.nan, math.nan
        return sum(before) / len(before), sum(after) / len(after)

    @cached_property
    def fall(self) -> float:
        """By which share of its size the loss fell in the watched steps."""
        before, after = self.progress
        if not (math.isfinite(before) and math.isfinite(after)):
            return -math.inf
        return (before - after) / max(abs(before), self.rounding, 1e-12)

    @cached_property
    def rounding(self) -> float:
        """The size of a loss that is nothing but what its summands' digits leave."""
        spacing = min(torch.finfo(tensor.dtype).eps for tensor in self.tensors)
        # The summands are those of what backward starts from, which may be scaled up.
        return spacing * self.summands / max(self._root_over_loss, 1.0)

    @cached_property
    def learns(self) -> bool:
        """Whether the loss clearly falls: by 3 %, and by more than chance."""
        if self.metric_rises:
            return True
        if self.metric_change is not None and self.is_random:
            before, after = self.metric_change
            if after > before and not self.metric_barely_rises:
                return True
        if self._returned_losses_fall():
            return True
        if not self.fall > (0.2 if self._overshot else 0.03):
            return False
        if self.is_random and self.metric_change is not None:
            # What rises by so little may have risen by chance; twice is less likely.
            before, after = self.metric_change
            return after > before and self.metric_on_other_draws > before
        pairs = list(zip(*self._pairs, strict=False))
        if len(pairs) < 3:
            return True
        falls = [before - after for before, after in pairs]
        mean = sum(falls) / len(falls)
        spread = math.sqrt(sum((f - mean) ** 2 for f in falls) / (len(falls) - 1))
        return mean > 2 * spread / math.sqrt(len(falls))

    @cached_property
    def constant_loss(self) -> float:
        """The loss of the best answer that does not look at the inputs; 0 if unknown.

        It is known where a module's outputs are compared with targets.
        """
        pairs = [target for _, target in self.detailed[-1].pairs]
        return base_loss(pairs[-1]) if pairs else 0.0

    def knows_nothing(self, share: float = 0.8) -> bool:
        """Whether the loss is about that of an answer that does not look at inputs."""
        return self.progress[1] > share * self.constant_loss > 0

    @cached_property
    def metric_rises(self) -> bool:
        """Whether the reader's metric rises by a tenth and more, whatever the loss."""
        if self.metric_change is None:
            return False
        before, after = self.metric_change
        return after > before + 0.1 * max(abs(before), 1e-3)

    @cached_property
    def metric_barely_rises(self) -> bool:
        """Whether the reader's metric rises, and by less than 2 %."""
        if self.metric_change is None:
            return False
        before, after = self.metric_change
        return before < after <= before + 0.02 * max(abs(before), 1e-3)

    @property
    def _overshot(self) -> bool:
        """Whether the loss first rose to more than twice what it was."""
        return not self.is_random and max(self.losses) > 2 * abs(self.losses[0])

    def _returned_losses_fall(self) -> bool:
        """Whether the returned losses fall by more than they scatter.

        The step may train more than the variables; then only these losses tell.
        """
        quarter = len(self.losses) // 4
        if quarter < 3 or self.metric is not None or self.fall < -1:
            return False
        first, last = self.losses[:quarter], self.losses[-quarter:]
        if not all(map(math.isfinite, (*first, *last))):
            return False
        means = sum(first) / quarter, sum(last) / quarter
        scatter = max(_scatter(first), _scatter(last))
        least = max(0.05 * abs(means[0]), 3 * scatter, self.rounding)
        return means[0] - means[1] > least

    # -- probes -----------------------------------------------------------------------

    @cached_property
    def sizes(self) -> list[float]:
        """The root mean square of each variable; 1 where it is all zeros."""
        found = []
        for start in self.trials.start:
            size = (
                float(start.double().square().mean().sqrt()) if start.numel() else 0.0
            )
            usable = size > 0 and math.isfinite(size)
            found.append(max(size, SMALLEST_SIZE) if usable else 1.0)
        return found

    @cached_property
    def length(self) -> float:
        """The length of all variables together, by their `sizes`."""
        return math.hypot(
            *(
                size * math.sqrt(start.numel())
                for size, start in zip(self.sizes, self.trials.start, strict=True)
            )
        )

    def random_direction(
        self, seed: int, which: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        """Return Gaussian noise of each variable's own size, zeros for the others."""
        generator = torch.Generator().manual_seed(seed)
        chosen = set(self.everything if which is None else which)
        return [
            size * torch.randn(start.shape, generator=generator, dtype=torch.float64)
            if i in chosen and start.is_floating_point()
            else torch.zeros(start.shape, dtype=torch.float64)
            for i, (start, size) in enumerate(
                zip(self.trials.start, self.sizes, strict=True)
            )
        ]

    def losses_around(
        self, which: Sequence[int] | None = None, radii: Sequence[float] = RADII
    ) -> dict[float, float]:
        """Return the loss of one step at several distances in a random direction."""
        found = {}
        for number, radius in enumerate(radii):
            direction = self.random_direction(number, which)
            values = self.trials.moved(direction, radius)
            records = self.trials.run(1, values=values)
            found[radius] = records[0].loss if records else math.nan
        return found

    @cached_property
    def loss_scale(self) -> float:
        """The size of the loss, or of its change over a move of the variables' size."""
        change = abs(self.around[1.0] - self.losses[0])
        return max(abs(self.losses[0]), change if math.isfinite(change) else 0.0, 1e-12)

    @cached_property
    def root_share(self) -> float:
        """The size of what backward starts from over that of the loss, at most 1.

        A loss that is divided before backward (by a scale, or by the number of
        batches) has a gradient that is smaller by as much.
        """
        return min(self._root_over_loss, 1.0)

    @cached_property
    def _root_over_loss(self) -> float:
        first = self.records[0]
        roots = abs(sum(call.value for call in first.backwards))
        if not roots > 0 or not abs(first.loss) > 0 or not math.isfinite(roots):
            return 1.0
        return roots / abs(first.loss)

    @cached_property
    def around(self) -> dict[float, float]:
        """The loss at several distances from the start, all variables moved."""
        return self.losses_around()

    @cached_property
    def loss_is_constant(self) -> bool:
        """Whether the loss stays the same, up to rounding, wherever one goes."""
        limit = 1e-6 * self.summands
        return all(
            self.same_loss(loss) or abs(loss - self.losses[0]) <= limit
            for probes in (self.around.values(), self.scan)
            for loss in probes
        )

    @cached_property
    def loss_is_nearly_constant(self) -> bool:
        """Whether next to nothing changes the loss, out to 10,000 sizes.

        A small number that keeps a normalization from dividing by zero leaves a trace
        of the variables in a loss that does not depend on them otherwise.
        """
        first = self.losses[0]
        if not math.isfinite(first) or not first or self.is_random:
            return False
        far = self.losses_around(radii=(1e2, 1e4))
        near = (*self.around.values(), *far.values())
        # At zero itself such a loss may be another one: zero divided by the number.
        rest = [loss for k, loss in enumerate(self.scan) if k != ALL_ZERO]
        return all(
            abs(loss - first) <= limit * abs(first)
            for losses, limit in ((near, 1e-4), (rest, 1e-3))
            for loss in losses
        )

    @cached_property
    def summands(self) -> float:
        """The size of what the loss is summed from, which sets its rounding."""
        return max((way.summands for way in self.ways), default=0.0)

    @cached_property
    def lower_elsewhere(self) -> float | None:
        """The lowest loss at scattered points, if it is below that of the start."""
        first = self.losses[0]
        found = [x for x in (*self.around.values(), *self.scan) if math.isfinite(x)]
        lowest = min(found, default=first)
        return lowest if lowest < first - 1e-5 * max(abs(first), 1e-12) else None

    def gain_against(
        self, gradient: Sequence[torch.Tensor], lengths: Sequence[float] = LENGTHS
    ) -> float:
        """Return by how much the loss falls on the way against a gradient, at most.

        Moves are ``lengths`` times as long as all variables together; 0 if none helps.
        """
        size = norm(gradient)
        if not size or not math.isfinite(size):
            return 0.0
        direction = [-self.length / size * g.double() for g in gradient]
        found = self.along(direction, lengths)
        start = self.progress[0]
        return max((start - x for x in found.values() if x < start), default=0.0)

    def ascends(self) -> bool:
        """Whether the step returns a score that it raises on purpose."""
        groups = [g for u in self.updates for g in u.optimizer.param_groups]
        maximizes = bool(groups) and all(g.get("maximize") for g in groups)
        last = [r.backwards[-1].value for r in self.records if r.backwards]
        opposite = len(last) == len(self.losses) and all(
            value != 0 and math.isclose(value, -loss, rel_tol=1e-5)
            for value, loss in zip(last, self.losses, strict=True)
        )
        if not self.losses or self.losses[-1] <= self.losses[0]:
            return False
        by_hand = not groups and self.metric_rises
        if not (maximizes or opposite or by_hand):
            return False
        change = self.metric_change
        if change is not None:
            return change[1] > change[0]
        compares = any(
            p.facts.get("kind") in ("cross_entropy", "with_logits", "pairing")
            for p in self.passages
        )
        return self.module is None and not compares

    @cached_property
    def lowest_point(self) -> list[torch.Tensor] | None:
        """The values at the lowest of the scattered points, if lower than the start."""
        losses = [x if math.isfinite(x) else math.inf for x in self.scan]
        lowest = min(losses)
        if not lowest < self.losses[0]:
            return None
        return self.trials.moved(self._scattered_moves[losses.index(lowest)])

    @cached_property
    def scan(self) -> list[float]:
        """The loss at scattered points: nearer to zero, shifted, and at random."""
        return [
            self.trials.run(1, values=self.trials.moved(move))[0].loss
            for move in self._scattered_moves
        ]

    @cached_property
    def _scattered_moves(self) -> list[list[torch.Tensor]]:
        start = [s.double() for s in self.trials.start]
        moves = [[-share * s for s in start] for share in (0.3, 0.6, 1.0)]  # ALL_ZERO
        for distance in (-3.0, -1.0, -0.3, 0.3, 1.0, 3.0):
            moves.append(
                [
                    torch.full_like(s, distance * size)
                    for s, size in zip(start, self.sizes, strict=True)
                ]
            )
        few = sum(s.numel() for s in start) <= 64
        for number in range(24 if few else 4):
            radius = 10 ** (-0.5 + 1.5 * ((number * 0.618) % 1))
            direction = self.random_direction(100 + number)
            moves.append([radius * d for d in direction])
        return moves

    def same_loss_exactly(self, loss: float) -> bool:
        """Whether a loss is that of the first step to the bit."""
        return loss == self.losses[0] or (
            loss != loss and self.losses[0] != self.losses[0]
        )

    def same_loss(self, loss: float, beside: float | None = None) -> bool:
        """Whether two losses agree up to a few units in the last place."""
        first = self.losses[0] if beside is None else beside
        if math.isnan(loss) or math.isnan(first):
            return math.isnan(loss) and math.isnan(first)
        return loss == first or abs(loss - first) <= 1e-6 * max(abs(first), abs(loss))

    @cached_property
    def gradient(self) -> list[torch.Tensor]:
        """The mean gradient at the start, float64, zeros where there is none."""
        if self.is_random:  # which sets over how many draws the mean is taken
            return self.trials.gradient_at(self.trials.start)
        return [
            torch.zeros_like(start, dtype=torch.float64)
            if gradient is None
            else gradient.double()
            for start, gradient in zip(
                self.trials.start, self.records[0].fresh(), strict=True
            )
        ]

    @cached_property
    def gradient_norm(self) -> float:
        """The norm of the mean gradient at the start."""
        return norm(self.gradient)

    @cached_property
    def update(self) -> list[torch.Tensor]:
        """The mean change of the variables in one of the watched steps."""
        first = self.records[0].before
        moving = [r for r in self.records if r.after]
        return [
            (b.double() - a.double()) / max(len(moving), 1)
            for a, b in zip(first, moving[-1].after, strict=True)
        ]

    @cached_property
    def first_update(self) -> list[torch.Tensor]:
        """The variables' change in the first step that changed any."""
        for record in self.records:
            if record.after and any(record.moved()):
                return [
                    b.double() - a.double()
                    for a, b in zip(record.before, record.after, strict=True)
                ]
        return [torch.zeros_like(s, dtype=torch.float64) for s in self.trials.start]

    def along(
        self, direction: Sequence[torch.Tensor], distances: Iterable[float]
    ) -> dict[float, float]:
        """Return the mean loss at some distances from the start along a direction."""
        return {
            distance: self.trials.loss_at(self.trials.moved(direction, distance))
            for distance in distances
        }

    # -- proofs -----------------------------------------------------------------------

    def prove(
        self,
        text: str,
        repair: Repair,
        steps: int = STEPS_OF_PROOF,
        values: Sequence[torch.Tensor] | None = None,
    ) -> Proof | None:
        """Run some steps with a repair, beside the same number without it."""
        if self.trials.large:
            return None  # a proof needs copies of all variables
        try:
            repaired = self.trials.run(steps, repair.level, repair, values)
            longer = steps > STEPS_WATCHED and len(repaired) > len(self.losses)
            as_it_is = self.trials.losses(steps) if longer else self.losses
        except OutOfBudget:
            self.skipped.append(f"proof by '{text}' (no steps left)")
            return None
        losses = tuple(r.loss for r in repaired if r.error is None)
        without = tuple(as_it_is[: len(losses)])
        if not losses or not without:
            return None
        return Proof(text, without, losses)


def helps(proof: Proof | None, least: float = 0.01) -> bool:
    """Whether a repair brings the loss down further than going on without it."""
    if proof is None:
        return False
    ends = proof.with_repair[-1], proof.without[-1]
    if not math.isfinite(ends[0]):
        return False
    if not math.isfinite(ends[1]):
        return True
    start = (
        proof.without[0] if math.isfinite(proof.without[0]) else proof.with_repair[0]
    )
    return ends[1] - ends[0] > least * max(abs(start), 1e-12)


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """Return the norm of all entries together, in float64."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def cosine(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Return the cosine of the angle between two lists of tensors; NaN at zero."""
    product = sum(
        float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True)
    )
    size = norm(a) * norm(b)
    return product / size if size > 0 else math.nan


def _scatter(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return math.sqrt(variance)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _holds(optimizer: torch.optim.Optimizer, tensor: torch.Tensor) -> bool:
    return any(p is tensor for group in optimizer.param_groups for p in group["params"])


def _largest(gradients: Iterable[torch.Tensor]) -> float:
    largest = 0.0
    for gradient in gradients:
        if not gradient.numel():
            continue
        lowest, highest = map(float, torch.aminmax(gradient))
        size = max(-lowest, highest)
        if math.isnan(size):
            return math.nan
        largest = max(largest, size)
    return largest


Rule = Callable[[Observation], Iterable[Finding]]

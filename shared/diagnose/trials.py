"""Runs the reader's step again and again from the same state, as it is or changed.

A trial starts from the state that `Snapshot` keeps, so two trials differ by what was
changed on purpose and by nothing else: same batches, same random numbers.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from shared.diagnose.flow import LARGE
from shared.diagnose.repairs import Repair
from shared.diagnose.state import Snapshot
from shared.diagnose.watch import Level, StepRecord, StepWatch

Values = Sequence[torch.Tensor]


class OutOfBudget(Exception):
    """The steps that a diagnosis may run are used up."""


class Trials:
    """Trials of one step.

    Args:
        step: the reader's own.
        variables: the tensors that should change.
        snapshot: the state that each trial starts from.
        most_steps: how often the step may be run in all.
    """

    def __init__(
        self,
        step: Callable[[], Any],
        variables: Values,
        snapshot: Snapshot,
        most_steps: int,
    ) -> None:
        self.variables = list(variables)
        self.snapshot = snapshot
        self.most_steps = most_steps
        self.steps_run = 0
        self.draws = 1
        self.least_level = Level.LOSS
        self._watch = StepWatch(step, variables)
        with torch.no_grad():
            # The snapshot's own copies, which nobody writes to; others are made.
            known_values = (snapshot.values.get(id(v)) for v in variables)
            self.start = [
                v.detach().clone() if value is None else value
                for v, value in zip(variables, known_values, strict=True)
            ]
            known = {id(v) for v in variables}
            held = [
                p
                for o in snapshot.optimizers
                for g in o.param_groups
                for p in g["params"]
            ]
            self._others = [
                (p, p.detach().clone())
                for p in held
                if id(p) not in known and p.numel() <= LARGE
            ]
        self.large = sum(v.numel() for v in variables) > LARGE

    @property
    def steps_left(self) -> int:
        """How many more steps may be run."""
        return self.most_steps - self.steps_run

    def run(
        self,
        steps: int,
        level: Level = Level.LOSS,
        repair: Repair | None = None,
        values: Values | None = None,
        pinned: bool = False,
    ) -> list[StepRecord]:
        """Run some steps from the kept state.

        Args:
            steps: how many.
            level: how closely they are watched.
            repair: a change of what the step does.
            values: what the variables are set to first.
            pinned: whether they are set to it again before each step.

        Raises:
            OutOfBudget: if fewer steps than these are left.
        """
        if steps > self.steps_left:
            raise OutOfBudget
        level = max(level, self.least_level)
        self.snapshot.restore()
        if values is not None:
            self.write(values)
        records = []
        with repair or nullcontext():
            for number in range(steps):
                if pinned and number:
                    self.write(self.start if values is None else values)
                    self._write_others()
                if repair is not None:
                    repair.before_step()
                record = self._watch.run(
                    level if repair is None else max(level, repair.level)
                )
                if repair is not None:
                    repair.after_step(record)
                self.steps_run += 1
                if isinstance(record.error, StopIteration) and records:
                    break  # the reader's iterator has no more batches
                records.append(record)
                if record.error is not None:
                    break
        return records

    def second_draw(self) -> StepRecord:
        """Run a step from the start, put the variables back, and run the next one.

        Raises:
            OutOfBudget: if fewer than two steps are left.
        """
        if self.steps_left < 2:
            raise OutOfBudget
        self.snapshot.restore()
        self._watch.run(Level.LOSS)
        self.write(self.start)
        self._write_others()
        self.steps_run += 2
        return self._watch.run(max(Level.GRADIENTS, self.least_level))

    def _write_others(self) -> None:
        """Set back what the step trains besides the variables."""
        with torch.no_grad():
            for tensor, value in self._others:
                tensor.data.copy_(value)

    def go_on(self, steps: int, level: Level) -> list[StepRecord]:
        """Run further steps from where the last trial ended."""
        if steps > self.steps_left:
            raise OutOfBudget
        records = []
        for _ in range(steps):
            record = self._watch.run(level, goes_on=True)
            self.steps_run += 1
            if record.error is not None:
                break
            records.append(record)
        return records

    def write(self, values: Values) -> None:
        """Set the variables."""
        with torch.no_grad():
            for variable, value in zip(self.variables, values, strict=True):
                variable.data.copy_(value)

    def losses(
        self, steps: int, repair: Repair | None = None, values: Values | None = None
    ) -> list[float]:
        """Return the losses of some steps from the kept state."""
        return [r.loss for r in self.run(steps, Level.LOSS, repair, values)]

    def loss_at(self, values: Values) -> float:
        """Return the mean loss with the variables at these values.

        Nothing but the variables differs from the kept state. Where a step draws
        batches or random numbers, the mean is over ``draws`` of them.
        """
        losses = self.losses_at(values)
        return sum(losses) / len(losses) if losses else math.nan

    def losses_at(self, values: Values) -> list[float]:
        """Return the loss of each draw with the variables at these values."""
        found = self.run(self.draws, Level.LOSS, values=values, pinned=True)
        return [r.loss for r in found if r.error is None or math.isfinite(r.loss)]

    @property
    def sign(self) -> float:
        """-1 where the reader's step returns a score, which should rise; else 1."""
        return self._watch.sign

    @sign.setter
    def sign(self, sign: float) -> None:
        self._watch.sign = sign

    def gradient_at(self, values: Values) -> list[torch.Tensor]:
        """Return the mean gradient there; zeros where a variable has none."""
        found = self.run(self.draws, Level.GRADIENTS, values=values, pinned=True)
        totals = [torch.zeros_like(v, dtype=torch.float64) for v in self.start]
        for record in found:
            for total, gradient in zip(totals, record.fresh(), strict=True):
                if gradient is not None:
                    total += gradient.double() / len(found)
        return totals

    def moved(self, direction: Values, distance: float = 1.0) -> list[torch.Tensor]:
        """Return the variables' values after a move from the kept state."""
        return [
            (start.double() + distance * d.double()).to(start.dtype)
            for start, d in zip(self.start, direction, strict=True)
        ]

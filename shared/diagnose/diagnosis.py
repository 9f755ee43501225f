"""The one entry: from a reader's step to a report."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.dead_ends import dead_ends
from shared.diagnose.inputs import inputs, pairing
from shared.diagnose.loss_faults import loss_faults
from shared.diagnose.number_formats import not_a_number, precision
from shared.diagnose.observation import STEPS_IN_DETAIL, Observation, Variable
from shared.diagnose.progress import progress
from shared.diagnose.proofs import with_proofs
from shared.diagnose.report import Finding, Note, Report
from shared.diagnose.state import Snapshot
from shared.diagnose.trials import OutOfBudget, Trials
from shared.diagnose.watch import as_float
from shared.diagnose.wiring import wiring

MOST_STEPS = 150
STAGES = (
    not_a_number,
    wiring,
    loss_faults,
    precision,
    inputs,
    dead_ends,
    progress,
    pairing,
)
"""In this order: exact connections, numbers, landscape and chance, then the data."""


class StepError(ValueError):
    """The step cannot be diagnosed: the message says why and what is allowed."""


def diagnose(
    step: Callable[[], Any],
    variables: Any,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    loss_fn: Callable[..., torch.Tensor] | None = None,
    batch: tuple[torch.Tensor, torch.Tensor] | None = None,
    objective: Callable[..., Any] | None = None,
    metric: Callable[[], float] | None = None,
    most_steps: int = MOST_STEPS,
) -> Report:
    """Say why a step does not make the loss fall, with the evidence and the repair.

    The step is run a few dozen times on the reader's own objects; afterwards all that
    it touched is as before, also if it raised.

    Args:
        step: one iteration of the reader's code; it takes no arguments and returns the
            loss, a tensor with one entry or a number.
        variables: what should change: a module, a tensor, or a list or dict of tensors.
        optimizer: the optimizer, or None for updates written by hand.
        loss_fn: compares a prediction with a target.
        batch: the inputs and the targets of the step.
        objective: the function of the variable that is optimized.
        metric: gives, without arguments, a number that is better when higher.
        most_steps: how often the step may be run.

    Returns:
        The findings, best first, and notes.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if there is no variable, or one of them holds no real numbers.
        StepError: if the step raises, or returns no single number.
    """
    named = named_variables(variables)
    _check_step(step)
    _check_arguments(optimizer, batch, loss_fn, objective, metric)
    tensors = [v.tensor for v in named]
    roots = (step, variables, optimizer, loss_fn, batch, objective, metric)
    snapshot = Snapshot([root for root in roots if root is not None], tensors)
    try:
        seen = Observation(
            variables=named,
            trials=Trials(step, tensors, snapshot, most_steps),
            optimizer=optimizer,
            module=variables if isinstance(variables, torch.nn.Module) else None,
            batch=batch,
            metric=metric,
            loss_fn=loss_fn,
        )
        return _report(seen)
    finally:
        snapshot.close()


def _report(seen: Observation) -> Report:
    _check_first_step(seen)
    if seen.ascends():
        seen.trials.sign = -1.0
        for record in seen.records:
            record.loss *= -1.0
        seen.notes.append(Note("The step returns a score, and raises it."))
        del seen.losses
    findings: list[Finding] = []
    for stage in STAGES:
        if findings and stage not in (wiring, loss_faults):
            break
        if _breaks_off(seen) and stage is progress:
            break
        if seen.trials.large and stage is progress:
            seen.skipped.append("probes of the landscape, and proofs (large model)")
            continue
        try:
            findings += stage(seen)
        except OutOfBudget:
            seen.skipped.append(f"{stage.__name__} (no steps left)")
    if not findings:
        _raise_own_error(seen)
    proved = with_proofs(seen, _one_each(findings))
    return Report(
        findings=tuple(_shaken_last(proved)),
        notes=tuple(seen.notes),
        losses=tuple(seen.losses),
        steps_run=seen.trials.steps_run,
        skipped=tuple(seen.skipped),
    )


def _shaken_last(findings: Sequence[Finding]) -> list[Finding]:
    """Put findings whose repair was tried and does not help behind the others."""
    shaken = [f for f in findings if f.proof is not None and not f.proof.holds]
    return [f for f in findings if f not in shaken] + [
        dataclasses.replace(f, confidence=f.confidence / 2) for f in shaken
    ]


def _one_each(findings: Iterable[Finding]) -> list[Finding]:
    """Return the first finding of each cause."""
    found: dict[Cause, Finding] = {}
    for finding in findings:
        found.setdefault(finding.cause, finding)
    return list(found.values())


def named_variables(variables: Any) -> list[Variable]:
    """Return the tensors that should change, by name.

    Raises:
        TypeError: if it is no module, tensor, list, tuple or dict of tensors.
        ValueError: if it is empty, or a tensor holds no real numbers.
    """
    if isinstance(variables, torch.nn.Module):
        pairs = list(variables.named_parameters())
    elif isinstance(variables, torch.Tensor):
        pairs = [("x", variables)]
    elif isinstance(variables, Mapping):
        pairs = [(str(name), value) for name, value in variables.items()]
    elif isinstance(variables, Iterable):
        pairs = [(f"[{i}]", value) for i, value in enumerate(variables)]
    else:
        raise TypeError(
            "variables must be an nn.Module, a tensor, or a list or dict of tensors, "
            f"not {type(variables).__name__}"
        )
    if not pairs:
        raise ValueError("variables must name at least one tensor; it is empty")
    for name, value in pairs:
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"variables[{name!r}] must be a tensor, not {type(value).__name__}"
            )
        if value.is_complex():
            raise ValueError(
                f"variables[{name!r}] must hold real numbers, not {value.dtype}: hand "
                "in the real and the imaginary part as two tensors, and make the "
                "complex one of them inside the step (torch.complex)"
            )
        if not value.is_floating_point():
            raise ValueError(
                f"variables[{name!r}] must hold floating-point numbers, not "
                f"{value.dtype}: only these have gradients"
            )
        if not value.numel():
            raise ValueError(f"variables[{name!r}] must have entries; it is empty")
    return [Variable(name, value) for name, value in pairs]


def _check_step(step: Any) -> None:
    if not callable(step):
        raise TypeError(f"step must be a function, not {type(step).__name__}")
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):
        return
    needed = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise TypeError(
            f"step must take no arguments; it needs {', '.join(needed)}. Hand in "
            f"lambda: step({', '.join(needed)})"
        )


def _check_arguments(
    optimizer: Any,
    batch: Any,
    *callables: Any,
) -> None:
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer or None, not "
            f"{type(optimizer).__name__}"
        )
    if batch is not None and (not isinstance(batch, (tuple, list)) or len(batch) != 2):
        raise TypeError(f"batch must be a pair (inputs, targets), not {batch!r:.60}")
    names = ("loss_fn", "objective", "metric")
    for name, value in zip(names, callables, strict=True):
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function, not {type(value).__name__}")


def _check_first_step(seen: Observation) -> None:
    """Refuse a step that cannot be judged.

    Raises:
        StepError: says what the step must return.
    """
    first = seen.records[0]
    if first.error is not None:
        # An error of the graph itself is what a diagnosis explains; any other is not.
        complete = all(c.has_graph for c in first.backwards) and all(seen.in_graph)
        if not first.backwards or complete:
            _raise_own_error(seen)
        return
    if as_float(first.returned) is None:
        raise StepError(
            "step must return the loss, a tensor with one entry or a number, not "
            f"{_described(first.returned)}"
        )


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _raise_own_error(seen: Observation) -> None:
    if isinstance(seen.error, StopIteration) and not seen.losses:
        raise StepError("step must run at least once; its iterator is empty")
    if _breaks_off(seen):
        kind = type(seen.error).__name__
        raise StepError(
            f"step must run {STEPS_IN_DETAIL} times; call {len(seen.records)} raised "
            f"{kind}: {seen.error}"
        ) from seen.error


def _breaks_off(seen: Observation) -> bool:
    """Whether the step raises so early that its losses say nothing yet."""
    ended = isinstance(seen.error, StopIteration)
    return seen.error is not None and not ended and len(seen.losses) < STEPS_IN_DETAIL

"""Proofs that follow from a cause alone: asked once it is named, and not to name it.

Where a rule decides by its own proof, the finding has it already. These are tried for
the others, and shown where the repair helps.
"""

import dataclasses
from collections.abc import Callable, Sequence

from shared.diagnose.causes import Cause
from shared.diagnose.observation import STEPS_WATCHED, Observation, helps
from shared.diagnose.repairs import (
    OtherCalls,
    Repair,
    TrainedToo,
    UsedVariables,
    leaky,
)
from shared.diagnose.report import Finding, Proof
from shared.diagnose.trials import OutOfBudget
from shared.diagnose.upkeep import hidden_tensors

NUDGE = 0.1
"""Length of a random move off a stationary point, in the variables' own size."""


def with_proofs(seen: Observation, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, those with a proof that could be made and helps with it."""
    return [f if f.proof is not None else _proved(seen, f) for f in findings]


def _proved(seen: Observation, finding: Finding) -> Finding:
    prove = _PROOFS.get(finding.cause)
    if prove is None or seen.trials.large:
        return finding
    try:
        proof = prove(seen)
    except OutOfBudget:
        return finding
    if not helps(proof, 0.01):
        return finding
    return dataclasses.replace(finding, proof=proof)


def _off_the_point(seen: Observation) -> Proof | None:
    values = seen.trials.moved(seen.random_direction(3), NUDGE)
    text = f"a random move of {NUDGE:g} sizes, once"
    return seen.prove(text, Repair(), STEPS_WATCHED, values)


def _from_the_best_probe(seen: Observation) -> Proof | None:
    values = seen.lowest_point
    if values is None:
        return None
    return seen.prove("a start at the lowest point tried", Repair(), values=values)


def _less_far_out(seen: Observation) -> Proof | None:
    values = [(0.1 * start.double()).to(start.dtype) for start in seen.trials.start]
    return seen.prove("variables a tenth as large", Repair(), STEPS_WATCHED, values)


def _hidden_trained(seen: Observation) -> Proof | None:
    if seen.module is None or not seen.optimizers:
        return None
    known = {id(tensor) for tensor in seen.tensors}
    hidden = [tensor for _, tensor in hidden_tensors(seen.module, known)]
    repair = TrainedToo(hidden, seen.optimizers[0])
    return seen.prove("the unlisted ones trained, too", repair, STEPS_WATCHED)


def _used(seen: Observation) -> Proof | None:
    repair = UsedVariables(seen.tensors, seen.trials.start)
    return seen.prove("the variable in its copy's place", repair, STEPS_WATCHED)


def _leaky_for_longer(seen: Observation) -> Proof | None:
    calls = dict.fromkeys(("relu", "relu_", "threshold"), leaky)
    return seen.prove("leaky rectifier (slope 0.1)", OtherCalls(calls), STEPS_WATCHED)


_PROOFS: dict[Cause, Callable[[Observation], Proof | None]] = {
    Cause.stationary_not_minimum: _off_the_point,
    Cause.saddle_point: _off_the_point,
    Cause.out_of_support: _from_the_best_probe,
    Cause.saturated_activation: _less_far_out,
    Cause.unregistered_parameters: _hidden_trained,
    Cause.variable_not_used: _used,
    Cause.dead_relu: _leaky_for_longer,
}

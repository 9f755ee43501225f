"""Rules about a loss of which only a part passes its gradient back.

The variables move, so nothing is missing at first sight; but the part of the loss that
they should learn from is constant to them.
"""

from collections.abc import Iterator, Sequence

from shared.diagnose.causes import Cause
from shared.diagnose.cut_graph import keep_graph_everywhere
from shared.diagnose.flow import Way
from shared.diagnose.observation import Observation, helps
from shared.diagnose.repairs import GraphKeptWithinStep, UsedVariables
from shared.diagnose.report import Evidence, Finding, Proof
from shared.diagnose.terms import CutTerm
from shared.diagnose.torch_calls import CUTS, STEP_FUNCTIONS

FEWEST_STATES = 3
"""How many states of one loss are cut before that looks like a mistake."""

MANY_STEPS = 40
"""Steps in which something begins to be remembered."""

STEPS = 16
"""How many steps a proof takes: the part that has a graph may lead at first."""


def partial_graph(seen: Observation) -> Iterator[Finding]:
    """Give a part of a loss without a graph, where another moves the variables."""
    for rule in (_penalty_alone, _cut_states, _cut_on_the_way):
        found = list(rule(seen))
        yield from found
        if found:
            return


def _cut_on_the_way(seen: Observation) -> Iterator[Finding]:
    """Give an objective cut on the way to a part of it.

    Where a network is trained, parts are cut on purpose: targets, teachers, states.
    """
    cuts = [cut for way in seen.ways for cut in way.cuts if cut in CUTS]
    moving = all(seen.moves) and all(seen.in_graph)
    if seen.module is not None or len(seen.variables) > 1 or not moving or not cuts:
        return
    proof = seen.prove(f"{cuts[0]}() left out", keep_graph_everywhere(), STEPS)
    if not helps(proof, 0.05) or not proof.with_repair[-1] < 0.7 * proof.without[-1]:
        return
    yield Finding(
        Cause.graph_detached,
        0.7,
        (
            Evidence("calls that cut the graph on the way", len(cuts), "0"),
            Evidence("the first of them", f"{cuts[0]}()", "none"),
        ),
        seen.names(seen.everything),
        "One part of the loss passes its gradient back, and another does not: its "
        "graph is cut on the way. The variable follows the first part alone.",
        "features[name] = output  # without .detach(): the loss is made of it",
        proof,
    )


def _cut_states(seen: Observation) -> Iterator[Finding]:
    """Give states that are cut from one time step to the next, within one loss.

    Between losses that is meant: the graph must end somewhere. Within one the loss of
    a late time step teaches nothing about an early one.
    """
    ways = [way for record in seen.detailed for way in record.ways]
    fewest = min((way.cut_states for way in ways), default=0)
    if seen.module is None or fewest < FEWEST_STATES or not seen.knows_nothing(0.6):
        return
    proof = seen.prove("the states' graph kept", GraphKeptWithinStep(), MANY_STEPS)
    if not helps(proof, 0.05) or not proof.with_repair[-1] < 0.85 * proof.without[-1]:
        return
    yield Finding(
        Cause.graph_detached,
        0.85,
        (
            Evidence("states cut from their graph within one loss", fewest, "0 or 1"),
            Evidence(
                "loss now", seen.progress[1], f"below {seen.constant_loss:.3g}, a guess"
            ),
        ),
        (),
        "The state is detached at every time step, so each loss reaches back one time "
        "step and no further: what must be remembered for longer is never learned.",
        "state = state.detach()  # once, before the loop over time, not inside of it",
        proof,
    )


def _penalty_alone(seen: Observation) -> Iterator[Finding]:
    """Give a loss whose part with data is constant, and whose penalty is not."""
    ways = [way for record in seen.detailed for way in record.ways]
    if not ways or not any(seen.moves) or not all(way.cut_terms for way in ways):
        return
    cut = max((t for way in ways for t in way.cut_terms), key=lambda t: abs(t.value))
    if not cut.value or cut.on_purpose:
        return
    if cut.uses_copy:
        yield from _of_a_copy(seen, cut)
        return
    if not all(map(_only_penalties, ways)):
        return
    if cut.from_variables:
        yield _lost(seen, cut, [name for way in ways for name in way.cuts])
    elif seen.module is not None and cut.uses_data:
        escapes = [name for way in ways for name in way.escapes]
        if escapes:
            yield _lost(seen, cut, escapes)
        else:
            yield _not_used(seen, cut)


def _only_penalties(way: Way) -> bool:
    """Whether all that has a graph is computed from the variables and nothing else."""
    return bool(way.terms) and not any(term.uses_data for term in way.terms)


def _of_a_copy(seen: Observation, cut: CutTerm) -> Iterator[Finding]:
    """Give a part that is computed from values that a variable had before."""
    repair = UsedVariables(seen.tensors, seen.trials.start)
    proof = seen.prove("the variable in its copy's place", repair, STEPS)
    if helps(proof, 0.05):
        yield _not_used(seen, cut, proof)


def _not_used(seen: Observation, cut: CutTerm, proof: Proof | None = None) -> Finding:
    return Finding(
        Cause.variable_not_used,
        0.9,
        (
            Evidence("part of the loss that does not depend on them", cut.value, "0"),
            Evidence("what they move by", "the rest, a penalty", "the data"),
        ),
        seen.names(seen.everything),
        "Part of the loss is computed without these variables: from a copy made "
        "before, or from another object. They follow what is left, a penalty.",
        "loss = misfit(x) + 1e-3 * penalty(x)  # both of x as it is now",
        proof,
    )


def _lost(seen: Observation, cut: CutTerm, calls: Sequence[str]) -> Finding:
    steps = [name for name in calls if name in STEP_FUNCTIONS]
    where = (steps or list(calls) or ["a call outside torch"])[0]
    proof = None
    if not steps:
        proof = seen.prove(f"{where}() left out", keep_graph_everywhere(), STEPS)
    which = [i for i in seen.everything if cut.from_variables >> i & 1]
    return Finding(
        Cause.nondifferentiable_op if steps else Cause.graph_detached,
        0.95,
        (
            Evidence("part of the loss that passes no gradient back", cut.value, "0"),
            Evidence("its graph ends at", f"{where}()", "the variables"),
            Evidence("what passes one", "a penalty alone", "the data's part"),
        ),
        seen.names(which or seen.everything),
        "The variables move, by a penalty alone: the part of the loss that compares "
        f"with data depends on them, and its graph ends at {where}().",
        "# Something smooth in training, or its value with a gradient beside it:\n"
        "y = soft + (hard - soft).detach()"
        if steps
        else "# Every step from the variables to this part in torch, without\n"
        "# .detach(), .item(), .numpy() or torch.tensor(...)",
        proof if helps(proof, 0.0) else None,
    )

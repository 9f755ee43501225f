"""Rules about who is connected to whom: by object identity, without thresholds.

Each variable is followed through one step: does the loss depend on its value, does the
graph reach it, does a gradient arrive, is the gradient still there when the optimizer
is called, does the optimizer hold it, is the change written, does the change stay?
The first link that is broken names the cause.
"""

from collections.abc import Iterator, Sequence

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.cut_graph import depends, explain_detached, not_used
from shared.diagnose.flow import leaves_of
from shared.diagnose.observation import (
    STEPS_OF_PROOF,
    STEPS_WATCHED,
    Observation,
    helps,
)
from shared.diagnose.partial_graph import partial_graph
from shared.diagnose.repairs import RightUpdate
from shared.diagnose.report import Evidence, Finding, Note, Proof
from shared.diagnose.torch_calls import all_zero
from shared.diagnose.upkeep import never_cleared, rate_ends, unregistered
from shared.diagnose.watch import StepRecord, is_something
from shared.probes import ulp

MANY_STEPS = 60
"""Steps after which what is not frozen has shown what it can do alone."""


def wiring(seen: Observation) -> Iterator[Finding]:
    """Give what is wrong between variables, graph and optimizer."""
    stuck = [i for i in seen.everything if not seen.moves[i]]
    if seen.rebound:
        if seen.backwards:
            yield from _rebound(seen)
        return
    groups: dict[Cause, list[int]] = {}
    for i in stuck:
        cause = _broken_link(seen, i)
        if cause is not None:
            groups.setdefault(cause, []).append(i)
    for cause, which in sorted(groups.items(), key=lambda g: _ORDER.index(g[0])):
        yield from _EXPLAIN[cause](seen, which)
    if not groups.get(Cause.zero_grad_before_step):
        yield from _cleared_though_moving(seen)
    yield from rate_ends(seen)
    yield from never_cleared(seen)
    yield from unregistered(seen)
    yield from partial_graph(seen)


def _broken_link(seen: Observation, i: int) -> Cause | None:
    """Return the first broken link of a variable that did not move."""
    tensor = seen.tensors[i]
    if not tensor.is_leaf:
        return Cause.non_leaf_variable
    if not tensor.requires_grad:
        by_hand = not seen.backwards and any(r.written for r in seen.detailed)
        return None if by_hand else Cause.frozen_parameters
    if not seen.in_graph[i]:
        if any(r.gradient_handed >> i & 1 for r in seen.detailed):
            return None
        # Without a call of backward the step computes its updates in another way.
        by_hand = all(call.asked for call in seen.backwards)
        by_hand &= any(r.copy_written for r in seen.detailed)
        return Cause.update_written_to_copy if by_hand else Cause.graph_detached
    if not seen.fresh_largest[i] > 0:
        hooked = any(way.at_variables.get(i, 0.0) > 0 for way in seen.ways)
        if hooked and seen.fresh_largest[i] == 0 and tensor._backward_hooks:
            return Cause.zero_grad_before_step
        return None  # a zero or NaN gradient is no question of wiring
    if not seen.stepped[i]:
        if _held_by_bounds(seen, i):
            _note_bound(seen, i)
            return None
        return _not_stepped(seen, i)
    entries = [u.at_entry[i] for u in seen.updates if i in u.holds]
    if not any(is_something(gradient) for gradient in entries):
        return Cause.zero_grad_before_step
    if all(u.rate == 0 for u in seen.updates if i in u.holds):
        return Cause.lr_zero
    if _undone(seen, i):
        if _projected_back(seen, i):
            _note_bound(seen, i)
            return None
        return Cause.update_written_to_copy
    if _write_would_show(seen, i):
        return Cause.update_written_to_copy
    return None  # a question of the number format


def _not_stepped(seen: Observation, i: int) -> Cause | None:
    if seen.held_by(i):
        return Cause.step_missing
    if any(u.copies_moved for u in seen.updates):
        return Cause.update_written_to_copy
    if any(o.param_groups for o in seen.optimizers):
        return Cause.optimizer_holds_other_tensors
    if any(r.additions.get(i) or r.update_rounded for r in seen.detailed):
        return None  # a question of the number format
    if any(record.updated_outside >> i & 1 for record in seen.detailed):
        return Cause.update_written_to_copy
    if any(record.written >> i & 1 for record in seen.detailed):
        return (
            Cause.zero_grad_before_step
        )  # it is written to, and what is written is zero
    bits = 0
    for record in seen.detailed:
        bits |= record.gradient_copied
    return Cause.update_written_to_copy if bits else Cause.step_missing


def _note_bound(seen: Observation, i: int) -> None:
    seen.notes.append(
        Note(
            f"{seen.variables[i].name} lies on the bounds of its box, and every update "
            "points outside: within the box this is a minimum.",
            Cause.at_minimum,
        )
    )


def _undone(seen: Observation, i: int) -> bool:
    """Whether the optimizer moved a variable and something moved it back."""
    return any(
        u.after and not torch.equal(u.before[i], u.after[i]) for u in seen.updates
    )


def _write_would_show(seen: Observation, i: int) -> bool:
    """Whether rate times gradient exceeds the spacing of the variable's numbers."""
    for update in seen.updates:
        gradient = update.at_entry[i]
        if i not in update.holds or gradient is None:
            continue
        if isinstance(update.optimizer, torch.optim.LBFGS):
            return False
        change = due_update(update.optimizer, seen.tensors[i], gradient)
        if (change > ulp(update.before[i])).double().mean() > 0.5:
            return True
    return False


def due_update(
    optimizer: torch.optim.Optimizer, tensor: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """Return the size of the update that is due: rate times gradient, or as in Adam."""
    groups = optimizer.param_groups
    group = next(g for g in groups if any(p is tensor for p in g["params"]))
    rate = float(group.get("lr", 1e-3))
    size = gradient.double().abs()
    if "betas" in group or "rho" in group or "alpha" in group:
        return rate * size / (size + group.get("eps", 1e-8))
    return rate * size


def _projected_back(seen: Observation, i: int) -> bool:
    """Whether what was undone are moves out of a box whose bounds the entries hold."""
    for record in seen.records:
        for update in record.updates:
            if i not in update.holds or not update.after:
                continue
            moved, end = update.after[i], record.after[i]
            high = (end == end.max()) & (moved > end)
            low = (end == end.min()) & (moved < end)
            if not bool(((moved == end) | high | low).all()):
                return False
    return True


def _held_by_bounds(seen: Observation, i: int) -> bool:
    """Whether a step that writes by hand leaves a variable in a corner of its box.

    All entries lie on the lowest or the highest value, and the gradients of the two
    kinds have opposite signs: each update points out of the box, and is clamped.
    """
    values, gradient = seen.trials.start[i], seen.detailed[-1].fresh()[i]
    if gradient is None or not any(r.written >> i & 1 for r in seen.detailed):
        return False
    low, high = values == values.min(), values == values.max()
    if bool((low & high).any()) or not bool((low | high).all()):
        return False
    signs = gradient.sign()
    return any(
        bool((signs[low] == sign).all() and (signs[high] == -sign).all())
        for sign in (1, -1)
    )


# -- explanations ---------------------------------------------------------------------


def _rebound(seen: Observation) -> Iterator[Finding]:
    """Give names of variables that stand for other tensors after a step."""
    which = sorted(seen.rebound)
    later = seen.losses[min(3, len(seen.losses) - 1) :]
    still_falls = len(later) > 4 and later[-1] < later[0] - 0.01 * abs(later[0])
    if not still_falls:
        yield Finding(
            Cause.non_leaf_variable,
            1.0,
            (
                Evidence("the name's tensor is a leaf after a step", "no", "yes"),
                Evidence("its .grad after a step", "None", "a tensor"),
            ),
            seen.names(which),
            "The step binds the variable's name to the result of a computation. That "
            "result is no leaf: backward stores no gradient in it, and the tensor that "
            "was handed in keeps its old value.",
            "with torch.no_grad():\n    x.sub_(learning_rate * x.grad)  # in place",
        )
        if seen.optimizers:
            yield _other_tensors(seen, which)


def _trained_behind(seen: Observation, which: Sequence[int]) -> bool:
    """Whether the leaves that variables were computed from are held or named."""
    known = {id(t) for t in seen.tensors}
    known |= {
        id(p) for o in seen.optimizers for g in o.param_groups for p in g["params"]
    }
    return any(id(leaf) in known for i in which for leaf in leaves_of(seen.tensors[i]))


def _explain_non_leaf(seen: Observation, which: Sequence[int]) -> Iterator[Finding]:
    if seen.learns and (seen.module is not None or _trained_behind(seen, which)):
        return
    yield Finding(
        Cause.non_leaf_variable,
        1.0,
        (
            Evidence("is_leaf", "False", "True"),
            Evidence(
                "computed by", seen.tensors[which[0]].grad_fn.name(), "nothing (a leaf)"
            ),
        ),
        seen.names(which),
        "The tensor that should change is itself the result of a computation, so "
        "backward stores its gradient in the leaf behind it, not here.",
        "x = x.detach().clone().requires_grad_()  # make the leaf last, then use it",
    )


def _explain_frozen(seen: Observation, which: Sequence[int]) -> Iterator[Finding]:
    names = seen.names(which)
    if any(seen.moves) and seen.learns:
        proof = _frozen_by_mistake(seen, which)
        if proof is None:
            seen.notes.append(
                Note(
                    f"{len(which)} variables are frozen, and the others learn.",
                    Cause.frozen_parameters,
                )
            )
            return
    else:
        if not any(seen.in_values[i] for i in which) and not depends(seen, which)[0]:
            yield not_used(seen, which)
            return
        proof = _prove_unfrozen(seen, which)
        if any(seen.moves) and not helps(proof, 0.02):
            return
    yield Finding(
        Cause.frozen_parameters,
        1.0 if not any(seen.moves) else 0.7,
        (
            Evidence("requires_grad", "False", "True"),
            Evidence(
                "variables without it", f"{len(which)} of {len(seen.variables)}", "0"
            ),
        ),
        names,
        "These variables do not require gradients, so autograd records nothing for "
        "them, and no backward call can fill their .grad.",
        "for parameter in model.parameters():\n    parameter.requires_grad_(True)",
        proof,
    )


def _prove_unfrozen(
    seen: Observation, which: Sequence[int], steps: int = STEPS_OF_PROOF
) -> Proof | None:
    repair = RightUpdate(seen.tensors, which, seen.optimizer)
    return seen.prove("requires_grad_() on them", repair, steps)


def _frozen_by_mistake(seen: Observation, which: Sequence[int]) -> Proof | None:
    """Return the proof that variables should not be frozen although the rest learns.

    Frozen parts are a choice where what is left can do the task. Two signs that it is
    none: what is left does not get past the best constant answer, and the whole does;
    or a matrix is kept at the zeros that it is to leave.
    """
    zeros = [
        i
        for i in which
        if seen.tensors[i].dim() > 1 and seen.held_by(i) and all_zero(seen.tensors[i])
    ]
    nothing_known = seen.knows_nothing(0.95)
    if seen.module is None or not (zeros or nothing_known):
        return None
    proof = _prove_unfrozen(seen, which, STEPS_WATCHED)
    if not helps(proof, 0.05):
        return None
    first, last = proof.without[0], proof.without[-1]
    if zeros and first - proof.with_repair[-1] > 2 * (first - last):
        return proof
    if not nothing_known or not proof.with_repair[-1] < 0.9 * seen.constant_loss:
        return None
    later = seen.trials.run(MANY_STEPS)[-10:]
    mean = sum(record.loss for record in later) / len(later)
    return proof if mean > 0.95 * seen.constant_loss else None


def _gradient_given(
    seen: Observation, which: Sequence[int], when: str = ""
) -> Evidence:
    largest = max(seen.fresh_largest[i] for i in which)
    return Evidence(f"largest gradient entry{when}", largest, "above 0")


def _explain_step_missing(seen: Observation, which: Sequence[int]) -> Iterator[Finding]:
    if any(seen.moves) and seen.learns and not seen.held_by(which[0]):
        return
    like = next(iter(seen.held_by(which[0])), seen.optimizer)
    proof = seen.prove("optimizer.step()", RightUpdate(seen.tensors, which, like))
    held = bool(seen.held_by(which[0]))
    yield Finding(
        Cause.step_missing,
        1.0,
        (
            _gradient_given(seen, which),
            Evidence(
                "calls of optimizer.step() for these variables",
                0,
                f"{len(seen.records)}, one a step",
            ),
            Evidence("an optimizer holds them", "yes" if held else "no", "yes"),
        ),
        seen.names(which),
        f"Gradients arrive, and nothing applies them: in {len(seen.records)} steps no "
        "optimizer that holds these variables was called.",
        "loss.backward()\noptimizer.step()  # with parentheses, once per update",
        proof,
    )


_SCALING = frozenset(["mul_", "__imul__", "masked_fill_", "__setitem__", "index_fill_"])


def _explain_cleared(seen: Observation, which: Sequence[int]) -> Iterator[Finding]:
    given = [
        i
        for i in seen.everything
        if seen.fresh_largest[i] > 0 and (seen.stepped[i] or not seen.optimizers)
    ]
    cleared_by_call = any(_cleared_in(record) for record in seen.records)
    partly = set(given) != set(which)
    optimizer = next(iter(seen.held_by(which[0])), None)
    hooked = all(seen.tensors[i]._backward_hooks for i in which)
    scaled = hooked or any(
        edit in _SCALING for r in seen.detailed for edit in r.gradient_edits
    )
    partly |= scaled
    proof = seen.prove(
        "gradients kept until optimizer.step()",
        RightUpdate(seen.tensors, which, optimizer),
    )
    if partly and not cleared_by_call:
        if any(seen.moves) and seen.learns and not helps(proof, 0.05):
            seen.notes.append(
                Note(
                    "The gradients of some variables are emptied before the update: "
                    + ", ".join(seen.names(which[:4])),
                    Cause.frozen_parameters,
                )
            )
            return
        yield _masked(seen, which, proof)
        return
    yield Finding(
        Cause.zero_grad_before_step,
        1.0,
        (
            _gradient_given(seen, which, " after backward"),
            Evidence(
                "the same at the entry of optimizer.step()", 0, "as after backward"
            ),
            Evidence(
                "order of calls",
                " ".join(seen.records[-1].events),
                "zero_grad backward update",
            ),
        ),
        seen.names(which),
        "Backward fills the gradients, and they are cleared before optimizer.step() "
        "reads them. The optimizer runs, and finds nothing to apply.",
        "optimizer.zero_grad()\nloss.backward()\noptimizer.step()",
        proof,
    )


def _cleared_in(record: StepRecord) -> bool:
    """Whether a step calls zero_grad between backward and update."""
    events = record.events
    return any(
        event == "zero_grad" and "backward" in events[:k] and "update" in events[k:]
        for k, event in enumerate(events)
    )


def _masked(seen: Observation, which: Sequence[int], proof: object) -> Finding:
    return Finding(
        Cause.frozen_parameters,
        0.9,
        (
            Evidence(
                "largest gradient entry, without hooks and masks",
                max(way.at_variables.get(i, 0.0) for way in seen.ways for i in which),
                "above 0",
            ),
            Evidence(
                "the same at the entry of optimizer.step()", 0, "as after backward"
            ),
        ),
        seen.names(which),
        "These variables get gradients that something sets to zero before the update: "
        "a hook or a mask. The others keep theirs.",
        "Remove the hook or the mask:\nhandle.remove()",
        proof,
    )


def _cleared_though_moving(seen: Observation) -> Iterator[Finding]:
    """With momentum, variables move although every update finds its gradient gone."""
    which = []
    for i in seen.everything:
        entries = [u.at_entry[i] for u in seen.updates if i in u.holds]
        if (
            len(entries) >= 2
            and seen.fresh_largest[i] > 0
            and not any(is_something(gradient) for gradient in entries)
        ):
            which.append(i)
    if which and any(seen.moves[i] for i in which):
        yield from _explain_cleared(seen, which)


def _explain_other_tensors(
    seen: Observation, which: Sequence[int]
) -> Iterator[Finding]:
    orphans = any(u.others - u.others_with_gradient > 0 for u in seen.updates)
    if any(seen.moves) and not orphans and (seen.learns or seen.fall > 0.01):
        seen.notes.append(
            Note(
                "Variables with gradients that no optimizer holds: "
                + ", ".join(seen.names(which[:4])),
                Cause.optimizer_holds_other_tensors,
            )
        )
        return
    yield _other_tensors(seen, which)


def _other_tensors(seen: Observation, which: Sequence[int]) -> Finding:
    held = sum(u.others for u in seen.updates[:1])
    like = next(iter(seen.optimizers), None)
    proof = seen.prove("optimizer made on them", RightUpdate(seen.tensors, which, like))
    return Finding(
        Cause.optimizer_holds_other_tensors,
        1.0,
        (
            Evidence(
                "variables with a gradient that no optimizer holds",
                f"{len(which)} of {len(seen.variables)}",
                "0",
            ),
            Evidence(
                "tensors that the optimizer holds and that are not among them",
                held,
                "0",
            ),
        ),
        seen.names(which),
        "The optimizer is called, and holds other tensors than those that the loss is "
        "computed from: it was made before they were replaced, or on copies.",
        "optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)  # last, on "
        "what is used",
        proof,
    )


def _explain_copy(seen: Observation, which: Sequence[int]) -> Iterator[Finding]:
    like = seen.optimizer
    proof = seen.prove(
        "the update written in place", RightUpdate(seen.tensors, which, like)
    )
    yield Finding(
        Cause.update_written_to_copy,
        0.95,
        (
            _gradient_given(seen, which),
            Evidence("variables that changed", "0", f"{len(which)}"),
            Evidence("an update is computed", "yes", "yes"),
        ),
        seen.names(which),
        "The step computes an update from the gradient and writes it to another "
        "tensor: a local name, a copy, an indexed selection, or values that are "
        "overwritten again. The variable itself stays as it was.",
        "with torch.no_grad():\n    for p in model.parameters():\n"
        "        p.sub_(learning_rate * p.grad)  # in place, not p = p - ...",
        proof,
    )


def _explain_rate_zero(seen: Observation, which: Sequence[int]) -> Iterator[Finding]:
    like = seen.held_by(which[0])[0]
    proof = seen.prove(
        "learning rate 0.01", RightUpdate(seen.tensors, which, like, rate=1e-2)
    )
    rates = [u.rate for u in seen.updates if which[0] in u.holds]
    if rates and rates[-1] > rates[0]:
        return
    if any(seen.moves) and seen.learns:
        seen.notes.append(
            Note(
                "The learning rate of some variables is 0: "
                + ", ".join(seen.names(which[:4])),
                Cause.lr_zero,
            )
        )
        return
    yield Finding(
        Cause.lr_zero,
        1.0,
        (
            Evidence("learning rate in all watched steps", 0, "above 0"),
            _gradient_given(seen, which),
        ),
        seen.names(which),
        "Everything is connected, and the learning rate is zero, so each update is.",
        'for group in optimizer.param_groups:\n    group["lr"] = 1e-2  # and look at '
        "the scheduler",
        proof,
    )


_ORDER = (
    Cause.graph_detached,
    Cause.non_leaf_variable,
    Cause.optimizer_holds_other_tensors,
    Cause.step_missing,
    Cause.zero_grad_before_step,
    Cause.update_written_to_copy,
    Cause.lr_zero,
    Cause.frozen_parameters,
)
_EXPLAIN = {
    Cause.non_leaf_variable: _explain_non_leaf,
    Cause.frozen_parameters: _explain_frozen,
    Cause.graph_detached: explain_detached,
    Cause.step_missing: _explain_step_missing,
    Cause.zero_grad_before_step: _explain_cleared,
    Cause.optimizer_holds_other_tensors: _explain_other_tensors,
    Cause.update_written_to_copy: _explain_copy,
    Cause.lr_zero: _explain_rate_zero,
}

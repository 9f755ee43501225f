"""Rules about a graph that does not reach variables: where it ends, and why."""

from collections.abc import Iterator, Sequence

from shared.diagnose.causes import Cause
from shared.diagnose.observation import Observation, helps
from shared.diagnose.repairs import (
    OtherCalls,
    RightUpdate,
    keep_graph,
    keep_graph_on,
)
from shared.diagnose.report import Evidence, Finding, Note
from shared.diagnose.torch_calls import CUTS, STEP_FUNCTIONS
from shared.diagnose.watch import StepRecord

MUCH = 0.25
"""Share of a module's entries from which a result that it drops is no side output."""


def depends(seen: Observation, which: Sequence[int]) -> tuple[bool, bool]:
    """Return whether the loss depends on variables' values, and whether smoothly."""
    around = seen.losses_around(which)
    changed = [not seen.same_loss_exactly(loss) for loss in around.values()]
    return any(changed), changed[0]


def _dropped(seen: Observation, which: Sequence[int]) -> Finding:
    return Finding(
        Cause.variable_not_used,
        0.9,
        (
            Evidence(
                "share of the module's entries that it computes with and drops",
                seen.share_of_entries(which),
                "0",
            ),
            Evidence("their gradient", "None", "a tensor"),
        ),
        seen.names(which),
        "The module computes something from these variables, and what it returns does "
        "not depend on it: the result is left behind, and another is handed on.",
        "x = self.block(x)  # and go on with x, not with what it was before",
    )


def _sibling_in_its_place(seen: Observation, i: int, unused: Sequence[int]) -> bool:
    """Whether a module next to an unused one, of its shape, is called for both.

    A function made in a loop looks a name up when it is called: all of them then call
    the module that the name stood for last.
    """
    if seen.in_values[i]:
        return False
    ways = [record.ways for record in seen.detailed]
    for k in seen.everything:
        if not _are_siblings(seen, i, k) or not seen.in_values[k]:
            continue
        idle = sum(_are_siblings(seen, k, u) and not seen.in_values[u] for u in unused)
        uses = [max((w.uses.get(k, 0) for w in here), default=0) for here in ways]
        if min(uses, default=0) > idle:
            return True
    return False


def _are_siblings(seen: Observation, i: int, j: int) -> bool:
    """Whether two variables are the same parameter of two modules in one container."""
    a, b = (seen.variables[n].name.split(".") for n in (i, j))
    if len(a) != len(b) or len(a) < 3:
        return False
    apart = [
        place for place, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]
    ]
    same_shape = seen.tensors[i].shape == seen.tensors[j].shape
    return same_shape and len(apart) == 1 and 0 < apart[0] < len(a) - 1


def _replaced(seen: Observation, which: Sequence[int]) -> Finding:
    return Finding(
        Cause.variable_not_used,
        0.95,
        (
            Evidence("their gradient", "None", "a tensor"),
            Evidence("a module of the same shape is called in their place", "yes", "-"),
        ),
        seen.names(which),
        "These variables are never computed with, and another module of the same "
        "container is called as often as all of them together: it stands in for them.",
        "readers = [lambda z, head=head: head(z) for head in heads]  # bind each now;\n"
        "# a name from a loop is looked up when the function is called",
    )


def explain_detached(seen: Observation, which: Sequence[int]) -> Iterator[Finding]:
    """Variables that require gradients and that no graph reaches."""
    partly = any(seen.moves) or any(seen.in_graph[i] for i in seen.trainable)
    if partly and seen.module is None:
        # Named one by one, each of them should change.
        used = [i for i in which if seen.in_values[i] or depends(seen, [i])[0]]
        if not used and 2 * len(which) >= len(seen.variables):
            yield not_used(seen, which)
        which = used
        if not which:
            return
    elif partly:
        replaced = [i for i in which if _sibling_in_its_place(seen, i, which)]
        if replaced:
            yield _replaced(seen, replaced)
            return
        dropped = [i for i in which if seen.dropped[i] and seen.stepped[i]]
        if seen.share_of_entries(dropped) > MUCH:
            escaped = any(way.escaped >> i & 1 for way in seen.ways for i in dropped)
            names = [escape for way in seen.ways for escape in way.escapes]
            yield _cut(seen, dropped, [], names) if escaped else _dropped(seen, dropped)
            return
        which = [i for i in which if seen.in_values[i]]
        trained = [i for i in which if seen.stepped[i]]
        if not trained:
            if which and seen.fall > 0.01:
                seen.notes.append(
                    Note(
                        "Variables that no gradient reaches, and no optimizer holds: "
                        + ", ".join(seen.names(which[:4])),
                        Cause.graph_detached,
                    )
                )
                return
            trained = which
        which = trained
        if not which:
            return
    used, smooth = depends(seen, which)
    cuts = [cut for way in seen.ways for cut in way.cuts]
    escapes = [escape for way in seen.ways for escape in way.escapes]
    stepwise = [cut for cut in cuts if cut in STEP_FUNCTIONS]
    if not used and not (seen.in_values[which[0]] and cuts):
        yield not_used(seen, which)
        return
    if stepwise or (used and not smooth and not any(cut in CUTS for cut in cuts)):
        yield _stepwise(seen, which, stepwise)
        return
    if used and not smooth and cuts:
        yield _stepwise(seen, which, cuts)
        return
    yield _cut(seen, which, cuts, escapes)


def _cut(
    seen: Observation,
    which: Sequence[int],
    cuts: Sequence[str],
    escapes: Sequence[str],
) -> Finding:
    where = cuts[0] if cuts else escapes[0] if escapes else "outside torch"
    call = {"data": ".data", "no_grad": "a block without gradients"}.get(
        where, f"{where}()"
    )
    proof = None
    if where in CUTS or where == "no_grad":
        proof = seen.prove(f"{call} left out", _KeptGraph(seen, which))
        if proof is not None and not helps(proof, 0.0):
            proof = None
    return Finding(
        Cause.graph_detached,
        1.0,
        (
            Evidence("leaves of the loss's graph among the variables", 0, "all"),
            Evidence("the loss changes when the variables do", "yes", "yes"),
            Evidence("the graph ends at", call, "the variables"),
        ),
        seen.names(which),
        f"The loss depends on these variables, and its graph does not reach them: it "
        f"ends at {call}. Backward gives them no gradient at all (None, not zero).",
        "# Every step from the variable to the loss in torch, without .detach(),\n"
        "# .item(), .numpy(), torch.tensor(...) or torch.no_grad():\n"
        "loss = loss_fn(model(x), y)\nloss.backward()",
        proof,
    )


def keep_graph_everywhere() -> OtherCalls:
    """Return the repair that keeps the graph at every call that would cut it."""
    return OtherCalls(dict.fromkeys(CUTS - {"data", "from_numpy"}, keep_graph))


class _KeptGraph(OtherCalls):
    """Keeps the graph at every call that would cut it, and makes the update itself."""

    def __init__(self, seen: Observation, which: Sequence[int]) -> None:
        super().__init__(
            {
                **dict.fromkeys(CUTS - {"data", "from_numpy"}, keep_graph),
                "_set_grad_enabled": keep_graph_on,
            }
        )
        self._update = RightUpdate(seen.tensors, which, seen.optimizer)
        self.level = self._update.level

    def __enter__(self) -> "_KeptGraph":
        self._update.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._update.__exit__(*error)

    def after_step(self, record: StepRecord) -> None:
        self._mode.paused = True
        self._update.after_step(record)
        self._mode.paused = False


def _stepwise(seen: Observation, which: Sequence[int], steps: Sequence[str]) -> Finding:
    where = steps[0] if steps else "a call outside torch"
    return Finding(
        Cause.nondifferentiable_op,
        1.0 if steps else 0.8,
        (
            Evidence("call that changes in steps", where, "none on the way"),
            Evidence("the loss changes under a small move", "no", "yes"),
        ),
        seen.names(which),
        f"Between these variables and the loss stands {where}(): its value is constant "
        "but for jumps, so its derivative is zero or missing, and no gradient passes.",
        "# Something smooth in training: softmax for arg-max, sigmoid for a\n"
        "# threshold. Or keep its value and pass the gradient straight through:\n"
        "y = x + (x.round() - x).detach()",
    )


def not_used(seen: Observation, which: Sequence[int]) -> Finding:
    """Return the finding: the loss is computed without these variables."""
    return Finding(
        Cause.variable_not_used,
        1.0,
        (
            Evidence("the loss changes when the variables are moved", "no", "yes"),
            Evidence("distances tried, in the variables' own size", "0.001 to 10", "-"),
            Evidence("gradient", "None", "a tensor"),
        ),
        seen.names(which),
        "The loss that the step computes does not depend on these variables as they "
        "are now: the step works on a copy, on another object, or ignores its "
        "argument.",
        "# The loss of the variable itself, inside the step:\n"
        "loss = objective(x)  # not of a copy made before the loop",
    )

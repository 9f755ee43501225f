"""Rules about what is due from step to step: rates, cleared gradients, registration."""

from collections.abc import Iterator

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.observation import Observation, helps
from shared.diagnose.repairs import RightUpdate
from shared.diagnose.report import Evidence, Finding
from shared.diagnose.watch import UpdateCall, is_something


def rate_ends(seen: Observation) -> Iterator[Finding]:
    """Give a schedule that ends while there is still something to learn."""
    updates = [u for u in seen.updates if u.holds]
    rates = [u.rate for u in updates]
    late = rates[len(rates) // 2 :]
    if len(rates) < 8 or any(late) or not any(rates):
        return
    which = sorted(updates[-1].holds)
    like = seen.held_by(which[0])[0]
    repair = RightUpdate(seen.tensors, which, like, rate=max(rates))
    proof = seen.prove(
        f"learning rate kept at {max(rates):g}", repair, steps=len(rates)
    )
    if not helps(proof, 0.01):
        return
    yield Finding(
        Cause.lr_zero,
        0.95,
        (
            Evidence(
                "learning rate, first to last step",
                f"{rates[0]:.3g} -> {rates[-1]:.3g}",
                "above 0 to the end",
            ),
            Evidence("steps with rate 0", rates.count(0.0), "0"),
        ),
        seen.names(which),
        "A schedule brings the learning rate to zero, and from then on nothing moves.",
        "scheduler = CosineAnnealingLR(optimizer, T_max=number_of_steps)  # counted as "
        "scheduler.step() is called",
        proof,
    )


def never_cleared(seen: Observation) -> Iterator[Finding]:
    """Gradients that pile up: nothing clears them between one update and the next."""
    which = [i for i in seen.everything if _piles_up(seen, i)]
    if not which:
        return
    like = next(iter(seen.held_by(which[0])), None)
    proof = None
    if like is not None:
        proof = seen.prove(
            "optimizer.zero_grad() before backward",
            RightUpdate(seen.tensors, which, like),
        )
        proof = proof if helps(proof, 0.0) else None
    yield Finding(
        Cause.zero_grad_missing,
        1.0,
        (
            Evidence(
                "updates between which the gradient was cleared",
                0,
                f"{len(seen.records) - 1}",
            ),
            Evidence("gradient of earlier steps in .grad at backward", "yes", "no"),
        ),
        seen.names(which),
        "Each backward call adds to what the last ones left, and each update applies "
        "the sum of all gradients so far: momentum that never forgets.",
        "optimizer.zero_grad()  # before each backward",
        proof,
    )


def _piles_up(seen: Observation, i: int) -> bool:
    """Whether a variable is updated again and again without its gradient cleared."""
    if not seen.tensors[i].is_leaf and not seen.tensors[i].retains_grad:
        return False
    if not any(call.left_over[i] for call in seen.backwards):
        return False
    intervals, kept, since_update = 0, 0, None
    for record in seen.records:
        for call in record.log:
            if isinstance(call, UpdateCall):
                if i in call.holds:
                    intervals += since_update is not None
                    kept += since_update is True
                    since_update = None
                continue
            if call.asked or not is_something(call.fresh[i]):
                continue
            since_update = call.left_over[i] and since_update is not False
        own_update = not seen.optimizers and record.after
        if own_update and not torch.equal(record.before[i], record.after[i]):
            intervals += since_update is not None
            kept += since_update is True
            since_update = None
    return intervals >= 3 and kept >= intervals - 1


def unregistered(seen: Observation) -> Iterator[Finding]:
    """Leaves of the graph that the module keeps, and does not list."""
    if seen.module is None:
        return
    known = {id(t) for t in seen.tensors}
    hidden = hidden_tensors(seen.module, known)
    used = {id(leaf) for way in seen.ways for leaf in way.other_leaves}
    held = {id(p) for o in seen.optimizers for g in o.param_groups for p in g["params"]}
    lost = [name for name, t in hidden if id(t) in used and id(t) not in held]
    if lost:
        yield Finding(
            Cause.unregistered_parameters,
            1.0,
            (
                Evidence(
                    "leaves of the loss's graph that the module does not list",
                    len(lost),
                    "0",
                ),
                Evidence("of these in an optimizer", 0, "all"),
            ),
            tuple(lost),
            "The module uses tensors that it does not list in parameters(): they are "
            "in a plain list, dict or attribute. They get gradients, and nobody "
            "trains them.",
            "self.layers = nn.ModuleList(layers)  # or nn.ModuleDict, "
            "nn.ParameterList, nn.Parameter",
        )


def hidden_tensors(
    module: torch.nn.Module, known: set[int]
) -> list[tuple[str, torch.Tensor]]:
    """Return trainable tensors that a module holds outside of its registers."""
    found: list[tuple[str, torch.Tensor]] = []
    seen: set[int] = set()
    registers = ("_parameters", "_buffers", "_modules")

    def look(name: str, value: object, depth: int) -> None:
        if id(value) in seen or depth > 5:
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.requires_grad and value.is_leaf and id(value) not in known:
                found.append((name, value))
        elif isinstance(value, torch.nn.Module):
            inside = {**value._parameters, **value._modules}
            inside |= {k: v for k, v in vars(value).items() if k not in registers}
            for key, one in inside.items():
                look(f"{name}.{key}" if name else key, one, depth + 1)
        elif isinstance(value, dict):
            for key, one in value.items():
                look(f"{name}[{key!r}]", one, depth + 1)
        elif isinstance(value, (list, tuple, set)):
            for key, one in enumerate(value):
                look(f"{name}[{key}]", one, depth + 1)

    look("", module, 0)
    return found

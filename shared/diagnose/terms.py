"""Splits a loss into the scalars that are added up in it."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from shared.diagnose.torch_calls import CUTS

if TYPE_CHECKING:
    from shared.diagnose.flow import FlowRecorder

ADDING = frozenset(["add", "__add__", "__radd__", "__iadd__", "add_", "sub"])
MOST_ADDENDS = 64


@dataclasses.dataclass
class Term:
    """A scalar that is added into the loss."""

    value: float
    uses_data: bool
    gradients: list[torch.Tensor | None]


@dataclasses.dataclass
class CutTerm:
    """A scalar that is added into the loss and passes no gradient back."""

    value: float
    uses_data: bool
    from_variables: int
    """Variables (bits) whose values enter it."""
    uses_copy: bool
    """Whether a tensor with a variable's own values, and not the variable, does."""
    on_purpose: bool
    """Whether it is the finished scalar that was cut off, as for a surrogate loss."""


class WithoutHooks:
    """Takes the reader's hooks off tensors, so that a look at a gradient calls none."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = [t for t in tensors if t._backward_hooks]
        self._hooks = [dict(t._backward_hooks) for t in self._tensors]

    def __enter__(self) -> None:
        for tensor in self._tensors:
            tensor._backward_hooks.clear()

    def __exit__(self, *_: object) -> None:
        for tensor, hooks in zip(self._tensors, self._hooks, strict=True):
            tensor._backward_hooks.update(hooks)


def terms_of(recorder: "FlowRecorder", root: torch.Tensor) -> list[Term]:
    """Return the scalars with a graph that are added up in the root."""
    if not root.requires_grad or root.numel() != 1:
        return []
    parts = _addends(recorder, root, MOST_ADDENDS)
    if len(parts) < 2:
        return []
    leaves = [v for v in recorder.variables if v.is_leaf and v.requires_grad]
    terms = []
    for part in parts:
        if not part.requires_grad:
            continue
        try:
            with torch.enable_grad(), WithoutHooks(leaves):
                found = torch.autograd.grad(
                    part,
                    leaves,
                    torch.ones_like(part),
                    retain_graph=True,
                    allow_unused=True,
                )
        except RuntimeError:
            return []
        by_id = dict(zip(map(id, leaves), found, strict=True))
        terms.append(
            Term(
                value=float(part.detach()),
                uses_data=bool(_sources(recorder, part)),
                gradients=[by_id.get(id(v)) for v in recorder.variables],
            )
        )
    return terms


def cut_terms_of(recorder: "FlowRecorder", root: torch.Tensor) -> list[CutTerm]:
    """Return the scalars without a graph that are added up in the root."""
    if not root.requires_grad or root.numel() != 1:
        return []
    terms = []
    for part in _addends(recorder, root, MOST_ADDENDS):
        if part.requires_grad:
            continue
        sources = _sources(recorder, part)
        maker = recorder.maker_of(part)
        terms.append(
            CutTerm(
                value=float(part),
                uses_data=bool(sources),
                from_variables=recorder.bits_of(part),
                uses_copy=any(_is_copy(recorder, source) for source in sources),
                on_purpose=maker is not None and maker.name in CUTS,
            )
        )
    return terms


def _sources(recorder: "FlowRecorder", part: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors behind a scalar that are neither variables nor results."""
    variables = set(map(id, recorder.variables))
    return [
        tensor
        for call in recorder.ancestors(part)
        for tensor in call.inputs
        if recorder.maker_of(tensor) is None
        and id(tensor) not in variables
        and tensor.numel() > 1
    ]


def _is_copy(recorder: "FlowRecorder", tensor: torch.Tensor) -> bool:
    return any(
        tensor.shape == variable.shape and torch.equal(tensor, variable)
        for variable in recorder.variables
        if variable.numel() > 1
    )


def _addends(
    recorder: "FlowRecorder", root: torch.Tensor, depth: int
) -> list[torch.Tensor]:
    call = recorder.maker_of(root)
    if call is None or not depth:
        return [root]
    scalars = [t for t in call.inputs if t.numel() == 1]
    if call.name in ADDING and len(scalars) == len(call.inputs):
        if call.inputs[0] is root:  # added in place: what it was before is gone
            return [root]
        return [p for t in scalars for p in _addends(recorder, t, depth - 1)]
    return [root]

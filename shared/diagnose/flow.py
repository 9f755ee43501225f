"""Records how values flow through a step: every torch call, its inputs and outputs.

`FlowRecorder` sees each torch call of the reader's code, also where no graph is kept
(`detach`, `.item()`, a block without gradients), which autograd cannot show. At the
backward call, `examine` asks each tensor on the way from the variables to the loss for
its gradient, and so finds the call in which the gradient ends.
"""

import dataclasses
import functools
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from shared.diagnose.facts import counted_targets, facts_of, largest_spacing
from shared.diagnose.terms import CutTerm, Term, WithoutHooks, cut_terms_of, terms_of
from shared.diagnose.torch_calls import (
    ADDITIONS,
    ALIASING,
    ARRAYS,
    COMPARISONS,
    CUTS,
    ELEMENTWISE,
    ESCAPES,
    LAYERS,
    NO_FLOW,
    RECURRENT,
    STEP_FUNCTIONS,
    SUMS,
    TAKING_STATES,
    VIEWS,
    Call,
    name_of,
    tensors_in,
)

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Number formats of places in a tensor."""

LARGE = 2_000_000
"""Tensors with more entries are not copied whole, nor asked for a second gradient."""


@dataclasses.dataclass
class Passage:
    """What happens to values and gradients in one call between variables and loss."""

    name: str
    gradient_in: float | None
    """Largest gradient with respect to the inputs that descend from a variable."""
    gradient_out: float | None
    facts: dict[str, Any]
    from_variables: int
    shape_in: tuple[int, ...]
    direct: bool
    """Whether the input is a variable, or an elementwise function of one."""
    own: bool
    """Whether the input is a variable itself."""


@dataclasses.dataclass
class Way:
    """The way from the variables to one root of a backward call."""

    reached_by_values: int
    """Variables whose value enters the root."""
    reached_by_graph: set[int]
    """Variables that the graph of the root ends in."""
    other_leaves: list[torch.Tensor]
    """Leaves of the graph that are not among the variables."""
    passages: list[Passage]
    """In the order in which they were called."""
    cuts: list[str]
    """Calls at which a value that descends from a variable loses its graph."""
    cut_states: int
    """How many of these calls hand on what a layer takes: states, not targets."""
    escapes: list[str]
    escaped: int
    """Variables (bits) that computed values outside of torch descend from."""
    summands: float
    """The largest value of those that the root is a sum of, 0 if it is none."""
    at_variables: dict[int, float]
    """Largest entry of each variable's gradient, without the reader's hooks."""
    terms: list[Term]
    cut_terms: list[CutTerm]
    """Scalars that are added into the root and have no graph."""
    indexed: int
    """Variables (bits) from which places in a tensor are computed, as whole numbers."""
    uses: dict[int, int]
    """How many calls take a variable as it is."""


class FlowRecorder(TorchFunctionMode):
    """Records every torch call while it is active.

    Args:
        variables: the tensors that should change.
    """

    def __init__(self, variables: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.paused = False
        self.escapes: list[tuple[str, int]] = []  # names, and variables as bits
        self.gradient_edits: list[str] = []
        self.written = 0  # variables (bits) that the step's code writes to
        self.gradient_left = False
        self.values_left = 0
        self.copy_written = False
        self._aliases: dict[int, tuple[weakref.ref, int]] = {}
        self.handed = 0  # variables (bits) whose .grad the step's code sets itself
        self.additions: list[tuple[int, torch.Tensor, float]] = []
        self._bit = {id(v): 1 << i for i, v in enumerate(variables)}
        self.variables = list(variables)
        self._producer: dict[int, int] = {}
        # Held weakly: a step that drops a gradient must be able to free it.
        self._gradients: dict[int, weakref.ref] = {}
        self._alive: list[Any] = []

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable[type],
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        """Make the call and write it down."""
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            name = name_of(func)
            if getattr(func, "__name__", "") == "__set__" and args:
                if name == "data":
                    self.written |= self._bit.get(id(args[0]), 0)
                if name == "grad":
                    self.handed |= self._bit.get(id(args[0]), 0)
            if name == "grad" and args and isinstance(result, torch.Tensor):
                self.note_gradients([result])
            elif name not in NO_FLOW:
                self._record(name, func, args, kwargs or {}, result)
        return result

    def _record(
        self, name: str, function: Callable, args: tuple, kwargs: dict, result: Any
    ) -> None:
        inputs = tuple(tensors_in((args, kwargs)))
        outputs = tuple(tensors_in(result))
        if name in ("__setitem__", "copy_"):
            outputs = inputs[:1]
        index = len(self.calls)
        parents = tuple(self._producer.get(id(tensor)) for tensor in inputs)
        bits, from_gradient = 0, False
        for tensor, parent in zip(inputs, parents, strict=True):
            bits |= self._bit.get(id(tensor), 0)
            from_gradient |= self._is_gradient(tensor)
            if parent is not None:
                bits |= self.calls[parent].from_variables
                from_gradient |= self.calls[parent].from_gradient
        if name in ESCAPES and bits:
            self.escapes.append((name, bits))
        if name in ARRAYS and inputs and inputs[0].numel():
            self.gradient_left |= from_gradient
            self.values_left |= bits
        if any(map(self._is_gradient, inputs)):
            self.gradient_edits.append(name)
        if not outputs:
            return
        if name in ALIASING and inputs:
            self._note_alias(inputs[0], outputs[0])
        call = Call(
            index,
            name,
            args,
            kwargs,
            inputs,
            outputs,
            parents,
            bits,
            from_gradient,
            torch.is_grad_enabled(),
            function,
        )
        self.calls.append(call)
        self._alive.append((inputs, outputs))
        written = 0
        for output in outputs:
            written |= self._variable_behind(output)
        if name not in ALIASING and written:
            self.written |= written
            if name in ADDITIONS and len(args) > 1:
                size = _size_of(args[1], kwargs)
                self.additions.append((written.bit_length() - 1, inputs[0], size))
            return
        if bits and name in ADDITIONS | {"copy_", "__setitem__"}:
            self.copy_written |= not outputs[0].requires_grad
        for output in outputs:
            self._producer[id(output)] = index

    def _note_alias(self, tensor: torch.Tensor, alias: torch.Tensor) -> None:
        """Remember that what is written to a tensor is written to another, too."""
        if self._is_gradient(tensor):
            self.note_gradients([alias])
        bit = self._bit.get(id(tensor), 0)
        if bit:
            self._aliases[id(alias)] = weakref.ref(alias), bit

    def _variable_behind(self, tensor: torch.Tensor) -> int:
        """Return as a bit which variable a tensor is, or shares its numbers with."""
        known, bit = self._aliases.get(id(tensor), (None, 0))
        return self._bit.get(id(tensor), 0) or (
            bit if known is not None and known() is tensor else 0
        )

    def maker_of(self, tensor: torch.Tensor) -> Call | None:
        """Return the call that a tensor came out of, None if it came from outside."""
        producer = self._producer.get(id(tensor))
        return None if producer is None else self.calls[producer]

    def bits_of(self, tensor: torch.Tensor) -> int:
        """Return which variables a tensor descends from, as bits."""
        producer = self._producer.get(id(tensor))
        own = self._bit.get(id(tensor), 0)
        return own | (0 if producer is None else self.calls[producer].from_variables)

    def dropped(self, first: int, output: Any) -> int:
        """Return the variables that calls use and an output does not depend on.

        Args:
            first: the index of the first of these calls; the others follow.
            output: what was returned after the last one.
        """
        tensors = list(tensors_in(output))
        if not tensors:
            return 0  # something that holds them in a way of its own
        used, handed_on = 0, 0
        for call in self.calls[first:]:
            used |= call.from_variables
        for tensor in tensors:
            handed_on |= self.bits_of(tensor)
        return used & ~handed_on

    def note_gradients(self, gradients: Iterable[torch.Tensor]) -> None:
        """Remember tensors as gradients that the step's code was handed."""
        self._gradients |= {id(g): weakref.ref(g) for g in gradients}

    def _is_gradient(self, tensor: torch.Tensor) -> bool:
        known = self._gradients.get(id(tensor))
        return known is not None and known() is tensor

    def clear(self) -> None:
        """Let go of all tensors."""
        self.calls, self._alive = [], []
        self._producer, self._gradients, self.escapes = {}, {}, []
        self._aliases = {}

    def lost_shift(self) -> float:
        """Return the largest number added to a variable and lost, in spacings."""
        found = [
            facts_of(call, call.inputs[0], call.outputs[0], self.bits_of)
            for call in self.calls
            if call.name in ("add", "__add__", "__radd__", "sub", "__sub__")
            and call.inputs
            and id(call.inputs[0]) in self._bit
        ]
        return max((facts.get("lost_shift", 0.0) for facts in found), default=0.0)

    def largest_additions(self) -> dict[int, float]:
        """Return the largest number added in place to each variable, in spacings."""
        found: dict[int, float] = {}
        for i, tensor, size in self.additions:
            found[i] = max(found.get(i, 0.0), size / largest_spacing(tensor))
        return found

    def pairs(self, inputs: Sequence[torch.Tensor]) -> list[tuple]:
        """Return what a loss call compares the outputs for these inputs with."""
        targets = [
            tensor
            for call in self.calls
            if call.name in COMPARISONS and call.from_variables
            for tensor in call.inputs[:2]
            if not self.bits_of(tensor) and tensor.dim()
        ]
        return [
            (x.detach().clone(), target.detach().clone())
            for x in inputs
            for target in targets
            if x.dim() and len(x) == len(target) and len(x) > 1
        ]

    def ancestors(self, root: torch.Tensor) -> list[Call]:
        """Return the calls that the root's value was computed by, first one first."""
        start = self._producer.get(id(root))
        seen: set[int] = set()
        queue = [] if start is None else [start]
        while queue:
            index = queue.pop()
            if index not in seen:
                seen.add(index)
                queue += [p for p in self.calls[index].parents if p is not None]
        return [self.calls[index] for index in sorted(seen)]

    def examine(self, root: torch.Tensor, detailed: bool = True) -> Way:
        """Describe the way from the variables to the root, before it is walked back.

        Args:
            root: the tensor that `backward` starts from.
            detailed: whether gradients are asked of each call.
        """
        calls = self.ancestors(root)
        on_way = [call for call in calls if call.from_variables]
        leaves = leaves_of(root)
        position = {id(v): i for i, v in enumerate(self.variables)}
        reached = {position[id(leaf)] for leaf in leaves if id(leaf) in position}
        others = [leaf for leaf in leaves if id(leaf) not in position]
        cutting = [call for call in on_way if _loses_graph(call)]
        cuts = [_how_cut(call) for call in cutting]
        gradients = self._gradients_on(root, on_way) if detailed else {}
        passages = [self._passage(call, gradients) for call in on_way]
        return Way(
            reached_by_values=self.bits_of(root),
            reached_by_graph=reached,
            other_leaves=others,
            passages=passages,
            cuts=cuts,
            cut_states=sum(self._is_state(c) for c in cutting if c.name in CUTS),
            escapes=[name for name, _ in self.escapes],
            escaped=functools.reduce(operator.or_, (b for _, b in self.escapes), 0),
            indexed=self._indexed(on_way),
            summands=self._summands(on_way),
            at_variables={
                position[key]: float(_dense(g).abs().max())
                for key, g in gradients.items()
                if key in position and g.numel()
            },
            terms=terms_of(self, root) if detailed else [],
            cut_terms=cut_terms_of(self, root),
            uses=self._uses(on_way),
        )

    def _summands(self, on_way: Sequence[Call]) -> float:
        largest = 0.0
        for call in reversed(on_way):
            own = [t.detach() for t in call.inputs if self.bits_of(t) and t.numel()]
            product = len(own) > 1 and "mul" in call.name
            if call.name not in SUMS or product or not own:
                break
            largest = max(float(t.abs().max()) for t in own)
        return largest

    def _gradients_on(
        self, root: torch.Tensor, calls: Sequence[Call]
    ) -> dict[int, torch.Tensor]:
        """Return the root's gradient with respect to the tensors on the way, by id."""
        if not root.requires_grad:
            return {}
        wanted: dict[int, torch.Tensor] = {}
        for call in calls:
            for tensor in (*call.inputs, *call.outputs):
                # A second gradient of a large variable would cost as much as it does.
                large = id(tensor) in self._bit and tensor.numel() > LARGE
                if tensor.requires_grad and tensor.is_floating_point() and not large:
                    wanted[id(tensor)] = tensor
        if not wanted:
            return {}
        with torch.enable_grad(), WithoutHooks(wanted.values()):
            try:
                found = torch.autograd.grad(
                    root,
                    list(wanted.values()),
                    torch.ones_like(root),
                    retain_graph=True,
                    allow_unused=True,
                )
            except RuntimeError:  # a graph that allows no second walk (checkpointing)
                return {}
        return {
            key: gradient
            for key, gradient in zip(wanted, found, strict=True)
            if gradient is not None
        }

    def _passage(self, call: Call, gradients: dict[int, torch.Tensor]) -> Passage:
        flowing = [t for t in call.inputs if self.bits_of(t) or t is call.inputs[0]]
        value_in = next((t for t in flowing if self.bits_of(t)), None)
        value_out = call.outputs[0]
        return Passage(
            name=call.name,
            gradient_in=_largest(gradients, flowing),
            gradient_out=_largest(gradients, call.outputs),
            facts=facts_of(call, value_in, value_out, self.bits_of)
            | self._facts_of_recurrence(call, gradients)
            | counted_targets(call, gradients.get(id(call.inputs[0])))
            | self._maker(call)
            | {"after_layer": self._after_layer(call)},
            from_variables=call.from_variables,
            shape_in=tuple(value_in.shape) if value_in is not None else (),
            direct=value_in is not None and self._is_direct(value_in),
            own=id(value_in) in self._bit,
        )

    def _maker(self, call: Call) -> dict[str, Any]:
        """Name the call, through views, that made what a loss is given."""
        if call.name not in COMPARISONS | {"log_softmax"} or not call.inputs:
            return {}
        tensor = call.inputs[0]
        for _ in range(5):
            producer = self._producer.get(id(tensor))
            if producer is None:
                return {}
            made = self.calls[producer]
            if made.name not in VIEWS or not made.inputs:
                return {"made_by": made.name}
            tensor = made.inputs[0]
        return {}

    def _after_layer(self, call: Call) -> bool:
        """Whether a call is given, but for views and sums, the output of a layer."""
        tensor = call.inputs[0] if call.inputs else None
        for _ in range(6):
            producer = self._producer.get(id(tensor))
            if producer is None or producer >= call.index:
                return False
            made = self.calls[producer]
            if made.name in LAYERS:
                return True
            flowing = [t for t in made.inputs if self.bits_of(t)]
            if made.name not in VIEWS | ELEMENTWISE or not flowing:
                return False
            tensor = flowing[0]
        return False

    def _facts_of_recurrence(
        self, call: Call, gradients: dict[int, torch.Tensor]
    ) -> dict[str, Any]:
        """Follow the gradient of a recurrent layer from its last input to its first."""
        if call.name not in RECURRENT or not isinstance(call.args[0], torch.Tensor):
            return {}
        after = [(o, gradients[id(o)]) for o in call.outputs if id(o) in gradients]
        inputs = call.args[0]
        if not after or inputs.dim() != 3:
            return {}
        own = inputs.detach().clone().requires_grad_()
        with torch.enable_grad():
            again = list(tensors_in(call.function(own, *call.args[1:], **call.kwargs)))
            asked = [again[k] for k, o in enumerate(call.outputs) if id(o) in gradients]
            (found,) = torch.autograd.grad(
                asked, own, [g for _, g in after], allow_unused=True
            )
        if found is None:
            return {}
        batch_first = bool(call.args[-1]) if isinstance(call.args[-1], bool) else False
        time = 1 if batch_first else 0
        other = [d for d in range(3) if d != time]
        sizes = found.double().square().sum(dim=other).sqrt()
        return {"kind": "recurrence", "sizes": sizes.tolist()}

    def _is_direct(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a variable or an elementwise function of one."""
        for _ in range(6):
            if id(tensor) in self._bit:
                return True
            producer = self._producer.get(id(tensor))
            if producer is None:
                return False
            call = self.calls[producer]
            flowing = [t for t in call.inputs if self.bits_of(t)]
            elementwise = call.name in ELEMENTWISE
            if len(flowing) != 1 or not elementwise:
                return False
            tensor = flowing[0]
        return False

    def _indexed(self, calls: Sequence[Call]) -> int:
        bits = 0
        for call in calls:
            if call.name in ("__getitem__", "gather", "index_select", "take"):
                for tensor in call.inputs[1:]:
                    bits |= self.bits_of(tensor) if tensor.dtype in WHOLE else 0
        return bits

    def _is_state(self, cut: Call) -> bool:
        """Whether a layer takes what a call hands on without its graph."""
        handed_on = {id(tensor) for tensor in cut.outputs}
        return any(
            call.name in TAKING_STATES and any(id(t) in handed_on for t in call.inputs)
            for call in self.calls[cut.index + 1 :]
        )

    def _uses(self, calls: Sequence[Call]) -> dict[int, int]:
        position = {id(v): i for i, v in enumerate(self.variables)}
        found: dict[int, int] = {}
        for call in calls:
            for tensor in call.inputs:
                if id(tensor) in position:
                    i = position[id(tensor)]
                    found[i] = found.get(i, 0) + 1
        return found


def _size_of(added: Any, kwargs: dict) -> float:
    """Return the largest entry of what is added in place."""
    factor = abs(kwargs.get("alpha", 1))
    if isinstance(added, torch.Tensor):
        return factor * float(added.detach().abs().max()) if added.numel() else 0.0
    return factor * abs(added) if isinstance(added, (int, float)) else 0.0


def leaves_of(root: torch.Tensor) -> list[torch.Tensor]:
    """Return the leaves that a tensor's graph ends in."""
    if root.grad_fn is None:
        return [root] if root.requires_grad else []
    leaves, seen, queue = [], {root.grad_fn}, [root.grad_fn]
    while queue:
        node = queue.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor):
            leaves.append(leaf)
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                queue.append(after)
    return leaves


def _loses_graph(call: Call) -> bool:
    needs = any(t.requires_grad for t in call.inputs)
    return needs and not any(t.requires_grad for t in call.outputs)


def _how_cut(call: Call) -> str:
    if call.name in CUTS or call.name in STEP_FUNCTIONS:
        return call.name
    if not call.graph_kept:
        return "no_grad"
    return call.name


def _largest(
    gradients: dict[int, torch.Tensor], tensors: Iterable[torch.Tensor]
) -> float | None:
    found = [gradients[id(t)] for t in tensors if id(t) in gradients]
    found = [g for g in found if g.numel()]
    if not found:
        return None
    extremes = [torch.aminmax(g.detach()) for g in map(_dense, found)]
    sizes = [max(float(e.max), -float(e.min)) for e in extremes]
    return max(sizes, key=lambda size: (size != size, size))


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient

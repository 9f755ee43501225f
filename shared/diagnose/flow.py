"""Records how values flow through a step: every torch call, its inputs and outputs.

`FlowRecorder` sees each torch call of the reader's code, also where no graph is kept
(`detach`, `.item()`, a block without gradients), which autograd cannot show. At the
backward call, `examine` asks each tensor on the way from the variables to the loss for
its gradient, and so finds the call in which the gradient ends.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from shared.probes import ulp

STEP_FUNCTIONS = frozenset(
    [
        "round",
        "floor",
        "ceil",
        "trunc",
        "fix",
        "sign",
        "sgn",
        "heaviside",
        "frac",
        "floor_divide",
        "__floordiv__",
        "gt",
        "lt",
        "ge",
        "le",
        "eq",
        "ne",
        "__gt__",
        "__lt__",
        "__ge__",
        "__le__",
        "__eq__",
        "__ne__",
        "greater",
        "less",
        "argmax",
        "argmin",
        "argsort",
        "long",
        "int",
        "short",
        "bool",
        "byte",
        "logical_and",
        "logical_or",
        "logical_not",
        "bincount",
        "histc",
        "searchsorted",
        "bucketize",
        "multinomial",
        "bernoulli",
        "one_hot",
        "nonzero",
        "isclose",
        "__rfloordiv__",
        "nms",
        "topk_indices",
        "round_",
        "floor_",
        "ceil_",
        "trunc_",
        "sign_",
        "int_repr",
        "quantize_per_tensor",
        "sgn_",
        "unique",
    ]
)
"""Calls whose value changes in steps, or whose result cannot carry a gradient."""

CUTS = frozenset(
    ["detach", "detach_", "data", "tensor", "as_tensor", "new_tensor", "from_numpy"]
)
"""Calls that hand a value on without its graph."""

ESCAPES = frozenset(
    ["item", "tolist", "numpy", "__float__", "__int__", "__array__", "__index__"]
)
"""Calls after which a value is no tensor any more."""

_NO_FLOW = frozenset(
    [
        "backward",
        "grad",
        "requires_grad_",
        "register_hook",
        "retain_grad",
        "_set_grad_enabled",
        "size",
        "dim",
        "numel",
        "shape",
        "dtype",
        "device",
        "is_complex",
        "is_floating_point",
        "requires_grad",
        "grad_fn",
        "is_leaf",
        "empty",
        "empty_like",
        "zeros_like",
        "ones_like",
        "rand_like",
        "randn_like",
        "layout",
        "_record_function_enter_new",
        "_record_function_exit",
        "ndim",
        "stride",
        "is_contiguous",
        "data_ptr",
        "element_size",
        "__len__",
        "__repr__",
        "__format__",
        "is_sparse",
        "is_nested",
        "_version",
        "names",
        "output_nr",
        "storage",
        "untyped_storage",
        "type",
        "is_inference",
    ]
)


LARGE = 2_000_000
"""Tensors with more entries are not copied whole, nor asked for a second gradient."""


@dataclasses.dataclass
class Call:
    """One torch call: its name, its tensors, and which variables it descends from."""

    index: int
    name: str
    args: tuple
    kwargs: dict
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    parents: tuple[int | None, ...]
    from_variables: int
    """Bit ``i`` is set if the call descends from variable ``i``."""
    from_gradient: bool
    graph_kept: bool
    function: Callable


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
    escapes: list[str]
    scale: float
    """The largest value in the last calls before the root."""
    at_variables: dict[int, float]
    """Largest entry of each variable's gradient, without the reader's hooks."""
    terms: list["Term"]


@dataclasses.dataclass
class Term:
    """A scalar that is added into the loss."""

    value: float
    uses_data: bool
    gradients: list[torch.Tensor | None]


def tensors_in(values: Any, depth: int = 3) -> Iterator[torch.Tensor]:
    """Give the tensors in nested tuples, lists and dicts."""
    if isinstance(values, torch.Tensor):
        yield values
    elif depth and isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value, depth - 1)
    elif depth and isinstance(values, dict):
        yield from tensors_in(list(values.values()), depth)


def name_of(function: Callable) -> str:
    """Return the plain name of a torch call; that of the attribute for a getter."""
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):
        return getattr(getattr(function, "__self__", None), "__name__", name)
    return name


class FlowRecorder(TorchFunctionMode):
    """Records every torch call while it is active.

    Args:
        variables: the tensors that should change.
    """

    def __init__(self, variables: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.paused = False
        self.escapes: list[tuple[str, int]] = []
        self.gradient_edits: list[str] = []
        self.written = False
        self.additions: list[tuple[torch.Tensor, float]] = []
        self._bit = {id(v): 1 << i for i, v in enumerate(variables)}
        self._variables = list(variables)
        self._producer: dict[int, int] = {}
        self._gradients: set[int] = set()
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
                self.written |= id(args[0]) in self._bit and name == "data"
            if name == "grad" and args and isinstance(result, torch.Tensor):
                self._gradients.add(id(result))
                self._alive.append(result)
            elif name not in _NO_FLOW:
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
            from_gradient |= id(tensor) in self._gradients
            if parent is not None:
                bits |= self.calls[parent].from_variables
                from_gradient |= self.calls[parent].from_gradient
        if name in ESCAPES and bits:
            self.escapes.append((name, index))
        if any(id(tensor) in self._gradients for tensor in inputs):
            self.gradient_edits.append(name)
        if not outputs:
            return
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
        if any(
            output is variable for output in outputs for variable in self._variables
        ):
            self.written = True
            if name in _ADDITIONS and len(args) > 1:
                self.additions.append((inputs[0], _size_of(args[1], kwargs)))
            return
        for output in outputs:
            self._producer[id(output)] = index

    def bits_of(self, tensor: torch.Tensor) -> int:
        """Return which variables a tensor descends from, as bits."""
        producer = self._producer.get(id(tensor))
        own = self._bit.get(id(tensor), 0)
        return own | (0 if producer is None else self.calls[producer].from_variables)

    def clear(self) -> None:
        """Let go of all tensors."""
        self.calls, self._alive = [], []
        self._producer, self._gradients, self.escapes = {}, set(), []

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

    def largest_addition(self) -> float:
        """Return the largest number added to a variable in place, in spacings."""
        return max(
            (size / _largest_spacing(v) for v, size in self.additions),
            default=0.0,
        )

    def pairs(self, inputs: Sequence[torch.Tensor]) -> list[tuple]:
        """Return what a loss call compares the outputs for these inputs with."""
        targets = [
            tensor
            for call in self.calls
            if call.name in _COMPARISONS and call.from_variables
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
        leaves = _leaves_of(root)
        position = {id(v): i for i, v in enumerate(self._variables)}
        reached = {position[id(leaf)] for leaf in leaves if id(leaf) in position}
        others = [leaf for leaf in leaves if id(leaf) not in position]
        cuts = [_how_cut(call) for call in on_way if _loses_graph(call)]
        gradients = self._gradients_on(root, on_way) if detailed else {}
        passages = [self._passage(call, gradients) for call in on_way]
        return Way(
            reached_by_values=self.bits_of(root),
            reached_by_graph=reached,
            other_leaves=others,
            passages=passages,
            cuts=cuts,
            escapes=[name for name, _ in self.escapes],
            scale=max(
                (
                    float(t.detach().abs().max())
                    for call in on_way[-3:]
                    for t in call.inputs
                    if t.is_floating_point() and t.numel()
                ),
                default=0.0,
            ),
            at_variables={
                position[key]: float(_dense(g).abs().max())
                for key, g in gradients.items()
                if key in position and g.numel()
            },
            terms=self._terms(root) if detailed else [],
        )

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
        with torch.enable_grad(), _NoHooks(wanted.values()):
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
            | self._maker(call)
            | {"after_layer": self._after_layer(call)},
            from_variables=call.from_variables,
            shape_in=tuple(value_in.shape) if value_in is not None else (),
            direct=value_in is not None and self._is_direct(value_in),
        )

    def _maker(self, call: Call) -> dict[str, Any]:
        """Name the call, through views, that made what a loss is given."""
        if call.name not in _COMPARISONS | {"log_softmax"} or not call.inputs:
            return {}
        tensor = call.inputs[0]
        for _ in range(5):
            producer = self._producer.get(id(tensor))
            if producer is None:
                return {}
            made = self.calls[producer]
            if made.name not in _VIEWS or not made.inputs:
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
            if made.name in _LAYERS:
                return True
            flowing = [t for t in made.inputs if self.bits_of(t)]
            if made.name not in _VIEWS | _ELEMENTWISE or not flowing:
                return False
            tensor = flowing[0]
        return False

    def _facts_of_recurrence(
        self, call: Call, gradients: dict[int, torch.Tensor]
    ) -> dict[str, Any]:
        """Follow the gradient of a recurrent layer from its last input to its first."""
        if call.name not in _RECURRENT or not isinstance(call.args[0], torch.Tensor):
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
            elementwise = call.name in _ELEMENTWISE
            if len(flowing) != 1 or not elementwise:
                return False
            tensor = flowing[0]
        return False

    def _terms(self, root: torch.Tensor) -> list[Term]:
        """Split the root into the scalars that are added up in it."""
        if not root.requires_grad or root.numel() != 1:
            return []
        parts = self._addends(root, 64)
        if len(parts) < 2:
            return []
        leaves = [v for v in self._variables if v.is_leaf and v.requires_grad]
        terms = []
        for part in parts:
            if not part.requires_grad:
                continue
            sources = {
                id(tensor)
                for call in self.ancestors(part)
                for tensor in call.inputs
                if id(tensor) not in self._producer
                and id(tensor) not in self._bit
                and tensor.numel() > 1
            }
            try:
                with torch.enable_grad(), _NoHooks(leaves):
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
                    uses_data=bool(sources),
                    gradients=[by_id.get(id(v)) for v in self._variables],
                )
            )
        return terms

    def _addends(self, root: torch.Tensor, depth: int) -> list[torch.Tensor]:
        producer = self._producer.get(id(root))
        if producer is None or not depth:
            return [root]
        call = self.calls[producer]
        scalars = [t for t in call.inputs if t.numel() == 1 and self.bits_of(t)]
        if call.name in ("add", "__add__", "__radd__", "__iadd__", "add_", "sub") and (
            len(scalars) == len(call.inputs)
        ):
            first = call.inputs[0]
            if first is root:  # added in place: what it was before is gone
                return [root]
            return [p for t in scalars for p in self._addends(t, depth - 1)]
        return [root]


_ELEMENTWISE = frozenset(
    [
        "mul",
        "add",
        "sub",
        "div",
        "neg",
        "__mul__",
        "__add__",
        "__sub__",
        "__rmul__",
        "__radd__",
        "__rsub__",
        "rsub",
        "true_divide",
        "__truediv__",
        "clone",
        "view",
        "reshape",
        "__getitem__",
        "unsqueeze",
        "squeeze",
        "sigmoid",
        "tanh",
        "exp",
        "flatten",
        "to",
        "float",
        "double",
        "contiguous",
        "expand",
        "permute",
        "transpose",
        "T",
        "t",
    ]
)


_COMPARISONS = frozenset(
    [
        "cross_entropy",
        "nll_loss",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "sub",
        "__sub__",
        "rsub",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "hinge_embedding_loss",
        "multi_margin_loss",
        "kl_div",
        "poisson_nll_loss",
        "gaussian_nll_loss",
    ]
)


_VIEWS = frozenset(
    [
        "view",
        "reshape",
        "squeeze",
        "unsqueeze",
        "flatten",
        "transpose",
        "permute",
        "contiguous",
        "__getitem__",
        "to",
        "float",
        "double",
        "clone",
        "t",
        "T",
    ]
)
_LAYERS = frozenset(
    [
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "matmul",
        "mm",
        "addmm",
        "bmm",
        "batch_norm",
        "layer_norm",
        "group_norm",
        "__matmul__",
        "einsum",
        "embedding",
    ]
)
_RECURRENT = frozenset(["rnn_tanh", "rnn_relu", "lstm", "gru"])


class _NoHooks:
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


_ADDITIONS = frozenset(("add_", "sub_", "__iadd__", "__isub__", "subtract_"))


def _largest_spacing(values: torch.Tensor) -> float:
    """Return the distance from the largest entry to the next number of its format."""
    return float(ulp(values.detach().abs().max()))


def _size_of(added: Any, kwargs: dict) -> float:
    """Return the largest entry of what is added in place."""
    factor = abs(kwargs.get("alpha", 1))
    if isinstance(added, torch.Tensor):
        return factor * float(added.detach().abs().max()) if added.numel() else 0.0
    return factor * abs(added) if isinstance(added, (int, float)) else 0.0


def _leaves_of(root: torch.Tensor) -> list[torch.Tensor]:
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


def facts_of(
    call: Call,
    value_in: torch.Tensor | None,
    value_out: torch.Tensor,
    bits_of: Callable[[torch.Tensor], int],
) -> dict[str, Any]:
    """Measure what is special about one call: shares that are off, flat or masked."""
    name = call.name.rstrip("_") if not call.name.startswith("__") else call.name
    measure = _FACTS.get(name)
    if measure is None or value_in is None or not value_out.numel():
        return {}
    with torch.no_grad():
        try:
            return measure(call, value_in.detach(), value_out.detach(), bits_of)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return {}


def _rectifier(call: Call, x: torch.Tensor, y: torch.Tensor, _: Any) -> dict[str, Any]:
    off = y <= 0
    return {"kind": "rectifier", "off": off.float().mean().item(), **_units_off(off)}


def _units_off(off: torch.Tensor) -> dict[str, float]:
    """Share of units (the channels, or else all entries) that are off everywhere."""
    if off.dim() < 2 or len(off) < 2:
        return {"units_off": off.float().mean().item(), "examples": 1}
    channel = 1 if off.dim() in (2, 4, 5) else off.dim() - 1
    others = [d for d in range(off.dim()) if d != channel]
    all_off = off
    for dimension in sorted(others, reverse=True):
        all_off = all_off.all(dim=dimension)
    return {"units_off": all_off.float().mean().item(), "examples": len(off)}


def _flat_by_slope(
    kind: str, slope: Callable[[torch.Tensor], torch.Tensor]
) -> Callable:
    def measure(call: Call, x: torch.Tensor, y: torch.Tensor, _: Any) -> dict[str, Any]:
        steepness = slope(y.double()) if kind != "logsigmoid" else slope(x.double())
        return {
            "kind": kind,
            "flat": (steepness < 1e-2).float().mean().item(),
            "exactly_flat": (slope(y) == 0).float().mean().item(),
        }

    return measure


def _softmax(call: Call, x: torch.Tensor, y: torch.Tensor, _: Any) -> dict[str, Any]:
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
    dim = -1 if not isinstance(dim, int) else dim
    logarithmic = "log" in call.name
    p = y.exp() if logarithmic else y
    top = p.max(dim=dim).values
    return {
        "kind": "log_softmax" if logarithmic else "softmax",
        "classes": x.shape[dim],
        "flat": (top > 1 - 1e-2).float().mean().item(),
        "exactly_flat": (top == 1).float().mean().item(),
        "fed_probabilities": x.shape[dim] > 1 and _are_probabilities(x, dim),
    }


def _are_probabilities(x: torch.Tensor, dim: int) -> bool:
    """Whether all slices are nonnegative and sum to 1, as a softmax leaves them."""
    if not x.is_floating_point() or x.numel() < 2:
        return False
    sums = x.float().sum(dim=dim)
    tolerance = 1e-3 if x.dtype in (torch.float16, torch.bfloat16) else 1e-5
    one_hot = bool(((x == 0) | (x == 1)).all()) and not x.requires_grad
    return (
        bool((x >= 0).all())
        and bool(((sums - 1).abs() < tolerance).all())
        and (not one_hot or x.shape[dim] > 1)
    )


def _clamp(call: Call, x: torch.Tensor, y: torch.Tensor, _: Any) -> dict[str, Any]:
    bounds = [
        b
        for b in (*call.args[1:3], call.kwargs.get("min"), call.kwargs.get("max"))
        if b is not None
    ]
    pair = call.name in ("minimum", "maximum", "clamp_min", "clamp_max")
    return {
        "kind": "clamp",
        "two_sided": not pair
        and (call.name in ("hardtanh", "relu6", "hardsigmoid") or len(bounds) > 1),
        "outside": (x != y).float().mean().item(),
    }


def _cross_entropy(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    target = call.args[1] if len(call.args) > 1 else call.kwargs["target"]
    weight = call.kwargs.get("weight")
    if weight is None and len(call.args) > 2:
        weight = call.args[2]
    ignored = call.kwargs.get("ignore_index", -100)
    scores = call.args[0] if call.args else call.kwargs["input"]
    dim = 1 if scores.dim() > 1 else 0
    is_log = call.name == "nll_loss"
    facts = {
        "kind": "cross_entropy",
        "classes": scores.shape[dim],
        "fed_probabilities": not is_log and _are_probabilities(scores.detach(), dim),
    }
    if target.dtype == torch.long:
        facts |= _masked_targets(target, weight, ignored, scores.shape[dim])
    return facts


def _masked_targets(
    target: torch.Tensor, weight: torch.Tensor | None, ignored: int, classes: int
) -> dict[str, Any]:
    flat = target.flatten()
    counted = flat != ignored
    if _is_padding(~counted):
        return {"counted": counted.float().mean().item(), "classes_lost": []}
    if weight is not None:
        valid = flat.clamp(0, classes - 1)
        counted &= weight[valid] != 0
    present = flat.unique().tolist()
    lost = [c for c in present if 0 <= c < classes and not counted[flat == c].any()]
    return {"counted": counted.float().mean().item(), "classes_lost": lost}


def _is_padding(ignored: torch.Tensor) -> bool:
    """Whether ignored entries come in runs, as the padded ends of sequences do."""
    share = float(ignored.double().mean())
    if share in (0.0, 1.0):
        return False
    pairs = ignored[:-1]
    following = float(ignored[1:][pairs].double().mean()) if pairs.any() else 0.0
    return following > 0.5 + 0.5 * share


def _with_logits(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    scores = call.args[0] if call.args else call.kwargs["input"]
    inside = bool(((scores >= 0) & (scores <= 1)).all())
    return {"kind": "with_logits", "fed_probabilities": inside, **_shapes(call)}


def _pairing(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    target = [t for t in call.inputs[:2] if not bits_of(t)]
    comparable = x.dim() > 1 and len(x) >= 4 and bool(target)
    spread = (x - x.mean(dim=0)).abs().max() if comparable else torch.ones(())
    scale = x.abs().max() if x.numel() else torch.ones(())
    equal = bool(spread <= 4 * torch.finfo(x.dtype).eps * scale)
    return {"kind": "pairing", "rows_equal": equal, **_shapes(call, bits_of)}


def _shapes(call: Call, bits_of: Callable | None = None) -> dict[str, Any]:
    """Return the shapes of a pair and whether they are expanded against each other."""
    pair = [t for t in call.inputs[:2] if isinstance(t, torch.Tensor)]
    if len(pair) < 2:
        return {}
    a, b = (tuple(t.shape) for t in pair)
    column_against_flat = (
        len(a) != len(b) and _expand_mutually(a, b) and math.prod(a) == math.prod(b)
    )
    one_is_target = bits_of is None or any(not bits_of(t) for t in pair)
    return {
        "shapes": (a, b),
        "broadcast": column_against_flat and one_is_target,
    }


def _expand_mutually(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether each of two shapes is expanded: (N, 1) against (N,), with N over 1."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    first = any(x == 1 and y > 1 for x, y in zip(a, b, strict=True))
    second = any(y == 1 and x > 1 for x, y in zip(a, b, strict=True))
    return first and second


def _shift(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    """Whether a number other than zero is added, and lost, to the last digit."""
    facts = (
        {}
        if call.name.startswith(("add", "__add", "__radd"))
        else _pairing(call, x, y, bits_of)
    )
    numbers = [a for a in call.args if isinstance(a, (int, float)) and a]
    numbers += [t.item() for t in call.inputs if t.numel() == 1 and not bits_of(t)]
    if numbers and numbers[0] and x.shape == y.shape and bool((x == y).all()):
        facts["lost_shift"] = abs(numbers[0]) / _largest_spacing(x)
    return facts


def _product(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    pair = [t.detach() for t in call.inputs[:2]]
    zero = [not bool(t.any()) for t in pair]
    constant_zero = any(
        z and not bits_of(t) for z, t in zip(zero, call.inputs[:2], strict=True)
    )
    both = len(pair) == 2 and all(bits_of(t) for t in call.inputs[:2])
    return {
        "kind": "product",
        "zero_factors": zero,
        "constant_zero": constant_zero,
        "both_vary": both,
    }


def _quotient(
    call: Call, x: torch.Tensor, y: torch.Tensor, bits_of: Callable
) -> dict[str, Any]:
    """Whether a quantity that the variables decide stands below the line."""
    if call.name == "pow":
        exponent = call.args[1] if len(call.args) > 1 else call.kwargs["exponent"]
        return {"reciprocal": isinstance(exponent, (int, float)) and exponent < 0}
    if call.name in ("reciprocal", "__rdiv__", "__rtruediv__"):
        return {"reciprocal": y.numel() == 1}
    below = call.args[1]
    tensor = isinstance(below, torch.Tensor) and bool(bits_of(below))
    return {"reciprocal": tensor and below.numel() == 1 and y.numel() == 1}


_FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "relu": _rectifier,
    "threshold": _rectifier,
    "sigmoid": _flat_by_slope("sigmoid", lambda y: 4 * y * (1 - y)),
    "tanh": _flat_by_slope("tanh", lambda y: 1 - y * y),
    "softmax": _softmax,
    "log_softmax": _softmax,
    "cross_entropy": _cross_entropy,
    "nll_loss": _cross_entropy,
    "binary_cross_entropy_with_logits": _with_logits,
    **dict.fromkeys(
        (
            "clamp",
            "clip",
            "hardtanh",
            "relu6",
            "clamp_min",
            "clamp_max",
            "hardsigmoid",
            "minimum",
            "maximum",
        ),
        _clamp,
    ),
    **dict.fromkeys(("add", "__add__", "__radd__", "sub", "__sub__"), _shift),
    **dict.fromkeys(
        (
            "reciprocal",
            "__rdiv__",
            "__rtruediv__",
            "pow",
            "__pow__",
            "div",
            "__truediv__",
            "true_divide",
        ),
        _quotient,
    ),
    **dict.fromkeys(
        (
            "mse_loss",
            "l1_loss",
            "smooth_l1_loss",
            "huber_loss",
            "rsub",
            "__rsub__",
            "kl_div",
            "soft_margin_loss",
            "subtract",
        ),
        _pairing,
    ),
    **dict.fromkeys(
        (
            "mul",
            "__mul__",
            "matmul",
            "__matmul__",
            "linear",
            "bmm",
            "mm",
            "multiply",
            "__rmul__",
        ),
        _product,
    ),
}

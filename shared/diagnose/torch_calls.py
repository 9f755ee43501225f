"""Torch calls by kind, and the record of one call.

The names are those that a `TorchFunctionMode` sees.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

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

ROUNDINGS = frozenset(
    [
        "round",
        "floor",
        "ceil",
        "trunc",
        "round_",
        "floor_",
        "ceil_",
        "trunc_",
        "long",
        "int",
        "short",
        "byte",
        "quantize_per_tensor",
    ]
)
"""Those of them that put a number on a grid."""

CUTS = frozenset(
    ["detach", "detach_", "data", "tensor", "as_tensor", "new_tensor", "from_numpy"]
)
"""Calls that hand a value on without its graph."""

ESCAPES = frozenset(
    ["item", "tolist", "numpy", "__float__", "__int__", "__array__", "__index__"]
)
"""Calls after which a value is no tensor any more."""

ARRAYS = frozenset(["numpy", "__array__", "tolist"])
"""Those of them that hand on all entries."""

NO_FLOW = frozenset(
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
"""Calls that hand no value on."""

ELEMENTWISE = frozenset(
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
"""Calls that keep entries apart, or only arrange them anew."""

COMPARISONS = frozenset(
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
"""Calls that may compare what is computed with what is wanted."""

VIEWS = frozenset(
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
"""Calls that hand the same values on in another form."""
LAYERS = frozenset(
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
"""Calls by which a layer mixes its inputs."""

TAKING_STATES = LAYERS | {
    "rnn_tanh_cell",
    "rnn_relu_cell",
    "gru_cell",
    "lstm_cell",
    "cat",
    "concat",
}
"""Calls that may take the state of one time step for the next."""
SUMS = frozenset(
    [
        "mean",
        "sum",
        "neg",
        "__neg__",
        "add",
        "__add__",
        "__radd__",
        "sub",
        "__sub__",
        "rsub",
        "__rsub__",
        "mul",
        "__mul__",
        "__rmul__",
        "div",
        "true_divide",
        "__truediv__",
    ]
)
"""Calls that add up what they are given, or scale it."""

NEVER_BELOW_ZERO = frozenset(
    [
        "square",
        "pow",
        "__pow__",
        "abs",
        "norm",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
    ]
)
"""Calls whose values are zero at least, as squares are (of an even power)."""

RECURRENT = frozenset(["rnn_tanh", "rnn_relu", "lstm", "gru"])
"""Calls that go over a sequence."""

ALIASING = frozenset(["data", "detach"])
"""Calls whose result shares its numbers with what they are given."""

ADDITIONS = frozenset(("add_", "sub_", "__iadd__", "__isub__", "subtract_"))
"""Calls that add to a tensor in place."""


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


def tensors_in(values: Any, depth: int = 3) -> Iterator[torch.Tensor]:
    """Give the tensors in nested tuples, lists and dicts."""
    if isinstance(values, torch.Tensor):
        yield values
    elif depth and isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value, depth - 1)
    elif depth and isinstance(values, dict):
        yield from tensors_in(list(values.values()), depth)


def in_vmap(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for many, inside of `torch.vmap`: it has no values."""
    wrappers = torch._C._functorch
    while wrappers.is_functorch_wrapped_tensor(tensor):
        if wrappers.is_batchedtensor(tensor):
            return True
        tensor = wrappers.get_unwrapped(tensor)  # from another transform around it
    return False


def all_zero(values: torch.Tensor) -> bool:
    """Whether every entry is zero. Copies nothing, as `any` and counts would."""
    if not values.numel():
        return True
    if values.is_complex():
        values = torch.view_as_real(values)
    extremes = torch.aminmax(values)
    return bool(extremes.min == 0) and bool(extremes.max == 0)


def name_of(function: Callable) -> str:
    """Return the plain name of a torch call; that of the attribute for a getter."""
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):
        return getattr(getattr(function, "__self__", None), "__name__", name)
    return name

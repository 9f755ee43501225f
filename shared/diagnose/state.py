"""Puts back everything that a step touched: the reader's objects stay as they were.

`Snapshot` walks from the step itself (its closure, the globals it names, its object)
and from the objects that the reader names to whatever they hold, and keeps a copy of
what can change: tensors, gradients, containers, attributes, closure cells, global
names, random generators. `restore` writes the copies back into the same objects.

An iterator, such as that of a data loader, only moves forward. It is replaced by one
that keeps what it gave (`Rewound`), and the reader's loop gets those batches again.
"""

import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableSet, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

LARGEST_COPIED = 4_000_000
"""Entries of a tensor or array that is copied although nothing trains it."""

MOST_OBJECTS = 50_000
"""How many objects are looked at: a limit for steps that reach a whole program."""

_MISSING = object()
_LIBRARIES = ("torch", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "IPython")
_ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    torch.dtype,
    torch.device,
    torch.Size,
)


class Rewound(Iterator[Any]):
    """An iterator that gives again what was taken from it, then goes on.

    Batches come from iterators, which move forward only. This one keeps what it gave,
    so that every trial of a step gets the same batches, and the reader's loop, after
    all trials, gets them once more.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source
        self.taken: deque[Any] = deque()
        self._place = 0
        self.keeping = True

    def __next__(self) -> Any:
        """Give what was given in the last trial, or what comes next."""
        if not self.keeping:
            return self.taken.popleft() if self.taken else next(self.source)
        if self._place == len(self.taken):
            self.taken.append(next(self.source))
        self._place += 1
        return self.taken[self._place - 1]

    def rewind(self) -> None:
        """Go back to where keeping began."""
        self._place = 0

    def __getattr__(self, name: str) -> Any:
        """Look up what this is not in the source."""
        return getattr(self.source, name)


@dataclass
class Snapshot:
    """The state of all that ``roots`` reach, as it is now.

    Args:
        roots: objects to start from: the step, the variables, the optimizer.
        trained: tensors that are copied whatever their size.
    """

    roots: Iterable[Any]
    trained: Iterable[torch.Tensor] = ()

    def __post_init__(self) -> None:
        self._kept: list[Callable[[], None]] = []
        self._iterators: list[Rewound] = []
        self._unused: list[Callable[[], None]] = []
        self._seen: dict[int, Any] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._places: dict[int, list[Callable[[], Any]]] = {}
        self._trained = {id(tensor) for tensor in self.trained}
        self.optimizers: list[torch.optim.Optimizer] = []
        self._keep_global_generators()
        queue: deque[Any] = deque(self.roots)
        while queue and len(self._seen) < MOST_OBJECTS:
            one = queue.popleft()
            if isinstance(one, (*_ATOMS, Rewound)) or id(one) in self._seen:
                continue
            self._seen[id(one)] = one  # keeps it alive, so that its id stays its own
            queue.extend(self._keep(one))

    def restore(self) -> None:
        """Write everything back, for another trial of the step."""
        for put_back in self._kept:
            put_back()
        for iterator in self._iterators:
            iterator.rewind()

    def close(self) -> None:
        """Write everything back for good: the objects are the reader's again."""
        self.restore()
        for iterator in self._iterators:
            iterator.keeping = False
        for put_original in self._unused:
            put_original()

    def rebound(self, tensors: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return what stands, at this moment, where one of some tensors stood.

        Only names whose tensor is another one now are given, by the tensor's index.
        """
        found = {}
        for i, tensor in enumerate(tensors):
            for get in self._places.get(id(tensor), []):
                now = get()
                if now is not tensor and isinstance(now, torch.Tensor):
                    found[i] = now
        return found

    # ---------------------------------------------------------------------------------

    def _note_place(self, get: Callable[[], Any], value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self._places.setdefault(id(value), []).append(get)

    def _keep_global_generators(self) -> None:
        torch_state = torch.get_rng_state()
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        grad_enabled = torch.is_grad_enabled()
        default_dtype = torch.get_default_dtype()

        def put_back() -> None:
            torch.set_rng_state(torch_state)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            torch.set_grad_enabled(grad_enabled)
            torch.set_default_dtype(default_dtype)

        self._kept.append(put_back)

    def _keep(self, one: Any) -> Iterator[Any]:
        """Keep the state of one object; give what it holds."""
        if isinstance(one, torch.Tensor):
            yield from self._keep_tensor(one)
        elif isinstance(one, np.ndarray):
            self._keep_array(one)
        elif isinstance(one, torch.Generator):
            state = one.get_state()
            self._kept.append(lambda: one.set_state(state))
        elif isinstance(one, np.random.Generator):
            self._keep_attribute(one.bit_generator, "state")
        elif isinstance(one, random.Random):
            own = one.getstate()
            self._kept.append(lambda: one.setstate(own))
        elif isinstance(one, (types.FunctionType, types.MethodType, functools.partial)):
            yield from self._keep_function(one)
        elif isinstance(one, dict):
            yield from self._keep_dict(one)
        elif isinstance(one, (list, deque)):
            yield from self._keep_sequence(one)
        elif isinstance(one, MutableSet):
            yield from self._keep_set(one)
        elif isinstance(one, (tuple, frozenset)):
            yield from one
        elif isinstance(one, types.CellType):
            yield from self._keep_cell(one)
        else:
            yield from self._keep_object(one)

    def _keep_tensor(self, tensor: torch.Tensor) -> Iterator[Any]:
        data, requires_grad = tensor.data, tensor.requires_grad
        wanted = (tensor.is_leaf and requires_grad) or id(tensor) in self._trained
        # An expanded view holds one number in many places: its base is kept instead.
        expanded = any(
            n > 1 and s == 0 for n, s in zip(data.shape, data.stride(), strict=True)
        )
        copied = (wanted or tensor.numel() <= LARGEST_COPIED) and not expanded
        values = data.clone() if copied else None
        if values is not None:
            self.values[id(tensor)] = values
        has_grad = tensor.is_leaf or tensor.retains_grad
        gradient = tensor.grad if has_grad else None

        def put_back() -> None:
            if tensor.is_leaf and tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if values is not None:
                # The step may have exchanged the storage behind the tensor.
                tensor.data = data
                data.copy_(values)
            if has_grad and tensor.grad is not gradient:
                tensor.grad = gradient

        self._kept.append(put_back)
        if gradient is not None:
            self._trained.add(id(gradient))
            yield gradient

    def _keep_array(self, array: np.ndarray) -> None:
        if array.size > LARGEST_COPIED or not array.flags.writeable:
            return
        values = array.copy()
        self._kept.append(lambda: np.copyto(array, values))

    def _keep_attribute(self, owner: object, name: str) -> None:
        value = getattr(owner, name)
        self._kept.append(lambda: setattr(owner, name, value))

    def _keep_function(
        self, function: types.FunctionType | types.MethodType | functools.partial
    ) -> Iterator[Any]:
        if isinstance(function, functools.partial):
            yield from (function.func, function.args, function.keywords)
        elif isinstance(function, types.MethodType):
            yield from (function.__self__, function.__func__)
        else:
            yield from function.__closure__ or ()
            yield function.__defaults__
            yield function.__kwdefaults__
            yield from self._keep_globals(function)

    def _keep_globals(self, function: types.FunctionType) -> Iterator[Any]:
        space = function.__globals__
        if space.get("__name__", "").split(".")[0] in _LIBRARIES:
            return
        for name in _names_in(function.__code__):
            if name not in space:
                continue
            yield self._keep_place(
                functools.partial(space.get, name, _MISSING),
                functools.partial(space.__setitem__, name),
            )

    def _keep_cell(self, cell: types.CellType) -> Iterator[Any]:
        try:
            cell.cell_contents  # noqa: B018  (asks whether it is filled)
        except ValueError:
            return
        yield self._keep_place(
            lambda: cell.cell_contents,
            functools.partial(setattr, cell, "cell_contents"),
        )

    def _keep_place(self, get: Callable[[], Any], put: Callable[[Any], None]) -> Any:
        """Keep what a name stands for; give it back, for a closer look."""
        value = get()
        if isinstance(value, Iterator) and not isinstance(value, Rewound):
            value = self._keep_iterator(value, put)

        def put_back() -> None:
            if get() is not value:
                put(value)

        self._kept.append(put_back)
        self._note_place(get, value)
        return value

    def _keep_iterator(
        self, source: Iterator[Any], put: Callable[[Any], None]
    ) -> Rewound:
        rewound = Rewound(source)
        self._iterators.append(rewound)
        put(rewound)
        self._unused.append(lambda: None if rewound.taken else put(source))
        return rewound

    def _keep_dict(self, one: dict) -> Iterator[Any]:
        for key, value in one.items():
            if isinstance(value, Iterator) and not isinstance(value, Rewound):
                self._keep_iterator(value, functools.partial(one.__setitem__, key))
        before = dict(one)

        def put_back() -> None:
            for key in [key for key in one if key not in before]:
                del one[key]
            for key, value in before.items():
                if one.get(key, _MISSING) is not value:
                    one[key] = value

        self._kept.append(put_back)
        for key, value in before.items():
            self._note_place(functools.partial(one.get, key), value)
            yield key
            yield value

    def _keep_sequence(self, one: list | deque) -> Iterator[Any]:
        before = list(one)

        def put_back() -> None:
            same = len(one) == len(before)
            if not same or any(a is not b for a, b in zip(one, before, strict=True)):
                one.clear()
                one.extend(before)

        self._kept.append(put_back)
        for place, value in enumerate(before):
            if isinstance(value, torch.Tensor):
                self._note_place(functools.partial(_item, one, place), value)
        yield from before

    def _keep_set(self, one: MutableSet) -> Iterator[Any]:
        before = list(one)

        def put_back() -> None:
            if len(one) != len(before) or any(item not in one for item in before):
                one.clear()
                for item in before:
                    one.add(item)

        self._kept.append(put_back)
        yield from before

    def _keep_object(self, one: object) -> Iterator[Any]:
        if isinstance(one, torch.optim.Optimizer):
            self.optimizers.append(one)
        space = getattr(one, "__dict__", None)
        if isinstance(space, dict):
            yield space


def _item(items: list | deque, place: int) -> Any:
    return items[place] if place < len(items) else None


def _names_in(code: types.CodeType) -> set[str]:
    """Return the global names that a function's code and the code inside it use."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names

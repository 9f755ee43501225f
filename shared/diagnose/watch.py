"""Watches one step from inside: backward calls, optimizer calls, cleared gradients.

Everything is seen where torch itself passes by: the one function through which all
backward walks go, the hooks that all optimizers call, and a mode that sees each torch
call. The reader's code is neither read nor changed.
"""

import contextlib
import dataclasses
import enum
import functools
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from shared.diagnose.copies import Copies
from shared.diagnose.flow import LARGE, FlowRecorder, Passage, Way
from shared.diagnose.torch_calls import ROUNDINGS, all_zero, in_vmap, tensors_in

ENTRIES_KEPT = 25_000
"""How many entries are kept of each variable where all are too large to be copied."""

MOST_EXAMINED = 3
"""How many backward calls of one step are looked at in detail."""


class Level(enum.IntEnum):
    """How closely a step is watched; each level includes those below it."""

    LOSS = 0
    GRADIENTS = 1
    EVERYTHING = 2


@dataclasses.dataclass
class BackwardCall:
    """One walk back from a loss."""

    value: float
    has_graph: bool
    fresh: list[torch.Tensor | None]
    """The gradient that this call gave each variable; None where it gave none."""
    left_over: list[bool]
    """Whether a variable's ``.grad`` held something else than zeros before."""
    asked: bool
    """Whether the gradients were returned (`torch.autograd.grad`), not stored."""
    way: Way | None
    in_half: bool


@dataclasses.dataclass
class UpdateCall:
    """One call of an optimizer's ``step``."""

    optimizer: torch.optim.Optimizer
    rates: list[float]
    holds: set[int]
    """Variables that the optimizer holds."""
    at_entry: list[torch.Tensor | None]
    before: list[torch.Tensor]
    after: list[torch.Tensor]
    others: int
    """How many tensors it holds that are not among the variables."""
    others_with_gradient: int
    copies_moved: int
    """How many of these moved, and are as large as a variable that does not."""

    @property
    def rate(self) -> float:
        """The largest learning rate; NaN if there is none."""
        return max(self.rates, default=math.nan)


@dataclasses.dataclass
class ModuleCall:
    """The outermost call of a module, with what went in and what came out."""

    module: torch.nn.Module
    inputs: list[torch.Tensor]
    output: torch.Tensor | None
    rows_equal: bool | None
    rows_differ_in_input: bool | None
    input_scale: tuple[float, float] | None = None
    """Largest root mean square of a column, and the share of columns far narrower."""
    spread: float = math.inf
    """How far rows of the output are from their mean, over the size of the output."""
    gradient_rows: torch.Tensor | None = None
    dropped: int = 0
    """Variables (bits) that it computes with, and hands nothing of on."""


@dataclasses.dataclass
class StepRecord:
    """What one step did."""

    loss: float = math.nan
    returned: Any = None
    error: BaseException | None = None
    before: list[torch.Tensor] = dataclasses.field(default_factory=list)
    after: list[torch.Tensor] = dataclasses.field(default_factory=list)
    backwards: list[BackwardCall] = dataclasses.field(default_factory=list)
    updates: list[UpdateCall] = dataclasses.field(default_factory=list)
    log: list[BackwardCall | UpdateCall] = dataclasses.field(default_factory=list)
    """Backward and optimizer calls in the order in which they came."""
    modules: list[ModuleCall] = dataclasses.field(default_factory=list)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = dataclasses.field(
        default_factory=list
    )
    """Inputs of modules, and targets that a loss compares as many outputs with."""
    events: list[str] = dataclasses.field(default_factory=list)
    return_way: Way | None = None
    """The way to the returned loss, where no backward call was examined."""
    gradient_copied: int = 0
    """Variables (bits) from whose gradient the step computed new tensors itself."""
    gradient_handed: int = 0
    """Variables (bits) whose ``.grad`` the step's own code sets."""
    copy_written: bool = False
    """Whether the step's own code writes to what it computed from a variable."""
    gradient_edits: list[str] = dataclasses.field(default_factory=list)
    """Calls by which the step's own code changed gradients in place."""
    update_rounded: bool = False
    """Whether the step's own code rounds numbers that it computes from gradients."""
    additions: dict[int, float] = dataclasses.field(default_factory=dict)
    """The largest number that the step adds in place to a variable, in spacings."""
    lost_shift: float = 0.0
    """A number that the step adds to a variable and loses, in spacings; 0 if none."""
    written: int = 0
    """Variables (bits) that the step's own code wrote to in place."""
    updated_outside: int = 0
    """Variables (bits) whose entries leave torch in a step whose gradients do, too."""

    def fresh(self) -> list[torch.Tensor | None]:
        """Return each variable's gradient, summed over the step's backward calls."""
        total: list[torch.Tensor | None] = [None] * len(self.before)
        for call in self.backwards:
            for i, gradient in enumerate(call.fresh):
                if gradient is not None:
                    total[i] = gradient if total[i] is None else total[i] + gradient
        return total

    @property
    def largest_addition(self) -> float:
        """The largest number that the step adds in place to any variable."""
        return max(self.additions.values(), default=0.0)

    @property
    def ways(self) -> list[Way]:
        """The ways to the roots of the step's backward calls, of those examined."""
        return [call.way for call in self.backwards if call.way is not None]

    @property
    def passages(self) -> list[Passage]:
        """The calls on these ways."""
        return [passage for way in self.ways for passage in way.passages]

    def moved(self) -> list[float]:
        """Return the norm of each variable's change."""
        return [
            float((b.double() - a.double()).norm())
            for a, b in zip(self.before, self.after, strict=True)
        ]


def as_float(value: Any) -> float | None:
    """Return a step's loss as a number, None if it is none."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex():
            return None
        return float(value.detach())
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def dense(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """Return a gradient as an ordinary tensor of its own."""
    if gradient is None:
        return None
    return gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()


def is_something(gradient: torch.Tensor | None) -> bool:
    """Whether there is a gradient, and it has an entry other than zero."""
    return gradient is not None and not all_zero(dense(gradient))


def _stored(variable: torch.Tensor) -> torch.Tensor | None:
    readable = variable.is_leaf or variable.retains_grad
    return variable.grad if readable else None


def _unseen(look: Callable) -> Callable:
    """Keep what a method itself asks of torch from the modes that watch the step."""

    @functools.wraps(look)
    def looking(*args: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return look(*args)

    return looking


class StepWatch:
    """Runs a step and writes down what it did.

    Args:
        step: the reader's own, without arguments.
        variables: the tensors that should change.
    """

    def __init__(
        self,
        step: Callable[[], Any],
        variables: Sequence[torch.Tensor],
    ) -> None:
        self.step = step
        self.variables = list(variables)
        self.sign = 1.0
        large = sum(v.numel() for v in variables) > LARGE
        self._copies = Copies(ENTRIES_KEPT if large else LARGE)
        self._record = self._last = StepRecord()
        self._recorder: FlowRecorder | None = None
        self._depth = 0
        self._looking = False  # whether a backward call is the watch's own
        self._others: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._reached: set[int] | None = None  # by the graphs looked at so far
        self._plain = False  # whether optimizers were given what backward left
        self._trusted = False  # whether that is taken for granted in this step

    def run(self, level: Level, goes_on: bool = False) -> StepRecord:
        """Run the step once. An exception is recorded, not raised.

        Args:
            level: how closely to look.
            goes_on: whether nothing was changed since the last step ended.
        """
        self._last = self._record
        record = self._record = StepRecord()
        self._trusted = goes_on and self._plain
        with torch.no_grad():
            record.before = (
                self._last.after if goes_on else self._values(self._last.after)
            )
        self._recorder = (
            FlowRecorder(self.variables) if level == Level.EVERYTHING else None
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(quiet())
            stack.enter_context(_nothing_compiled())
            if level >= Level.GRADIENTS:
                stack.enter_context(self._patched())
            if self._recorder is not None:
                stack.enter_context(self._modules_watched())
                stack.enter_context(self._recorder)
            try:
                record.returned = self.step()
            except Exception as error:
                record.error = error
        with torch._C.DisableTorchFunction():  # a repair may change what `detach` does
            number = as_float(record.returned)
        if number is None and record.error is not None and record.backwards:
            number = record.backwards[
                -1
            ].value  # the loss that could not be walked back
        record.loss = math.nan if number is None else self.sign * number
        is_single = isinstance(record.returned, torch.Tensor) and (
            record.returned.numel() == 1
        )
        if self._recorder is not None and is_single and not record.ways:
            record.return_way = self._recorder.examine(record.returned, detailed=False)
        with torch.no_grad():
            record.after = self._values(*self._latest(record))
        if self._recorder is not None:
            for call in self._recorder.calls:
                if call.from_gradient:
                    record.gradient_copied |= call.from_variables or 1
                    record.update_rounded |= call.name in ROUNDINGS
            record.gradient_edits = list(self._recorder.gradient_edits)
            record.written = self._recorder.written
            if self._recorder.gradient_left:
                record.updated_outside = self._recorder.values_left
            record.gradient_handed = self._recorder.handed
            record.copy_written = self._recorder.copy_written
            record.additions = self._recorder.largest_additions()
            inputs = [t for call in record.modules for t in call.inputs]
            record.pairs = self._recorder.pairs(inputs)
            record.lost_shift = self._recorder.lost_shift()
            self._recorder.clear()
        return record

    # ---------------------------------------------------------------------------------

    @staticmethod
    def _latest(record: StepRecord) -> list[list[torch.Tensor]]:
        """Return what the values were in this step so far, the last ones first."""
        return [update.after for update in reversed(record.updates)] + [record.before]

    def _values(self, *known: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the variables' values, by earlier copies where these are equal."""
        return [
            self._copies.keep(v, *(copies[i] for copies in known if copies))
            for i, v in enumerate(self.variables)
        ]

    def _copy(
        self, gradient: torch.Tensor | None, *known: torch.Tensor | None
    ) -> torch.Tensor | None:
        found = dense(gradient)
        return None if found is None else self._copies.keep(found, *known)

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        engine = torch.autograd._engine_run_backward
        clears = {
            owner: owner.zero_grad for owner in (torch.optim.Optimizer, torch.nn.Module)
        }
        hooks = (
            register_optimizer_step_pre_hook(self._before_update),
            register_optimizer_step_post_hook(self._after_update),
        )

        def watched_engine(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self._looking or any(map(in_vmap, tensors_in(outputs))):
                return engine(outputs, *args, **kwargs)
            return self._walk_back(engine, outputs, args, kwargs)

        def watched_clear(original: Callable) -> Callable:
            def zero_grad(owner: Any, *args: Any, **kwargs: Any) -> Any:
                self._record.events.append("zero_grad")
                return original(owner, *args, **kwargs)

            return zero_grad

        torch.autograd._engine_run_backward = watched_engine
        for owner, original in clears.items():
            owner.zero_grad = watched_clear(original)
        try:
            yield
        finally:
            torch.autograd._engine_run_backward = engine
            for owner, original in clears.items():
                owner.zero_grad = original
            for hook in hooks:
                hook.remove()

    def _walk_back(
        self, engine: Callable, outputs: Any, args: tuple, kwargs: dict
    ) -> Any:
        self._record.events.append("backward")
        asked = not kwargs.get("accumulate_grad", False)
        stored = self._stored()
        call, before = self._look_before(list(tensors_in(outputs)), stored, asked)
        with self._recorder_paused():
            result = engine(outputs, *args, **kwargs)
        if asked:
            inputs = list(tensors_in(args[3])) if len(args) > 3 and args[3] else []
            self._look_at_returned(call, inputs, result)
        else:
            self._look_at_stored(call, stored, before)
        return result

    @_unseen
    def _stored(self) -> list[torch.Tensor | None]:
        return [_stored(v) for v in self.variables]

    @_unseen
    def _look_before(
        self,
        roots: list[torch.Tensor],
        stored: list[torch.Tensor | None],
        asked: bool,
    ) -> tuple[BackwardCall, list[torch.Tensor | None]]:
        """Begin the record of a backward call; return copies of the gradients, too."""
        call = BackwardCall(
            value=float(roots[0].detach().sum()) if roots else math.nan,
            has_graph=any(root.requires_grad for root in roots),
            fresh=[None] * len(self.variables),
            left_over=[is_something(gradient) for gradient in stored],
            asked=asked,
            way=None,
            in_half=any(root.dtype == torch.float16 for root in roots),
        )
        before = [
            self._copy(g) if left else None
            for g, left in zip(stored, call.left_over, strict=True)
        ]
        self._examine(roots, call)
        self._record.backwards.append(call)
        self._record.log.append(call)
        return call, before

    @_unseen
    def _look_at_returned(
        self,
        call: BackwardCall,
        inputs: list[torch.Tensor],
        result: Sequence[torch.Tensor | None],
    ) -> None:
        position = {id(v): i for i, v in enumerate(self.variables)}
        for tensor, gradient in zip(inputs, result, strict=False):
            if id(tensor) in position and gradient is not None:
                call.fresh[position[id(tensor)]] = self._copy(gradient)
        if self._recorder is not None:
            self._recorder.note_gradients(g for g in result if g is not None)

    @_unseen
    def _look_at_stored(
        self,
        call: BackwardCall,
        stored: list[torch.Tensor | None],
        before: list[torch.Tensor | None],
    ) -> None:
        for i, variable in enumerate(self.variables):
            after = _stored(variable)
            if after is None or (after is stored[i] and before[i] is None):
                untouched = after is None or not is_something(after)
                call.fresh[i] = (
                    None
                    if after is None or (untouched and not self._in_graph(call, i))
                    else self._copy(after)
                )
                continue
            copy = self._copy(after)
            if before[i] is not None:
                copy = copy - before[i]
                if not self._in_graph(call, i) and all_zero(copy):
                    copy = None
            call.fresh[i] = copy

    def _in_graph(self, call: BackwardCall, i: int) -> bool:
        reached = self._reached if call.way is None else call.way.reached_by_graph
        return reached is None or i in reached

    def _examine(self, roots: Sequence[torch.Tensor], call: BackwardCall) -> None:
        examined = len(self._record.ways)
        if self._recorder is None or examined >= MOST_EXAMINED or not roots:
            return
        with self._own_look():
            call.way = self._recorder.examine(roots[0])
            self._reached = (self._reached or set()) | call.way.reached_by_graph
            call.in_half |= any(
                tensor.dtype == torch.float16
                for one in self._recorder.calls
                for tensor in one.outputs
            )
            for module_call in self._record.modules:
                self._gradient_of_output(roots[0], module_call)

    def _gradient_of_output(self, root: torch.Tensor, call: ModuleCall) -> None:
        output = call.output
        if output is None or call.gradient_rows is not None or output.dim() < 1:
            return
        if not (output.requires_grad and root.requires_grad and root.numel() == 1):
            return
        try:
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(
                    root, output, retain_graph=True, allow_unused=True
                )
        except RuntimeError:
            return
        if gradient is not None:
            rows = gradient.detach().reshape(len(gradient), -1)
            call.gradient_rows = rows.abs().amax(dim=1)

    @contextlib.contextmanager
    def _own_look(self) -> Iterator[None]:
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    @contextlib.contextmanager
    def _recorder_paused(self) -> Iterator[None]:
        recorder = self._recorder
        if recorder is None:
            yield
            return
        before, recorder.paused = recorder.paused, True
        try:
            yield
        finally:
            recorder.paused = before

    @_unseen
    def _before_update(self, optimizer: Any, args: tuple, kwargs: dict) -> None:
        position = {id(v): i for i, v in enumerate(self.variables)}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        others = [p for p in held if id(p) not in position]
        self._record.events.append("update")
        at_entry, before = self._given_to_update()
        update = UpdateCall(
            optimizer=optimizer,
            rates=[
                float(group.get("lr", math.nan)) for group in optimizer.param_groups
            ],
            holds={position[id(p)] for p in held if id(p) in position},
            at_entry=at_entry,
            before=before,
            after=[],
            others=len(others),
            others_with_gradient=sum(is_something(p.grad) for p in others),
            copies_moved=0,
        )
        self._others = [
            (p, self._copies.keep(p)) for p in others if is_something(p.grad)
        ]
        self._record.updates.append(update)
        self._record.log.append(update)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self._recorder is not None and closure is None:
            self._recorder.paused = True

    def _given_to_update(self) -> tuple[list[torch.Tensor | None], list[torch.Tensor]]:
        """Return gradients and values at the entry of an optimizer call.

        Where nothing came between backward and update in the steps watched in detail,
        nothing is looked for in those that follow: comparing costs as much as copying.
        """
        record = self._record
        first = len(record.backwards) == 1 and not record.updates
        if self._trusted and first and not any(record.backwards[0].left_over):
            return list(record.backwards[0].fresh), record.before
        at_entry = [
            self._copy(_stored(v), *(call.fresh[i] for call in record.backwards))
            for i, v in enumerate(self.variables)
        ]
        before = self._values(*self._latest(record))
        if self._recorder is not None:
            given = record.backwards[0].fresh if first else []
            self._plain = first and all(
                a is b
                for a, b in zip(at_entry + before, given + record.before, strict=True)
            )
        return at_entry, before

    @_unseen
    def _after_update(self, optimizer: Any, args: tuple, kwargs: dict) -> None:
        if self._recorder is not None:
            self._recorder.paused = False
        update = self._record.updates[-1]
        update.after = self._values(update.before)
        held = update.holds
        shapes = {v.shape for i, v in enumerate(self.variables) if i not in held}
        update.copies_moved = sum(
            p.shape in shapes and not torch.equal(before, self._copies.keep(p))
            for p, before in self._others
        )

    @contextlib.contextmanager
    def _modules_watched(self) -> Iterator[None]:
        self._depth = 0

        first = 0

        def enter(module: torch.nn.Module, args: Any) -> None:
            nonlocal first
            if self._depth == 0:
                first = len(self._recorder.calls)
            self._depth += 1

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._depth -= 1
            if self._depth == 0:
                dropped = self._recorder.dropped(first, output)
                self._note_module(module, args, output, dropped)

        handles = (
            torch.nn.modules.module.register_module_forward_pre_hook(enter),
            torch.nn.modules.module.register_module_forward_hook(
                leave, always_call=True
            ),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @_unseen
    def _note_module(
        self, module: torch.nn.Module, args: Any, output: Any, dropped: int
    ) -> None:
        with torch.no_grad():
            inputs = list(tensors_in(args))
            first = next(tensors_in(output), None)
            if first is not None and in_vmap(first):
                return
            has_rows = first is not None and first.dim() > 0
            data = next((t for t in inputs if t.dim() and len(t) > 1), None)
            data = data if has_rows else None  # a loss: what it is given are outputs
            self._record.modules.append(
                ModuleCall(
                    module=module,
                    inputs=inputs,
                    output=first,
                    rows_equal=_rows_equal(first),
                    spread=_spread(first),
                    rows_differ_in_input=None
                    if data is None
                    else not _rows_equal(data),
                    input_scale=_column_scale(data),
                    dropped=dropped,
                )
            )


def _column_scale(data: torch.Tensor | None) -> tuple[float, float] | None:
    if data is None or not data.is_floating_point() or data.dim() < 2 or len(data) < 4:
        return None
    rows = data.detach().double().reshape(len(data), -1)
    columns = rows.square().mean(dim=0).sqrt()
    columns = columns[columns > 0]
    if not len(columns):
        return None
    spread = rows.std(dim=0)
    spread = spread[spread > 1e-9 * columns.max()]
    small = (spread < 0.01 * spread.max()).double().mean() if len(spread) else 0.0
    return float(columns.max()), float(small)


def _spread(values: torch.Tensor | None) -> float:
    if values is None or values.dim() < 1 or len(values) < 4:
        return math.inf
    if not values.is_floating_point():
        return math.inf
    rows = values.detach().double().reshape(len(values), -1)
    size = float(rows.square().mean())
    apart = float((rows - rows.mean(dim=0)).square().mean())
    return math.sqrt(apart / size) if size else 0.0


def _rows_equal(values: torch.Tensor | None) -> bool | None:
    """Whether all rows are equal up to rounding: 4 units in the last place."""
    if values is None or values.dim() < 1 or len(values) < 4:
        return None
    rows = values.detach().reshape(len(values), -1)
    if not rows.is_floating_point():
        return bool((rows == rows[:1]).all())
    epsilon, size = torch.finfo(rows.dtype).eps, rows.abs().amax(dim=0)
    # Two rows this far apart settle it, and mostly do.
    if bool(((rows[0] - rows[1]).abs() > 8 * epsilon * size).any()):
        return False
    spread = (rows - rows.mean(dim=0)).abs().amax(dim=0)
    return bool((spread <= 4 * epsilon * size).all())


def _nothing_compiled() -> contextlib.AbstractContextManager:
    """Run what `torch.compile` made as it is written: compiled code shows no calls."""
    if "torch._dynamo" not in sys.modules:  # without it nothing was compiled
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the step prints and warns about to itself."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

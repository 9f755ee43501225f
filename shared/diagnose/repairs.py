"""Changes of what a step does, for a few trial steps: the proof of a cause.

Each repair is a context manager that `Trials.run` enters around the steps. It changes
the step from outside, in the one respect that the cause names, and leaves no trace.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from shared.diagnose.torch_calls import name_of, tensors_in
from shared.diagnose.watch import Level, StepRecord


class Repair:
    """Changes nothing; the others say in which respect they differ.

    Attributes:
        level: how closely the steps must be watched for this repair.
    """

    level = Level.LOSS

    def __enter__(self) -> "Repair":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the change back."""

    def before_step(self) -> None:
        """Prepare the next step."""

    def after_step(self, record: StepRecord) -> None:
        """Change what the step left, given what it did."""


class ScaledUpdate(Repair):
    """Multiplies each step's change of the variables: another learning rate or sign.

    Args:
        variables: the tensors that should change.
        factor: 0.1 for a tenth of the step, -1 for the way back.
    """

    def __init__(self, variables: Sequence[torch.Tensor], factor: float) -> None:
        self.variables, self.factor = variables, factor

    def after_step(self, record: StepRecord) -> None:
        """Write ``before + factor * (after - before)``."""
        with torch.no_grad():
            for variable, a, b in zip(
                self.variables, record.before, record.after, strict=True
            ):
                change = (b.double() - a.double()) * self.factor
                if torch.isfinite(change).all():
                    variable.data.copy_(a.double() + change)


class ScaledLoss(Repair):
    """Multiplies what each walk back starts from; gradients come out as much larger."""

    level = Level.GRADIENTS

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __enter__(self) -> "ScaledLoss":
        self._engine = torch.autograd._engine_run_backward
        torch.autograd._engine_run_backward = self._scaled
        return self

    def __exit__(self, *_: Any) -> None:
        """Put the walk back as it was."""
        torch.autograd._engine_run_backward = self._engine

    def _scaled(self, outputs: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
        scaled = tuple(
            None if g is None else g * self.factor for g in tensors_in(grads)
        )
        return self._engine(outputs, scaled, *args, **kwargs)


class RightUpdate(Repair):
    """Gives each variable the update that its own fresh gradient asks for.

    The reader's update is taken back, and an optimizer of the same kind with the same
    settings is applied to the gradient that the backward walk gave.

    Args:
        variables: the tensors that should change.
        which: those to update; the others keep what the step did to them.
        like: the reader's optimizer, whose class and settings are taken; None for
            plain steps of ``rate``.
        rate: learning rate, if it should differ.
        in_float64: keep the variables in float64 beside the stored ones, so that small
            updates add up.
        weight_decay: its strength, if it should differ.
        loss_scale: factor on the loss during the walk back, divided out afterwards.
    """

    level = Level.GRADIENTS

    def __init__(
        self,
        variables: Sequence[torch.Tensor],
        which: Iterable[int],
        like: torch.optim.Optimizer | None,
        rate: float | None = None,
        in_float64: bool = False,
        weight_decay: float | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        self.variables, self.which = variables, sorted(which)
        self.like, self.rate = like, rate
        self.in_float64, self.weight_decay = in_float64, weight_decay
        self.loss_scale = loss_scale
        self._scaling = ScaledLoss(loss_scale)

    def __enter__(self) -> "RightUpdate":
        dtype = torch.float64 if self.in_float64 else None
        self._own = [
            self.variables[i].detach().clone().to(dtype or self.variables[i].dtype)
            for i in self.which
        ]
        self._optimizer = _optimizer_like(
            self.like, self._own, self.rate, self.weight_decay
        )
        self._require = [self.variables[i].requires_grad for i in self.which]
        for i in self.which:
            if self.variables[i].is_leaf:
                self.variables[i].requires_grad_(True)
        self._scaling.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        """Put the backward walk and ``requires_grad`` back."""
        self._scaling.__exit__()
        for i, required in zip(self.which, self._require, strict=True):
            if self.variables[i].is_leaf and not required:
                self.variables[i].requires_grad_(False)

    def gradients_of(self, record: StepRecord) -> list[torch.Tensor | None]:
        """Return what each variable is updated by."""
        return record.fresh()

    def after_step(self, record: StepRecord) -> None:
        """Take the reader's update back and make the right one."""
        fresh = self.gradients_of(record)
        with torch.no_grad():
            for own, i in zip(self._own, self.which, strict=True):
                if not self.in_float64:
                    own.copy_(record.before[i])
                gradient = fresh[i]
                own.grad = (
                    None
                    if gradient is None
                    else gradient.to(own.dtype) / self.loss_scale
                )
            self._optimizer.step()
            for own, i in zip(self._own, self.which, strict=True):
                self.variables[i].data.copy_(own)


class DataAlone(RightUpdate):
    """Gives each variable the update of those parts of the loss that use data."""

    level = Level.EVERYTHING

    def gradients_of(self, record: StepRecord) -> list[torch.Tensor | None]:
        """Return the gradient of the parts with data, summed."""
        total: list[torch.Tensor | None] = [None] * len(self.variables)
        for term in (t for way in record.ways for t in way.terms if t.uses_data):
            for i, gradient in enumerate(term.gradients):
                if gradient is not None:
                    total[i] = gradient if total[i] is None else total[i] + gradient
        return total


class TrainedToo(Repair):
    """Trains further tensors beside what the step trains.

    Args:
        tensors: leaves of the loss's graph.
        like: the optimizer whose class and settings are taken.
    """

    def __init__(
        self, tensors: list[torch.Tensor], like: torch.optim.Optimizer
    ) -> None:
        self.tensors, self.like = tensors, like

    def __enter__(self) -> "TrainedToo":
        self._optimizer = _optimizer_like(self.like, self.tensors, None, None)
        return self

    def before_step(self) -> None:
        """Forget the gradients of the step before, which nobody cleared."""
        self._optimizer.zero_grad()

    def after_step(self, record: StepRecord) -> None:
        """Apply the gradients that the step left."""
        self._optimizer.step()


def _optimizer_like(
    like: torch.optim.Optimizer | None,
    parameters: list[torch.Tensor],
    rate: float | None,
    weight_decay: float | None,
) -> torch.optim.Optimizer:
    """Return an optimizer of the same class and settings over other tensors."""
    if like is not None and not isinstance(
        like, (torch.optim.LBFGS, torch.optim.SparseAdam)
    ):
        # Not all that a group holds may be asked for: AdamW sets some of it itself.
        asked = inspect.signature(type(like)).parameters.keys() - {"params"}
        settings = {k: v for k, v in like.param_groups[0].items() if k in asked}
        if rate is not None:
            settings["lr"] = rate
        if weight_decay is not None and "weight_decay" in settings:
            settings["weight_decay"] = weight_decay
        try:
            return type(like)(parameters, **settings)
        except (TypeError, ValueError):
            pass  # an optimizer of the reader's own with another signature
    return torch.optim.SGD(parameters, lr=1e-2 if rate is None else rate)


class OtherCalls(Repair):
    """Replaces torch calls by name while the steps run.

    Args:
        replacements: for a name, what is called instead: a function of the original
            call and its arguments.
    """

    def __init__(self, replacements: dict[str, Callable[..., Any]]) -> None:
        self._mode = _Replace(replacements)

    def __enter__(self) -> "OtherCalls":
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Let the calls be what they were."""
        self._mode.__exit__(*error)


class _Replace(TorchFunctionMode):
    def __init__(self, replacements: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        self._replacements = replacements
        self.paused = False

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replace = self._replacements.get(name_of(func))
        if replace is None or self.paused:
            return func(*args, **kwargs)
        return replace(func, *args, **kwargs)


class UsedVariables(Repair):
    """Puts each variable where a call takes a constant with its first values.

    Args:
        variables: the tensors that should change.
        start: the values that copies of them have.
    """

    def __init__(
        self, variables: Sequence[torch.Tensor], start: Sequence[torch.Tensor]
    ) -> None:
        self._mode = _Exchange(variables, start)

    def __enter__(self) -> "UsedVariables":
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Let the calls have what they ask for."""
        self._mode.__exit__(*error)


class _Exchange(TorchFunctionMode):
    def __init__(
        self, variables: Sequence[torch.Tensor], start: Sequence[torch.Tensor]
    ) -> None:
        super().__init__()
        self._pairs = list(zip(variables, start, strict=True))

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if torch.is_grad_enabled():
            args = tuple(map(self._in_place_of, args))
        return func(*args, **(kwargs or {}))

    def _in_place_of(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.requires_grad:
            return value
        for variable, start in self._pairs:
            if value.shape == start.shape and torch.equal(value.detach(), start):
                return variable
        return value


def leaky(call: Callable, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Pass a tenth of what a rectifier would cut off."""
    return functional.leaky_relu(x, 0.1)


def pass_straight_through(
    call: Callable, x: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Keep a call's value, and hand its gradient on as if the call were not there."""
    value = call(x, *args, **kwargs)
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return value
    if not isinstance(value, torch.Tensor) or value.shape != x.shape:
        return value
    return x + (value.to(x.dtype) - x).detach()


def keep_graph(call: Callable, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Hand a tensor on with its graph, where the call would cut it."""
    if isinstance(x, torch.Tensor) and x.requires_grad:
        return x
    return call(x, *args, **kwargs)


class GraphKeptWithinStep(Repair):
    """Keeps the graph where a tensor that the same step made is detached.

    What is carried over from the step before stays cut: its graph is gone.
    """

    def __enter__(self) -> "GraphKeptWithinStep":
        self._mode = _KeepOwn()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Let the calls cut the graph again."""
        self._mode.__exit__(*error)

    def before_step(self) -> None:
        """Forget what the last step made."""
        self._mode.made.clear()


class _KeepOwn(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        first = args[0] if args else None
        if name_of(func) in ("detach", "data") and id(first) in self.made:
            return first
        result = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled():
            self.made |= {id(t): t for t in tensors_in(result) if t.grad_fn is not None}
        return result


def keep_graph_on(
    call: Callable, enabled: bool = True, *args: Any, **kwargs: Any
) -> Any:
    """Keep recording the graph where the reader switched it off."""
    return call(True)


def log_likelihood(
    call: Callable, p: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Take the logarithm of probabilities instead of normalizing them again."""
    allowed = {k: v for k, v in kwargs.items() if k in ("weight", "reduction")}
    ignored = kwargs.get("ignore_index", -100)
    logarithm = p.clamp_min(1e-12).log()
    if target.dtype != torch.long:
        return -(target * logarithm).sum(1).mean()
    return functional.nll_loss(logarithm, target, ignore_index=ignored, **allowed)


def likelihood(
    call: Callable, p: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Compare probabilities with the target without a second sigmoid."""
    return functional.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), target)


def same_shape(
    call: Callable, a: torch.Tensor, b: Any, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Give the second tensor the first one's shape where the counts agree."""
    if isinstance(b, torch.Tensor) and a.shape != b.shape and a.numel() == b.numel():
        b = b.reshape(a.shape)
    return call(a, b, *args, **kwargs)


class Standardized(Repair):
    """Standardizes what enters the outermost modules, column by column.

    Args:
        module: the module whose inputs are standardized.
        targets: whether what a squared or absolute error compares with is, too.
    """

    def __init__(self, module: torch.nn.Module, targets: bool = False) -> None:
        self.module = module
        replaced = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
        self._mode = _Replace(
            dict.fromkeys(replaced, _with_standardized_target) if targets else {}
        )

    def __enter__(self) -> "Standardized":
        self._handle = self.module.register_forward_pre_hook(_standardize)
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Let the inputs in as they are."""
        self._mode.__exit__(*error)
        self._handle.remove()


def _with_standardized_target(
    call: Callable, x: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    spread = target.std()
    return call(x, (target - target.mean()) / spread, *args, **kwargs)


def _standardize(module: torch.nn.Module, args: tuple) -> tuple:
    return tuple(
        standardized(a)
        if isinstance(a, torch.Tensor) and a.is_floating_point() and a.dim() > 1
        else a
        for a in args
    )


def standardized(x: torch.Tensor) -> torch.Tensor:
    """Return each column minus its mean, over its standard deviation."""
    if x.dim() > 2 or len(x) < 4:
        spread = x.std()
        return (x - x.mean()) / torch.where(spread > 0, spread, torch.ones_like(spread))
    spread = x.std(dim=0, keepdim=True)
    overall = x.std()
    floor = torch.where(spread > 1e-6 * overall, spread, torch.ones_like(spread))
    return (x - x.mean(dim=0, keepdim=True)) / floor

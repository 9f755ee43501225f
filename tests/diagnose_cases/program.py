"""What a case is, and how one is written."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import torch

from shared.diagnose.causes import Cause

KINDS = ("training", "input")


@dataclasses.dataclass(frozen=True)
class Program:
    """What a reader hands to `diagnose`: its arguments by name."""

    step: Callable[[], Any]
    variables: Any
    optimizer: torch.optim.Optimizer | None = None
    loss_fn: Callable[..., torch.Tensor] | None = None
    batch: tuple[torch.Tensor, torch.Tensor] | None = None
    objective: Callable[..., Any] | None = None
    metric: Callable[[], float] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `diagnose`, without those not given."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault in one program.

    ``build(repaired, seed)`` gives the program, faulty or with nothing but its fault
    repaired. Of a healthy case both are the same program.
    """

    name: str
    cause: Cause
    kind: str
    build: Callable[[bool, int], Program]


def case(cause: Cause, kind: str) -> Callable[[Callable[[bool, int], Program]], Case]:
    """Make a case of the function below: ``def name(repaired, seed) -> Program``."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")

    def make(build: Callable[[bool, int], Program]) -> Case:
        return Case(build.__name__, cause, kind, build)

    return make


def healthy(kind: str) -> Callable[[Callable[[int], Program]], Case]:
    """Make a healthy case of the function below: ``def name(seed) -> Program``."""

    def make(build: Callable[[int], Program]) -> Case:
        return Case(build.__name__, Cause.healthy, kind, lambda _, seed: build(seed))

    return make


def all_cases() -> list[Case]:
    """Return every case of every module in this folder, in the order of the files."""
    package = importlib.import_module(__package__)
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        members = vars(importlib.import_module(f"{__package__}.{module.name}"))
        found += [member for member in members.values() if isinstance(member, Case)]
    return found

"""`diagnose` for loops that are no function: a decorator and a context manager."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from shared.diagnose.diagnosis import diagnose
from shared.diagnose.report import Report

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def diagnosed(
    variables: Any, *, show: Callable[[Report], Any] = print, **known: Any
) -> Callable[[Callable[Arguments, Returned]], Callable[Arguments, Returned]]:
    """Diagnose a training function at its first call, with that call's arguments.

        @diagnosed(model, optimizer=optimizer)
        def train_step(x, y): ...

    The first call is diagnosed, everything is put back, and then it is made. Later
    calls are only made.

    Args:
        variables: what should change, as in `diagnose`.
        show: what is done with the report.
        **known: the other arguments of `diagnose`, such as ``optimizer``.
    """

    def decorate(
        step: Callable[Arguments, Returned],
    ) -> Callable[Arguments, Returned]:
        done = False

        @functools.wraps(step)
        def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
            nonlocal done
            if not done:
                done = True
                show(diagnose(lambda: step(*args, **kwargs), variables, **known))
            return step(*args, **kwargs)

        return wrapper

    return decorate


@dataclasses.dataclass
class Iteration:
    """One iteration of a loop, handed over as a step; holds its report afterwards."""

    variables: Any
    known: dict[str, Any]
    report: Report | None = None

    def __call__(self, step: Callable[[], Any]) -> Any:
        """Diagnose a step the first time; run it once each time."""
        if self.report is None:
            self.report = diagnose(step, self.variables, **self.known)
        return step()


@contextlib.contextmanager
def diagnosing(variables: Any, **known: Any) -> Iterator[Iteration]:
    """Diagnose the first iteration of a loop whose body is handed over.

        with diagnosing(model, optimizer=optimizer) as iteration:
            for x, y in loader:
                loss = iteration(lambda: train_step(x, y))
        print(iteration.report)

    Args:
        variables: what should change, as in `diagnose`.
        **known: the other arguments of `diagnose`, such as ``optimizer``.

    Raises:
        ValueError: if no iteration was handed over.
    """
    iteration = Iteration(variables, known)
    yield iteration
    if iteration.report is None:
        raise ValueError(
            "diagnosing() must be handed an iteration, as in iteration(step); "
            "it got none"
        )

"""What `diagnose` says of every case, beside two other checks: a confusion table.

    python tests/confusion.py

Each faulty program, its repaired twin and each healthy one is diagnosed. Beside it
stand, on the same programs, the check "is `.grad` None or zero?" after one step, and
torcheck, where it is installed. These two name no cause: only their alarms count.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from shared.diagnose import Cause, diagnose
from shared.diagnose.diagnosis import named_variables
from tests.diagnose_cases.program import Case, Program, all_cases

TORCHECK_STEPS = 5
SIDES = ("faulty", "twin", "healthy")
NO_ALARM = (Cause.healthy, Cause.at_minimum)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was said of one program."""

    name: str
    side: str
    cause: Cause
    said: tuple[Cause, ...] = ()
    noted: tuple[Cause, ...] = ()
    crash: str | None = None
    seconds: float = 0.0
    steps: int = 0

    def right(self, places: int = 1) -> bool:
        """Whether the cause is among the first findings, or rightly none is there.

        A minimum is no alarm: it must be noted, and nothing else found.
        """
        if self.crash is not None:
            return False
        if self.side != "faulty":
            return not self.said
        if self.cause in NO_ALARM:
            return not self.said and self.cause in self.noted
        return self.cause in self.said[:places]

    def __str__(self) -> str:
        if self.crash is not None:
            return self.crash
        return ", ".join(self.said) or "no alarm"


def sides(case: Case) -> tuple[str, ...]:
    """Return which programs a case has."""
    return ("healthy",) if case.cause is Cause.healthy else ("faulty", "twin")


def built(case: Case, side: str) -> Program:
    """Return one program of a case, always the same."""
    return case.build(side == "twin", 0)


def outcome(case: Case, side: str) -> Outcome:
    """Diagnose one program."""
    found = Outcome(case.name, side, case.cause)
    program = built(case, side)
    started = time.perf_counter()
    try:
        report = diagnose(**program.arguments())
    except Exception as error:
        return dataclasses.replace(found, crash=f"{type(error).__name__}: {error}")
    return dataclasses.replace(
        found,
        said=tuple(finding.cause for finding in report.findings),
        noted=tuple(note.cause for note in report.notes if note.cause is not None),
        seconds=time.perf_counter() - started,
        steps=report.steps_run,
    )


def gradient_missing(program: Program) -> bool:
    """Whether after one step some variable's ``.grad`` is None or all zeros."""
    with contextlib.suppress(Exception):
        program.step()
    for variable in named_variables(program.variables):
        tensor = variable.tensor
        gradient = tensor.grad if tensor.is_leaf or tensor.retains_grad else None
        if gradient is None or not torch.count_nonzero(gradient.to_dense()):
            return True
    return False


def torcheck_alarms(program: Program) -> bool | None:
    """Whether torcheck stops one of a few steps; None where it cannot be used.

    It checks that every parameter changes, and that parameters and outputs are finite.
    """
    model, optimizer = program.variables, program.optimizer
    if not isinstance(model, torch.nn.Module) or optimizer is None:
        return None
    from torcheck.registry import Registry

    registry = Registry()
    try:
        registry.register(optimizer)
        registry.add_module(model, changing=True, check_nan=True, check_inf=True)
        for _ in range(TORCHECK_STEPS):
            program.step()
    except Exception as error:
        # The step's own exceptions, and torcheck's own faults, are no alarm.
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        return isinstance(error, RuntimeError) and "torcheck" in where
    return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what programs print and warn about to themselves."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


Row = tuple[Outcome, bool, bool | None]


def row(name: str, side: str) -> Row:
    """Return what the three say of one program."""
    torch.set_num_threads(1)
    (case,) = (case for case in all_cases() if case.name == name)
    with quiet():
        said = outcome(case, side)
        missing = gradient_missing(built(case, side))
        stopped = None
        if importlib.util.find_spec("torcheck"):
            stopped = torcheck_alarms(built(case, side))
    return said, missing, stopped


def share(part: int, whole: int) -> str:
    """Return a count, and how many in a hundred it is."""
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "none"


def print_table(rows: Sequence[Row]) -> None:
    """Print the totals of `diagnose`, of the other checks, and what went wrong."""
    of = {side: [r for r in rows if r[0].side == side] for side in SIDES}
    faulty = [r[0] for r in of["faulty"]]

    def count(test: Callable[[Any], bool], side: str) -> str:
        return share(sum(test(r) for r in of[side]), len(of[side]))

    steps = [r[0].steps for r in rows if r[0].crash is None]
    print(f"{len(rows)} programs of {len(faulty) + len(of['healthy'])} cases")
    print("\ndiagnose")
    for places in (1, 3):
        right = sum(found.right(places) for found in faulty)
        print(f"  {f'cause among first {places}':<22} {share(right, len(faulty))}")
    for side in ("healthy", "twin"):
        name = f"alarms on {side}"
        print(f"  {name:<22} {count(lambda r: bool(r[0].said), side)}")
    print(f"  {'crashes':<22} {sum(r[0].crash is not None for r in rows)}")
    print(f"  {'seconds in all':<22} {sum(r[0].seconds for r in rows):.0f}")
    print(
        f"  {'steps run':<22} {statistics.median(steps):.0f} (median), "
        f"{max(steps)} (most)"
    )
    others = {".grad is None or 0": [(r[0].side, r[1]) for r in rows]}
    if importlib.util.find_spec("torcheck"):
        others["torcheck"] = [(r[0].side, r[2]) for r in rows if r[2] is not None]
    for name, answers in others.items():
        print(f"\n{name} (names no cause)")
        for side in SIDES:
            alarms = [alarm for where, alarm in answers if where == side]
            print(f"  {f'alarms on {side}':<22} {share(sum(alarms), len(alarms))}")
    if "torcheck" in others:
        print("  (where there are a module and an optimizer)")
    else:
        print("\ntorcheck: not installed")
    print("\nMissed, or an alarm where nothing is wrong")
    for found, _, _ in rows:
        if not found.right():
            print(f"  {found.name} ({found.side}): {found.cause}, said: {found}")


def main() -> None:
    """Diagnose all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    programs = [(case.name, side) for case in all_cases() for side in sides(case)]
    spawn = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        print_table(list(pool.map(row, *zip(*programs, strict=True))))


if __name__ == "__main__":
    main()

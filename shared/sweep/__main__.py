"""Run sweeps from the command line: ``python -m shared.sweep --help``."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from shared.sweep.cluster import dask_executor
from shared.sweep.drive import Plan, Settings, plan_from_file, plan_from_text, sweep
from shared.sweep.errors import SweepError, nearest_name
from shared.sweep.rows import SWEEPS, Row, table_frame

MOST_RUNS = 2000
"""A larger grid must be confirmed."""

MOST_LINES = 40
"""A longer table is shown by its first and last rows."""

DESCRIPTION = """\
Run a chapter over a grid of parameters: one row a run, in a CSV file.

Rows are kept as they come. A sweep that was stopped, however it was stopped, goes on
where it was when it is started again, and a run is made again only if the chapter's
code, shared/, a parameter or a release changed.
"""

EXAMPLES = """\
examples:
  python -m shared.sweep                      all grids in chapters/sweeps
  python -m shared.sweep vanishing_depth      one of them
  python -m shared.sweep --smoke              a few runs of each
  python -m shared.sweep vanishing_depth --dask tcp://host:8786
  python -m shared.sweep chapters/vanishing_depth.ipynb depth=1,2,4 seed=0:20
  python -m shared.sweep chapters/local_minimum.ipynb learning_rate=1e-3:1:7log

An axis is name=a,b,c or name=0:20 (whole numbers, both ends) or name=0:1:5 (points
between two ends) or name=1e-3:1:7log (the same, evenly spaced ratios). Nothing in it
is evaluated: a string is a string.

exit codes: 0 all runs ended well; 1 some did not, and their rows say why; 2 the input
was refused or the rows could not be written; 130 stopped from the keyboard.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shared.sweep",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="*", help="slugs, grid files, or a notebook followed by axes")
    add("--jobs", type=_above_zero, metavar="N", help="runs at a time; default: cores")
    add("--out", type=Path, metavar="FILE", help="the table; default: beside the grid")
    add("--keep", type=Path, metavar="DIR", help="keep all executed notebooks there")
    add(
        "--timeout",
        type=_above_zero,
        default=Settings.seconds_per_cell,
        metavar="SECONDS",
        help="longest time for one cell; default: %(default)s",
    )
    add("--dask", metavar="ADDRESS", help="run on this Dask cluster")
    add("--smoke", action="store_true", help="only the small grid; shows its table")
    add(
        "--confirm",
        type=_above_zero,
        default=MOST_RUNS,
        metavar="RUNS",
        help="largest grid that is meant; default: %(default)s",
    )
    return parser


def _above_zero(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(
            f"must be a whole number above 0, not {text!r}"
        )
    return number


def plans_of(options: argparse.Namespace) -> list[Plan]:
    """Return the plans that the command line asks for, all checked.

    Raises:
        SweepError: if any of them is not as it should be.
    """
    what: list[str] = options.what
    if what and what[0].endswith(".ipynb"):
        if options.smoke:
            raise SweepError("--smoke needs a grid file; axes are given here")
        return [plan_from_text(Path(what[0]), what[1:], options.out)]
    axes = [word for word in what if "=" in word]
    if axes:
        raise SweepError(f"the axis {axes[0]!r} needs a notebook before it")
    paths = [_grid_path(name) for name in what] or sorted(SWEEPS.glob("*.toml"))
    if not paths:
        raise SweepError(f"there is no grid in {SWEEPS}")
    if options.out and len(paths) > 1:
        raise SweepError(f"--out is for one sweep, not for {len(paths)}")
    return [plan_from_file(path, options.out, options.smoke) for path in paths]


def _grid_path(name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    known = [path.stem for path in SWEEPS.glob("*.toml")]
    if name not in known:
        raise SweepError(
            f"there is no grid {name!r} in {SWEEPS}{nearest_name(name, known)}"
        )
    return SWEEPS / f"{name}.toml"


def _confirm(plan: Plan, most: int) -> None:
    if len(plan.grid) > most:
        raise SweepError(
            f"{plan.chapter.path.stem}: the grid has {len(plan.grid)} runs, more than "
            f"{most}; if they are meant, add --confirm {len(plan.grid)}"
        )


@contextmanager
def _executor(options: argparse.Namespace) -> Iterator[tuple[Executor, int]]:
    """Yield what runs the tasks, and how many to hand it ahead of their results."""
    if options.dask:
        with dask_executor(options.dask) as (executor, at_a_time):
            yield executor, 2 * at_a_time
        return
    # Threads: each only talks to a kernel, and the kernels are processes.
    jobs = options.jobs or _cores()
    with ThreadPoolExecutor(jobs) as executor:
        yield executor, jobs


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _show(plan: Plan, rows: Sequence[Row]) -> None:
    """Print the table, how the runs ended, and where the rows are."""
    frame = table_frame(plan.grid.axes, rows)
    print(frame.to_string(max_rows=MOST_LINES))
    ends = [row.status for row in rows]
    counts = ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends))
    where = f"; the table is {plan.table}" if plan.table else ""
    print(f"{plan.chapter.path.stem}: {len(rows)} runs: {counts}{where}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps that the command line names; return the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    # The numbers of the book are those of one thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # What they would say of a failed run stands in the run's row.
    for library in ("papermill", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    settings = Settings(options.timeout, options.keep)
    all_well = True
    try:
        plans = plans_of(options)
        for plan in plans:
            _confirm(plan, options.confirm)
        with _executor(options) as (executor, at_once):
            for plan in plans:
                try:
                    rows = sweep(plan, executor, at_once, settings)
                except KeyboardInterrupt:
                    _stop(plan)
                _show(plan, rows)
                all_well = all_well and all(row.status == "ok" for row in rows)
    except SweepError as error:
        print(f"{_parser().prog}: {error}", file=sys.stderr)
        return 2
    return 0 if all_well else 1


def _stop(plan: Plan) -> None:
    """End at once: the kernels end with this process, and the rows are on the disk."""
    print(f"\nStopped. The rows so far are in {plan.store}; start again to go on.")
    sys.stdout.flush()
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())

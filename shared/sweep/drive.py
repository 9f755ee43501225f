"""From a grid to its table: what is still to run, running it, and what came of it."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import nbformat
from tqdm import tqdm

from shared.sweep import page
from shared.sweep.errors import SweepError
from shared.sweep.grid import (
    Grid,
    Run,
    grid_from_tables,
    grid_from_text,
    read_tables,
    smoke_grid,
)
from shared.sweep.page import Parameter
from shared.sweep.rows import SETTLED, Row, Store, table_text, write_whole
from shared.sweep.runs import Outcome, Task, key_of, run, shared_hash, versions

NOTICE_SECONDS = 0.5
"""How soon Ctrl-C is noticed at the latest."""


@dataclass(frozen=True)
class Chapter:
    """A chapter as a sweep sees it."""

    path: Path
    parameters: Mapping[str, Parameter]
    code: nbformat.NotebookNode
    """The cells that a sweep runs."""


@dataclass(frozen=True)
class Plan:
    """A sweep that passed all checks."""

    chapter: Chapter
    grid: Grid
    store: Path
    table: Path | None
    """Where the table goes; None when it is only to be shown."""


@dataclass(frozen=True)
class Settings:
    """How runs are made; none of it changes a result."""

    seconds_per_cell: int = 300
    keep: Path | None = None
    """Folder for the executed notebooks of all runs; failed ones are always kept."""


def open_chapter(path: Path) -> Chapter:
    """Read a chapter.

    Raises:
        SweepError: if it is missing, is no notebook, or declares no parameters.
    """
    notebook = page.load(path)
    parameters = page.parameters_of(notebook, path.name)
    return Chapter(path.resolve(), parameters, page.for_sweep(notebook))


def plan_from_file(path: Path, out: Path | None = None, smoke: bool = False) -> Plan:
    """Return the plan of a grid file ``<folder>/sweeps/<slug>.toml``.

    Args:
        path: the grid; its chapter is ``<slug>.ipynb`` in the folder above.
        out: the table; by default ``<slug>.csv`` beside the grid.
        smoke: run only what ``[smoke]`` picks, and write no table unless ``out`` is
            given.

    Raises:
        SweepError: if anything in it is not as it should be.
    """
    tables = read_tables(path)
    chapter = open_chapter(path.resolve().parent.parent / f"{path.stem}.ipynb")
    grid = grid_from_tables(tables, chapter.parameters)
    if smoke:
        grid = smoke_grid(grid, tables.get("smoke", {}), chapter.parameters)
    table = out or path.with_suffix(".csv")
    store = _store_beside(table)
    return Plan(chapter, grid, store, None if smoke and not out else table)


def plan_from_text(path: Path, axes: Sequence[str], out: Path | None = None) -> Plan:
    """Return the plan of a grid given in words such as ``depth=1,2,4``.

    Args:
        path: the chapter.
        axes: as `shared.sweep.grid.grid_from_text` reads them.
        out: the table; by default ``<slug>-ad-hoc.csv`` in the working folder.

    Raises:
        SweepError: if anything in it is not as it should be.
    """
    chapter = open_chapter(path)
    grid = grid_from_text(axes, chapter.parameters)
    table = out or Path(f"{path.stem}-ad-hoc.csv")
    return Plan(chapter, grid, _store_beside(table), table)


def _store_beside(table: Path) -> Path:
    if table.is_dir() or not os.access(table.parent, os.W_OK):
        raise SweepError(f"cannot write {table}: no folder to write in, or a folder")
    return table.with_suffix(".rows.jsonl")


def tasks_of(plan: Plan, settings: Settings) -> list[Task]:
    """Return the tasks of all runs of a plan, in the order of its grid."""
    shared, releases = shared_hash(), versions()
    notebook = nbformat.writes(plan.chapter.code)

    def task(parameters: Run) -> Task:
        key = key_of(plan.chapter.code, parameters, shared, releases)
        folder = str(plan.chapter.path.parent)
        seconds, keep = settings.seconds_per_cell, settings.keep is not None
        return Task(key, notebook, parameters, folder, seconds, keep)

    return [task(parameters) for parameters in plan.grid.runs()]


def sweep(
    plan: Plan, executor: Executor, at_once: int, settings: Settings
) -> list[Row]:
    """Make the runs of a plan that are still to make, and return the rows of all.

    Every row is on the disk as soon as its run ends. The table is written at the end.

    Args:
        plan: what to run.
        executor: runs the tasks, here or elsewhere.
        at_once: how many tasks are handed to the executor ahead of their results.
        settings: how to run them.

    Raises:
        SweepError: if the rows cannot be written.
    """
    tasks = tasks_of(plan, settings)
    places = {task.key: place for place, task in enumerate(tasks, 1)}
    with Store(plan.store) as store:
        rows = {key: row for key, row in store.rows().items() if key in places}
        to_run = [task for task in tasks if not _is_settled(rows.get(task.key))]
        with _progress(plan, len(tasks), len(tasks) - len(to_run)) as bar:
            failures = 0
            for outcome in outcomes(executor, to_run, at_once):
                row = outcome.row
                store.append(row)
                rows[row.key] = row
                if row.status != "ok" or outcome.notebook:
                    say = partial(bar.write, file=sys.stderr)
                    _keep(outcome, plan, settings, places[row.key], say)
                failures += row.status != "ok"
                bar.set_postfix(failed=failures, refresh=False)
                bar.update()
        in_order = [rows[task.key] for task in tasks]
        if plan.table:
            write_whole(plan.table, table_text(plan.grid.axes, in_order))
    return in_order


def _is_settled(row: Row | None) -> bool:
    return row is not None and row.status in SETTLED


def _progress(plan: Plan, runs: int, done: int) -> tqdm:
    name = plan.chapter.path.stem
    return tqdm(total=runs, initial=done, desc=name, unit="run", file=sys.stderr)


def outcomes(
    executor: Executor, tasks: Sequence[Task], at_once: int
) -> Iterator[Outcome]:
    """Yield the outcomes of tasks as they come, never holding more than ``at_once``."""
    waiting = iter(tasks)
    running: dict[Future[Outcome], Task] = {}
    while True:
        for task in islice(waiting, at_once - len(running)):
            running[executor.submit(run, task)] = task
        if not running:
            return
        # With a limit: Python notices Ctrl-C only between waits.
        done, _ = wait(running, NOTICE_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            yield _result(future, running.pop(future))


def _result(future: "Future[Outcome]", task: Task) -> Outcome:
    """Return a task's outcome, also when what ran it broke."""
    try:
        return future.result()
    except Exception as error:  # One lost run must not end the others.
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        row = Row(task.key, task.parameters, {}, "killed", text, 0.0, versions())
        return Outcome(row, "")


def _keep(
    outcome: Outcome,
    plan: Plan,
    settings: Settings,
    place: int,
    say: Callable[[str], None],
) -> None:
    """Save the executed notebook of one run, and say what failed and where it is."""
    row, slug = outcome.row, plan.chapter.path.stem
    folder = settings.keep or plan.store.with_name(f"{slug}.failed")
    path = folder / f"{slug}-{place:04d}-{row.key[:8]}.ipynb"
    where = "it left no notebook"
    if outcome.notebook:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SweepError(f"cannot write in {folder}: {error.strerror}") from None
        write_whole(path, outcome.notebook)
        where = f"its notebook is {path}"
    if row.status != "ok":
        given = ", ".join(f"{name}={value}" for name, value in row.parameters.items())
        say(f"{row.status}: {given}: {row.error}; {where}")

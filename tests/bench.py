"""What the sweep engine and the warm kernels save, measured side by side: `make bench`.

Every figure is a median over rounds, and in a round the ways of doing the same thing
take turns, so that a busy machine is busy for all of them. Ratios are to stock
papermill, or stock nbval, one after the other, whole pages: what there would be
without this project's own code.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import papermill

from shared.kernels import warm_kernel
from shared.notebooks import chapter_paths
from shared.sweep.drive import (
    Settings,
    outcomes,
    plan_from_file,
    plan_from_text,
    sweep,
    tasks_of,
)
from shared.sweep.grid import Run
from shared.sweep.runs import Task, run

TINY = Path(__file__).parent / "notebooks" / "descent.ipynb"
JOBS = 2
RUNS_OF_OURS = 8
"""Runs a round with our own engine; stock papermill gets one a job."""

MEMORY_RUNS = (100, 1000)


def stock_run(notebook: str, parameters: Run, folder: str) -> None:
    """Run a notebook as papermill's documentation shows."""
    with tempfile.TemporaryDirectory() as kept:
        papermill.execute_notebook(
            notebook,
            f"{kept}/out.ipynb",
            parameters=parameters,
            cwd=folder,
            progress_bar=False,
        )


def seconds_per_run(work: Callable[[], None], runs: int) -> float:
    """Return how long each of the runs takes that ``work`` makes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / runs


def tasks_of_chapter(path: Path, count: int) -> list[Task]:
    """Return tasks spread evenly over the grid of a chapter."""
    grid = path.parent / "sweeps" / f"{path.stem}.toml"
    tasks = tasks_of(plan_from_file(grid, smoke=False), Settings())
    return [tasks[place * len(tasks) // count] for place in range(count)]


def bench_chapter(path: Path, rounds: int, pool: Executor) -> dict[str, float]:
    """Return the median seconds a run of one chapter takes, by way of running it."""
    tasks = tasks_of_chapter(path, RUNS_OF_OURS)
    with tempfile.TemporaryDirectory() as kept:
        cells = Path(kept, path.name)
        cells.write_text(tasks[0].notebook)
        ways = _ways(str(path), str(cells), tasks, pool)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (work, runs) in ways.items():
                times[name].append(seconds_per_run(work, runs))
    return {name: statistics.median(values) for name, values in times.items()}


def _ways(
    page: str, cells: str, tasks: Sequence[Task], pool: Executor
) -> dict[str, tuple[Callable[[], None], int]]:
    """Return the ways of running a chapter: what to call, and its number of runs."""

    def loop(notebook: str) -> None:
        stock_run(notebook, tasks[0].parameters, tasks[0].folder)

    def in_pool(notebook: str) -> None:
        futures = [
            pool.submit(stock_run, notebook, task.parameters, task.folder)
            for task in tasks[:JOBS]
        ]
        for future in futures:
            future.result()

    def ours(jobs: int) -> None:
        with ThreadPoolExecutor(jobs) as threads:
            ends = [outcome.row.status for outcome in outcomes(threads, tasks, jobs)]
        assert set(ends) == {"ok"}, ends

    return {
        "papermill, whole page": (lambda: loop(page), 1),
        f"papermill, whole page, {JOBS} processes": (lambda: in_pool(page), JOBS),
        "papermill, cells of the sweep": (lambda: loop(cells), 1),
        f"papermill, cells of the sweep, {JOBS} processes": (
            lambda: in_pool(cells),
            JOBS,
        ),
        "ours, 1 job": (lambda: ours(1), len(tasks)),
        f"ours, {JOBS} jobs": (lambda: ours(JOBS), len(tasks)),
    }


def print_ratios(title: str, seconds: dict[str, float], unit: str) -> None:
    """Print seconds, their inverse, and how many times the first they are."""
    print(f"\n{title}")
    first = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"  {name:<50} {value:8.2f} s a {unit}  {first / value:6.1f} x")


def bench_sweeps(rounds: int) -> None:
    """Compare ways of running each chapter again and again."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(JOBS, mp_context=spawn) as pool:
        for path in chapter_paths():
            warm_up = replace(tasks_of_chapter(path, 1)[0], seconds_per_cell=600)
            started = time.perf_counter()
            run(warm_up)
            print(f"\n{path.stem}: first run {time.perf_counter() - started:.1f} s")
            medians = bench_chapter(path, rounds, pool)
            print_ratios(f"{path.stem}, median of {rounds} rounds", medians, "run")


def bench_nbval(rounds: int) -> None:
    """Compare stock nbval with the book's own way of calling it, on all chapters."""
    chapters = [str(path) for path in chapter_paths()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    stock = [*command, "--nbval", "--nbval-current-env", *chapters]
    warm = ["--nbval", "--nbval-kernel-name", warm_kernel()]
    parallel = ["-n", str(JOBS), "--dist", "loadscope"]
    ways = {
        "nbval": stock,
        "nbval, warm kernels": [*command, *warm, *chapters],
        f"nbval, warm kernels, {JOBS} processes": [
            *command,
            *warm,
            *parallel,
            *chapters,
        ],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, words in ways.items():
            started = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print_ratios(f"all chapters, median of {rounds} rounds", medians, "book")


def one_long_sweep(runs: int) -> None:
    """Make a sweep of tiny runs in this process; print its rate and peak memory."""
    with tempfile.TemporaryDirectory() as kept:
        plan = plan_from_text(TINY, [f"start=1:{runs}"], Path(kept, "rows.csv"))
        with ThreadPoolExecutor(JOBS) as threads:
            started = time.perf_counter()
            sweep(plan, threads, JOBS, Settings())
    seconds = time.perf_counter() - started
    # In kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"runs a second": runs / seconds, "peak megabytes": peak}))


def bench_memory() -> None:
    """Print rate and peak memory of the driver for a short and a long sweep."""
    print(f"\nSweeps of a tiny notebook, {JOBS} jobs, the server's start included")
    for runs in MEMORY_RUNS:
        words = [sys.executable, __file__, "--one-long-sweep", str(runs)]
        result = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(result.stdout)
        print(
            f"  {runs:5d} runs: {found['runs a second']:.2f} runs a second, "
            f"driver's peak memory {found['peak megabytes']:.0f} MB"
        )


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"sweeps": bench_sweeps, "nbval": bench_nbval, "memory": bench_memory}
    parser.add_argument("part", nargs="*", help=f"default: {', '.join(parts)}")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--one-long-sweep", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_long_sweep:
        one_long_sweep(options.one_long_sweep)
        return
    for name in options.part or parts:
        if name not in parts:
            parser.error(f"part must be one of {', '.join(parts)}, not {name!r}")
        parts[name]() if name == "memory" else parts[name](options.rounds)


if __name__ == "__main__":
    main()

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
from functools import partial
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
RUNS_A_ROUND = 2
"""Runs that each way of running a chapter makes in a round."""

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


def tasks_of_chapter(path: Path, count: int) -> list[Task]:
    """Return tasks spread evenly over the grid of a chapter."""
    grid = path.parent / "sweeps" / f"{path.stem}.toml"
    tasks = tasks_of(plan_from_file(grid), Settings())
    return [
        tasks[(2 * place + 1) * len(tasks) // (2 * count)] for place in range(count)
    ]


def stock_loop(notebook: str, tasks: Sequence[Task]) -> None:
    """Make runs one after the other with stock papermill."""
    for task in tasks:
        stock_run(notebook, task.parameters, task.folder)


def stock_pool(notebook: str, tasks: Sequence[Task], pool: Executor) -> None:
    """Make runs with stock papermill in a pool of processes."""
    futures = [
        pool.submit(stock_run, notebook, task.parameters, task.folder) for task in tasks
    ]
    for future in futures:
        future.result()


def ours(jobs: int, tasks: Sequence[Task]) -> None:
    """Make runs with the engine of `shared.sweep`."""
    with ThreadPoolExecutor(jobs) as threads:
        ends = [outcome.row.status for outcome in outcomes(threads, tasks, jobs)]
    assert set(ends) == {"ok"}, ends


def bench_chapter(path: Path, rounds: int, pool: Executor) -> dict[str, float]:
    """Return the median seconds a run of one chapter takes, by way of running it.

    In a round all ways make the same runs; the next round makes others.
    """
    tasks = tasks_of_chapter(path, RUNS_A_ROUND * rounds)
    with tempfile.TemporaryDirectory() as kept:
        page, cells = str(path), f"{kept}/{path.name}"
        Path(cells).write_text(tasks[0].notebook)
        ways: dict[str, Callable[[Sequence[Task]], None]] = {
            "papermill, whole page": partial(stock_loop, page),
            f"papermill, whole page, {JOBS} processes": partial(
                stock_pool, page, pool=pool
            ),
            "papermill, cells of the sweep": partial(stock_loop, cells),
            f"papermill, cells of the sweep, {JOBS} processes": partial(
                stock_pool, cells, pool=pool
            ),
            "ours, 1 job": partial(ours, 1),
            f"ours, {JOBS} jobs": partial(ours, JOBS),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for place in range(rounds):
            now = tasks[place::rounds]
            for name, work in ways.items():
                started = time.perf_counter()
                work(now)
                times[name].append((time.perf_counter() - started) / len(now))
    return {name: statistics.median(values) for name, values in times.items()}


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
            started = time.perf_counter()
            run(tasks_of_chapter(path, 1)[0])
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

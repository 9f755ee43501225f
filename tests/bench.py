"""What the sweep engine and the warm kernels save, measured side by side: `make bench`.

Every figure is a median over rounds, and in a round the ways of doing the same thing
take turns, so that a busy machine is busy for all of them. Ratios are to stock
papermill, or stock nbval, one after the other, whole pages: what there would be
without this project's own code. The part `diagnose` says what a diagnosis costs, in
steps of the training that it looks at and in copies of its parameters.
"""

import argparse
import json
import os
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
import torch
from sklearn.datasets import load_digits

from shared.diagnose import diagnose
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
SWEEP_JOBS = 2
RUNS_A_ROUND = 2
"""Runs that each way of running a chapter makes in a round."""

MEMORY_RUNS = (100, 1000)

WIDTHS = {"0.1M": 280, "10M": 3124, "100M": 9963}
"""Units in both hidden layers of the network diagnosed, by its number of parameters."""

TIMED_STEPS = 9
MOST_STEPS_PRICE = 60
MOST_COPIES = 4


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
            f"papermill, whole page, {SWEEP_JOBS} processes": partial(
                stock_pool, page, pool=pool
            ),
            "papermill, cells of the sweep": partial(stock_loop, cells),
            f"papermill, cells of the sweep, {SWEEP_JOBS} processes": partial(
                stock_pool, cells, pool=pool
            ),
            "ours, 1 job": partial(ours, 1),
            f"ours, {SWEEP_JOBS} jobs": partial(ours, SWEEP_JOBS),
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
    with ProcessPoolExecutor(SWEEP_JOBS, mp_context=spawn) as pool:
        for path in chapter_paths():
            started = time.perf_counter()
            run(tasks_of_chapter(path, 1)[0])
            print(f"\n{path.stem}: first run {time.perf_counter() - started:.1f} s")
            medians = bench_chapter(path, rounds, pool)
            print_ratios(f"{path.stem}, median of {rounds} rounds", medians, "run")


def bench_nbval(rounds: int, jobs: int) -> None:
    """Compare stock nbval with the book's own way of calling it, on all chapters."""
    chapters = [str(path) for path in chapter_paths()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    stock = [*command, "--nbval", "--nbval-current-env", *chapters]
    warm = ["--nbval", "--nbval-kernel-name", warm_kernel()]
    parallel = ["-n", str(jobs), "--dist", "loadscope"]
    ways = {
        "nbval": stock,
        "nbval, warm kernels": [*command, *warm, *chapters],
        f"nbval, warm kernels, {jobs} processes": [
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
    cores = os.cpu_count()
    title = f"all chapters, median of {rounds} rounds, on {cores} cores"
    print_ratios(title, medians, "book")


def one_long_sweep(runs: int) -> None:
    """Make a sweep of tiny runs in this process; print its rate and peak memory."""
    with tempfile.TemporaryDirectory() as kept:
        plan = plan_from_text(TINY, [f"start=1:{runs}"], Path(kept, "rows.csv"))
        with ThreadPoolExecutor(SWEEP_JOBS) as threads:
            started = time.perf_counter()
            sweep(plan, threads, SWEEP_JOBS, Settings())
    seconds = time.perf_counter() - started
    # In kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"runs a second": runs / seconds, "peak megabytes": peak}))


def bench_memory() -> None:
    """Print rate and peak memory of the driver for a short and a long sweep."""
    print(
        f"\nSweeps of a tiny notebook, {SWEEP_JOBS} jobs, the server's start included"
    )
    for runs in MEMORY_RUNS:
        words = [sys.executable, __file__, "--one-long-sweep", str(runs)]
        result = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(result.stdout)
        print(
            f"  {runs:5d} runs: {found['runs a second']:.2f} runs a second, "
            f"driver's peak memory {found['peak megabytes']:.0f} MB"
        )


def healthy_training(width: int) -> dict[str, object]:
    """Return the arguments of `diagnose` for an MLP that learns to read digits."""
    torch.manual_seed(0)
    data = load_digits()
    x = torch.tensor(data.data[:64], dtype=torch.float32) / 16
    y = torch.tensor(data.target[:64])
    model = torch.nn.Sequential(
        torch.nn.Linear(64, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    )
    # Adam's two moments would be twice the parameters again in the large ones.
    if width == WIDTHS["0.1M"]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss_fn = torch.nn.CrossEntropyLoss()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return {
        "step": step,
        "variables": model,
        "optimizer": optimizer,
        "loss_fn": loss_fn,
        "batch": (x, y),
    }


def one_diagnosis(size: str, way: str) -> None:
    """Train for some steps, diagnose if that is the way; print times and memory."""
    torch.set_num_threads(1)
    arguments = healthy_training(WIDTHS[size])
    times = []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        arguments["step"]()
        times.append(time.perf_counter() - started)
    found = {"step": statistics.median(times)}
    if way == "diagnose":
        started = time.perf_counter()
        report = diagnose(**arguments)
        found["diagnose"] = time.perf_counter() - started
        found["steps"] = report.steps_run
        found["said"] = str(report.cause or "no alarm")
        found["skipped"] = list(report.skipped)
    # In kilobytes on Linux.
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(p.numel() for p in arguments["variables"].parameters())
    found["bytes"] = 4 * count
    print(json.dumps(found))


def bench_diagnose(rounds: int) -> None:
    """Print what a diagnosis of a healthy training costs, for three sizes."""
    print(
        "\nDiagnosis of an MLP that learns (0.1M parameters: Adam, more: SGD), "
        f"median of {rounds} rounds"
    )
    print("  parameters  one step  diagnosis  price in steps  steps run  memory")
    skipped: dict[str, list[str]] = {}
    for size in WIDTHS:
        prices, copies, last = [], [], {}
        for _ in range(rounds):
            found = {}
            for way in ("steps", "diagnose"):
                words = [sys.executable, __file__, "--one-diagnosis", size, way]
                result = subprocess.run(
                    words, check=True, stdout=subprocess.PIPE, text=True
                )
                found[way] = json.loads(result.stdout)
            last = found["diagnose"]
            prices.append(last["diagnose"] / last["step"])
            copies.append((last["peak"] - found["steps"]["peak"]) / last["bytes"])
        skipped[size] = last["skipped"]
        print(
            f"  {size:>10}  {1e3 * last['step']:5.1f} ms  {last['diagnose']:7.1f} s  "
            f"{statistics.median(prices):14.0f}  {last['steps']:9d}  "
            f"{statistics.median(copies):4.1f} x  ({last['said']})"
        )
    print(f"  {'aim':>10}  {'':8}  {'':9}  {f'< {MOST_STEPS_PRICE}':>14}  {'':9}  "
          f"< {MOST_COPIES} x")  # fmt: skip
    print("  memory: peak above that of the steps alone, in sizes of the parameters")
    for size, left_out in skipped.items():
        if left_out:
            print(f"  {size}, left out: {'; '.join(left_out)}")


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {
        "sweeps": lambda options: bench_sweeps(options.rounds),
        "nbval": lambda options: bench_nbval(options.rounds, options.jobs),
        "memory": lambda options: bench_memory(),
        "diagnose": lambda options: bench_diagnose(options.rounds),
    }
    parser.add_argument("part", nargs="*", help=f"default: {', '.join(parts)}")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes of nbval; default: %(default)s"
    )
    parser.add_argument("--one-long-sweep", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one-diagnosis", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_diagnosis:
        one_diagnosis(*options.one_diagnosis)
        return
    if options.one_long_sweep:
        one_long_sweep(options.one_long_sweep)
        return
    for name in options.part or parts:
        if name not in parts:
            parser.error(f"part must be one of {', '.join(parts)}, not {name!r}")
        parts[name](options)


if __name__ == "__main__":
    main()

"""Real faults: the driver killed at random moments, stopped, and on a full disk.

The driver is the real one. It is forked from a process that has imported it, which
saves its start, and preloads less, which saves its kernels'.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.kernels import why_not_to_fork
from shared.sweep import read_rows

NOTEBOOKS = Path(__file__).parent / "notebooks"
KILLS = 20
RUNS = 200
"""More than a fast machine makes in so many short lives of its driver."""

SECONDS = 120
"""Patience for one step; a loaded machine may be slow, a hang is a failure."""

NURSERY = """
import json, os, resource, sys
from shared import kernels
from shared.sweep.__main__ import main
kernels.PRELOADED = kernels.PRELOADED[:2]
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.chdir(order["folder"])
        os.dup2(os.open("said.txt", os.O_WRONLY | os.O_CREAT), 2)
        if order["bytes"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["bytes"],) * 2)
        os._exit(main(order["words"]))
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

pytestmark = pytest.mark.skipif(bool(why_not_to_fork()), reason="needs fork")


class Nursery:
    """Starts drivers, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder: Path, *words: str, most_bytes: int = 0) -> int:
        """Start a driver in a folder; return its process id."""
        words = (*words, "--jobs", "2")
        order = {"folder": str(folder), "words": words, "bytes": most_bytes}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def exit_code(self) -> int:
        """Wait for the driver and return its exit code, negative for a signal."""
        while True:
            line = self._process.stdout.readline()
            # The driver's own table and messages come the same way.
            if line.strip().lstrip("-").isdigit():
                return int(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(NOTEBOOKS, tmp_path / "chapters")
    return tmp_path


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def lines_of(path: Path) -> list[str]:
    """Return the complete lines of a file that is being written."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_for_lines(path: Path, count: int) -> None:
    give_up = time.monotonic() + SECONDS
    while len(lines_of(path)) < min(count, RUNS):
        assert time.monotonic() < give_up, "the sweep stands still"
        time.sleep(0.01)


def kernels_of(folder: Path) -> list[int]:
    """Return the processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                cwd = os.readlink(entry / "cwd")
            except OSError:
                continue
            if cwd == str(folder / "chapters"):
                found.append(int(entry.name))
    return found


def wait_until_no_kernel_is_left(folder: Path) -> None:
    give_up = time.monotonic() + SECONDS
    while kernels_of(folder):
        assert time.monotonic() < give_up, "kernels outlive their driver"
        time.sleep(0.1)


def test_a_driver_killed_at_random_moments_loses_no_row_and_doubles_none(
    folder: Path, nursery: Nursery
) -> None:
    store = folder / "descent-ad-hoc.rows.jsonl"
    words = ("chapters/descent.ipynb", f"start=1:{RUNS}", "steps=1")
    chance = random.Random(0)
    kept: list[str] = []
    for _ in range(KILLS):
        driver = nursery.start(folder, *words)
        wait_for_lines(store, len(kept) + chance.randint(0, 2))
        time.sleep(chance.random() * 0.25)
        os.kill(driver, signal.SIGKILL)
        assert nursery.exit_code() == -signal.SIGKILL
        lines = lines_of(store)
        assert lines[: len(kept)] == kept
        kept = lines
    assert 0 < len(kept) < RUNS, "the kills came before or after the sweep's work"
    nursery.start(folder, *words)
    assert nursery.exit_code() == 0
    lines = lines_of(store)
    assert lines[: len(kept)] == kept
    assert len(lines) == RUNS
    assert len({json.loads(line)["key"] for line in lines}) == RUNS
    frame = read_rows(folder / "descent-ad-hoc.csv")
    assert list(frame["start"]) == list(range(1, RUNS + 1))
    # One step of descent on x^2 with rate 0.1 from `start`.
    assert frame["final"].tolist() == pytest.approx(0.8 * frame["start"])
    wait_until_no_kernel_is_left(folder)


def test_a_stopped_sweep_keeps_its_rows_and_says_how_to_go_on(
    folder: Path, nursery: Nursery
) -> None:
    store = folder / "faults-ad-hoc.rows.jsonl"
    driver = nursery.start(
        folder, "chapters/faults.ipynb", "fault=none,hang", "turn=0:1"
    )
    wait_for_lines(store, 2)
    os.kill(driver, signal.SIGINT)
    assert nursery.exit_code() == 130
    assert len(lines_of(store)) == 2
    wait_until_no_kernel_is_left(folder)


def test_a_full_disk_ends_the_sweep_and_keeps_its_rows(
    folder: Path, nursery: Nursery
) -> None:
    store = folder / "descent-ad-hoc.rows.jsonl"
    words = ("chapters/descent.ipynb", "start=1:12", "steps=1")
    # A limit on the size of files stands in: like a full disk it takes part of a line.
    nursery.start(folder, *words, most_bytes=2000)
    assert nursery.exit_code() == 2
    said = (folder / "said.txt").read_text()
    assert "The rows so far are kept; make room and start the same sweep again" in said
    kept = lines_of(store)
    assert 0 < len(kept) < 12
    assert store.read_text().endswith("\n")
    nursery.start(folder, *words)
    assert nursery.exit_code() == 0
    assert lines_of(store)[: len(kept)] == kept
    assert len(lines_of(store)) == 12


def test_of_two_sweeps_on_one_rows_file_the_second_is_refused(
    folder: Path, nursery: Nursery
) -> None:
    store = folder / "faults-ad-hoc.rows.jsonl"
    words = ["chapters/faults.ipynb", "fault=none,hang", "turn=0"]
    driver = nursery.start(folder, *words)
    wait_for_lines(store, 1)
    command = [sys.executable, "-m", "shared.sweep", *words]
    second = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    os.kill(driver, signal.SIGINT)
    assert second.returncode == 2
    assert "another sweep is writing" in second.stderr
    assert nursery.exit_code() == 130
    assert len(lines_of(store)) == 1

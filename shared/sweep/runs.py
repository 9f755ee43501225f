"""One run of a sweep: a chapter with one set of parameters, executed by papermill."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from shared.kernels import warm_kernel
from shared.record import Value, recorded_values
from shared.sweep.rows import Row

SHARED = Path(__file__).resolve().parent.parent

VERSIONED = ("numpy", "torch", "scipy", "scikit-learn", "pandas", "matplotlib")
"""Packages whose release can change a number."""

START_SECONDS = 120
"""A kernel that does not answer by then counts as killed."""

ERROR_CHARACTERS = 200
"""Longer messages are cut in a row."""


@dataclass(frozen=True)
class Task:
    """Everything that a run needs, able to travel to another machine."""

    key: str
    notebook: str
    """The cells to run, as the JSON text of a notebook."""
    parameters: dict[str, Value]
    folder: str
    """Where the chapter lives; on a machine that has no such folder, it is not used."""
    seconds_per_cell: int
    keep: bool
    """Whether to hand back the executed notebook also of a run that ended well."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task."""

    row: Row
    notebook: str
    """The executed notebook as JSON text; empty where it was not to be kept."""


def versions() -> dict[str, str]:
    """Return the releases that a number can depend on."""
    found = {"python": platform.python_version()}
    found.update({name: version(name) for name in VERSIONED})
    return found


def shared_hash() -> str:
    """Return a hash of every module of `shared`, and of the weights it keeps."""
    digest = hashlib.sha256()
    for path in sorted([*SHARED.rglob("*.py"), *SHARED.rglob("*.npz")]):
        digest.update(path.relative_to(SHARED).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def key_of(
    notebook: Mapping[str, Any],
    parameters: Mapping[str, Value],
    shared: str,
    releases: Mapping[str, str],
) -> str:
    """Return the hash that tells whether a run has been made before.

    Args:
        notebook: the cells to run; only their code counts.
        parameters: of the run.
        shared: as `shared_hash` gives it.
        releases: as `versions` gives them.
    """
    code = [cell["source"] for cell in notebook["cells"]]
    # repr tells 1 from 1.0 from True, and NaN equals itself.
    given = sorted((name, repr(value)) for name, value in parameters.items())
    parts = [code, given, shared, sorted(releases.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def run(task: Task) -> Outcome:
    """Execute a task in a kernel of its own and return what came of it.

    Whatever goes wrong inside the run is a result: it becomes the row's status.
    """
    seen: list[nbformat.NotebookNode] = []
    started = time.perf_counter()
    status, error = _execute(task, seen.append)
    seconds = time.perf_counter() - started
    recorded = recorded_values(seen[0]) if seen else {}
    twice = [name for name in recorded if name in task.parameters]
    if twice and status == "ok":
        status, error = "failed", f"record() repeats the parameter {twice[0]}"
    recorded = {name: recorded[name] for name in recorded if name not in twice}
    row = Row(
        task.key,
        task.parameters,
        recorded,
        status,
        error,
        round(seconds, 3),
        versions(),
    )
    keep = seen and (task.keep or status != "ok")
    return Outcome(row, nbformat.writes(seen[0]) if keep else "")


def _execute(
    task: Task, on_start: Callable[[nbformat.NotebookNode], None]
) -> tuple[str, str]:
    """Run a task's notebook and return its status and error text."""
    folder = {"path": task.folder} if Path(task.folder).is_dir() else {}
    try:
        papermill.execute_notebook(
            nbformat.reads(task.notebook, as_version=4),
            None,
            parameters=task.parameters,
            kernel_name=warm_kernel(),
            progress_bar=False,
            start_timeout=START_SECONDS,
            execution_timeout=task.seconds_per_cell,
            # papermill's own `cwd` moves the whole process, and with it other runs.
            resources={"metadata": folder},
            # papermill returns no notebook when a run fails: this keeps hold of it.
            on_notebook_start=lambda notebook: on_start(notebook),  # called by name
            shutdown_kernel="immediate",
        )
    except PapermillExecutionError as error:
        return "failed", _first_line(f"{error.ename}: {error.evalue}")
    except CellTimeoutError:
        return "timed out", f"a cell ran longer than {task.seconds_per_cell} s"
    except DeadKernelError:
        return "killed", "the kernel died"
    except RuntimeError as error:
        # jupyter_client says so when a kernel ends or is silent before its first cell.
        return "killed", _first_line(f"the kernel did not start: {error}")
    return "ok", ""


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0]
    return line if len(line) <= ERROR_CHARACTERS else f"{line[:ERROR_CHARACTERS]}..."

"""Execute, begin and inspect chapters: what `make execute` and `make chapter` call."""

import argparse
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode, v4

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"

ANATOMY = (
    "Parameters",
    "The claim",
    "Reproduce",
    "Measure",
    "Why",
    "Repair",
    "For real",
    "Sweep",
    "Exercises",
    "Verdict",
)
"""Second-level headings of every chapter, in this order."""

CARD_FIELDS = (
    "What you see",
    "The measurement that proves it",
    "What it is not",
    "The smallest repair",
    "The repair that only hides it",
    "Cost",
)
"""Entries of the card under a chapter's title, in this order."""

CELL_SECONDS = 120
"""No cell of the book may run longer."""

WORDS_A_MINUTE = 200
CODE_LINES_A_MINUTE = 15

SLUG = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def chapter_paths(slugs: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks of these chapters, or of all when none is named.

    Raises:
        ValueError: if there is no such chapter; the message lists those that exist.
    """
    known = {path.stem: path for path in sorted(CHAPTERS.glob("*.ipynb"))}
    for slug in slugs:
        if slug not in known:
            raise ValueError(
                f"there is no chapter {slug!r}; there are: {', '.join(known)}"
            )
    return [known[slug] for slug in slugs] if slugs else list(known.values())


def changed_slugs() -> list[str]:
    """Return the chapters to re-execute after uncommitted edits, all if helpers changed.

    Raises:
        subprocess.CalledProcessError: if this is not a git checkout.
    """
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [Path(line[3:].split(" -> ")[-1]) for line in status.splitlines()]
    helpers = any(p.parts[0] == "shared" or p.name == "requirements.txt" for p in paths)
    existing = [path.stem for path in chapter_paths()]
    if helpers:
        return existing
    touched = {p.stem for p in paths if p.parts[0] == "chapters"}
    return [slug for slug in existing if slug in touched]


def reading_minutes(notebook: NotebookNode) -> int:
    """Return the time to read a notebook, from its words and its lines of code."""
    words = lines = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words += len(cell.source.split())
        elif cell.cell_type == "code":
            lines += len(cell.source.splitlines())
    return max(1, round(words / WORDS_A_MINUTE + lines / CODE_LINES_A_MINUTE))


def cost_line(notebook: NotebookNode, seconds: float) -> str:
    """Return the card's last entry: what the chapter costs to read and to run."""
    code_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return (
        f"- **Cost.** {reading_minutes(notebook)} minutes to read; "
        f"{code_cells} code cells that run in {max(1, round(seconds))} s on one core; "
        f"nothing to download. Tested with {versions}."
    )


def _write_cost(notebook: NotebookNode, seconds: float) -> None:
    pattern = re.compile(r"^- \*\*Cost\.\*\*.*$", re.MULTILINE)
    line = cost_line(notebook, seconds)
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and pattern.search(cell.source):
            old = re.search(r"run in (\d+) s", cell.source)
            # A run time that moved by a few seconds is noise, not news.
            if old and 0.6 < (seconds + 1) / (int(old[1]) + 1) < 1.7:
                line = cost_line(notebook, int(old[1]))
            cell.source = pattern.sub(line, cell.source)
            return


def execute(path: Path) -> float:
    """Run a notebook from top to bottom, save it with its outputs, return the seconds.

    The file is written only when every cell has run.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    started = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - started
    notebook.metadata = NotebookNode(
        kernelspec={
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        # Without the interpreter's version, which would change with every machine.
        language_info={"name": "python", "file_extension": ".py"},
    )
    _write_cost(notebook, seconds)
    nbformat.write(notebook, path)
    return seconds

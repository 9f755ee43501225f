"""Execute, begin and inspect chapters: what `make execute` and `make chapter` call."""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode, v4

from shared import skeleton
from shared.kernels import warm_kernel
from shared.sweep.page import tags

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
    "Diagnose it",
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

CARD_OPENING = ":::{admonition} At a glance\n:class: glance\n"
"""How the card begins; it ends with a line of three colons."""

METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    # Without the interpreter's version, which would change with every machine.
    "language_info": {"name": "python", "file_extension": ".py"},
}
"""The whole metadata of a chapter's notebook."""

CELL_SECONDS = 120
"""No cell of the book may run longer."""

WORDS_A_MINUTE = 200
CODE_LINES_A_MINUTE = 15

FOLDED = {"hide-input", "hide-cell"}
"""Tags of cells whose code the reader has to unfold."""

COST = re.compile(r"^- \*\*Cost\.\*\*.*$", re.MULTILINE)
"""The card's line that `execute` writes."""

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
    """Return the chapters with uncommitted edits, or all if the helpers have some.

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
    """Return the time to read a notebook, from its words and its lines of code.

    Code that the page shows folded does not count: nobody has to read it.
    """
    words = lines = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            # Without its own result, which would change the count it is made from.
            words += len(COST.sub("", cell.source).split())
        elif cell.cell_type == "code" and not FOLDED & set(tags(cell)):
            lines += len(cell.source.splitlines())
    return max(1, round(words / WORDS_A_MINUTE + lines / CODE_LINES_A_MINUTE))


def _release(package: str) -> str:
    # The CPU build of PyTorch calls itself "2.13.0+cpu", and is the same release.
    return version(package).split("+")[0]


def cost_line(notebook: NotebookNode, seconds: float) -> str:
    """Return the card's last entry: what the chapter costs to read and to run."""
    code_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    versions = ", ".join(f"{name} {_release(name)}" for name in ("torch", "numpy"))
    return (
        f"- **Cost.** {reading_minutes(notebook)} minutes to read; "
        f"{code_cells} code cells that run in {max(1, round(seconds))} s on one core, "
        f"imports not counted; nothing to download. Tested with {versions}."
    )


def _write_cost(notebook: NotebookNode, seconds: float) -> None:
    line = cost_line(notebook, seconds)
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and COST.search(cell.source):
            old = re.search(r"run in (\d+) s", cell.source)
            # A run time that moved by a few seconds is noise, not news.
            if old and 0.6 < (seconds + 1) / (int(old[1]) + 1) < 1.7:
                line = cost_line(notebook, int(old[1]))
            cell.source = COST.sub(line, cell.source)
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
    started = time.perf_counter()

    def kernel_is_ready(**_: object) -> None:
        """Count from here: the first kernel of a run waits for the others' imports."""
        nonlocal started
        started = time.perf_counter()

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=warm_kernel(),
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        on_notebook_start=kernel_is_ready,
    )
    client.execute()
    seconds = time.perf_counter() - started
    notebook.metadata = nbformat.from_dict(METADATA)
    _write_cost(notebook, seconds)
    nbformat.write(notebook, path)
    return seconds


# --------------------------------------------------------------------------------------
# A new chapter
# --------------------------------------------------------------------------------------


def skeleton_notebook(slug: str) -> NotebookNode:
    """Return a chapter that has every heading, the card and code that runs."""
    card = "\n".join(f"- **{field}.** {skeleton.CARD[field]}" for field in CARD_FIELDS)
    title = f"({slug})=\n# TODO: the failure, as a reader would say it"
    cells = [v4.new_markdown_cell(f"{title}\n\n{CARD_OPENING}\n{card}\n:::")]
    for heading in ANATOMY:
        first, *others = skeleton.SECTIONS[heading]
        if first.kind == "markdown":
            first = first._replace(source=f"## {heading}\n\n{first.source}")
        else:
            cells.append(v4.new_markdown_cell(f"## {heading}"))
        cells += [_new_cell(cell, slug) for cell in (first, *others)]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return v4.new_notebook(cells=cells, metadata=METADATA)


def _new_cell(cell: skeleton.Cell, slug: str) -> NotebookNode:
    dashed = slug.replace("_", "-")
    source = cell.source.replace("SLUG", slug).replace("DASHED", dashed)
    if cell.kind == "markdown":
        return v4.new_markdown_cell(source)
    new = v4.new_code_cell(source)
    if cell.tags:
        new.metadata["tags"] = list(cell.tags)
    if cell.figure:
        new.metadata["mystnb"] = {
            "image": {"alt": "TODO: what someone who cannot see the figure must know."},
            "figure": {
                "caption": "TODO: a few words.",
                "name": f"fig-{dashed}-{cell.figure}",
            },
        }
    return new


def new_chapter(slug: str, chapters: Path = CHAPTERS) -> str:
    """Write a chapter's notebook and its sweep's grid, and return what remains to do.

    Args:
        slug: the chapter's name everywhere, such as ``"dead_units"``.
        chapters: the folder of the chapters.

    Raises:
        ValueError: if ``slug`` is not lower-case words joined by underscores.
        FileExistsError: if there is such a chapter or such a grid already.
    """
    if not SLUG.fullmatch(slug):
        raise ValueError(
            "slug must be lower-case letters and digits, words joined by one "
            f"underscore, a letter first, like dead_units; not {slug!r}"
        )
    notebook, grid = chapters / f"{slug}.ipynb", chapters / "sweeps" / f"{slug}.toml"
    for path in (notebook, grid):
        if path.exists():
            raise FileExistsError(f"slug {slug!r} is taken: {path.name} exists already")
    nbformat.write(skeleton_notebook(slug), notebook)
    grid.parent.mkdir(exist_ok=True)
    grid.write_text(skeleton.GRID, encoding="utf-8")
    places = {
        "notebook": f"chapters/{notebook.name}",
        "grid": f"chapters/sweeps/{grid.name}",
    }
    return skeleton.NEXT_STEPS.format(slug=slug, **places)


# --------------------------------------------------------------------------------------
# The command line
# --------------------------------------------------------------------------------------


def execute_all(paths: Sequence[Path], jobs: int) -> list[Path]:
    """Execute notebooks side by side, say how each went, and return the failed ones.

    A chapter that fails does not keep the others from running.

    Args:
        paths: the notebooks, each saved when all of its cells have run.
        jobs: how many run at once, at least 1.
    """
    failed = []
    # Threads suffice: each notebook runs in the process of its own kernel.
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(execute, path): path for path in paths}
        for done in as_completed(running):
            path = running[done]
            try:
                print(f"{path.stem}: executed in {done.result():.1f} s", flush=True)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                failed.append(path)
                print(f"{path.stem}: FAILED, not saved\n{error}", file=sys.stderr)
    return sorted(failed)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m shared.notebooks")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("execute", help="run chapters and save their outputs")
    run.add_argument(
        "slugs",
        nargs="*",
        metavar="SLUG",
        help="which chapters; 'changed' for those with uncommitted edits; default: all",
    )
    begin = commands.add_parser("new", help="start a chapter from the skeleton")
    begin.add_argument("slug", metavar="SLUG", help="for example my_failure")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run one sub-command and return the exit code: 0, 1 (failed) or 2 (bad input)."""
    arguments = _arguments(sys.argv[1:] if words is None else words)
    try:
        if arguments.command == "new":
            print(new_chapter(arguments.slug))
            return 0
        slugs = arguments.slugs
        if slugs == ["changed"]:
            slugs = changed_slugs()
            if not slugs:
                print("No chapter has uncommitted edits.")
                return 0
        paths = chapter_paths(slugs)
    except (ValueError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if execute_all(paths, jobs=min(2, os.cpu_count() or 1)) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Say which numbers moved between two executions of the same chapters.

``python -m shared.compare OLD NEW`` compares two folders of executed notebooks, output
by output: the monthly run on the newest releases of the dependencies calls it.
"""

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode


class Change(NamedTuple):
    """One line of output that differs; empty where a line has no counterpart."""

    chapter: str
    cell: int
    """Place among the chapter's cells, from 1."""
    old: str
    new: str


def output_lines(cell: NotebookNode) -> list[str]:
    """Return what a code cell shows as text, figures by their description."""
    texts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}")
        else:
            texts.append(output.data.get("text/plain", ""))
    return [line for text in texts for line in text.splitlines()]


def changes(old: NotebookNode, new: NotebookNode, chapter: str) -> Iterator[Change]:
    """Yield the lines that differ between two executions of one chapter.

    Args:
        old: the chapter as it was.
        new: the chapter executed again, with the same cells.
        chapter: its slug.

    Raises:
        ValueError: if the two do not have the same cells.
    """
    sources = [[cell.source for cell in n.cells if _is_code(cell)] for n in (old, new)]
    if sources[0] != sources[1]:
        raise ValueError(f"{chapter}: the code differs, so outputs cannot be compared")
    after = [cell for cell in new.cells if _is_code(cell)]
    before = ((i, cell) for i, cell in enumerate(old.cells, 1) if _is_code(cell))
    for (number, cell), again in zip(before, after, strict=True):
        for old_line, new_line in _differing(output_lines(cell), output_lines(again)):
            yield Change(chapter, number, old_line, new_line)


def _is_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code"


def _differing(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str]]:
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind != "equal":
            yield from zip_longest(old[i:i_end], new[j:j_end], fillvalue="")


def compare(old: Path, new: Path) -> list[Change]:
    """Return what differs between two folders of executed notebooks.

    Raises:
        ValueError: if a folder has no notebooks, or the two have not the same ones.
    """
    names = [
        sorted(path.name for path in folder.glob("*.ipynb")) for folder in (old, new)
    ]
    for folder, found in zip((old, new), names, strict=True):
        if not found:
            raise ValueError(f"there are no notebooks in {folder}")
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        raise ValueError(f"only one of {old} and {new} has {', '.join(only)}")
    return [
        change
        for name in names[0]
        for change in changes(_read(old / name), _read(new / name), Path(name).stem)
    ]


def _read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def report(found: Sequence[Change]) -> str:
    """Return the changes as text: chapter and cell, then old and new line."""
    if not found:
        return "No number moved."
    lines = [f"Lines of output that moved: {len(found)}"]
    for change in found:
        lines.append(f"{change.chapter}, cell {change.cell}")
        lines += [f"  old: {change.old}", f"  new: {change.new}"]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Print what moved; return 0 if nothing did, 1 if something did, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m shared.compare")
    parser.add_argument("old", type=Path, help="folder of notebooks as they were")
    parser.add_argument("new", type=Path, help="folder of the same, executed again")
    arguments = parser.parse_args(words)
    try:
        found = compare(arguments.old, arguments.new)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(report(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

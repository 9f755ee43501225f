"""What every chapter must be like, as checks that need no run.

Each check takes a notebook and the chapter's slug and returns what is wrong, one line
a fault, so that the tests and the pre-commit hook can use the same ones:
``python -m tests.hygiene`` prints the faults of all chapters.
"""

import ast
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from shared.notebooks import (
    ANATOMY,
    CARD_FIELDS,
    CARD_OPENING,
    COST,
    METADATA,
    ROOT,
    chapter_paths,
    cost_line,
)
from shared.sweep.errors import SweepError
from shared.sweep.page import PAGE_ONLY_TAG, PARAMETERS_TAG, parameters_of, tags

MOST_LINES = 15
"""Lines of a code cell that is not tagged ``long``."""

MOST_BYTES = 200_000
"""Size of one output."""

SHORTEST_ALT = 40
"""Letters of an alternative text; fewer cannot say what a figure shows."""

FEWEST_EXERCISES = 3

KNOWN_TAGS = {
    PARAMETERS_TAG,
    PAGE_ONLY_TAG,
    "long",
    "hide-input",
    "hide-output",
    "hide-cell",
}
"""Any other tag is a misspelling, or hides something from the tests."""

UNCHECKED = re.compile(r"#\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)")
"""Comments that make nbval look away."""

MACHINE = re.compile(
    r"(?<![\w.~-])/(?:home|Users|root|tmp|var|opt|usr|mnt|private|work)/"
    r"|[A-Za-z]:\\Users\\"
    r"|\bat 0x[0-9a-f]{6,}"
)
"""Paths and addresses that are another's on the next machine."""

# --------------------------------------------------------------------------------------
# Reading a notebook
# --------------------------------------------------------------------------------------


def code_cells(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Yield the code cells, each with a name for it such as ``"cell 4"``.

    The number is that of the cell in the whole notebook, from 1.
    """
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            yield f"cell {number}", cell


def prose(notebook: NotebookNode) -> str:
    """Return the text of all markdown cells, in order."""
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def without_code(text: str) -> str:
    """Return ``text`` without the blocks that show code, where a # is no heading."""
    plain = re.compile(r"^(`{3,})(?!\{).*?^\1`*$", re.MULTILINE | re.DOTALL)
    shown = re.compile(
        r"^(`{3,})\{(?:code|code-block|literalinclude)\}.*?^\1`*$",
        re.MULTILINE | re.DOTALL,
    )
    return plain.sub("", shown.sub("", text))


def headings(notebook: NotebookNode, level: int) -> list[str]:
    """Return the headings of one level, in order."""
    pattern = re.compile(rf"^#{{{level}}} +(.+?) *$", re.MULTILINE)
    return pattern.findall(without_code(prose(notebook)))


def pictures(cell: NotebookNode) -> list[str]:
    """Return the kinds of the images that a cell shows, such as ``"image/png"``."""
    return [
        kind
        for output in cell.outputs
        for kind in output.get("data", {})
        if kind.startswith("image/")
    ]


def figure_words(cell: NotebookNode) -> dict[str, str]:
    """Return a figure's ``alt``, ``caption`` and ``name``, empty where absent."""
    settings = cell.metadata.get("mystnb", {})
    figure = settings.get("figure", {})
    return {
        "alt": settings.get("image", {}).get("alt", ""),
        "caption": figure.get("caption", ""),
        "name": figure.get("name", ""),
    }


def card(notebook: NotebookNode) -> dict[str, str]:
    """Return the entries of the card by field, in order; empty without a card."""
    _, _, rest = prose(notebook).partition(CARD_OPENING)
    text = re.split(r"^:::$", rest, maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.split(r"^- \*\*(.+?)\.\*\*", text, flags=re.MULTILINE)[1:]
    return {
        field: " ".join(words.split())
        for field, words in zip(entries[::2], entries[1::2], strict=True)
    }


def _parsed(cell: NotebookNode) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(cell.source))


def asserts(cell: NotebookNode) -> bool:
    """Return whether a cell asserts anything, by statement or by a function."""
    for node in ast.walk(_parsed(cell)):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", None) or getattr(function, "id", "")
            if name.startswith("assert_"):
                return True
    return False


def _calls(cell: NotebookNode, function: str) -> bool:
    return any(
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == function
        for node in ast.walk(_parsed(cell))
    )


# --------------------------------------------------------------------------------------
# Checks of one notebook
# --------------------------------------------------------------------------------------


def check_format(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask for a valid notebook whose code cells are all Python."""
    problems = []
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        problems.append(f"not a valid notebook: {str(error).splitlines()[0]}")
    for name, cell in code_cells(notebook):
        try:
            _parsed(cell)
        except SyntaxError as error:
            problems.append(f"{name}: not Python: {error.msg}")
    return problems


def check_execution(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask that all code cells were run once, in order, in a fresh kernel."""
    if all(cell.execution_count is None for _, cell in code_cells(notebook)):
        return [f"not executed: run `make execute ONLY={slug}`"]
    return [
        f"{name}: execution count {cell.execution_count}, not {wanted}: "
        f"run `make execute ONLY={slug}`"
        for wanted, (name, cell) in enumerate(code_cells(notebook), 1)
        if cell.execution_count != wanted
    ]


def check_outputs(notebook: NotebookNode, slug: str) -> list[str]:
    """Refuse errors, warnings, SVG, big outputs and outputs that name a machine."""
    problems = []
    for name, cell in code_cells(notebook):
        for output in cell.outputs:
            size = len(json.dumps(output))
            if output.output_type == "error":
                problems.append(f"{name}: error output {output.ename}")
            if output.get("name") == "stderr":
                problems.append(f"{name}: output on stderr: {output.text[:60]!r}")
            if "image/svg+xml" in output.get("data", {}):
                problems.append(f"{name}: SVG output, which differs on every run")
            if size > MOST_BYTES:
                problems.append(f"{name}: output of {size} bytes, over {MOST_BYTES}")
            for text in _texts(output):
                if found := MACHINE.search(text):
                    problems.append(f"{name}: output names a machine: {found[0]!r}")
    return problems


def _texts(output: NotebookNode) -> Iterator[str]:
    yield output.get("text", "")
    for kind, data in output.get("data", {}).items():
        # Pixels written as letters contain anything, by chance.
        if not kind.startswith("image/"):
            yield str(data)


def check_parameters(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask for one ``parameters`` cell, its values typed, explained and in range."""
    cells = [c for _, c in code_cells(notebook) if PARAMETERS_TAG in tags(c)]
    if len(cells) != 1:
        return [f"{len(cells)} cells tagged 'parameters', not 1"]
    line = re.compile(r"[a-z]\w*: (?:int|float|bool|str) = [^#]+  # (.+)")
    problems = []
    for source in filter(None, map(str.strip, cells[0].source.splitlines())):
        found = line.fullmatch(source)
        if source.startswith("#"):
            continue
        if not found:
            problems.append(f"parameter not typed and commented: {source!r}")
        elif ";" not in found[1] and "one of" not in found[1]:
            problems.append(f"comment without '; ' and a range: {source!r}")
    try:
        parameters_of(notebook, slug)
    except SweepError as error:
        problems.append(f"parameters: {error}")
    return problems


def check_headings(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask for one title, and below it the anatomy's headings in order."""
    problems = []
    titles = headings(notebook, 1)
    if len(titles) != 1:
        problems.append(f"{len(titles)} first-level headings, not 1: {titles}")
    found = headings(notebook, 2)
    if found != list(ANATOMY):
        problems.append(
            "second-level headings differ from the anatomy: "
            f"{', '.join(found)}; expected {', '.join(ANATOMY)}"
        )
    return problems


def check_label(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask for the label ``(slug)=`` and the title at the start of the first cell."""
    first = notebook.cells[0].source if notebook.cells else ""
    if not re.match(rf"\({re.escape(slug)}\)=\n# \S", first):
        return [f"the first cell does not start with ({slug})= and the title"]
    return []


def check_card(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask for the card above the first section, its fields in order and filled."""
    above = prose(notebook).split("\n## ", 1)[0]
    if CARD_OPENING not in above:
        return [f"no card above the first section: {CARD_OPENING!r}"]
    entries = card(notebook)
    problems = [
        f"card: {field} is empty" for field, words in entries.items() if not words
    ]
    if list(entries) != list(CARD_FIELDS):
        problems.append(f"card: fields {list(entries)}, not {list(CARD_FIELDS)}")
    return problems


def check_cost(notebook: NotebookNode, slug: str) -> list[str]:
    """Recount the card's cost, save the seconds, which are measured."""
    found = COST.search(prose(notebook))
    seconds = found and re.search(r"run in (\d+) s", found[0])
    if not seconds:
        return [f"card: no measured cost: run `make execute ONLY={slug}`"]
    expected = cost_line(notebook, int(seconds[1]))
    if found[0] != expected:
        return [f"card: {found[0]!r}, recounted {expected!r}"]
    return []


def check_figures(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask of every figure a name, a caption and a text that tells what it shows."""
    problems = []
    seen: Counter[str] = Counter()
    title = " ".join(headings(notebook, 1))
    for name, cell in code_cells(notebook):
        words, shown = figure_words(cell), pictures(cell)
        if shown or any(words.values()):
            problems += [f"{name}: {p}" for p in _figure_problems(words, slug, title)]
            seen.update(filter(None, {words["alt"], words["name"]}))
        if any(words.values()) and not shown:
            problems.append(f"{name}: words for a figure, but no figure")
        if len(shown) > 1:
            problems.append(f"{name}: {len(shown)} figures, but words for one")
    problems += [f"two figures share {w!r}" for w, times in seen.items() if times > 1]
    problems += [
        f"image without alternative text: {target}"
        for target in re.findall(r"!\[\s*\]\((.*?)\)", without_code(prose(notebook)))
    ]
    return problems


def _figure_problems(words: Mapping[str, str], slug: str, title: str) -> list[str]:
    problems = [f"figure has no {kind}" for kind, text in words.items() if not text]
    alt, prefix = words["alt"].strip(), f"fig-{slug.replace('_', '-')}-"
    if 0 < len(alt) < SHORTEST_ALT:
        problems.append(f"alt text of {len(alt)} letters, fewer than {SHORTEST_ALT}")
    others = {text.strip(" .").casefold() for text in (words["caption"], title)}
    if alt and alt.strip(" .").casefold() in others:
        problems.append("alt text repeats the caption or the title")
    if words["name"] and not re.fullmatch(rf"{prefix}[a-z0-9-]+", words["name"]):
        problems.append(f"figure name {words['name']!r} is not {prefix}<what>")
    return problems


def check_cells(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask for short code cells with known tags that hide nothing from nbval."""
    problems = []
    for name, cell in code_cells(notebook):
        lines = len(cell.source.splitlines())
        if lines > MOST_LINES and "long" not in tags(cell):
            problems.append(f"{name}: {lines} lines, more than {MOST_LINES}")
        if unknown := set(tags(cell)) - KNOWN_TAGS:
            problems.append(f"{name}: unknown tag {', '.join(sorted(unknown))}")
        if found := UNCHECKED.search(cell.source):
            problems.append(f"{name}: {found[0]!r} keeps its output unchecked")
        # nbval runs cells without history, where IPython does not see the semicolon.
        if cell.source.rstrip().endswith(";"):
            problems.append(f"{name}: ends with ';', write '_ = ...' instead")
    return problems


def check_page_only(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask that a sweep leaves out what asserts or draws, and runs what records."""
    problems = []
    for name, cell in code_cells(notebook):
        page_only = PAGE_ONLY_TAG in tags(cell)
        if asserts(cell) and not page_only:
            problems.append(f"{name}: asserts, but is not tagged 'page-only'")
        if pictures(cell) and not page_only:
            problems.append(f"{name}: draws, but is not tagged 'page-only'")
        if _calls(cell, "record") and page_only:
            problems.append(f"{name}: records, but is tagged 'page-only'")
    return problems


def check_exercises(notebook: NotebookNode, slug: str) -> list[str]:
    """Ask for three exercises or more, each with its executed solution, folded."""
    exercises: list[str] = []
    solved: set[str] = set()
    problems = []
    solution, executed = "", False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            executed = executed or bool(solution and cell.outputs)
            continue
        for kind, argument, label, dropdown in _directives(cell.source):
            if kind in ("exercise", "exercise-start"):
                exercises.append(label)
                if not label:
                    problems.append(f"exercise {argument!r} has no :label:")
            elif kind == "solution-start":
                solution, executed = argument, False
                if not dropdown:
                    problems.append(f"solution of {argument}: no ':class: dropdown'")
            elif kind == "solution-end" and executed:
                solved.add(solution)
                solution = ""
    if len(exercises) < FEWEST_EXERCISES:
        problems.append(f"{len(exercises)} exercises, fewer than {FEWEST_EXERCISES}")
    unsolved = [label for label in exercises if label and label not in solved]
    problems += [f"exercise {label}: no executed solution" for label in unsolved]
    return problems


def _directives(source: str) -> Iterator[tuple[str, str, str, bool]]:
    opening = re.compile(
        r"^(?:`{3,}|:{3,})\{([\w-]+)\} *(.*)\n((?: *:\w+:.*(?:\n|$))*)", re.MULTILINE
    )
    for kind, argument, options in opening.findall(source + "\n"):
        label = re.search(r":label: *(\S+)", options)
        dropdown = re.search(r":class:.*\bdropdown\b", options)
        yield kind, argument.strip(), label[1] if label else "", bool(dropdown)


def check_finished(notebook: NotebookNode, slug: str) -> list[str]:
    """Refuse what is left of the skeleton."""
    problems = []
    for number, cell in enumerate(notebook.cells, 1):
        text = cell.source + json.dumps(cell.metadata)
        if "TODO" in text:
            problems.append(f"cell {number}: a TODO of the skeleton is left")
    return problems


def check_metadata(notebook: NotebookNode, slug: str) -> list[str]:
    """Refuse metadata that tell where, when or with what a notebook was run."""
    problems = []
    if notebook.metadata != METADATA:
        problems.append(f"metadata {dict(notebook.metadata)}, not {METADATA}")
    for number, cell in enumerate(notebook.cells, 1):
        if extra := set(cell.metadata) - {"tags", "mystnb"}:
            problems.append(f"cell {number}: metadata {', '.join(sorted(extra))}")
    return problems


Check = Callable[[NotebookNode, str], list[str]]
"""Takes a notebook and its slug and returns what is wrong."""

CHECKS: tuple[Check, ...] = (
    check_format,
    check_execution,
    check_outputs,
    check_parameters,
    check_headings,
    check_label,
    check_card,
    check_cost,
    check_figures,
    check_cells,
    check_page_only,
    check_exercises,
    check_finished,
    check_metadata,
)
"""Checks of one notebook, each of its own kind of fault."""

# --------------------------------------------------------------------------------------
# Checks of the book
# --------------------------------------------------------------------------------------


class Page(NamedTuple):
    """What the book knows of one page."""

    text: str
    """Markdown, without blocks of code."""
    figures: tuple[str, ...]
    """Names of the figures that its code draws."""


class Targets(NamedTuple):
    """What a page can point at."""

    labels: set[str]
    equations: set[str]
    citations: set[str]
    pages: set[str]


def listed_pages(root: Path) -> list[str]:
    """Return the pages of _toc.yml in reading order, such as ``chapters/a``."""

    def files(entry: object) -> Iterator[str]:
        if isinstance(entry, list):
            for item in entry:
                yield from files(item)
        elif isinstance(entry, dict):
            yield from (entry[key] for key in ("root", "file") if key in entry)
            for key in ("parts", "chapters", "sections"):
                yield from files(entry.get(key, []))

    return list(files(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def read_pages(root: Path) -> dict[str, Page]:
    """Return every page of the table of contents, by its name there.

    Raises:
        FileNotFoundError: if a page of the table does not exist.
    """
    found = {}
    for name in listed_pages(root):
        notebook, text = root / f"{name}.ipynb", root / f"{name}.md"
        if notebook.exists():
            found[name] = page_of(nbformat.read(notebook, as_version=4))
        elif text.exists():
            found[name] = Page(without_code(text.read_text(encoding="utf-8")), ())
        else:
            raise FileNotFoundError(f"_toc.yml lists {name}: no such .ipynb, no .md")
    return found


def page_of(notebook: NotebookNode) -> Page:
    """Return what the book knows of a notebook."""
    names = [figure_words(cell)["name"] for _, cell in code_cells(notebook)]
    return Page(without_code(prose(notebook)), tuple(filter(None, names)))


def citation_keys(root: Path) -> list[str]:
    """Return the keys of references.bib, in order."""
    text = (root / "references.bib").read_text(encoding="utf-8")
    return re.findall(r"^@\w+\{([^,\s]+),", text, re.MULTILINE)


def labels_of(page: Page) -> list[str]:
    """Return the labels and figure names that a page defines, in lower case."""
    targets = re.findall(r"^\(([^()\s]+)\)=$", page.text, re.MULTILINE)
    options = re.findall(r"^ *:(?:label|name): *(\S+)", page.text, re.MULTILINE)
    return [label.lower() for label in (*targets, *options, *page.figures)]


def equations_of(page: Page) -> list[str]:
    """Return the labels of a page's equations."""
    dollars = re.findall(r"\$\$ *\(([^()\s]+)\) *$", page.text, re.MULTILINE)
    blocks = re.findall(
        r"^`{3,}\{math\}.*\n(?: *:.*\n)*? *:label: *(\S+)", page.text, re.MULTILINE
    )
    return dollars + blocks


def book_targets(pages: Mapping[str, Page], citations: Iterable[str]) -> Targets:
    """Return everything that the pages of the book can point at."""
    labels = {label for page in pages.values() for label in labels_of(page)}
    equations = {label for page in pages.values() for label in equations_of(page)}
    return Targets(labels, equations, set(citations), set(pages))


def unresolved(text: str, page: str, targets: Targets) -> list[str]:
    """Return the references of a page's text that lead nowhere.

    Args:
        text: the page's text without blocks of code.
        page: its name, such as ``chapters/local_minimum``.
        targets: what there is to point at.
    """
    problems = []
    for role, argument in re.findall(r"\{([\w:]+)\}`([^`]+)`", text):
        found = re.search(r"<([^<>]+)>\s*$", argument)
        target = (found[1] if found else argument).strip()
        if not _resolves(role, target, page, targets):
            problems.append(f"{{{role}}}`{argument}` leads nowhere")
    for target in re.findall(r"\]\(#([^)\s]+)\)", text):
        if target.lower() not in targets.labels:
            problems.append(f"(#{target}) leads nowhere")
    return problems


def _resolves(role: str, target: str, page: str, targets: Targets) -> bool:
    if role in ("ref", "numref", "prf:ref"):
        return target.lower() in targets.labels
    if role == "eq":
        return target in targets.equations
    if role == "cite" or role.startswith("cite:"):
        return {key.strip() for key in target.split(",")} <= targets.citations
    if role == "doc":
        folder = "" if target.startswith("/") else page.rpartition("/")[0]
        parts: list[str] = []
        for part in f"{folder}/{target}".split("/"):
            if part == "..":
                parts = parts[:-1]
            elif part not in ("", "."):
                parts.append(part)
        return "/".join(parts) in targets.pages
    return True


def symptom_chapters(root: Path) -> set[str]:
    """Return the slugs that the symptom table leads to."""
    text = (root / "chapters" / "symptoms.toml").read_text(encoding="utf-8")

    def slugs(entry: object) -> Iterator[str]:
        if isinstance(entry, dict):
            for key, value in entry.items():
                if key == "chapter" and isinstance(value, str):
                    yield value
                yield from slugs(value)
        elif isinstance(entry, list):
            for item in entry:
                yield from slugs(item)

    return set(slugs(tomllib.loads(text)))


def unlisted(
    slugs: Iterable[str], listed: Iterable[str], symptoms: Iterable[str]
) -> list[str]:
    """Return the chapters that a reader cannot find.

    Args:
        slugs: all chapters.
        listed: pages of the table of contents, such as ``chapters/a``.
        symptoms: chapters that the symptom table leads to.
    """
    listed, symptoms = set(listed), set(symptoms)
    problems = []
    for slug in slugs:
        if f"chapters/{slug}" not in listed:
            problems.append(f"chapter {slug} is not in _toc.yml")
        if slug not in symptoms:
            problems.append(f"chapter {slug} is not in chapters/symptoms.toml")
    return problems


LOOK_ALIKES = re.compile(
    r"^### Not to be confused with$(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL
)


def one_way_look_alikes(pages: Mapping[str, Page]) -> list[str]:
    """Return the look-alikes that a chapter names and that do not name it in turn."""
    named: dict[str, set[str]] = {}
    for name, page in pages.items():
        found = LOOK_ALIKES.search(page.text)
        if found:
            targets = re.findall(r"\{ref\}`(?:[^`<]*<)?([^`<>]+)>?`", found[1])
            named[name.removeprefix("chapters/")] = {t.strip() for t in targets}
    return [
        f"{slug} names {other} as a look-alike, and {other} does not name {slug}"
        for slug, others in named.items()
        for other in sorted(others & set(named))
        if slug not in named[other]
    ]


def repeated_labels(pages: Mapping[str, Page]) -> list[str]:
    """Return the labels that the pages define more than once."""
    counts = Counter(label for page in pages.values() for label in labels_of(page))
    return [f"label {label} is used twice" for label, n in counts.items() if n > 1]


def chapter_problems(notebook: NotebookNode, slug: str) -> list[str]:
    """Return every fault of one chapter, each with its name."""
    return [f"{slug}: {p}" for check in CHECKS for p in check(notebook, slug)]


def book_problems(root: Path) -> list[str]:
    """Return the faults that no single chapter shows: lost pages and references."""
    pages = read_pages(root)
    targets = book_targets(pages, citation_keys(root))
    slugs = [path.stem for path in sorted((root / "chapters").glob("*.ipynb"))]
    return [
        *unlisted(slugs, pages, symptom_chapters(root)),
        *repeated_labels(pages),
        *one_way_look_alikes(pages),
        *(
            f"{name}: {problem}"
            for name, page in pages.items()
            for problem in unresolved(page.text, name, targets)
        ),
    ]


def main() -> int:
    """Print every fault of the chapters and the book; return 1 if there is one."""
    problems = book_problems(ROOT)
    for path in chapter_paths():
        problems += chapter_problems(nbformat.read(path, as_version=4), path.stem)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

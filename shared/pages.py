"""What the book's pages need beyond Jupyter Book: a Sphinx extension.

- ``{symptom-finder}`` draws the landing page's symptom finder from one table.
- ``{claims-table}`` draws what became of each claim of the two articles.
- Scripts are loaded by the pages that need them only, and tables can be read aloud.
- A published book links to its source when ``BOOK_REPOSITORY`` names it.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from shared.claims import ClaimsError, claims_markdown, judged_claims
from shared.record import CLAIMS

TABLE = "chapters/symptoms.toml"

TEST_LINES = 3
"""A test that a reader pastes is no longer than this."""

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class SymptomTableError(ValueError):
    """The symptom table cannot be used; the message says which entry and why."""


# --------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One answer that a test can give."""

    answer: str
    means: str


@dataclass(frozen=True)
class Symptom:
    """One thing a reader sees, with a test that tells its causes apart."""

    name: str
    see: str
    also: tuple[str, ...]
    test: str
    uses: str
    outcomes: tuple[Outcome, ...]
    chapter: str


@dataclass(frozen=True)
class Group:
    """Symptoms under one heading."""

    title: str
    symptoms: tuple[Symptom, ...]


def read_symptoms(path: Path, chapters: Collection[str]) -> tuple[Group, ...]:
    """Return the groups of the symptom table.

    Args:
        path: a TOML file; its first lines describe its fields.
        chapters: slugs of the chapters that exist.

    Raises:
        SymptomTableError: if the file is not TOML, a field is missing, empty, unknown
            or of the wrong type, a test is too long or no Python, a name is not unique,
            or a chapter does not exist.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SymptomTableError(f"{path.name}: {error}") from error
    _check_fields(table, {"group": list}, path.name)
    groups = []
    for place, entry in enumerate(table["group"], 1):
        where = f"{path.name}: group {place}"
        _check_fields(entry, {"title": str, "symptom": list}, where)
        symptoms = tuple(
            _symptom(symptom, chapters, f"{where}, symptom {number}")
            for number, symptom in enumerate(entry["symptom"], 1)
        )
        groups.append(Group(entry["title"], symptoms))
    _check_unique(
        [symptom.name for group in groups for symptom in group.symptoms], path.name
    )
    return tuple(groups)


SYMPTOM_FIELDS = {
    "name": str,
    "see": str,
    "also": list,
    "test": str,
    "uses": str,
    "outcomes": list,
    "chapter": str,
}


def _symptom(
    entry: Mapping[str, Any], chapters: Collection[str], where: str
) -> Symptom:
    if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        where = f"{where} ({entry['name']!r})"
    _check_fields(entry, SYMPTOM_FIELDS, where)
    if not NAME.fullmatch(entry["name"]):
        raise SymptomTableError(
            f"{where}: name must be lower-case words joined by hyphens"
        )
    for phrase in entry["also"]:
        if not isinstance(phrase, str) or not phrase.strip():
            raise SymptomTableError(
                f"{where}: also must list phrases, and {phrase!r} is none"
            )
    for place, outcome in enumerate(entry["outcomes"], 1):
        _check_fields(
            outcome, {"answer": str, "means": str}, f"{where}, outcome {place}"
        )
    if len(entry["outcomes"]) < 2:
        raise SymptomTableError(
            f"{where}: outcomes must list at least two, or the test decides nothing"
        )
    return Symptom(
        name=entry["name"],
        see=entry["see"],
        also=tuple(entry["also"]),
        test=_test(entry["test"], where),
        uses=entry["uses"],
        outcomes=tuple(Outcome(**outcome) for outcome in entry["outcomes"]),
        chapter=_chapter(entry["chapter"], chapters, where),
    )


def _test(code: str, where: str) -> str:
    code = code.strip("\n")
    lines = len(code.splitlines())
    if lines > TEST_LINES:
        raise SymptomTableError(
            f"{where}: test has {lines} lines, at most {TEST_LINES} are allowed"
        )
    try:
        compile(code, "test", "exec")
    except SyntaxError as error:
        raise SymptomTableError(f"{where}: test is not Python: {error}") from error
    return code


def _chapter(slug: str, chapters: Collection[str], where: str) -> str:
    if slug not in chapters:
        near = difflib.get_close_matches(slug, chapters, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "there is no such one"
        known = ", ".join(sorted(chapters)) or "none"
        raise SymptomTableError(
            f"{where}: chapter {slug!r}: {hint} Chapters in _toc.yml: {known}"
        )
    return slug


def _check_fields(entry: object, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise SymptomTableError(f"{where}: must be a table, not {entry!r}")
    for name in fields:
        if name not in entry:
            raise SymptomTableError(f"{where}: the field {name!r} is missing")
    for name, value in entry.items():
        if name not in fields:
            raise SymptomTableError(
                f"{where}: there is no field {name!r}, only {', '.join(fields)}"
            )
        kind = fields[name]
        if not isinstance(value, kind):
            wanted = "a string" if kind is str else "a list"
            raise SymptomTableError(f"{where}: {name} must be {wanted}, not {value!r}")
        if not value or (kind is str and not value.strip()):
            raise SymptomTableError(f"{where}: {name} must not be empty")


def _check_unique(names: Collection[str], where: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise SymptomTableError(f"{where}: two symptoms have the name {name!r}")
        seen.add(name)


# --------------------------------------------------------------------------------------
# The finder
# --------------------------------------------------------------------------------------


def finder_markdown(groups: Collection[Group]) -> str:
    """Return the symptom finder as MyST: a heading per group, a dropdown per symptom.

    Each symptom can be linked to as ``symptom-<name>``, and each chapter's first one as
    ``find-<slug with hyphens>``.
    """
    linked: set[str] = set()
    blocks = []
    for group in groups:
        blocks.append(f"### {group.title}")
        for symptom in group.symptoms:
            anchors = [f"symptom-{symptom.name}"]
            if symptom.chapter not in linked:
                anchors.append(f"find-{symptom.chapter.replace('_', '-')}")
                linked.add(symptom.chapter)
            blocks.append(_dropdown(symptom, anchors))
    return "\n\n".join(blocks)


def _dropdown(symptom: Symptom, anchors: Collection[str]) -> str:
    # The anchors are inside the body: a browser that follows a link to one of them
    # opens the dropdown around it, which it does not for the dropdown's own address.
    lines = [f":::::{{dropdown}} {symptom.see}", ":class-container: symptom", ""]
    for anchor in anchors:
        lines += [f"({anchor})=", ""]
    lines += [
        f"Also said: {'; '.join(symptom.also)}.",
        "",
        f"**Run this.** {symptom.uses}",
        "",
        "```python",
        symptom.test,
        "```",
        "",
        "**Read the answer.**",
        "",
    ]
    for outcome in symptom.outcomes:
        lines += [outcome.answer, f": {outcome.means}", ""]
    lines += [f"**Read on.** {{doc}}`/chapters/{symptom.chapter}`", ":::::"]
    return "\n".join(lines)


class SymptomFinder(SphinxDirective):
    """``{symptom-finder}``: the whole table, as headings and dropdowns."""

    has_content = False
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Parse the finder's markdown at this place.

        Raises:
            sphinx.errors.ExtensionError: if the table cannot be used.
        """
        path = Path(self.env.srcdir) / TABLE
        self.env.note_dependency(str(path))
        try:
            groups = read_symptoms(path, set(_chapter_slugs(self.env.found_docs)))
        except (SymptomTableError, OSError) as error:
            raise ExtensionError(str(error)) from None
        return _parsed(self, finder_markdown(groups), path)


class ClaimsTable(SphinxDirective):
    """``{claims-table}``: every claim of the articles with its verdict."""

    has_content = False
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Parse the tables' markdown at this place.

        Raises:
            sphinx.errors.ExtensionError: if two chapters judge the same claim.
        """
        folder = Path(self.env.srcdir) / "chapters"
        slugs = sorted(_chapter_slugs(self.env.found_docs))
        paths = [folder / f"{slug}.ipynb" for slug in slugs]
        notebooks = [path for path in paths if path.is_file()]
        for path in (CLAIMS, *notebooks):
            self.env.note_dependency(str(path))
        try:
            judged = judged_claims(notebooks)
        except ClaimsError as error:
            raise ExtensionError(str(error)) from None
        return _parsed(self, claims_markdown(judged), CLAIMS)


def _parsed(directive: SphinxDirective, text: str, source: Path) -> list[nodes.Node]:
    """Return what markdown means at the place of a directive."""
    lines = StringList(text.splitlines(), source=str(source))
    parent = nodes.section()
    parent.document = directive.state.document
    directive.state.nested_parse(lines, 0, parent, match_titles=True)
    return parent.children


def _chapter_slugs(documents: Collection[str]) -> Iterator[str]:
    for name in documents:
        folder, _, slug = name.rpartition("/")
        if folder == "chapters":
            yield slug


# --------------------------------------------------------------------------------------
# Repairs
# --------------------------------------------------------------------------------------


def choose_scripts(app: Sphinx, config: Config) -> None:
    """Undo that Jupyter Book loads each script and style of ``_static`` on every page.

    That would load MathJax twice where there is mathematics, which it does not survive,
    and once where there is none.
    """
    config.html_js_files = ["book.js"]
    config.html_css_files = ["book.css"]


class ReferenceList(SphinxPostTransform):
    """Turn the bibliography into a plain list, which every screen reader knows.

    The works are cited by author and year, so their labels say nothing more.
    """

    default_priority = 700
    formats = ("html",)

    def run(self, **_: object) -> None:
        """Replace each run of citations by one list, keeping what links lead to."""
        for first in list(self.document.findall(nodes.citation)):
            if first.parent is None:
                continue
            parent, place = first.parent, first.parent.index(first)
            works = nodes.bullet_list(classes=["works"])
            while place < len(parent) and isinstance(parent[place], nodes.citation):
                citation = parent.pop(place)
                citation.parent = None
                works += nodes.list_item("", *citation[1:], ids=citation["ids"])
            parent.insert(place, works)


class TableCorners(SphinxPostTransform):
    """Make the empty corner of a data frame's table a plain cell, not a header."""

    default_priority = 700
    formats = ("html",)

    def run(self, **_: object) -> None:
        """Change the raw HTML of pandas in place."""
        for raw in list(self.document.findall(nodes.raw)):
            if 'class="dataframe"' in raw.astext():
                text = raw.astext().replace("<th></th>", "<td></td>")
                raw.replace_self(nodes.raw(raw.rawsource, text, format="html"))


# --------------------------------------------------------------------------------------
# A link to the source
# --------------------------------------------------------------------------------------


def link_to_repository(app: Sphinx, config: Config) -> None:
    """Add repository and issue buttons if ``BOOK_REPOSITORY`` holds the address.

    Only the workflow that publishes the book knows where its source is.

    Raises:
        sphinx.errors.ExtensionError: if the variable is set but holds no https address.
    """
    address = os.environ.get("BOOK_REPOSITORY", "").rstrip("/")
    if not address:
        return
    if not re.fullmatch(r"https://[^/\s]+/[^/\s]+/[^/\s]+", address):
        raise ExtensionError(
            "BOOK_REPOSITORY must be like https://github.com/owner/name, "
            f"not {address!r}"
        )
    config.html_theme_options |= {
        "repository_url": address,
        "use_repository_button": True,
        "use_issues_button": True,
    }


def name_version(app: Sphinx, config: Config) -> None:
    """Make the project's version known to ``{sub-ref}`release```."""
    config.release = config.version = version("nothing-moves")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register everything with Sphinx."""
    app.add_directive("symptom-finder", SymptomFinder)
    app.add_directive("claims-table", ClaimsTable)
    app.add_post_transform(TableCorners)
    app.add_post_transform(ReferenceList)
    app.connect("config-inited", choose_scripts)
    app.connect("config-inited", link_to_repository)
    app.connect("config-inited", name_version)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Every hygiene check can fail: each fault here is made in a chapter without one."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from nbformat import NotebookNode, v4

from shared.notebooks import cost_line, skeleton_notebook
from tests import hygiene

SLUG = "my_failure"

ALT = "The size of the gradient falls on a straight line, panel {}."


def filled_skeleton() -> NotebookNode:
    """Return the skeleton as an author would leave it: filled, and executed."""
    notebook = skeleton_notebook(SLUG)
    executed = figures = 0
    for cell in notebook.cells:
        cell.source = re.sub(r"TODO:?", "Text.", cell.source)
        if cell.cell_type == "code":
            executed += 1
            cell.execution_count = executed
            cell.outputs = [v4.new_output("stream", name="stdout", text="0.1\n")]
        if words := cell.metadata.get("mystnb"):
            figures += 1
            words["image"]["alt"] = ALT.format(figures)
            words["figure"]["caption"] = "A few words"
            cell.outputs = [
                v4.new_output(
                    "display_data",
                    {"image/png": "iVBO/tmp/Rw==", "text/plain": "Panel"},
                )
            ]
    first = notebook.cells[0]
    first.source = first.source.replace("- **Cost.** Text.", cost_line(notebook, 3))
    return notebook


def code(notebook: NotebookNode, containing: str) -> NotebookNode:
    """Return the first code cell whose source contains a text."""
    return next(
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and containing in cell.source
    )


def replace(old: str, new: str) -> Callable[[NotebookNode], None]:
    """Return a change of the first cell that contains ``old``."""

    def change(notebook: NotebookNode) -> None:
        cell = next(cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new, 1)

    return change


def output(kind: str, **fields: object) -> Callable[[NotebookNode], None]:
    """Return a change that adds an output to the cell that prints the end."""

    def change(notebook: NotebookNode) -> None:
        code(notebook, "def descend").outputs.append(v4.new_output(kind, **fields))

    return change


def tag(containing: str, *tags: str) -> Callable[[NotebookNode], None]:
    """Return a change of the tags of the code cell with this text."""

    def change(notebook: NotebookNode) -> None:
        code(notebook, containing).metadata["tags"] = list(tags)

    return change


def figure(
    part: str, key: str, value: str, which: str = "wrong ="
) -> Callable[[NotebookNode], None]:
    """Return a change of a figure's words."""

    def change(notebook: NotebookNode) -> None:
        code(notebook, which).metadata["mystnb"][part][key] = value

    return change


def strip_counts(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = []


def strip_one(notebook: NotebookNode) -> None:
    code(notebook, "def descend").execution_count = None


def swap_counts(notebook: NotebookNode) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first, second = cells[1], cells[2]
    counts = second.execution_count, first.execution_count
    first.execution_count, second.execution_count = counts


def skip_count(notebook: NotebookNode) -> None:
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    last.execution_count += 1


def swap_sections(notebook: NotebookNode) -> None:
    replace("## Measure", "## Aside")(notebook)
    replace("## Why", "## Measure")(notebook)
    replace("## Aside", "## Why")(notebook)


def second_figure(notebook: NotebookNode) -> None:
    cell = code(notebook, "wrong =")
    cell.outputs.append(copy.deepcopy(cell.outputs[0]))


def undraw(notebook: NotebookNode) -> None:
    code(notebook, "wrong =").outputs = []


def unname(notebook: NotebookNode) -> None:
    del code(notebook, "wrong =").metadata["mystnb"]


def unexecuted_solution(notebook: NotebookNode) -> None:
    code(notebook, "the solution").outputs = []


def unfold_solution(notebook: NotebookNode) -> None:
    replace(":class: dropdown", ":class: open")(notebook)


def lose_solution(notebook: NotebookNode) -> None:
    replace("{solution-start} ex-my-failure-2", "{note} lost")(notebook)


def drop_exercise(notebook: NotebookNode) -> None:
    replace("{exercise} Name the failure", "{note} lost")(notebook)


def stamp(notebook: NotebookNode) -> None:
    notebook.cells[2].metadata["execution"] = {"iopub.status.busy": "2020-01-01"}


def name_interpreter(notebook: NotebookNode) -> None:
    notebook.metadata["language_info"]["version"] = "3.11.7"


def other_kernel(notebook: NotebookNode) -> None:
    notebook.metadata["kernelspec"]["name"] = "my-env"


def second_parameters(notebook: NotebookNode) -> None:
    code(notebook, "def descend").metadata["tags"] = ["parameters"]


def bad_cell_id(notebook: NotebookNode) -> None:
    notebook.cells[3].id = "no spaces allowed"


LONG = "\n".join(["x = 1"] * 16)
PAD = "1.0 " * 60_000

FAULTS = [
    (hygiene.check_format, bad_cell_id, "not a valid notebook"),
    (hygiene.check_format, replace("def descend", "deaf descend"), "not Python"),
    (hygiene.check_execution, strip_counts, "not executed"),
    (hygiene.check_execution, strip_one, "execution count None, not 3"),
    (hygiene.check_execution, swap_counts, "execution count 3, not 2"),
    (hygiene.check_execution, skip_count, "make execute ONLY=my_failure"),
    (
        hygiene.check_outputs,
        output("error", ename="ValueError", evalue="no", traceback=[]),
        "error output ValueError",
    ),
    (hygiene.check_outputs, output("stream", name="stderr", text="warn"), "stderr"),
    (
        hygiene.check_outputs,
        output("display_data", data={"image/svg+xml": "<svg/>"}),
        "SVG",
    ),
    (hygiene.check_outputs, output("stream", text=PAD), "over 200000"),
    (hygiene.check_outputs, output("stream", text="a\n/home/me/x.py"), "/home/"),
    (hygiene.check_outputs, output("stream", text="in C:\\Users\\me"), "C:"),
    (
        hygiene.check_outputs,
        output("display_data", data={"text/plain": "<Axes at 0x7f00aa11bb22>"}),
        "0x7f00aa11bb22",
    ),
    (hygiene.check_parameters, tag("learning_rate: float"), "0 cells tagged"),
    (hygiene.check_parameters, second_parameters, "2 cells tagged"),
    (
        hygiene.check_parameters,
        replace("learning_rate: float = 0.1", "learning_rate = 0.1"),
        "not typed",
    ),
    (hygiene.check_parameters, replace("  # step size; above 0", ""), "not typed"),
    (hygiene.check_parameters, replace("size; above 0", "size"), "range"),
    (hygiene.check_parameters, replace("float = 0.1", "float = -0.1"), "above 0"),
    (hygiene.check_parameters, replace("float = 0.1", "int = 0.1"), "int"),
    (hygiene.check_headings, swap_sections, "Reproduce, Why, Measure, Repair"),
    (hygiene.check_headings, replace("## The claim", "### The claim"), "anatomy"),
    (hygiene.check_headings, replace("## Verdict", "## Summary"), "Summary"),
    (
        hygiene.check_headings,
        replace("## Measure", "# Measure\n\n## Measure"),
        "2 first-level",
    ),
    (hygiene.check_label, replace("(my_failure)=", "(other)="), "(my_failure)="),
    (hygiene.check_label, replace("(my_failure)=\n", ""), "(my_failure)="),
    (hygiene.check_card, replace("{admonition} At a glance", "{note}"), "no card"),
    (hygiene.check_card, replace(":class: glance", ":class: tip"), "no card"),
    (hygiene.check_card, replace("**What it is not.**", "**Not.**"), "fields"),
    (
        hygiene.check_card,
        replace("- **What you see.**", "- **Cost.** x\n- **What you see.**"),
        "fields",
    ),
    (
        hygiene.check_card,
        replace("Text. one line of code, and what it does.", ""),
        "The smallest repair is empty",
    ),
    (hygiene.check_cost, replace("run in 3 s", "take a while"), "no measured cost"),
    (hygiene.check_cost, replace(" minutes to read", "0 minutes to read"), "recounted"),
    (hygiene.check_cost, replace(" code cells", "0 code cells"), "recounted"),
    (hygiene.check_cost, replace("numpy ", "numpy 9."), "recounted"),
    (hygiene.check_figures, figure("image", "alt", ""), "no alt"),
    (hygiene.check_figures, figure("image", "alt", "A plot."), "fewer than 40"),
    (
        hygiene.check_figures,
        figure("figure", "caption", ALT.format(1).upper()),
        "repeats the caption",
    ),
    (hygiene.check_figures, figure("image", "alt", ALT.format(2)), "share"),
    (hygiene.check_figures, figure("figure", "caption", ""), "no caption"),
    (hygiene.check_figures, figure("figure", "name", ""), "no name"),
    (hygiene.check_figures, figure("figure", "name", "fig-other"), "fig-my-failure-"),
    (
        hygiene.check_figures,
        figure("figure", "name", "fig-my-failure-sweep"),
        "share 'fig-my-failure-sweep'",
    ),
    (hygiene.check_figures, unname, "figure has no alt"),
    (hygiene.check_figures, undraw, "no figure"),
    (hygiene.check_figures, second_figure, "2 figures"),
    (
        hygiene.check_figures,
        replace("## Verdict", "## Verdict\n\n![](picture.png)"),
        "picture.png",
    ),
    (hygiene.check_cells, replace("def descend", LONG + "\n\n\ndef descend"), "lines"),
    (hygiene.check_cells, tag("def descend", "pageonly"), "unknown tag pageonly"),
    (
        hygiene.check_cells,
        tag("def descend", "nbval-ignore-output"),
        "unknown tag nbval-ignore-output",
    ),
    (
        hygiene.check_cells,
        replace("def descend", "# NBVAL_IGNORE_OUTPUT\ndef descend"),
        "unchecked",
    ),
    (hygiene.check_cells, replace(' steps")', ' steps");'), "ends with ';'"),
    (hygiene.check_page_only, tag("assert abs"), "asserts, but"),
    (
        hygiene.check_page_only,
        replace("def descend", "np.testing.assert_allclose(1, 1)\n\n\ndef descend"),
        "asserts, but",
    ),
    (hygiene.check_page_only, tag("wrong ="), "draws, but"),
    (hygiene.check_page_only, tag("record(last", "page-only"), "records, but"),
    (hygiene.check_exercises, drop_exercise, "2 exercises, fewer than 3"),
    (hygiene.check_exercises, unexecuted_solution, "ex-my-failure-1: no executed"),
    (hygiene.check_exercises, lose_solution, "ex-my-failure-2: no executed"),
    (hygiene.check_exercises, unfold_solution, "dropdown"),
    (hygiene.check_exercises, replace(":label: ex-my", ":name: ex-my"), "no :label:"),
    (hygiene.check_finished, replace("Text.", "TODO"), "TODO"),
    (
        hygiene.check_finished,
        figure("figure", "caption", "TODO: a few words."),
        "TODO",
    ),
    (hygiene.check_metadata, stamp, "execution"),
    (hygiene.check_metadata, name_interpreter, "3.11.7"),
    (hygiene.check_metadata, other_kernel, "my-env"),
]


def test_a_filled_skeleton_has_no_fault() -> None:
    assert hygiene.chapter_problems(filled_skeleton(), SLUG) == []


@pytest.mark.parametrize(
    ("check", "fault", "words"),
    [
        pytest.param(*case, id=f"{case[0].__name__[6:]}-{number}")
        for number, case in enumerate(FAULTS)
    ],
)
def test_a_fault_is_found(
    check: Callable[[NotebookNode, str], list[str]],
    fault: Callable[[NotebookNode], None],
    words: str,
) -> None:
    notebook = filled_skeleton()
    fault(notebook)
    problems = check(notebook, SLUG)
    assert any(words in problem for problem in problems), problems


def test_every_check_has_a_fault() -> None:
    assert {check for check, _, _ in FAULTS} == set(hygiene.CHECKS)


def test_an_untouched_skeleton_is_refused() -> None:
    problems = hygiene.check_finished(skeleton_notebook(SLUG), SLUG)
    assert any("cell 1:" in problem for problem in problems)


def test_headings_inside_code_are_none() -> None:
    notebook = filled_skeleton()
    replace("## Why", "## Why\n\n```python\n# a comment\n## another\n```")(notebook)
    assert hygiene.check_headings(notebook, SLUG) == []


def test_a_cell_marked_long_may_be_long() -> None:
    notebook = filled_skeleton()
    cell = code(notebook, "def descend")
    cell.source += "\n" + LONG
    cell.metadata["tags"] = ["long"]
    assert hygiene.check_cells(notebook, SLUG) == []


# --------------------------------------------------------------------------------------
# The book as a whole
# --------------------------------------------------------------------------------------

HOME = hygiene.Page(
    "(home)=\n$$ x = 1 $$ (eq-x)\n\n$$\ny\n$$ (eq-y)\n", ("fig-home-x",)
)
OTHER = hygiene.Page("(other)=\n```{math}\n:label: eq-z\nz\n```\n", ())
TARGETS = hygiene.book_targets(
    {"intro": HOME, "chapters/other": OTHER}, ["nocedal2006", "he2015"]
)


@pytest.mark.parametrize(
    "text",
    [
        "{ref}`home`",
        "{ref}`the start <home>`",
        "{numref}`fig-home-x`",
        "{numref}`Figure %s <fig-home-x>`",
        "{eq}`eq-x` {eq}`eq-y` {eq}`eq-z`",
        "{cite}`nocedal2006,he2015` {cite:t}`he2015`",
        "{doc}`other` {doc}`../intro` {doc}`the start </intro>`",
        "[the start](#home)",
        "{download}`rows <sweeps/any.csv>`",
    ],
)
def test_references_that_resolve(text: str) -> None:
    assert hygiene.unresolved(text, "chapters/other", TARGETS) == []


@pytest.mark.parametrize(
    "text",
    [
        "{ref}`hom`",
        "{ref}`home <hom>`",
        "{numref}`fig-home-y`",
        "{eq}`eq-w`",
        "{cite}`nocedal2006,nobody1999`",
        "{cite:p}`nobody1999`",
        "{doc}`intro`",
        "{doc}`/other`",
        "[the start](#nowhere)",
    ],
)
def test_references_that_lead_nowhere(text: str) -> None:
    problems = hygiene.unresolved(text, "chapters/other", TARGETS)
    assert len(problems) == 1
    assert "leads nowhere" in problems[0]


def test_chapters_that_a_reader_cannot_find() -> None:
    slugs = ["a", "b", "c"]
    problems = hygiene.unlisted(slugs, ["chapters/a", "chapters/b"], ["a", "c"])
    assert problems == [
        "chapter b is not in chapters/symptoms.toml",
        "chapter c is not in _toc.yml",
    ]


def test_a_label_used_twice() -> None:
    pages = {"a": HOME, "b": hygiene.Page("(Home)=\n", ())}
    assert hygiene.repeated_labels(pages) == ["label home is used twice"]
    assert hygiene.repeated_labels({"a": HOME, "b": OTHER}) == []


def look_alikes(*names: str) -> hygiene.Page:
    lines = "".join(f"- {{ref}}`{name}`: not this.\n" for name in names)
    text = (
        f"# A\n\n{{ref}}`c`\n\n### Not to be confused with\n\n{lines}\n### References\n"
    )
    return hygiene.Page(text + "{ref}`c`\n", ())


def test_look_alikes_name_each_other() -> None:
    pages = {
        "chapters/a": look_alikes("b", "the other <c>"),
        "chapters/b": look_alikes("a"),
        "chapters/c": look_alikes("a", "some-label"),
    }
    assert hygiene.one_way_look_alikes(pages) == []
    pages["chapters/b"] = look_alikes("c")
    assert hygiene.one_way_look_alikes(pages) == [
        "a names b as a look-alike, and b does not name a",
        "b names c as a look-alike, and c does not name b",
    ]


def test_book_problems_names_the_page(tmp_path: Path) -> None:
    (tmp_path / "chapters").mkdir()
    (tmp_path / "_toc.yml").write_text("root: intro\nchapters:\n- file: chapters/a\n")
    (tmp_path / "intro.md").write_text("{ref}`my_failure` {ref}`nowhere`\n")
    (tmp_path / "references.bib").write_text("@book{nocedal2006,\n title={x}}\n")
    (tmp_path / "chapters" / "symptoms.toml").write_text(
        '[[symptom]]\nsee = "x"\nchapter = "b"\n'
    )
    with pytest.raises(FileNotFoundError, match=r"chapters/a"):
        hygiene.book_problems(tmp_path)
    hygiene.nbformat.write(filled_skeleton(), tmp_path / "chapters" / "a.ipynb")
    assert hygiene.book_problems(tmp_path) == [
        "chapter a is not in chapters/symptoms.toml",
        "intro: {ref}`nowhere` leads nowhere",
        "chapters/a: {cite:t}`KEY` leads nowhere",
    ]
